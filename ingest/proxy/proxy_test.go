package proxy_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

const chatRequest = `{"model":"gpt-4o","messages":[{"role":"user","content":"hello there"}]}`

const chatAnswer = `{"id":"chatcmpl-1","model":"gpt-4o-2024-08-06","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4}}}`

// The whole of a plain call: what goes up, what comes down, what is kept.
func TestCall(t *testing.T) {
	var up *http.Request
	var upBody string
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		up, upBody = r, string(b)
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("X-Request-Id", "req_77")
		io.WriteString(rw, chatAnswer)
	}, nil)
	req := w.request("POST", "/openai/v1/chat/completions?x=1", chatRequest)
	req.Header.Set("X-Tallystick-Team", "search")
	req.Header.Set("Openai-Organization", "org-1")
	resp := w.do(req)
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != chatAnswer || resp.StatusCode != 200 {
		t.Fatalf("status %d, body %q, err %v", resp.StatusCode, body, err)
	}
	if up.URL.String() != "/v1/chat/completions?x=1" || upBody != chatRequest || up.Header.Get("Authorization") != "Bearer "+providerKey ||
		up.Header.Get("Openai-Organization") != "org-1" {
		t.Errorf("upstream saw %s %v %q", up.URL, up.Header, upBody)
	}
	for name := range up.Header {
		if strings.HasPrefix(name, "X-Tallystick") || name == "Accept-Encoding" || name == "X-Forwarded-For" {
			t.Errorf("%s went upstream", name)
		}
	}
	ev := w.sink.wait(t)
	want := tokens.Vector{tokens.Input: 5, tokens.CacheRead: 4, tokens.Output: 3}
	if ev.Tokens != want || ev.Model != "gpt-4o-2024-08-06" || ev.RequestedModel != "gpt-4o" || ev.Team != "search" ||
		ev.ID != resp.Header.Get(proxy.EventIDHeader) || ev.Provider != "openai" || ev.Operation != "chat" || ev.HTTPStatus != 200 ||
		ev.ProviderRequestID != "req_77" || ev.Tenant != "acme" || ev.LatencyMicros <= 0 || ev.TTFTMicros <= 0 || ev.Estimated || ev.Status != "" {
		t.Errorf("event %+v", ev)
	}
}

// SSE in the form of each provider: chunks, the path, the tokens.
var streams = []struct {
	name, path, request string
	chunks              []string
	want                tokens.Vector
}{
	{"openai", "/openai/v1/chat/completions", `{"model":"gpt-4o","stream":true,"messages":[]}`, []string{
		`data: {"id":"c1","model":"gpt-4o","choices":[{"delta":{"content":"hel"}}]}` + "\n\n",
		`data: {"id":"c1","choices":[{"delta":{"content":"lo"},"finish_reason":"stop"}]}` + "\n\n",
		`data: {"id":"c1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}` + "\n\n",
		"data: [DONE]\n\n",
	}, tokens.Vector{tokens.Input: 7, tokens.Output: 2}},
	{"anthropic", "/v1/messages", `{"model":"claude-sonnet-4-5","stream":true,"messages":[]}`, []string{
		"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m1\",\"model\":\"claude-sonnet-4-5\",\"usage\":{\"input_tokens\":11,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n",
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\n",
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":4}}\n\n",
		"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
	}, tokens.Vector{tokens.Input: 11, tokens.CacheRead: 5, tokens.Output: 4}},
	{"gemini", "/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", `{"contents":[]}`, []string{
		`data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":6,"candidatesTokenCount":1,"totalTokenCount":7}}` + "\n\n",
		`data: {"candidates":[{"content":{"parts":[{"text":"b"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":6,"candidatesTokenCount":2,"totalTokenCount":8},"modelVersion":"gemini-2.5-flash"}` + "\n\n",
	}, tokens.Vector{tokens.Input: 6, tokens.Output: 2}},
}

// Each chunk has reached the client before the provider sends the next one.
func TestStreamsPassChunkByChunk(t *testing.T) {
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			next := make(chan struct{})
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				rw.Header().Set("Content-Type", "text/event-stream")
				c := http.NewResponseController(rw)
				c.Flush()
				for _, chunk := range s.chunks {
					<-next
					io.WriteString(rw, chunk)
					c.Flush()
				}
				<-next
			}, nil)
			resp := w.do(w.request("POST", s.path, s.request))
			buf := make([]byte, 64<<10)
			for _, chunk := range s.chunks {
				next <- struct{}{}
				got := ""
				for len(got) < len(chunk) {
					n, err := resp.Body.Read(buf)
					if got += string(buf[:n]); err != nil {
						t.Fatalf("after %q: %v", got, err)
					}
				}
				if got != chunk {
					t.Fatalf("got %q, want %q", got, chunk)
				}
			}
			next <- struct{}{}
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
				t.Fatalf("rest %q, err %v", rest, err)
			}
			ev := w.sink.wait(t)
			if ev.Tokens != s.want || !ev.Streamed || ev.Status != "" || ev.Provider != s.name {
				t.Errorf("event %+v", ev)
			}
		})
	}
}

// The event by which a stream ends, or the end of a body, waits for the sink.
func TestTheEndWaitsForTheSink(t *testing.T) {
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				rw.Header().Set("Content-Type", "text/event-stream")
				for _, chunk := range s.chunks {
					io.WriteString(rw, chunk)
					http.NewResponseController(rw).Flush()
				}
			}, nil)
			w.sink.gate = make(chan struct{})
			req, ended := w.request("POST", s.path, s.request), make(chan struct{})
			go func() {
				defer close(ended)
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				io.Copy(io.Discard, resp.Body)
			}()
			select {
			case <-ended:
				t.Error("the response ended before its event was kept")
			case w.sink.gate <- struct{}{}:
			}
			<-ended
			w.sink.wait(t)
		})
	}
}

// A stream that either side breaks off is metered as truncated, with estimated
// tokens and not with none.
func TestBrokenStreams(t *testing.T) {
	begun := make(chan struct{})
	gone := make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(rw, `data: {"id":"c1","model":"gpt-4o","choices":[{"delta":{"content":"twelve characters, and some more"}}]}`+"\n\n")
		http.NewResponseController(rw).Flush()
		if r.URL.Query().Get("break") != "" {
			panic(http.ErrAbortHandler)
		}
		close(begun)
		<-r.Context().Done() // the client's leaving must come through
		close(gone)
	}, nil)
	check := func(ev event.Event) {
		t.Helper()
		if ev.Status != event.StatusTruncated || ev.Tokens[tokens.Input] != 9 || ev.Tokens[tokens.Output] != 7 || !ev.Estimated {
			t.Errorf("event %+v", ev)
		}
	}
	resp := w.do(w.request("POST", "/openai/v1/chat/completions?break=1", chatRequest))
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the client took a cut response for whole")
	}
	check(w.sink.wait(t))

	ctx, cancel := context.WithCancel(t.Context())
	resp = w.do(w.request("POST", "/openai/v1/chat/completions", chatRequest).WithContext(ctx))
	<-begun
	buf := make([]byte, 1000)
	if _, err := resp.Body.Read(buf); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-gone
	check(w.sink.wait(t))
}

// policy is every decision that a test wants made.
type policy struct {
	killed bool
	wait   time.Duration
	over   bool
	full   bool
	err    error
	left   money.Pico
	cost   money.Pico
}

func (p *policy) Killed(context.Context, *proxy.Call) (policy, reason string, killed bool, err error) {
	return "kill-all", "incident 7", p.killed, p.err
}
func (p *policy) Take(context.Context, *proxy.Call) (time.Duration, string, error) {
	return p.wait, "60 a minute", nil
}
func (p *policy) Full() bool { return p.full }
func (p *policy) Reserve(context.Context, *proxy.Call, money.Pico) (proxy.Reservation, error) {
	if p.over {
		return nil, proxy.ErrOverBudget
	}
	return p, nil
}
func (p *policy) Settle(_ int64, cost money.Pico, _ bool) { p.cost = cost; p.left -= cost }
func (p *policy) Remaining() (money.Pico, bool)           { return p.left, true }

// Calls that are not forwarded have the answer and the one event that the design gives.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, path, body string
		policy           policy
		code             int
		status, kind     string
		retry            string
		events           int
	}{
		{"killed", "/openai/v1/chat/completions", chatRequest, policy{killed: true}, 451, event.StatusKilled, "killed", "", 1},
		{"rate limit", "/openai/v1/chat/completions", chatRequest, policy{wait: 1500 * time.Millisecond}, 429, event.StatusBlocked, "rate_limit", "2", 1},
		{"budget", "/openai/v1/chat/completions", chatRequest, policy{over: true}, 429, event.StatusBlocked, "budget", "60", 1},
		{"no key", "/mistral/v1/chat/completions", chatRequest, policy{}, 502, event.StatusError, "no_provider_key", "", 1},
		{"spool full", "/openai/v1/chat/completions", chatRequest, policy{full: true}, 503, event.StatusError, "spool_full", "5", 1},
		{"nobody can tell", "/openai/v1/chat/completions", chatRequest, policy{err: errors.New("postgres is away")}, 503, event.StatusError, "unavailable", "1", 1},
		{"too large", "/openai/v1/chat/completions", strings.Repeat("x", 2000), policy{}, 413, event.StatusError, "body_too_large", "", 1},
		{"unknown path", "/nobody/v1/chat/completions", chatRequest, policy{}, 404, "", "", "", 0},
		{"climbing", "/openai/v1/../v1/chat/completions", chatRequest, policy{}, 404, "", "", "", 0},
		{"climbing escaped", "/openai/v1/%2e%2E/v1/chat/completions", chatRequest, policy{}, 404, "", "", "", 0},
		{"climbing by an escaped slash", "/openai/v1/x%2f..%2Fchat/completions", chatRequest, policy{}, 404, "", "", "", 0},
		{"standing still", "/openai/v1/%2e/chat/completions", chatRequest, policy{}, 404, "", "", "", 0},
		{"ending above", "/openai/v1/chat/%2e.", chatRequest, policy{}, 404, "", "", "", 0},
		{"an empty segment", "/openai/v1/%2fchat/completions", chatRequest, policy{}, 404, "", "", "", 0},
		{"killed listing", "/openai/v1/models", "", policy{killed: true}, 451, "", "", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded") }, func(p *proxy.Parts, o *proxy.Options) {
				p.Switch, p.Limits, p.Budgets, p.Room = &c.policy, &c.policy, &c.policy, &c.policy
				o.MaxBodyBytes = 1000
			})
			resp := w.do(w.request("POST", c.path, c.body))
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.code || resp.Header.Get("Retry-After") != c.retry || !strings.Contains(string(body), `"message":"tallystick: `) {
				t.Errorf("status %d, headers %v, body %s", resp.StatusCode, resp.Header, body)
			}
			got := w.sink.take()
			if len(got) != c.events {
				t.Fatalf("%d events, want %d", len(got), c.events)
			}
			if c.events == 1 && (got[0].Status != c.status || got[0].ErrorType != c.kind || got[0].Tokens.Total() != 0 || got[0].HTTPStatus != int64(c.code)) {
				t.Errorf("event %+v", got[0])
			}
		})
	}
}

// Whoever has no token of ours gets nothing forwarded, wherever the token stands.
func TestTokens(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		for _, values := range r.Header {
			if strings.Contains(strings.Join(values, " "), token) {
				t.Error("our token went upstream")
			}
		}
		if strings.Contains(r.URL.String(), token) {
			t.Error("our token went upstream")
		}
		rw.Header().Set("Content-Type", "application/json")
		io.WriteString(rw, chatAnswer)
	}, nil)
	for _, c := range []struct {
		header, value, query string
		code                 int
	}{
		{"Authorization", "Bearer " + token, "", 200}, {"X-Api-Key", token, "", 200}, {"X-Goog-Api-Key", token, "", 200},
		{"Api-Key", token, "", 200}, {"", "", "?key=" + token + "&alt=json", 200},
		{"", "", "", 401}, {"Authorization", "Bearer wrong", "", 401}, {"Authorization", "Basic " + token, "", 401},
	} {
		req := w.request("POST", "/openai/v1/chat/completions"+c.query, chatRequest)
		req.Header.Del("Authorization")
		if c.header != "" {
			req.Header.Set(c.header, c.value)
		}
		resp := w.do(req)
		if io.Copy(io.Discard, resp.Body); resp.StatusCode != c.code {
			t.Errorf("%s %s: status %d, want %d", c.header, c.query, resp.StatusCode, c.code)
		}
	}
	if n := len(w.sink.take()); n != 5 {
		t.Errorf("%d events, want 5", n)
	}
}

// A client that asks learns what the call cost and what is left, in headers or, of a
// response without length, in trailers.
func TestReturnedCost(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		p := &policy{left: 100 * money.Pico(1_000_000)}
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			if chunked {
				http.NewResponseController(rw).Flush()
			}
			io.WriteString(rw, chatAnswer)
		}, func(parts *proxy.Parts, _ *proxy.Options) { parts.Budgets = p })
		req := w.request("POST", "/openai/v1/chat/completions", chatRequest)
		req.Header.Set(proxy.ReturnHeader, "cost, budget")
		resp := w.do(req)
		body, err := io.ReadAll(resp.Body)
		h := resp.Header
		if chunked {
			h = resp.Trailer
		}
		if err != nil || string(body) != chatAnswer || h.Get(proxy.CostHeader) != "0.000012000000" || h.Get(proxy.RemainingHeader) != "0.000088000000" {
			t.Errorf("chunked %v: %v, headers %v, trailers %v", chunked, err, resp.Header, resp.Trailer)
		}
		w.sink.wait(t)
	}
}

// When the sink fails after the provider has answered, the client does not see its
// call finish, and the event is kept later, once, under its id.
func TestASinkThatFails(t *testing.T) {
	for _, open := range []bool{false, true} {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			io.WriteString(rw, chatAnswer)
		}, func(_ *proxy.Parts, o *proxy.Options) { o.FailOpen = open })
		w.sink.fail(kafka.ErrFull)
		resp, err := http.DefaultTransport.RoundTrip(w.request("POST", "/openai/v1/chat/completions", chatRequest))
		var body []byte
		id := ""
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			id = resp.Header.Get(proxy.EventIDHeader)
		}
		if open != (err == nil && string(body) == chatAnswer) {
			t.Errorf("open %v: body %q, err %v", open, body, err)
		}
		if n := w.proxy.Stats().Gap; n != 1 {
			t.Errorf("%d events wait, want one", n)
		}
		w.sink.fail(nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w.proxy.Run(ctx)
		ev := w.sink.wait(t)
		if ev.Tokens.Total() != 12 || id != "" && ev.ID != id || w.proxy.Stats().Gap != 0 {
			t.Errorf("event %+v", ev)
		}
	}
}

// A provider that cannot be reached is a 502 and an event without tokens.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) {}, nil)
	w.upstream.Close()
	resp := w.do(w.request("POST", "/openai/v1/chat/completions", chatRequest))
	if resp.StatusCode != 502 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if ev := w.sink.wait(t); ev.Status != event.StatusError || ev.ErrorType != "upstream" || ev.Tokens.Total() != 0 {
		t.Errorf("event %+v", ev)
	}
}
