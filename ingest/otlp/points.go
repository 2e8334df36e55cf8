package otlp

import (
	"cmp"
	"crypto/sha256"
	"math"
	"slices"
	"strconv"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/event"
)

// billByMetrics is the value of the resource attribute tallystick.bill of a source
// that sends its usage by metrics alone.
const billByMetrics = "metrics"

// points makes events of the data points of token metrics, as estimates, if the
// source says that it has nothing better. Spans and records of the same calls cannot
// be told apart from them, so without that word a metric never counts. Of a
// cumulative one nobody knows here how much of it was counted before: it is refused.
// Points about GPUs become samples: see gpuPoints.
func (b *batch) points(data []*metricspb.ResourceMetrics) {
	for _, rm := range data {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				if tm, ok := tokenMetrics[m.GetName()]; ok {
					b.metric(m, tm, rm.GetResource())
				} else if isGPUMetric(m.GetName()) {
					b.gpuPoints(m, rm.GetResource())
				}
			}
		}
	}
}

func (b *batch) metric(m *metricspb.Metric, tm tokenMetric, res *resourcepb.Resource) {
	var of facts
	of.read(res.GetAttributes(), aliasTable, aliasOfResource)
	series := m.GetSum().GetDataPoints()
	histograms := m.GetHistogram().GetDataPoints()
	temporality := m.GetSum().GetAggregationTemporality()
	if m.GetHistogram() != nil {
		temporality = m.GetHistogram().GetAggregationTemporality()
	}
	n := len(series) + len(histograms)
	switch {
	case of.bill != billByMetrics:
		b.warn("token metrics are not counted: spans or log records of the same calls are")
		return
	case temporality != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA:
		b.reject(n, "to be counted, a metric must have delta temporality")
		return
	}
	for _, p := range series {
		b.point(m.GetName(), tm, res, p.GetAttributes(), p.GetStartTimeUnixNano(), p.GetTimeUnixNano(), pointValue(p))
	}
	for _, p := range histograms {
		b.point(m.GetName(), tm, res, p.GetAttributes(), p.GetStartTimeUnixNano(), p.GetTimeUnixNano(), p.GetSum())
	}
}

func pointValue(p *metricspb.NumberDataPoint) float64 {
	if v, ok := p.GetValue().(*metricspb.NumberDataPoint_AsInt); ok {
		return float64(v.AsInt)
	}
	return p.GetAsDouble()
}

func (b *batch) point(name string, tm tokenMetric, res *resourcepb.Resource, attrs []*commonpb.KeyValue, start, end uint64, value float64) {
	kind := ""
	for _, kv := range attrs {
		if kv.GetKey() == tm.kind {
			kind = kv.GetValue().GetStringValue()
		}
	}
	to, ok := tm.kinds[kind]
	if !ok || value == 0 {
		return
	}
	if !(value > 0 && value <= event.MaxTokens) || value != math.Trunc(value) {
		b.reject(1, "a number of tokens is no whole number of at most 10^12")
		return
	}
	var f facts
	f.read(attrs, pointFields, pointFind)
	f.read(res.GetAttributes(), aliasTable, aliasOfResource)
	f.num[to], f.rank[to] = int64(value), 1
	if tm.provider != "" {
		f.text[provider] = tm.provider
	}
	e := event.Event{Estimated: true, OccurredAt: int64(end)}
	f.event(&e, true, true)
	f.whose.SetTag("metric", name)
	e.ID = event.DerivedID(b.tenant, "otlp-metric/"+name, seriesID(res.GetAttributes(), attrs), int64(start), e.Model, &e.Tokens, int64(end))
	b.attribute(&e, &f)
	b.events = append(b.events, e)
}

// pointFields are the names of spans, and the short ones of tools' metrics.
var (
	pointFields = append(slices.Clone(aliasTable), alias{"model", model})
	pointFind   = ranks(pointFields)
)

// seriesID tells the series of one producer apart, whatever the order of their
// attributes: a digest of all of them, of which nothing can be read.
func seriesID(lists ...[]*commonpb.KeyValue) string {
	h := sha256.New()
	for _, attrs := range lists {
		attrs = slices.Clone(attrs)
		slices.SortStableFunc(attrs, func(x, y *commonpb.KeyValue) int { return cmp.Compare(x.GetKey(), y.GetKey()) })
		for _, kv := range attrs {
			one, err := proto.MarshalOptions{Deterministic: true}.Marshal(kv)
			if err != nil { // a string that is no UTF-8, which decoding has refused
				continue
			}
			h.Write(strconv.AppendInt(nil, int64(len(one)), 10))
			h.Write(append([]byte{0}, one...))
		}
		h.Write([]byte{1})
	}
	return string(h.Sum(nil))
}
