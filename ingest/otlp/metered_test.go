package otlp

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

func TestMetered(t *testing.T) {
	at := time.Unix(0, start)
	m := NewMetered(func() time.Time { return at })
	e := func(tenant, id string, v tokens.Vector) *event.Event {
		return &event.Event{Tenant: tenant, ProviderRequestID: id, Tokens: v}
	}
	all := tokens.Vector{tokens.Input: 10, tokens.CacheRead: 70, tokens.Output: 20}
	m.Note(e("acme", "", all), "req_1", "chatcmpl-1")
	for _, tc := range []struct {
		e    *event.Event
		want bool
	}{
		{e("acme", "req_1", all), true},
		{e("acme", "chatcmpl-1", tokens.Vector{tokens.Input: 80, tokens.Output: 20}), true}, // a span that knows of no cache
		{e("acme", "chatcmpl-1", tokens.Vector{}), true},                                    // one that knows of no tokens
		{e("acme", "chatcmpl-1", tokens.Vector{tokens.Input: 101}), false},                  // ids repeat
		{e("acme", "chatcmpl-2", all), false},
		{e("other", "chatcmpl-1", all), false},
		{e("acme", "", all), false},
		{e("acme", "", tokens.Vector{}), false},
	} {
		if got := m.has(tc.e); got != tc.want {
			t.Errorf("%+v: %v", *tc.e, got)
		}
	}
	if (*Metered)(nil).has(e("acme", "req_1", all)) {
		t.Error("no memory has a call")
	}

	at = at.Add(meteredTime)
	m.Note(e("acme", "", tokens.Vector{tokens.Input: 1}), "", "later")
	if !m.has(e("acme", "req_1", all)) {
		t.Error("forgotten too early")
	}
	at = at.Add(meteredTime)
	m.Note(e("acme", "", all), "", "still later")
	if m.has(e("acme", "req_1", all)) || !m.has(e("acme", "later", tokens.Vector{tokens.Input: 1})) {
		t.Error("what is old is not forgotten, or what is not is")
	}
}

func TestMeteredIsBounded(t *testing.T) {
	m := NewMetered(func() time.Time { return time.Unix(0, start) })
	e := event.Event{Tenant: "acme", Model: "m", Tokens: tokens.Vector{tokens.Input: 7}}
	for i := range maxMetered {
		m.Note(&e, "", fmt.Sprint("chatcmpl-", i))
		if i < 4*maxAlike {
			m.Note(&e, "", "")
		}
	}
	if n := len(m.newest.named) + len(m.before.named); n > 2*maxMetered+4 || len(m.before.unnamed) > 1 {
		t.Errorf("it holds %d and %d", n, len(m.before.unnamed))
	}
	e.ProviderRequestID = fmt.Sprint("chatcmpl-", maxMetered-1)
	if !m.has(&e) {
		t.Error("the newest is not there")
	}
}

// Responses without an id are told by model, tokens and time, one report for each call.
func TestMeteredWithoutIDs(t *testing.T) {
	m := NewMetered(now)
	call := func(id, model string, used int64, from, to time.Duration) *event.Event {
		return &event.Event{ID: id, Tenant: "acme", Model: model, Tokens: tokens.Vector{tokens.Input: used}, OccurredAt: start + int64(from), LatencyMicros: (to - from).Microseconds()}
	}
	const ms, s = time.Millisecond, time.Second
	m.Note(call("", "embed", 8, 10*s, 11*s), "req_1", "")
	m.Note(call("", "embed", 8, 20*s, 21*s), "req_2", "")
	for i, tc := range []struct {
		e    *event.Event
		want bool
	}{
		{call("x", "embed", 9, 10*s, 11*s), false},
		{call("x", "other", 8, 10*s, 11*s), false},
		{call("x", "embed", 8, 12*s, 30*s-1), true}, // around the second
		{call("a", "embed", 8, 10*s+500*ms, 11*s-500*ms), true},
		{call("a", "embed", 8, 10*s+500*ms, 11*s-500*ms), true}, // sent again
		{call("b", "embed", 8, 10*s-5*ms, 11*s+5*ms), false},    // another, straight to the provider
		{call("c", "embed", 8, 14*s, 15*s), false},
	} {
		if got := m.has(tc.e); got != tc.want {
			t.Errorf("%d: %v", i, got)
		}
	}
	for range 3 * maxAlike {
		m.Note(call("", "embed", 0, 40*s, 41*s), "", "")
	}
	if n := len(m.newest.unnamed[m.key("acme", "embed", 0)]); n > maxAlike || !m.has(call("z", "embed", 0, 40*s, 41*s)) {
		t.Errorf("of calls that are alike it holds %d", n)
	}
}

// Spans and records of calls that the proxy has metered are known by their ids, be it the
// header's or the body's, though nothing says where the call went.
func TestMeteredCallsAreNotBilledAgain(t *testing.T) {
	k := parseCase(t, `resource
  service.name="claude-code"
span 1
log api_request
  model="claude-sonnet-4-5"
  input_tokens=4
  output_tokens=120
  cache_read_tokens=15000
  request_id="req_011"
log api_request
  model="claude-sonnet-4-5"
  input_tokens=5
  output_tokens=120
  cache_read_tokens=15000
  request_id="req_012"
`)
	spans := parseCase(t, `span 1
  gen_ai.operation.name="chat"
  gen_ai.provider.name="openai"
  gen_ai.response.model="gpt-5"
  gen_ai.response.id="chatcmpl-1"
  gen_ai.usage.input_tokens=80
  gen_ai.usage.output_tokens=20
span 2
  gen_ai.operation.name="chat"
  gen_ai.provider.name="openai"
  gen_ai.response.model="gpt-5"
  gen_ai.response.id="chatcmpl-1"
  gen_ai.usage.input_tokens=81
  gen_ai.usage.output_tokens=20
`)
	m := NewMetered(now)
	m.Note(&event.Event{Tenant: "acme", Tokens: tokens.Vector{tokens.Input: 10, tokens.CacheRead: 70, tokens.Output: 20}}, "req-header", "chatcmpl-1")
	m.Note(&event.Event{Tenant: "acme", Tokens: tokens.Vector{tokens.Input: 4, tokens.CacheRead: 15000, tokens.Output: 120}}, "req_011", "msg_1")
	for i, tc := range []struct {
		signal int
		msg    proto.Message
		left   string
	}{{0, &spans.traces, "chatcmpl-1"}, {2, &k.logs, "req_012"}} {
		b, err := signals[tc.signal].decode(body(t, tc.msg), false, &batch{tenant: "acme", gateways: &Gateways{Metered: m}}, http.Header{})
		if err != nil {
			t.Fatal(err)
		}
		if len(b.events) != 1 || b.events[0].ProviderRequestID != tc.left || b.elsewhere != 1 || !strings.Contains(b.message, "metering proxy") {
			t.Errorf("%d: %d elsewhere, %q: %+v", i, b.elsewhere, b.message, b.events)
		}
	}
}

// A report without an id that states where its call went, which is not the proxy, is of no
// call that merely looks like it.
func TestMeteredCallsHaveNoOtherAddress(t *testing.T) {
	for address, want := range map[string]int{"": 0, "  server.address=\"api.openai.com\"\n": 1, "  gen_ai.openai.api_base=\"https://api.openai.com/v1\"\n": 1} {
		spans := parseCase(t, `span 1
  gen_ai.operation.name="embeddings"
  gen_ai.provider.name="openai"
  gen_ai.request.model="embed"
  gen_ai.usage.input_tokens=512
`+address)
		start := int64(spans.traces.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetStartTimeUnixNano())
		m := NewMetered(now)
		m.Note(&event.Event{Tenant: "acme", Model: "embed", OccurredAt: start, Tokens: tokens.Vector{tokens.Input: 512}}, "", "")
		b, err := signals[0].decode(body(t, &spans.traces), false, &batch{tenant: "acme", gateways: &Gateways{Metered: m}}, http.Header{})
		if err != nil {
			t.Fatal(err)
		}
		if len(b.events) != want || b.elsewhere != 1-want {
			t.Errorf("%q: %d events and %d elsewhere, want %d", address, len(b.events), b.elsewhere, want)
		}
	}
}
