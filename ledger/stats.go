package ledger

import (
	"sync"
	"sync/atomic"

	"github.com/tallystick/tallystick/internal/money"
)

// Stats counts what a Writer has committed since it was made. It is safe for
// concurrent use.
type Stats struct {
	records, usage, unpriced, duplicates, rejected, conflicts, lookups, entries, batches atomic.Int64

	mu         sync.Mutex // protects what follows
	cost       money.Sum
	partitions map[int32]*PartitionStats
}

// Counts is a copy of the counters.
type Counts struct {
	Records, Usage, Unpriced, Duplicates, Rejected, Conflicts, Lookups, Entries, Batches int64
	Cost                                                                                 money.Sum
}

// Counts reads the counters.
func (s *Stats) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Counts{
		Records: s.records.Load(), Usage: s.usage.Load(), Unpriced: s.unpriced.Load(), Duplicates: s.duplicates.Load(),
		Rejected: s.rejected.Load(), Conflicts: s.conflicts.Load(), Lookups: s.lookups.Load(),
		Entries: s.entries.Load(), Batches: s.batches.Load(), Cost: s.cost,
	}
}

func (s *Stats) add(b *Batch, n *BatchStats) {
	s.records.Add(int64(n.Records))
	s.usage.Add(int64(n.Usage))
	s.unpriced.Add(int64(n.Unpriced))
	s.duplicates.Add(int64(n.Duplicates))
	s.rejected.Add(int64(n.Rejected))
	s.conflicts.Add(int64(n.Conflicts))
	s.lookups.Add(int64(n.Lookups))
	s.entries.Add(int64(len(b.Rows)))
	s.batches.Add(1)
	var sum money.Sum
	for i := range b.Rows {
		// A sum of 128 bits cannot overflow by one batch of 64-bit amounts.
		_ = sum.AddPico(b.Rows[i].Cost)
	}
	s.mu.Lock()
	_ = s.cost.Add(sum)
	s.mu.Unlock()
}

// PartitionStats is where one partition stands.
type PartitionStats struct {
	epoch, nextOffset, batch, publishedBatch atomic.Int64
	// unpublished counts entries that are committed and not yet in `entries`.
	unpublished atomic.Int64
	// recovering: it is replayed to its checkpoints, and publishes nothing.
	recovering atomic.Bool

	mu     sync.Mutex // protects halted
	halted error
}

// Place is a copy of a partition's place.
type Place struct {
	Epoch, NextOffset, Batch, PublishedBatch int64
	// Unpublished counts entries of this process that are not in `entries` yet.
	Unpublished int64
	Halted      error
	// Recovering says that the partition is replayed to its published checkpoints
	// after a restore; nothing of it is published.
	Recovering bool
}

// Places is where every partition stands that this process has been assigned.
func (s *Stats) Places() map[int32]Place {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[int32]Place, len(s.partitions))
	for id, p := range s.partitions {
		out[id] = p.place()
	}
	return out
}

func (s *Stats) partition(id int32) *PartitionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.partitions[id]
	if !ok {
		p = &PartitionStats{}
		s.partitions[id] = p
	}
	return p
}

func (p *PartitionStats) place() Place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Place{p.epoch.Load(), p.nextOffset.Load(), p.batch.Load(), p.publishedBatch.Load(), p.unpublished.Load(), p.halted, p.recovering.Load()}
}

func (p *PartitionStats) assigned(st *State) {
	p.epoch.Store(st.Epoch)
	p.nextOffset.Store(st.NextOffset)
	p.batch.Store(st.LastBatch)
	p.publishedBatch.Store(st.PublishedBatch)
	p.unpublished.Store(0)
}

func (p *PartitionStats) committed(b *Batch) {
	p.nextOffset.Store(b.NextOffset)
	p.batch.Store(b.Number)
	p.unpublished.Add(int64(len(b.Rows)))
}

func (p *PartitionStats) published(b *Batch) {
	p.publishedBatch.Store(b.Number)
	p.unpublished.Add(-int64(len(b.Rows)))
}

func (p *PartitionStats) halt(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halted = err
}
