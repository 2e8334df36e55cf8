package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	colmetricspb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/ingest/doortest"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/gpu/gputest"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// at is when things are scraped: shortly before now.
var at = time.Unix(0, start).UTC()

// gpuDoor is the door with a relay over a log in memory.
type gpuDoor struct {
	t         testing.TB
	events    doortest.Log
	telemetry doortest.Log
	handler   http.Handler
}

func newGPUDoor(t testing.TB, rate int) *gpuDoor {
	t.Helper()
	d := &gpuDoor{t: t}
	relay, err := agent.NewRelay(&d.telemetry, agent.Options{Topic: "telemetry", GatewayID: "e", Now: now, TenantRate: rate})
	if err != nil {
		t.Fatal(err)
	}
	d.handler = Handler(doortest.NewEdge(t, &d.events, now), relay, new(Gateways))
	return d
}

// post sends metrics and gives the answer's status and partial success.
func (d *gpuDoor) post(m *colmetricspb.ExportMetricsServiceRequest, header ...string) (int, *colmetricspb.ExportMetricsPartialSuccess) {
	d.t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/v1/metrics", bytes.NewReader(body(d.t, m)))
	r.Header.Set("Content-Type", typeProto)
	r.Header.Set("Authorization", "Bearer good")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, r)
	var res colmetricspb.ExportMetricsServiceResponse
	if w.Code == http.StatusOK {
		if err := proto.Unmarshal(w.Body.Bytes(), &res); err != nil {
			d.t.Fatal(err)
		}
	}
	return w.Code, res.GetPartialSuccess()
}

// samples are those that were made durable since it was called last.
func (d *gpuDoor) samples() (list []*pb.GpuSample) {
	d.t.Helper()
	for _, rec := range d.telemetry.Take() {
		var b pb.GpuSampleBatch
		if err := proto.Unmarshal(rec, &b); err != nil {
			d.t.Fatal(err)
		}
		if b.GetTenantId() != "acme" || b.GetAgentId() != "otlp/p" || b.GetProducerEpoch() != 0 || b.GetReceivedAt() == nil || int(b.GetSampleCount()) != len(b.Samples) {
			d.t.Errorf("batch of %q %q, %d samples", b.GetTenantId(), b.GetAgentId(), len(b.Samples))
		}
		list = append(list, b.Samples...)
	}
	return list
}

// snapshots are what the data pack's tools printed, by file and state.
func snapshots(t *testing.T) map[string]*gpu.Snapshot {
	t.Helper()
	out := map[string]*gpu.Snapshot{}
	folder := testenv.Data(t, "gpu")
	for _, pattern := range []string{"captures/*.txt", "nvidia_smi_xml/*.xml"} {
		names, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil || len(names) < 5 {
			t.Fatal(names, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var list []*gpu.Snapshot
			if strings.HasSuffix(name, ".xml") {
				var s *gpu.Snapshot
				s, err = gpu.ParseXML(text, nil)
				list = append(list, s)
			} else {
				list, err = gpu.ParseCapture(text)
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range list {
				out[fmt.Sprint(filepath.Base(name), i)] = s
			}
		}
	}
	return out
}

// What a collector scraped of an exporter is what an agent reads of it, in every
// figure, and what the tool measured; what it did not is absent.
func TestCapturesByOTLP(t *testing.T) {
	door, instances := newGPUDoor(t, 0), 0
	for name, s := range snapshots(t) {
		for _, pods := range [][]string{nil, {"train-0"}, {"a", "b"}} {
			rows := gputest.Rows(s, "x", "node-1", pods...)
			read, err := gpu.ParseDCGM(gputest.Text(rows))
			if err != nil {
				t.Fatal(err)
			}
			gpu.Finish(read, "node-1", at, time.Minute, map[string]time.Time{})
			code, partial := door.post(gputest.Metrics(rows, at, map[string]string{"service.name": "dcgm", "k8s.pod.name": "nvidia-dcgm-exporter-1"}))
			got := door.samples()
			if code != http.StatusOK || partial != nil || len(got) != len(read.Samples) || len(got) != len(s.Samples) {
				t.Fatalf("%s: %d, %v: %d samples, the agent reads %d", name, code, partial, len(got), len(read.Samples))
			}
			for i, want := range read.Samples {
				want.Source = gpu.SourceOTLP
				for _, w := range want.Workloads {
					w.AllocatedShare = nil // equal parts are nobody's statement
				}
				if !proto.Equal(got[i], want) {
					t.Errorf("%s:\n%v\n%v", name, got[i], want)
				}
				was := s.Samples[i]
				if (was.GpuUtilizationPercent == nil) != (got[i].GpuUtilizationPercent == nil) || was.GetGpuUtilizationPercent() != got[i].GetGpuUtilizationPercent() ||
					was.GetPowerWatts() != got[i].GetPowerWatts() || was.GetMemoryUsedBytes() != got[i].GetMemoryUsedBytes() {
					t.Errorf("%s: %v became %v", name, was, got[i])
				}
				if got[i].GetMigUuid() != "" {
					instances++
				}
			}
		}
	}
	if instances == 0 {
		t.Error("no MIG instance among the captures")
	}
}

// gaugeOf is a metric with one point.
func gaugeOf(name string, value float64, when time.Time, attrs map[string]string) *metricspb.Metric {
	return &metricspb.Metric{Name: name, Data: &metricspb.Metric_Gauge{Gauge: &metricspb.Gauge{DataPoints: []*metricspb.NumberDataPoint{{
		TimeUnixNano: uint64(when.UnixNano()), Attributes: gputest.Attributes(attrs), Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: value},
	}}}}}
}

func requestOf(resource map[string]string, metrics ...*metricspb.Metric) *colmetricspb.ExportMetricsServiceRequest {
	m := gputest.Metrics(nil, at, resource)
	m.ResourceMetrics[0].ScopeMetrics[0].Metrics = metrics
	return m
}

// OpenTelemetry's own names, from an SDK that gives each point a time of its own.
func TestHardwareConventions(t *testing.T) {
	door := newGPUDoor(t, 0)
	id := map[string]string{"hw.type": "gpu", "hw.id": "GPU-1", "hw.model": "A100", "hw.vendor": "NVIDIA"}
	with := func(key, value string) map[string]string {
		m := map[string]string{key: value}
		for k, v := range id {
			m[k] = v
		}
		return m
	}
	code, partial := door.post(requestOf(map[string]string{
		"host.name": "n1", "cloud.provider": "aws", "cloud.region": "us-east-1", "host.type": "p5.48xlarge", "tallystick.purchase_option": "spot", "tallystick.team": "research",
	},
		gaugeOf("hw.gpu.utilization", 0.5, at, with("hw.gpu.task", "general")),
		gaugeOf("hw.gpu.utilization", 0.25, at.Add(3*time.Microsecond), with("hw.gpu.task", "decoder")),
		gaugeOf("hw.gpu.memory.usage", 1<<34, at.Add(4*time.Microsecond), id),
		gaugeOf("hw.power", 300, at.Add(5*time.Microsecond), id),
		gaugeOf("hw.power", 90, at, map[string]string{"hw.type": "cpu", "hw.id": "cpu0"}),
		gaugeOf("hw.energy", 1.5, at, id),
		gaugeOf("hw.gpu.utilization", 0.75, at.Add(10*time.Second), id),
	))
	got := door.samples()
	if code != http.StatusOK || partial != nil || len(got) != 2 {
		t.Fatalf("%d %v: %v", code, partial, got)
	}
	end := at.UnixMicro() + 5
	want := &pb.GpuSample{
		GpuUuid: "GPU-1", Host: "n1", Model: "A100", Vendor: "nvidia", Source: gpu.SourceOTLP, StartUs: end, EndUs: end,
		Cloud: "aws", Region: "us-east-1", InstanceType: "p5.48xlarge", PurchaseOption: "spot",
		GpuUtilizationPercent: new(50.0), DecoderUtilizationPercent: new(25.0), MemoryUsedBytes: new(uint64(1 << 34)), PowerWatts: new(300.0), EnergyMillijoules: new(uint64(1500)),
		Workloads: []*pb.GpuWorkload{{Team: "research", Allocated: new(true)}},
	}
	if !proto.Equal(got[0], want) || got[1].GetEndUs() != at.Add(10*time.Second).UnixMicro() || got[1].GetGpuUtilizationPercent() != 75 {
		t.Errorf("%v\nwant %v", got, want)
	}
}

// Whose a device is, and which one it is, by what stands where.
func TestLabelsOfGPUs(t *testing.T) {
	for _, tc := range []struct {
		name            string
		resource, point map[string]string
		header          []string
		want            string // uuid|mig|host|pod|team
	}{
		{"exporter", nil, map[string]string{"UUID": "GPU-1", "Hostname": "n", "pod": "p"}, nil, "GPU-1||n|p|"},
		{"the scrape's own labels", nil, map[string]string{"UUID": "GPU-1", "Hostname": "n", "pod": "scraper", "exported_pod": "p"}, nil, "GPU-1||n|p|"},
		{"the exporter has no device", nil, map[string]string{"UUID": "GPU-1", "Hostname": "n", "pod": "nvidia-dcgm-exporter-x7", "namespace": "gpu-operator"}, nil, "GPU-1||n||"},
		{"a resource names the exporter", map[string]string{"k8s.pod.name": "other", "pod": "other"}, map[string]string{"UUID": "GPU-1", "Hostname": "n"}, nil, "GPU-1||n||"},
		{"the node before the exporter's host", map[string]string{"k8s.node.name": "node-1", "host.name": "collector"}, map[string]string{"UUID": "GPU-1", "Hostname": "dcgm-exporter-x"}, nil, "GPU-1||node-1||"},
		{"an address", map[string]string{"service.instance.id": "10.0.0.7:9400"}, map[string]string{"UUID": "GPU-1"}, nil, "GPU-1||10.0.0.7||"},
		{"team of the exporter's header", nil, map[string]string{"UUID": "GPU-1", "Hostname": "n", "pod": "p"}, []string{"X-Tallystick-Team", "ml"}, "GPU-1||n|p|ml"},
		{"an attribute before the header", map[string]string{"tallystick.team": "hpc"}, map[string]string{"UUID": "GPU-1", "Hostname": "n"}, []string{"X-Tallystick-Team", "ml"}, "GPU-1||n||hpc"},
		{"MIG by number", nil, map[string]string{"UUID": "GPU-1", "Hostname": "n", "GPU_I_ID": "3", "GPU_I_PROFILE": "1g.10gb"}, nil, "GPU-1|MIG-GPU-1/3|n||"},
		{"MIG by parent", nil, map[string]string{"hw.id": "MIG-7", "hw.parent": "GPU-1", "host.name": "n"}, nil, "GPU-1|MIG-7|n||"},
		{"an id of its host alone", nil, map[string]string{"hw.id": "gpu0", "host.name": "n"}, nil, "HOST-n-gpu0||n||"},
		{"a uuid that is hidden", nil, map[string]string{"UUID": "GPU-00000000-0000", "pci_bus_id": "00:09.0", "Hostname": "n"}, nil, "HOST-n-00:09.0||n||"},
	} {
		door := newGPUDoor(t, 0)
		code, partial := door.post(requestOf(tc.resource, gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, tc.point)), tc.header...)
		list := door.samples()
		if code != http.StatusOK || partial != nil || len(list) != 1 {
			t.Errorf("%s: %d %v, %d samples", tc.name, code, partial, len(list))
			continue
		}
		m, w := list[0], &pb.GpuWorkload{}
		if len(list[0].Workloads) > 0 {
			w = m.Workloads[0]
		}
		if got := strings.Join([]string{m.GpuUuid, m.MigUuid, m.Host, w.Pod, w.Team}, "|"); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// What breaks a rule is refused point by point, by a word that repeats nothing of it,
// and stops no other.
func TestRefusedGPUPoints(t *testing.T) {
	good := gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, map[string]string{"UUID": "GPU-good", "Hostname": "n"})
	planted := map[string]string{"UUID": "GPU-1", "Hostname": "n"}
	stale := gaugeOf("DCGM_FI_DEV_GPU_UTIL", math.Float64frombits(0x7ff0000000000002), at, planted)
	stale.GetGauge().DataPoints[0].Flags = 1
	delta := gaugeOf("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 5, at, planted)
	delta.Data = &metricspb.Metric_Sum{Sum: &metricspb.Sum{
		AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA, DataPoints: delta.GetGauge().DataPoints,
	}}
	valueless := gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, planted)
	valueless.GetGauge().DataPoints[0].Value = nil
	for _, tc := range []struct {
		name    string
		metric  *metricspb.Metric
		res     map[string]string
		samples int // beside the good one
		rule    string
	}{
		{"no device", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, map[string]string{"Hostname": "planted"}), nil, 0, "UUID: required"},
		{"a switch", gaugeOf("DCGM_FI_DEV_NVSWITCH_TEMPERATURE_CURRENT", 5, at, map[string]string{"nvswitch": "nvswitch0", "Hostname": "n"}), nil, 0, ""},
		{"no host", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, map[string]string{"UUID": "GPU-planted"}), nil, 0, "host: required"},
		{"no time", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, time.Unix(0, 0), planted), nil, 0, "time_unix_nano: required"},
		{"long ago", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at.Add(-36*24*time.Hour), planted), nil, 0, "end_us: time"},
		{"ahead", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at.Add(time.Hour), planted), nil, 0, "end_us: time"},
		{"the end of time", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, time.Unix(0, -1), planted), nil, 0, "end_us: time"},
		{"MIG without its device", gaugeOf("hw.gpu.utilization", .5, at, map[string]string{"hw.id": "MIG-planted", "host.name": "n"}), nil, 0, "hw.parent: required"},
		{"bought how", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, planted), map[string]string{"tallystick.purchase_option": "planted"}, 0, "purchase_option: must be on_demand, spot or reserved"},
		{"histogram", &metricspb.Metric{Name: "DCGM_FI_DEV_GPU_UTIL", Data: &metricspb.Metric_Histogram{Histogram: &metricspb.Histogram{DataPoints: []*metricspb.HistogramDataPoint{{}}}}}, nil, 0, "metric: must be a gauge or a sum"},
		{"gone", stale, nil, 0, ""},
		{"delta", delta, nil, 1, ""},
		{"no value", valueless, nil, 1, ""},
		{"out of range", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 101, at, planted), nil, 1, ""},
		{"blank", gaugeOf("DCGM_FI_DEV_GPU_UTIL", 0x7ffffffffffffff0, at, planted), nil, 1, ""},
		{"infinite", gaugeOf("DCGM_FI_DEV_GPU_UTIL", math.Inf(1), at, planted), nil, 1, ""},
	} {
		door := newGPUDoor(t, 0)
		code, partial := door.post(requestOf(tc.res, tc.metric))
		for _, m := range door.samples() {
			tc.samples--
			if m.GpuUtilizationPercent != nil || m.EnergyMillijoules != nil {
				t.Errorf("%s: has a figure: %v", tc.name, m)
			}
		}
		want := ""
		if tc.rule != "" {
			want = "points of GPUs were refused, the first: " + tc.rule
		}
		if code != http.StatusOK || tc.samples != 0 || partial.GetErrorMessage() != want || (partial.GetRejectedDataPoints() > 0) != (tc.rule != "") {
			t.Errorf("%s: %d, %v, %d samples too few", tc.name, code, partial, tc.samples)
		}
		if strings.Contains(partial.GetErrorMessage(), "planted") {
			t.Errorf("%s: the answer repeats the point", tc.name)
		}
		if _, partial := door.post(requestOf(nil, tc.metric, good)); !slices.ContainsFunc(door.samples(), func(m *pb.GpuSample) bool { return m.GpuUuid == "GPU-good" }) {
			t.Errorf("%s: stops its neighbour, %v", tc.name, partial)
		}
	}
}

// Credentials, limits and a log that is away are answered as for events.
func TestGPUPointsAreGuarded(t *testing.T) {
	one := requestOf(nil, gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, map[string]string{"UUID": "GPU-1", "Hostname": "n"}))
	door := newGPUDoor(t, 0)
	for _, tc := range []struct {
		header  []string
		code    int
		message string
	}{
		{[]string{"Authorization", "Bearer bad"}, 401, ""},
		{[]string{"Authorization", "Bearer read"}, 403, ""},
		{[]string{"X-Tallystick-Tenant", "umbrella"}, 403, ""},
		{[]string{"Authorization", "Bearer admin"}, 200, "points of GPUs were refused, the first: tenant_id: required"},
		{[]string{"Authorization", "Bearer admin", "X-Tallystick-Tenant", "unknown"}, 200, "points of GPUs were refused, the first: tenant_id: tenant"},
	} {
		if code, partial := door.post(one, tc.header...); code != tc.code || partial.GetErrorMessage() != tc.message || len(door.samples()) > 0 {
			t.Errorf("%v: %d, %v", tc.header, code, partial)
		}
	}
	door.telemetry.Err = kafka.ErrFull
	if code, _ := door.post(one); code != http.StatusServiceUnavailable {
		t.Errorf("a full log: %d", code)
	}
	var many []*metricspb.Metric
	for i := range 900 {
		many = append(many, gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at, map[string]string{"UUID": fmt.Sprint("GPU-", i), "Hostname": "n"}))
	}
	door = newGPUDoor(t, 1)
	if code, partial := door.post(requestOf(nil, many...)); code != http.StatusOK || partial != nil || len(door.samples()) != 900 {
		t.Errorf("what the bucket holds: %d", code)
	}
	if code, _ := door.post(requestOf(nil, many...)); code != http.StatusTooManyRequests || len(door.samples()) > 0 {
		t.Errorf("over the rate: %d", code)
	}
}

// A request is cut into records that the topic takes, and all of it is there.
func TestManyGPUs(t *testing.T) {
	door := newGPUDoor(t, 0)
	var metrics []*metricspb.Metric
	long := strings.Repeat("m", 250)
	for i := range 5000 {
		metrics = append(metrics, gaugeOf("DCGM_FI_DEV_GPU_UTIL", 5, at.Add(-time.Duration(i)*10*time.Second), map[string]string{"UUID": "GPU-1", "Hostname": long, "modelName": long, "pod": long}))
	}
	if code, partial := door.post(requestOf(nil, metrics...)); code != http.StatusOK || partial != nil {
		t.Fatal(code, partial)
	}
	ends := map[int64]bool{}
	for _, rec := range door.telemetry.Take() {
		var b pb.GpuSampleBatch
		if err := proto.Unmarshal(rec, &b); err != nil || len(rec) > agent.MaxFrameBytes+1024 || len(b.Samples) > agent.MaxSamples {
			t.Fatalf("%d bytes, %d samples, %v", len(rec), len(b.Samples), err)
		}
		for _, m := range b.Samples {
			ends[m.GetEndUs()] = true
		}
	}
	if len(ends) != 5000 {
		t.Errorf("%d of 5000 samples", len(ends))
	}
}

// relayFunc is a Relay.
type relayFunc func([]*pb.GpuSample) error

func (f relayFunc) Send(_ context.Context, _ tenant.ID, _ string, samples []*pb.GpuSample) ([]agent.Refused, error) {
	return nil, f(samples)
}

// Whatever bytes come as metrics, a sample keeps its ranges and nothing panics.
func FuzzGPUMetrics(f *testing.F) {
	f.Add(body(f, requestOf(map[string]string{"host.name": "n"}, gaugeOf("hw.gpu.utilization", .5, at, map[string]string{"hw.id": "MIG-1", "hw.parent": "GPU-1"}))))
	f.Add(body(f, requestOf(nil, gaugeOf("DCGM_FI_DEV_GPU_UTIL", 1e300, at, map[string]string{"UUID": "GPU-\x01", "Hostname": "n:1", "pod": strings.Repeat("p", 300)}))))
	edge := doortest.NewEdge(f, &doortest.Log{}, now)
	f.Fuzz(func(t *testing.T, b []byte) {
		relay := relayFunc(func(samples []*pb.GpuSample) error {
			for _, m := range samples {
				if m.GetGpuUuid() == "" || m.GetHost() == "" || len(m.Workloads) > agent.MaxWorkloads || m.GetGpuUtilizationPercent() < 0 || m.GetGpuUtilizationPercent() > 100 {
					t.Errorf("%v", m)
				}
			}
			return errors.New("away")
		})
		r := httptest.NewRequest(http.MethodPost, "/v1/metrics", bytes.NewReader(b))
		r.Header.Set("Content-Type", typeProto)
		r.Header.Set("Authorization", "Bearer good")
		w := httptest.NewRecorder()
		if Handler(edge, relay, new(Gateways)).ServeHTTP(w, r); w.Code == http.StatusInternalServerError {
			t.Errorf("%d", w.Code)
		}
	})
}
