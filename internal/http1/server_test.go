package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/http1"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// newServer is a server with short bounds.
func newServer(h http.HandlerFunc) *http1.Server {
	return &http1.Server{
		Handler: h, HeaderTimeout: 300 * time.Millisecond, IdleTimeout: 300 * time.Millisecond, WriteTimeout: 300 * time.Millisecond,
		MaxHeaderBytes: 8 << 10,
	}
}

// dial connects; reads end after patience.
func dial(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// send writes a request, in whatever pieces.
func send(t *testing.T, c net.Conn, raw string) {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
}

// answer reads an answer and its body.
func answer(t *testing.T, in *bufio.Reader) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// soon waits for c.
func soon[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// A handler learns that its client has gone, over TLS as well.
func TestClientGone(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		causes := make(chan error, 1)
		began := make(chan bool)
		s := newServer(func(_ http.ResponseWriter, r *http.Request) {
			began <- r.TLS != nil
			<-r.Context().Done()
			causes <- context.Cause(r.Context())
		})
		client, scheme := http.DefaultClient, "http"
		if encrypted {
			certified := httptest.NewTLSServer(nil) // for its certificate
			defer certified.Close()
			s.TLSConfig, client, scheme = certified.TLS, certified.Client(), "https"
		}
		url := scheme + "://" + serve(t, s)
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
				t.Error("there was an answer")
			}
		}()
		if got := soon(t, began, "request"); got != encrypted {
			t.Errorf("TLS is %v", got)
		}
		left := time.Now()
		leave()
		if err := soon(t, causes, "end of the context"); !errors.Is(err, http1.ErrClientGone) {
			t.Errorf("cause %v", err)
		}
		if took := time.Since(left); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
	}
}

// A client that is slow has its connection closed: with headers, with the next request,
// with reading what it gets.
func TestSlowClients(t *testing.T) {
	wrote := make(chan error, 1)
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/endless" {
			hello(w, r)
			return
		}
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				wrote <- err
				return
			}
		}
	})
	addr := serve(t, s)
	for name, raw := range map[string]string{
		"nothing": "", "half a line": "GET /", "half the headers": "GET / HTTP/1.1\r\nHost: h\r\n", "no further request": get("/"), "half of a further": get("/") + "GE",
	} {
		c, in := dial(t, addr)
		send(t, c, raw)
		if strings.HasPrefix(raw, get("/")) {
			answer(t, in)
		}
		began := time.Now()
		if b, err := io.ReadAll(in); err != nil || len(b) > 0 {
			t.Errorf("%s: %q, %v; want the connection closed", name, b, err)
		}
		if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second {
			t.Errorf("%s: closed after %s", name, took)
		}
	}
	c, _ := dial(t, addr)
	send(t, c, get("/endless"))
	if err := soon(t, wrote, "failure of a write"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the write failed with %v", err)
	}
}

// A handler's deadline ends its reading of the body; it can answer still, and the
// connection is closed behind that.
func TestBodyDeadline(t *testing.T) {
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if err := control.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		_, err := io.ReadAll(r.Body)
		if err := control.SetReadDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		_, _ = fmt.Fprint(w, errors.Is(err, os.ErrDeadlineExceeded))
	})
	addr := serve(t, s)
	c, in := dial(t, addr)
	send(t, c, post("/", "all")+"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbod")
	if resp, b := answer(t, in); b != "false" || resp.Close {
		t.Errorf("a whole body: %q, close %v", b, resp.Close)
	}
	if resp, b := answer(t, in); b != "true" || !resp.Close {
		t.Errorf("a body that never ends: %q, close %v", b, resp.Close)
	}
	if b, err := io.ReadAll(in); err != nil || len(b) > 0 {
		t.Errorf("then %q, %v", b, err)
	}
}

// 100 Continue is sent when the handler reads, and not when it does not.
func TestExpectContinue(t *testing.T) {
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			_, _ = io.Copy(w, r.Body)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
	addr := serve(t, s)
	c, in := dial(t, addr)
	send(t, c, "POST /read HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if line, err := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	if line, err := in.ReadString('\n'); line != "\r\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	send(t, c, "body")
	if resp, b := answer(t, in); b != "body" || resp.Close {
		t.Errorf("%q, close %v", b, resp.Close)
	}
	send(t, c, "POST /unread HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if resp, _ := answer(t, in); resp.StatusCode != http.StatusUnauthorized || !resp.Close {
		t.Errorf("%s, close %v", resp.Status, resp.Close)
	}
	if b, err := io.ReadAll(in); err != nil || len(b) > 0 {
		t.Errorf("then %q, %v", b, err)
	}
}

// A client that is refused while it sends much gets to read why.
func TestRefusedWhileSending(t *testing.T) {
	s := newServer(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	})
	addr := serve(t, s)
	c, in := dial(t, addr)
	body := strings.Repeat("x", 500<<10)
	go func() { _, _ = io.WriteString(c, post("/", body)) }() // it may be cut
	resp, b := answer(t, in)
	if resp.StatusCode != http.StatusRequestEntityTooLarge || b != "too much\n" || !resp.Close {
		t.Errorf("%s %q, close %v", resp.Status, b, resp.Close)
	}
}

// A handler's panic cuts the answer, is logged, and is the only thing that ends.
func TestPanic(t *testing.T) {
	var logged bytes.Buffer
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("a fault of ours")
		}
		hello(w, r)
	})
	s.Log = slog.New(slog.NewTextHandler(&logged, nil))
	addr := serve(t, s)
	c, in := dial(t, addr)
	send(t, c, get("/panic"))
	if b, err := io.ReadAll(in); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	c, in = dial(t, addr)
	send(t, c, get("/"))
	if _, b := answer(t, in); b != "hello" {
		t.Errorf("%q", b)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(logged.String(), "a fault of ours") || !strings.Contains(logged.String(), "server_test.go") {
		t.Errorf("logged %q", logged.String())
	}
}

// Over TLS HTTP/2 is spoken to whoever wants it, by the same handler, and who speaks no
// TLS is told so.
func TestTLS(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil) // for its certificate
	certified.EnableHTTP2 = true
	certified.StartTLS()
	defer certified.Close()
	s := newServer(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, r.Proto, " ", r.TLS != nil) })
	s.TLSConfig = certified.TLS.Clone()
	s.TLSConfig.NextProtos = nil
	addr := serve(t, s)
	for want, h2 := range map[string]bool{"HTTP/2.0 true": true, "HTTP/1.1 true": false} {
		transport := certified.Client().Transport.(*http.Transport).Clone()
		transport.ForceAttemptHTTP2 = h2
		if !h2 {
			transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != want {
			t.Errorf("%q, want %q", b, want)
		}
		transport.CloseIdleConnections()
	}
	c, in := dial(t, addr)
	send(t, c, get("/"))
	if line, err := in.ReadString('\n'); !strings.Contains(line, "400") || err != nil {
		t.Errorf("plain HTTP is answered %q, %v", line, err)
	}
}

// Shutdown waits for the requests in hand, and for nothing else; Close waits for
// nothing but the handlers' last words.
func TestShutdownAndClose(t *testing.T) {
	began, finish, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	handler := func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/wait" {
			return
		}
		began <- struct{}{}
		select {
		case <-finish:
		case <-r.Context().Done():
		}
		ended <- context.Cause(r.Context())
	}
	s := newServer(handler)
	s.IdleTimeout = time.Minute
	addr := serve(t, s)
	idle, idleIn := dial(t, addr)
	send(t, idle, get("/"))
	answer(t, idleIn)
	c, in := dial(t, addr)
	send(t, c, get("/wait"))
	soon(t, began, "request")
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }()
	if b, err := io.ReadAll(idleIn); err != nil || len(b) > 0 {
		t.Errorf("the idle connection: %q, %v", b, err)
	}
	select {
	case err := <-done:
		t.Fatalf("Shutdown did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	close(finish)
	if resp, _ := answer(t, in); resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("%s, close %v", resp.Status, resp.Close)
	}
	if err := soon(t, done, "end of Shutdown"); err != nil {
		t.Error(err)
	}
	<-ended

	s = newServer(handler)
	finish = make(chan struct{})
	c, in = dial(t, serve(t, s))
	send(t, c, get("/wait"))
	soon(t, began, "request")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the context ended with %v", err)
		}
	default:
		t.Error("Close did not wait for the handler")
	}
	if b, err := io.ReadAll(in); len(b) > 0 {
		t.Errorf("then %q, %v", b, err)
	}
}

// A Server that never served can be ended.
func TestNeverServed(t *testing.T) {
	if err := newServer(hello).Close(); err != nil {
		t.Error(err)
	}
	if err := newServer(hello).Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// relay answers with what comes from a connection of its own, a line at a time, parked
// between them; "end" is the end.
type relay struct {
	t      *testing.T
	dialed chan net.Conn // the other sides
	parked atomic.Int64
}

func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path != "/relay" {
		hello(w, req)
		return
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Error(err)
		return
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			r.t.Error(err)
		}
		f.Close()
	}
	r.dialed <- ends[1]
	s := &relayed{r, w.(*http1.Response), req.Context(), ends[0], bufio.NewReader(ends[0])}
	stop := context.AfterFunc(req.Context(), func() { ends[0].Close() })
	_ = stop
	_ = s.w.FlushError()
	if parked, err := s.step(); !parked && err != nil {
		panic(http.ErrAbortHandler)
	}
}

type relayed struct {
	r   *relay
	w   *http1.Response
	ctx context.Context
	nc  net.Conn
	in  *bufio.Reader
}

// step passes lines on until it is parked or they end.
func (s *relayed) step() (parked bool, err error) {
	for {
		if s.in.Buffered() == 0 {
			raw, err := s.nc.(syscall.Conn).SyscallConn()
			if err == nil && s.w.Park(s.ctx, raw, s.resume) {
				s.r.parked.Add(1)
				return true, nil
			}
		}
		line, err := s.in.ReadString('\n')
		if err != nil {
			return false, err
		}
		if line == "end\n" {
			s.nc.Close()
			return false, nil
		}
		if _, err := io.WriteString(s.w, line); err != nil {
			return false, err
		}
		if err := s.w.FlushError(); err != nil {
			return false, err
		}
	}
}

func (s *relayed) resume() {
	line, err := s.in.ReadString('\n') // there is one, or an error
	switch {
	case err != nil:
		s.w.End(err)
		return
	case line == "end\n":
		s.nc.Close()
		s.w.End(nil)
		return
	}
	_, _ = io.WriteString(s.w, line)
	if err := s.w.FlushError(); err != nil {
		s.w.End(err)
		return
	}
	if parked, err := s.step(); !parked {
		s.w.End(err)
	}
}

// Parked responses go on when there is more, end as they should, and leave the
// connection to the client's next requests; many at once, of all of them at once.
func TestPark(t *testing.T) {
	r := &relay{t: t, dialed: make(chan net.Conn)}
	s := newServer(r.ServeHTTP)
	addr := serve(t, s)
	var clients sync.WaitGroup
	for range 8 {
		c, in := dial(t, addr)
		clients.Go(func() {
			for round := range 50 {
				if _, err := io.WriteString(c, get("/relay")+get("/")); err != nil {
					t.Error(err)
					return
				}
				other := <-r.dialed
				for i := range 3 {
					if round%10 == 0 {
						time.Sleep(time.Millisecond)
					}
					_, _ = fmt.Fprintf(other, "line %d\n", i)
				}
				_, _ = io.WriteString(other, "end\n")
				for range 2 {
					resp, err := http.ReadResponse(in, nil)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					if s := string(b); err != nil || s != "hello" && !strings.HasPrefix(s, "line ") {
						t.Errorf("%q, %v", b, err)
						return
					}
				}
				other.Close()
			}
		})
	}
	clients.Wait()
	if n := r.parked.Load(); n < 8*50 {
		t.Errorf("parked %d times", n)
	}
}

// A parked response ends with its client, with its source, and with the server.
func TestParkedEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(s *http1.Server, client, other net.Conn)
	}{
		{"the client goes", func(_ *http1.Server, client, _ net.Conn) { client.Close() }},
		{"the source breaks", func(_ *http1.Server, _, other net.Conn) { other.Close() }},
		{"the server is closed", func(s *http1.Server, _, _ net.Conn) { _ = s.Close() }},
	} {
		r := &relay{t: t, dialed: make(chan net.Conn)}
		s := newServer(r.ServeHTTP)
		client, in := dial(t, serve(t, s))
		send(t, client, get("/relay"))
		other := <-r.dialed
		send(t, other, "line\n")
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, len("line\n"))); err != nil {
			t.Fatal(err)
		}
		c.end(s, client, other)
		if c.name != "the source breaks" {
			if _, err := io.ReadAll(other); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: the source: %v", c.name, err)
			}
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: the client took it for whole, with %q", c.name, b)
		}
		resp.Body.Close()
		other.Close()
	}
}
