package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/kafka"
)

// pipelineDepth is how many batches of a partition are in hand: one being
// built, one being committed, one being published.
const pipelineDepth = 3

// shutdownTime is how long the batches in hand may take to be committed and
// published after the partition was taken away or the process asked to stop.
const shutdownTime = 10 * time.Second

// idleTime is how long a partition waits for records before it notes in the
// store what it has published.
const idleTime = 500 * time.Millisecond

// pipeline is one partition at work: the goroutine of run reads and builds,
// one commits, one publishes. A batch passes through them in order; if one
// fails, everything behind it is thrown away with the core.
type pipeline struct {
	w     *Writer
	core  *core
	st    State // as of the last batch handed over
	src   Source
	stats *PartitionStats

	work    context.Context // ends when a stage fails, or shutdownTime after ctx
	fail    context.CancelCauseFunc
	room    chan struct{} // one for each batch that may be in hand
	commits chan *builder
	publish chan *builder
	stages  sync.WaitGroup

	published atomic.Int64
	noted     int64 // published batch that the store knows of

	narrow   narrowing
	recovery *recovering // nil but in recovery: then nothing is published
	// partial is the first batch of a recovery when a part of it was published:
	// it must have the same entries. nil otherwise, and once it is built.
	partial *partialBatch
	// handed is closed when the batch that was handed over last is committed.
	handed chan struct{}

	recs  recordBuffer
	loads *loader
}

func newPipeline(ctx context.Context, w *Writer, core *core, st State, src Source, stats *PartitionStats) *pipeline {
	p := &pipeline{
		w: w, core: core, st: st, src: src, stats: stats,
		room:    make(chan struct{}, pipelineDepth),
		commits: make(chan *builder),
		publish: make(chan *builder),
	}
	p.published.Store(st.PublishedBatch)
	p.work, p.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	p.loads = newLoader(w.store)
	p.recs = newRecordBuffer(w.builders.chunks)
	return p
}

// run reads and builds until ctx ends or a stage fails, and waits for the
// stages behind it.
func (p *pipeline) run(ctx context.Context, reader Reader) error {
	p.stages.Go(p.commitLoop)
	p.stages.Go(p.publishLoop)
	loading, stopLoading := context.WithCancel(p.work)
	defer stopLoading()
	p.stages.Go(func() { p.loads.run(loading, p.fail) })
	// A stage that fails ends the wait for records, too.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(p.work, stop)()

	// What was built before an error is good: it is committed and published, so
	// that a partition that halts has everything before the record that it names.
	err := p.buildLoop(ctx, reader)
	timer := time.AfterFunc(shutdownTime, func() { p.fail(errors.New("shutting down took too long")) })
	defer timer.Stop()
	close(p.commits)
	stopLoading()
	p.stages.Wait()
	p.note()
	p.fail(nil)
	if cause := context.Cause(p.work); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// buildLoop makes batches of what arrives.
func (p *pipeline) buildLoop(ctx context.Context, reader Reader) error {
	for {
		select {
		case p.room <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := p.gather(ctx, reader); err != nil {
			return err
		}
		b := p.w.builders.get()
		err := p.build(b)
		if err == nil {
			committed := b.committed // b may be another partition's as soon as it is handed on
			select {
			case p.commits <- b:
				p.handed = committed
				continue
			case <-p.work.Done():
				err = context.Cause(p.work)
			}
		}
		p.w.turns.release(p.core.partition)
		return err
	}
}

// gather reads records until it is this partition's turn to commit, which it
// asks for when there are enough or when the first has waited for Linger. Until
// the turn comes the batch grows. On success it holds the turn.
func (p *pipeline) gather(ctx context.Context, reader Reader) error {
	var due time.Time // when the first record has waited for Linger; zero: it has
	var t *turn
	enough, reading := false, ctx
	for {
		n := len(p.recs.pending())
		enough = enough || n >= p.w.opts.MaxBatchRecords
		if t == nil && n > 0 && (enough || p.partial == nil && !time.Now().Before(due)) {
			t = p.w.turns.join(ctx, p.core.partition, p.recs.oldest())
			reading = t.come
		}
		if t != nil && (enough || reading.Err() != nil) {
			if !p.w.turns.wait(t) {
				return ctx.Err()
			}
			return nil
		}
		wait := idleTime
		if n > 0 && t == nil && p.partial == nil {
			wait = time.Until(due)
		}
		got, err := p.next(ctx, reading, reader, wait)
		switch {
		case err != nil:
		case len(got) == 0 && p.partial != nil:
			enough, err = p.readToEnd(ctx)
		case len(got) == 0 && n == 0:
			err = p.idle(ctx)
		case n == 0:
			due = time.Now().Add(p.w.opts.Linger)
		}
		if err != nil {
			if t != nil {
				p.w.turns.leave(t)
			}
			return err
		}
		p.recs.add(got)
	}
}

// idle does what waits for a time without records.
func (p *pipeline) idle(ctx context.Context) error {
	p.note()
	if p.recovery != nil && len(p.room) == 1 { // this batch's own place: nothing is in hand
		return p.recovery.idle(ctx, p.st.NextOffset)
	}
	return nil
}

// readToEnd reports whether the log has no more records for a partial batch. It
// is an error when there are none at all.
func (p *pipeline) readToEnd(ctx context.Context) (bool, error) {
	next, pending := p.st.NextOffset, p.recs.pending()
	if len(pending) > 0 {
		next = pending[len(pending)-1].offset + 1
	}
	end, err := p.recovery.recovery.EndOffset(ctx, p.core.partition)
	if err != nil || next < end {
		return false, err
	}
	if len(pending) == 0 {
		return true, p.partial.missing(0)
	}
	return true, nil
}

// next waits for records, at most for the given time and until reading ends,
// which it does with ctx or before.
func (p *pipeline) next(ctx, reading context.Context, reader Reader, wait time.Duration) ([]kafka.Record, error) {
	limited, cancel := context.WithTimeout(reading, wait)
	defer cancel()
	recs, err := reader.Next(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return nil, nil
	}
	return recs, err
}

// build makes the batch of the gathered records.
func (p *pipeline) build(b *builder) error {
	c := p.core
	b.reset()
	b.committed = make(chan struct{})
	c.begin()
	p.loads.absorb(c)
	recs := p.recs.pending()
	recs = recs[:min(len(recs), p.narrow.limit(p.st.NextOffset, p.w.opts.MaxBatchRecords))]
	if err := p.read(c.needs(recs)); err != nil {
		return err
	}
	if err := p.readOriginals(c.originals()); err != nil {
		return err
	}
	n := 0
	for n < len(recs) && len(c.touched) < p.w.opts.MaxTenants && !p.partial.full(b) {
		if err := c.build(b, &recs[n]); err != nil {
			return &batchError{recs[0].offset, recs[n].offset, err}
		}
		n++
	}
	c.finish(b)
	if err := p.partial.same(&b.batch); err != nil {
		return err
	}
	p.partial = nil
	c.remember()
	batch := &b.batch
	batch.Topic, batch.Partition = c.topic, c.partition
	batch.Epoch, batch.Number = p.st.Epoch, c.number
	batch.FirstOffset, batch.NextOffset = p.st.NextOffset, recs[n-1].offset+1
	p.st.LastBatch, p.st.NextOffset = batch.Number, batch.NextOffset
	b.stats = c.stats
	p.recs.drop(n)
	return nil
}

// read fetches what the records need from the store.
func (p *pipeline) read(tenants []string, refs []KeyRef) error {
	var heads []Head
	var known []KnownKey
	var err error
	if len(tenants) > 0 {
		if heads, err = p.w.store.Heads(p.work, tenants); err != nil {
			return fmt.Errorf("read heads: %w", err)
		}
	}
	if len(refs) > 0 {
		if known, err = p.w.store.Known(p.work, refs); err != nil {
			return fmt.Errorf("read known ids: %w", err)
		}
	}
	p.core.learn(heads, known)
	p.loads.want(p.core, heads)
	return nil
}

// readOriginals fetches what the batch's corrections are about, when there are
// any: in one round trip, after the commit of the batch before if that one has a
// part in it.
func (p *pipeline) readOriginals(refs []KeyRef, afterCommit bool) error {
	if len(refs) == 0 {
		return nil
	}
	if afterCommit {
		select {
		case <-p.handed:
		case <-p.work.Done():
			return context.Cause(p.work)
		}
	}
	found, err := p.w.store.Originals(p.work, refs)
	if err != nil {
		return fmt.Errorf("read originals of corrections: %w", err)
	}
	p.core.learnOriginals(found)
	return nil
}

// commitLoop commits batches in order.
func (p *pipeline) commitLoop() {
	defer close(p.publish)
	for b := range p.commits {
		b.batch.Published = p.published.Load()
		err := p.w.store.Commit(p.work, &b.batch)
		p.w.turns.release(p.core.partition)
		if err != nil {
			p.fail(&batchError{b.batch.FirstOffset, b.batch.NextOffset - 1, fmt.Errorf("commit batch %d: %w", b.batch.Number, err)})
			return
		}
		close(b.committed)
		p.noteCommitted(b)
		if p.recovery != nil && p.recovery.committed(&b.batch) {
			p.fail(errRecovered)
			return
		}
		select {
		case p.publish <- b:
		case <-p.work.Done():
			return
		}
	}
}

func (p *pipeline) noteCommitted(b *builder) {
	p.stats.committed(&b.batch)
	p.w.stats.add(&b.batch, &b.stats)
	p.src.CommitForLag(b.batch.NextOffset)
}

// publishLoop publishes batches in order.
func (p *pipeline) publishLoop() {
	for b := range p.publish {
		if p.recovery != nil {
			p.w.builders.put(b) // published when the partition is assigned after recovery
			<-p.room
			continue
		}
		if err := p.w.publish(p.work, &b.batch, &b.frames); err != nil {
			p.fail(fmt.Errorf("publish batch %d: %w", b.batch.Number, err))
			return
		}
		p.published.Store(b.batch.Number)
		p.stats.published(&b.batch)
		p.w.builders.put(b)
		<-p.room
	}
}

// note tells the store what is published, when no commit has carried it. It is
// only a cursor: a failure costs publishing a batch again.
func (p *pipeline) note() {
	n := p.published.Load()
	if n <= p.noted {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.work), 2*time.Second)
	defer cancel()
	if p.w.store.Published(ctx, p.core.partition, p.st.Epoch, n) == nil {
		p.noted = n
	}
}

// narrowing makes batches smaller where one was refused, until the refusal names
// a single record and everything before it is ledgered.
type narrowing struct {
	records int   // of one batch
	until   int64 // offset from which batches are whole again
}

// limit is how many records the batch at the offset may have.
func (n narrowing) limit(offset int64, whole int) int {
	if offset < n.until {
		return n.records
	}
	return whole
}

// narrower halves the batches up to the last record that the error names. It is
// false when the error names a single record.
func (n *narrowing) narrower(err error) bool {
	var be *batchError
	if !errors.As(err, &be) || be.first == be.last {
		return false
	}
	n.records, n.until = int(max(1, (be.last-be.first+1)/2)), be.last+1
	return true
}

// recordBuffer copies records, because the reader reuses their memory.
type recordBuffer struct {
	recs  []record
	times []int64 // of recs, unix milliseconds
	done  int     // of recs
	pool  *arena.Pool
	arena arena.Arena
}

func newRecordBuffer(pool *arena.Pool) recordBuffer {
	return recordBuffer{pool: pool, arena: arena.New(pool)}
}

// pending are the records that no batch holds yet.
func (r *recordBuffer) pending() []record { return r.recs[r.done:] }

// oldest is the time of the first pending record: the broker's or the edge's,
// which decides nothing but who commits first.
func (r *recordBuffer) oldest() int64 { return r.times[r.done] }

// drop takes the first n pending records away. When none is left, the memory
// is given back; while some are always left, they are moved from time to time.
func (r *recordBuffer) drop(n int) {
	switch r.done += n; {
	case r.done == len(r.recs):
		r.recs, r.times, r.done = r.recs[:0], r.times[:0], 0
		r.arena.Reset()
	case r.done > len(r.recs)/2:
		fresh := newRecordBuffer(r.pool)
		for i, left := range r.recs[r.done:] {
			fresh.copy(left.offset, r.times[r.done+i], left.key, left.value)
		}
		r.arena.Reset()
		*r = fresh
	}
}

func (r *recordBuffer) add(recs []kafka.Record) {
	for i := range recs {
		r.copy(recs[i].Offset, recs[i].TimestampMs, recs[i].Key, recs[i].Value)
	}
}

func (r *recordBuffer) copy(offset, at int64, key, value []byte) {
	b := append(append(r.arena.Open(len(key)+len(value)), key...), value...)
	b = r.arena.Close(b)
	r.times = append(r.times, at)
	r.recs = append(r.recs, record{offset: offset, key: b[:len(key):len(key)], value: b[len(key):]})
}
