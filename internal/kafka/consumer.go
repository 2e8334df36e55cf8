package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Defaults of [ConsumerOptions].
const (
	DefaultSessionTimeout = 10 * time.Second
	DefaultHandOver       = 20 * time.Second
)

// How old the offsets on a lag dashboard may be, and how long a commit may take.
const (
	lagCommitInterval = time.Second
	lagCommitTimeout  = 2 * time.Second
)

// ConsumerOptions say which partitions a [Consumer] runs.
type ConsumerOptions struct {
	// Topic is the full topic name.
	Topic string
	// Group is the consumer group: it shares the partitions out between
	// processes, and dashboards read lag under its name.
	Group string
	// Direct takes every partition without joining the group: for one process
	// that runs all hops. Two direct consumers both run every partition, and
	// only the fence in Postgres keeps them apart.
	Direct bool
	// SessionTimeout after which a silent process loses its partitions;
	// default 10 s. HandOver is how long a rebalance waits for the goroutines
	// of revoked partitions; default 20 s.
	SessionTimeout time.Duration
	HandOver       time.Duration
	// Reader bounds the readers that [Partition.Open] makes.
	Reader ReaderOptions
	// OnHalt, if set, is called once when a partition's function returns while
	// the partition is still assigned.
	OnHalt func(partition int32, err error)
}

func (o ConsumerOptions) withDefaults() ConsumerOptions {
	if o.SessionTimeout == 0 {
		o.SessionTimeout = DefaultSessionTimeout
	}
	if o.HandOver == 0 {
		o.HandOver = DefaultHandOver
	}
	return o
}

// Validate reports every wrong field at once, each by its name.
func (o ConsumerOptions) Validate() error {
	var errs []error
	if o.Topic == "" {
		errs = append(errs, errors.New("kafka.consumer.topic: is needed"))
	}
	if o.Group == "" {
		errs = append(errs, errors.New("kafka.consumer.group: is needed"))
	}
	return errors.Join(errs...)
}

// PartitionFunc works on one partition until its context ends, which is when
// the partition is revoked or the consumer stops: then it must finish the batch
// in hand and return soon. It reads its position from where the data lives
// (fencing earlier owners there first), opens a [Reader] with it, and retries
// whatever is transient by itself.
//
// A return before that halts the partition: it stays assigned and silent until
// the process is restarted, because another process would meet the same record.
// Other partitions go on.
type PartitionFunc func(ctx context.Context, p *Partition) error

// Partition is one assigned partition, given to a [PartitionFunc].
type Partition struct {
	// ID is the partition's number.
	ID int32
	c  *Consumer
}

// Open starts reading the partition; see [OpenReader]. The caller closes it.
func (p *Partition) Open(ctx context.Context, at Position) (*Reader, error) {
	return OpenReader(ctx, p.c.cfg, p.c.opts.Topic, p.ID, at, p.c.opts.Reader)
}

// CommitForLag is [Consumer.CommitForLag] of this partition.
func (p *Partition) CommitForLag(next int64) { p.c.CommitForLag(p.ID, next) }

// Consumer runs one goroutine per assigned partition of one topic.
//
// In a group, a partition moves only after its goroutine has returned: the old
// owner gives it up in one rebalance, the new one gets it in the next
// (cooperative-sticky). A process that is cut off or stopped for longer than
// the session timeout may still be at work when the next owner starts; that is
// what the epoch fence in Postgres is for.
type Consumer struct {
	cfg  Config
	opts ConsumerOptions
	run  PartitionFunc
	log  *slog.Logger

	mu      sync.Mutex // protects all below
	running map[int32]*worker
	last    map[int32]*worker // the latest of each partition, also when it was revoked
	halted  map[int32]error
	lag     map[int32]int64
}

// worker is the goroutine of one assigned partition.
type worker struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// NewConsumer checks the configuration; it connects in [Consumer.Run].
func NewConsumer(cfg Config, opts ConsumerOptions, run PartitionFunc) (*Consumer, error) {
	if err := errors.Join(cfg.Validate(), opts.Validate()); err != nil {
		return nil, err
	}
	return &Consumer{
		cfg: cfg, opts: opts.withDefaults(), run: run,
		log:     orDiscard(cfg.Logger).With(slog.String("topic", opts.Topic), slog.String("group", opts.Group)),
		running: make(map[int32]*worker), last: make(map[int32]*worker), halted: make(map[int32]error), lag: make(map[int32]int64),
	}, nil
}

// Assigned lists the partitions that are ours now, halted ones included.
func (c *Consumer) Assigned() []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.running))
}

// Halted gives the error of each partition whose function returned early.
func (c *Consumer) Halted() map[int32]error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.halted)
}

// CommitForLag notes the offset of the next record to process, for lag
// dashboards: it is committed to the group within about a second, in the
// background, and lost without harm. Nothing in this program reads it back.
func (c *Consumer) CommitForLag(partition int32, next int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag[partition] = next
}

// Run consumes until ctx ends, and returns after every partition's goroutine
// has returned: nil, or an error if the consumer could not start at all. In
// direct mode the topic must exist.
func (c *Consumer) Run(ctx context.Context) error {
	if c.opts.Direct {
		return c.runDirect(ctx)
	}
	return c.runGroup(ctx)
}

func (c *Consumer) runDirect(ctx context.Context) error {
	admin, err := NewAdmin(c.cfg)
	if err != nil {
		return err
	}
	defer admin.Close()
	infos, err := admin.Topics(ctx, c.opts.Topic)
	if err != nil {
		return err
	}
	info, ok := infos[c.opts.Topic]
	if !ok {
		return fmt.Errorf("topic %s: %w", c.opts.Topic, ErrUnknownTopic)
	}
	all := make([]int32, info.Partitions)
	for i := range all {
		all[i] = int32(i)
	}
	c.assign(ctx, all)
	c.commitLagUntilDone(ctx, func(ctx context.Context, offsets kadm.Offsets) error {
		return admin.adm.CommitAllOffsets(ctx, c.opts.Group, offsets)
	})
	return nil
}

// runGroup joins the group. Its client only takes part in the group: the topic
// is paused in it, so that it never fetches, and readers fetch from positions
// that no group knows.
func (c *Consumer) runGroup(ctx context.Context) error {
	cl, err := c.cfg.client(
		kgo.ConsumerGroup(c.opts.Group),
		kgo.ConsumeTopics(c.opts.Topic),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.SessionTimeout(c.opts.SessionTimeout),
		kgo.HeartbeatInterval(c.opts.SessionTimeout/5),
		kgo.RebalanceTimeout(c.opts.HandOver+c.opts.SessionTimeout),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			c.assign(ctx, m[c.opts.Topic])
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			c.handOver(m[c.opts.Topic])
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			c.handOver(m[c.opts.Topic])
		}),
		kgo.AdjustFetchOffsetsFn(startAnywhere),
	)
	if err != nil {
		return err
	}
	cl.PauseFetchTopics(c.opts.Topic)
	var polling sync.WaitGroup
	polling.Go(func() { c.reportGroupErrors(ctx, cl) })
	c.commitLagUntilDone(ctx, func(ctx context.Context, offsets kadm.Offsets) error {
		return commitAsMember(ctx, cl, offsets)
	})
	cl.Close() // leaves the group, so that others need not wait for the session to end
	polling.Wait()
	return nil
}

// startAnywhere gives the paused group client exact offsets, so that it asks no
// broker for them.
func startAnywhere(_ context.Context, m map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	for _, partitions := range m {
		for p := range partitions {
			partitions[p] = kgo.NewOffset().At(0)
		}
	}
	return m, nil
}

// reportGroupErrors drains the group client: polling is how it tells that it
// cannot join (authorisation, say). It retries by itself.
func (c *Consumer) reportGroupErrors(ctx context.Context, cl *kgo.Client) {
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		fetches.EachError(func(_ string, _ int32, err error) {
			if !errors.Is(err, context.Canceled) && !errors.Is(err, kgo.ErrClientClosed) {
				c.log.LogAttrs(ctx, slog.LevelWarn, "consumer group", slog.Any("err", translate(err)))
			}
		})
		if fetches.IsClientClosed() {
			return
		}
	}
}

// assign starts the goroutines of new partitions.
func (c *Consumer) assign(ctx context.Context, partitions []int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var started []int32
	for _, id := range partitions {
		if c.running[id] != nil {
			continue
		}
		started = append(started, id)
		workerCtx, cancel := context.WithCancel(ctx)
		w := &worker{cancel: cancel, done: make(chan struct{})}
		before := c.last[id]
		c.running[id], c.last[id] = w, w
		go c.work(workerCtx, w, before, id)
	}
	if len(started) > 0 {
		c.log.LogAttrs(ctx, slog.LevelInfo, "partitions assigned", slog.Any("partitions", started))
	}
}

// work waits for an earlier goroutine of the partition that overstayed its
// hand-over, so that this process never runs two.
func (c *Consumer) work(ctx context.Context, w, before *worker, id int32) {
	defer close(w.done)
	defer w.cancel()
	if before != nil {
		<-before.done
	}
	if ctx.Err() != nil {
		return
	}
	err := c.run(ctx, &Partition{ID: id, c: c})
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = errors.New("kafka: partition function returned early without an error")
	}
	c.mu.Lock()
	c.halted[id] = err
	c.mu.Unlock()
	c.log.LogAttrs(ctx, slog.LevelError, "partition halted", slog.Int64("partition", int64(id)), slog.Any("err", err))
	if c.opts.OnHalt != nil {
		c.opts.OnHalt(id, err)
	}
}

// handOver is revoke with the patience that a rebalance has.
func (c *Consumer) handOver(partitions []int32) {
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.HandOver)
	defer cancel()
	c.revoke(ctx, partitions)
}

// revoke stops the goroutines and waits for them until ctx ends. One that does
// not return in time is left behind: the fence in Postgres keeps it from
// writing, and work keeps a successor in this process waiting for it.
func (c *Consumer) revoke(ctx context.Context, partitions []int32) {
	c.mu.Lock()
	stopping := make(map[int32]*worker, len(partitions))
	for _, id := range partitions {
		if w := c.running[id]; w != nil {
			w.cancel()
			stopping[id] = w
		}
	}
	c.mu.Unlock()
	var released []int32
	for id, w := range stopping {
		select {
		case <-w.done:
			released = append(released, id)
		case <-ctx.Done():
			c.log.LogAttrs(ctx, slog.LevelWarn, "partition taken before its work ended", slog.Int64("partition", int64(id)))
		}
		c.mu.Lock()
		delete(c.running, id)
		delete(c.halted, id)
		c.mu.Unlock()
	}
	if len(released) > 0 {
		slices.Sort(released)
		c.log.LogAttrs(ctx, slog.LevelInfo, "partitions released", slog.Any("partitions", released))
	}
}

// commitLagUntilDone commits noted offsets every interval until ctx ends, then
// waits for every partition's goroutine and commits what those left.
func (c *Consumer) commitLagUntilDone(ctx context.Context, commit func(context.Context, kadm.Offsets) error) {
	for sleep(ctx, lagCommitInterval) {
		c.commitLag(ctx, commit)
	}
	c.revoke(context.Background(), c.Assigned())
	c.commitLag(context.WithoutCancel(ctx), commit)
}

// commitLag commits once. Failures are for the log only.
func (c *Consumer) commitLag(ctx context.Context, commit func(context.Context, kadm.Offsets) error) {
	offsets := c.takeLag()
	if len(offsets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lagCommitTimeout)
	defer cancel()
	if err := commit(ctx, offsets); err != nil {
		c.log.LogAttrs(ctx, slog.LevelDebug, "offsets for lag not committed", slog.Any("err", err))
	}
}

// takeLag empties the notes.
func (c *Consumer) takeLag() kadm.Offsets {
	c.mu.Lock()
	defer c.mu.Unlock()
	offsets := make(kadm.Offsets)
	for id, next := range c.lag {
		offsets.AddOffset(c.opts.Topic, id, next, -1)
	}
	clear(c.lag)
	return offsets
}

// commitAsMember commits with the group's generation, so that a member that was
// thrown out changes nothing.
func commitAsMember(ctx context.Context, cl *kgo.Client, offsets kadm.Offsets) error {
	byTopic := make(map[string]map[int32]kgo.EpochOffset)
	for topic, partitions := range offsets {
		byTopic[topic] = make(map[int32]kgo.EpochOffset, len(partitions))
		for p, o := range partitions {
			byTopic[topic][p] = kgo.EpochOffset{Epoch: -1, Offset: o.At}
		}
	}
	var failed error
	cl.CommitOffsetsSync(ctx, byTopic, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = err
		if resp == nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				failed = errors.Join(failed, kerr.ErrorForCode(p.ErrorCode))
			}
		}
	})
	return failed
}
