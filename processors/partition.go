package processors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Reader reads the records of one partition of `entries` in offset order.
type Reader interface {
	// Next waits for at least one record. The slice and the memory behind it
	// are overwritten by the next call.
	Next(ctx context.Context) ([]kafka.Record, error)
	// Offset is the position after everything that Next has returned.
	Offset() int64
	Topic() kafka.TopicInfo
	Close()
}

// Source is one assigned partition of `entries`.
type Source interface {
	// Open starts reading at a position.
	Open(ctx context.Context, at kafka.Position) (Reader, error)
	// Start is the offset of the oldest record that the log still holds.
	Start(ctx context.Context) (int64, error)
	// CommitForLag notes the place for dashboards. Nothing reads it back.
	CommitForLag(next int64)
}

// partition is one assigned partition from its admission to its release. The
// partition's goroutine fills ready; the storer takes from it.
type partition struct {
	id    int32
	r     *Runner
	src   Source
	log   *slog.Logger
	stats *partitionStats
	// fail ends the partition's goroutine with a cause.
	fail context.CancelCauseFunc
	// gone says that the partition's goroutine has ended: nothing more of it is
	// stored.
	gone atomic.Bool

	// The partition's goroutine only.
	seq       *sequence
	frame     chain.Frame
	ahead     chain.Frame // of records that are looked at before their turn
	stuckAt   int64       // newest complete commit when the ledger was seen ahead
	stuckFrom time.Time

	mu    sync.Mutex // protects ready
	ready []*commit  // complete, in order

	// The storer's only.
	state    *state
	stored   Checkpoint
	topic    atomic.Pointer[kafka.TopicID]
	snapshot time.Time // when the newest was kept
	saved    int64     // its commit
}

// read takes what the log holds until ctx ends or something fails.
func (p *partition) read(ctx context.Context, reader Reader) error {
	for {
		recs, err := next(ctx, reader, p.r.opts.GapWait/4)
		if err != nil {
			return err
		}
		for i := range recs {
			if err := p.take(ctx, recs[i:]); err != nil {
				return err
			}
		}
		if len(recs) == 0 {
			if err := p.idle(ctx, reader.Offset()); err != nil {
				return err
			}
		}
	}
}

// next waits for records, at most for the given time.
func next(ctx context.Context, reader Reader, wait time.Duration) ([]kafka.Record, error) {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	recs, err := reader.Next(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil && !kafka.Halts(err) {
		return nil, nil
	}
	return recs, err
}

// take takes the first of the records.
func (p *partition) take(ctx context.Context, recs []kafka.Record) error {
	rec := &recs[0]
	if err := p.frame.Decode(rec.Value); err != nil || p.frame.Partition != p.id {
		p.bad(ctx, rec.Offset, err)
		return nil
	}
	for {
		switch p.seq.place(&p.frame) {
		case placeSeen:
			p.stats.seen.Add(1)
			return nil
		case placeNext:
			return p.accept(ctx, recs)
		}
		// What stands before it is in the ledger: commits are published only
		// after they are durable. If the ledger does not have it, it was
		// restored and will have it, or the frame is forged: the frame is left
		// out, and the ledger's own number tells when there is something to read.
		err := p.backfill(ctx, max(p.frame.Batch-1, p.seq.batch), rec.Offset)
		if errors.Is(err, ErrLedgerBehind) {
			p.bad(ctx, rec.Offset, err)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// accept takes the first of the records, which is the next one.
func (p *partition) accept(ctx context.Context, recs []kafka.Record) error {
	f := &p.frame
	if f.Index == 0 {
		if err := p.r.budget.wait(ctx); err != nil {
			return err
		}
	}
	if p.seq.heads[f.Tenant] == nil {
		if err := p.learn(ctx, recs); err != nil {
			return err
		}
	}
	complete, err := p.seq.accept(f, recs[0].Value)
	if err != nil {
		// The ledger has the true one: it is read when the next frame, or the
		// ledger's own number, shows the gap.
		p.bad(ctx, recs[0].Offset, err)
		return nil
	}
	if complete {
		p.push(recs[0].Offset + 1)
	}
	return nil
}

// bad notes a record that is no good frame.
func (p *partition) bad(ctx context.Context, offset int64, err error) {
	p.stats.bad.Add(1)
	if err == nil {
		err = errors.New("frame of another partition")
	}
	p.log.LogAttrs(ctx, slog.LevelWarn, "record in entries is not usable; reading the ledger in its place",
		slog.Int64("offset", offset), slog.Any("err", err))
}

// learn reads how far the chains of tenants that appear for the first time are
// stored, for all records in hand at once. Nothing of such a tenant is pending,
// so what is stored is what came before.
func (p *partition) learn(ctx context.Context, recs []kafka.Record) error {
	unknown := map[string]struct{}{}
	for i := range recs {
		if err := p.ahead.Decode(recs[i].Value); err != nil {
			continue // noted when its turn comes
		}
		if p.seq.heads[p.ahead.Tenant] == nil {
			if _, ok := unknown[p.ahead.Tenant]; !ok {
				unknown[strings.Clone(p.ahead.Tenant)] = struct{}{}
			}
		}
	}
	return p.learnTenants(ctx, unknown)
}

// maxTenantsPerRead bounds the tenants of one transaction.
const maxTenantsPerRead = 2000

func (p *partition) learnTenants(ctx context.Context, unknown map[string]struct{}) error {
	ids := make([]string, 0, len(unknown))
	for id := range unknown {
		ids = append(ids, id)
	}
	for len(ids) > 0 {
		n := min(len(ids), maxTenantsPerRead)
		covered, err := p.r.store.Covered(ctx, ids[:n])
		if err != nil {
			return fmt.Errorf("read coverage: %w", err)
		}
		for _, id := range ids[:n] {
			p.seq.learn(id, 0)
		}
		for i := range covered {
			p.seq.learn(covered[i].Tenant, covered[i].Seq)
		}
		ids = ids[n:]
	}
	return nil
}

// push hands the commit in hand to the storer. resume is where reading goes on
// after it.
func (p *partition) push(resume int64) {
	c := p.seq.cur
	c.resume = resume
	p.seq.cur = p.r.free.get()
	rows := int64(c.rows)
	p.r.budget.add(c.bytes)
	p.mu.Lock()
	p.ready = append(p.ready, c)
	p.mu.Unlock()
	p.stats.pending.Add(rows)
	p.r.noteReady(rows)
}

// idle looks whether the ledger has commits that `entries` does not bring:
// empty ones, which are never published, or ones that were lost there.
func (p *partition) idle(ctx context.Context, offset int64) error {
	last := p.r.lastCommit(p.id)
	if last <= p.seq.done() {
		p.stuckFrom = time.Time{}
		return nil
	}
	if p.stuckFrom.IsZero() || p.stuckAt != p.seq.done() {
		p.stuckFrom, p.stuckAt = time.Now(), p.seq.done()
		return nil
	}
	if time.Since(p.stuckFrom) < p.r.opts.GapWait {
		return nil
	}
	if err := p.backfill(ctx, last, offset); !errors.Is(err, ErrLedgerBehind) {
		return err
	}
	return nil // it was restored meanwhile; its number will come again
}

// backfill reads commits up to the given one from the ledger. It waits while
// the ledger cannot be read, and fails when it does not have them.
func (p *partition) backfill(ctx context.Context, to, offset int64) error {
	p.seq.abandon()
	from := p.seq.batch
	p.log.LogAttrs(ctx, slog.LevelDebug, "reading commits from the ledger", slog.Int64("from", from), slog.Int64("to", to))
	backoff := p.r.opts.RetryMin
	for {
		err := p.readLedger(ctx, to, offset)
		var gap *errDiscontinuity
		switch {
		case err == nil:
			if p.seq.done() < to {
				// The rest is empty.
				p.seq.skip(to + 1)
				p.seq.cur.number = to
				p.push(offset)
			}
			p.stats.backfilled.Add(to - from + 1)
			return nil
		case Halts(err), errors.Is(err, ErrLedgerBehind), errors.As(err, &gap), ctx.Err() != nil:
			return fmt.Errorf("read commits %d to %d from the ledger: %w", p.seq.batch, to, err)
		}
		p.log.LogAttrs(ctx, slog.LevelWarn, "the ledger cannot be read", slog.Any("err", err))
		p.seq.abandon()
		if !sleep(ctx, backoff) {
			return ctx.Err()
		}
		backoff = min(2*backoff, p.r.opts.RetryMax)
	}
}

// readLedger is one try of backfill. Few partitions read the ledger at once:
// it serves others, too.
func (p *partition) readLedger(ctx context.Context, to, offset int64) error {
	select {
	case p.r.backfills <- struct{}{}:
		defer func() { <-p.r.backfills }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.r.ledger.Frames(ctx, p.id, p.seq.batch, to, func(f *chain.Frame) error { return p.fill(ctx, f, offset) })
}

// fill takes a frame that was read from the ledger.
func (p *partition) fill(ctx context.Context, f *chain.Frame, offset int64) error {
	if f.Index == 0 {
		p.seq.skip(f.Batch)
		if err := p.r.budget.wait(ctx); err != nil {
			return err
		}
	}
	if p.seq.heads[f.Tenant] == nil {
		if err := p.learnTenants(ctx, map[string]struct{}{strings.Clone(f.Tenant): {}}); err != nil {
			return err
		}
	}
	if p.seq.place(f) != placeNext {
		return fmt.Errorf("%w: partition %d commit %d entry %d is not the next", ErrMissing, p.id, f.Batch, f.Index)
	}
	complete, err := p.seq.accept(f, nil)
	if complete {
		p.push(offset)
	}
	return err
}

// takeReady takes of what is complete as much as there is room for, and a
// single commit without regard to room when first is true.
func (p *partition) takeReady(room *room, first bool) []*commit {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, rows := 0, 0
	for n < len(p.ready) {
		c := p.ready[n]
		if (!first || n > 0) && (c.rows > room.rows || len(c.list) > room.frames) {
			break
		}
		room.rows, room.frames = room.rows-c.rows, room.frames-len(c.list)
		rows += c.rows
		n++
	}
	p.r.readyRows.Add(-int64(rows))
	taken := append([]*commit(nil), p.ready[:n]...)
	p.ready = append(p.ready[:0], p.ready[n:]...)
	return taken
}

// room is what a plan may still take.
type room struct{ rows, frames int }

// drop forgets what is complete and not taken.
func (p *partition) drop() {
	p.mu.Lock()
	left := p.ready
	p.ready = nil
	p.mu.Unlock()
	rows := 0
	for _, c := range left {
		rows += c.rows
	}
	p.r.readyRows.Add(-int64(rows))
	p.r.recycle(p, left)
}

// budget bounds the bytes of complete commits in memory.
type budget struct {
	max  int64
	used atomic.Int64
	mu   sync.Mutex
	room chan struct{} // closed when something was given back
}

func newBudget(maxBytes int64) *budget { return &budget{max: maxBytes, room: make(chan struct{})} }

// wait waits until another commit may begin.
func (b *budget) wait(ctx context.Context) error {
	for b.used.Load() >= b.max {
		b.mu.Lock()
		room := b.room
		b.mu.Unlock()
		if b.used.Load() < b.max {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (b *budget) add(n int64) { b.used.Add(n) }

func (b *budget) release(n int64) {
	b.used.Add(-n)
	b.mu.Lock()
	close(b.room)
	b.room = make(chan struct{})
	b.mu.Unlock()
}

// freeList keeps stored commits for their next use; the memory of their frames
// goes back to the pool.
type freeList struct {
	chunks *arena.Pool

	mu   sync.Mutex // protects list
	list []*commit
}

// Bounds of what waits for its next use; what is beyond is left to the
// collector.
const (
	maxFreeBytes   = 32 << 20
	maxFreeCommits = 64
)

func (l *freeList) get() *commit {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.list)
	if n == 0 {
		return &commit{arena: arena.New(l.chunks)}
	}
	c := l.list[n-1]
	l.list = l.list[:n-1]
	return c
}

func (l *freeList) put(c *commit) {
	c.reset()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) < maxFreeCommits {
		l.list = append(l.list, c)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
