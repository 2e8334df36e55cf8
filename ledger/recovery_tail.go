package ledger

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/kafka"
)

// Tail is what Kafka still has of a partition: what recovery begins with.
type Tail interface {
	// Published passes what the partition of `entries` holds to fn, in order and
	// up to its end as it is now. whole says that nothing of it was ever deleted.
	Published(ctx context.Context, partition int32, fn func(recs []kafka.Record, whole bool) error) error
	// Held is the range of offsets [first, end) that the partition of `events` holds.
	Held(ctx context.Context, partition int32) (first, end int64, err error)
}

// KafkaTail is a Tail.
type KafkaTail struct {
	cfg   kafka.Config
	admin *kafka.Admin
}

var _ Tail = (*KafkaTail)(nil)

// NewKafkaTail makes a KafkaTail; the caller closes the admin.
func NewKafkaTail(cfg kafka.Config, admin *kafka.Admin) *KafkaTail { return &KafkaTail{cfg, admin} }

// Published implements Tail.
func (t *KafkaTail) Published(ctx context.Context, partition int32, fn func([]kafka.Record, bool) error) error {
	topic := t.cfg.Topics().Entries
	first, end, err := t.held(ctx, topic, partition)
	if err != nil {
		return err
	}
	return kafka.ReadRange(ctx, t.cfg, topic, partition, kafka.Position{Offset: first}, end, func(recs []kafka.Record) error {
		return fn(recs, first == 0)
	})
}

// Held implements Tail.
func (t *KafkaTail) Held(ctx context.Context, partition int32) (first, end int64, err error) {
	return t.held(ctx, t.cfg.Topics().Events, partition)
}

func (t *KafkaTail) held(ctx context.Context, topic string, partition int32) (first, end int64, err error) {
	starts, err := t.admin.StartOffsets(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	ends, err := t.admin.EndOffsets(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	if int(partition) >= min(len(starts), len(ends)) {
		return 0, 0, fmt.Errorf("%w: partition %d of %d of %s", ErrTopicChanged, partition, len(ends), topic)
	}
	return starts[partition], ends[partition], nil
}
