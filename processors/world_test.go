package processors

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// world is everything that outlives a process: the ledger, the topic, the
// checkpoints and ClickHouse. Processes reach it through a life, which can be
// ended at any operation.
type world struct {
	mu        sync.Mutex
	commits   map[int32][]worldCommit // the ledger; commit n of a partition is at n-1
	hidden    map[int32]int64         // newest commits that the ledger does not show yet
	heads     map[string]*Covered
	log       map[int32]*worldLog
	cps       map[int32]Checkpoint
	plans     map[string]*Plan
	covered   map[string]Covered
	snapshots map[string]Snapshot
	ch        clickhouse
}

type worldCommit []chain.Frame // without gaps; one frame may be cut for publication

// worldLog is one partition of `entries`.
type worldLog struct {
	topic kafka.TopicID
	start int64
	recs  []kafka.Record
	more  chan struct{} // closed at every append
}

// clickhouse drops what it has by token, like the real one.
type clickhouse struct {
	tokens  map[string]string // plan to its content
	entries map[string]int    // tenant/seq to count
	rollups map[string]*finding.Rollup
	largest map[int32]int64
}

func newWorld(partitions int32) *world {
	w := &world{
		commits: map[int32][]worldCommit{}, hidden: map[int32]int64{}, heads: map[string]*Covered{}, log: map[int32]*worldLog{},
		cps: map[int32]Checkpoint{}, plans: map[string]*Plan{}, covered: map[string]Covered{}, snapshots: map[string]Snapshot{},
		ch: clickhouse{tokens: map[string]string{}, entries: map[string]int{}, rollups: map[string]*finding.Rollup{}, largest: map[int32]int64{}},
	}
	for p := range partitions {
		w.log[p] = &worldLog{topic: kafka.TopicID{1}, more: make(chan struct{})}
	}
	return w
}

// tenantOf names tenant t of a partition.
func tenantOf(partition int32, t int) string { return fmt.Sprintf("tenant-%d-%d", partition, t) }

// testEntry is an entry whose money and dimensions follow from its number.
func testEntry(tenant string, partition int32, seq int64) *chain.Entry {
	e := &chain.Entry{Kind: chain.Usage, Seq: seq, Position: chain.Position{Partition: partition, Offset: seq}, Priced: seq%7 != 0}
	e.Event.Tenant, e.Event.ID = tenant, fmt.Sprint(tenant, seq)
	e.Event.OccurredAt = 1_760_000_000_000_000_000 + seq*1_000_000_000*600
	e.Event.ReceivedAt = e.Event.OccurredAt + 5
	e.Event.Provider, e.Event.Model = "openai", fmt.Sprintf("model-%d", seq%3)
	e.Event.Team = []string{"", "search", "ads"}[seq%3]
	e.Event.Tokens[0] = 100 + seq
	if e.Priced {
		e.Cost = money.Pico(1000 + seq)
	}
	return e
}

// commit appends a commit with so many entries per tenant, and returns its
// number. Nothing is published.
func (w *world) commit(partition int32, counts ...int) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	total := 0
	for _, n := range counts {
		total += n
	}
	number := int64(len(w.commits[partition]) + 1)
	var c worldCommit
	index := 0
	hasher := chain.NewHasher()
	for t, n := range counts {
		if n == 0 {
			continue
		}
		name := tenantOf(partition, t)
		h := w.heads[name]
		if h == nil {
			h = &Covered{Tenant: name, Partition: partition, Chain: chain.Genesis(name)}
			w.heads[name] = h
		}
		f := chain.Frame{Tenant: name, Partition: partition, Batch: number, Index: int32(index), Total: int32(total), FirstSeq: h.Seq + 1}
		for range n {
			h.Seq++
			e := testEntry(name, partition, h.Seq)
			s := chain.Sealed{Canonical: e.Append(nil), Epoch: 1}
			leaf := hasher.Leaf(s.Canonical)
			h.Chain = hasher.Next(&h.Chain, &leaf)
			h.ReceivedAt = e.Event.ReceivedAt
			s.Chain = h.Chain
			f.Entries = append(f.Entries, s)
		}
		index += n
		c = append(c, f)
	}
	w.commits[partition] = append(w.commits[partition], c)
	return number
}

// cut splits a commit's frames so that none holds more than n entries.
func cut(c worldCommit, n int) (out []chain.Frame) {
	for _, f := range c {
		for i := 0; i < len(f.Entries); i += n {
			part := f
			part.Entries = f.Entries[i:min(i+n, len(f.Entries))]
			part.Index, part.FirstSeq = f.Index+int32(i), f.FirstSeq+int64(i)
			out = append(out, part)
		}
	}
	return out
}

func encode(f *chain.Frame) []byte {
	var w chain.FrameWriter
	w.Begin(nil, f)
	for i := range f.Entries {
		w.Add(&f.Entries[i])
	}
	return w.Finish()
}

// publish appends a commit to `entries`, in frames of at most three entries,
// but for the frames that lose names.
func (w *world) publish(partition int32, number int64, lose ...int) {
	w.mu.Lock()
	frames := cut(w.commits[partition][number-1], 3)
	w.mu.Unlock()
	for i := range frames {
		if !slices.Contains(lose, i) {
			w.append(partition, encode(&frames[i]))
		}
	}
}

func (w *world) append(partition int32, value []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.log[partition]
	l.recs = append(l.recs, kafka.Record{Partition: partition, Offset: l.start + int64(len(l.recs)), Value: value})
	close(l.more)
	l.more = make(chan struct{})
}

// recreate makes the topic anew, and empty.
func (w *world) recreate(partition int32, id byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.log[partition]
	close(l.more)
	w.log[partition] = &worldLog{topic: kafka.TopicID{id}, more: make(chan struct{})}
}

// truncate drops the oldest records, as retention does.
func (w *world) truncate(partition int32, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.log[partition]
	n = min(n, len(l.recs))
	l.recs, l.start = slices.Clone(l.recs[n:]), l.start+int64(n)
}

// check compares what is stored with the ledger, to the last unit of money.
func (w *world) check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	want := map[string]*finding.Rollup{}
	entries := 0
	for p, commits := range w.commits {
		if cp := w.cps[p]; cp.Commit != int64(len(commits)) || cp.Open != "" {
			return fmt.Errorf("partition %d: checkpoint %+v, the ledger has %d commits", p, cp, len(commits))
		}
		for _, c := range commits {
			for _, f := range c {
				for i := range f.Entries {
					var e chain.Entry
					if err := e.Decode(f.Entries[i].Canonical); err != nil {
						return err
					}
					if n := w.ch.entries[fmt.Sprint(e.Event.Tenant, "/", e.Seq)]; n != 1 {
						return fmt.Errorf("entry %d of %s is stored %d times", e.Seq, e.Event.Tenant, n)
					}
					entries++
					naive(want, &e)
				}
			}
		}
	}
	if len(w.ch.entries) != entries {
		return fmt.Errorf("%d entries stored, the ledger has %d", len(w.ch.entries), entries)
	}
	rows, err := w.checkPositions()
	if err != nil {
		return err
	}
	for k, r := range want {
		if got := w.ch.rollups[k]; got == nil || *got != *r {
			return fmt.Errorf("rollup %s = %+v, want %+v", k, got, r)
		}
	}
	if len(want)+rows != len(w.ch.rollups) {
		return fmt.Errorf("%d rollups, want %d", len(w.ch.rollups), len(want)+rows)
	}
	for name, h := range w.heads {
		if got := w.covered[name]; got != *h {
			return fmt.Errorf("coverage of %s is %+v, want %+v", name, got, *h)
		}
	}
	return nil
}

// checkPositions looks whether each plan's results were computed from the very
// state that the plan before it left.
func (w *world) checkPositions() (rows int, err error) {
	for p, commits := range w.commits {
		var total, at int64
		for _, c := range commits {
			for _, f := range c {
				total += int64(len(f.Entries))
			}
		}
		for r := w.ch.rollups[positionKey(p, 0)]; r != nil; r = w.ch.rollups[positionKey(p, at)] {
			at += r.Requests
			rows++
		}
		if at != total {
			return 0, fmt.Errorf("partition %d: positions end at %d of %d", p, at, total)
		}
	}
	return rows, nil
}

func positionKey(partition int32, at int64) string {
	return fmt.Sprint("partition-", partition, "|", 0, "|", "position", "|", at)
}

// position is a processor whose results depend on its whole past.
type position struct {
	partition    int32
	count, fresh int64
}

func (p *position) Name() string { return "position" }
func (p *position) Version() int { return 1 }
func (p *position) Apply(e *chain.Entry) error {
	p.partition = e.Position.Partition
	p.count, p.fresh = p.count+1, p.fresh+1
	return nil
}

func (p *position) Flush(emit func(*finding.Rollup) error) error {
	if p.fresh == 0 {
		return nil
	}
	r := finding.Rollup{Tenant: fmt.Sprint("partition-", p.partition), Dimension: "position", Value: fmt.Sprint(p.count - p.fresh), Requests: p.fresh}
	p.fresh = 0
	return emit(&r)
}

func (p *position) Snapshot(b []byte) []byte { return binary.AppendVarint(b, p.count) }

func (p *position) Restore(b []byte) error {
	p.count, _ = binary.Varint(b)
	return nil
}

// naive adds an entry to every rollup it belongs to, the plain way.
func naive(sums map[string]*finding.Rollup, e *chain.Entry) {
	hour := time.Unix(0, e.Event.OccurredAt).UTC().Truncate(time.Hour).Unix()
	for dimension, value := range map[string]string{
		"": "", "team": e.Event.Team, "model": e.Event.Model, "provider": e.Event.Provider, "service": e.Event.Service,
		"environment": e.Event.Environment, "status": "ok",
	} {
		k := fmt.Sprint(e.Event.Tenant, "|", hour, "|", dimension, "|", value)
		r := sums[k]
		if r == nil {
			r = &finding.Rollup{Tenant: e.Event.Tenant, Hour: hour, Dimension: dimension, Value: value}
			sums[k] = r
		}
		r.Requests++
		r.Tokens[0] += e.Event.Tokens[0]
		r.GPUMicros += e.Event.GPUMicros
		if !e.Priced {
			r.Unpriced++
		} else if err := r.Cost.AddPico(e.Cost); err != nil {
			panic(err)
		}
	}
}

var errKilled = errors.New("killed")
var errAway = errors.New("away")

// life is one process's way to the world. Each operation that changes something
// is counted; at the one that kill names the process dies, before or after the
// change.
type life struct {
	w     *world
	ops   atomic.Int64
	kill  int64 // 0: never
	after bool
	dead  atomic.Bool
	died  chan struct{}
	away  atomic.Int64 // so many operations fail as transient
}

func newLife(w *world) *life { return &life{w: w, died: make(chan struct{})} }

// change does fn, unless the process dies before.
func (l *life) change(fn func() error) error {
	if l.dead.Load() {
		return errKilled
	}
	if l.away.Load() > 0 {
		l.away.Add(-1)
		return errAway
	}
	dies := l.kill > 0 && l.ops.Add(1) == l.kill
	if dies && !l.after {
		l.die()
		return errKilled
	}
	l.w.mu.Lock()
	err := fn()
	l.w.mu.Unlock()
	if dies {
		l.die()
		return errKilled
	}
	return err
}

func (l *life) die() {
	if l.dead.CompareAndSwap(false, true) {
		close(l.died)
	}
}

func (l *life) look(fn func()) error {
	if l.dead.Load() {
		return errKilled
	}
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	fn()
	return nil
}

// The life as a Ledger.

func (l *life) Frames(_ context.Context, partition int32, from, to int64, fn func(*chain.Frame) error) error {
	var frames []chain.Frame
	var have int64
	err := l.look(func() {
		have = int64(len(l.w.commits[partition])) - l.w.hidden[partition]
		for n := from; n <= min(to, have); n++ {
			frames = append(frames, l.w.commits[partition][n-1]...)
		}
	})
	if err == nil && have < to {
		err = ErrLedgerBehind
	}
	if err != nil {
		return err
	}
	for i := range frames {
		f := frames[i]
		if err := fn(&f); err != nil {
			return err
		}
	}
	return nil
}

func (l *life) LastCommits(context.Context) (last map[int32]int64, err error) {
	last = map[int32]int64{}
	err = l.look(func() {
		for p, c := range l.w.commits {
			last[p] = int64(len(c)) - l.w.hidden[p]
		}
	})
	return last, err
}

// The life as a Store.

func (l *life) Checkpoint(_ context.Context, partition int32) (cp Checkpoint, err error) {
	err = l.look(func() { cp = l.w.cps[partition] })
	return cp, err
}

func (l *life) Record(_ context.Context, plan *Plan) error {
	return l.change(func() error {
		for _, r := range plan.Ranges {
			if cp := l.w.cps[r.Partition]; cp.Commit != r.From-1 || cp.Open != "" && cp.Open != plan.ID {
				return fmt.Errorf("%w: %+v", ErrFenced, cp)
			}
		}
		for _, r := range plan.Ranges {
			cp := l.w.cps[r.Partition]
			cp.Open = plan.ID
			l.w.cps[r.Partition] = cp
		}
		own := *plan
		own.Ranges = slices.Clone(plan.Ranges)
		l.w.plans[plan.ID] = &own
		return nil
	})
}

func (l *life) Open(_ context.Context, id string) (plan *Plan, err error) {
	err = l.look(func() { plan = l.w.plans[id] })
	return plan, err
}

func (l *life) Confirm(_ context.Context, plan *Plan, covered []Covered) error {
	return l.change(func() error {
		if l.w.plans[plan.ID] == nil {
			for _, r := range plan.Ranges {
				if l.w.cps[r.Partition].Commit < r.To {
					return ErrFenced
				}
			}
			return nil
		}
		for _, r := range plan.Ranges {
			l.w.cps[r.Partition] = Checkpoint{Commit: r.To, Filled: max(l.w.cps[r.Partition].Filled, r.Filled), Resume: r.Resume}
		}
		for _, c := range covered {
			c.ReceivedAt = max(c.ReceivedAt, l.w.covered[c.Tenant].ReceivedAt)
			l.w.covered[c.Tenant] = c
		}
		delete(l.w.plans, plan.ID)
		return nil
	})
}

func (l *life) Covered(_ context.Context, tenants []string) (covered []Covered, err error) {
	err = l.look(func() {
		for _, t := range tenants {
			if c, ok := l.w.covered[t]; ok {
				covered = append(covered, c)
			}
		}
	})
	return covered, err
}

// The life as Snapshots.

func (l *life) Save(_ context.Context, partition int32, s *Snapshot) error {
	return l.change(func() error {
		own := *s
		own.State = slices.Clone(s.State)
		l.w.snapshots[fmt.Sprint(partition, s.Processor)] = own
		return nil
	})
}

func (l *life) Load(_ context.Context, partition int32, processor string) (s *Snapshot, err error) {
	err = l.look(func() {
		if have, ok := l.w.snapshots[fmt.Sprint(partition, processor)]; ok {
			s = &have
		}
	})
	return s, err
}

// sink is a life's way to ClickHouse.
type sink struct {
	*life
	entries []string
	rollups []finding.Rollup
	refuse  error // of Store, if set
	away    error // of Store, if set; protected by the world's lock
}

func (s *sink) Reset() { s.entries, s.rollups = nil, nil }

func (s *sink) Append(e *chain.Entry, _ int64) error {
	s.entries = append(s.entries, fmt.Sprint(e.Event.Tenant, "/", e.Seq))
	return nil
}

func (s *sink) AppendRollup(r *finding.Rollup) error {
	s.rollups = append(s.rollups, *r)
	return nil
}

func (s *sink) Store(_ context.Context, plan *Plan) error {
	if s.refuse != nil {
		return s.refuse
	}
	s.w.mu.Lock()
	away := s.away
	s.w.mu.Unlock()
	if away != nil {
		return away
	}
	content := fmt.Sprint(s.entries, s.rollups)
	return s.change(func() error {
		ch := &s.w.ch
		if before, ok := ch.tokens[plan.ID]; ok {
			if before != content {
				return fmt.Errorf("plan %s is stored again with other content:\n%s\n%s", plan.ID, before, content)
			}
			return nil
		}
		ch.tokens[plan.ID] = content
		for _, e := range s.entries {
			ch.entries[e]++
		}
		for i := range s.rollups {
			r := &s.rollups[i]
			k := fmt.Sprint(r.Tenant, "|", r.Hour, "|", r.Dimension, "|", r.Value)
			sum := ch.rollups[k]
			if sum == nil {
				sum = &finding.Rollup{Tenant: r.Tenant, Hour: r.Hour, Dimension: r.Dimension, Value: r.Value}
				ch.rollups[k] = sum
			}
			sum.Requests, sum.Unpriced, sum.Tokens[0] = sum.Requests+r.Requests, sum.Unpriced+r.Unpriced, sum.Tokens[0]+r.Tokens[0]
			if err := sum.Cost.Add(r.Cost); err != nil {
				return err
			}
		}
		for _, r := range plan.Ranges {
			ch.largest[r.Partition] = max(ch.largest[r.Partition], r.To)
		}
		return nil
	})
}

func (s *sink) Largest(context.Context) (largest map[int32]int64, err error) {
	err = s.look(func() { largest = maps.Clone(s.w.ch.largest) })
	return largest, err
}

func (s *sink) Transient(err error) bool { return errors.Is(err, errKilled) || errors.Is(err, errAway) }

// source is a partition of the world's topic.
type source struct {
	l         *life
	partition int32
}

func (s source) CommitForLag(int64) {}

func (s source) Start(context.Context) (start int64, err error) {
	err = s.l.look(func() { start = s.l.w.log[s.partition].start })
	return start, err
}

func (s source) Open(_ context.Context, at kafka.Position) (Reader, error) {
	r := &logReader{l: s.l, partition: s.partition, next: at.Offset}
	var open error
	err := s.l.look(func() {
		l := s.l.w.log[s.partition]
		r.topic = l.topic
		switch {
		case !at.Topic.IsZero() && at.Topic != l.topic:
			open = kafka.ErrTopicChanged
		case at.Offset < l.start || at.Offset > l.start+int64(len(l.recs)):
			open = kafka.ErrOffsetOutOfRange
		}
	})
	if err == nil {
		err = open
	}
	return r, err
}

type logReader struct {
	l         *life
	partition int32
	topic     kafka.TopicID
	next      int64
}

func (r *logReader) Next(ctx context.Context) ([]kafka.Record, error) {
	for {
		var recs []kafka.Record
		var more chan struct{}
		var lost error
		err := r.l.look(func() {
			l := r.l.w.log[r.partition]
			more = l.more
			switch {
			case l.topic != r.topic:
				lost = kafka.ErrTopicChanged
			case r.next < l.start:
				lost = kafka.ErrOffsetOutOfRange
			default:
				recs = l.recs[r.next-l.start:]
			}
		})
		if err = cmpErr(err, lost); err != nil {
			return nil, err
		}
		if len(recs) > 0 {
			recs = recs[:min(len(recs), 5)]
			r.next += int64(len(recs))
			// The reader's memory is overwritten by the next call.
			out := make([]kafka.Record, len(recs))
			for i := range recs {
				out[i] = recs[i]
				out[i].Value = slices.Clone(recs[i].Value)
			}
			return out, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (r *logReader) Offset() int64          { return r.next }
func (r *logReader) Topic() kafka.TopicInfo { return kafka.TopicInfo{ID: r.topic} }
func (r *logReader) Close()                 {}

// reader is a life that only reads.
func (w *world) reader() *life { return newLife(w) }

func recordsOf(value []byte, offset int64) []kafka.Record {
	return []kafka.Record{{Value: value, Offset: offset}}
}
