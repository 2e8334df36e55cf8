package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// ledger stands for Postgres in these tests: it holds each partition's next
// offset and refuses a writer that was fenced by a later one.
type ledger struct {
	mu    sync.Mutex // protects all
	next  map[int32]int64
	owner map[int32]string // whose goroutine works on the partition now
	seen  map[string]int   // value → how often committed
	fault []string
	moved chan struct{} // a token after every commit
}

func newLedger() *ledger {
	return &ledger{next: make(map[int32]int64), owner: make(map[int32]string), seen: make(map[string]int), moved: make(chan struct{}, 1)}
}

func (l *ledger) enter(name string, p int32) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.owner[p]; other != "" {
		l.fault = append(l.fault, fmt.Sprintf("%s got partition %d while %s still has it", name, p, other))
	}
	l.owner[p] = name
	return l.next[p]
}

func (l *ledger) leave(p int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owner[p] = ""
}

func (l *ledger) commit(p int32, recs []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, rec := range recs {
		if rec.Offset != l.next[p] {
			l.fault = append(l.fault, fmt.Sprintf("partition %d: offset %d after %d", p, rec.Offset, l.next[p]))
		}
		l.next[p] = rec.Offset + 1
		l.seen[fmt.Sprintf("%d/%s", p, rec.Value)]++
	}
	select {
	case l.moved <- struct{}{}:
	default:
	}
}

// member is a PartitionFunc over the ledger.
func (l *ledger) member(name string) PartitionFunc {
	return func(ctx context.Context, p *Partition) error {
		from := l.enter(name, p.ID)
		defer l.leave(p.ID)
		r, err := p.Open(ctx, Position{Offset: from})
		if err != nil {
			return err
		}
		defer r.Close()
		for {
			recs, err := r.Next(ctx)
			if err != nil {
				return err
			}
			l.commit(p.ID, recs)
			p.CommitForLag(r.Offset())
		}
	}
}

func (l *ledger) await(t *testing.T, records int) {
	t.Helper()
	ctx := testContext(t)
	for {
		l.mu.Lock()
		n := len(l.seen)
		l.mu.Unlock()
		if n >= records {
			return
		}
		select {
		case <-l.moved:
		case <-ctx.Done():
			t.Fatalf("%d of %d records committed", n, records)
		}
	}
}

func (l *ledger) check(t *testing.T, records int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.fault {
		t.Error(f)
	}
	if len(l.seen) != records {
		t.Errorf("%d records, want %d", len(l.seen), records)
	}
	for v, n := range l.seen {
		if n != 1 {
			t.Errorf("%s was committed %d times", v, n)
		}
	}
}

// start runs a consumer until the returned function is called.
func start(t *testing.T, cfg Config, opts ConsumerOptions, run PartitionFunc) (*Consumer, func()) {
	t.Helper()
	c, err := NewConsumer(cfg, opts, run)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("consumer: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("consumer did not stop")
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// awaitShare waits until the consumers hold n partitions each.
func awaitShare(t *testing.T, n int, consumers ...*Consumer) {
	t.Helper()
	ctx := testContext(t)
	for {
		settled := true
		for _, c := range consumers {
			settled = settled && len(c.Assigned()) == n
		}
		if settled {
			return
		}
		if !sleep(ctx, 20*time.Millisecond) {
			t.Fatalf("partitions never settled at %d each", n)
		}
	}
}

func TestGroupHandsPartitionsOver(t *testing.T) {
	const partitions, perRound = 4, 25
	cfg := testConfig(t)
	testTopics(t, cfg, partitions)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{})
	opts := ConsumerOptions{Topic: topic, Group: cfg.TopicPrefix + "ledger", SessionTimeout: 6 * time.Second}
	l := newLedger()
	round := 0
	produce := func() {
		t.Helper()
		for part := range int32(partitions) {
			if err := p.ProduceBatch(ctx, numbered(topic, part, round*perRound, perRound), nil); err != nil {
				t.Fatal(err)
			}
		}
		round++
	}
	produce()
	first, stopFirst := start(t, cfg, opts, l.member("first"))
	awaitShare(t, 4, first)
	l.await(t, round*partitions*perRound)

	// A second member joins under load: each ends with half.
	loaded, stopLoad := context.WithCancel(ctx)
	var load sync.WaitGroup
	load.Go(func() {
		for loaded.Err() == nil {
			produce()
		}
	})
	second, stopSecond := start(t, cfg, opts, l.member("second"))
	awaitShare(t, 2, first, second)
	if both := append(first.Assigned(), second.Assigned()...); len(slices.Compact(slices.Sorted(slices.Values(both)))) != 4 {
		t.Errorf("assigned %v and %v", first.Assigned(), second.Assigned())
	}
	// The first leaves: the second takes over what it had.
	stopFirst()
	awaitShare(t, 4, second)
	stopLoad()
	load.Wait()
	produce()
	l.await(t, round*partitions*perRound)
	stopSecond()
	l.check(t, round*partitions*perRound)
}

func TestDirectConsumerRunsEveryPartitionAndCommitsForLag(t *testing.T) {
	const partitions, each = 3, 50
	cfg := testConfig(t)
	admin, _ := testTopics(t, cfg, partitions)
	ctx := testContext(t)
	topic := cfg.Topics().Entries
	p := testProducer(t, cfg, ProducerOptions{})
	for part := range int32(partitions) {
		if err := p.ProduceBatch(ctx, numbered(topic, part, 0, each), nil); err != nil {
			t.Fatal(err)
		}
	}
	l := newLedger()
	opts := ConsumerOptions{Topic: topic, Group: cfg.TopicPrefix + "score", Direct: true}
	c, stop := start(t, cfg, opts, l.member("only"))
	l.await(t, partitions*each)
	if got := c.Assigned(); len(got) != partitions {
		t.Errorf("assigned %v", got)
	}
	stop()
	l.check(t, partitions*each)
	committed, err := admin.CommittedForLag(ctx, opts.Group, topic)
	if err != nil || fmt.Sprint(committed) != "map[0:50 1:50 2:50]" {
		t.Errorf("committed for lag %v, %v", committed, err)
	}
}

func TestHaltedPartitionStopsNoOther(t *testing.T) {
	cfg := testConfig(t)
	testTopics(t, cfg, 2)
	ctx := testContext(t)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{})
	l := newLedger()
	bad := errors.New("SQLSTATE 22003")
	halted := make(chan int32, 1)
	opts := ConsumerOptions{
		Topic: topic, Group: cfg.TopicPrefix + "g", Direct: true,
		OnHalt: func(p int32, err error) { halted <- p },
	}
	c, _ := start(t, cfg, opts, func(ctx context.Context, p *Partition) error {
		if p.ID == 0 {
			return bad
		}
		return l.member("one")(ctx, p)
	})
	if got := <-halted; got != 0 {
		t.Errorf("partition %d halted", got)
	}
	if err := p.ProduceBatch(ctx, numbered(topic, 1, 0, 20), nil); err != nil {
		t.Fatal(err)
	}
	l.await(t, 20)
	if got := c.Halted(); len(got) != 1 || !errors.Is(got[0], bad) {
		t.Errorf("halted: %v", got)
	}
}
