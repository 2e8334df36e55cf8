package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// maxAPIAnswer bounds an answer that is read: a page of 1,000 entries.
const maxAPIAnswer = 64 << 20

// ledgerAPI asks a running server about ledgers.
type ledgerAPI struct {
	url, token string
	http       *http.Client
}

// call makes one request; body nil is a GET.
func (c *ledgerAPI) call(ctx context.Context, path string, body, answer proto.Message) error {
	method, content := http.MethodGet, []byte(nil)
	if body != nil {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(body)
		if err != nil {
			return err
		}
		method, content = http.MethodPost, b
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.url, "/")+path, bytes.NewReader(content))
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--url: %w", err)}
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return &exitError{exitUnavailable, err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAPIAnswer))
	if err != nil {
		return &exitError{exitUnavailable, err}
	}
	if res.StatusCode != http.StatusOK {
		return problemError(res.StatusCode, b)
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, answer)
}

// problemError is a refusal with the exit code that it means.
func problemError(status int, body []byte) error {
	var p struct {
		Title, Detail string
		RequestID     string `json:"request_id"`
	}
	_ = json.Unmarshal(body, &p) // whatever else answers has no detail
	code := exitFailure
	switch status {
	case http.StatusBadRequest:
		code = exitUsage
	case http.StatusUnauthorized, http.StatusForbidden:
		code = exitAuth
	case http.StatusNotFound, http.StatusGone:
		code = exitNotFound
	case http.StatusConflict:
		code = exitConflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusNotImplemented:
		code = exitUnavailable
	}
	return &exitError{code, fmt.Errorf("the server answers %d: %s (request %s)", status, p.Detail, p.RequestID)}
}

// tenants lists all tenants that the token may read.
func (c *ledgerAPI) tenants(ctx context.Context) ([]string, error) {
	var ids []string
	for token := ""; ; {
		var page pb.ListTenantsResponse
		q := url.Values{"page_size": {"1000"}, "page_token": {token}}
		if err := c.call(ctx, "/v1/tenants?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		for _, t := range page.Tenants {
			ids = append(ids, t.TenantId)
		}
		if token = page.NextPageToken; token == "" {
			return ids, nil
		}
	}
}

func (c *ledgerAPI) head(ctx context.Context, tenantID string) (*pb.Head, error) {
	var h pb.Head
	err := c.call(ctx, "/v1/ledger/head?"+url.Values{"tenant_id": {tenantID}}.Encode(), nil, &h)
	return &h, err
}

// entries calls fn with pages of entries until it returns false.
func (c *ledgerAPI) entries(ctx context.Context, tenantID string, size int, descending bool, fn func([]*pb.Entry) (bool, error)) error {
	for token := ""; ; {
		var page pb.ListEntriesResponse
		q := url.Values{
			"tenant_id": {tenantID}, "page_size": {strconv.Itoa(size)}, "page_token": {token},
			"descending": {strconv.FormatBool(descending)},
		}
		if err := c.call(ctx, "/v1/ledger/entries?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		more, err := fn(page.Entries)
		if err != nil || !more || page.NextPageToken == "" {
			return err
		}
		token = page.NextPageToken
	}
}

// verifyChunk is how many entries one request asks to be verified, so that
// there is progress to show.
const verifyChunk = 250_000

// verify has the server check a range, chunk by chunk. Each chunk is anchored
// in the last entry of the one before; the last one goes to the head.
func (c *ledgerAPI) verify(ctx context.Context, o verify.Options) (verify.Report, error) {
	h, err := c.head(ctx, o.Tenant)
	var refused *exitError
	noHead := errors.As(err, &refused) && refused.code == exitNotFound // the server says whether that is a fault
	if err != nil && !noHead {
		return verify.Report{}, err
	}
	last := h.Seq
	if o.To > 0 {
		last = min(o.To, last)
	}
	first := max(o.From, 1)
	sum := verify.Report{Verdict: verify.Intact, Tenant: o.Tenant, From: first, To: last, MACsChecked: true}
	for from := first; ; from += verifyChunk {
		req := &pb.VerifyLedgerRequest{TenantId: o.Tenant, FromSeq: from, ToSeq: from + verifyChunk - 1}
		if end := req.ToSeq >= last; end {
			req.ToSeq = o.To
		}
		var m pb.VerifyLedgerResponse
		if err := c.call(ctx, "/v1/ledger:verify", req, &m); err != nil {
			return sum, err
		}
		sum.Entries += m.Entries
		sum.Verdict, sum.FirstBad, sum.Reason, sum.Message = verify.Verdict(m.Verdict), m.FirstBadSeq, verify.Reason(m.Reason), m.Message
		if b, err := hex.DecodeString(m.HeadHash); err == nil {
			copy(sum.HeadHash[:], b)
		}
		if o.Progress != nil {
			o.Progress(min(from+verifyChunk-first, last-first+1), last-first+1)
		}
		if sum.Verdict != verify.Intact || from+verifyChunk > last {
			sum.To, sum.NoTenant = max(last, m.ToSeq), noHead && sum.Verdict == verify.Unknown
			return sum, nil
		}
	}
}

// apiSource is a ledger as the API gives it, for exports.
type apiSource struct {
	api    *ledgerAPI
	tenant string
}

// Ends asks for the head. That entries end where the head says is left to the
// reading of them.
func (s apiSource) Ends(ctx context.Context) (e verify.Ends, err error) {
	h, err := s.api.head(ctx, s.tenant)
	if err != nil {
		return e, err
	}
	b, err := hex.DecodeString(h.ChainHash)
	if err != nil || len(b) != verify.HashSize {
		return e, errors.New("the head's chain hash is not one")
	}
	copy(e.Chain[:], b)
	e.HasHead, e.Seq, e.LastSeq, e.Epoch = true, h.Seq, h.Seq, h.KeyEpoch
	return e, nil
}

// Rows reads pages from the first entry on and passes over those before from.
func (s apiSource) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	return s.api.entries(ctx, s.tenant, 1000, false, func(page []*pb.Entry) (bool, error) {
		for _, e := range page {
			if e.Seq < from {
				continue
			}
			if e.Seq > to {
				return false, nil
			}
			chain, err := hex.DecodeString(e.ChainHash)
			if err != nil {
				return false, err
			}
			mac, err := hex.DecodeString(e.Mac)
			if err != nil {
				return false, err
			}
			if err := fn(&verify.Row{Seq: e.Seq, Epoch: e.KeyEpoch, Canonical: e.Canonical, Chain: chain, MAC: mac}); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
