package gputime

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

// BenchmarkApply is one sample of a fleet of 2,000 devices, in records of 100, with
// what it takes to store each second of it.
func BenchmarkApply(b *testing.B) {
	const devices = 2000
	c := NewCore(Options{}, 0, 0)
	var batches []Batch
	round := int64(0)
	next := func() {
		batches = batches[:0]
		end := base + (round+1)*10*second
		for d := 0; d < devices; d += 100 {
			batch := Batch{Tenant: fmt.Sprint("t-", d/200), Agent: "a", ReceivedAt: end}
			for i := range 100 {
				batch.Samples = append(batch.Samples, Sample{
					GPU: fmt.Sprint("GPU-", d+i), Start: end - 10*second, End: end, Used: round % million,
					Device: Device{Host: "h", Model: "H100", Cloud: "aws", Instance: "p5.48xlarge"},
					Claims: []Claim{{Owner: owner("search", fmt.Sprint("p", d+i)), Share: Unknown, Used: Unknown}},
				})
			}
			batches = append(batches, batch)
		}
		round++
	}
	next()
	n, at, events := 0, 0, 0
	for b.Loop() {
		if n++; n < 100 {
			continue // a batch is a hundred samples
		}
		n = 0
		c.Apply(&batches[at])
		if at++; at == len(batches) {
			ch := c.Take()
			events += len(ch.Events)
			b.StopTimer()
			next()
			at = 0
			b.StartTimer()
		}
	}
	b.ReportMetric(float64(events)/float64(b.N), "events/sample")
}

const (
	benchTenants = 10
	benchFrame   = 25 // samples of a record, as agents send them
)

// fleet is so many devices that are looked at so often, every ten seconds.
type fleet struct{ devices, rounds int }

// run calls do with the records of the fleet, in order.
func (f fleet) run(do func(id tenant.ID, b *Batch)) {
	for round := range int64(f.rounds) {
		end := base + (round+1)*10*second
		for d := 0; d < f.devices; d += benchFrame {
			id := tenant.ID(fmt.Sprint("tenant-", d*benchTenants/f.devices))
			b := Batch{Tenant: string(id), Agent: fmt.Sprint("agent-", d/benchFrame), ReceivedAt: end}
			for i := range benchFrame {
				b.Samples = append(b.Samples, Sample{
					GPU: fmt.Sprintf("GPU-%08d-1111-2222-3333-444444444444", d+i), Start: end - 10*second, End: end, Used: (round * 977) % million,
					Device: Device{Host: fmt.Sprint("node-", d/8), Model: "NVIDIA H100 80GB HBM3", Cloud: "aws", Region: "us-east-1", Instance: "p5.48xlarge"},
					Claims: []Claim{{Owner: owner("search", fmt.Sprint("p", d+i)), Share: Unknown, Used: Unknown}},
				})
			}
			do(id, &b)
		}
	}
}

// benchKafka makes the topics, and a producer for them.
func benchKafka(b *testing.B, partitions int32) (kafka.Config, *kafka.Producer) {
	b.Helper()
	brokers := testenv.Kafka(b)
	cfg := kafka.Config{
		Brokers: brokers.Seeds, TopicPrefix: brokers.TopicPrefix, AllowPlaintext: brokers.TLSCA == "", Logger: slog.New(slog.DiscardHandler),
		TLS:  kafka.TLS{Enabled: brokers.TLSCA != "", CAFile: brokers.TLSCA},
		SASL: kafka.SASL{Mechanism: brokers.SASLMechanism, Username: brokers.SASLUser, Password: brokers.SASLPassword},
	}
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(admin.Close)
	if _, err := admin.EnsureTopics(b.Context(), kafka.TopicSpec{Partitions: partitions, ReplicationFactor: 1}); err != nil {
		b.Fatal(err)
	}
	producer, err := kafka.NewProducer(cfg, kafka.ProducerOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = producer.Close(context.Background()) })
	return cfg, producer
}

// BenchmarkTelemetry is the way from the topic `telemetry` to events that are sent:
// a whole backlog of 600,000 samples read over the Kafka protocol, accounted, stored
// in Postgres, and handed to an edge that takes everything. An operation is the
// backlog. Processor, broker and Postgres share the machine. 50 minutes of 2,000
// devices have as many windows and events for a sample as life has; half a minute of
// 200,000 has as many changed windows in a transaction as 50,000 samples a second of
// 500,000 devices.
func BenchmarkTelemetry(b *testing.B) {
	for name, f := range map[string]fleet{"long": {2000, 300}, "wide": {200_000, 3}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				benchTelemetry(b, name, f)
			}
		})
	}
}

func benchTelemetry(b *testing.B, name string, f fleet) {
	const partitions = 4
	b.StopTimer()
	cfg, producer := benchKafka(b, partitions)
	samples := f.fill(b, cfg, producer, partitions)
	store := NewStore(testenv.MigratedPostgres(b).Open(b, postgres.RoleProcessors))
	end := time.UnixMicro(base + int64(f.rounds)*10*second)
	var sent atomic.Int64
	var tenants []tenant.ID
	for i := range benchTenants {
		tenants = append(tenants, tenant.ID(fmt.Sprint("tenant-", i)))
	}
	runner, err := New(Parts{
		Store: store, Publisher: producer, Topic: cfg.Topics().Telemetry, Partitions: partitions,
		Edge: countingEdge{&sent}, Tenants: func() []tenant.ID { return tenants },
	}, Options{Now: func() time.Time { return end }}) // as in life, the log's clock is not far behind
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	used, began := processCPU(), time.Now()
	b.StartTimer()
	var running sync.WaitGroup
	running.Go(func() {
		if err := runner.Run(ctx, cfg, true); err != nil && ctx.Err() == nil {
			b.Error(err)
		}
	})
	accounted := int64(0)
	for accounted < samples && time.Since(began) < 5*time.Minute {
		time.Sleep(100 * time.Millisecond)
		accounted = 0
		for _, id := range tenants {
			counts, err := store.CountsOf(ctx, string(id))
			if err != nil {
				b.Fatal(err)
			}
			for _, c := range counts {
				accounted += c.Accounted
			}
		}
	}
	took, spent := time.Since(began), processCPU()-used
	b.StopTimer()
	cancel()
	running.Wait()
	if accounted != samples {
		b.Fatalf("%d of %d samples are accounted", accounted, samples)
	}
	b.ReportMetric(float64(samples)/took.Seconds(), "samples/s")
	b.ReportMetric(float64(samples)/spent.Seconds(), "samples/cpu-s")
	b.ReportMetric(float64(sent.Load())/float64(samples), "events/sample")
	b.Logf("gputime: fleet=%s samples=%d telemetry_per_s=%.0f per_cpu_s=%.0f events=%d", name, samples, float64(samples)/took.Seconds(), float64(samples)/spent.Seconds(), sent.Load())
	b.StartTimer()
}

// fill writes the fleet's records as the gateway does, and says how many samples
// there are.
func (f fleet) fill(b *testing.B, cfg kafka.Config, producer *kafka.Producer, partitions int32) (samples int64) {
	b.Helper()
	var recs []kafka.Record
	flush := func() {
		if err := producer.ProduceBatch(b.Context(), recs, make([]kafka.Result, len(recs))); err != nil {
			b.Fatal(err)
		}
		recs = recs[:0]
	}
	f.run(func(id tenant.ID, batch *Batch) {
		value, err := proto.Marshal(message(batch))
		if err != nil {
			b.Fatal(err)
		}
		recs = append(recs, kafka.Record{Topic: cfg.Topics().Telemetry, Partition: id.Partition(partitions), Key: []byte(id), Value: value, TimestampMs: batch.ReceivedAt / 1000})
		if samples += int64(len(batch.Samples)); len(recs) == 1000 {
			flush()
		}
	})
	flush()
	return samples
}

// countingEdge takes every event.
type countingEdge struct{ sent *atomic.Int64 }

func (e countingEdge) Submit(_ context.Context, events []event.Event) (map[int]string, error) {
	e.sent.Add(int64(len(events)))
	return nil, nil
}

// processCPU is the CPU time of this process: processor and broker, without Postgres.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRecord is a sample on its way through one partition's loop, from the
// bytes of a record of 25 on: decoded, and taken into its window.
func BenchmarkRecord(b *testing.B) {
	var values [][]byte
	fleet{2000, 60}.run(func(_ tenant.ID, batch *Batch) {
		value, err := proto.Marshal(message(batch))
		if err != nil {
			b.Fatal(err)
		}
		values = append(values, value)
	})
	b.ReportAllocs()
	u := &run{r: &Runner{Parts: Parts{Partitions: 1, Log: slog.New(slog.DiscardHandler)}}, log: slog.New(slog.DiscardHandler)}
	n := 0
	for b.Loop() {
		if n%len(values) == 0 {
			u.core = NewCore(Options{}, 0, 0)
		}
		rec := kafka.Record{Value: values[n%len(values)]}
		rec.Key = keyOf(rec.Value)
		batch := u.batchOf(b.Context(), &rec)
		if len(batch.Samples) != benchFrame {
			b.Fatalf("%d samples", len(batch.Samples))
		}
		u.core.Needs(&batch, map[Place]struct{}{})
		u.core.Apply(&batch)
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchFrame, "ns/sample")
	b.ReportMetric(float64(b.N)*benchFrame/b.Elapsed().Seconds(), "samples/s")
}

// keyOf is the tenant at the beginning of a record's bytes.
func keyOf(value []byte) []byte { return value[2 : 2+int(value[1])] }
