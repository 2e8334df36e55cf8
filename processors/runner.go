package processors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/kafka"
)

// ConsumerGroup shares the partitions of `entries` out between processes. Its
// committed offsets are for dashboards; the truth is in the Store.
const ConsumerGroup = "tallystick-processors"

// releaseTime is how long a partition that was taken away, or a process that is
// asked to stop, waits for the plan in hand. A plan that takes longer stays
// open and is settled by the next owner.
const releaseTime = 10 * time.Second

// watchInterval is how often the ledger is asked for its newest commits.
const watchInterval = time.Second

// maxBackfills is how many partitions read the ledger at once.
const maxBackfills = 2

// Parts are what a Runner works with. All are needed but Log.
type Parts struct {
	Ledger     Ledger
	Store      Store
	Snapshots  Snapshots
	Sink       Sink
	Processors Factory
	Log        *slog.Logger
}

// Runner runs the partitions of `entries` that are assigned to this process.
type Runner struct {
	ledger    Ledger
	store     Store
	snapshots Snapshots
	factory   Factory
	opts      Options
	log       *slog.Logger

	storer    *storer
	budget    *budget
	free      freeList
	readyRows atomic.Int64
	wake      chan struct{} // cap 1: enough is complete for a plan
	backfills chan struct{}
	stats     counters

	mu         sync.Mutex // protects all below
	last       map[int32]int64
	partitions map[int32]*partitionStats
}

// New makes a Runner.
func New(parts Parts, opts Options) (*Runner, error) {
	if parts.Ledger == nil || parts.Store == nil || parts.Snapshots == nil || parts.Sink == nil || parts.Processors == nil {
		return nil, errors.New("processors: ledger, store, snapshots, sink and processors are needed")
	}
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if parts.Log == nil {
		parts.Log = slog.New(slog.DiscardHandler)
	}
	r := &Runner{
		ledger: parts.Ledger, store: parts.Store, snapshots: parts.Snapshots, factory: parts.Processors,
		opts: opts.withDefaults(), log: parts.Log,
		wake: make(chan struct{}, 1), backfills: make(chan struct{}, maxBackfills),
		last: make(map[int32]int64), partitions: make(map[int32]*partitionStats),
	}
	r.budget = newBudget(r.opts.MaxPendingBytes)
	r.free.chunks = arena.NewPool(maxFreeBytes)
	r.storer = &storer{
		r: r, log: r.log, sink: parts.Sink, requests: make(chan func(context.Context), 64),
		members: make(map[int32]*partition), settled: make(map[int32]*state),
	}
	return r, nil
}

// Run processes all partitions that this process is assigned until ctx ends,
// and returns when the plan in hand is confirmed, or left open for the next
// start. direct takes all partitions without a consumer group, for a process
// that is alone. A partition that halts stays assigned and silent; Stats says
// which and why. Run may be called once.
func (r *Runner) Run(ctx context.Context, cfg kafka.Config, direct bool) error {
	topic := cfg.Topics().Entries
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return fmt.Errorf("processors admin: %w", err)
	}
	defer admin.Close()
	opts := kafka.ConsumerOptions{
		Topic: topic, Group: ConsumerGroup, Direct: direct, HandOver: 2 * releaseTime,
		Reader: kafka.ReaderOptions{MaxFetchBytes: 1 << 20},
	}
	c, err := kafka.NewConsumer(cfg, opts, func(ctx context.Context, p *kafka.Partition) error {
		return r.RunPartition(ctx, p.ID, partitionSource{p, admin, topic})
	})
	if err != nil {
		return fmt.Errorf("processors consumer: %w", err)
	}
	defer r.Start(ctx)()
	return c.Run(ctx)
}

// Start begins to make plans of what RunPartition brings. The returned function
// ends it, after every RunPartition has returned.
func (r *Runner) Start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	parts.Go(func() { r.storer.run(ctx) })
	parts.Go(func() { r.watch(ctx) })
	return func() {
		cancel()
		parts.Wait()
	}
}

// RunPartition processes one partition until ctx ends; then it returns nil,
// after the plan in hand. It retries whatever time can mend, for ever and with
// backoff, beginning again at the checkpoint. A non-nil error means that the
// partition must halt.
func (r *Runner) RunPartition(ctx context.Context, id int32, src Source) error {
	log := r.log.With(slog.Int64("partition", int64(id)))
	stats := r.partitionStats(id)
	backoff := r.opts.RetryMin
	var before *errDiscontinuity
	for {
		started := time.Now()
		err := r.runOnce(ctx, &partition{id: id, r: r, src: src, log: log, stats: stats})
		if ctx.Err() != nil {
			return nil
		}
		var gap *errDiscontinuity
		if errors.As(err, &gap) {
			if before != nil && *before == *gap {
				err = fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			before = gap
		}
		if Halts(err) {
			stats.halt(err)
			return fmt.Errorf("partition %d halted: %w", id, err)
		}
		if time.Since(started) > 4*r.opts.RetryMax {
			backoff = r.opts.RetryMin // it ran well in between
		}
		log.LogAttrs(ctx, slog.LevelWarn, "processors' partition starts again", slog.Any("err", err), slog.Duration("backoff", backoff))
		if !sleep(ctx, backoff) {
			return nil
		}
		backoff = min(2*backoff, r.opts.RetryMax)
	}
}

// runOnce takes the partition over and processes it until something fails.
func (r *Runner) runOnce(ctx context.Context, p *partition) error {
	ctx, p.fail = context.WithCancelCause(ctx)
	defer p.fail(nil)
	defer r.release(ctx, p)
	if err := r.onStorer(ctx, func(work context.Context) error { return r.storer.admit(work, p) }); err != nil {
		return fmt.Errorf("admit: %w", err)
	}
	p.log.LogAttrs(ctx, slog.LevelDebug, "processors' partition admitted",
		slog.Int64("commit", p.seq.done()), slog.Int64("offset", p.stored.Resume.Offset))
	reader, err := p.open(ctx, p.stored.Resume)
	if err != nil {
		return fmt.Errorf("open partition: %w", err)
	}
	defer reader.Close()
	id := reader.Topic().ID
	p.topic.Store(&id)
	err = p.read(ctx, reader)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// open opens the log where the checkpoint says. When that place is gone or
// means nothing any more, the whole log is read: what is known is dropped, and
// what is missing comes from the ledger.
func (p *partition) open(ctx context.Context, at kafka.Position) (Reader, error) {
	reader, err := p.src.Open(ctx, at)
	if err == nil || !kafka.Halts(err) {
		return reader, err
	}
	p.log.LogAttrs(ctx, slog.LevelWarn, "entries cannot be read from the checkpoint on; reading what there is", slog.Any("err", err))
	start, err := p.src.Start(ctx)
	if err != nil {
		return nil, err
	}
	return p.src.Open(ctx, kafka.Position{Offset: start})
}

// onStorer runs fn on the storer's goroutine and waits for it. When ctx ends
// first, fn may still run.
func (r *Runner) onStorer(ctx context.Context, fn func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case r.storer.requests <- func(work context.Context) { done <- fn(work) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// release gives the partition back to the storer, and waits for the plan that
// it may be part of. The storer forgets a partition that is gone in any case.
func (r *Runner) release(ctx context.Context, p *partition) {
	defer func() {
		p.gone.Store(true)
		p.drop()
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	err := r.onStorer(ctx, func(work context.Context) error {
		r.storer.release(work, p)
		return nil
	})
	if err != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "released before its plan was stored; the next owner settles it")
	}
}

// noteReady wakes the storer when there is enough for a plan.
func (r *Runner) noteReady(rows int64) {
	if r.readyRows.Add(rows) < int64(r.opts.FlushRows) && r.budget.used.Load() < r.budget.max/2 {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// recycle gives the memory of commits back.
func (r *Runner) recycle(p *partition, commits []*commit) {
	var bytes, rows int64
	for _, c := range commits {
		bytes, rows = bytes+c.bytes, rows+int64(c.rows)
		r.free.put(c)
	}
	p.stats.pending.Add(-rows)
	r.budget.release(bytes)
}

// watch asks the ledger for its newest commits, for lag and for commits that
// never come.
func (r *Runner) watch(ctx context.Context) {
	for {
		last, err := r.ledger.LastCommits(ctx)
		if err == nil {
			r.mu.Lock()
			r.last = last
			r.mu.Unlock()
		}
		r.stats.measure(time.Now(), r.entries())
		if !sleep(ctx, watchInterval) {
			return
		}
	}
}

func (r *Runner) lastCommit(partition int32) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[partition]
}

// partitionSource is a Kafka partition as a Source.
type partitionSource struct {
	*kafka.Partition
	admin *kafka.Admin
	topic string
}

// Open starts reading the partition.
func (s partitionSource) Open(ctx context.Context, at kafka.Position) (Reader, error) {
	return s.Partition.Open(ctx, at)
}

// Start is the offset of the oldest record.
func (s partitionSource) Start(ctx context.Context) (int64, error) {
	starts, err := s.admin.StartOffsets(ctx, s.topic)
	if err != nil {
		return 0, err
	}
	if int(s.ID) >= len(starts) {
		return 0, kafka.ErrUnknownPartition
	}
	return starts[s.ID], nil
}
