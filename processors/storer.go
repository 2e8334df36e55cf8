package processors

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// openPlanCheck is how old a plan may be when it is stored without asking first
// whether it is still open. ClickHouse forgets tokens after a number of other
// inserts: a process that was stopped for long must not send an old plan.
const openPlanCheck = 15 * time.Second

// settledKept is how long the states of a settled plan wait for their partitions
// to be admitted.
const settledKept = 30 * time.Second

// storer is the one goroutine that makes plans. It owns the state of every
// partition and the Sink.
type storer struct {
	r        *Runner
	log      *slog.Logger
	sink     Sink
	requests chan func(context.Context)
	members  map[int32]*partition
	turn     int              // whose commits are taken first, by rotation
	settled  map[int32]*state // of the plan that was settled last, for the next admissions
	// settledAt is when; after settledKept they are forgotten.
	settledAt time.Time

	entry chain.Entry
	frame chain.Frame
	cover coverage
	buf   []byte // of a snapshot
}

// work is what one partition gives to a plan.
type work struct {
	p       *partition
	commits []*commit
}

// run serves requests and stores what is complete, until ctx ends.
func (st *storer) run(ctx context.Context) {
	timer := time.NewTimer(st.r.opts.FlushInterval)
	defer timer.Stop()
	before := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case fn := <-st.requests:
			fn(ctx)
			continue
		case <-timer.C:
		case <-st.r.wake:
		}
		started := time.Now()
		rows := st.flush(ctx)
		st.keepSnapshot(ctx)
		timer.Reset(max(time.Millisecond, st.interval(rows, started.Sub(before))-time.Since(started)))
		before = started
	}
}

// interval is how long after the start of a flush the next one starts: twice as
// long where a quarter of FlushRows comes in FlushInterval, going by the entries
// of the last flush and the time that they came in. ClickHouse spends less on an
// entry the more come at once.
func (st *storer) interval(rows int, in time.Duration) time.Duration {
	interval := st.r.opts.FlushInterval
	if float64(rows)*float64(interval) >= float64(st.r.opts.FlushRows/4)*float64(in) {
		interval *= 2
	}
	return interval
}

// flush makes and stores one plan, and another as long as plans come out full.
// It returns how many entries they had.
func (st *storer) flush(ctx context.Context) (rows int) {
	for {
		todo, full := st.take()
		if len(todo) == 0 {
			return rows
		}
		plan := planOf(todo)
		err := st.store(ctx, plan, todo)
		st.finish(ctx, plan, todo, err)
		rows += st.cover.rows
		if !full || ctx.Err() != nil || len(st.requests) > 0 {
			return rows
		}
	}
}

// take takes complete commits of all partitions, up to the limits of a plan.
func (st *storer) take() (todo []work, full bool) {
	ids := make([]int32, 0, len(st.members))
	for id, p := range st.members {
		if p.gone.Load() {
			st.remove(p)
			continue
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	left := room{st.r.opts.MaxPlanRows, st.r.opts.MaxPlanFrames}
	st.turn++
	for i := range ids {
		p := st.members[ids[(i+st.turn)%len(ids)]]
		if commits := p.takeReady(&left, len(todo) == 0); len(commits) > 0 {
			todo = append(todo, work{p, commits})
		}
	}
	slices.SortFunc(todo, func(a, b work) int { return cmp.Compare(a.p.id, b.p.id) })
	full = left.rows < st.r.opts.MaxPlanRows/2 || left.frames < st.r.opts.MaxPlanFrames/2
	return todo, full
}

func planOf(todo []work) *Plan {
	plan := &Plan{ID: newPlanID()}
	for _, w := range todo {
		last := w.commits[len(w.commits)-1]
		rg := Range{
			Partition: w.p.id, From: w.p.stored.Commit + 1, To: last.number,
			Resume: kafka.Position{Offset: last.resume, Topic: *w.p.topic.Load()},
		}
		for _, c := range w.commits {
			if c.rows > 0 {
				rg.Filled = c.number
			}
		}
		plan.Ranges = append(plan.Ranges, rg)
	}
	return plan
}

// newPlanID is a random UUID (RFC 9562, version 4).
func newPlanID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// store takes a new plan through record, insert and confirm.
func (st *storer) store(ctx context.Context, plan *Plan, todo []work) error {
	if err := st.retry(ctx, "record plan", func() error { return st.r.store.Record(ctx, plan) }); err != nil {
		return fmt.Errorf("record plan: %w", err)
	}
	recorded := time.Now()
	st.begin()
	states := make([]*state, len(todo))
	for i, w := range todo {
		states[i] = w.p.state
		for _, c := range w.commits {
			if err := c.frames(&st.frame, func(f *chain.Frame) error { return st.apply(states[i], f) }); err != nil {
				return err
			}
		}
		states[i].commit = plan.Ranges[i].To
	}
	if err := st.emit(states); err != nil {
		return err
	}
	return st.send(ctx, plan, recorded)
}

// begin empties what belongs to one plan.
func (st *storer) begin() {
	st.sink.Reset()
	st.cover.reset()
}

// apply takes a frame of the plan into the state, the sink and the coverage.
func (st *storer) apply(s *state, f *chain.Frame) error {
	c := st.cover.of(f.Tenant, s.partition)
	for i := range f.Entries {
		if err := st.entry.Decode(f.Entries[i].Canonical); err != nil {
			return fmt.Errorf("%w: partition %d commit %d tenant %s entry %d: %w",
				ErrCorrupt, s.partition, f.Batch, f.Tenant, f.FirstSeq+int64(i), err)
		}
		if err := s.apply(&st.entry); err != nil {
			return err
		}
		if err := st.sink.Append(&st.entry, f.Batch); err != nil {
			return fmt.Errorf("%w: partition %d commit %d: %w", ErrRefused, s.partition, f.Batch, err)
		}
		c.ReceivedAt = max(c.ReceivedAt, st.entry.Event.ReceivedAt)
	}
	c.Seq, c.Chain = f.FirstSeq+int64(len(f.Entries))-1, f.Entries[len(f.Entries)-1].Chain
	st.cover.rows += len(f.Entries)
	return nil
}

// emit passes what the processors found to the sink, partition by partition.
func (st *storer) emit(states []*state) error {
	for _, s := range states {
		for _, p := range s.procs {
			err := p.Flush(func(r *finding.Rollup) error {
				st.r.stats.rollups.Add(1)
				return st.sink.AppendRollup(r)
			})
			if err != nil {
				return fmt.Errorf("%w: processor %s: %w", ErrRefused, p.Name(), err)
			}
		}
	}
	return nil
}

// send inserts what was appended under the plan's token and confirms the plan.
func (st *storer) send(ctx context.Context, plan *Plan, recorded time.Time) error {
	if st.cover.rows > 0 {
		if err := st.insert(ctx, plan, recorded); err != nil {
			return err
		}
	}
	err := st.retry(ctx, "confirm plan", func() error { return st.r.store.Confirm(ctx, plan, st.cover.list) })
	if err != nil {
		return fmt.Errorf("confirm plan: %w", err)
	}
	return nil
}

// insert stores the plan in the Sink, again and again while it is away.
func (st *storer) insert(ctx context.Context, plan *Plan, recorded time.Time) error {
	checked := recorded
	backoff := st.r.opts.RetryMin
	for {
		if time.Since(checked) > openPlanCheck {
			open, err := st.r.store.Open(ctx, plan.ID)
			if err == nil && open == nil {
				return nil // another process has stored and confirmed it
			}
			if err == nil {
				checked = time.Now()
			}
		}
		if time.Since(checked) <= openPlanCheck {
			err := st.sink.Store(ctx, plan)
			if err == nil || ctx.Err() != nil {
				return err
			}
			if !st.sink.Transient(err) {
				return fmt.Errorf("%w: plan %s: %w", ErrRefused, plan.ID, err)
			}
			st.log.LogAttrs(ctx, slog.LevelWarn, "clickhouse does not take the plan; trying again", slog.Any("err", err), slog.Duration("backoff", backoff))
		}
		if !sleep(ctx, backoff) {
			return ctx.Err()
		}
		backoff = min(2*backoff, st.r.opts.RetryMax)
	}
}

// retry does op until it succeeds, or fails for good.
func (st *storer) retry(ctx context.Context, what string, op func() error) error {
	backoff := st.r.opts.RetryMin
	for {
		err := op()
		if err == nil || Halts(err) || errors.Is(err, ErrFenced) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		st.log.LogAttrs(ctx, slog.LevelWarn, "trying again: "+what, slog.Any("err", err), slog.Duration("backoff", backoff))
		if !sleep(ctx, backoff) {
			return ctx.Err()
		}
		backoff = min(2*backoff, st.r.opts.RetryMax)
	}
}

// finish notes the outcome of a plan. When it failed, the partitions of the
// plan are forgotten: each begins again at its checkpoint, where the plan, if
// it was recorded, is found and settled.
func (st *storer) finish(ctx context.Context, plan *Plan, todo []work, err error) {
	for i, w := range todo {
		rows := 0
		for _, c := range w.commits {
			rows += c.rows
		}
		w.p.r.recycle(w.p, w.commits)
		if err != nil {
			st.remove(w.p)
			w.p.fail(err)
			continue
		}
		rg := &plan.Ranges[i]
		w.p.stored.Commit, w.p.stored.Resume = rg.To, rg.Resume
		w.p.stored.Filled = max(w.p.stored.Filled, rg.Filled)
		w.p.stats.storedCommit.Store(rg.To)
		w.p.stats.entries.Add(int64(rows))
		w.p.src.CommitForLag(rg.Resume.Offset)
	}
	if err != nil {
		st.log.LogAttrs(ctx, slog.LevelWarn, "plan not stored", slog.String("plan", plan.ID), slog.Any("err", err))
		return
	}
	st.r.stats.plans.Add(1)
}

// remove forgets a partition.
func (st *storer) remove(p *partition) {
	if st.members[p.id] == p {
		delete(st.members, p.id)
	}
	p.gone.Store(true)
	p.drop()
}

// keepSnapshot keeps the state of the partition whose snapshot is most overdue:
// one each time, so that no plan waits for long.
func (st *storer) keepSnapshot(ctx context.Context) {
	if time.Since(st.settledAt) > settledKept {
		clear(st.settled) // whoever wanted them has been admitted
	}
	var due *partition
	for _, p := range st.members {
		if p.stored.Commit > p.saved && time.Since(p.snapshot) >= st.r.opts.SnapshotInterval &&
			(due == nil || p.snapshot.Before(due.snapshot)) {
			due = p
		}
	}
	if due != nil {
		st.save(ctx, due)
	}
}

// save keeps the partition's state. Without it the next start reads more of the
// ledger, so a failure is only told.
func (st *storer) save(ctx context.Context, p *partition) {
	p.snapshot = time.Now()
	for _, proc := range p.state.procs {
		st.buf = seal(st.buf[:0], proc)
		err := st.r.snapshots.Save(ctx, p.id, &Snapshot{
			Processor: proc.Name(), Version: proc.Version(), Commit: p.stored.Commit, State: st.buf,
		})
		if err != nil {
			st.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not kept", slog.Int64("partition", int64(p.id)), slog.Any("err", err))
			return
		}
	}
	p.saved = p.stored.Commit
	st.r.stats.snapshots.Add(1)
}

func discard(*finding.Rollup) error { return nil }

// coverage gathers how far a plan takes each of its tenants.
type coverage struct {
	list  []Covered
	index map[string]int32
	rows  int
}

func (c *coverage) reset() {
	if c.index == nil {
		c.index = make(map[string]int32)
	}
	clear(c.index)
	c.list, c.rows = c.list[:0], 0
}

// of is the tenant's coverage, until the next call.
func (c *coverage) of(tenant string, partition int32) *Covered {
	if i, ok := c.index[tenant]; ok {
		return &c.list[i]
	}
	owned := strings.Clone(tenant)
	c.index[owned] = int32(len(c.list))
	c.list = append(c.list, Covered{Tenant: owned, Partition: partition})
	return &c.list[len(c.list)-1]
}
