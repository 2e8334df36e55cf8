package proxy_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/tallystick/tallystick/ingest/proxy"
)

// Whoever asks whether the proxy is ready learns when calls would be refused, without
// a token and without an event.
func TestReady(t *testing.T) {
	p := &policy{}
	w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded") }, func(parts *proxy.Parts, _ *proxy.Options) { parts.Room = p })
	for _, full := range []bool{false, true} {
		p.full = full
		req := w.request("GET", proxy.ReadyPath, "")
		req.Header.Del("Authorization")
		resp := w.do(req)
		body, _ := io.ReadAll(resp.Body)
		if want := map[bool]int{false: 200, true: 503}[full]; resp.StatusCode != want || full != (string(body) == "the spool is full\n") {
			t.Errorf("full %v: status %d, %q", full, resp.StatusCode, body)
		}
	}
	if got := w.sink.take(); len(got) != 0 {
		t.Errorf("%d events", len(got))
	}
}

// SDKs are told not to try a call again that a spent budget refuses; one that comes
// too fast may come again.
func TestShouldRetry(t *testing.T) {
	for _, c := range []struct {
		policy policy
		want   string
	}{{policy{over: true}, "false"}, {policy{wait: 1}, ""}} {
		w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded") }, func(p *proxy.Parts, _ *proxy.Options) {
			p.Limits, p.Budgets = &c.policy, &c.policy
		})
		resp := w.do(w.request("POST", "/openai/v1/chat/completions", chatRequest))
		if got := resp.Header.Get("X-Should-Retry"); resp.StatusCode != 429 || got != c.want {
			t.Errorf("status %d, X-Should-Retry %q, want %q", resp.StatusCode, got, c.want)
		}
	}
}
