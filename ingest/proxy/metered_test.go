package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
)

// notes is a Metered that keeps what it is told.
type notes struct {
	mu   sync.Mutex
	said []string
}

func (n *notes) Note(ev *event.Event, header, body string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said = append(n.said, fmt.Sprint(ev.Tenant, " ", ev.Tokens.Total(), " ", header, " ", body))
}

func (n *notes) has(s string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.said, s)
}

// Whoever has read a response to its end finds the call noted, with the ids of the header
// and of the body: a report of the call that its client makes then finds it too.
func TestCallsAreNotedBeforeTheyEnd(t *testing.T) {
	said := &notes{}
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Request-Id", "req_77")
		for _, s := range streams {
			if s.path == r.URL.Path || s.path == "/openai"+r.URL.Path {
				rw.Header().Set("Content-Type", "text/event-stream")
				for _, chunk := range s.chunks {
					io.WriteString(rw, chunk)
					rw.(http.Flusher).Flush()
				}
				return
			}
		}
		if r.URL.Path == "/v1/embeddings" {
			rw.Header().Set("Content-Type", "application/json")
			io.WriteString(rw, `{"object":"list","model":"text-embedding-3-small","data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}`)
			return
		}
		http.NotFound(rw, r)
	}, func(parts *proxy.Parts, _ *proxy.Options) { parts.Metered = said })
	for _, tc := range []struct{ path, request, want string }{
		{"/openai/v1/chat/completions", `{"model":"gpt-4o","stream":true,"messages":[]}`, "acme 9 req_77 c1"},
		{"/anthropic/v1/messages", `{"model":"claude-sonnet-4-5","stream":true,"messages":[]}`, "acme 20 req_77 m1"},
		{"/openai/v1/embeddings", `{"model":"text-embedding-3-small","input":"x"}`, "acme 8 req_77 "},
	} {
		resp := w.do(w.request("POST", tc.path, tc.request))
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		if !said.has(tc.want) {
			t.Errorf("%s: noted %q, want %q", tc.path, said.said, tc.want)
		}
	}
}
