package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/kafka"
)

// Reader reads the records of one partition in offset order.
type Reader interface {
	// Next waits for at least one record. The slice and the memory behind it
	// are overwritten by the next call.
	Next(ctx context.Context) ([]kafka.Record, error)
	Close()
}

// Source opens a partition of `events` at an offset. kafka.Partition is one.
type Source interface {
	Open(ctx context.Context, at kafka.Position) (Reader, error)
	// CommitForLag notes the place for dashboards. Nothing reads it back.
	CommitForLag(next int64)
}

// Publisher writes records to Kafka and waits for their acknowledgement.
type Publisher interface {
	ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error
}

// Options of a Writer.
type Options struct {
	// MaxBatchRecords bounds one commit; default 10,000.
	MaxBatchRecords int
	// Linger is how long a batch waits for more records; default 25 ms.
	Linger time.Duration
	// MaxTenants bounds the tenants of one commit, each of which takes a lock;
	// default 2,000.
	MaxTenants int
	// Commits bounds the batches that are built and committed at once; default
	// 2. While a partition waits for its turn its batch grows.
	Commits int
	// RetryMin and RetryMax bound the backoff after a transient failure;
	// defaults 50 ms and 5 s.
	RetryMin, RetryMax time.Duration
	// Floor, when set, is asked at each assignment of a partition; a chain below
	// its published checkpoint halts it.
	Floor Floor
	// Recover lets a partition below its checkpoints be replayed, with Recovery's
	// help, in place of halting.
	Recover  bool
	Recovery Recovery
	// Tail, when set, is where such a replay begins: with the batches that are in
	// `entries` already.
	Tail Tail
}

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.MaxBatchRecords, 10_000)
	def(&o.MaxTenants, 2_000)
	def(&o.Commits, 2)
	defDuration := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	defDuration(&o.Linger, 25*time.Millisecond)
	defDuration(&o.RetryMin, 50*time.Millisecond)
	defDuration(&o.RetryMax, 5*time.Second)
	return o
}

// Writer runs the partitions of `events` that are assigned to this process.
type Writer struct {
	store  Store
	keys   Keys
	pub    Publisher
	topics kafka.Topics
	opts   Options
	log    *slog.Logger
	turns  *turns // of partitions that build and commit
	stats  Stats

	builders builderPool
}

// NewWriter makes a Writer.
func NewWriter(store Store, keys Keys, pub Publisher, topics kafka.Topics, opts Options, log *slog.Logger) *Writer {
	opts = opts.withDefaults()
	w := &Writer{store: store, keys: keys, pub: pub, topics: topics, opts: opts, log: log}
	w.turns = newTurns(opts.Commits)
	w.builders.chunks = arena.NewPool(maxChunkBytes)
	w.stats.partitions = make(map[int32]*PartitionStats)
	return w
}

// Stats is what the writer has done since it was made.
func (w *Writer) Stats() *Stats { return &w.stats }

// RunPartition writes one partition until ctx ends: then the batch in hand is
// finished and published before it returns nil. It retries whatever time can
// mend, for ever and with backoff, starting again from the state in the store.
// A non-nil error means that the partition must halt: going on would need
// something only an operator can decide.
func (w *Writer) RunPartition(ctx context.Context, topic Topic, partition int32, src Source) error {
	log := w.log.With(slog.Int64("partition", int64(partition)))
	backoff := w.opts.RetryMin
	var narrow narrowing
	exists := 0 // how often in a row a commit met rows that were there already
	for {
		started := time.Now()
		err := w.runOnce(ctx, topic, partition, src, narrow, log)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errRecovered) {
			log.LogAttrs(ctx, slog.LevelInfo, "ledger partition has reached its checkpoints")
			continue
		}
		if exists++; !errors.Is(err, ErrExists) {
			exists = 0
		} else if exists >= maxExists {
			err = fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if Halts(err) {
			if narrow.narrower(err) {
				continue // with smaller batches, to name the one record
			}
			w.stats.partition(partition).halt(err)
			return fmt.Errorf("partition %d halted: %w", partition, err)
		}
		if time.Since(started) > 4*w.opts.RetryMax {
			backoff = w.opts.RetryMin // it ran well in between
		}
		log.LogAttrs(ctx, slog.LevelWarn, "ledger partition starts again", slog.Any("err", err), slog.Duration("backoff", backoff))
		if !sleep(ctx, backoff) {
			return nil
		}
		backoff = min(2*backoff, w.opts.RetryMax)
	}
}

// maxExists is how often in a row a batch may meet rows that exist already. One
// is what a writer sees that took over while the last owner's commit was under way.
const maxExists = 5

// Halts reports whether the error is one that waiting cannot mend.
func Halts(err error) bool {
	return kafka.Halts(err) || errors.Is(err, ErrTopicChanged) || errors.Is(err, ErrRefused) || errors.Is(err, ErrRuleVersion) || errors.Is(err, ErrPosition) ||
		errors.Is(err, ErrBelowCheckpoint) || errors.Is(err, ErrForked) || errors.Is(err, ErrAltered) || errors.Is(err, ErrMissingRange)
}

// runOnce takes the partition over and writes it until something fails.
func (w *Writer) runOnce(ctx context.Context, topic Topic, partition int32, src Source, narrow narrowing, log *slog.Logger) error {
	st, err := w.store.Assign(ctx, topic, partition)
	if err != nil {
		return fmt.Errorf("assign: %w", err)
	}
	log.LogAttrs(ctx, slog.LevelDebug, "ledger partition assigned", slog.Int64("epoch", st.Epoch),
		slog.Int64("offset", st.NextOffset), slog.Int64("batch", st.LastBatch), slog.Int64("published", st.PublishedBatch))
	rec, err := w.standing(ctx, topic, partition, &st, log)
	if err != nil {
		return err
	}
	stats := w.stats.partition(partition)
	stats.recovering.Store(rec != nil)
	var partial *partialBatch
	if rec != nil && w.opts.Tail != nil {
		if partial, err = w.importTail(ctx, topic, partition, src, &st, rec, log); err != nil {
			return fmt.Errorf("import entries: %w", err)
		}
		if partial == nil && rec.complete() {
			return errRecovered
		}
		if st, err = w.store.Assign(ctx, topic, partition); err != nil {
			return fmt.Errorf("assign: %w", err)
		}
	}
	stats.assigned(&st)
	noted := st.PublishedBatch
	if rec == nil {
		err = w.republish(ctx, partition, &st)
	}
	if err != nil {
		return fmt.Errorf("publish again: %w", err)
	}
	stats.publishedBatch.Store(st.PublishedBatch)
	core, err := newCore(topic, partition, w.keys, st)
	if err != nil {
		return err
	}
	reader, err := src.Open(ctx, kafka.Position{Offset: st.NextOffset, Topic: topic.ID})
	if err != nil {
		return fmt.Errorf("open partition: %w", err)
	}
	defer reader.Close()
	p := newPipeline(ctx, w, core, st, src, stats)
	p.noted, p.narrow, p.recovery, p.partial = noted, narrow, rec, partial
	return p.run(ctx, reader)
}

// republish sends again what was committed and perhaps not published. Readers
// drop what they have.
func (w *Writer) republish(ctx context.Context, partition int32, st *State) error {
	// Not given back on failure: the producer may still be sending from it.
	frames := frameBuffer{arena: arena.New(w.builders.chunks)}
	for n := st.PublishedBatch + 1; n <= st.LastBatch; n++ {
		b, err := w.store.Batch(ctx, partition, n)
		if err != nil {
			return err
		}
		if err := w.publish(ctx, b, &frames); err != nil {
			return err
		}
		st.PublishedBatch = n
	}
	frames.reset()
	return nil
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
