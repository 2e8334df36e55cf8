package ledger

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
)

// simLog is the partition of `events`.
type simLog struct {
	recs []kafka.Record // complete before the first writer starts
	// arrived tells how many of them are there by now.
	arrived func() int64
}

func (l *simLog) add(key string, value []byte) int64 {
	offset := int64(len(l.recs))
	l.recs = append(l.recs, kafka.Record{Offset: offset, Key: []byte(key), Value: value})
	return offset
}

// simSource is one process's way to the log.
type simSource struct {
	log *simLog
	p   *simProcess
}

func (simSource) CommitForLag(int64) {}

func (s simSource) Open(ctx context.Context, at kafka.Position) (Reader, error) {
	if err := s.p.read.call(ctx); err != nil {
		return nil, err
	}
	return &simReader{simSource: s, next: at.Offset}, nil
}

type simReader struct {
	simSource
	next int64
	recs []kafka.Record
	mem  []byte
}

func (*simReader) Close() {}

// Next gives some records, in memory that it spoils at the next call.
func (r *simReader) Next(ctx context.Context) ([]kafka.Record, error) {
	for i := range r.mem {
		r.mem[i] = 0xAA
	}
	r.recs, r.mem = r.recs[:0], r.mem[:0]
	for r.next >= r.log.arrived() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	time.Sleep(r.p.read.latency())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if r.p.dead.Load() || r.p.read.rng.Float64() < 0.01*r.p.chaos {
		return nil, errSim
	}
	n := min(1+r.p.read.rng.Int64N(40), r.log.arrived()-r.next)
	size := 0
	for _, rec := range r.log.recs[r.next : r.next+n] {
		size += len(rec.Key) + len(rec.Value)
	}
	if cap(r.mem) < size {
		r.mem = make([]byte, 0, 2*size)
	}
	take := func(b []byte) []byte {
		from := len(r.mem)
		r.mem = append(r.mem, b...)
		return r.mem[from:len(r.mem):len(r.mem)]
	}
	for _, rec := range r.log.recs[r.next : r.next+n] {
		r.recs = append(r.recs, kafka.Record{Offset: rec.Offset, Key: take(rec.Key), Value: take(rec.Value)})
	}
	r.next += n
	return r.recs, nil
}

// simTopics is what was published, of all processes, in the broker's order.
type simTopics struct {
	mu            sync.Mutex // protects the records
	entries, dead []kafka.Record
}

// simPublisher is one process's producer.
type simPublisher struct {
	to *simTopics
	p  *simProcess
}

// ProduceBatch appends all records, or a beginning of them, once or twice, and
// may not say so.
func (s simPublisher) ProduceBatch(ctx context.Context, recs []kafka.Record, _ []kafka.Result) error {
	if err := s.p.publish.call(ctx); err != nil {
		return err
	}
	n, fail := len(recs), error(nil)
	if s.p.publish.rng.Float64() < 0.03*s.p.chaos {
		n, fail = s.p.publish.rng.IntN(len(recs)+1), errSim
	}
	times := 1
	if s.p.publish.rng.Float64() < 0.02*s.p.chaos {
		times = 2
	}
	s.to.mu.Lock()
	defer s.to.mu.Unlock()
	for range times {
		for _, rec := range recs[:n] {
			rec.Key, rec.Value = bytes.Clone(rec.Key), bytes.Clone(rec.Value)
			if rec.Topic == "entries" {
				s.to.entries = append(s.to.entries, rec)
			} else {
				s.to.dead = append(s.to.dead, rec)
			}
		}
	}
	if fail != nil {
		return fail
	}
	return s.p.publish.after()
}

// checkPublished reads the topic `entries` as its readers do: what was seen is
// dropped, a gap is a failure. The rest must be the ledger, in order.
func checkPublished(fatal func(string, ...any), to *simTopics, db *simDB) {
	batch, index := int64(1), int32(0)
	next := map[string]int{}
	for _, rec := range to.entries {
		var f chain.Frame
		if err := f.Decode(rec.Value); err != nil {
			fatal("published frame: %v", err)
			return
		}
		if f.Batch < batch || f.Batch == batch && f.Index < index {
			continue
		}
		for batch < f.Batch && len(db.batches[batch-1].Rows) == 0 {
			batch++ // a commit without entries has no frames
		}
		if f.Batch != batch || f.Index != index || f.FirstSeq != int64(next[f.Tenant]+1) || string(rec.Key) != f.Tenant {
			fatal("published: batch %d index %d %s/%d where batch %d index %d %s/%d is next",
				f.Batch, f.Index, f.Tenant, f.FirstSeq, batch, index, f.Tenant, next[f.Tenant]+1)
			return
		}
		for i := range f.Entries {
			want := &db.entries[f.Tenant][next[f.Tenant]]
			got := &f.Entries[i]
			if !bytes.Equal(got.Canonical, want.Canonical) || got.Chain != want.Chain || got.MAC != want.MAC || got.Epoch != want.Epoch {
				fatal("published %s/%d is not the ledger's", f.Tenant, next[f.Tenant]+1)
				return
			}
			next[f.Tenant]++
		}
		if index += int32(len(f.Entries)); index == f.Total {
			batch, index = batch+1, 0
		}
	}
	for id, rows := range db.entries {
		if next[id] != len(rows) {
			fatal("%s: %d of %d entries are published", id, next[id], len(rows))
		}
	}
}
