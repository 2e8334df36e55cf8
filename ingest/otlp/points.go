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

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
)

// points makes events of the data points of token and cost metrics, as estimates, if
// the source says that it is billed by them. Spans and records of the same calls cannot
// be told apart from them, so without that word a metric never counts. Of a
// cumulative one nobody knows here how much of it was counted before: it is refused.
// Points about GPUs become samples: see gpuPoints.
func (b *batch) points(data []*metricspb.ResourceMetrics) {
	for _, rm := range data {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				if um, ok := usageMetrics[m.GetName()]; ok {
					b.metric(m, &um, rm.GetResource())
				} else if isGPUMetric(m.GetName()) {
					b.gpuPoints(m, rm.GetResource())
				}
			}
		}
	}
}

func (b *batch) metric(m *metricspb.Metric, um *usageMetric, res *resourcepb.Resource) {
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
	case of.bill == billNone:
		return
	case of.bill != billByMetrics:
		b.warn("token and cost metrics are not counted, as spans or log records of the same calls are; a source that is to be billed by them has the resource attribute tallystick.bill=metrics")
		return
	case temporality != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA:
		b.reject(n, "to be counted, a metric must have delta temporality")
		return
	case um.cost && m.GetUnit() != "" && m.GetUnit() != "USD":
		b.reject(n, "to be counted, a metric of cost must be in USD")
		return
	}
	for _, p := range series {
		b.point(m.GetName(), um, res, p.GetAttributes(), p.GetStartTimeUnixNano(), p.GetTimeUnixNano(), pointValue(p))
	}
	for _, p := range histograms {
		b.point(m.GetName(), um, res, p.GetAttributes(), p.GetStartTimeUnixNano(), p.GetTimeUnixNano(), p.GetSum())
	}
}

func pointValue(p *metricspb.NumberDataPoint) float64 {
	if v, ok := p.GetValue().(*metricspb.NumberDataPoint_AsInt); ok {
		return float64(v.AsInt)
	}
	return p.GetAsDouble()
}

// point makes the event of a point: an estimate of tokens, or, of a cost, one without
// tokens that has the cost as the provider's. So our own price of the tokens and what
// the tool says they cost can be compared, and neither is added to the other.
func (b *batch) point(name string, um *usageMetric, res *resourcepb.Resource, attrs []*commonpb.KeyValue, start, end uint64, value float64) {
	if value == 0 {
		return
	}
	var f facts
	f.read(attrs, pointFields, pointFind)
	f.read(res.GetAttributes(), aliasTable, aliasOfResource)
	if b.throughGateway(&f) {
		b.elsewhere++
		return
	}
	if um.provider != "" {
		f.text[provider] = um.provider
	}
	if !b.measure(um, attrs, value, &f) {
		return
	}
	e := event.Event{Estimated: true, OccurredAt: int64(end)}
	f.event(&e, true, true)
	// A point sums calls up, and how long any of them was nobody knows: the sum must
	// not choose the price of long contexts.
	e.ContextTokens = 1
	f.whose.SetTag("metric", name)
	e.ID = event.DerivedID(b.tenant, "otlp-metric/"+name, seriesID(res.GetAttributes(), attrs), int64(start), e.Model, &e.Tokens, int64(end))
	b.attribute(&e, &f)
	b.events = append(b.events, e)
}

// measure makes a fact of a point's value. It is false for what is not counted.
func (b *batch) measure(um *usageMetric, attrs []*commonpb.KeyValue, value float64, f *facts) bool {
	if um.cost {
		f.text[providerCost] = strconv.FormatFloat(value, 'f', -1, 64)
		if ingest.USD(f.text[providerCost]) == "" {
			b.reject(1, "a cost is no amount of 0 to a million USD")
			return false
		}
		return true
	}
	kind := ""
	for _, kv := range attrs {
		if kv.GetKey() == um.kind {
			kind = kv.GetValue().GetStringValue()
		}
	}
	to, ok := um.kinds[kind]
	if !ok {
		return false
	}
	if !(value > 0 && value <= event.MaxTokens) || value != math.Trunc(value) {
		b.reject(1, "a number of tokens is no whole number of at most 10^12")
		return false
	}
	f.num[to], f.rank[to] = int64(value), 1
	return true
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
