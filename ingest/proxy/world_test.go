package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/http1"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

const (
	token       = "tly_token_of_no_worth"
	providerKey = "sk-canary-key-of-the-provider"
)

// sink keeps events in memory. While down is set it takes none.
type sink struct {
	mu     sync.Mutex
	events []event.Event
	down   error
	gate   chan struct{} // each submit takes one, where it is not nil
	seen   chan struct{} // told of each kept event
}

func (s *sink) Submit(_ context.Context, _ authn.Principal, events []event.Event) (ingest.Outcome, error) {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return ingest.Outcome{}, errors.Join(ingest.ErrUnavailable, s.down)
	}
	for i := range events {
		ev := events[i]
		ev.Tags = slices.Clone(ev.Tags)
		if err := ev.Validate(false); err != nil {
			return ingest.Outcome{Refusals: []ingest.Refusal{{Field: "event", Rule: err.Error()}}}, nil
		}
		s.events = append(s.events, ev)
		select {
		case s.seen <- struct{}{}:
		default:
		}
	}
	return ingest.Outcome{Accepted: len(events)}, nil
}

func (s *sink) take() []event.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.events
	s.events = nil
	return out
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// wait returns the next event, which may come after the response.
func (s *sink) wait(t *testing.T) event.Event {
	t.Helper()
	select {
	case <-s.seen:
	case <-time.After(10 * time.Second):
		t.Fatal("no event in 10 s")
	}
	got := s.take()
	if len(got) != 1 {
		t.Fatalf("%d events, want one", len(got))
	}
	return got[0]
}

// keys has the one key for every provider but "keyless".
type keys struct{}

func (keys) ProviderKey(_ context.Context, _ tenant.ID, provider string) (proxy.ProviderKey, error) {
	if provider == "mistral" {
		return proxy.ProviderKey{}, proxy.ErrNoProviderKey
	}
	return proxy.ProviderKey{ID: "key_1", Secret: providerKey}, nil
}

// flat prices every token the same.
type flat struct{}

func (flat) Price(_, model, _, _ string, _ time.Time, used *tokens.Vector) (money.Pico, bool) {
	if model == "unpriced" {
		return 0, false
	}
	return money.Pico(used.Total() * 1_000_000), true
}

// world is a proxy between a client and a provider.
type world struct {
	t        *testing.T
	sink     *sink
	proxy    *proxy.Proxy
	front    *front
	upstream *httptest.Server
}

// newWorld serves provider behind a proxy, which change may alter.
func newWorld(t *testing.T, provider http.HandlerFunc, change func(*proxy.Parts, *proxy.Options)) *world {
	t.Helper()
	w := &world{t: t, sink: &sink{seen: make(chan struct{}, 1000)}}
	w.upstream = httptest.NewServer(provider)
	t.Cleanup(w.upstream.Close)
	providers := proxy.BuiltinProviders()
	for _, name := range []string{"openai", "anthropic", "gemini", "mistral", "bedrock"} {
		var err error
		if providers, err = proxy.ParseProvider(name+"="+w.upstream.URL, providers); err != nil {
			t.Fatal(err)
		}
	}
	parts := proxy.Parts{
		Auth: authn.NewStatic(token, authn.Principal{Subject: "tok_1", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest}),
		Sink: w.sink, Keys: keys{}, Pricer: flat{},
	}
	opts := proxy.Options{ProducerID: "proxy-test", Providers: providers}
	if change != nil {
		change(&parts, &opts)
	}
	var err error
	if w.proxy, err = proxy.New(parts, opts); err != nil {
		t.Fatal(err)
	}
	w.front = newFront(t, w.proxy, nil, nil)
	return w
}

// front is the proxy's own server.
type front struct {
	*http1.Server
	URL string
}

// newFront serves the proxy, over TLS where config is not nil, and behind handler where
// that is not.
func newFront(t *testing.T, p *proxy.Proxy, config *tls.Config, handler http.Handler) *front {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{p.Server(config), "http://" + l.Addr().String()}
	if config != nil {
		f.URL = "https://" + l.Addr().String()
	}
	if handler != nil {
		f.Handler = handler
	}
	ended := make(chan error)
	go func() { ended <- f.Serve(l) }()
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return f
}

// request makes a request with our token.
func (w *world) request(method, path, body string) *http.Request {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.front.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	return req
}

// do sends a request.
func (w *world) do(req *http.Request) *http.Response {
	w.t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return resp
}
