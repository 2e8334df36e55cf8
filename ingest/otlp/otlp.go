// Package otlp is the front door for OpenTelemetry: OTLP by gRPC and by HTTP
// (protobuf and JSON), with spans, log records and metrics about calls of models.
// What generations and vendors of instrumentations call things is one table
// (aliases.go).
//
// It promises that attributes which are in no table are never looked into, nor are
// events, links, status messages and bodies of log records: prompts and answers
// stand there. A span is one event, whose id is made of its trace and span ids, so
// that what is sent twice counts once. Of spans that repeat each other the innermost
// counts. Records of coding tools are estimates, and of one tool only one signal
// counts. Token and cost metrics count only for a source that says it is billed by
// them, and then its spans and records do not.
//
// Metrics of GPUs are no events: what a collector scraped of a DCGM exporter, or
// collected by OpenTelemetry's conventions for hardware, becomes samples of
// telemetry like those of an agent (gpu.go; the names are in gpualiases.go).
//
// It never bills what it cannot tell to be a call, and never fails a batch because
// of one part of it: what is refused is the partial success of the answer. Nor does it
// bill a call again that says that it went through the metering proxy.
package otlp

import (
	"net/http"
	"slices"

	"google.golang.org/protobuf/proto"

	collogspb "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
)

// batch is what becomes of one request.
type batch struct {
	tenant string
	header attribution.Attribution // of the exporter's own headers
	events []event.Event

	gateways  *Gateways
	peer      string // the machine that sent the request
	elsewhere int    // calls that are billed elsewhere

	looks looks

	rejected   int
	message    string
	gpuRefused map[string]int // points of GPUs by the counters' rule
}

// reject counts parts that are refused, and keeps the first reason.
func (b *batch) reject(n int, reason string) {
	b.rejected += n
	b.warn(reason)
}

func (b *batch) warn(reason string) {
	if b.message == "" {
		b.message = reason
	}
}

// attribute says whom an event is for: its own attributes, then its resource's,
// then the exporter's headers.
func (b *batch) attribute(e *event.Event, f *facts) {
	e.Tenant = b.tenant
	f.whose.Apply(e)
	b.header.Apply(e)
}

func serviceOf(r *resourcepb.Resource) string {
	for _, kv := range r.GetAttributes() {
		if kv.GetKey() == "service.name" {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// signal is one of the three kinds of telemetry.
type signal struct {
	name string
	path string // of HTTP
	rpc  string // of gRPC: the full name of the service
	// request makes the message that a request is of.
	request func() proto.Message
	// read takes what is in it.
	read func(b *batch, m proto.Message)
	// answer is the response: with a partial success when there is one to tell.
	answer func(rejected int64, message string) proto.Message
}

var signals = []signal{
	{
		name: "spans", path: "/v1/traces", rpc: "opentelemetry.proto.collector.trace.v1.TraceService",
		request: func() proto.Message { return new(coltracepb.ExportTraceServiceRequest) },
		read: func(b *batch, m proto.Message) {
			b.spans(m.(*coltracepb.ExportTraceServiceRequest).GetResourceSpans())
		},
		answer: func(rejected int64, message string) proto.Message {
			res := new(coltracepb.ExportTraceServiceResponse)
			if message != "" {
				res.PartialSuccess = &coltracepb.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: message}
			}
			return res
		},
	},
	{
		name: "data points", path: "/v1/metrics", rpc: "opentelemetry.proto.collector.metrics.v1.MetricsService",
		request: func() proto.Message { return new(colmetricspb.ExportMetricsServiceRequest) },
		read: func(b *batch, m proto.Message) {
			b.points(m.(*colmetricspb.ExportMetricsServiceRequest).GetResourceMetrics())
		},
		answer: func(rejected int64, message string) proto.Message {
			res := new(colmetricspb.ExportMetricsServiceResponse)
			if message != "" {
				res.PartialSuccess = &colmetricspb.ExportMetricsPartialSuccess{RejectedDataPoints: rejected, ErrorMessage: message}
			}
			return res
		},
	},
	{
		name: "log records", path: "/v1/logs", rpc: "opentelemetry.proto.collector.logs.v1.LogsService",
		request: func() proto.Message { return new(collogspb.ExportLogsServiceRequest) },
		read: func(b *batch, m proto.Message) {
			b.records(m.(*collogspb.ExportLogsServiceRequest).GetResourceLogs())
		},
		answer: func(rejected int64, message string) proto.Message {
			res := new(collogspb.ExportLogsServiceResponse)
			if message != "" {
				res.PartialSuccess = &collogspb.ExportLogsPartialSuccess{RejectedLogRecords: rejected, ErrorMessage: message}
			}
			return res
		},
	},
}

// decode takes a body into a batch.
func (s *signal) decode(body []byte, json bool, b *batch, header http.Header) (*batch, error) {
	m := s.request()
	if err := unmarshal(body, json, m); err != nil {
		return nil, err
	}
	b.header, _ = attribution.FromHeaders(header)
	s.read(b, m)
	return b, nil
}

// settle adds the edge's refusals to the batch's own.
func (b *batch) settle(out ingest.Outcome) {
	for _, r := range out.Refusals {
		b.reject(1, number(len(out.Refusals))+" calls were refused, the first: "+r.Message)
	}
	b.message = b.message[:min(len(b.message), maxMessage)]
}

const maxMessage = 512

// Paths are where HTTPHandler is to be served.
func Paths() []string {
	var paths []string
	for _, s := range signals {
		paths = append(paths, s.path)
	}
	return slices.Clip(paths)
}
