package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRoundTripKeepsEverything(t *testing.T) {
	cfg := testConfig(t)
	_, infos := testTopics(t, cfg, 3)
	topic := cfg.Topics().Events
	ctx := testContext(t)
	p := testProducer(t, cfg, ProducerOptions{})

	sent := []Record{
		{Topic: topic, Partition: 2, TimestampMs: 1_750_000_000_123, Key: []byte("acme"), Value: []byte("one"),
			Headers: []Header{{Key: "kind", Value: []byte("usage")}, {Key: "empty"}}},
		{Topic: topic, Partition: 2, TimestampMs: 1_750_000_000_124, Key: []byte("acme"), Value: bytes.Repeat([]byte("x"), 200_000)},
		{Topic: topic, Partition: 2, TimestampMs: 1_750_000_000_125, Key: []byte("zeta"), Value: []byte{}},
	}
	now := time.Now().UnixMilli()
	for i := range sent {
		sent[i].TimestampMs += now - 1_750_000_000_123
	}
	results := make([]Result, len(sent))
	if err := p.ProduceBatch(ctx, sent, results); err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Err != nil || r.Offset != int64(i) {
			t.Errorf("result %d = %+v, want offset %d", i, r, i)
		}
	}
	r, err := OpenReader(ctx, cfg, topic, 2, Position{Topic: infos[topic].ID}, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	seen := 0
	for seen < len(sent) {
		recs, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range recs {
			want := sent[seen]
			want.Offset = int64(seen)
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("record %d: got %.200v want %.200v", seen, got, want)
			}
			seen++
		}
	}
	if r.Offset() != 3 || r.Topic() != infos[topic] {
		t.Errorf("reader at %d of %+v", r.Offset(), r.Topic())
	}
}

// A record's timestamp says when it was received, which after a crash may be
// hours ago; the delivery timeout counts from now.
func TestOldTimestampIsNoTimeout(t *testing.T) {
	cfg := testConfig(t)
	testTopics(t, cfg, 1)
	p := testProducer(t, cfg, ProducerOptions{DeliveryTimeout: 5 * time.Second})
	recs := numbered(cfg.Topics().Entries, 0, 0, 10)
	for i := range recs {
		recs[i].TimestampMs = time.Now().Add(-6*time.Hour).UnixMilli() + int64(i)
	}
	for range 3 {
		if err := p.ProduceBatch(testContext(t), recs, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOrderWithinPartitions(t *testing.T) {
	const partitions, calls, perCall = 4, 50, 40
	cfg := testConfig(t)
	testTopics(t, cfg, partitions)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{})
	// One goroutine per partition, as one producer of a tenant: its calls are in
	// order, and run beside those of the others.
	var wg sync.WaitGroup
	for part := range int32(partitions) {
		wg.Go(func() {
			for call := range calls {
				if err := p.ProduceBatch(ctx, numbered(topic, part, call*perCall, perCall), nil); err != nil {
					t.Errorf("produce: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for part := range int32(partitions) {
		next := 0
		err := ReadRange(ctx, cfg, topic, part, Position{}, calls*perCall, func(recs []Record) error {
			for _, rec := range recs {
				if want := fmt.Sprintf("%08d", next); string(rec.Value) != want || rec.Offset != int64(next) {
					return fmt.Errorf("offset %d holds %s, want %s", rec.Offset, rec.Value, want)
				}
				next++
			}
			return nil
		})
		if err != nil || next != calls*perCall {
			t.Errorf("partition %d: %d records, err %v", part, next, err)
		}
	}
	if n, b := p.Buffered(); n != 0 || b != 0 {
		t.Errorf("after all acks %d records and %d bytes are still counted", n, b)
	}
}

func TestFullBufferRefusesAtOnce(t *testing.T) {
	cfg := testConfig(t)
	testTopics(t, cfg, 1)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	g := newGate()
	cfg.dial = g.dial
	p := testProducer(t, cfg, ProducerOptions{MaxBufferedRecords: 10, DeliveryTimeout: 30 * time.Second})
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 0, 1), nil); err != nil {
		t.Fatal(err)
	}
	g.shut()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := p.ProduceBatch(short, numbered(topic, 0, 1, 8), nil); !errors.Is(err, ErrUnacked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with the broker away: %v, want ErrUnacked by the deadline", err)
	}
	began := time.Now()
	results := make([]Result, 3)
	err := p.ProduceBatch(ctx, numbered(topic, 0, 9, 3), results)
	if !errors.Is(err, ErrFull) || !errors.Is(results[2].Err, ErrFull) {
		t.Errorf("8 of 10 in use, 3 more: %v, results %v; want ErrFull", err, results)
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Errorf("ErrFull took %v", took)
	}
	if n, _ := p.Buffered(); n != 8 {
		t.Errorf("%d records counted, want the 8 that wait", n)
	}
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 9, 11), nil); !errors.Is(err, ErrTooLarge) || errors.Is(err, ErrFull) {
		t.Errorf("11 into a buffer of 10: %v, want ErrTooLarge", err)
	}
}

func TestBrokerAwayThenBackLosesNothing(t *testing.T) {
	cfg := testConfig(t)
	testTopics(t, cfg, 2)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	g := newGate()
	cut := cfg
	cut.dial = g.dial
	p := testProducer(t, cut, ProducerOptions{DeliveryTimeout: 2 * time.Second})

	r, err := OpenReader(ctx, cut, topic, 0, Position{}, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	acked := make(map[string]bool)
	produce := func(from int, deadline time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		recs := numbered(topic, 0, from, 100)
		results := make([]Result, len(recs))
		err := p.ProduceBatch(ctx, recs, results)
		for i := range results {
			if results[i].Err == nil {
				acked[string(recs[i].Value)] = true
			}
		}
		return err
	}
	if err := produce(0, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	g.shut()
	// The caller's deadline: an answer on time.
	began := time.Now()
	if err := produce(100, 500*time.Millisecond); !errors.Is(err, ErrUnacked) {
		t.Errorf("first call without a broker: %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("answered after %v", took)
	}
	// The client's own: room is given back although the broker stays away.
	if err := produce(200, 30*time.Second); !errors.Is(err, ErrUnacked) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second call without a broker: %v", err)
	}
	if n, _ := p.Buffered(); n != 0 {
		t.Errorf("%d records still hold room after the delivery timeout", n)
	}
	g.open()
	if err := produce(300, 30*time.Second); err != nil {
		t.Fatalf("after the broker came back: %v", err)
	}
	// The reader's connection was cut too, and it goes on without a hole.
	for !acked["done"] {
		recs, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			delete(acked, string(rec.Value))
			if string(rec.Value) == "00000399" {
				acked["done"] = true
			}
		}
	}
	if delete(acked, "done"); len(acked) != 0 {
		t.Errorf("%d acknowledged records were not read", len(acked))
	}
}

func TestPositionOutsideTheLogIsRefused(t *testing.T) {
	cfg := testConfig(t)
	admin, infos := testTopics(t, cfg, 1)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{})
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 0, 10), nil); err != nil {
		t.Fatal(err)
	}
	deleteBefore(t, admin, topic, 0, 4)
	other := infos[topic].ID
	other[0] ^= 1
	for _, tt := range []struct {
		name      string
		topic     string
		partition int32
		at        Position
		want      error
	}{
		{"below the start", topic, 0, Position{Offset: 3}, ErrOffsetOutOfRange},
		{"at the start", topic, 0, Position{Offset: 4}, nil},
		{"at the end", topic, 0, Position{Offset: 10}, nil},
		{"beyond the end", topic, 0, Position{Offset: 11}, ErrOffsetOutOfRange},
		{"negative", topic, 0, Position{Offset: -1}, ErrOffsetOutOfRange},
		{"right id", topic, 0, Position{Offset: 5, Topic: infos[topic].ID}, nil},
		{"other id", topic, 0, Position{Offset: 5, Topic: other}, ErrTopicChanged},
		{"no such partition", topic, 1, Position{}, ErrUnknownPartition},
		{"no such topic", topic + "x", 0, Position{}, ErrUnknownTopic},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := OpenReader(ctx, cfg, tt.topic, tt.partition, tt.at, ReaderOptions{})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if r != nil {
				r.Close()
			}
			if tt.want != nil && !Halts(err) {
				t.Errorf("%v does not halt", err)
			}
		})
	}
	if err := ReadRange(ctx, cfg, topic, 0, Position{Offset: 5}, 11, nil); !errors.Is(err, ErrOffsetOutOfRange) {
		t.Errorf("range beyond the end: %v", err)
	}
}

// A reader that retention overtakes must say so, not jump over the hole.
func TestLogStartOvertakesTheReader(t *testing.T) {
	cfg := testConfig(t)
	admin, _ := testTopics(t, cfg, 1)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{})
	g := newGate()
	cut := cfg
	cut.dial = g.dial
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 0, 5), nil); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(ctx, cut, topic, 0, Position{Offset: 5}, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	g.shut() // the reader sees nothing of what follows
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 5, 5), nil); err != nil {
		t.Fatal(err)
	}
	deleteBefore(t, admin, topic, 0, 8)
	g.open()
	recs, err := r.Next(ctx)
	if !errors.Is(err, ErrOffsetOutOfRange) {
		t.Fatalf("got %d records and %v, want ErrOffsetOutOfRange", len(recs), err)
	}
	if _, again := r.Next(ctx); !errors.Is(again, ErrOffsetOutOfRange) {
		t.Errorf("the next call says %v", again)
	}
}

func TestRecreatedTopicStopsReaderAndProducer(t *testing.T) {
	cfg := testConfig(t)
	admin, infos := testTopics(t, cfg, 1)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{})
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 0, 5), nil); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(ctx, cfg, topic, 0, Position{Topic: infos[topic].ID}, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if recs, err := r.Next(ctx); err != nil || len(recs) == 0 {
		t.Fatalf("%d records, %v", len(recs), err)
	}
	if err := admin.DeleteTopics(ctx, topic); err != nil {
		t.Fatal(err)
	}
	again := recreate(t, admin, testSpec(1))
	if again[topic].ID == infos[topic].ID {
		t.Fatal("the new topic has the old id")
	}
	if recs, err := r.Next(ctx); !errors.Is(err, ErrTopicChanged) {
		t.Errorf("running reader: %d records, %v; want ErrTopicChanged", len(recs), err)
	}
	if _, err := OpenReader(ctx, cfg, topic, 0, r.at(), ReaderOptions{}); !errors.Is(err, ErrTopicChanged) {
		t.Errorf("reader with the stored position: %v", err)
	}
	if err := p.ProduceBatch(ctx, numbered(topic, 0, 5, 5), nil); !Halts(err) {
		t.Errorf("running producer: %v; want an error that halts", err)
	}
}

func TestDeletedTopicStopsReader(t *testing.T) {
	cfg := testConfig(t)
	admin, _ := testTopics(t, cfg, 1)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	r, err := OpenReader(ctx, cfg, topic, 0, Position{}, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := admin.DeleteTopics(ctx, topic); err != nil {
		t.Fatal(err)
	}
	if recs, err := r.Next(ctx); !errors.Is(err, ErrUnknownTopic) {
		t.Errorf("%d records, %v; want ErrUnknownTopic", len(recs), err)
	}
}

func TestEnsureTopics(t *testing.T) {
	cfg := testConfig(t)
	admin, infos := testTopics(t, cfg, 3)
	ctx := testContext(t)
	for _, name := range cfg.Topics().All() {
		if infos[name].Partitions != 3 || infos[name].ID.IsZero() {
			t.Errorf("%s: %+v", name, infos[name])
		}
	}
	spec := testSpec(3)
	same, err := admin.EnsureTopics(ctx, spec)
	if err != nil || !maps.Equal(same, infos) {
		t.Errorf("a second time: %v, %v", same, err)
	}
	if got := setting(t, admin, cfg.Topics().Events, "retention.ms"); got != "1209600000" {
		t.Errorf("events retention.ms = %s, want 14 days", got)
	}
	if got := setting(t, admin, cfg.Topics().Telemetry, "retention.ms"); got != "259200000" {
		t.Errorf("telemetry retention.ms = %s, want 3 days", got)
	}
	spec.Retention = 48 * time.Hour
	if _, err := admin.EnsureTopics(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if got := setting(t, admin, cfg.Topics().Entries, "retention.ms"); got != "172800000" {
		t.Errorf("entries retention.ms = %s, want 2 days", got)
	}
	for _, n := range []int32{2, 4} {
		_, err := admin.EnsureTopics(ctx, testSpec(n))
		if !errors.Is(err, ErrPartitionsChanged) || !strings.Contains(err.Error(), cfg.Topics().Events) {
			t.Errorf("%d partitions over 3: %v", n, err)
		}
	}
}

func TestEndOffsetsAndUnknownPartition(t *testing.T) {
	cfg := testConfig(t)
	admin, _ := testTopics(t, cfg, 3)
	ctx := testContext(t)
	topic := cfg.Topics().Entries
	p := testProducer(t, cfg, ProducerOptions{})
	if err := p.ProduceBatch(ctx, append(numbered(topic, 1, 0, 7), numbered(topic, 2, 0, 2)...), nil); err != nil {
		t.Fatal(err)
	}
	ends, err := admin.EndOffsets(ctx, topic)
	if err != nil || fmt.Sprint(ends) != "[0 7 2]" {
		t.Errorf("ends %v, %v", ends, err)
	}
	if _, err := admin.EndOffsets(ctx, topic+"x"); !errors.Is(err, ErrUnknownTopic) {
		t.Errorf("unknown topic: %v", err)
	}
	// A wrong record spoils its own result only.
	recs := append(numbered(topic, 3, 0, 1), numbered(topic, 0, 0, 1)...)
	results := make([]Result, 2)
	if err := p.ProduceBatch(ctx, recs, results); !errors.Is(err, ErrUnknownPartition) {
		t.Errorf("partition 3 of 3: %v", err)
	}
	if !errors.Is(results[0].Err, ErrUnknownPartition) || results[1].Err != nil {
		t.Errorf("results %v", results)
	}
	huge := Record{Topic: topic, Value: make([]byte, 8<<20), TimestampMs: time.Now().UnixMilli()}
	for i := range huge.Value {
		huge.Value[i] = byte(i * i >> 3)
	}
	if _, err := p.Produce(ctx, huge); !errors.Is(err, ErrTooLarge) {
		t.Errorf("8 MiB record: %v", err)
	}
}
