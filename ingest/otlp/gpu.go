package otlp

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Relay takes samples of GPUs. *agent.Relay is one.
type Relay interface {
	// Send makes the samples durable that keep the rules; see agent.Relay.
	Send(ctx context.Context, id tenant.ID, name string, samples []*pb.GpuSample) ([]agent.Refused, error)
}

// gpuProducer names refused points of GPUs in the producers' counters.
const gpuProducer = "otlp-gpu"

// lookNanos is how far the points of one look at a device may be apart: a scrape
// gives all of them one time, some SDKs each its own by a few microseconds.
const lookNanos = 500_000_000

// look is what the points of one time say of one device: they become one sample.
type look struct {
	sample *pb.GpuSample
	first  uint64 // time of the first of them, in unix nanoseconds
	last   uint64
	points int
	stated event.Event // team, service and environment of its owners
}

// lookKey finds looks: those of a device that begin in the same half second.
type lookKey struct {
	host, device string
	slot         uint64
}

// looks are those of a request, in the order in which they came.
type looks struct {
	list []*look
	at   map[lookKey]*look
}

// gpuPoints takes the points of a metric about GPUs into looks. A point that has no
// value at its time is none: Prometheus marks so what is gone.
func (b *batch) gpuPoints(m *metricspb.Metric, res *resourcepb.Resource) {
	var of gpuFacts
	of.read(res.GetAttributes(), false)
	points, counts, ok := numbersOf(m)
	if !ok {
		b.rejectGPU(len(m.GetHistogram().GetDataPoints())+len(m.GetExponentialHistogram().GetDataPoints())+len(m.GetSummary().GetDataPoints()),
			"metric", "must be a gauge or a sum")
		return
	}
	for _, p := range points {
		if p.GetFlags()&uint32(metricspb.DataPointFlags_DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK) == 0 {
			b.gpuPoint(m.GetName(), &of, p, counts)
		}
	}
}

// numbersOf are the points of a gauge or a sum. counts is false for a sum of what was
// added since the point before: no figure of a sample is that.
func numbersOf(m *metricspb.Metric) (points []*metricspb.NumberDataPoint, counts, ok bool) {
	switch d := m.GetData().(type) {
	case *metricspb.Metric_Gauge:
		return d.Gauge.GetDataPoints(), true, true
	case *metricspb.Metric_Sum:
		return d.Sum.GetDataPoints(), d.Sum.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA, true
	case nil:
		return nil, false, true
	}
	return nil, false, false
}

func (b *batch) gpuPoint(name string, res *gpuFacts, p *metricspb.NumberDataPoint, counts bool) {
	f := *res
	f.read(p.GetAttributes(), true)
	if !strings.HasPrefix(name, dcgmMetric) && !strings.HasPrefix(name, gpuMetric) && !strings.EqualFold(f.text[hardwareType], typeGPU) {
		return
	}
	if q := f.text[qualifier]; q != "" && !strings.HasPrefix(name, dcgmMetric) {
		name += "/" + q
	}
	labels := f.labels()
	switch {
	case labels.UUID == "" && labels.Bus == "":
		if gpu.Measures(name) { // else it is of a switch, a link or a processor
			b.rejectGPU(1, "UUID", event.RuleRequired)
		}
		return
	case strings.HasPrefix(labels.UUID, migPrefix) && labels.Parent == "":
		b.rejectGPU(1, "hw.parent", event.RuleRequired)
		return
	case f.host() == "":
		b.rejectGPU(1, "host", event.RuleRequired)
		return
	case p.GetTimeUnixNano() == 0:
		b.rejectGPU(1, "time_unix_nano", event.RuleRequired)
		return
	}
	l := b.looks.of(labels.Sample(), &f, labels.Bus, p.GetTimeUnixNano())
	l.points++
	if counts {
		gpu.Measure(l.sample, name, valueText(p))
	}
	labels.AddWorkload(l.sample)
}

// of finds or makes the look of a device at a time.
func (s *looks) of(m *pb.GpuSample, f *gpuFacts, bus string, at uint64) *look {
	gpu.Identify(m, f.host(), bus)
	key := lookKey{m.GetHost(), gpu.Key(m), at / lookNanos}
	for _, slot := range [...]uint64{key.slot, key.slot - 1, key.slot + 1} {
		l := s.at[lookKey{key.host, key.device, slot}]
		if l != nil && max(at, l.first)-min(at, l.first) < lookNanos {
			l.last = max(l.last, at)
			return l
		}
	}
	l := &look{sample: m, first: at, last: at}
	f.describe(l)
	if s.at == nil {
		s.at = map[lookKey]*look{}
	}
	s.at[key] = l
	s.list = append(s.list, l)
	return l
}

// gpuFacts are what attributes state about a GPU's point.
type gpuFacts struct {
	text [numGPUFacts]string
	rank [numGPUFacts]int // of the alias that said it, plus one; 0 is unknown
}

func (f *gpuFacts) read(attrs []*commonpb.KeyValue, point bool) {
	for _, kv := range attrs {
		i, ok := gpuAliasOf[kv.GetKey()]
		if !ok {
			continue
		}
		a := &gpuAliasTable[i]
		if a.ofPoint && !point || f.rank[a.to] != 0 && f.rank[a.to] <= i {
			continue
		}
		if v := gpu.Text(textOf(kv.GetValue())); v != "" {
			f.text[a.to], f.rank[a.to] = v, i+1
		}
	}
}

// uuidPrefix and migPrefix begin identities that no other device in the world has.
const (
	uuidPrefix = "GPU-"
	migPrefix  = "MIG-"
)

// labels are what the facts say of the device and of who has it.
func (f *gpuFacts) labels() gpu.Labels {
	t := &f.text
	l := gpu.Labels{
		UUID: t[gpuUUID], Instance: t[gpuInstance], Profile: t[gpuProfile], Index: t[gpuIndex], Model: t[gpuModel],
		Vendor: t[gpuVendor], Bus: t[gpuBus], Namespace: t[gpuNamespace], Pod: t[gpuPod], Container: t[gpuContainer], Job: t[gpuJob],
	}
	switch id := t[gpuID]; {
	case strings.HasPrefix(id, migPrefix) && l.Instance == "":
		l.Parent = l.UUID
		if strings.HasPrefix(t[gpuParent], uuidPrefix) {
			l.Parent = t[gpuParent]
		}
		l.UUID = id
	case l.UUID != "":
	case strings.HasPrefix(id, uuidPrefix):
		l.UUID = id
	case l.Bus == "":
		l.Bus = id
	}
	if t[exportedPod] != "" {
		l.Namespace, l.Pod, l.Container = t[exportedNamespace], t[exportedPod], t[exportedContainer]
	}
	for _, name := range exporterPods {
		if strings.Contains(l.Pod, name) {
			l.Namespace, l.Pod, l.Container = "", "", ""
		}
	}
	return l
}

// host is the machine, without the port of an address.
func (f *gpuFacts) host() string {
	host, _, err := net.SplitHostPort(f.text[gpuHost])
	if err != nil {
		return f.text[gpuHost]
	}
	return host
}

// describe sets what is the same for all figures of a look.
func (f *gpuFacts) describe(l *look) {
	m := l.sample
	m.Source = gpu.SourceOTLP
	m.Cloud, m.Region, m.InstanceType, m.PurchaseOption = f.text[gpuCloud], f.text[gpuRegion], f.text[gpuInstanceType], f.text[gpuPurchase]
	l.stated.Team, l.stated.Service, l.stated.Environment = f.text[gpuTeam], f.text[gpuService], f.text[gpuEnvironment]
}

// valueText is a point's value as the exporters write it, "" for none.
func valueText(p *metricspb.NumberDataPoint) string {
	switch v := p.GetValue().(type) {
	case *metricspb.NumberDataPoint_AsInt:
		return strconv.FormatInt(v.AsInt, 10)
	case *metricspb.NumberDataPoint_AsDouble:
		return strconv.FormatFloat(v.AsDouble, 'g', -1, 64)
	}
	return ""
}

// rejectGPU counts points of GPUs that are refused.
func (b *batch) rejectGPU(n int, field, rule string) {
	if n == 0 {
		return
	}
	if b.gpuRefused == nil {
		b.gpuRefused = map[string]int{}
	}
	b.gpuRefused[rule+"."+field] += n
	b.reject(n, "points of GPUs were refused, the first: "+field+": "+rule)
}

// relay makes the samples of GPUs durable, and counts what is refused of them.
func (b *batch) relay(ctx context.Context, edge Edge, to Relay, rcv ingest.Received) error {
	err := b.relayLooks(ctx, edge, to, rcv)
	for rule, n := range b.gpuRefused {
		edge.RefuseTelemetry(rcv, gpuProducer, rule, n)
	}
	return err
}

func (b *batch) relayLooks(ctx context.Context, edge Edge, to Relay, rcv ingest.Received) error {
	if len(b.looks.list) == 0 {
		return nil
	}
	id, err := edge.TelemetryTenant(rcv)
	if fault := (*event.FieldError)(nil); errors.As(err, &fault) {
		for _, l := range b.looks.list {
			b.rejectGPU(l.points, fault.Field, fault.Rule)
		}
		return nil
	}
	if err != nil {
		return err
	}
	samples := make([]*pb.GpuSample, len(b.looks.list))
	for i, l := range b.looks.list {
		samples[i] = l.finish(&b.header)
	}
	refused, err := to.Send(ctx, id, rcv.Principal.Subject, samples)
	for _, r := range refused {
		b.rejectGPU(b.looks.list[r.Index].points, r.Field, r.Rule)
	}
	var delay *agent.DelayError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &delay):
		return ingest.Delayed(delay.After)
	}
	return errors.Join(ingest.ErrUnavailable, err)
}

// finish gives the sample its time and its owners: the pods that its points name,
// and else whoever the source says that it is for. It does not say since when it
// stands for the device: processors know the sample before.
func (l *look) finish(header *attribution.Attribution) *pb.GpuSample {
	m, owner := l.sample, l.stated
	m.StartUs, m.EndUs = int64(l.last/1000), int64(l.last/1000)
	header.Apply(&owner)
	if len(m.Workloads) == 0 && (owner.Team != "" || owner.Service != "") {
		m.Workloads = []*pb.GpuWorkload{{Allocated: new(true)}}
	}
	for _, w := range m.Workloads {
		w.Team, w.Service, w.Environment = owner.Team, owner.Service, owner.Environment
	}
	return m
}
