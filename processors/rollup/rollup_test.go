package rollup

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

const testHour = 489_000 // hours since 1970

func entry(tenant string, hour int64, change func(*chain.Entry)) *chain.Entry {
	e := &chain.Entry{Kind: chain.Usage, Seq: 1, Priced: true, Cost: 5}
	e.Event.Tenant, e.Event.OccurredAt = tenant, hour*nanosPerHour+7
	e.Event.Model, e.Event.Provider, e.Event.Status = "m", "p", "ok"
	e.Event.Tokens[tokens.Input] = 10
	if change != nil {
		change(e)
	}
	return e
}

func flush(t testing.TB, r *Rollup) (rows []finding.Rollup) {
	t.Helper()
	if err := r.Flush(func(f *finding.Rollup) error { rows = append(rows, *f); return nil }); err != nil {
		t.Fatal(err)
	}
	return rows
}

func apply(t testing.TB, r *Rollup, es ...*chain.Entry) {
	t.Helper()
	for _, e := range es {
		if err := r.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
}

// show is a row as one line.
func show(r *finding.Rollup) string {
	return fmt.Sprintf("%s %d %q=%q n=%d failed=%d unpriced=%d estimated=%d corrections=%d %s %d gpu=%d", r.Tenant, r.Hour/3600-testHour,
		r.Dimension, r.Value, r.Requests, r.Failed, r.Unpriced, r.Estimated, r.Corrections, r.Cost, r.Tokens.Total(), r.GPUMicros)
}

func TestWhatIsSummed(t *testing.T) {
	r := New()
	apply(t, r,
		entry("b", testHour, func(e *chain.Entry) { e.Event.Team = "x" }),
		entry("a", testHour, func(e *chain.Entry) { e.Event.Team = "x"; e.Event.Status = "error" }),
		entry("a", testHour, func(e *chain.Entry) { e.Event.Status = ""; e.Event.Estimated = true; e.Priced = false; e.Cost = 0 }),
		entry("a", testHour, func(e *chain.Entry) {
			e.Kind, e.Event.Team, e.Cost = chain.Correction, "x", -3
			e.Corrected = chain.Corrected{Priced: true, Unpriced: -1, Estimated: 1, Tokens: tokens.Vector{-4, 1}}
		}),
		entry("c", testHour, func(e *chain.Entry) { e.Event.Tokens, e.Event.GPUMicros = tokens.Vector{}, 90 }),
		// A correction holds what counts from here on, and adds the difference.
		entry("c", testHour, func(e *chain.Entry) {
			e.Kind, e.Event.Tokens, e.Event.GPUMicros, e.Cost = chain.Correction, tokens.Vector{}, 60, 0
			e.Corrected = chain.Corrected{Priced: true, GPUMicros: -30}
		}),
		// Stopped before it was sent: it has no price, and is not unpriced.
		entry("b", testHour, func(e *chain.Entry) {
			e.Event.Status, e.Event.Team, e.Event.Tokens, e.Priced, e.Cost = "killed", "x", tokens.Vector{}, false, 0
		}),
		entry("a", testHour-1, func(e *chain.Entry) { e.Event.OccurredAt = testHour*nanosPerHour - 1 }),
		entry("a", testHour, func(e *chain.Entry) { e.Kind = chain.Rejected }),
		entry("a", testHour, func(e *chain.Entry) { e.Kind = chain.Control }),
	)
	var got []string
	for _, row := range flush(t, r) {
		if row.Dimension == "" || row.Dimension == "team" || row.Dimension == "status" {
			got = append(got, show(&row))
		}
	}
	want := []string{
		`a -1 ""="" n=1 failed=0 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`a -1 "team"="" n=1 failed=0 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`a -1 "status"="ok" n=1 failed=0 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`a 0 ""="" n=2 failed=1 unpriced=0 estimated=2 corrections=1 0.000000000002 17 gpu=0`,
		`a 0 "team"="" n=1 failed=0 unpriced=1 estimated=1 corrections=0 0.000000000000 10 gpu=0`,
		`a 0 "team"="x" n=1 failed=1 unpriced=-1 estimated=1 corrections=1 0.000000000002 7 gpu=0`,
		`a 0 "status"="error" n=1 failed=1 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`a 0 "status"="ok" n=1 failed=0 unpriced=0 estimated=2 corrections=1 -0.000000000003 7 gpu=0`,
		`b 0 ""="" n=2 failed=1 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`b 0 "team"="x" n=2 failed=1 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`b 0 "status"="killed" n=1 failed=1 unpriced=0 estimated=0 corrections=0 0.000000000000 0 gpu=0`,
		`b 0 "status"="ok" n=1 failed=0 unpriced=0 estimated=0 corrections=0 0.000000000005 10 gpu=0`,
		`c 0 ""="" n=1 failed=0 unpriced=0 estimated=0 corrections=1 0.000000000005 0 gpu=60`,
		`c 0 "team"="" n=1 failed=0 unpriced=0 estimated=0 corrections=1 0.000000000005 0 gpu=60`,
		`c 0 "status"="ok" n=1 failed=0 unpriced=0 estimated=0 corrections=1 0.000000000005 0 gpu=60`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if again := flush(t, r); len(again) != 0 {
		t.Errorf("a second flush emits %d rows", len(again))
	}
	n := 0
	r.Each(func(f *finding.Rollup) bool { n++; return f.Tenant == "a" })
	if n == 0 {
		t.Error("nothing is kept")
	}
}

func TestHoursAreFloored(t *testing.T) {
	for nanos, want := range map[int64]int32{0: 0, -1: -1, nanosPerHour: 1, nanosPerHour - 1: 0, -nanosPerHour: -1, -nanosPerHour - 1: -2,
		math.MaxInt64: math.MaxInt64 / nanosPerHour, math.MinInt64: math.MinInt64/nanosPerHour - 1} {
		if got := hourOf(nanos); got != want {
			t.Errorf("hourOf(%d) = %d, want %d", nanos, got, want)
		}
	}
	if utc := time.Unix(0, testHour*nanosPerHour).UTC(); utc.Minute() != 0 {
		t.Errorf("hour %d begins at %v", testHour, utc)
	}
}

func TestOldHoursAreForgotten(t *testing.T) {
	r := New()
	apply(t, r, entry("a", testHour, nil), entry("a", testHour+KeepHours, nil))
	flush(t, r)
	apply(t, r, entry("a", testHour, nil)) // the oldest that is kept
	flush(t, r)
	hours := func() (n map[int64]int64) {
		n = map[int64]int64{}
		r.Each(func(f *finding.Rollup) bool {
			if f.Dimension == "" {
				n[f.Hour/3600-testHour] = f.Requests
			}
			return true
		})
		return n
	}
	if got := hours(); len(got) != 2 || got[0] != 2 {
		t.Errorf("kept = %v", got)
	}
	apply(t, r, entry("b", testHour+KeepHours+1, nil))
	flush(t, r)
	apply(t, r, entry("a", testHour, nil)) // too late to be kept, but emitted
	if rows := flush(t, r); len(rows) != int(numDimensions) {
		t.Errorf("a late entry emits %d rows", len(rows))
	}
	if got := hours(); got[0] != 0 || got[KeepHours] != 1 || got[KeepHours+1] != 1 {
		t.Errorf("kept after an hour more = %v", got)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	r := New()
	r.maxCells = 100
	for h := range int64(200) {
		for v := range 50 {
			apply(t, r, entry(fmt.Sprint("t", v%3), testHour+h/10, func(e *chain.Entry) { e.Event.Service = fmt.Sprint("unique ", h, v) }))
		}
		flush(t, r)
	}
	if len(r.kept.keys) > 100 || len(r.symbols.names) > 4*100+51*7 || len(r.perHour) > 101 {
		t.Errorf("%d cells, %d symbols, %d hours", len(r.kept.keys), len(r.symbols.names), len(r.perHour))
	}
	// One hour alone is beyond the bound: it is not kept, and the next one is.
	apply(t, r, entry("a", testHour+100, nil))
	flush(t, r)
	if n := len(r.kept.keys); n != int(numDimensions) {
		t.Errorf("%d cells after a quiet hour", n)
	}
}

func drawEntry(t *rapid.T) *chain.Entry {
	word := rapid.SampledFrom([]string{"", "x", "y", "zz"})
	e := entry(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"), testHour+rapid.Int64Range(0, 90).Draw(t, "hour"), nil)
	e.Event.Team, e.Event.Service, e.Event.Model = word.Draw(t, "team"), word.Draw(t, "service"), word.Draw(t, "model")
	e.Event.Status = rapid.SampledFrom([]string{"", "ok", "error"}).Draw(t, "status")
	e.Kind = rapid.SampledFrom([]chain.Kind{chain.Usage, chain.Usage, chain.Usage, chain.Correction, chain.Counters}).Draw(t, "kind")
	e.Priced = rapid.Bool().Draw(t, "priced")
	if e.Priced {
		e.Cost = money.Pico(rapid.Int64().Draw(t, "cost"))
	}
	e.Event.Tokens[rapid.IntRange(0, int(tokens.NumClasses)-1).Draw(t, "class")] = rapid.Int64Range(0, 1e12).Draw(t, "tokens")
	e.Event.GPUMicros = rapid.Int64Range(0, 1e12).Draw(t, "gpu")
	if e.Kind == chain.Correction {
		e.Corrected.GPUMicros = rapid.Int64Range(-1e12, 1e12).Draw(t, "gpu delta")
		e.Corrected.Unpriced, e.Corrected.Estimated = rapid.Int64Range(-1, 1).Draw(t, "unpriced"), rapid.Int64Range(-1, 1).Draw(t, "estimated")
		e.Corrected.Tokens[rapid.IntRange(0, int(tokens.NumClasses)-1).Draw(t, "delta class")] = rapid.Int64Range(-1e12, 1e12).Draw(t, "delta")
	}
	return e
}

// Rows are additive, and neither they nor what is kept depend on how entries
// are cut into plans.
func TestBatchingChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := rapid.SliceOfN(rapid.Custom(drawEntry), 0, 80).Draw(t, "entries")
		maxCells := rapid.IntRange(5, 200).Draw(t, "cells")
		cuts := rapid.SliceOfN(rapid.Bool(), len(es), len(es)).Draw(t, "cuts")
		one, many := New(), New()
		one.maxCells, many.maxCells = maxCells, maxCells
		sum := map[string]*finding.Rollup{}
		add := func(f *finding.Rollup) error {
			k := fmt.Sprint(f.Tenant, "|", f.Hour, "|", f.Dimension, "|", f.Value)
			s := sum[k]
			if s == nil {
				own := *f
				sum[k] = &own
				return nil
			}
			s.Requests, s.Failed, s.Unpriced, s.Estimated, s.Corrections = s.Requests+f.Requests, s.Failed+f.Failed, s.Unpriced+f.Unpriced, s.Estimated+f.Estimated, s.Corrections+f.Corrections
			for i := range s.Tokens {
				s.Tokens[i] += f.Tokens[i]
			}
			s.GPUMicros += f.GPUMicros
			return s.Cost.Add(f.Cost)
		}
		for i, e := range es {
			if err := one.Apply(e); err != nil {
				t.Fatal(err)
			}
			if err := many.Apply(e); err != nil {
				t.Fatal(err)
			}
			if cuts[i] {
				if err := many.Flush(add); err != nil {
					t.Fatal(err)
				}
				restored := New() // a restart between any two plans
				restored.maxCells = maxCells
				if err := restored.Restore(many.Snapshot(nil)); err != nil {
					t.Fatal(err)
				}
				many = restored
			}
		}
		if err := many.Flush(add); err != nil {
			t.Fatal(err)
		}
		rows := 0
		err := one.Flush(func(f *finding.Rollup) error {
			rows++
			if s := sum[fmt.Sprint(f.Tenant, "|", f.Hour, "|", f.Dimension, "|", f.Value)]; s == nil || *s != *f {
				t.Fatalf("%s: in parts it is %+v", show(f), s)
			}
			return nil
		})
		if err != nil || rows != len(sum) {
			t.Fatalf("%d rows, in parts %d: %v", rows, len(sum), err)
		}
		if a, b := one.Snapshot(nil), many.Snapshot(nil); !bytes.Equal(a, b) {
			t.Fatalf("states differ:\n%x\n%x", a, b)
		}
		if len(one.kept.keys) > maxCells {
			t.Fatalf("%d cells are kept, the bound is %d", len(one.kept.keys), maxCells)
		}
	})
}

// The same plan gives the same rows in the same order.
func TestRowsAreSorted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := New()
		for _, e := range rapid.SliceOfN(rapid.Custom(drawEntry), 1, 60).Draw(t, "entries") {
			if err := r.Apply(e); err != nil {
				t.Fatal(err)
			}
		}
		place := map[string]int{}
		for i, d := range dimensionNames {
			place[d] = i
		}
		last := ""
		err := r.Flush(func(f *finding.Rollup) error {
			k := fmt.Sprintf("%s|%012d|%d|%s", f.Tenant, f.Hour, place[f.Dimension], f.Value)
			if k <= last {
				t.Fatalf("%s after %s", k, last)
			}
			last = k
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	r := New()
	apply(f, r, entry("a", testHour, nil), entry("b", testHour+80, func(e *chain.Entry) { e.Event.Team = "x" }))
	flush(f, r)
	f.Add(r.Snapshot(nil))
	f.Add(New().Snapshot(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := New()
		if r.Restore(b) != nil {
			return
		}
		again := New()
		snap := r.Snapshot(nil)
		if err := again.Restore(snap); err != nil || !bytes.Equal(again.Snapshot(nil), snap) {
			t.Fatalf("what was restored does not restore: %v", err)
		}
	})
}

func TestDamagedSnapshotsAreRefused(t *testing.T) {
	r := New()
	apply(t, r, entry("a", testHour, nil), entry("b", testHour, nil))
	flush(t, r)
	snap := r.Snapshot(nil)
	for n := range snap {
		if New().Restore(snap[:n]) == nil {
			t.Errorf("the first %d of %d bytes are taken for a snapshot", n, len(snap))
		}
	}
	if New().Restore(append(slices.Clone(snap), 0)) == nil {
		t.Error("a byte too many is accepted")
	}
}

func benchEntries() []*chain.Entry {
	var es []*chain.Entry
	for i := range 10_000 {
		es = append(es, entry(fmt.Sprint("tenant-", i%20), testHour, func(e *chain.Entry) {
			e.Event.Team, e.Event.Model, e.Event.Service = fmt.Sprint("team-", i%7), fmt.Sprint("model-", i%5), fmt.Sprint("service-", i%3)
			e.Event.Environment = "production"
		}))
	}
	return es
}

// BenchmarkApply is one entry with its share of Flush in plans of 10,000.
func BenchmarkApply(b *testing.B) {
	es, r := benchEntries(), New()
	rows := 0
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		if err := r.Apply(es[i%len(es)]); err != nil {
			b.Fatal(err)
		}
		if i%len(es) == len(es)-1 {
			if err := r.Flush(func(*finding.Rollup) error { rows++; return nil }); err != nil {
				b.Fatal(err)
			}
		}
	}
	runtime.KeepAlive(rows)
}

// In every dimension the time of GPUs is the ledger's: what usage entries account
// for, and what corrections change of it.
func TestGPUTimeIsTheLedgers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r, want, got := New(), map[string]int64{}, map[string]int64{}
		for _, e := range rapid.SliceOfN(rapid.Custom(drawEntry), 1, 60).Draw(rt, "entries") {
			for _, dimension := range dimensionNames {
				switch e.Kind {
				case chain.Usage:
					want[e.Event.Tenant+"/"+dimension] += e.Event.GPUMicros
				case chain.Correction:
					want[e.Event.Tenant+"/"+dimension] += e.Corrected.GPUMicros
				}
			}
			apply(t, r, e)
		}
		for _, row := range flush(t, r) {
			got[row.Tenant+"/"+row.Dimension] += row.GPUMicros
		}
		if !maps.Equal(got, want) {
			rt.Fatalf("%v, want %v", got, want)
		}
	})
}
