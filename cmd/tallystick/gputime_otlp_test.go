package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/gpu/gputest"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

// scrapes are how often the exporter is asked, ten seconds apart.
const scrapes = 13

// exporterRows are the data pack's devices as an exporter tells of them: one with
// MIG instances, and two that run, of which two pods share one.
func exporterRows(t *testing.T) (rows []gputest.Row, devices int64) {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(testenv.Data(t, "gpu/"+name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	mig, err := gpu.ParseXML(read("nvidia_smi_xml/a100-sxm4-v12.xml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rows = append(rows, gputest.Rows(mig, "mig", "node-1", "notebook-0")...)
	for _, c := range []struct {
		uuid, file string
		pods       []string
	}{
		{"h100", "linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01.txt", []string{"train-0"}},
		{"l40s", "linux-x86_64__nvidia-l40s__595.80.txt", []string{"serve-0", "serve-1"}},
	} {
		looks, err := gpu.ParseCapture(read("captures/" + c.file))
		if err != nil || len(looks) != 2 {
			t.Fatal(c.file, err)
		}
		rows = append(rows, gputest.Rows(looks[1], c.uuid, "node-1", c.pods...)...)
	}
	uuids := map[string]bool{}
	for _, r := range rows {
		uuids[r.Labels["UUID"]] = true
	}
	return rows, int64(len(uuids))
}

// byAgent writes what an agent reads of the exporter, as the gateway does.
func (w *gpuWorld) byAgent(id string, rows []gputest.Row) {
	w.t.Helper()
	previous := map[string]time.Time{}
	for n := range scrapes {
		at := w.base.Add(time.Duration(n) * 10 * time.Second)
		snap, err := gpu.ParseDCGM(gputest.Text(rows))
		if err != nil {
			w.t.Fatal(err)
		}
		gpu.Finish(snap, "node-1", at, time.Minute, previous)
		for _, s := range snap.Samples {
			s.Cloud, s.Region, s.InstanceType = "aws", "us-east-1", "p5.48xlarge"
		}
		m := &pb.GpuSampleBatch{
			TenantId: id, AgentId: "agent-1", ProducerEpoch: 1, Seq: int64(n + 1), ReceivedAt: timestamppb.New(at),
			SampleCount: int32(len(snap.Samples)), Samples: snap.Samples,
		}
		value, err := proto.Marshal(m)
		if err != nil {
			w.t.Fatal(err)
		}
		rec := kafka.Record{Topic: w.topics.Telemetry, Partition: tenant.ID(id).Partition(12), Key: []byte(id), Value: value, TimestampMs: at.UnixMilli()}
		ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
		err = w.producer.ProduceBatch(ctx, []kafka.Record{rec}, make([]kafka.Result, 1))
		if cancel(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// byCollector sends what a collector makes of the exporter, each export twice, and
// in two pieces, as a queue that retries and a batch that is cut do.
func (w *gpuWorld) byCollector(id string, rows []gputest.Row) {
	w.t.Helper()
	resource := map[string]string{"service.name": "dcgm", "cloud.provider": "aws", "cloud.region": "us-east-1", "host.type": "p5.48xlarge"}
	for n := range scrapes {
		at := w.base.Add(time.Duration(n) * 10 * time.Second)
		for _, part := range [][]gputest.Row{rows[:len(rows)/2], rows[len(rows)/2:], rows[:len(rows)/2], rows} {
			body, err := proto.Marshal(gputest.Metrics(part, at, resource))
			if err != nil {
				w.t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.srv.url()+"/v1/metrics", bytes.NewReader(body))
			if err != nil {
				w.t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+w.srv.token)
			req.Header.Set("X-Tallystick-Tenant", id)
			req.Header.Set("Content-Type", "application/x-protobuf")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				w.t.Fatal(err)
			}
			answer, _ := io.ReadAll(res.Body)
			if res.Body.Close(); res.StatusCode != http.StatusOK || len(answer) > 0 {
				w.t.Fatalf("%d: %q", res.StatusCode, answer)
			}
		}
	}
}

// gpuSums are time and cost of a tenant by state, pod and MIG profile.
func (w *gpuWorld) gpuSums(id string) map[string]string {
	w.t.Helper()
	r, err := w.client.Groups(w.t.Context(), client.Query{TenantID: id, Window: client.Window{Name: "all"}, GroupBy: []string{"gpu_state", "tag:pod", "tag:mig"}, Top: 50})
	out := map[string]string{}
	if err != nil {
		return out // the server may not know the tenant yet
	}
	var total client.Int
	for _, g := range r.Groups {
		if g.Totals.GPUMicros != 0 {
			out[fmt.Sprint(g.Group)] = fmt.Sprint(int64(g.Totals.GPUMicros), " ", g.Totals.CostUSD)
		}
		total += g.Totals.GPUMicros
	}
	out["total"] = fmt.Sprint(int64(total))
	return out
}

// The same devices by an agent, by a collector that retries, and by both at once
// come to the same GPU-seconds and the same money, on real engines.
func TestGPUTimeByOTLPIsTheAgents(t *testing.T) {
	w := newGPUWorld(t)
	ids := []string{"gpu-by-agent", "gpu-by-otlp", "gpu-by-both"}
	w.srv.post(t, "/v1/tenants:batchCreate", map[string]any{"tenant_ids": ids}, http.StatusOK)
	rows, devices := exporterRows(t)
	w.byAgent(ids[0], rows)
	w.byCollector(ids[1], rows)
	w.byCollector(ids[2], rows)
	w.byAgent(ids[2], rows)
	want := fmt.Sprint(devices * (scrapes - 1) * 10_000_000)
	sums := map[string]map[string]string{}
	same := func() bool {
		for _, id := range ids {
			if sums[id] = w.gpuSums(id); sums[id]["total"] != want {
				return false
			}
		}
		return reflect.DeepEqual(sums[ids[0]], sums[ids[1]]) && reflect.DeepEqual(sums[ids[0]], sums[ids[2]])
	}
	for end := time.Now().Add(2 * time.Minute); !same(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v, want %s", sums, want)
		}
	}
	if len(sums[ids[0]]) < 6 {
		t.Errorf("too few groups: %v", sums[ids[0]])
	}
	for _, id := range ids {
		if v, err := w.client.Verify(t.Context(), id); err != nil || v.Verdict != "intact" {
			t.Errorf("the ledger of %s is %+v, %v", id, v, err)
		}
	}
}
