package kafka

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// brokerTool starts, kills and revives the nodes that with-broker runs; it
// refuses any process that is not theirs.
func brokerTool(t *testing.T, args ...string) {
	t.Helper()
	tool := filepath.Join("..", "..", "deploy", "kafka", "broker")
	args = append(args, "--dir", os.Getenv("TALLYSTICK_TEST_KAFKA_DIR"))
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("broker %v: %v\n%s", args, err, out)
	}
}

// A broker of three gets kill -9 under load: what was acknowledged is there, at
// the offset that was named, and work went on before the node came back.
func TestKilledNodeLosesNothingAcked(t *testing.T) {
	if strings.Count(os.Getenv("TALLYSTICK_TEST_KAFKA_NODE_PIDS"), ",") != 2 {
		t.Skip("for three nodes: deploy/kafka/with-broker --nodes 3 --scram -- go test ./internal/kafka")
	}
	const partitions, before, after = 6, 20_000, 20_000
	cfg := testConfig(t)
	admin, _ := testTopics(t, cfg, partitions)
	topic := cfg.Topics().Events
	p := testProducer(t, cfg, ProducerOptions{DeliveryTimeout: 30 * time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	book := &ackBook{wake: make(chan struct{}, 1)}
	loading, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	for part := range int32(partitions) {
		load.Go(func() {
			for n := 0; loading.Err() == nil; n += 100 {
				book.produce(ctx, t, p, numbered(topic, part, n, 100))
			}
		})
	}
	book.await(ctx, t, before)
	brokerTool(t, "kill", "--node", "2")
	killed := book.acked()
	book.await(ctx, t, killed+after)
	stop()
	load.Wait()
	brokerTool(t, "revive")

	lost := 0
	ends, err := admin.EndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	for part, end := range ends {
		inLog := make([]string, 0, end)
		err := ReadRange(ctx, cfg, topic, int32(part), Position{}, end, func(recs []Record) error {
			for _, rec := range recs {
				inLog = append(inLog, string(rec.Value))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range book.list {
			if a.partition == int32(part) && (a.offset >= int64(len(inLog)) || inLog[a.offset] != a.value) {
				lost++
			}
		}
	}
	t.Logf("%d acknowledged (%d before the kill, %d calls failed), %d lost", len(book.list), killed, book.failures, lost)
	if lost != 0 {
		t.Errorf("%d of %d acknowledged records are lost", lost, len(book.list))
	}
	if book.failures != 0 {
		t.Errorf("%d calls failed although two of three nodes were up", book.failures)
	}
}

// ackBook keeps what was acknowledged.
type ackBook struct {
	mu       sync.Mutex // protects the three
	list     []ack
	failures int
	wake     chan struct{}
}

type ack struct {
	partition int32
	offset    int64
	value     string
}

func (b *ackBook) produce(ctx context.Context, t *testing.T, p *Producer, recs []Record) {
	results := make([]Result, len(recs))
	err := p.ProduceBatch(ctx, recs, results)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.failures++
		t.Logf("produce: %v", err)
	}
	for i, r := range results {
		if r.Err == nil {
			b.list = append(b.list, ack{recs[i].Partition, r.Offset, string(recs[i].Value)})
		}
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *ackBook) acked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.list)
}

func (b *ackBook) await(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for b.acked() < n {
		select {
		case <-b.wake:
		case <-ctx.Done():
			t.Fatalf("%d of %d records acknowledged", b.acked(), n)
		}
	}
}

func TestWrongPasswordIsUnauthorized(t *testing.T) {
	cfg := testConfig(t)
	if cfg.SASL.Mechanism == "" {
		t.Skip("for brokers with SASL: deploy/kafka/with-broker --scram -- go test ./internal/kafka")
	}
	cfg.SASL.Password += "x"
	admin, err := NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx := testContext(t)
	err = admin.Ping(ctx)
	if !errors.Is(err, ErrUnauthorized) {
		t.Errorf("ping: %v", err)
	}
	if strings.Contains(fmt.Sprint(err), cfg.SASL.Password) {
		t.Error("the error holds the password")
	}
}
