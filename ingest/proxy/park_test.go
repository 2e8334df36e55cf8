package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// keepRunning runs the proxy's Run until the test ends, or stop is called.
func keepRunning(t *testing.T, p *proxy.Proxy) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.Run(ctx)
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop
}

// parked waits until so many streams are parked.
func parked(t *testing.T, p *proxy.Proxy, want int64) {
	t.Helper()
	settles(t, "streams parked", want, func() int64 { return p.Stats().Parked })
}

// settles waits until a figure of the proxy is what it should be.
func settles(t *testing.T, what string, want int64, figure func() int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); figure() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d %s, want %d", figure(), what, want)
		}
	}
}

// halting is a provider that sends a chunk of the first of streams for each token of
// next. It also says which connections it saw, and when a client was gone.
type halting struct {
	next, gone chan struct{}
	mu         sync.Mutex
	clients    map[string]int
}

func (h *halting) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	rw.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(rw).Flush
	for _, chunk := range streams[0].chunks {
		select {
		case <-h.next:
		case <-r.Context().Done():
			h.gone <- struct{}{}
			return
		}
		if r.URL.Query().Get("break") != "" && chunk != streams[0].chunks[0] {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(rw, chunk)
		_ = flush()
	}
}

// haltingWorld is a proxy before such a provider that parks.
func haltingWorld(t *testing.T, change func(*proxy.Parts, *proxy.Options)) (w *world, h *halting, stop func()) {
	t.Helper()
	h = &halting{next: make(chan struct{}), gone: make(chan struct{}, 10), clients: map[string]int{}}
	w = newWorld(t, h.ServeHTTP, change)
	w.front = newFront(t, w.proxy, nil, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.clients[r.RemoteAddr]++
		h.mu.Unlock()
		w.proxy.ServeHTTP(rw, r)
	}))
	return w, h, keepRunning(t, w.proxy)
}

// readExactly reads so much of a response.
func readExactly(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("got %q, want %q: %v", got, want, err)
	}
}

// A stream that is parked between its chunks passes as it comes, ends only when its
// event is kept, and its connection serves the client's next calls, parked or not.
func TestParkedStreamsGoOn(t *testing.T) {
	w, h, _ := haltingWorld(t, nil)
	client := &http.Transport{}
	defer client.CloseIdleConnections()
	for call := range 3 {
		resp, err := client.RoundTrip(roundAfter(w, h, call))
		if err != nil {
			t.Fatal(err)
		}
		for i, chunk := range streams[0].chunks {
			if i > 0 {
				if call != 1 {
					parked(t, w.proxy, 1)
				}
				h.next <- struct{}{}
			}
			readExactly(t, resp.Body, chunk)
		}
		if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
			t.Fatalf("rest %q, %v", rest, err)
		}
		resp.Body.Close()
		if ev := w.sink.wait(t); ev.Tokens != streams[0].want || ev.Status != "" || !ev.Streamed {
			t.Errorf("event %+v", ev)
		}
		parked(t, w.proxy, 0)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) != 1 {
		t.Errorf("the client needed %d connections: %v", len(h.clients), h.clients)
	}
}

// roundAfter is a request whose first chunk will come.
func roundAfter(w *world, h *halting, call int) *http.Request {
	go func() { h.next <- struct{}{} }()
	return w.request("POST", fmt.Sprintf("%s?call=%d", streams[0].path, call), streams[0].request)
}

// What breaks a parked stream off makes the event of a truncated one, and both sides
// learn of it.
func TestParkedStreamsBreak(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*proxy.Parts, *proxy.Options)
		cut    func(w *world, h *halting, client context.CancelFunc, stop func())
		query  string
		gone   bool // the provider sees it
	}{
		{"by the client", nil, func(_ *world, _ *halting, client context.CancelFunc, _ func()) { client() }, "", true},
		{"by the provider", nil, func(_ *world, h *halting, _ context.CancelFunc, _ func()) { h.next <- struct{}{} }, "?break=1", false},
		{"by silence", func(_ *proxy.Parts, o *proxy.Options) { o.SilenceTimeout = time.Second },
			func(*world, *halting, context.CancelFunc, func()) {}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, h, stop := haltingWorld(t, c.change)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { h.next <- struct{}{} }()
			resp := w.do(w.request("POST", streams[0].path+c.query, streams[0].request).WithContext(ctx))
			readExactly(t, resp.Body, streams[0].chunks[0])
			parked(t, w.proxy, 1)
			c.cut(w, h, cancel, stop)
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("the client took a cut response for whole")
			}
			if c.gone {
				<-h.gone
			}
			ev := w.sink.wait(t)
			if ev.Status != event.StatusTruncated || !ev.Estimated || ev.Tokens[tokens.Output] == 0 {
				t.Errorf("event %+v", ev)
			}
			parked(t, w.proxy, 0)
		})
	}
}

// Where the sink fails at the end of a parked stream the client does not see the end.
func TestParkedStreamsFailClosed(t *testing.T) {
	w, h, _ := haltingWorld(t, nil)
	resp := w.do(roundAfter(w, h, 0))
	readExactly(t, resp.Body, streams[0].chunks[0])
	parked(t, w.proxy, 1)
	w.sink.fail(io.ErrClosedPipe)
	for range streams[0].chunks[1:] {
		h.next <- struct{}{}
	}
	rest, err := io.ReadAll(resp.Body)
	if err == nil || strings.Contains(string(rest), "[DONE]") {
		t.Errorf("the client saw the end of a call that is not kept: %q", rest)
	}
	if n := w.proxy.Stats().Gap; n != 1 {
		t.Errorf("%d events wait, want one", n)
	}
}

// Shutdown returns when what is parked is over and its events are kept.
func TestShutdownWaitsForParkedStreams(t *testing.T) {
	w, h, _ := haltingWorld(t, nil)
	resp := w.do(roundAfter(w, h, 0))
	readExactly(t, resp.Body, streams[0].chunks[0])
	parked(t, w.proxy, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := w.front.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for _, chunk := range streams[0].chunks[1:] {
		select {
		case <-ended:
			t.Fatal("Shutdown ended before the stream")
		case h.next <- struct{}{}:
		}
		readExactly(t, resp.Body, chunk)
	}
	<-ended
	if got := w.sink.take(); len(got) != 1 || got[0].Tokens != streams[0].want {
		t.Errorf("events %+v", got)
	}
}

// Trailers that a client asked for end a parked stream too, and what it has sent
// behind its request is answered after it.
func TestParkedTrailersAndPipelining(t *testing.T) {
	p := &policy{left: 100 * money.Pico(1_000_000)}
	w, h, _ := haltingWorld(t, func(parts *proxy.Parts, _ *proxy.Options) { parts.Budgets = p })
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(w.front.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func() {
		req := w.request("POST", streams[0].path, streams[0].request)
		req.Header.Set(proxy.ReturnHeader, "cost, budget")
		if err := req.Write(c); err != nil {
			t.Fatal(err)
		}
	}
	in := bufio.NewReader(c)
	ask()
	h.next <- struct{}{}
	for call := range 2 {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, chunk := range streams[0].chunks {
			if i > 0 {
				h.next <- struct{}{}
			}
			readExactly(t, resp.Body, chunk)
			if i == 1 && call == 0 {
				parked(t, w.proxy, 1)
				ask() // while the first is parked
			}
		}
		if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
			t.Fatalf("rest %q, %v", rest, err)
		}
		if resp.Trailer.Get(proxy.CostHeader) != "0.000009000000" || resp.Trailer.Get(proxy.RemainingHeader) == "" {
			t.Errorf("trailers %v", resp.Trailer)
		}
		w.sink.wait(t)
		if call == 0 {
			h.next <- struct{}{}
		}
	}
}

// A connection that came with TLS comes back with it, and a client that wants its
// connection closed has it closed.
func TestParkedTLSAndClose(t *testing.T) {
	w, h, _ := haltingWorld(t, nil)
	var encrypted []bool
	handler := w.front.Handler
	certified := httptest.NewTLSServer(nil) // for its certificate
	defer certified.Close()
	w.front = newFront(t, w.proxy, certified.TLS, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		encrypted = append(encrypted, r.TLS != nil)
		handler.ServeHTTP(rw, r)
	}))
	transport := certified.Client().Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = false
	for call := range 3 {
		req := roundAfter(w, h, call)
		req.Close = call == 2
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		readExactly(t, resp.Body, streams[0].chunks[0])
		parked(t, w.proxy, 1)
		for range streams[0].chunks[1:] {
			h.next <- struct{}{}
		}
		if rest, err := io.ReadAll(resp.Body); string(rest) != strings.Join(streams[0].chunks[1:], "") || err != nil {
			t.Fatalf("rest %q, %v", rest, err)
		}
		resp.Body.Close()
		w.sink.wait(t)
	}
	if len(h.clients) != 1 || len(encrypted) != 3 || !encrypted[0] || !encrypted[1] || !encrypted[2] {
		t.Errorf("connections %v, encrypted %v", h.clients, encrypted)
	}
}

// panicking is a sink that has a fault while it is armed.
type panicking struct {
	proxy.Sink
	armed atomic.Bool
}

func (p *panicking) Submit(ctx context.Context, who authn.Principal, events []event.Event) (ingest.Outcome, error) {
	if p.armed.Load() {
		panic("a fault of ours")
	}
	return p.Sink.Submit(ctx, who, events)
}

// A fault of ours in a parked stream cuts that stream, gives its place back, and ends
// nothing else.
func TestParkedStreamsPanic(t *testing.T) {
	faulty := &panicking{}
	w, h, _ := haltingWorld(t, func(parts *proxy.Parts, _ *proxy.Options) {
		faulty.Sink, parts.Sink = parts.Sink, faulty
	})
	for call, armed := range []bool{true, false} {
		faulty.armed.Store(armed)
		resp := w.do(roundAfter(w, h, call))
		readExactly(t, resp.Body, streams[0].chunks[0])
		parked(t, w.proxy, 1)
		for range streams[0].chunks[1:] {
			h.next <- struct{}{}
		}
		if _, err := io.ReadAll(resp.Body); (err != nil) != armed {
			t.Errorf("armed %v: %v", armed, err)
		}
		parked(t, w.proxy, 0)
		settles(t, "calls in hand", 0, func() int64 { return w.proxy.Stats().InFlight })
	}
}
