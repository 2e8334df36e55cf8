package proxy_test

import (
	"context"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

const (
	backHead = `{"id":"resp_1","object":"response","created_at":1770757617,"background":true,"model":"gpt-4o-2024-08-06",`
	queued   = backHead + `"status":"queued","output":[],"usage":null}`
	over     = backHead + `"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"2 + 2 equals 4."}]}],"usage":{"input_tokens":15,"input_tokens_details":{"cached_tokens":0},"output_tokens":9,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":24}}`
)

func stream(docs ...string) (s string) {
	for _, d := range docs {
		s += "data: " + d + "\n\n"
	}
	return s
}

// background answers as OpenAI does: with what is queued until ready, then with what
// is over. A stream that creates, and one that is read, end with it.
func background(ready *bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		streams := r.URL.Query().Get("stream") == "true" || strings.Contains(string(body), `"stream":true`)
		w.Header().Set("X-Request-Id", "req_"+r.Method+r.URL.RawQuery)
		switch {
		case strings.Contains(r.URL.Path, "gone"):
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":{"type":"invalid_request_error"}}`)
		case streams:
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, stream(`{"type":"response.created","response":`+queued+`}`, `{"type":"response.output_text.delta","delta":"2 + 2 equals 4."}`))
			if *ready {
				_, _ = io.WriteString(w, stream(`{"type":"response.completed","response":`+over+`}`))
			}
		default:
			w.Header().Set("Content-Type", "application/json")
			doc := queued
			if *ready && r.Method == http.MethodGet {
				doc = over
			}
			_, _ = io.WriteString(w, doc)
		}
	}
}

// A background response makes one event, the same in every field whichever way it is
// read and however often, and none while it is only queued.
func TestBackgroundIsOneEvent(t *testing.T) {
	ready := false
	var budgets budgets
	w := newWorld(t, background(&ready), func(p *proxy.Parts, _ *proxy.Options) { p.Budgets = &budgets })
	call := func(method, path, body string) []event.Event {
		t.Helper()
		req := w.request(method, path, body)
		req.Header.Set("X-Tallystick-Team", "search")
		resp := w.do(req)
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		if id := resp.Header.Get(proxy.EventIDHeader); id != "" {
			t.Errorf("%s %s: event id %s of a call that makes no event of its own", method, path, id)
		}
		return w.sink.take()
	}
	const create, read = "/openai/v1/responses", "/openai/v1/responses/resp_1"
	for _, c := range [][3]string{
		{"POST", create, `{"model":"gpt-4o","input":"2+2?","background":true}`},
		{"POST", create, `{"model":"gpt-4o","input":"2+2?","background":true,"stream":true}`},
		{"GET", read, ""}, {"GET", read + "?stream=true", ""}, {"POST", read + "/cancel", ""}, {"GET", "/openai/v1/responses/gone", ""},
	} {
		if got := call(c[0], c[1], c[2]); len(got) != 0 {
			t.Errorf("%s %s of a queued response: %d events, the first %+v", c[0], c[1], len(got), got[0])
		}
	}
	if budgets.open != 0 || budgets.settled != 0 {
		t.Errorf("budgets: %d reservations are open, settled %v", budgets.open, budgets.settled)
	}
	ready = true
	var first event.Event
	for i, c := range [][3]string{
		{"GET", read, ""}, {"GET", read, ""}, {"GET", read + "?stream=true", ""}, {"GET", read + "?stream=true&starting_after=1", ""},
		{"POST", create, `{"model":"gpt-4o","input":"2+2?","background":true,"stream":true}`},
	} {
		got := call(c[0], c[1], c[2])
		if len(got) != 1 {
			t.Fatalf("%s %s: %d events, want one", c[0], c[1], len(got))
		}
		if i == 0 {
			first = got[0]
		} else if !reflect.DeepEqual(got[0], first) {
			t.Errorf("%s %s: %+v\nfirst %+v", c[0], c[1], got[0], first)
		}
	}
	var want tokens.Vector
	want[tokens.Input], want[tokens.Output] = 15, 9
	if first.Tokens != want || first.OccurredAt != 1770757617e9 || first.Team != "search" || first.Estimated || first.ProducerSeq != 0 || first.Model != "gpt-4o-2024-08-06" {
		t.Errorf("event %+v", first)
	}
}

// A response that its client waited for was counted then, and not again.
func TestStoredResponseIsNoEvent(t *testing.T) {
	doc := strings.Replace(over, `"background":true`, `"background":false`, 1)
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, doc)
	}, nil)
	for _, c := range []struct {
		method, path string
		events       int
	}{{"POST", "/openai/v1/responses", 1}, {"GET", "/openai/v1/responses/resp_1", 0}, {"GET", "/openai/v1/responses/resp_1?stream=false", 0}} {
		resp := w.do(w.request(c.method, c.path, `{"model":"gpt-4o","input":"x"}`))
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		if got := w.sink.take(); len(got) != c.events {
			t.Errorf("%s %s: %d events, want %d", c.method, c.path, len(got), c.events)
		}
	}
}

// A stream of which no usage comes is counted: its prompt by the published rule, its
// text by the model's tokenizer; broken off, it is that and an estimate.
func TestStreamIsCounted(t *testing.T) {
	whole := true
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(rw, stream(`{"model":"gpt-4o-2024-08-06","choices":[{"index":0,"delta":{"role":"assistant","content":"antidisest"}}]}`, `{"choices":[{"index":0,"delta":{"content":"ablishmentarianism"}}]}`))
		if whole {
			_, _ = io.WriteString(rw, stream(`{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`, `[DONE]`))
			return
		}
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
	for _, c := range []struct {
		whole         bool
		model, reason string
		input, output int64
	}{
		{true, "gpt-4o", "no_usage,counted", 8, 6},
		{false, "gpt-4o", "no_usage,estimate,cut_off,counted", 8, 6},
	} {
		whole = c.whole
		resp := w.do(w.request("POST", "/openai/v1/chat/completions", `{"model":"`+c.model+`","stream":true,"messages":[{"role":"user","content":"hello"}]}`))
		_, _ = io.ReadAll(resp.Body) // it breaks where it is cut
		ev := w.sink.wait(t)
		if ev.Tokens[tokens.Input] != c.input || ev.Tokens[tokens.Output] != c.output || ev.Estimated == c.whole || (ev.Status == event.StatusTruncated) == c.whole ||
			len(ev.Tags) != 1 || ev.Tags[0].Value != c.reason {
			t.Errorf("whole %v: %+v", c.whole, ev)
		}
	}
}

// budgets counts what is set aside and given back.
type budgets struct {
	open    int
	settled int64 // tokens
}

func (b *budgets) Reserve(context.Context, *proxy.Call, money.Pico) (proxy.Reservation, error) {
	b.open++
	return (*held)(b), nil
}

type held budgets

func (h *held) Settle(tokens int64, _ money.Pico, _ bool) {
	h.open--
	h.settled += tokens
}

func (*held) Remaining() (money.Pico, bool) { return 0, false }
