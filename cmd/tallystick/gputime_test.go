package main

import (
	"bytes"
	"context"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

const gpuTenant = "gpu-acme"

// gpuWorld is the program on real engines, and a Kafka beside it that outlives it.
type gpuWorld struct {
	t        *testing.T
	srv      *faultServer
	producer *kafka.Producer
	topics   kafka.Topics
	client   *client.Client
	base     time.Time // a whole hour
	seq      int64
}

// gpuBookFile is a book with the price of one instance: 55.04 USD an hour, 8 devices.
func gpuBookFile(t *testing.T, dir string) string {
	t.Helper()
	day := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	book, err := pricing.Builtin().WithGPUs(pricing.Header{Version: "gpu-test"}, []pricing.GPURow{{
		Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Purchase: pricing.OnDemand, GPU: "h100",
		PerHour: 55_040_000_000_000, Devices: 8, ValidFrom: day, KnownFrom: day, Source: "the test",
	}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "book.jsonl")
	if err := os.WriteFile(path, book.Marshal(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func newGPUWorld(t *testing.T) *gpuWorld {
	t.Helper()
	brokers := testenv.Kafka(t)
	cfg := kafka.Config{
		Brokers: brokers.Seeds, TopicPrefix: brokers.TopicPrefix, AllowPlaintext: brokers.TLSCA == "",
		TLS:  kafka.TLS{Enabled: brokers.TLSCA != "", CAFile: brokers.TLSCA},
		SASL: kafka.SASL{Mechanism: brokers.SASLMechanism, Username: brokers.SASLUser, Password: brokers.SASLPassword},
	}
	w := &gpuWorld{t: t, topics: cfg.Topics(), base: time.Now().Add(-3 * time.Hour).Truncate(time.Hour)}
	w.srv = startFaultServer(t, func(s *smokeServer) {
		s.env = append(s.env, "TALLYSTICK_KAFKA_BROKERS="+strings.Join(brokers.Seeds, ","), "TALLYSTICK_KAFKA_TOPIC_PREFIX="+brokers.TopicPrefix,
			"TALLYSTICK_KAFKA_REPLICATION=1", "TALLYSTICK_KAFKA_ALLOW_PLAINTEXT=true",
			"TALLYSTICK_GPUTIME_WINDOW_SECONDS=60", "TALLYSTICK_GPUTIME_MAX_GAP_SECONDS=20", "TALLYSTICK_GPUTIME_LATENESS_SECONDS=10",
			"TALLYSTICK_PRICES_FILE="+gpuBookFile(t, s.dir), "TALLYSTICK_PRICES_FORM=book")
	})
	var err error
	if w.producer, err = kafka.NewProducer(cfg, kafka.ProducerOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closeProducer(w.producer) })
	w.client = client.New(w.srv.url(), w.srv.token)
	t.Cleanup(w.client.Close)
	w.srv.post(t, "/v1/tenants:batchCreate", map[string]any{"tenant_ids": []string{gpuTenant}}, http.StatusOK)
	return w
}

// send writes a batch as the gateway does: samples of ten seconds that end at these
// seconds after base, received after lag.
func (w *gpuWorld) send(seconds []int64, lag time.Duration, change func(sec int64, s *pb.GpuSample)) {
	w.t.Helper()
	w.seq++
	m := &pb.GpuSampleBatch{TenantId: gpuTenant, AgentId: "agent-1", ProducerEpoch: 1, Seq: w.seq}
	last := w.base
	for _, sec := range seconds {
		for gpu := range 2 {
			end := w.base.Add(time.Duration(sec) * time.Second)
			s := &pb.GpuSample{
				GpuUuid: fmt.Sprint("GPU-", gpu), Host: "node-1", Model: "H100", StartUs: end.Add(-10 * time.Second).UnixMicro(), EndUs: end.UnixMicro(),
				Cloud: "aws", Region: "us-east-1", InstanceType: "p5.48xlarge", GpuUtilizationPercent: proto.Float64(0),
			}
			if gpu == 0 { // half used by a pod
				s.GpuUtilizationPercent = proto.Float64(50)
				s.Workloads = []*pb.GpuWorkload{{Pod: "ranker-0", Namespace: "ml", Team: "search", Allocated: proto.Bool(true)}}
			}
			if change != nil {
				change(sec, s)
			}
			m.Samples = append(m.Samples, s)
			if end.After(last) {
				last = end
			}
		}
	}
	m.SampleCount, m.ReceivedAt = int32(len(m.Samples)), timestamppb.New(last.Add(lag))
	value, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	partition := tenant.ID(gpuTenant).Partition(12)
	rec := kafka.Record{Topic: w.topics.Telemetry, Partition: partition, Key: []byte(gpuTenant), Value: value, TimestampMs: time.Now().UnixMilli()}
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	if err := w.producer.ProduceBatch(ctx, []kafka.Record{rec}, make([]kafka.Result, 1)); err != nil {
		w.t.Fatal(err)
	}
}

// totals are the sums by a dimension, none while the server has no answer: it may not
// know the tenant yet.
func (w *gpuWorld) totals(by string) map[string]client.Totals {
	w.t.Helper()
	r, err := w.client.Groups(w.t.Context(), client.Query{TenantID: gpuTenant, Window: client.Window{Name: "all"}, GroupBy: []string{by}})
	out := map[string]client.Totals{}
	if err != nil {
		w.t.Logf("no report: %v", err)
		return out
	}
	for _, g := range r.Groups {
		out[g.Group[0]] = g.Totals
	}
	return out
}

// priceOf is micros at 55.04 USD an hour over 8 devices, in 1e-12 USD, half to even.
func priceOf(micros int64) *big.Int {
	num := new(big.Int).Mul(big.NewInt(micros), big.NewInt(55_040_000_000_000))
	den := big.NewInt(8 * 3_600_000_000)
	q, rem := num.QuoRem(num, den, new(big.Int))
	if c := rem.Lsh(rem, 1).Cmp(den); c > 0 || c == 0 && q.Bit(0) == 1 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

// usd writes n times an amount as reports do.
func usd(n int64, pico *big.Int) string {
	text := fmt.Sprintf("%013s", new(big.Int).Mul(pico, big.NewInt(n)).String())
	return text[:len(text)-12] + "." + text[len(text)-12:]
}

// Samples become money on real engines, through a kill -9: every microsecond of two
// devices is in the ledger once, priced exactly, by owner and state, and a sample
// that came late corrects what stood there.
func TestGPUTimeBecomesMoney(t *testing.T) {
	w := newGPUWorld(t)
	// Rules of whom calls are for speak of GPU time too: of who had the device by its
	// tags, and of what nobody had.
	w.srv.post(t, "/v1/mapping/rules", map[string]any{"tenant_id": gpuTenant, "rules": []any{
		map[string]any{"when": map[string]string{"tag.pod": "ranker-*", "tag.namespace": "ml"}, "set": map[string]string{"service": "ranking"}},
		map[string]any{"when": map[string]string{"operation": "gpu_time", "tag.gpu_model": "H100", "team": ""}, "set": map[string]string{"team": "platform"}},
	}}, http.StatusOK)
	const minutes = 6
	var all []int64
	for sec := int64(10); sec <= minutes*60; sec += 10 {
		all = append(all, sec)
	}
	late := int64(200) // the sample of GPU-0 that ends here comes long after its window
	skip := func(sec int64, s *pb.GpuSample) {
		if sec == late && s.GpuUuid == "GPU-0" {
			s.StartUs, s.EndUs = s.StartUs-10_000_000, s.EndUs-10_000_000 // the one before, twice
		}
	}
	half := len(all) / 2
	for i := 0; i < half; i += 3 {
		w.send(all[i:i+3], 2*time.Second, skip)
	}
	await(t, "first windows are in the ledger", time.Minute, func() bool { return w.totals("gpu_state")["used"].GPUMicros > 0 })
	for i := half; i < len(all); i += 3 {
		w.send(all[i:i+3], 2*time.Second, skip)
		if i == half {
			time.Sleep(700 * time.Millisecond) // somewhere in a transaction, or between it and the edge
			if _, err := w.srv.kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.srv.mustStart(t)
	w.send(all[:3], time.Hour, nil) // again, and an hour later by the log's clock: every window is due
	whole := int64(minutes * 60_000_000)
	await(t, "all but the late sample is in the reports", 2*time.Minute, func() bool {
		by := w.totals("gpu_state")
		return by["used"].GPUMicros+by["idle"].GPUMicros+by["unallocated"].GPUMicros == client.Int(2*whole-10_000_000)
	})
	w.send([]int64{late}, 2*time.Hour, nil)
	w.send(all[:1], 3*time.Hour, nil)
	await(t, "the late sample is in the reports", 2*time.Minute, func() bool { return w.totals("gpu_state")["used"].GPUMicros == client.Int(whole/2) })

	minute := priceOf(60_000_000)
	halfMinute := priceOf(30_000_000)
	by := w.totals("gpu_state")
	for state, want := range map[string]client.Totals{
		"used":        {CostUSD: usd(minutes, halfMinute), Requests: minutes, Corrections: 1, GPUMicros: client.Int(whole / 2)},
		"idle":        {CostUSD: usd(minutes, halfMinute), Requests: minutes, Corrections: 1, GPUMicros: client.Int(whole / 2)},
		"unallocated": {CostUSD: usd(minutes, minute), Requests: minutes, GPUMicros: client.Int(whole)},
	} {
		got := by[state]
		if got.CostUSD != want.CostUSD || got.Requests != want.Requests || got.Corrections != want.Corrections || got.GPUMicros != want.GPUMicros || got.Unpriced != 0 {
			t.Errorf("%s: %+v, want %+v", state, got, want)
		}
	}
	if teams := w.totals("team"); teams["search"].GPUMicros != client.Int(whole) || teams["platform"].GPUMicros != client.Int(whole) || len(teams) != 2 {
		t.Errorf("by team %+v", teams)
	}
	// The correction of the late sample counts where the rules put its original.
	if services := w.totals("service"); services["ranking"].GPUMicros != client.Int(whole) || services["ranking"].Corrections != 2 || services[""].GPUMicros != client.Int(whole) {
		t.Errorf("by service %+v", services)
	}
	if pods := w.totals("tag:pod"); pods["ranker-0"].CostUSD != usd(2*minutes, halfMinute) {
		t.Errorf("by pod %+v", pods)
	}
	// An agent that was cut off for three days sends what it kept.
	w.send([]int64{3010, 3020, 3030}, 72*time.Hour, nil)
	w.send(all[:1], 73*time.Hour, nil)
	await(t, "what came after three days is in the reports", 2*time.Minute, func() bool {
		return w.totals("gpu_state")["used"].GPUMicros == client.Int(whole/2+15_000_000)
	})
	if v, err := w.client.Verify(t.Context(), gpuTenant); err != nil || v.Verdict != "intact" {
		t.Errorf("the ledger is %+v, %v", v, err)
	}
	w.explain()
}

// explain holds one entry and one correction against `prices explain`.
func (w *gpuWorld) explain() {
	w.t.Helper()
	first := map[string]client.Int{}
	err := w.client.Entries(w.t.Context(), gpuTenant, func(e *client.Entry) error {
		if first[e.Kind] == 0 {
			first[e.Kind] = e.Seq
		}
		return nil
	})
	if err != nil || first["usage"] == 0 || first["correction"] == 0 {
		w.t.Fatalf("no usage entry or no correction: %v", err)
	}
	w.explains(first["usage"])
	w.explains(first["correction"], "corrects ", "delta ", " µs\n")
}

// explains holds an entry against `prices explain`, which says these things too.
func (w *gpuWorld) explains(seq client.Int, also ...string) {
	w.t.Helper()
	var out bytes.Buffer
	cmd := newRootCommand()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"prices", "explain", fmt.Sprint(seq), "--tenant", gpuTenant, "--book", filepath.Join(w.srv.dir, "book.jsonl"),
		"--url", w.srv.url(), "--token-file", filepath.Join(w.srv.dataDir(), adminTokenFile)})
	if err := cmd.ExecuteContext(w.t.Context()); err != nil {
		w.t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range append(also, "aws/p5.48xlarge[us-east-1]@2025-01-01/on_demand", "55.040000000000 USD per hour", "gpu_time/1 ") {
		if !strings.Contains(out.String(), want) {
			w.t.Errorf("the explanation lacks %q:\n%s", want, out.String())
		}
	}
}
