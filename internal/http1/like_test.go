package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallystick/tallystick/internal/http1"
)

// seen is what a handler saw of a request.
type seen struct {
	Method, URI, Host, Proto, Body string
	Length                         int64
	Failed                         bool // the body
	Trailer                        http.Header
}

// watching answers by the path, and notes what it saw.
type watching struct {
	mu   sync.Mutex
	seen []seen
}

func (w *watching) take() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	w.seen = nil
	return out
}

func (w *watching) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	s := seen{Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Length: r.ContentLength}
	if !strings.HasPrefix(r.URL.Path, "/unread") {
		b, err := io.ReadAll(r.Body)
		s.Body, s.Failed, s.Trailer = string(b), err != nil, r.Trailer
	}
	w.mu.Lock()
	w.seen = append(w.seen, s)
	w.mu.Unlock()
	h := rw.Header()
	h["Date"] = []string{"Thu, 01 Jan 1970 00:00:00 GMT"}
	h.Set("Content-Type", "text/plain")
	body := fmt.Sprintf("%s %s %d", s.Method, s.URI, len(s.Body))
	switch {
	case strings.HasPrefix(r.URL.Path, "/counted"):
		h.Set("Content-Length", strconv.Itoa(len(body)))
	case strings.HasPrefix(r.URL.Path, "/none"):
		rw.WriteHeader(http.StatusNoContent)
		return
	case strings.HasPrefix(r.URL.Path, "/same"):
		rw.WriteHeader(http.StatusNotModified)
		return
	case strings.HasPrefix(r.URL.Path, "/close"):
		h.Set("Connection", "close")
	case strings.HasPrefix(r.URL.Path, "/short"):
		h.Set("Content-Length", strconv.Itoa(len(body)+1))
	case strings.HasPrefix(r.URL.Path, "/panic"):
		_, _ = io.WriteString(rw, body)
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	case strings.HasPrefix(r.URL.Path, "/trailer"):
		h.Set("Trailer", "X-After")
		defer h.Set("X-After", "all\r\nX-Forged: of it")
	case strings.HasPrefix(r.URL.Path, "/line"):
		h.Set("X-Line", "one\r\nX-Forged: two")
		h["bad name"] = []string{"x"}
	case strings.HasPrefix(r.URL.Path, "/large"):
		body = strings.Repeat("0123456789abcdef", 4<<10)
	}
	_, _ = io.WriteString(rw, body)
	_ = http.NewResponseController(rw).Flush() // what net/http frames by its size is chunked by both
}

// answered is what a client saw of an answer.
type answered struct {
	Status  int
	Body    string
	Failed  bool
	Header  http.Header
	Trailer http.Header
	Close   bool
}

// talk sends raw bytes on one connection, ends its side, and reads the answers.
func talk(t testing.TB, addr string, raw []byte) []answered {
	t.Helper()
	return talkInPieces(t, addr, raw, max(len(raw), 1))
}

// talkInPieces is talk, so many bytes at a time.
func talkInPieces(t testing.TB, addr string, raw []byte, size int) []answered {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for piece := range slices.Chunk(raw, size) {
			_, _ = c.Write(piece) // a server that closes early has said why
		}
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	var out []answered
	in := bufio.NewReader(c)
	for i := 0; ; i++ {
		if _, err := in.Peek(1); err != nil {
			return out
		}
		resp, err := http.ReadResponse(in, &http.Request{Method: methodOf(raw, i)})
		if err != nil {
			t.Fatalf("%q is answered by what is no answer: %v", raw, err)
		}
		b, err := io.ReadAll(resp.Body)
		a := answered{resp.StatusCode, string(b), err != nil, resp.Header, resp.Trailer, resp.Close}
		if resp.StatusCode >= 400 { // the two say it in other words
			a.Body, a.Header = "", nil
			if resp.StatusCode == http.StatusNotImplemented {
				a.Status = http.StatusBadRequest
			}
		}
		out = append(out, a)
		if resp.Close || err != nil {
			return out
		}
	}
}

// methodOf is HEAD where the request is one: then the answer has no body.
func methodOf(raw []byte, _ int) string {
	if bytes.HasPrefix(raw, []byte("HEAD ")) {
		return http.MethodHead
	}
	return http.MethodGet
}

// pair are the two servers, with a handler each.
type pair struct {
	ours, theirs         string
	ourHandler, theirOwn *watching
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{ourHandler: &watching{}, theirOwn: &watching{}}
	p.ours = serve(t, &http1.Server{
		Handler: p.ourHandler, HeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10,
	})
	p.theirs = serve(t, &http.Server{Handler: p.theirOwn, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10})
	return p
}

type server interface {
	Serve(l net.Listener) error
	Shutdown(ctx context.Context) error
	Close() error
}

// serve serves until the test is over.
func serve(t testing.TB, s server) (addr string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// same holds the two servers against each other: what their handlers saw, and what
// the client got.
func (p *pair) same(t testing.TB, raw []byte) {
	t.Helper()
	ours, theirs := talk(t, p.ours, raw), talk(t, p.theirs, raw)
	saw, shouldSee := p.ourHandler.take(), p.theirOwn.take()
	if d := cmp.Diff(shouldSee, saw); d != "" {
		t.Errorf("%q: the handler saw (-net/http +ours)\n%s", raw, d)
	}
	// An answer behind which the connection is closed says so in ours, where net/http
	// sometimes leaves it out.
	for i := range min(len(ours), len(theirs)) {
		if i == len(ours)-1 || i == len(theirs)-1 {
			ours[i].Close, theirs[i].Close = false, false
		}
	}
	if d := cmp.Diff(theirs, ours); d != "" {
		t.Errorf("%q: the client got (-net/http +ours)\n%s", raw, d)
	}
}

// get is a request without a body, post one with.
func get(path string, further ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: h\r\n" + lines(further) + "\r\n"
}

func post(path, body string, further ...string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%s\r\n%s", path, len(body), lines(further), body)
}

func lines(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, "\r\n") + "\r\n"
}

// raws are requests, well formed and not.
func raws() []string {
	chunked := "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	all := []string{
		"", "\r\n", "\r\n" + get("/a"), get("/a"), get("/a?q=1") + get("/b"), post("/a", "body") + get("/b"),
		post("/unread", "body") + get("/b"), post("/unread", strings.Repeat("x", 100<<10)) + get("/b"), post("/unread", strings.Repeat("x", 600<<10)) + get("/b"),
		post("/a", strings.Repeat("x", 600<<10)) + get("/b"),
		"HEAD /counted HTTP/1.1\r\nHost: h\r\n\r\n", "HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n",
		get("/none") + get("/b"), get("/same") + get("/b"), get("/close") + get("/b"), get("/short") + get("/b"), get("/panic") + get("/b"),
		get("/trailer") + get("/b"), get("/line") + get("/b"), get("/large") + get("/b"), get("/counted") + get("/counted"),
		get("/a", "Connection: close") + get("/b"), get("/a", "Connection: keep-alive") + get("/b"),
		"GET /a HTTP/1.0\r\n\r\n", "GET /counted HTTP/1.0\r\nHost: h\r\n\r\n" + get("/b"),
		chunked + "4\r\nbody\r\n0\r\n\r\n" + get("/b"), chunked + "4;ext=1\r\nbody\r\n0\r\nX-T: v\r\n\r\n" + get("/b"),
		chunked + "4\r\nbodyX\r\n0\r\n\r\n" + get("/b"), chunked + "zz\r\nbody\r\n0\r\n\r\n", chunked + "ffffffffffffffffff\r\n", chunked + "4\nbody\n0\n\n",
		"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("/b"),
		"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbodyx" + get("/b"),
		"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody" + get("/b"),
		"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: +4\r\n\r\nbody", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4, 4\r\n\r\nbody",
		"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nshort",
		"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET /a HTTP/1.1\r\n\r\n", "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET /a HTTP/1.1\r\nHost: a b\r\n\r\n", "GET /a HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n",
		"GET /a HTTP/1.1\r\nHost: h\r\nX Y: a\r\n\r\n", "GET /a HTTP/1.1\r\nHost: h\r\n X: folded\r\n\r\n", "GET /a HTTP/1.1\r\nHost: h\r\nX: a\r\n folded\r\n\r\n",
		"GET /a HTTP/2.0\r\nHost: h\r\n\r\n", "GET /a HTTP/1.2\r\nHost: h\r\n\r\n", "GET /a\r\n\r\n", "GET  /a HTTP/1.1\r\nHost: h\r\n\r\n", "G@T /a HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET http://other/a HTTP/1.1\r\nHost: h\r\n\r\n", "GET a HTTP/1.1\r\nHost: h\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS /a HTTP/1.1\r\nHost: h\r\n\r\n",
		get("/a", "X: "+strings.Repeat("v", 20<<10)), get("/a", "Expect: 200-maybe"), "\x16\x03\x01\x02\x00\x01\x00", "GET /a HTTP/1.1\r\nHost: h\r\n",
		get("/a") + "\r\n" + get("/b"), post("/a", "x") + "\r\n\r\n" + get("/b"),
		// Behind what is refused nothing is read, and behind what is unread nothing is lost.
		get("/a", "Expect: 200-maybe") + get("/b"), post("/a", "body", "Expect: ") + get("/b"), "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + get("/b"),
		"POST /unread HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-T: v\r\n\r\n" + get("/b"),
		"POST /unread HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + get("/b"),
		"POST /unread HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + get("/b"),
		"POST /unread HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody" + get("/b"),
		"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + strings.Repeat("v", 8<<10) + "\r\n\r\n" + get("/b"),
		"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("/b"),
		"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + get("/b"), "GET /a HTTP/1.1\nHost: h\n\n" + get("/b"), "GET /a HTTP/1.1\rHost: h\r\r" + get("/b"),
	}
	return all
}

// On the wire the server is net/http's own: the same requests reach the handler, and the
// same answers the client, whatever the client sends.
func TestLikeNetHTTP(t *testing.T) {
	p := newPair(t)
	for _, raw := range raws() {
		p.same(t, []byte(raw))
	}
}

// How the bytes come does not matter.
func TestByteByByte(t *testing.T) {
	p := newPair(t)
	for _, raw := range raws() {
		if len(raw) > 2000 {
			continue
		}
		whole, saw := talk(t, p.ours, []byte(raw)), p.ourHandler.take()
		pieces, sawPieces := talkInPieces(t, p.ours, []byte(raw), 1), p.ourHandler.take()
		if d := cmp.Diff(saw, sawPieces) + cmp.Diff(whole, pieces); d != "" {
			t.Errorf("%q: (-at once +byte by byte)\n%s", raw, d)
		}
	}
}

// FuzzLikeNetHTTP looks for bytes that the two take for different requests.
func FuzzLikeNetHTTP(f *testing.F) {
	for _, raw := range raws() {
		if len(raw) < 2000 {
			f.Add([]byte(raw))
		}
	}
	p := newPair(f)
	// What is meant to be another: net/http takes an empty Host, and refuses a target that
	// is a whole URL where it has no Host beside it.
	other := regexp.MustCompile(`(?i)\nhost:[ \t]*\r?\n|[ \t][a-z][a-z0-9+.-]*://`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if slices.ContainsFunc([]string{"CONNECT", "OPTIONS *", "HEAD", "100-", "h2c", "PRI"}, func(s string) bool { return bytes.Contains(raw, []byte(s)) }) {
			return // what an end point does not serve, or whose answers this test cannot cut apart
		}
		if other.Match(raw) {
			return
		}
		p.same(t, raw)
	})
}
