package api_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// testTokens are the credentials of the tests.
type testTokens map[string]authn.Principal

func (t testTokens) Authenticate(_ context.Context, token string) (authn.Principal, error) {
	if token == "broken" {
		return authn.Principal{}, errors.New("the token store has a secret problem")
	}
	p, ok := t[token]
	if !ok {
		return authn.Principal{}, authn.ErrUnauthenticated
	}
	return p, nil
}

var credentials = testTokens{
	"root":   {Subject: "root", AllTenants: true, Scopes: authn.AllScopes},
	"acme":   {Subject: "acme-key", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes},
	"two":    {Subject: "two-key", Tenants: []tenant.ID{"acme", "bravo"}, Scopes: authn.Read},
	"sender": {Subject: "sender-key", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest},
}

// makeChain makes n entries of a tenant: a key epoch, then usage of which every
// third is unpriced and every seventh is a rejected conflict with the entry before.
func makeChain(id string, n int) []api.StoredEntry {
	h, prev := chain.NewHasher(), chain.Genesis(id)
	key := chain.NewMACKey(sha256.Sum256([]byte(id)), 1)
	list := make([]api.StoredEntry, 0, n)
	for seq := int64(1); seq <= int64(n); seq++ {
		e := chain.Entry{Kind: chain.Usage, Seq: seq, Position: chain.Position{TopicID: [16]byte{1}, Partition: 3, Offset: seq - 1}}
		e.Event = event.Event{Tenant: id, ReceivedAt: 1_760_000_001_000_000_000 + seq*1e9}
		switch {
		case seq == 1:
			e.Kind, e.ControlKind, e.ControlVersion = chain.Control, event.ControlKeyEpoch, "1"
			e.Key = chain.ControlKey(&e.Position, id)
		case seq%7 == 0:
			e.Kind, e.RejectReason, e.RejectField = chain.Rejected, chain.RejectConflict, "event_id: duplicate"
			e.Event.ID, e.Event.OccurredAt = eventID(seq-1), 1_760_000_000_000_000_000+seq*1e9
			e.BodyHash, e.BodySize, e.Key = chain.Hash{7}, 99, chain.RejectionKey(&e.Position)
		default:
			fillUsage(&e, seq)
		}
		canonical := e.Append(nil)
		leaf := h.Leaf(canonical)
		prev = h.Next(&prev, &leaf)
		list = append(list, api.StoredEntry{Seq: seq, Sealed: chain.Sealed{Canonical: canonical, Chain: prev, MAC: key.MAC(seq, &prev), Epoch: 1}})
	}
	return list
}

func eventID(seq int64) string { return fmt.Sprintf("event/%d:a", seq) }

func fillUsage(e *chain.Entry, seq int64) {
	ev := &e.Event
	ev.ID, ev.OccurredAt = eventID(seq), 1_760_000_000_000_000_000+seq*1e9
	ev.Provider, ev.Model, ev.Status, ev.Team = "openai", "gpt-4o", "ok", "search"
	ev.Tags = []event.Tag{{Key: "env", Value: "prod \"quoted\"\n"}}
	ev.Tokens[tokens.Input], ev.Tokens[tokens.Output] = 100+seq, 10
	ev.ContentMAC, ev.HasContentMAC = [32]byte{byte(seq)}, true
	e.Key, e.PriceBook, e.PricingVersion = event.KeyOf(ev.ID), chain.Hash{9}, 1
	if seq%3 == 0 {
		e.UnpricedReason = "unknown_model"
		return
	}
	e.Priced, e.Cost, e.PriceRow = true, money.Pico(seq*1_000_000_007), "openai/gpt-4o"
}

// fakeAudit keeps what it is told, or refuses to.
type fakeAudit struct {
	mu     sync.Mutex // protects what follows
	rows   []audit.Event
	denied []audit.Event
	err    error
}

func (f *fakeAudit) Record(_ context.Context, ev audit.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.rows = append(f.rows, ev)
	}
	return f.err
}

func (f *fakeAudit) Denied(_ context.Context, ev audit.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.denied = append(f.denied, ev)
}

// fakeLedger is ledgers in memory.
type fakeLedger struct {
	chains map[tenant.ID][]api.StoredEntry
	err    error
}

func (f *fakeLedger) Head(_ context.Context, id tenant.ID) (api.Head, error) {
	list, ok := f.chains[id]
	if f.err != nil || !ok {
		return api.Head{}, errors.Join(f.err, fmt.Errorf("head of %s: %w", id, api.ErrNotFound))
	}
	last := list[len(list)-1]
	return api.Head{Seq: last.Seq, Chain: last.Chain, KeyEpoch: last.Epoch, ReceivedAt: time.Unix(1_760_000_100, 500).UTC()}, nil
}

func (f *fakeLedger) Entries(_ context.Context, id tenant.ID, from int64, limit int, descending bool) ([]api.StoredEntry, error) {
	list := slices.Clone(f.chains[id])
	if descending {
		slices.Reverse(list)
	}
	list = slices.DeleteFunc(list, func(e api.StoredEntry) bool {
		return from > 0 && (descending && e.Seq > from || !descending && e.Seq < from)
	})
	return list[:min(limit, len(list))], f.err
}

func (f *fakeLedger) Event(_ context.Context, id tenant.ID, eventID string) (*api.StoredEntry, error) {
	entry, _, err := f.find(id, eventID)
	return entry, errors.Join(err, f.err)
}

func (f *fakeLedger) Conflicts(_ context.Context, id tenant.ID, eventID string) (int64, error) {
	_, n, err := f.find(id, eventID)
	return n, errors.Join(err, f.err)
}

func (f *fakeLedger) find(id tenant.ID, eventID string) (entry *api.StoredEntry, conflicts int64, err error) {
	for i := range f.chains[id] {
		var e chain.Entry
		if err := e.Decode(f.chains[id][i].Canonical); err != nil {
			return nil, 0, err
		}
		switch {
		case e.Event.ID != eventID:
		case e.Kind == chain.Rejected:
			conflicts++
		default:
			entry = &f.chains[id][i]
		}
	}
	return entry, conflicts, nil
}

// fakeReports answers with fixed numbers and what it was asked for.
type fakeReports struct{ err error }

var (
	windowStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	windowEnd   = windowStart.Add(2 * time.Hour)
)

func fakeTotals(n int64) report.Totals {
	t := report.Totals{Cost: money.SumOf(money.Pico(n * 1_234_567_890_123)), Requests: 10 * n, Failed: n, Unpriced: 1, Estimated: 2}
	t.Tokens[tokens.Input], t.Tokens[tokens.CacheRead] = 9_007_199_254_740_993, 7
	return t
}

var fakeCoverage = report.Coverage{
	Start: windowStart, End: windowEnd, ToSeq: 20, HeadHash: [32]byte{0xab, 1}, Exact: true, FreshUntil: windowEnd.Add(1500 * time.Millisecond),
}

func (f *fakeReports) Summary(_ context.Context, req *report.SummaryRequest) (*report.Summary, error) {
	if req.Window.Name == "fortnight" {
		return nil, &report.FieldError{Field: "window.name", Message: "one of 24h, 7d"}
	}
	return &report.Summary{Totals: fakeTotals(1), Coverage: fakeCoverage}, f.err
}

func (f *fakeReports) Groups(_ context.Context, req *report.GroupsRequest) (*report.Groups, error) {
	group := make([]string, len(req.GroupBy))
	group[0] = "=1+1"
	out := &report.Groups{
		Groups: []report.Group{{Values: group, Totals: fakeTotals(2)}, {Other: true, Totals: fakeTotals(1)}},
		Totals: fakeTotals(3), Coverage: fakeCoverage, Allocation: fakeAllocation(req.Allocation),
	}
	if out.Allocation != nil {
		out.Groups[0].Split = &report.Split{Direct: fakeTotals(1), Allocated: fakeTotals(1)}
		out.Groups[1].Split = &report.Split{Direct: fakeTotals(1)}
	}
	return out, f.err
}

// fakeAllocation says that it went by what it was asked for.
func fakeAllocation(a report.Allocation) *report.Allocated {
	if a.Method == report.NoAllocation {
		return nil
	}
	return &report.Allocated{Method: a.Method, Totals: fakeTotals(1), Periods: a.Periods}
}

func (f *fakeReports) TimeSeries(_ context.Context, req *report.TimeSeriesRequest) (*report.TimeSeries, error) {
	out := &report.TimeSeries{
		Buckets: []time.Time{windowStart, windowStart.Add(time.Hour)},
		Series: []report.Series{{
			Group: report.Group{Values: []string{"search"}, Totals: fakeTotals(1)},
			Cost:  []money.Sum{money.SumOf(1), money.SumOf(-2)}, Requests: []int64{4, 6},
			GPUMicros: []int64{5_400_000_000, 0},
		}},
		Totals: fakeTotals(1), Coverage: fakeCoverage, Allocation: fakeAllocation(req.Allocation),
	}
	if out.Allocation != nil {
		out.Series[0].Split = &report.Split{Allocated: fakeTotals(1)}
		out.Series[0].Allocated = []money.Sum{money.SumOf(1), money.SumOf(0)}
	}
	return out, f.err
}

// fakeMapping has no rules, and default owners of one version; what is put is
// checked as the store does and not kept.
type fakeMapping struct{}

func (fakeMapping) Get(context.Context, tenant.ID, int64) (mapping.Version, error) {
	return mapping.Version{}, nil
}

func (fakeMapping) Put(context.Context, authn.Principal, tenant.ID, int64, []byte) (mapping.Version, error) {
	return mapping.Version{}, mapping.ErrVersion
}

var fakeOwners = mapping.DefaultOwners{
	Version: 1, Owners: map[string]string{"team": "platform", "environment": "prod"}, From: windowStart, CreatedAt: windowEnd, CreatedBy: "acme-key",
}

func (fakeMapping) DefaultOwners(_ context.Context, id tenant.ID, _ int64) (mapping.DefaultOwners, error) {
	if id != "acme" {
		return mapping.DefaultOwners{}, nil
	}
	return fakeOwners, nil
}

func (fakeMapping) PutDefaultOwners(_ context.Context, by authn.Principal, _ tenant.ID, after int64, owners map[string]string, from time.Time) (mapping.DefaultOwners, error) {
	if err := mapping.CheckOwners(owners); err != nil {
		return mapping.DefaultOwners{}, err
	}
	if after != 1 {
		return mapping.DefaultOwners{}, fmt.Errorf("put default owners: %w: version 1", mapping.ErrVersion)
	}
	if from.IsZero() {
		from = windowEnd
	}
	return mapping.DefaultOwners{Version: 2, Owners: owners, From: from, CreatedAt: windowEnd, CreatedBy: by.Subject}, nil
}

func (fakeMapping) OwnerPeriods(context.Context, tenant.ID) ([]mapping.OwnerPeriod, error) {
	return mapping.Periods([]mapping.DefaultOwners{fakeOwners}), nil
}

// fakeTenants has acme, bravo and t-000 … t-119.
type fakeTenants struct{ created []tenant.ID }

func (f *fakeTenants) all() []tenant.ID {
	ids := append([]tenant.ID{"acme", "bravo"}, f.created...)
	for i := range 120 {
		ids = append(ids, tenant.ID(fmt.Sprintf("t-%03d", i)))
	}
	slices.Sort(ids)
	return ids
}

func (f *fakeTenants) Create(_ context.Context, ids []tenant.ID) (created []tenant.ID, err error) {
	for _, id := range ids {
		if !slices.Contains(f.all(), id) {
			created = append(created, id)
			f.created = append(f.created, id)
		}
	}
	return created, nil
}

func (f *fakeTenants) List(_ context.Context, after tenant.ID, limit int) ([]api.TenantInfo, error) {
	var list []api.TenantInfo
	for _, id := range f.all() {
		if id > after && len(list) < limit {
			list = append(list, api.TenantInfo{ID: id, Partition: id.Partition(12)})
		}
	}
	return list, nil
}

type fakePipeline struct{}

func (fakePipeline) Pipeline(context.Context) (*pb.Pipeline, error) {
	return &pb.Pipeline{Entries: 12, CostUsd: "0.000000000001", IngestRate: 12.5, Partitions: []*pb.Partition{{Partition: 3, NextOffset: 9}}}, nil
}

type fakeVerifier struct{}

func (fakeVerifier) Verify(ctx context.Context, _ tenant.ID, req *pb.VerifyLedgerRequest) (*pb.VerifyLedgerResponse, error) {
	if req.FromSeq == 13 { // never ends
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &pb.VerifyLedgerResponse{Verdict: "broken", Entries: 5, FromSeq: req.FromSeq, ToSeq: req.ToSeq, FirstBadSeq: 4, Reason: "hash", Message: "the leaf is another"}, nil
}

// testServer is a Server over the fakes.
func testServer(t testing.TB, change func(*api.Deps, *api.Options)) *api.Server {
	t.Helper()
	deps := api.Deps{
		Auth: credentials, Audit: &fakeAudit{}, Reports: &fakeReports{}, Verifier: fakeVerifier{}, Tenants: &fakeTenants{}, Pipeline: fakePipeline{}, Mapping: &fakeMapping{},
		Ledger: &fakeLedger{chains: map[tenant.ID][]api.StoredEntry{"acme": makeChain("acme", 22), "bravo": makeChain("bravo", 3)}},
		Ready:  []api.Dependency{{Name: "postgres", Check: func(context.Context) error { return nil }}},
	}
	opts := api.Options{PageKey: [32]byte{1}, VerifyTimeout: 50 * time.Millisecond, MaxBodyBytes: 2000, Version: "test"}
	if change != nil {
		change(&deps, &opts)
	}
	s, err := api.New(deps, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
