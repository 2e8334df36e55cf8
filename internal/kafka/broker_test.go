package kafka

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// testTopics creates the four topics and removes them after the test.
func testTopics(t testing.TB, cfg Config, partitions int32) (*Admin, map[string]TopicInfo) {
	t.Helper()
	admin, err := NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	infos, err := admin.EnsureTopics(testContext(t), testSpec(partitions))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := admin.DeleteTopics(ctx, cfg.Topics().All()...); err != nil {
			t.Logf("clean up: %v", err)
		}
		admin.Close()
	})
	return admin, infos
}

// testSpec replicates three times where the brokers are three.
func testSpec(partitions int32) TopicSpec {
	spec := TopicSpec{Partitions: partitions}
	if strings.Count(os.Getenv("TALLYSTICK_TEST_KAFKA_NODE_PIDS"), ",") == 2 {
		spec.ReplicationFactor = 3
	}
	return spec
}

func testProducer(t testing.TB, cfg Config, opts ProducerOptions) *Producer {
	t.Helper()
	p, err := NewProducer(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.Close(ctx) // some tests cut the network for good
	})
	return p
}

// numbered makes n records for one partition whose values are from, from+1, ….
func numbered(topic string, partition int32, from, n int) []Record {
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = Record{
			Topic: topic, Partition: partition, TimestampMs: time.Now().UnixMilli(),
			Key: []byte("acme"), Value: fmt.Appendf(nil, "%08d", from+i),
		}
	}
	return recs
}

// gate is a network that a test can cut: shut ends every connection and refuses
// new ones until open.
type gate struct {
	mu     sync.Mutex // protects both
	closed bool
	conns  map[net.Conn]struct{}
}

func newGate() *gate { return &gate{conns: make(map[net.Conn]struct{})} }

func (g *gate) dial(ctx context.Context, network, address string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		g.conns[c] = struct{}{}
	}
	return c, err
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for c := range g.conns {
		_ = c.Close() // what it was sending is lost: the point
		delete(g.conns, c)
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}
