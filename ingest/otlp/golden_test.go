package otlp

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	collogspb "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	logspb "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

var rewrite = flag.Bool("rewrite", false, "write what is computed into testdata")

const start = 1_795_348_800_000_000_000 // 2026-11-22T12:00:00Z

// known are the gateways of the cases: the proxy of this machine, and two by name.
var known = must(NewGateways([]string{"Proxy.acme.example", "[2001:db8::1]:8323", "llm.acme.example:443"}, "127.0.0.1:8323"))

func must(g Gateways, err error) Gateways {
	if err != nil {
		panic(err)
	}
	return g
}

// kase is one case of testdata/vendors.txt: lines "resource", "span ID [PARENT]
// [error]", "log NAME", "sum NAME VALUE [cumulative] [UNIT]" and "histogram NAME VALUE",
// each followed by indented attributes key=JSON.
type kase struct {
	traces  coltracepb.ExportTraceServiceRequest
	logs    collogspb.ExportLogsServiceRequest
	metrics colmetricspb.ExportMetricsServiceRequest
}

func parseCase(t *testing.T, text string) *kase {
	t.Helper()
	k := &kase{}
	res := &resourcepb.Resource{}
	rs := &tracepb.ResourceSpans{Resource: res, ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "test"}}}}
	rl := &logspb.ResourceLogs{Resource: res, ScopeLogs: []*logspb.ScopeLogs{{}}}
	rm := &metricspb.ResourceMetrics{Resource: res, ScopeMetrics: []*metricspb.ScopeMetrics{{}}}
	k.traces.ResourceSpans = []*tracepb.ResourceSpans{rs}
	k.logs.ResourceLogs = []*logspb.ResourceLogs{rl}
	k.metrics.ResourceMetrics = []*metricspb.ResourceMetrics{rm}
	to := &res.Attributes
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(line, " ") {
			*to = append(*to, &commonpb.KeyValue{Key: key, Value: anyValue(t, value)})
			continue
		}
		w := strings.Fields(line)
		switch w[0] {
		case "resource":
			to = &res.Attributes
		case "span":
			s := &tracepb.Span{TraceId: bytes.Repeat([]byte{0xab}, 16), SpanId: id8(t, w[1]), StartTimeUnixNano: start, EndTimeUnixNano: start + 1_500_000_000}
			for _, x := range w[2:] {
				if x == "error" {
					s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "planted status message"}
				} else {
					s.ParentSpanId = id8(t, x)
				}
			}
			rs.ScopeSpans[0].Spans = append(rs.ScopeSpans[0].Spans, s)
			to = &s.Attributes
		case "log":
			r := &logspb.LogRecord{TimeUnixNano: start, Body: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: "planted body"}}}
			r.Attributes = []*commonpb.KeyValue{{Key: "event.name", Value: anyValue(t, strconv.Quote(w[1]))}}
			rl.ScopeLogs[0].LogRecords = append(rl.ScopeLogs[0].LogRecords, r)
			to = &r.Attributes
		case "sum", "histogram":
			to = k.metric(t, rm, w)
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return k
}

func (k *kase) metric(t *testing.T, rm *metricspb.ResourceMetrics, w []string) *[]*commonpb.KeyValue {
	t.Helper()
	value, err := strconv.ParseFloat(w[2], 64)
	if err != nil {
		t.Fatal(err)
	}
	temporality := metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA
	m := &metricspb.Metric{Name: w[1]}
	for _, x := range w[3:] {
		if x == "cumulative" {
			temporality = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
		} else {
			m.Unit = x
		}
	}
	rm.ScopeMetrics[0].Metrics = append(rm.ScopeMetrics[0].Metrics, m)
	if w[0] == "sum" {
		p := &metricspb.NumberDataPoint{StartTimeUnixNano: start - 60e9, TimeUnixNano: start, Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: value}}
		m.Data = &metricspb.Metric_Sum{Sum: &metricspb.Sum{DataPoints: []*metricspb.NumberDataPoint{p}, AggregationTemporality: temporality}}
		return &p.Attributes
	}
	p := &metricspb.HistogramDataPoint{StartTimeUnixNano: start - 60e9, TimeUnixNano: start, Sum: &value, Count: 1}
	m.Data = &metricspb.Metric_Histogram{Histogram: &metricspb.Histogram{DataPoints: []*metricspb.HistogramDataPoint{p}, AggregationTemporality: temporality}}
	return &p.Attributes
}

func id8(t *testing.T, s string) []byte {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.AppendUint64(nil, n)
}

func anyValue(t *testing.T, text string) *commonpb.AnyValue {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	switch x := v.(type) {
	case string:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: x}}
	case bool:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: x}}
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: n}}
		}
		f, err := x.Float64()
		if err != nil {
			t.Fatal(err)
		}
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: f}}
	case []any:
		list := &commonpb.ArrayValue{}
		for _, one := range x {
			list.Values = append(list.Values, &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: fmt.Sprint(one)}})
		}
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: list}}
	default:
		t.Fatalf("no attribute is %T", v)
		return nil
	}
}

// jsonBody is a message as OTLP's JSON: ids in hexadecimal digits.
func jsonBody(t testing.TB, m proto.Message) []byte {
	t.Helper()
	m = proto.Clone(m)
	if req, ok := m.(*coltracepb.ExportTraceServiceRequest); ok {
		for _, s := range req.ResourceSpans[0].ScopeSpans[0].Spans {
			for _, id := range []*[]byte{&s.TraceId, &s.SpanId, &s.ParentSpanId} {
				b, err := base64.StdEncoding.DecodeString(hex.EncodeToString(*id))
				if err != nil {
					t.Fatal(err)
				}
				*id = b
			}
		}
	}
	body, err := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (k *kase) describe(t *testing.T, json bool) string {
	t.Helper()
	var out strings.Builder
	for i, m := range []proto.Message{&k.traces, &k.metrics, &k.logs} {
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if json {
			body = jsonBody(t, m)
		}
		b, err := signals[i].decode(body, json, &batch{tenant: "acme", gateways: &known, peer: "127.0.0.1"}, http.Header{})
		if err != nil {
			t.Fatal(err)
		}
		for j := range b.events {
			e := &b.events[j]
			if err := e.Validate(false); err != nil {
				t.Errorf("%s: %v", e.ID, err)
			}
			out.WriteString(describeEvent(e))
		}
		if b.elsewhere > 0 {
			fmt.Fprintf(&out, "billed elsewhere %d\n", b.elsewhere)
		}
		if b.message != "" {
			fmt.Fprintf(&out, "rejected %d: %s\n", b.rejected, b.message)
		}
	}
	if out.Len() == 0 {
		return "nothing\n"
	}
	return out.String()
}

func describeEvent(e *event.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s/%s", e.ID, e.Provider, e.Model)
	for c, n := range e.Tokens {
		if n > 0 {
			fmt.Fprintf(&b, " %s=%d", tokens.Class(c), n)
		}
	}
	for _, x := range []struct{ name, value string }{
		{"requested", e.RequestedModel}, {"op", e.Operation}, {"tier", e.ServiceTier}, {"status", e.Status}, {"error", e.ErrorType},
		{"upstream", e.ProviderRequestID}, {"cost", e.ProviderCost}, {"region", e.Region}, {"team", e.Team}, {"service", e.Service},
		{"feature", e.Feature}, {"agent", e.Agent}, {"user", e.User}, {"customer", e.EndCustomer}, {"env", e.Environment},
	} {
		if x.value != "" {
			fmt.Fprintf(&b, " %s:%s", x.name, x.value)
		}
	}
	for _, tag := range e.Tags {
		fmt.Fprintf(&b, " #%s=%s", tag.Key, tag.Value)
	}
	if e.Estimated {
		b.WriteString(" estimated")
	}
	if e.Streamed {
		b.WriteString(" streamed")
	}
	if e.ContextTokens > 0 {
		fmt.Fprintf(&b, " context=%d", e.ContextTokens)
	}
	if e.TTFTMicros > 0 || e.HTTPStatus > 0 {
		fmt.Fprintf(&b, " ttft=%d http=%d", e.TTFTMicros, e.HTTPStatus)
	}
	fmt.Fprintf(&b, " latency=%d at=%d\n", e.LatencyMicros, e.OccurredAt-start)
	return b.String()
}

func TestVendors(t *testing.T) {
	const path = "testdata/vendors.txt"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(string(data), "\n"), "\n\n") {
		title, rest, _ := strings.Cut(block, "\n")
		in, want, ok := strings.Cut(rest, "----\n")
		if !ok {
			t.Fatalf("%s: no ----", title)
		}
		k := parseCase(t, in)
		got := k.describe(t, false)
		if byJSON := k.describe(t, true); byJSON != got {
			t.Errorf("%s: by JSON\n%sby protobuf\n%s", title, byJSON, got)
		}
		if got != want+"\n" && !*rewrite {
			t.Errorf("%s: got\n%swant\n%s", title, got, want)
		}
		if strings.Contains(got, "planted") {
			t.Errorf("%s: text came through: %s", title, got)
		}
		fmt.Fprintf(&out, "%s\n%s----\n%s\n", title, in, got)
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
