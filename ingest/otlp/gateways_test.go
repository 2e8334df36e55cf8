package otlp

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	coltracepb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/doortest"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tokens"
)

func TestGateways(t *testing.T) {
	const here, there = "127.0.0.1", "192.0.2.7"
	for _, tc := range []struct {
		host string
		port int64
		peer string
		want bool
	}{
		{"proxy.acme.example", 443, there, true},
		{"PROXY.acme.example.", 0, there, true},
		{"proxy.acme.example.evil.example", 443, there, false},
		{"xproxy.acme.example", 443, there, false},
		{"llm.acme.example", 0, there, true}, // 443 goes without saying
		{"llm.acme.example", 8443, there, false},
		{"2001:db8::1", 8323, there, true},
		{"2001:db8::1", 0, there, false},
		{"localhost", 8323, here, true},
		{"127.0.0.1", 8323, "::1", true},
		{"[::1]", 8323, here, true},
		{"localhost", 8323, there, false}, // another machine's
		{"localhost", 8323, "", false},
		{"localhost", 0, here, false},
		{"localhost", 11434, here, false},
		{"api.openai.com", 443, here, false},
		{"", 8323, here, false},
	} {
		if got := known.has(tc.host, tc.port, tc.peer); got != tc.want {
			t.Errorf("a call from %s to %s port %d: %v", tc.peer, tc.host, tc.port, got)
		}
	}
	for base, want := range map[string]bool{
		"https://llm.acme.example/openai/v1": true, "http://localhost:8323/openai/v1/": true, "http://[::1]:8323/": true,
		"https://api.openai.com/v1/": false, "": false, "http://localhost:x/": false, "://": false,
	} {
		if got := known.hasURL(base, here); got != want {
			t.Errorf("a call to %q: %v", base, got)
		}
	}
	none := new(Gateways)
	if none.has("localhost", 0, here) || none.has("", 0, here) || none.hasURL("http://localhost:0/", here) {
		t.Error("no gateway has a call")
	}
}

func TestGatewaysOfListeners(t *testing.T) {
	for listen, want := range map[string]bool{"0.0.0.0:8323": true, "[::]:8323": true, ":8323": true, "localhost:8323": true, "[::1]:8323": true, "": false, "10.0.0.5:8323": false} {
		g, err := NewGateways(nil, listen)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.has("localhost", 8323, "127.0.0.1"); got != want {
			t.Errorf("listening on %q, localhost is the proxy: %v", listen, got)
		}
	}
	g := must(NewGateways(nil, "10.0.0.5:8323"))
	if !g.has("10.0.0.5", 8323, "10.0.0.9") || g.has("10.0.0.5", 80, "10.0.0.9") {
		t.Error("an address of its own is known to all, with its port")
	}
}

func TestGatewaysRefused(t *testing.T) {
	for _, addr := range []string{"", ":8323", "https://proxy.acme.example", "proxy.acme.example/openai", "proxy.acme.example:http", "proxy.acme.example:99999", "a:b:c", "user@proxy", "two words"} {
		if g, err := NewGateways([]string{addr}, ""); err == nil {
			t.Errorf("%q is %+v", addr, g)
		}
	}
}

// What is billed elsewhere is counted against the door, once it is known what became of
// the rest, and the caller is told.
func TestElsewhereIsCounted(t *testing.T) {
	k := parseCase(t, `span 1
  gen_ai.operation.name="chat"
  gen_ai.provider.name="openai"
  gen_ai.response.model="gpt-5"
  gen_ai.usage.input_tokens=10
  server.address="localhost"
  server.port=8323
span 2
  gen_ai.operation.name="chat"
  gen_ai.provider.name="openai"
  gen_ai.response.model="gpt-5"
  gen_ai.usage.input_tokens=11
`)
	log := &doortest.Log{}
	edge := &doortest.Counting{Edge: doortest.NewEdge(t, log, now)}
	send := func(from string) *coltracepb.ExportTracePartialSuccess {
		t.Helper()
		r := httptest.NewRequest(http.MethodPost, "/v1/traces", bytes.NewReader(body(t, &k.traces)))
		r = r.WithContext(authn.WithPeer(r.Context(), authn.Peer{Addr: from}))
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("Content-Type", typeProto)
		w := httptest.NewRecorder()
		Handler(edge, nil, &known).ServeHTTP(w, r)
		var res coltracepb.ExportTraceServiceResponse
		if err := proto.Unmarshal(w.Body.Bytes(), &res); err != nil {
			t.Fatalf("%d: %v", w.Code, err)
		}
		return res.GetPartialSuccess()
	}
	said := send("127.0.0.1")
	if events := doortest.Events(t, log.Take()); len(events) != 1 || events[0].Tokens[tokens.Input] != 11 {
		t.Errorf("events %+v", events)
	}
	if edge.Said != "otlp billed_elsewhere 1" || said.GetRejectedSpans() != 0 || !strings.Contains(said.GetErrorMessage(), "metering proxy") {
		t.Errorf("counted %q, answered %v", edge.Said, said)
	}
	edge.Said = ""
	if send("192.0.2.7"); edge.Said != "" || len(doortest.Events(t, log.Take())) != 2 {
		t.Errorf("another machine's localhost is not ours: %q", edge.Said)
	}
	log.Err = kafka.ErrFull
	if send("127.0.0.1"); edge.Said != "" {
		t.Errorf("what will be sent again counted %q", edge.Said)
	}
}
