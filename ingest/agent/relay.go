package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// RelayPrefix begins the agent id of what a Relay takes. No agent that proves itself
// has such an id.
const RelayPrefix = agentauth.CollectorPrefix

// Relay puts samples into the topic `telemetry` for another front door, which has
// verified on whose behalf it speaks: a collector that has a token and is no agent.
// The samples keep the rules of the gateway, are in Kafka when Send returns without
// an error, and are in records without an epoch and a number: a sample that comes
// again is known by its device and its time. It admits nobody as an agent. It may be
// used by many goroutines.
type Relay struct {
	log    Log
	opts   Options
	limits *limits
}

// NewRelay makes a Relay. Of the options Topic, Partitions, GatewayID, TenantRate,
// Deadline, MaxFuture, MaxAge and Now count; a tenant's bucket is the Relay's own.
func NewRelay(log Log, opts Options) (*Relay, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	return &Relay{log: log, opts: opts, limits: newLimits(opts)}, nil
}

// Refused is a sample that breaks a rule, for ever.
type Refused struct {
	Index int
	// Field and Rule are of the table of fields: they repeat nothing of the sample.
	Field, Rule string
}

// DelayError says that a tenant's samples are over the limit, and when they are not.
type DelayError struct{ After time.Duration }

// Error implements error.
func (e *DelayError) Error() string {
	return fmt.Sprintf("agent: over the tenant's rate of samples, for %s", e.After)
}

// Send makes the samples durable that keep the rules. name says who sent them, in
// the tenant's counts; it is no secret. The error is a *DelayError, of which nothing
// was taken, or that of Kafka: then some may be durable, and all may be sent again.
func (r *Relay) Send(ctx context.Context, id tenant.ID, name string, samples []*pb.GpuSample) (refused []Refused, err error) {
	now := r.opts.Now()
	when := r.opts.boundsAt(now)
	var good [][]byte
	for i, s := range samples {
		whole, content, err := encodeSample(s)
		if err != nil {
			refused = append(refused, Refused{i, "sample", ruleMalformed}) // a text that is no UTF-8
			continue
		}
		if bad := checkSample(content, when); bad.bad() {
			refused = append(refused, Refused{i, bad.field, bad.rule})
			continue
		}
		good = append(good, whole)
	}
	if len(good) == 0 {
		return refused, nil
	}
	bucket := r.limits.of(id)
	place := bucket.ReserveN(now, min(len(good), bucket.Burst()))
	if wait := place.DelayFrom(now); wait > 0 {
		place.CancelAt(now)
		return refused, &DelayError{wait}
	}
	if !event.ValidText(RelayPrefix+name, event.MaxIDBytes) {
		name = "" // readers would not take it
	}
	return refused, r.produce(ctx, id, RelayPrefix+name, good, now)
}

// encodeSample is a sample with the tag and length that it has in a frame, and
// without.
func encodeSample(s *pb.GpuSample) (whole, content []byte, err error) {
	size := proto.Size(s)
	whole = make([]byte, 0, size+protowire.SizeTag(samplesSample)+protowire.SizeVarint(uint64(size)))
	whole = protowire.AppendTag(whole, samplesSample, protowire.BytesType)
	whole = protowire.AppendVarint(whole, uint64(size))
	head := len(whole)
	whole, err = proto.MarshalOptions{}.MarshalAppend(whole, s)
	return whole, whole[head:], err
}

// produce writes the samples in records of no more than a frame's size.
func (r *Relay) produce(ctx context.Context, id tenant.ID, agent string, good [][]byte, now time.Time) error {
	var recs []kafka.Record
	for len(good) > 0 {
		n, size := 0, 0
		for n < len(good) && n < MaxSamples && (n == 0 || size+len(good[n]) <= MaxFrameBytes) {
			size += len(good[n])
			n++
		}
		f := frame{good: good[:n]}
		good = good[n:]
		recs = append(recs, kafka.Record{
			Topic: r.opts.Topic, Partition: id.Partition(r.opts.Partitions), Key: []byte(id), TimestampMs: now.UnixMilli(),
			Value: f.appendBatchOf(nil, id, agent, r.opts.GatewayID, now),
		})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.Deadline)
	defer cancel()
	return r.log.ProduceBatch(ctx, recs, make([]kafka.Result, len(recs)))
}
