package processors

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// nothing is a Sink and a Store that keep nothing, so that a benchmark sees the
// runner alone.
type nothing struct{ *life }

func (nothing) Reset()                                                 {}
func (nothing) Append(*chain.Entry, int64) error                       { return nil }
func (nothing) AppendRollup(*finding.Rollup) error                     { return nil }
func (nothing) Store(context.Context, *Plan) error                     { return nil }
func (nothing) Largest(context.Context) (map[int32]int64, error)       { return nil, nil }
func (nothing) Transient(error) bool                                   { return true }
func (nothing) Record(context.Context, *Plan) error                    { return nil }
func (nothing) Confirm(context.Context, *Plan, []Covered) error        { return nil }
func (nothing) Covered(context.Context, []string) ([]Covered, error)   { return nil, nil }
func (nothing) Checkpoint(context.Context, int32) (Checkpoint, error)  { return Checkpoint{}, nil }
func (nothing) Load(context.Context, int32, string) (*Snapshot, error) { return nil, nil }
func (nothing) Save(_ context.Context, _ int32, _ *Snapshot) error     { return nil }
func (nothing) Open(context.Context, string) (*Plan, error)            { return nil, nil }
func (nothing) LastCommits(context.Context) (map[int32]int64, error)   { return nil, nil }

// benchLog is commits of 10,000 entries of 20 tenants, as `entries` has them.
func benchLog(commits int) (recs []kafka.Record, rows int) {
	seqs := map[string]int64{}
	for n := range commits {
		index := int32(0)
		for t := range 20 {
			name := fmt.Sprintf("tenant-%d", t)
			f := chain.Frame{Tenant: name, Batch: int64(n + 1), Index: index, Total: 10_000, FirstSeq: seqs[name] + 1}
			for range 500 {
				seqs[name]++
				e := testEntry(name, 0, seqs[name])
				e.Event.OccurredAt = 1_760_000_000_000_000_000 + seqs[name]*1e6
				e.Event.Service, e.Event.Environment, e.Event.Status, e.Event.Region = fmt.Sprint("service-", t%3), "production", "ok", "eu-west-1"
				e.Event.HasContentMAC, e.Event.ProducerID, e.Event.ProducerSeq = true, "producer-1", seqs[name]
				e.Event.LatencyMicros, e.Event.Tokens[4] = 812_345, 77
				e.PriceBook, e.PriceRow, e.PricingVersion = chain.Hash{1}, "openai/model", 1
				f.Entries = append(f.Entries, chain.Sealed{Canonical: e.Append(nil)})
			}
			index += 500
			recs = append(recs, kafka.Record{Value: encode(&f), Offset: int64(len(recs))})
			rows += 500
		}
	}
	return recs, rows
}

// BenchmarkStorer is one entry through the storer without its stores: decoding,
// processors, emission; the figure of the partition's goroutine, which checks
// the entry and copies it, stands beside it.
func BenchmarkStorer(b *testing.B) {
	recs, rows := benchLog(5)
	l := nothing{newLife(newWorld(1))}
	r, err := New(Parts{Ledger: l, Store: l, Snapshots: l, Sink: l, Processors: rollups}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	p := &partition{r: r, log: r.log, stats: r.partitionStats(0), src: source{l.life, 0}}
	if err := r.storer.admit(b.Context(), p); err != nil {
		b.Fatal(err)
	}
	var taking, storing time.Duration
	entries := 0
	b.ReportAllocs()
	for b.Loop() {
		p.seq, p.stored = newSequence(0, 0), Checkpoint{}
		begin := cpuTime(b)
		for i := range recs {
			if err := p.take(b.Context(), recs[i:]); err != nil {
				b.Fatal(err)
			}
		}
		taken := cpuTime(b)
		r.storer.flush(b.Context())
		taking, storing = taking+taken-begin, storing+cpuTime(b)-taken
		entries += rows
		if p.stored.Commit != 5 {
			b.Fatalf("stored up to commit %d", p.stored.Commit)
		}
	}
	b.ReportMetric(float64(storing.Nanoseconds())/float64(entries), "storer-cpu-ns/entry")
	b.ReportMetric(float64(taking.Nanoseconds())/float64(entries), "reader-cpu-ns/entry")
}

// cpuTime is what this process has used of the processors: wall time would
// measure its neighbours.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
