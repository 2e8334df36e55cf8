package kafka

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"
)

// record350 has the size of a usage event on the wire: 350 bytes, half of which
// do not compress (ids, hashes).
func record350(topic string, partition int32) Record {
	value := make([]byte, 330)
	_, _ = rand.Read(value[:165]) // crypto/rand never fails
	return Record{Topic: topic, Partition: partition, TimestampMs: time.Now().UnixMilli(), Key: []byte("tenant-0123456789abc"), Value: value}
}

// BenchmarkProduce sends batches of 1,000 records of 350 bytes over 12
// partitions from 8 callers, each waiting for its acknowledgements.
func BenchmarkProduce(b *testing.B) {
	cfg := testConfig(b)
	testTopics(b, cfg, 12)
	p := testProducer(b, cfg, ProducerOptions{})
	batch := make([]Record, 1000)
	for i := range batch {
		batch[i] = record350(cfg.Topics().Events, int32(i%12))
	}
	if err := p.ProduceBatch(b.Context(), batch, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var callers sync.WaitGroup
	for c := range 8 {
		callers.Go(func() {
			for sent := c * 1000; sent < b.N; sent += 8000 {
				if err := p.ProduceBatch(b.Context(), batch[:min(1000, b.N-sent)], nil); err != nil {
					b.Error(err)
				}
			}
		})
	}
	callers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkRead reads one partition of 350-byte records from its start.
func BenchmarkRead(b *testing.B) {
	cfg := testConfig(b)
	testTopics(b, cfg, 1)
	topic := cfg.Topics().Entries
	p := testProducer(b, cfg, ProducerOptions{})
	batch := make([]Record, 5000)
	for i := range batch {
		batch[i] = record350(topic, 0)
	}
	for sent := 0; sent < b.N; sent += len(batch) {
		if err := p.ProduceBatch(b.Context(), batch, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	read := 0
	err := ReadRange(b.Context(), cfg, topic, 0, Position{}, int64(b.N), func(recs []Record) error {
		read += len(recs)
		return nil
	})
	if err != nil || read != b.N {
		b.Fatal(fmt.Errorf("read %d of %d: %w", read, b.N, err))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkProduceOne is the latency of a lone record: linger, fsync, ack.
func BenchmarkProduceOne(b *testing.B) {
	cfg := testConfig(b)
	testTopics(b, cfg, 1)
	p := testProducer(b, cfg, ProducerOptions{})
	rec := record350(cfg.Topics().Events, 0)
	ctx := context.Background()
	if _, err := p.Produce(ctx, rec); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.Produce(ctx, rec); err != nil {
			b.Fatal(err)
		}
	}
}
