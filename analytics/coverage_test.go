package analytics_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"context"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// arriving says that all but the newest plan are confirmed, and calls a hook
// before it answers.
type arriving struct {
	coverage
	before func()
	err    error
}

func (a *arriving) Coverage(ctx context.Context, id tenant.ID) (int64, [32]byte, int64, error) {
	if a.err != nil {
		return 0, [32]byte{}, 0, a.err
	}
	if a.before != nil {
		a.before()
	}
	return a.coverage.Coverage(ctx, id)
}

// TestCoverage asks while entries beyond the confirmed ones are stored already.
func TestCoverage(t *testing.T) {
	writer, reader := newStore(t)
	w := analytics.NewWriter(writer)
	g := newTraffic(3, 1, march, 48*time.Hour)
	confirmed, unconfirmed := g.entries(300), g.entries(100)
	store(t, w, "one", 1, confirmed)
	a := &arriving{}
	a.set("tenant-0", 300)
	now := march.Add(47*time.Hour + 30*time.Minute)
	r := analytics.NewReporter(reader, a, func() time.Time { return now })
	q := report.Query{Tenant: "tenant-0", Window: report.Window{Start: march, End: march.Add(48 * time.Hour)}}
	all := report.Span{Start: q.Window.Start, End: q.Window.End}
	ask := func(q report.Query) *report.Summary {
		t.Helper()
		got, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	of300, of400 := totalsOf(t, matching(confirmed, q.Tenant, all, nil)), totalsOf(t, matching(append(confirmed[:300:300], unconfirmed...), q.Tenant, all, nil))

	if got := ask(q); !got.Coverage.Exact || got.Totals != of300 {
		t.Errorf("at rest: %+v", got)
	}
	store(t, w, "two", 2, unconfirmed)
	if got := ask(q); got.Coverage.Exact || got.Totals != of400 || got.Coverage.ToSeq != 300 {
		t.Errorf("stored and not confirmed: %+v", got)
	}
	insisting := q
	insisting.Exact = true
	if got := ask(insisting); !got.Coverage.Exact || got.Totals != of300 {
		t.Errorf("exact: %+v, want %+v", got, of300)
	}
	odd := q
	odd.Window.End = odd.Window.End.Add(time.Second)
	if got := ask(odd); !got.Coverage.Exact || got.Totals != of300 {
		t.Errorf("by single entry: %+v", got)
	}
	// The confirmation arrives between two attempts.
	calls := 0
	a.before = func() {
		if calls++; calls == 2 {
			a.set("tenant-0", 400)
		}
	}
	if got := ask(q); !got.Coverage.Exact || got.Totals != of400 || got.Coverage.ToSeq != 400 || calls != 2 {
		t.Errorf("after a retry: %+v, %d calls", got, calls)
	}
	// ClickHouse has less than was confirmed: never exact.
	a.set("tenant-0", 500)
	for _, q := range []report.Query{q, insisting, odd} {
		if got := ask(q); got.Coverage.Exact {
			t.Errorf("claims to be exact without entries 401 to 500: %+v", got)
		}
	}
	a.err = errors.New("away")
	if _, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q}); !errors.Is(err, a.err) {
		t.Errorf("error %v", err)
	}
}

// TestExactUnderLoad stores plans while reports are asked; an answer that says
// it is exact must be the one over exactly the entries that it names.
func TestExactUnderLoad(t *testing.T) {
	writer, reader := newStore(t)
	w := analytics.NewWriter(writer)
	g := newTraffic(4, 1, march, 24*time.Hour)
	entries := g.entries(6000)
	cover := &coverage{}
	q := report.Query{Tenant: "tenant-0", Window: report.Window{Start: march, End: march.Add(24 * time.Hour)}}
	span := report.Span{Start: q.Window.Start, End: q.Window.End}
	r := analytics.NewReporter(reader, cover, time.Now)
	done := make(chan error, 1)
	go func() {
		for plan, i := int64(1), 0; i < len(entries); plan, i = plan+1, i+300 {
			w.Reset()
			for _, e := range entries[i : i+300] {
				if err := w.Append(e, plan); err != nil {
					done <- err
					return
				}
			}
			if err := w.Store(context.Background(), time.Unix(plan, 0).String(), []analytics.Range{{From: plan, To: plan}}); err != nil {
				done <- err
				return
			}
			cover.set("tenant-0", int64(i+300))
		}
		done <- nil
	}()
	asked, exact, partial := 0, 0, 0
	for running := true; running; asked++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		q.Exact = asked%2 == 0
		got, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
		if err != nil {
			t.Fatal(err)
		}
		if q.Exact && !got.Coverage.Exact {
			t.Errorf("not exact: %+v", got.Coverage)
		}
		if !got.Coverage.Exact {
			continue
		}
		exact++
		if got.Coverage.ToSeq < int64(len(entries)) {
			partial++
		}
		if want := totalsOf(t, matching(entries[:got.Coverage.ToSeq], q.Tenant, span, nil)); got.Totals != want {
			t.Fatalf("over 1 to %d: %+v, want %+v", got.Coverage.ToSeq, got.Totals, want)
		}
	}
	t.Logf("%d asked, %d exact, %d of these before the end", asked, exact, partial)
	if partial == 0 {
		t.Error("no exact answer while entries arrived; the test shows nothing")
	}
}

func TestConflicts(t *testing.T) {
	c := newCorpus(t, 11, 3000)
	for _, id := range []tenant.ID{"tenant-0", "tenant-1", "nobody"} {
		for _, eventID := range []string{"event-0", "event-4", "event-999999", "' OR 1 OR '"} {
			want := int64(0)
			for _, e := range c.entries {
				if e.Kind == chain.Rejected && e.Event.Tenant == string(id) && e.Event.ID == eventID {
					want++
				}
			}
			if got, err := c.reporter.Conflicts(t.Context(), id, eventID); got != want || err != nil {
				t.Errorf("%s %s: %d, %v; want %d", id, eventID, got, err, want)
			}
		}
	}
}

func TestOperator(t *testing.T) {
	writer, reader := newStore(t)
	entries := newTraffic(5, 3, march, 48*time.Hour).entries(3000)
	store(t, analytics.NewWriter(writer), "plan", 1, entries)
	type key struct{ tenant, kind, reason string }
	want, different := map[key]*analytics.KindTotal{}, map[key]map[string]bool{}
	sum := totalsOf(t, slices.DeleteFunc(slices.Clone(entries), func(e *chain.Entry) bool {
		return e.Kind != chain.Usage && e.Kind != chain.Correction
	}))
	for _, e := range entries {
		k := key{e.Event.Tenant, e.Kind.String(), e.RejectReason}
		if want[k] == nil {
			want[k], different[k] = &analytics.KindTotal{Tenant: k.tenant, Kind: k.kind, RejectReason: k.reason}, map[string]bool{}
		}
		want[k].Entries++
		if e.Kind == chain.Rejected {
			different[k][e.Event.ID+string(e.Event.ContentMAC[:])] = true
			want[k].Conflicts = int64(len(different[k]))
		}
		if e.Priced {
			if err := want[k].Cost.AddPico(e.Cost); err != nil {
				t.Fatal(err)
			}
		}
		want[k].Unpriced += e.AddsUnpriced()
	}
	o := analytics.NewOperator(reader)
	got, err := o.Totals(t.Context())
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d totals, %v; want %d", len(got), err, len(want))
	}
	for _, g := range got {
		if w := want[key{g.Tenant, g.Kind, g.RejectReason}]; w == nil || g != *w {
			t.Errorf("got %+v, want %+v", g, w)
		}
	}
	cost, requests, unpriced, err := o.Cost(t.Context())
	if err != nil || cost != sum.Cost || requests != sum.Requests || unpriced != sum.Unpriced {
		t.Errorf("cost %v, %d requests, %d unpriced, %v; want %+v", cost, requests, unpriced, err, sum)
	}
}
