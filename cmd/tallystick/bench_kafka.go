package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// What the consuming hops are measured with.
const (
	consumeEvents  = 300_000
	consumeRounds  = 10
	pollFetchBytes = 1 << 20 // of both hops' readers, and so of the bare loop's
)

// benchKafka measures what hops 3 and 5 take from the embedded broker, each up to
// where it owns the bytes, against a bare franz-go poll loop over the same
// topic that looks at nothing.
func (r *benchRun) benchKafka(ctx context.Context) error {
	events, rounds := consumeEvents, consumeRounds
	if r.short {
		events, rounds = 40_000, 2
	}
	k, err := r.openKafka(ctx)
	if err != nil {
		return err
	}
	defer k.broker.Close()
	if err := k.fill(ctx, events); err != nil {
		return err
	}
	r.printf("consume (one partition of the embedded broker, %d events)", events)
	t := k.cfg.Topics()
	paths := []struct {
		name string
		run  func() error
		s    []sample
	}{
		{name: "events: bare poll loop", run: func() error { return k.poll(ctx, t.Events) }},
		{name: "events: hop 3", run: func() error { return k.consume(ctx, t.Events, copyEvent) }},
		{name: "entries: bare poll loop", run: func() error { return k.poll(ctx, t.Entries) }},
		{name: "entries: hop 5", run: func() error { return k.consume(ctx, t.Entries, copyFrame) }},
	}
	for i := range rounds + 1 {
		for j := range paths {
			s, err := measure(0, events, paths[j].run)
			if err != nil {
				return fmt.Errorf("%s: %w", paths[j].name, err)
			}
			if i > 0 { // the first round warms up
				paths[j].s = append(paths[j].s, s)
			}
		}
	}
	for _, p := range paths {
		r.report(p.name, p.s)
	}
	r.set("consume3_vs_poll", "%.2f", medianRatio(paths[1].s, paths[0].s))
	r.set("consume5_vs_poll", "%.2f", medianRatio(paths[3].s, paths[2].s))
	return r.benchProcessors(ctx, k, events, rounds)
}

// kafkaBench is a broker with topics of one partition.
type kafkaBench struct {
	broker *embedded.Kafka
	cfg    kafka.Config
	topic  ledger.Topic
	ends   map[string]int64 // records of each topic
}

func (r *benchRun) openKafka(ctx context.Context) (_ *kafkaBench, err error) {
	k := &kafkaBench{ends: map[string]int64{}}
	if k.broker, err = embedded.StartKafka(ctx, embedded.KafkaOptions{DataDir: filepath.Join(r.dir, "kafka"), Partitions: 1}); err != nil {
		return nil, err
	}
	k.cfg = kafka.Config{Brokers: k.broker.Brokers()}
	admin, err := kafka.NewAdmin(k.cfg)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	topics, err := admin.EnsureTopics(ctx, kafka.TopicSpec{Partitions: 1})
	if err != nil {
		return nil, err
	}
	k.topic = ledger.Topic{ID: topics[k.cfg.Topics().Events].ID, Partitions: 1}
	return k, nil
}

// fill puts events into the one topic, and has hop 3 itself put them into the
// other.
func (k *kafkaBench) fill(ctx context.Context, events int) error {
	producer, err := kafka.NewProducer(k.cfg, kafka.ProducerOptions{})
	if err != nil {
		return err
	}
	defer producer.Close(ctx) //nolint:errcheck // everything is acknowledged
	l := &lane{tenants: benchTenants(0, 1, 20)}
	total := 0
	send := func(recs []kafka.Record) error {
		for i := range recs {
			recs[i].Topic, recs[i].TimestampMs = k.cfg.Topics().Events, time.Now().UnixMilli()
		}
		total += len(recs)
		return producer.ProduceBatch(ctx, recs, nil)
	}
	controls := benchControls(l)
	if err := send(controls); err != nil {
		return err
	}
	for total < events+len(controls) {
		if err := send(benchEvents(l.tenants, 0, min(benchBatch, events+len(controls)-total))); err != nil {
			return err
		}
	}
	return errors.Join(k.ledger(ctx, producer, int64(total)), k.measureEnds(ctx))
}

// ledger runs hop 3 with a store that keeps nothing until all is published.
func (k *kafkaBench) ledger(ctx context.Context, producer *kafka.Producer, events int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := ledger.NewWriter(&capture{commit: func(*ledger.Batch) {}}, benchKeys{}, producer, k.cfg.Topics(), ledger.Options{}, warnings())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, k.cfg, k.topic, true) }()
	for {
		p := w.Stats().Places()[0]
		if p.Halted != nil {
			return p.Halted
		}
		if p.NextOffset >= events && p.Unpublished == 0 {
			cancel()
			return <-done
		}
		select {
		case err := <-done:
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

func (k *kafkaBench) measureEnds(ctx context.Context) error {
	admin, err := kafka.NewAdmin(k.cfg)
	if err != nil {
		return err
	}
	defer admin.Close()
	for _, topic := range []string{k.cfg.Topics().Events, k.cfg.Topics().Entries} {
		ends, err := admin.EndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		k.ends[topic] = ends[0]
	}
	return nil
}

// poll is the limit: franz-go with the same fetch size and nothing else.
func (k *kafkaBench) poll(ctx context.Context, topic string) error {
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(k.cfg.Brokers...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(0)}}),
		kgo.FetchMaxBytes(pollFetchBytes), kgo.FetchMaxPartitionBytes(pollFetchBytes),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	for next := int64(0); next < k.ends[topic]; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		fetches.EachRecord(func(rec *kgo.Record) { next = rec.Offset + 1 })
	}
	return nil
}

// consume reads the topic through our consumer and its reader, and takes over
// the bytes of each record as the hop does.
func (k *kafkaBench) consume(ctx context.Context, topic string, take func(*arena.Arena, *kafka.Record) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	opts := kafka.ConsumerOptions{Topic: topic, Group: "bench", Direct: true,
		Reader: kafka.ReaderOptions{MaxFetchBytes: pollFetchBytes}}
	c, err := kafka.NewConsumer(k.cfg, opts, func(ctx context.Context, p *kafka.Partition) error {
		defer cancel()
		failed = k.read(ctx, p, topic, take)
		return failed
	})
	if err != nil {
		return err
	}
	return errors.Join(c.Run(ctx), failed)
}

// read takes the records over in batches of the ledger's size.
func (k *kafkaBench) read(ctx context.Context, p *kafka.Partition, topic string, take func(*arena.Arena, *kafka.Record) error) error {
	reader, err := p.Open(ctx, kafka.Position{})
	if err != nil {
		return err
	}
	defer reader.Close()
	own := arena.New(arena.NewPool(32 << 20))
	for n := 0; reader.Offset() < k.ends[topic]; {
		recs, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		for i := range recs {
			if err := take(&own, &recs[i]); err != nil {
				return err
			}
		}
		if n += len(recs); n >= benchBatch {
			own.Reset()
			n = 0
		}
	}
	return nil
}

// copyEvent is what hop 3 does with a record before it builds.
func copyEvent(own *arena.Arena, rec *kafka.Record) error {
	own.Close(append(append(own.Open(len(rec.Key)+len(rec.Value)), rec.Key...), rec.Value...))
	return nil
}

// copyFrame is what hop 5 does with a record before it looks at its entries.
func copyFrame(own *arena.Arena, rec *kafka.Record) error {
	var f chain.Frame
	if err := f.Decode(rec.Value); err != nil {
		return err
	}
	own.Copy(rec.Value)
	return nil
}

// warnings is a log of what should not happen.
func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
