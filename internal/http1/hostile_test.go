package http1_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/http1"
	"github.com/tallystick/tallystick/internal/testenv/testlog"
)

// source is a connection that a response can be parked for, and its other side.
func source(t *testing.T) (ours syscall.RawConn, theirs net.Conn) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	raw, err := near.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return raw, far
}

// park parks a response, or fails the test.
func park(t *testing.T, rw http.ResponseWriter, r *http.Request, other syscall.RawConn, resume func(w *http1.Response)) {
	t.Helper()
	w := rw.(*http1.Response)
	if err := w.FlushError(); err != nil {
		t.Error(err)
	}
	if !w.Park(r.Context(), other, func() { resume(w) }) {
		t.Error("it is not parked")
	}
}

// What a client has yet to send of the body of a parked call is never read from another
// client's connection.
func TestParkedUnreadBody(t *testing.T) {
	other, speak := source(t)
	parked := make(chan struct{})
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			hello(w, r)
			return
		}
		park(t, w, r, other, func(w *http1.Response) { w.End(nil) })
		close(parked)
	})
	s.HeaderTimeout = time.Minute
	addr := serve(t, s)
	c, in := dial(t, addr)
	send(t, c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n")
	soon(t, parked, "parking")
	var victims []net.Conn
	for range 20 {
		victim, _ := dial(t, addr)
		send(t, victim, "GET / HT")
		victims = append(victims, victim)
	}
	time.Sleep(2 * http1.SweepInterval) // they are read
	send(t, speak, "x")
	answer(t, in)
	time.Sleep(2 * http1.SweepInterval)
	for _, victim := range victims {
		send(t, victim, "TP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if b, err := io.ReadAll(victim); err != nil || !strings.HasSuffix(string(b), "hello") && !strings.Contains(string(b), "hello\r\n") {
			t.Errorf("another client got %q, %v", b, err)
		}
	}
	send(t, c, strings.Repeat("x", 2000)+get("/"))
	if _, b := answer(t, in); b != "hello" {
		t.Errorf("the next request is answered %q", b)
	}
}

// A panic of what resumes a response cuts that response, is logged, and is the only
// thing that ends.
func TestPanicOfResumed(t *testing.T) {
	var logged testlog.Buffer
	other, speak := source(t)
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/park" {
			hello(w, r)
			return
		}
		park(t, w, r, other, func(*http1.Response) { panic("a fault of ours") })
	})
	s.Log = slog.New(slog.NewTextHandler(&logged, nil))
	addr := serve(t, s)
	c, in := dial(t, addr)
	send(t, c, get("/park"))
	send(t, speak, "x")
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the client took it for whole: %q", b)
	}
	c, in = dial(t, addr)
	send(t, c, get("/"))
	if _, b := answer(t, in); b != "hello" {
		t.Errorf("%q", b)
	}
	began := time.Now()
	if err := s.Close(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %s: a connection was left", err, time.Since(began))
	}
	if got := logged.String(); !strings.Contains(got, "a fault of ours") || !strings.Contains(got, "hostile_test.go") {
		t.Errorf("logged %q", got)
	}
}

// A fault outside the handler, as in a callback of the TLS configuration, and a handler
// that ends its goroutine cost their connection and nothing else.
func TestFaultsOfOneConnection(t *testing.T) {
	certified := httptest.NewTLSServer(nil) // for its certificate
	defer certified.Close()
	var once sync.Once
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/exit" {
			runtime.Goexit()
		}
		hello(w, r)
	})
	s.TLSConfig = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		once.Do(func() { panic("a fault of ours") })
		return &certified.TLS.Certificates[0], nil
	}}
	addr := serve(t, s)
	transport := certified.Client().Transport.(*http.Transport)
	transport.ForceAttemptHTTP2, transport.DisableKeepAlives = false, true
	ask := func(path string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if ask("/") == nil {
		t.Error("the first handshake did not fail")
	}
	if ask("/exit") == nil {
		t.Error("a handler that was ended answered")
	}
	if err := ask("/"); err != nil {
		t.Error(err)
	}
	began := time.Now()
	if err := s.Close(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %s: a connection was left", err, time.Since(began))
	}
}

// A panic of the handler under HTTP/2 is logged like one under HTTP/1.1.
func TestPanicHTTP2(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil) // for its certificate
	certified.EnableHTTP2 = true
	certified.StartTLS()
	defer certified.Close()
	var logged testlog.Buffer
	s := newServer(func(http.ResponseWriter, *http.Request) { panic("a fault of ours") })
	s.TLSConfig = &tls.Config{Certificates: certified.TLS.Certificates}
	s.Log = slog.New(slog.NewTextHandler(&logged, nil))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+serve(t, s), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := certified.Client().Do(req); err == nil {
		resp.Body.Close()
		t.Error("it was answered")
	}
	if got := logged.String(); !strings.Contains(got, "a fault of ours") || !strings.Contains(got, "hostile_test.go") {
		t.Errorf("logged %q", got)
	}
}

// Shutdown and Close wait for what handlers under HTTP/2 have to do as for the others, and
// Close for no handshake.
func TestEndHTTP2(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil) // for its certificate
	certified.EnableHTTP2 = true
	certified.StartTLS()
	defer certified.Close()
	for _, graceful := range []bool{true, false} {
		began, finish, ended := make(chan string, 1), make(chan struct{}), atomic.Bool{}
		s := newServer(func(w http.ResponseWriter, r *http.Request) {
			hello(w, r)
			began <- r.Proto
			select {
			case <-finish:
			case <-r.Context().Done():
			}
			time.Sleep(300 * time.Millisecond) // its last words
			ended.Store(true)
		})
		s.TLSConfig, s.HeaderTimeout = &tls.Config{Certificates: certified.TLS.Certificates}, time.Minute
		addr := serve(t, s)
		silent, _ := dial(t, addr)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan error, 1)
		go func() {
			resp, err := certified.Client().Do(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			answered <- err
		}()
		if proto := soon(t, began, "request"); proto != "HTTP/2.0" {
			t.Errorf("the request came by %s", proto)
		}
		if graceful {
			silent.Close()
			time.AfterFunc(100*time.Millisecond, func() { close(finish) })
			err = s.Shutdown(t.Context())
		} else {
			err = s.Close()
		}
		if err != nil || !ended.Load() {
			t.Errorf("graceful %v: %v, and the handler has ended: %v", graceful, err, ended.Load())
		}
		if err := soon(t, answered, "answer"); (err == nil) != graceful {
			t.Errorf("graceful %v: the client got %v", graceful, err)
		}
	}
}

// A client that takes no more of a response of HTTP/2 holds its handler no longer than
// another does.
func TestSlowClientHTTP2(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil) // for its certificate
	certified.EnableHTTP2 = true
	certified.StartTLS()
	defer certified.Close()
	wrote := make(chan error, 1)
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					wrote <- err
					return
				}
			}
		}
		hello(w, r)
		_ = http.NewResponseController(w).Flush()
		time.Sleep(500 * time.Millisecond) // longer than a write may last
		hello(w, r)
	})
	s.TLSConfig = &tls.Config{Certificates: certified.TLS.Certificates}
	addr := serve(t, s)
	for _, path := range []string{"/endless", "/"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := certified.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if path == "/endless" {
			if err := soon(t, wrote, "failure of a write"); err == nil || resp.ProtoMajor != 2 {
				t.Errorf("%s: the write: %v", resp.Proto, err)
			}
		} else if b, err := io.ReadAll(resp.Body); string(b) != "hellohello" || err != nil {
			t.Errorf("a slow handler: %q, %v", b, err)
		}
	}
}

// A cut response of HTTP/1.0, whose end is that of the connection, is not taken for
// whole.
func TestCutHTTP10(t *testing.T) {
	addr := serve(t, newServer(func(w http.ResponseWriter, r *http.Request) {
		hello(w, r)
		_ = http.NewResponseController(w).Flush()
		if r.URL.Path == "/panic" {
			time.Sleep(100 * time.Millisecond) // the client reads what there is
			panic(http.ErrAbortHandler)
		}
	}))
	for path, cut := range map[string]bool{"/": false, "/panic": true} {
		c, in := dial(t, addr)
		send(t, c, "GET "+path+" HTTP/1.0\r\n\r\n")
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "hello" || (err != nil) != cut {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		resp.Body.Close()
	}
}

// A client that is refused while it sends very much has time to read why.
func TestRefusedHugeUpload(t *testing.T) {
	addr := serve(t, newServer(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	}))
	c, in := dial(t, addr)
	sent, began := make(chan time.Duration, 1), time.Now()
	go func() {
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				sent <- time.Since(began)
				return
			}
		}
	}()
	if resp, b := answer(t, in); resp.StatusCode != http.StatusRequestEntityTooLarge || b != "too much\n" {
		t.Errorf("%s %q", resp.Status, b)
	}
	if took := soon(t, sent, "end of the connection"); took < 300*time.Millisecond || took > 3*time.Second {
		t.Errorf("the connection was cut after %s", took)
	}
}

// An answer to HEAD states no length that the handler did not.
func TestHeadWithoutBody(t *testing.T) {
	addr := serve(t, newServer(func(http.ResponseWriter, *http.Request) {}))
	c, in := dial(t, addr)
	for method, want := range map[string]string{http.MethodHead: "", http.MethodGet: "0"} {
		send(t, c, method+" / HTTP/1.1\r\nHost: h\r\n\r\n")
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Content-Length"); got != want {
			t.Errorf("%s: Content-Length %q, want %q", method, got, want)
		}
	}
}

// What a handler announces as a trailer cannot frame the message or forge a line.
func TestForbiddenTrailers(t *testing.T) {
	addr := serve(t, newServer(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h["Trailer"] = []string{"Content-Length, X-Good", "bad name"}
		_, _ = io.WriteString(w, "hello")
		_ = http.NewResponseController(w).Flush()
		h["Content-Length"], h["Bad name"], h["bad name"], h["X-Good"] = []string{"5"}, []string{"x"}, []string{"x"}, []string{"yes"}
	}))
	c, _ := dial(t, addr)
	send(t, c, get("/", "Connection: close"))
	if b, err := io.ReadAll(c); err != nil || !bytes.HasSuffix(b, []byte("hello\r\n0\r\nX-Good: yes\r\n\r\n")) {
		t.Errorf("%q, %v", b, err)
	}
}

// A call that is over, or parked, keeps nothing of its request in memory.
func TestRequestIsForgotten(t *testing.T) {
	other, speak := source(t)
	forgotten := make(chan string, 4)
	s := newServer(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		runtime.AddCleanup(r, func(what string) { forgotten <- what }, r.Method+r.URL.Path)
		if r.URL.Path == "/park" {
			park(t, w, r, other, func(w *http1.Response) { w.End(nil) })
		}
	})
	s.IdleTimeout = time.Minute
	addr := serve(t, s)
	for _, raw := range []string{get("/"), post("/", "body"), get("/park"), post("/park", "body")} {
		c, _ := dial(t, addr)
		send(t, c, raw)
	}
	got := map[string]bool{}
	for end := time.Now().Add(patience); len(got) < 4 && time.Now().Before(end); {
		runtime.GC()
		select {
		case what := <-forgotten:
			got[what] = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	if len(got) != 4 {
		t.Errorf("only %v are forgotten", got)
	}
	send(t, speak, "x")
}

// failing is a listener that fails a few times.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return f.Listener.Accept()
}

// A lack of files is waited out; what cannot pass ends Serve.
func TestAcceptFails(t *testing.T) {
	listen := func(errs ...error) *failing {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return &failing{l, errs}
	}
	s := newServer(hello)
	defer s.Close()
	l, ended := listen(syscall.EMFILE, syscall.ENOBUFS), make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c, in := dial(t, l.Addr().String())
	send(t, c, get("/"))
	if _, b := answer(t, in); b != "hello" {
		t.Errorf("%q", b)
	}
	if err := s.Serve(listen(syscall.EBADF)); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a broken listener: %v", err)
	}
	send(t, c, get("/"))
	if _, b := answer(t, in); b != "hello" {
		t.Errorf("%q, when another listener broke", b)
	}
	s.Close()
	if err := soon(t, ended, "end of Serve"); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// Whatever clients, sources and the server do at the same time, every call ends once,
// and nothing is left of it.
func TestStorm(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		storm(t, nil, func(addr string) (net.Conn, error) { return (&net.Dialer{}).DialContext(t.Context(), "tcp", addr) })
	})
	t.Run("TLS", func(t *testing.T) {
		certified := httptest.NewTLSServer(nil) // for its certificate
		defer certified.Close()
		trusting := certified.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		trusting.ServerName, trusting.NextProtos = "example.com", []string{"http/1.1"}
		var n atomic.Int64
		storm(t, certified.TLS, func(addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
			if err == nil && n.Add(1)%5 > 0 { // some fail with their handshake
				c = tls.Client(c, trusting)
			}
			return c, err
		})
	})
}

func storm(t *testing.T, config *tls.Config, dial func(addr string) (net.Conn, error)) {
	t.Helper()
	before := runtime.NumGoroutine()
	r := &relay{t: t, dialed: make(chan net.Conn)}
	var calls, ends atomic.Int64
	s := newServer(func(w http.ResponseWriter, req *http.Request) {
		calls.Add(1)
		context.AfterFunc(req.Context(), func() { ends.Add(1) })
		r.ServeHTTP(w, req)
	})
	s.TLSConfig = config
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // the sources
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case other := <-r.dialed:
				all.Go(func() { speakAndGo(other, n) })
			}
		}
	})
	var clients sync.WaitGroup
	for n := range 100 {
		clients.Go(func() { comeAndGo(dial, l.Addr().String(), n) })
	}
	clients.Wait()
	for end := time.Now().Add(patience); s.Waiting() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := s.Waiting(); n > 0 {
		t.Errorf("%d are waited for when all have gone", n)
	}
	for n := range 20 { // some are in hand at the end
		clients.Go(func() { comeAndGo(dial, l.Addr().String(), 3*n) })
	}
	time.Sleep(300 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	clients.Wait()
	close(stop)
	all.Wait()
	if err := soon(t, served, "end of Serve"); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	left := 0
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = runtime.NumGoroutine() - before; left <= 0 && calls.Load() == ends.Load() {
			break
		}
	}
	if left > 0 || calls.Load() != ends.Load() || calls.Load() < 100 {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines are left, %d of %d calls ended\n%s", left, ends.Load(), calls.Load(), buf[:runtime.Stack(buf, true)])
	}
}

// speakAndGo is a source that ends, or breaks, after some lines.
func speakAndGo(c net.Conn, n int) {
	defer c.Close()
	for i := range n % 5 {
		_, _ = fmt.Fprintf(c, "line %d\n", i)
		time.Sleep(time.Duration(n*i%7) * 20 * time.Millisecond)
	}
	if n%4 != 0 {
		_, _ = io.WriteString(c, "end\n")
		_, _ = io.ReadAll(c) // until the server has read it
	}
}

// comeAndGo is a client that calls, and may leave at any moment.
func comeAndGo(dial func(addr string) (net.Conn, error), addr string, n int) {
	for round := range 10 {
		c, err := dial(addr)
		if err != nil {
			return // the server is closed
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, get("/relay")+get("/relay")+get("/", "Connection: close"))
		switch k := n + round; {
		case k%3 == 0:
			_, _ = io.ReadAll(c)
		case k%3 == 1:
			_, _ = io.ReadFull(c, make([]byte, k))
			time.Sleep(time.Duration(k) * time.Millisecond)
		}
		c.Close()
	}
}
