package ledger

import (
	"context"
	"fmt"

	"github.com/tallystick/tallystick/internal/kafka"
)

// ConsumerGroup is the consumer group of the ledger's writers. Its committed offsets
// are for dashboards; the truth is in the Store.
const ConsumerGroup = "tallystick-ledger"

// One read of a partition: a batch is at most MaxBatchRecords and one read more.
const (
	maxReadRecords = 4096
	maxFetchBytes  = 1 << 20 // compressed
)

// Run writes all partitions that this process is assigned until ctx ends, and
// returns when every batch in hand is committed and published. direct takes all
// partitions without a consumer group, for a process that is alone. A partition
// that halts stays assigned and silent; Stats says which and why.
func (w *Writer) Run(ctx context.Context, cfg kafka.Config, topic Topic, direct bool) error {
	opts := kafka.ConsumerOptions{Topic: w.topics.Events, Group: ConsumerGroup, Direct: direct, HandOver: 2 * shutdownTime,
		Reader: kafka.ReaderOptions{MaxRecords: maxReadRecords, MaxFetchBytes: maxFetchBytes}}
	c, err := kafka.NewConsumer(cfg, opts, func(ctx context.Context, p *kafka.Partition) error {
		return w.RunPartition(ctx, topic, p.ID, partitionSource{p})
	})
	if err != nil {
		return fmt.Errorf("ledger consumer: %w", err)
	}
	return c.Run(ctx)
}

// partitionSource is a Kafka partition as a Source.
type partitionSource struct{ *kafka.Partition }

// Open starts reading the partition.
func (s partitionSource) Open(ctx context.Context, at kafka.Position) (Reader, error) {
	return s.Partition.Open(ctx, at)
}
