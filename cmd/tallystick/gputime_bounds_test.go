package main

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/processors/gputime"
)

// telemetryLog keeps the records of telemetry.
type telemetryLog struct{ batches []*pb.GpuSampleBatch }

func (l *telemetryLog) ProduceBatch(_ context.Context, recs []kafka.Record, _ []kafka.Result) error {
	for i := range recs {
		b := &pb.GpuSampleBatch{}
		if err := proto.Unmarshal(recs[i].Value, b); err != nil {
			return err
		}
		l.batches = append(l.batches, b)
	}
	return nil
}

// A sample is refused where it comes in, and counted by who sent it, or it is
// accounted for: nothing in between is acknowledged and then dropped, with whatever
// horizon, and also where another door's clock has brought the log's ahead.
func TestWhatIsTakenIsAccounted(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, days := range []int{config.DefaultGPUHorizonDays, 1, 365} {
		cfg := config.GPUTime{WindowSeconds: 300, LatenessSeconds: 120, MaxGapSeconds: 120, HorizonDays: days}
		if err := gpuTimeOptions(cfg).Validate(); err != nil {
			t.Fatal(err)
		}
		a := &app{cfg: &config.Config{DataDir: t.TempDir(), GPUTime: cfg, Agents: config.Agents{TenantRate: 1000}}}
		var log telemetryLog
		opts := a.gpuRelayOptions()
		opts.Topic, opts.GatewayID, opts.Now = "telemetry", "test", func() time.Time { return now }
		relay, err := agent.NewRelay(&log, opts)
		if err != nil {
			t.Fatal(err)
		}
		age := time.Duration(days) * 24 * time.Hour
		var all []*pb.GpuSample
		for _, off := range []time.Duration{-age - 1*time.Microsecond, -age, -age / 2, 0, gpu.MaxAhead, gpu.MaxAhead + time.Microsecond} {
			all = append(all, &pb.GpuSample{GpuUuid: "GPU-1", Host: "n", EndUs: now.Add(off).UnixMicro()})
		}
		refused, err := relay.Send(t.Context(), "acme", "c", all)
		if err != nil || len(refused) != 2 || refused[0].Index != 0 || refused[1].Index != 5 || len(log.batches) != 1 {
			t.Fatalf("%d days: %v, %+v", days, err, refused)
		}
		core := gputime.NewCore(gpuTimeOptions(cfg), now.Add(gputime.ClockSlack-time.Second).UnixMicro(), 0)
		for _, early := range []bool{true, false} { // the log's clock is ahead, or is the door's
			if !early {
				core = gputime.NewCore(gpuTimeOptions(cfg), 0, 0)
			}
			b := gputime.Batch{Tenant: "acme", Agent: "otlp/c", ReceivedAt: log.batches[0].ReceivedAt.AsTime().UnixMicro()}
			for _, s := range log.batches[0].Samples {
				b.Samples = append(b.Samples, gputime.Sample{GPU: s.GpuUuid, Start: s.EndUs, End: s.EndUs, Relayed: true, Used: gputime.Unknown})
			}
			core.Apply(&b)
			if got := core.Take().Counts[gputime.Source{Tenant: "acme", Agent: "otlp/c"}]; got.Accounted != 4 || got.Late != 0 || got.Future != 0 {
				t.Errorf("%d days: of 4 that were taken %+v", days, got)
			}
		}
	}
}
