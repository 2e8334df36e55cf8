package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	colmetricspb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/agentauth"
)

// logRecords sends those by which a coding tool reports its calls, with prompts in
// their bodies and attributes.
func (w *promptsWorld) logRecords(from, n int) {
	w.batches(from, n, func(k int) string {
		text := `"stringValue":` + shaped(k)
		attributes := []string{
			otlpAttribute("event.name", `"stringValue":"api_request"`), otlpAttribute("model", `"stringValue":"claude-sonnet-4-5"`),
			otlpAttribute("input_tokens", `"stringValue":"9"`), otlpAttribute("output_tokens", `"intValue":"4"`), otlpAttribute("request_id", fmt.Sprintf(`"stringValue":"req_%d"`, k)),
			otlpAttribute("prompt", text), otlpAttribute("gen_ai.input.messages", `"arrayValue":{"values":[{`+text+`}]}`), otlpAttribute("tool_parameters", text), otlpAttribute("error", text),
			`{"key":` + shaped(k) + `,"value":{` + text + `}}`,
		}
		return fmt.Sprintf(`{"timeUnixNano":"%d","severityText":%s,"body":{%s},"attributes":[%s]},{"timeUnixNano":"1","body":{%s},"attributes":[{"key":"event.name","value":{"stringValue":"user_prompt"}},%s]}`,
			time.Now().UnixNano(), shaped(k), text, strings.Join(attributes, ","), text, otlpAttribute("prompt", text))
	}, func(_ int, records []string) {
		body := `{"resourceLogs":[{"resource":{"attributes":[` + otlpAttribute("service.name", `"stringValue":"claude-code"`) + `,` + otlpAttribute("prompt", `"stringValue":`+shaped(from)) +
			`]},"scopeLogs":[{"scope":{"name":` + shaped(from) + `},"logRecords":[` + strings.Join(records, ",") + `]}]}]}`
		if code := w.deliver("/v1/logs", "application/json", body); code != http.StatusOK {
			w.t.Fatalf("logs: %d", code)
		}
		if code := w.deliver("/v1/logs", "application/json", body[:len(body)-9]+seed); code != http.StatusBadRequest {
			w.t.Fatalf("logs that are cut off: %d", code)
		}
	})
}

// dial connects to one of the server's ports of gRPC.
func (w *promptsWorld) dial(addr string) *grpc.ClientConn {
	w.t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *promptsWorld) caller() context.Context {
	return metadata.AppendToOutgoingContext(w.t.Context(), "authorization", "Bearer "+w.token, strings.ToLower(ingest.TenantHeader), plantedTenant)
}

// said holds an answer of gRPC, or its error, against the seed.
func (w *promptsWorld) said(answer any, err error) {
	w.t.Helper()
	w.clean(fmt.Sprint(answer, err))
}

func textAttribute(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

func numberAttribute(key string, value int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
}

// binary sends spans and points of metrics by OTLP's gRPC, half of each.
func (w *promptsWorld) binary(from, n int) {
	conn := w.dial(w.otlp)
	for k := from; k < from+n; k++ {
		w.sent.Add(1)
		text, now := fragment(k), uint64(time.Now().UnixNano())
		resource := &resourcepb.Resource{Attributes: []*commonpb.KeyValue{textAttribute("service.name", "app"), textAttribute("tallystick.bill", "metrics"), textAttribute("prompt", text)}}
		planted := []*commonpb.KeyValue{textAttribute("gen_ai.prompt", text), textAttribute("gen_ai.completion", text), textAttribute("exception.message", text), textAttribute(text, text)}
		if k%2 == 0 {
			span := &tracepb.Span{
				TraceId: fmt.Appendf(nil, "%016d", k), SpanId: fmt.Appendf(nil, "%08d", k), Name: text, TraceState: text, StartTimeUnixNano: now - 1e9, EndTimeUnixNano: now,
				Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: text}, Events: []*tracepb.Span_Event{{Name: text, Attributes: planted}},
				Attributes: append(planted, textAttribute("gen_ai.operation.name", "chat"), textAttribute("gen_ai.provider.name", "openai"),
					textAttribute("gen_ai.response.model", "gpt-5"), numberAttribute("gen_ai.usage.input_tokens", 7), numberAttribute("gen_ai.usage.output_tokens", 3)),
			}
			resource.Attributes = append(resource.Attributes[:1], resource.Attributes[2])
			var res coltracepb.ExportTraceServiceResponse
			err := conn.Invoke(w.caller(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export", &coltracepb.ExportTraceServiceRequest{
				ResourceSpans: []*tracepb.ResourceSpans{{Resource: resource, ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}}}},
			}, &res)
			if w.said(&res, err); err != nil || res.GetPartialSuccess() != nil {
				w.t.Fatalf("a span: %v, %v", &res, err)
			}
			continue
		}
		point := &metricspb.NumberDataPoint{
			StartTimeUnixNano: now - 1e9, TimeUnixNano: now, Value: &metricspb.NumberDataPoint_AsInt{AsInt: 5},
			Attributes: append(planted, textAttribute("type", "input"), textAttribute("model", "claude-sonnet-4-5")),
		}
		sum := &metricspb.Sum{AggregationTemporality: metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA, IsMonotonic: true, DataPoints: []*metricspb.NumberDataPoint{point}}
		var res colmetricspb.ExportMetricsServiceResponse
		err := conn.Invoke(w.caller(), "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", &colmetricspb.ExportMetricsServiceRequest{
			ResourceMetrics: []*metricspb.ResourceMetrics{{Resource: resource, ScopeMetrics: []*metricspb.ScopeMetrics{{Metrics: []*metricspb.Metric{
				{Name: "claude_code.token.usage", Description: text, Data: &metricspb.Metric_Sum{Sum: sum}},
				{Name: "gen_ai.client.token.usage", Description: text, Unit: text, Data: &metricspb.Metric_Sum{Sum: &metricspb.Sum{DataPoints: []*metricspb.NumberDataPoint{{Attributes: planted}}}}},
				{Name: "hw.gpu.utilization", Description: text, Data: &metricspb.Metric_Sum{Sum: &metricspb.Sum{DataPoints: []*metricspb.NumberDataPoint{{Attributes: planted}}}}},
			}}}}},
		}, &res)
		if w.said(&res, err); err != nil {
			w.t.Fatalf("a point: %v", err)
		}
	}
}

// unknown is a field that no message of ours has.
func unknown(text string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), text)
}

// messages sends our events by gRPC: every second batch has fields that are not ours, or
// known ones with too much in them.
func (w *promptsWorld) messages(from, n int) {
	service := pb.NewIngestServiceClient(w.dial(w.grpc))
	for b := range n / doorBatch {
		req := &pb.SendEventsRequest{}
		for i := range doorBatch {
			k := from + b*doorBatch + i
			w.sent.Add(1)
			ev := &pb.UsageEvent{
				EventId: fmt.Sprint("grpc-", k), TenantId: plantedTenant, OccurredAt: timestamppb.Now(), Provider: "openai", Model: "gpt-5",
				Tokens: &pb.TokenCounts{Input: 5}, Feature: fmt.Sprint(control, "grpc", k%64),
			}
			if text := fragment(k); b%2 == 1 {
				switch i % 5 {
				case 0:
					ev.ProtoReflect().SetUnknown(unknown(text))
				case 1:
					ev.Status = text
				case 2:
					ev.ErrorType = text
				case 3:
					ev.Tokens.ProtoReflect().SetUnknown(unknown(text))
				case 4:
					ev.Tags = map[string]string{"x": text}
				}
			}
			req.Events = append(req.Events, ev)
		}
		res, err := service.SendEvents(w.caller(), req)
		w.said(res, err)
		if err != nil || res.GetAccepted() != int64(doorBatch*(1-b%2)) {
			w.t.Fatalf("events, batch %d: %v, %v", b, res, err)
		}
	}
	raw := unknown(fragment(from))
	w.said(nil, w.dial(w.grpc).Invoke(w.caller(), pb.IngestService_SendEvents_FullMethodName, &pb.EventRefusal{Message: string(raw)}, &pb.SendEventsResponse{}))
}

// batchFiles are how many files of a batch's results there are, and when they were made.
const batchFiles = 4

var batchMade = time.Now().Add(-time.Hour).Unix()

// batchResults reads the results of batches, which are a provider's, through the proxy.
func (w *promptsWorld) batchResults(from, n int) {
	for file := range batchFiles {
		var lines bytes.Buffer
		for k := from + file*n/batchFiles; k < from+(file+1)*n/batchFiles; k++ {
			w.sent.Add(1)
			f := shaped(k)
			if k%5 == 1 {
				fmt.Fprintf(&lines, `{"id":"batch_req_%d","custom_id":%s,"response":null,"error":{"code":%s,"message":%s}}`+"\n", k, f, f, f)
				continue
			}
			fmt.Fprintf(&lines, `{"id":"batch_req_%[1]d","custom_id":%[3]s,"response":{"status_code":200,"request_id":"req_%[1]d","body":{"id":"chatcmpl-%[1]d","object":"chat.completion","created":%[2]d,"model":"gpt-4o-mini",%[3]s:%[3]s,`+
				`"choices":[{"message":{"content":%[3]s},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}},"error":null}`+"\n", k, batchMade, f)
		}
		w.files.Store(fmt.Sprintf("/v1/files/results-%d/content", file), lines.Bytes())
		req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, fmt.Sprintf("%s/openai/v1/files/results-%d/content", w.proxy, file), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.token)
		req.Header.Set("X-Tallystick-Tenant", plantedTenant)
		req.Header.Set("X-Tallystick-Feature", fmt.Sprint(control, "batch", file))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			w.t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !bytes.Equal(got, lines.Bytes()) {
			w.t.Fatalf("results: %d, %d bytes of %d, %v", res.StatusCode, len(got), lines.Len(), err)
		}
	}
}

// provideFile answers as a provider that has files of batches. False is for another path.
func (w *promptsWorld) provideFile(rw http.ResponseWriter, r *http.Request) bool {
	if content, ok := w.files.Load(r.URL.Path); ok {
		_, _ = rw.Write(content.([]byte))
		return true
	}
	if _, ok := w.files.Load(r.URL.Path + "/content"); ok {
		fmt.Fprintf(rw, `{"object":"file","purpose":"batch_output","created_at":%d,"filename":%s}`, batchMade+60, quoted(fragment(0)))
		return true
	}
	return false
}

// samples sends what a GPU agent does, as a careless one would.
func (w *promptsWorld) samples(from, n int) {
	var made struct {
		Credential string `json:"credential"`
	}
	if err := json.Unmarshal([]byte(w.post("/v1/agents", fmt.Sprintf(`{"tenant_id":%q,"name":"planted"}`, plantedTenant), http.StatusOK)), &made); err != nil {
		w.t.Fatal(err)
	}
	who, err := agentauth.ParseCredential(made.Credential)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := pb.NewAgentGatewayClient(w.dial(w.agents)).Connect(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	exchange := func(f *pb.AgentFrame) *pb.GatewayFrame {
		if f != nil {
			if err := s.Send(f); err != nil {
				w.t.Fatal(err)
			}
		}
		answer, err := s.Recv()
		if w.said(answer, err); err != nil {
			w.t.Fatal(err)
		}
		return answer
	}
	h := &pb.HelloProof{Version: agentauth.ProofVersion, TenantId: string(who.Tenant), AgentId: who.Agent, ProducerEpoch: 1, AgentNonce: make([]byte, 16)}
	agentauth.SignHello(&who.Secret, exchange(nil).GetChallenge().GetNonce(), agentauth.Binding{}, h)
	if exchange(&pb.AgentFrame{Body: &pb.AgentFrame_Hello{Hello: h}}).GetHello() == nil {
		w.t.Fatal("the agent is not let in")
	}
	for k := from; k < from+n; k++ {
		w.sent.Add(1)
		seq, text, now := int64(k-from+1), fragment(k), time.Now().UnixMicro()
		frame := &pb.SampleFrame{ProducerEpoch: 1, Seq: seq}
		for i := range 5 {
			frame.Samples = append(frame.Samples, &pb.GpuSample{GpuUuid: fmt.Sprint("GPU-", i), Host: "n1", EndUs: now, PowerWatts: proto.Float64(300)})
		}
		frame.Samples[0].Model = control
		frame.Samples[1].ProtoReflect().SetUnknown(unknown(text))
		frame.Samples[2].PurchaseOption = text
		frame.Samples[3].Model = text
		frame.Samples[4].Workloads = []*pb.GpuWorkload{{ProcessName: text, Pod: text}}
		first := exchange(&pb.AgentFrame{Body: &pb.AgentFrame_Samples{Samples: frame}})
		second := exchange(nil) // they come in either order
		refused, acked := max(first.GetRefusal().GetRefusedSamples(), second.GetRefusal().GetRefusedSamples()), max(first.GetAck().GetSeq(), second.GetAck().GetSeq())
		if refused != 4 || acked != seq {
			w.t.Fatalf("frame %d: %v, %v", seq, first, second)
		}
		beat := &pb.Heartbeat{ProducerEpoch: 1, SentAt: timestamppb.Now(), EmittedSamples: 5 * seq}
		beat.ProtoReflect().SetUnknown(unknown(text))
		if err := s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Heartbeat{Heartbeat: beat}}); err != nil {
			w.t.Fatal(err)
		}
	}
	last := &pb.Heartbeat{ProducerEpoch: 1, SentAt: timestamppb.Now(), LostSamples: map[string]int64{fragment(from): 1}}
	if err := s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Heartbeat{Heartbeat: last}}); err != nil {
		w.t.Fatal(err)
	}
	answer, err := s.Recv()
	if w.said(answer, err); err == nil {
		w.t.Fatalf("a heartbeat with a fragment: %v", answer)
	}
}
