package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	colmetricspb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/doortest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

func now() time.Time { return time.Unix(0, start+5e9) }

func twoCalls(t *testing.T) *coltracepb.ExportTraceServiceRequest {
	t.Helper()
	k := parseCase(t, `span 1
  gen_ai.operation.name="chat"
  gen_ai.provider.name="openai"
  gen_ai.response.model="gpt-5"
  gen_ai.usage.input_tokens=10
span 2
  gen_ai.operation.name="chat"
  gen_ai.provider.name="openai"
  gen_ai.response.model="`+strings.Repeat("m", 300)+`"
  gen_ai.usage.input_tokens=10
`)
	return &k.traces
}

func body(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func basic(user, pass string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
}

func TestHTTP(t *testing.T) {
	req := twoCalls(t)
	for _, tc := range []struct {
		name    string
		path    string
		header  map[string]string
		body    []byte
		code    int
		events  int
		partial string
	}{
		{"protobuf", "/v1/traces", map[string]string{"Authorization": "Bearer good"}, body(t, req), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"json", "/v1/traces", map[string]string{"Authorization": "Bearer good", "Content-Type": "application/json; charset=utf-8"}, jsonBody(t, req), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"gzip", "/v1/traces", map[string]string{"Authorization": "Bearer good", "Content-Encoding": "gzip"}, zip(t, body(t, req)), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"basic, token as password", "/v1/traces", map[string]string{"Authorization": basic("anybody", "good")}, body(t, req), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"basic, token as user", "/v1/traces", map[string]string{"Authorization": basic("good", "")}, body(t, req), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"basic, user as tenant", "/v1/traces", map[string]string{"Authorization": basic("acme", "admin")}, body(t, req), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"tenant in a header", "/v1/traces", map[string]string{"Authorization": "Bearer admin", "X-Tallystick-Tenant": "acme"}, body(t, req), 200, 1, "1 calls were refused, the first: model: max_bytes (at most 256 bytes)"},
		{"no tenant", "/v1/traces", map[string]string{"Authorization": "Bearer admin"}, body(t, req), 200, 0, "2 calls were refused, the first: tenant_id: required"},
		{"nothing", "/v1/metrics", map[string]string{"Authorization": "Bearer good"}, nil, 200, 0, ""},
		{"no credential", "/v1/traces", nil, body(t, req), 401, 0, ""},
		{"wrong basic", "/v1/traces", map[string]string{"Authorization": basic("acme", "bad")}, body(t, req), 401, 0, ""},
		{"broken basic", "/v1/traces", map[string]string{"Authorization": "Basic %%"}, body(t, req), 401, 0, ""},
		{"no scope", "/v1/traces", map[string]string{"Authorization": "Bearer read"}, body(t, req), 403, 0, ""},
		{"foreign tenant", "/v1/traces", map[string]string{"Authorization": "Bearer good", "X-Tallystick-Tenant": "umbrella"}, body(t, req), 403, 0, ""},
		{"other media", "/v1/logs", map[string]string{"Authorization": "Bearer good", "Content-Type": "text/plain"}, nil, 415, 0, ""},
		{"no message", "/v1/logs", map[string]string{"Authorization": "Bearer good"}, []byte("planted"), 400, 0, ""},
		{"no gzip", "/v1/logs", map[string]string{"Authorization": "Bearer good", "Content-Encoding": "gzip"}, []byte("planted"), 400, 0, ""},
		{"bomb", "/v1/traces", map[string]string{"Authorization": "Bearer good", "Content-Encoding": "gzip"}, zip(t, make([]byte, ingest.MaxDoorBytes+1)), 413, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := &doortest.Log{}
			r := httptest.NewRequest(http.MethodPost, tc.path, bytes.NewReader(tc.body))
			r.Header.Set("Content-Type", typeProto)
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			Handler(doortest.NewEdge(t, log, now), nil, new(Gateways)).ServeHTTP(w, r)
			if w.Code != tc.code || len(log.Take()) != tc.events {
				t.Fatalf("status %d, want %d; body %q", w.Code, tc.code, w.Body)
			}
			if strings.Contains(w.Body.String(), "planted") {
				t.Errorf("the answer repeats the body: %q", w.Body)
			}
			if tc.code != 200 || tc.path != "/v1/traces" {
				return
			}
			var res coltracepb.ExportTraceServiceResponse
			var err error
			if strings.HasPrefix(tc.header["Content-Type"], typeJSON) {
				err = protojson.Unmarshal(w.Body.Bytes(), &res)
			} else {
				err = proto.Unmarshal(w.Body.Bytes(), &res)
			}
			if err != nil || res.GetPartialSuccess().GetErrorMessage() != tc.partial {
				t.Errorf("answer %v, %v", &res, err)
			}
		})
	}
}

// A log that is away must make the exporter come again.
func TestUnavailable(t *testing.T) {
	log := &doortest.Log{Err: kafka.ErrFull}
	r := httptest.NewRequest(http.MethodPost, "/v1/traces", bytes.NewReader(body(t, twoCalls(t))))
	r.Header.Set("Content-Type", typeProto)
	r.Header.Set("Authorization", "Bearer good")
	w := httptest.NewRecorder()
	Handler(doortest.NewEdge(t, log, now), nil, new(Gateways)).ServeHTTP(w, r)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}

func TestGRPC(t *testing.T) {
	log := &doortest.Log{}
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer(ingest.DoorServerOptions()...)
	Register(server, doortest.NewEdge(t, log, now), nil, new(Gateways))
	go server.Serve(lis) //nolint:errcheck // ends with Stop
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:bufnet", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // of a test
	send := func(authorization string, m, res proto.Message, rpc string, opts ...grpc.CallOption) error {
		ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", authorization)
		return conn.Invoke(ctx, "/opentelemetry.proto.collector."+rpc+"/Export", m, res, opts...)
	}
	var res coltracepb.ExportTraceServiceResponse
	for _, opts := range [][]grpc.CallOption{nil, {grpc.UseCompressor(grpcgzip.Name)}} {
		if err := send("Bearer good", twoCalls(t), &res, "trace.v1.TraceService", opts...); err != nil || res.GetPartialSuccess().GetRejectedSpans() != 1 {
			t.Errorf("Export = %v, %v", &res, err)
		}
		if got := doortest.Events(t, log.Take()); len(got) != 1 || got[0].Model != "gpt-5" {
			t.Errorf("events %v", got)
		}
	}
	if err := send(basic("x", "good"), &colmetricspb.ExportMetricsServiceRequest{}, &colmetricspb.ExportMetricsServiceResponse{}, "metrics.v1.MetricsService"); err != nil {
		t.Errorf("Basic: %v", err)
	}
	if err := send("Bearer no", twoCalls(t), &res, "trace.v1.TraceService"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("wrong token: %v", err)
	}
	huge := parseCase(t, "span 1\n  input.value=\"x\"\n")
	huge.traces.ResourceSpans[0].ScopeSpans[0].Spans[0].Attributes[0].Value = anyValue(t, `"`+strings.Repeat("x", ingest.MaxDoorBytes)+`"`)
	if err := send("Bearer good", &huge.traces, &res, "trace.v1.TraceService", grpc.UseCompressor(grpcgzip.Name)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a bomb: %v", err)
	}
	log.Err = kafka.ErrFull
	if err := send("Bearer good", twoCalls(t), &res, "trace.v1.TraceService"); status.Code(err) != codes.Unavailable {
		t.Errorf("a full log: %v", err)
	}
}

// What comes twice is the same record but for the time of receipt: hop 3 sees one call.
func TestTwiceIsOnce(t *testing.T) {
	log := &doortest.Log{}
	h := Handler(doortest.NewEdge(t, log, now), nil, new(Gateways))
	var seen []event.Event
	for _, media := range []string{typeProto, typeJSON} {
		b := body(t, twoCalls(t))
		if media == typeJSON {
			b = jsonBody(t, twoCalls(t))
		}
		r := httptest.NewRequest(http.MethodPost, "/v1/traces", bytes.NewReader(b))
		r.Header.Set("Content-Type", media)
		r.Header.Set("Authorization", "Bearer good")
		h.ServeHTTP(httptest.NewRecorder(), r)
		seen = append(seen, doortest.Events(t, log.Take())...)
	}
	if len(seen) != 2 || seen[0].ID != seen[1].ID || seen[0].ContentMAC != seen[1].ContentMAC {
		t.Errorf("%+v", seen)
	}
}

// The spans of the data pack: each is as its own output.value says, which we never read.
func TestOpenInferencePack(t *testing.T) {
	dir := testenv.Data(t, "otlp")
	files, err := filepath.Glob(filepath.Join(dir, "openinference_span_*.json"))
	if err != nil || len(files) < 19 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	log := &doortest.Log{}
	h := Handler(doortest.NewEdge(t, log, now), nil, new(Gateways))
	counted := 0
	for i, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s tracepb.Span
		if err := protojson.Unmarshal(raw, &s); err != nil {
			t.Fatal(err)
		}
		s.TraceId, s.SpanId, s.StartTimeUnixNano, s.EndTimeUnixNano = bytes.Repeat([]byte{1}, 16), id8(t, fmt.Sprint(i+1)), start, start+1e9
		req := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{&s}}}}}}
		r := httptest.NewRequest(http.MethodPost, "/v1/traces", bytes.NewReader(body(t, req)))
		r.Header.Set("Content-Type", typeProto)
		r.Header.Set("Authorization", "Bearer good")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		recs := log.Take()
		got := doortest.Events(t, recs)
		if w.Code != 200 || len(got) != 1 {
			t.Errorf("%s: %d, %d events, %s", filepath.Base(file), w.Code, len(got), w.Body)
			continue
		}
		if leak := leaked(recs, textsOf(&s)); leak != "" {
			t.Errorf("%s: %q reached the log", filepath.Base(file), leak)
		}
		if checkOutput(t, filepath.Base(file), &s, &got[0]) {
			counted++
		}
	}
	if counted < 10 {
		t.Errorf("only %d spans have an output.value with usage", counted)
	}
}

// checkOutput holds an event against the provider's answer in the span.
func checkOutput(t *testing.T, name string, s *tracepb.Span, e *event.Event) bool {
	t.Helper()
	var out struct {
		Usage *struct {
			Prompt     int64 `json:"prompt_tokens"`
			Completion int64 `json:"completion_tokens"`
			Total      int64 `json:"total_tokens"`
			In         struct {
				Cached int64 `json:"cached_tokens"`
				Audio  int64 `json:"audio_tokens"`
			} `json:"prompt_tokens_details"`
			Out struct {
				Reasoning int64 `json:"reasoning_tokens"`
				Audio     int64 `json:"audio_tokens"`
			} `json:"completion_tokens_details"`
		}
	}
	for _, kv := range s.Attributes {
		if kv.Key == "output.value" {
			_ = json.Unmarshal([]byte(kv.Value.GetStringValue()), &out) // a stream's is no JSON
		}
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		if e.Status != event.StatusError || e.Tokens.Total() != 0 {
			t.Errorf("%s: a failed call is %+v", name, e)
		}
		return false
	}
	u := out.Usage
	if u == nil || !hasTokens(s) {
		return false
	}
	want := tokens.Vector{
		tokens.Input: u.Prompt - u.In.Cached - u.In.Audio, tokens.CacheRead: u.In.Cached, tokens.AudioInput: u.In.Audio,
		tokens.Output: u.Completion - u.Out.Reasoning - u.Out.Audio, tokens.Reasoning: u.Out.Reasoning, tokens.AudioOutput: u.Out.Audio,
	}
	if e.Tokens != want || u.Total != 0 && e.Tokens.Total() != u.Total {
		t.Errorf("%s: %v, want %v", name, e.Tokens, want)
	}
	return true
}

func hasTokens(s *tracepb.Span) bool {
	for _, kv := range s.Attributes {
		if strings.HasPrefix(kv.Key, "llm.token_count.") {
			return true
		}
	}
	return false
}

// textsOf are fragments of everything in a span that is a text of a prompt or answer.
func textsOf(s *tracepb.Span) (texts []string) {
	add := func(kvs []*commonpb.KeyValue) {
		for _, kv := range kvs {
			if v := kv.Value.GetStringValue(); len(v) > 20 && !strings.HasPrefix(kv.Key, "llm.model") {
				texts = append(texts, v[:20], v[len(v)-20:])
			}
		}
	}
	add(s.Attributes)
	for _, ev := range s.Events {
		add(ev.Attributes)
	}
	if m := s.GetStatus().GetMessage(); len(m) > 20 {
		texts = append(texts, m[:20])
	}
	return texts
}

func leaked(recs [][]byte, texts []string) string {
	for _, rec := range recs {
		for _, text := range texts {
			if bytes.Contains(rec, []byte(text)) {
				return text
			}
		}
	}
	return ""
}

// Fragments planted in every place of every signal reach neither the log nor an answer.
func TestPlantedFragments(t *testing.T) {
	const secret = "zq7-planted-fragment"
	log := &doortest.Log{}
	h := Handler(doortest.NewEdge(t, log, now), nil, new(Gateways))
	sent := 0
	for _, tc := range plantedRequests(t, secret) {
		for _, asJSON := range []bool{false, true} {
			b, media := body(t, tc.m), typeProto
			if asJSON {
				b, media = jsonBody(t, tc.m), typeJSON
			}
			r := httptest.NewRequest(http.MethodPost, tc.path, bytes.NewReader(b))
			r.Header.Set("Content-Type", media)
			r.Header.Set("Authorization", "Bearer good")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			answer, _ := io.ReadAll(w.Body)
			recs := append(log.Take(), answer)
			for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret))[:20], strings.ToUpper(secret)} {
				if leaked(recs, []string{form}) != "" {
					t.Errorf("%s: %q came through (%d)", tc.name, form, w.Code)
				}
			}
			sent++
		}
	}
	if sent < 200 {
		t.Errorf("only %d requests", sent)
	}
}
