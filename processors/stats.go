package processors

import (
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what a Runner has done since it was made, and where it stands.
type Stats struct {
	Plans     int64 // stored and confirmed
	Settled   int64 // plans that an earlier owner had left open
	Entries   int64 // stored
	Rollups   int64 // rows sent to the sink, those of a plan that failed included
	Snapshots int64
	// EntriesPerSecond is the mean over about the last ten seconds.
	EntriesPerSecond float64
	PendingBytes     int64
	Partitions       map[int32]PartitionStats
}

// PartitionStats is where one partition stands.
type PartitionStats struct {
	StoredCommit int64 // in ClickHouse and confirmed
	LedgerCommit int64 // newest of the ledger, about a second old
	PendingRows  int64 // complete or in a plan, not confirmed
	Entries      int64 // stored
	Seen         int64 // frames that brought nothing new
	Bad          int64 // records that were no usable frame
	Backfilled   int64 // commits read from the ledger
	Halted       error
}

// Lag is how many commits of the ledger are not in ClickHouse yet.
func (p PartitionStats) Lag() int64 { return max(0, p.LedgerCommit-p.StoredCommit) }

// counters are the process-wide figures.
type counters struct {
	plans, settled, rollups, snapshots atomic.Int64

	mu      sync.Mutex // protects all below
	samples []sample
	rate    float64
}

type sample struct {
	at      time.Time
	entries int64
}

// rateWindow is how many samples EntriesPerSecond spans.
const rateWindow = 10

// measure takes a sample.
func (c *counters) measure(now time.Time, entries int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.samples = append(c.samples, sample{now, entries})
	if len(c.samples) > rateWindow {
		c.samples = append(c.samples[:0], c.samples[1:]...)
	}
	first := c.samples[0]
	if span := now.Sub(first.at).Seconds(); span > 0 {
		c.rate = float64(entries-first.entries) / span
	}
}

// partitionStats are the figures of one partition, whoever runs it.
type partitionStats struct {
	storedCommit, pending, entries, seen, bad, backfilled atomic.Int64
	halted                                                atomic.Pointer[error]
}

func (s *partitionStats) halt(err error) { s.halted.Store(&err) }

func (r *Runner) partitionStats(id int32) *partitionStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.partitions[id]
	if s == nil {
		s = &partitionStats{}
		r.partitions[id] = s
	}
	s.halted.Store(nil)
	return s
}

// entries is how many entries were stored.
func (r *Runner) entries() (n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.partitions {
		n += s.entries.Load()
	}
	return n
}

// Stats reads all figures.
func (r *Runner) Stats() Stats {
	s := Stats{
		Plans: r.stats.plans.Load(), Settled: r.stats.settled.Load(), Entries: r.entries(), Rollups: r.stats.rollups.Load(),
		Snapshots: r.stats.snapshots.Load(), PendingBytes: r.budget.used.Load(), Partitions: make(map[int32]PartitionStats),
	}
	r.stats.mu.Lock()
	s.EntriesPerSecond = r.stats.rate
	r.stats.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.partitions {
		ps := PartitionStats{
			StoredCommit: p.storedCommit.Load(), LedgerCommit: r.last[id], PendingRows: p.pending.Load(), Entries: p.entries.Load(),
			Seen: p.seen.Load(), Bad: p.bad.Load(), Backfilled: p.backfilled.Load(),
		}
		if err := p.halted.Load(); err != nil {
			ps.Halted = *err
		}
		s.Partitions[id] = ps
	}
	return s
}
