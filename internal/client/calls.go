package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Pipeline is how the hops of the process are.
type Pipeline struct {
	LedgerLag     Int         `json:"ledger_lag"`
	PublishLag    Int         `json:"publish_lag"`
	AnalyticsLag  Int         `json:"analytics_lag"`
	Entries       Int         `json:"entries"`
	Accepted      Int         `json:"accepted"`
	Refused       Int         `json:"refused"`
	Duplicates    Int         `json:"duplicates"`
	Rejected      Int         `json:"rejected"`
	Unpriced      Int         `json:"unpriced"`
	CostUSD       string      `json:"cost_usd"`
	IngestRate    float64     `json:"ingest_rate"`
	LedgerRate    float64     `json:"ledger_rate"`
	AnalyticsRate float64     `json:"analytics_rate"`
	Partitions    []Partition `json:"partitions"`
	// Halted says which partitions stand still, and why.
	Halted []string `json:"halted"`
}

// Partition is where one partition stands.
type Partition struct {
	Partition      int32 `json:"partition"`
	NextOffset     Int   `json:"next_offset"`
	EndOffset      Int   `json:"end_offset"`
	Batch          Int   `json:"batch"`
	PublishedBatch Int   `json:"published_batch"`
	StoredBatch    Int   `json:"stored_batch"`
}

// Pipeline asks how the hops are.
func (c *Client) Pipeline(ctx context.Context) (*Pipeline, error) {
	var p Pipeline
	return &p, c.get(ctx, "/v1/pipeline", nil, &p)
}

// Readiness is whether each dependency answers.
type Readiness struct {
	Status       string       `json:"status"`
	Dependencies []Dependency `json:"dependencies"`
}

// Dependency is something the server needs.
type Dependency struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// Ready asks whether the server is ready. A server that is not says so too: then
// the answer is complete, and the error is a *ProblemError of status 503.
func (c *Client) Ready(ctx context.Context) (*Readiness, error) {
	resp, err := c.send(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return nil, problemOf(resp)
	}
	var r Readiness
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxProblemBytes)).Decode(&r); err != nil {
		return nil, fmt.Errorf("client: the answer of /readyz cannot be read: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return &r, &ProblemError{Status: resp.StatusCode, Detail: r.Status}
	}
	return &r, nil
}

// IsNotReady says that the server answered, and is not ready.
func IsNotReady(err error) bool { return StatusOf(err) == http.StatusServiceUnavailable }

// Tenant is one tenant.
type Tenant struct {
	TenantID  string `json:"tenant_id"`
	Partition int32  `json:"partition"`
}

// Tenants lists all tenants.
func (c *Client) Tenants(ctx context.Context) ([]Tenant, error) {
	var all []Tenant
	for token := ""; ; {
		var page struct {
			Tenants []Tenant `json:"tenants"`
			Next    string   `json:"next_page_token"`
		}
		q := url.Values{"page_size": {"1000"}}
		if token != "" {
			q.Set("page_token", token)
		}
		if err := c.get(ctx, "/v1/tenants", q, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Tenants...)
		if token = page.Next; token == "" {
			return all, nil
		}
	}
}

// Head is the end of a tenant's chain.
type Head struct {
	TenantID   string     `json:"tenant_id"`
	Seq        Int        `json:"seq"`
	ChainHash  string     `json:"chain_hash"`
	KeyEpoch   Int        `json:"key_epoch"`
	ReceivedAt *time.Time `json:"received_at"`
}

// Head asks for the end of a tenant's chain.
func (c *Client) Head(ctx context.Context, tenant string) (*Head, error) {
	var h Head
	return &h, c.get(ctx, "/v1/ledger/head", url.Values{"tenant_id": {tenant}}, &h)
}

// Entry is what of a ledger entry is looked at here.
type Entry struct {
	Seq            Int            `json:"seq"`
	Kind           string         `json:"kind"`
	EventID        string         `json:"event_id"`
	OccurredAt     *time.Time     `json:"occurred_at"`
	Provider       string         `json:"provider"`
	Model          string         `json:"model"`
	Status         string         `json:"status"`
	CostUSD        *string        `json:"cost_usd"`
	UnpricedReason string         `json:"unpriced_reason"`
	Tokens         map[string]Int `json:"tokens"`
	RejectReason   string         `json:"reject_reason"`
	Canonical      []byte         `json:"canonical"`
	ChainHash      string         `json:"chain_hash"`
	MAC            string         `json:"mac"`
	KeyEpoch       Int            `json:"key_epoch"`
	// Correction is what the entry corrects, nil when it corrects nothing.
	Correction *Correction `json:"correction"`
	// JSON is the whole entry as the server wrote it.
	JSON json.RawMessage `json:"-"`
}

// Correction is the original of a correction, and what that comes to from there
// on.
type Correction struct {
	Seq         Int            `json:"seq"`
	EventID     string         `json:"event_id"`
	Reason      string         `json:"reason"`
	NetCostUSD  *string        `json:"net_cost_usd"`
	TokenDeltas map[string]Int `json:"token_deltas"`
}

// EntryPage is the most entries of one page.
const EntryPage = 1000

// EntryQuery says which entries are asked for.
type EntryQuery struct {
	TenantID   string
	Descending bool // newest first
	PageSize   int  // 0 is EntryPage
}

// Entries gives fn every entry of a tenant in order of number. An error of fn
// ends it and is returned.
func (c *Client) Entries(ctx context.Context, tenant string, fn func(*Entry) error) error {
	return c.QueryEntries(ctx, EntryQuery{TenantID: tenant}, fn)
}

// QueryEntries gives fn every entry that the query asks for. An error of fn ends
// it and is returned.
func (c *Client) QueryEntries(ctx context.Context, q EntryQuery, fn func(*Entry) error) error {
	size := q.PageSize
	if size == 0 {
		size = EntryPage
	}
	for token := ""; ; {
		var page struct {
			Entries []json.RawMessage `json:"entries"`
			Next    string            `json:"next_page_token"`
		}
		v := url.Values{"tenant_id": {q.TenantID}, "page_size": {strconv.Itoa(size)}}
		if q.Descending {
			v.Set("descending", "true")
		}
		if token != "" {
			v.Set("page_token", token)
		}
		if err := c.get(ctx, "/v1/ledger/entries", v, &page); err != nil {
			return err
		}
		for _, raw := range page.Entries {
			e := Entry{JSON: raw}
			if err := json.Unmarshal(raw, &e); err != nil {
				return fmt.Errorf("client: an entry cannot be read: %w", err)
			}
			if err := fn(&e); err != nil {
				return err
			}
		}
		if token = page.Next; token == "" {
			return nil
		}
	}
}

// Verification is the verdict on a tenant's ledger.
type Verification struct {
	Verdict     string `json:"verdict"` // intact, broken or unknown
	Entries     Int    `json:"entries"`
	FromSeq     Int    `json:"from_seq"`
	ToSeq       Int    `json:"to_seq"`
	HeadHash    string `json:"head_hash"`
	FirstBadSeq Int    `json:"first_bad_seq"`
	Reason      string `json:"reason"`
	Detector    string `json:"detector"`
	Message     string `json:"message"`
	// CheckpointSize is the greatest checkpoint that the entries agree with.
	CheckpointSize Int `json:"checkpoint_size"`
	// Tree is the tree of the entries up to ToSeq: its perfect subtrees, from left
	// to right, in hexadecimal.
	Tree []string `json:"tree"`
}

// VerifyQuery says what is to be verified. Zero numbers are the first and the
// last entry.
type VerifyQuery struct {
	TenantID string `json:"tenant_id"`
	FromSeq  Int    `json:"from_seq"`
	ToSeq    Int    `json:"to_seq"`
	// Tree is the tree before FromSeq, as the answer for the entries before had it.
	Tree []string `json:"tree,omitempty"`
}

// Verify has the server check a tenant's whole ledger.
func (c *Client) Verify(ctx context.Context, tenant string) (*Verification, error) {
	var v Verification
	return &v, c.post(ctx, "/v1/ledger:verify", map[string]string{"tenant_id": tenant}, &v)
}

// VerifyRange has the server check a range.
func (c *Client) VerifyRange(ctx context.Context, q VerifyQuery) (*Verification, error) {
	var v Verification
	return &v, c.post(ctx, "/v1/ledger:verify", q, &v)
}

// Difference is where a ledger and something beside it part.
type Difference struct {
	Detector string `json:"detector"`
	Seq      Int    `json:"seq"` // 0 when it is no single entry
	Message  string `json:"message"`
}

// Compare has the server hold a tenant's ledger against everything beside it
// that has a copy of a part of it.
func (c *Client) Compare(ctx context.Context, tenant string) ([]Difference, error) {
	var answer struct {
		Differences []Difference `json:"differences"`
	}
	err := c.post(ctx, "/v1/ledger:compare", map[string]string{"tenant_id": tenant}, &answer)
	return answer.Differences, err
}
