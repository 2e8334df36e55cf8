package ingest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

// otherProducers is the producer id of the counter that producers share when
// there are too many of them, and otherReasons its like for reasons. A producer
// that calls itself "~other" is counted with them and harms only its own counts.
const (
	otherProducers = "~other"
	otherReasons   = "other"
)

// maxReasons bounds the reasons of one producer, below what a record may hold.
const maxReasons = event.MaxReasons - 1

// counters count, per producer of a tenant, what this edge instance accepted
// and refused since its start. They are cumulative: a record of them that is
// lost loses nothing once the next one arrives.
type counters struct {
	topic      string
	edgeID     string
	edgeEpoch  int64
	partitions int32
	max        int

	mu sync.Mutex // protects m and all it holds
	m  map[counterKey]*counter

	flushing sync.Mutex // one flush at a time, so counts never go backwards
}

type counterKey struct {
	tenant   tenant.ID
	producer string
}

type counter struct {
	accepted, refused int64
	reasons           map[string]int64
	changed           uint64 // how often it was changed
	sent              uint64 // changed, as of the last durable record
}

func newCounters(o Options) *counters {
	return &counters{
		topic: o.Topic, edgeID: o.EdgeID, edgeEpoch: o.EdgeEpoch, partitions: o.Partitions,
		max: o.MaxProducers, m: map[counterKey]*counter{},
	}
}

// at finds or makes a producer's counter. The caller holds mu. The strings may
// alias a request's buffer.
func (c *counters) at(whose tenant.ID, producer string) *counter {
	key := counterKey{whose, producer}
	if n := c.m[key]; n != nil {
		return n
	}
	if len(c.m) >= c.max {
		key.producer = otherProducers
		if n := c.m[key]; n != nil {
			return n
		}
	}
	key = counterKey{tenant.ID(strings.Clone(string(key.tenant))), strings.Clone(key.producer)}
	n := &counter{}
	c.m[key] = n
	return n
}

func (c *counters) refuse(whose tenant.ID, producer, reason string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at(whose, producer).refuse(reason, n)
}

func (n *counter) refuse(reason string, by int64) {
	if n.reasons == nil {
		n.reasons = map[string]int64{}
	}
	if _, known := n.reasons[reason]; !known && len(n.reasons) >= maxReasons {
		reason = otherReasons
	}
	n.reasons[reason] += by
	n.refused += by
	n.changed++
}

// settle counts what became of the events of a frame and returns how many are
// durable.
func (c *counters) settle(events []pendingEvent, results []kafka.Result) (accepted int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last *counter
	var lastKey counterKey
	for i := range events {
		p := &events[i]
		if last == nil || lastKey.tenant != p.tenant.id || lastKey.producer != p.producer {
			last, lastKey = c.at(p.tenant.id, p.producer), counterKey{p.tenant.id, p.producer}
		}
		if results[i].Err != nil {
			last.refuse(RuleUnavailable, 1)
			continue
		}
		last.accepted++
		last.changed++
		accepted++
	}
	return accepted
}

// maxCountersPerFlush bounds one produce call.
const maxCountersPerFlush = 1000

// flush sends the counters that have changed and returns the first error.
func (c *counters) flush(ctx context.Context, log Log, now time.Time) error {
	c.flushing.Lock()
	defer c.flushing.Unlock()
	var first error
	for keys := range slices.Chunk(c.changed(), maxCountersPerFlush) {
		if err := c.send(ctx, log, keys, now); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (c *counters) changed() (keys []counterKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, n := range c.m {
		if n.changed != n.sent {
			keys = append(keys, key)
		}
	}
	return keys
}

func (c *counters) send(ctx context.Context, log Log, keys []counterKey, now time.Time) error {
	recs := make([]kafka.Record, len(keys))
	versions := make([]uint64, len(keys))
	results := make([]kafka.Result, len(keys))
	for i, key := range keys {
		value, version := c.encode(key, now)
		versions[i] = version
		recs[i] = kafka.Record{
			Topic: c.topic, Partition: key.tenant.Partition(c.partitions), TimestampMs: now.UnixMilli(),
			Key: []byte(key.tenant), Value: value,
		}
	}
	err := produce(ctx, log, recs, results)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, key := range keys {
		if results[i].Err == nil {
			c.m[key].sent = versions[i]
		}
	}
	return err
}

// encode is the counter as a record, and the version that it is of.
func (c *counters) encode(key counterKey, now time.Time) ([]byte, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.m[key]
	rec := event.Counters{
		Tenant: string(key.tenant), ProducerID: key.producer, EdgeID: c.edgeID, EdgeEpoch: c.edgeEpoch,
		Accepted: n.accepted, Refused: n.refused, CountedAt: now.UnixNano(),
	}
	for _, reason := range slices.Sorted(maps.Keys(n.reasons)) {
		rec.Reasons = append(rec.Reasons, event.ReasonCount{Reason: reason, N: n.reasons[reason]})
	}
	return event.AppendCountersRecord(nil, &rec), n.changed
}
