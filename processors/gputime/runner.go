package gputime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

// ConsumerGroup shares the partitions of `telemetry` out between processes. Its
// committed offsets are for dashboards; the truth is in the Store.
const ConsumerGroup = "tallystick-gputime"

// silence is how long a partition brings nothing before the runner lets the log's
// clock go on.
const silence = 5 * time.Second

const (
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
)

// Edge takes events into `events`, as the ordinary edge does. What refused names by
// its place is refused for ever, by that rule. An error says that some events are
// not known to be durable: all are sent again, with their ids.
type Edge interface {
	Submit(ctx context.Context, events []event.Event) (refused map[int]string, err error)
}

// Publisher writes records to Kafka and waits for their acknowledgement.
type Publisher interface {
	ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error
}

// Reader reads the records of one partition in offset order, as kafka.Reader does.
type Reader interface {
	Next(ctx context.Context) ([]kafka.Record, error)
	Topic() kafka.TopicInfo
	Close()
}

// Opener opens a partition of `telemetry`.
type Opener interface {
	Open(ctx context.Context, at kafka.Position) (Reader, error)
	// Start is the offset of the oldest record.
	Start(ctx context.Context) (int64, error)
	// CommitForLag notes the place for dashboards.
	CommitForLag(next int64)
}

// Parts are what a Runner works with. All are needed but Log.
type Parts struct {
	Store *Store
	Edge  Edge
	Log   *slog.Logger
	// Publisher writes the records by which the log's clock goes on.
	Publisher Publisher
	// Tenants lists the tenants that there are.
	Tenants func() []tenant.ID
	// Topic is the name of `telemetry`, Partitions how many it has.
	Topic      string
	Partitions int32
}

// Runner runs the partitions of `telemetry` that are assigned to this process.
type Runner struct {
	Parts
	opts Options
}

// New makes a Runner. The error names a field of Options that is out of range.
func New(parts Parts, opts Options) (*Runner, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if parts.Log == nil {
		parts.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{Parts: parts, opts: opts.withDefaults()}, nil
}

// Run processes all partitions that this process is assigned until ctx ends. direct
// takes all without a consumer group, for a process that is alone.
func (r *Runner) Run(ctx context.Context, cfg kafka.Config, direct bool) error {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return fmt.Errorf("gputime admin: %w", err)
	}
	defer admin.Close()
	opts := kafka.ConsumerOptions{Topic: r.Topic, Group: ConsumerGroup, Direct: direct, Reader: kafka.ReaderOptions{MaxRecords: 2000, MaxFetchBytes: 1 << 20}}
	c, err := kafka.NewConsumer(cfg, opts, func(ctx context.Context, p *kafka.Partition) error {
		return r.RunPartition(ctx, p.ID, partition{p, admin, r.Topic})
	})
	if err != nil {
		return fmt.Errorf("gputime consumer: %w", err)
	}
	return c.Run(ctx)
}

// RunPartition processes one partition until ctx ends; then it returns nil. It
// retries whatever time can mend, for ever and with backoff, beginning again at the
// checkpoint. A non-nil error means that the partition must halt.
func (r *Runner) RunPartition(ctx context.Context, id int32, src Opener) error {
	log := r.Log.With(slog.Int64("partition", int64(id)))
	backoff := retryMin
	for {
		started := time.Now()
		err := r.runOnce(ctx, id, src, log)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrState) || errors.Is(err, ErrRefusedState) || kafka.Halts(err) {
			log.LogAttrs(ctx, slog.LevelError, "GPU time: partition halted", slog.Any("err", err))
			return fmt.Errorf("telemetry partition %d halted: %w", id, err)
		}
		if time.Since(started) > 4*retryMax {
			backoff = retryMin
		}
		log.LogAttrs(ctx, slog.LevelWarn, "GPU time: partition starts again", slog.Any("err", err), slog.Duration("backoff", backoff))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, retryMax)
	}
}

// run is one partition from its checkpoint on, until something fails.
type run struct {
	r      *Runner
	id     int32
	src    Opener
	log    *slog.Logger
	core   *Core
	cp     Checkpoint
	dirty  bool      // there is something to commit
	since  time.Time // since when
	quiet  time.Time // since when nothing was read
	ticked int64     // Waiting's answer that a record was written for
}

func (r *Runner) runOnce(ctx context.Context, id int32, src Opener, log *slog.Logger) error {
	u := &run{r: r, id: id, src: src, log: log}
	var err error
	if u.cp, err = r.Store.Open(ctx, id); err != nil {
		return fmt.Errorf("take the partition over: %w", err)
	}
	var tenants []string
	for _, t := range r.Tenants() {
		if !t.IsSystem() && t.Partition(r.Partitions) == id {
			tenants = append(tenants, string(t))
		}
	}
	windows, events, err := r.Store.Waiting(ctx, tenants)
	if err != nil {
		return fmt.Errorf("read what was left: %w", err)
	}
	u.core = NewCore(r.opts, u.cp.Clock, u.cp.Oldest)
	for i := range windows {
		if err := u.core.Learn(&windows[i]); err != nil {
			return fmt.Errorf("window of tenant %s: %w", windows[i].Tenant, err)
		}
	}
	if err := u.send(ctx, events); err != nil {
		return err
	}
	reader, err := u.open(ctx)
	if err != nil {
		return fmt.Errorf("open partition: %w", err)
	}
	defer reader.Close()
	u.cp.Resume.Topic = reader.Topic().ID
	return u.read(ctx, reader)
}

// open opens the log at the checkpoint. What the log does not hold any more was never
// accounted for, and is said so.
func (u *run) open(ctx context.Context) (Reader, error) {
	reader, err := u.src.Open(ctx, u.cp.Resume)
	if !errors.Is(err, kafka.ErrOffsetOutOfRange) {
		return reader, err
	}
	start, serr := u.src.Start(ctx)
	if serr != nil {
		return nil, serr
	}
	if start <= u.cp.Resume.Offset {
		return nil, err // the log ends before the checkpoint
	}
	u.log.LogAttrs(ctx, slog.LevelError, "GPU time: telemetry was deleted before it was read; its time is not accounted",
		slog.Int64("from", u.cp.Resume.Offset), slog.Int64("to", start))
	u.cp.Resume.Offset = start
	return u.src.Open(ctx, u.cp.Resume)
}

// read takes records until something fails.
func (u *run) read(ctx context.Context, reader Reader) error {
	u.quiet = u.r.opts.Now()
	for {
		wait := silence
		if u.dirty {
			wait = max(time.Millisecond, u.r.opts.Commit-time.Since(u.since))
		}
		limited, cancel := context.WithTimeout(ctx, wait)
		recs, err := reader.Next(limited)
		cancel()
		if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
			return errors.Join(err, ctx.Err())
		}
		if len(recs) > 0 {
			if err := u.take(ctx, recs); err != nil {
				return err
			}
		}
		if u.dirty && time.Since(u.since) >= u.r.opts.Commit {
			if err := u.commit(ctx); err != nil {
				return err
			}
		}
		if err := u.tick(ctx); err != nil {
			return err
		}
	}
}

// take applies records.
func (u *run) take(ctx context.Context, recs []kafka.Record) error {
	batches, needs := make([]Batch, len(recs)), map[Place]struct{}{}
	for i := range recs {
		batches[i] = u.batchOf(ctx, &recs[i])
		u.core.Needs(&batches[i], needs)
	}
	if len(needs) > 0 {
		found, err := u.r.Store.Load(ctx, needs)
		if err != nil {
			return fmt.Errorf("read windows: %w", err)
		}
		for i := range found {
			if err := u.core.Learn(&found[i]); err != nil {
				return fmt.Errorf("window of tenant %s: %w", found[i].Tenant, err)
			}
		}
	}
	for i := range batches {
		u.core.Apply(&batches[i])
	}
	u.cp.Resume.Offset = recs[len(recs)-1].Offset + 1
	u.quiet = u.r.opts.Now()
	if !u.dirty {
		u.dirty, u.since = true, time.Now()
	}
	return nil
}

// batchOf decodes a record. One that is none, or that belongs elsewhere, is counted
// against the partition's reserved tenant: it must stop nobody.
func (u *run) batchOf(ctx context.Context, rec *kafka.Record) Batch {
	system := tenant.System(u.id)
	var m pb.GpuSampleBatch
	err := proto.Unmarshal(rec.Value, &m)
	id := tenant.ID(m.GetTenantId())
	switch {
	case err != nil:
	case string(rec.Key) != m.GetTenantId() || id.Partition(u.r.Partitions) != u.id || id != system && !tenant.ValidID(string(id)) ||
		id == system && len(m.GetSamples()) > 0 || !event.ValidText(m.GetAgentId(), event.MaxIDBytes):
		err = errors.New("it names another tenant than its key, or none of this partition")
	}
	if err != nil {
		u.log.LogAttrs(ctx, slog.LevelError, "GPU time: a record of telemetry is passed over", slog.Int64("offset", rec.Offset), slog.Int("bytes", len(rec.Value)))
		return Batch{Tenant: string(system), ReceivedAt: 0, Malformed: 1}
	}
	b := Batch{Tenant: string(id), Agent: m.GetAgentId(), ReceivedAt: m.GetReceivedAt().AsTime().UnixMicro()}
	if m.ReceivedAt == nil {
		b.ReceivedAt = rec.TimestampMs * 1000
	}
	b.Samples = make([]Sample, 0, len(m.GetSamples()))
	for _, s := range m.GetSamples() {
		if sample, err := sampleOf(s); err == nil {
			b.Samples = append(b.Samples, sample)
		} else {
			b.Malformed++
		}
	}
	return b
}

// commit stores what happened, and then sends the events of it.
func (u *run) commit(ctx context.Context) error {
	ch := u.core.Take()
	u.cp.Clock, u.cp.Oldest = u.core.Clock(), u.core.Oldest()
	if err := u.r.Store.Commit(ctx, u.id, u.cp, &ch); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	u.dirty = false
	u.src.CommitForLag(u.cp.Resume.Offset)
	return u.send(ctx, ch.Events)
}

// send sends events that are stored. Dying in here sends them again.
func (u *run) send(ctx context.Context, events []event.Event) error {
	if len(events) == 0 {
		return nil
	}
	refused, err := u.r.Edge.Submit(ctx, events)
	if err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	for i, rule := range refused {
		u.log.LogAttrs(ctx, slog.LevelError, "GPU time: the edge refuses an event for ever; it stays in processors.gpu_outbox",
			slog.String("tenant", events[i].Tenant), slog.String("event", events[i].ID), slog.String("rule", rule))
	}
	if err := u.r.Store.Sent(ctx, events, refused); err != nil {
		return fmt.Errorf("note what was sent: %w", err)
	}
	return nil
}

// tick lets the log's clock go on when a window is due by ours and the log brings
// nothing: with a record, so that whoever replays it sees the same.
func (u *run) tick(ctx context.Context) error {
	now := u.r.opts.Now()
	if u.dirty || now.Sub(u.quiet) < silence {
		return nil
	}
	until, ok := u.core.Waiting()
	if !ok || until > now.UnixMicro() || until == u.ticked {
		return nil
	}
	system := string(tenant.System(u.id))
	value, err := proto.Marshal(&pb.GpuSampleBatch{TenantId: system, AgentId: ProducerID, ReceivedAt: timestamppb.New(now)})
	if err != nil {
		return err
	}
	recs := []kafka.Record{{Topic: u.r.Topic, Partition: u.id, Key: []byte(system), Value: value, TimestampMs: now.UnixMilli()}}
	if err := u.r.Publisher.ProduceBatch(ctx, recs, make([]kafka.Result, 1)); err != nil {
		return fmt.Errorf("let the clock go on: %w", err)
	}
	u.ticked = until
	return nil
}

// partition is a Kafka partition as an Opener.
type partition struct {
	*kafka.Partition
	admin *kafka.Admin
	topic string
}

// Open starts reading the partition.
func (p partition) Open(ctx context.Context, at kafka.Position) (Reader, error) {
	reader, err := p.Partition.Open(ctx, at)
	if err != nil {
		return nil, err
	}
	return reader, nil
}

// Start is the offset of the oldest record.
func (p partition) Start(ctx context.Context) (int64, error) {
	starts, err := p.admin.StartOffsets(ctx, p.topic)
	if err != nil {
		return 0, err
	}
	if int(p.ID) >= len(starts) {
		return 0, kafka.ErrUnknownPartition
	}
	return starts[p.ID], nil
}
