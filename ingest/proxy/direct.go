package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/http1"
)

const (
	// idleLife is how long an idle connection is kept; providers close theirs after
	// a minute or more.
	idleLife = 50 * time.Second
	// maxDirectBody is the largest request that is written before its answer is read.
	// A provider that answers early and reads no further would else wait for us as we
	// for it.
	maxDirectBody = 64 << 10
	handshakeTime = 10 * time.Second
	// linkBuffer is small because many streams are idle; bodies are mostly read past it.
	linkBuffer = 2 << 10
)

// Upstream sends requests to providers: connections are kept, no redirect is
// followed, nothing is decompressed, and nothing is sent twice.
//
// HTTP/1.1 it speaks itself, on the goroutine of its caller: the standard
// transport's two goroutines for a connection cost as much as all else that a call
// costs here, and most of the memory of an idle stream. Where a provider offers
// HTTP/2, or a request is large, the standard transport takes over.
type Upstream struct {
	standard *http.Transport
	dialer   *net.Dialer
	perHost  int
	headers  int64

	mu    sync.Mutex // protects what follows
	idle  map[string][]*link
	http2 map[string]bool
	sweep *time.Timer // runs while there are idle connections
}

// NewUpstream makes an Upstream. dialer is nil for one that goes anywhere.
func NewUpstream(o Options, dialer *net.Dialer) *Upstream {
	o = o.withDefaults()
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	d := *dialer
	d.Timeout, d.KeepAlive = handshakeTime, 30*time.Second
	return &Upstream{
		dialer: &d, perHost: o.IdleConnsPerHost, headers: int64(o.MaxHeaderBytes), idle: map[string][]*link{}, http2: map[string]bool{},
		standard: &http.Transport{
			DialContext: d.DialContext, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxIdleConns: 4 * o.IdleConnsPerHost, MaxIdleConnsPerHost: o.IdleConnsPerHost, IdleConnTimeout: idleLife,
			TLSHandshakeTimeout: handshakeTime, MaxResponseHeaderBytes: int64(o.MaxHeaderBytes),
		},
	}
}

// RoundTrip implements http.RoundTripper. The request's context ends the response
// too.
func (u *Upstream) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Scheme + "://" + req.URL.Host
	body, ours := req.Body.(*sent)
	if req.Body != nil && !ours || req.ContentLength > maxDirectBody || u.speaksHTTP2(host) {
		return u.standard.RoundTrip(req)
	}
	if ours {
		defer body.Close()
	}
	l := u.take(host)
	if l == nil {
		var err error
		if l, err = u.dial(req.Context(), req.URL.Scheme, req.URL.Host); err != nil {
			return nil, err
		}
		if l == nil { // it speaks HTTP/2
			u.mu.Lock()
			u.http2[host] = true
			u.mu.Unlock()
			return u.standard.RoundTrip(req)
		}
		l.host = host
	}
	resp, err := l.roundTrip(req, body)
	if err != nil {
		l.conn.Close()
		if cause := context.Cause(req.Context()); cause != nil {
			err = cause
		}
		return nil, err
	}
	return resp, nil
}

func (u *Upstream) speaksHTTP2(host string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.http2[host]
}

// dial connects; nil is a provider that chose HTTP/2.
func (u *Upstream) dial(ctx context.Context, scheme, host string) (*link, error) {
	addr := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		addr = net.JoinHostPort(host, map[string]string{"http": "80", "https": "443"}[scheme])
	}
	conn, err := u.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l := &link{up: u, conn: conn, raw: conn}
	if scheme == "https" {
		name, _, _ := net.SplitHostPort(addr)
		secure := tls.Client(conn, &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
		ctx, cancel := context.WithTimeout(ctx, handshakeTime)
		defer cancel()
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err} // nothing was sent
		}
		if secure.ConnectionState().NegotiatedProtocol == "h2" {
			secure.Close()
			return nil, nil
		}
		l.conn = secure
	}
	l.from = http1.Limited{From: l.conn, Left: -1}
	l.in = bufio.NewReaderSize(&l.from, linkBuffer)
	return l, nil
}

// take takes out the idle connection that was used last, if it still stands.
func (u *Upstream) take(host string) *link {
	for {
		u.mu.Lock()
		list := u.idle[host]
		if len(list) == 0 {
			u.mu.Unlock()
			return nil
		}
		l := list[len(list)-1]
		list[len(list)-1] = nil
		u.idle[host] = list[:len(list)-1]
		u.mu.Unlock()
		if time.Since(l.since) < idleLife && quiet(l.raw) {
			return l
		}
		l.conn.Close()
	}
}

// put keeps a connection for the next request.
func (u *Upstream) put(l *link) {
	l.since = time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle[l.host]) >= u.perHost {
		l.conn.Close()
		return
	}
	u.idle[l.host] = append(u.idle[l.host], l)
	if u.sweep == nil {
		u.sweep = time.AfterFunc(idleLife, u.sweepIdle)
	}
}

// sweepIdle closes what was idle for too long.
func (u *Upstream) sweepIdle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	left := 0
	for host, list := range u.idle {
		n := 0
		for n < len(list) && time.Since(list[n].since) >= idleLife { // the oldest stand first
			list[n].conn.Close()
			n++
		}
		if u.idle[host] = append([]*link(nil), list[n:]...); n == len(list) {
			delete(u.idle, host)
		}
		left += len(list) - n
	}
	if u.sweep = nil; left > 0 {
		u.sweep = time.AfterFunc(idleLife/2, u.sweepIdle)
	}
}

// link is a connection. One request at a time uses it, from one goroutine.
type link struct {
	up    *Upstream
	host  string
	conn  net.Conn // TLS or raw
	raw   net.Conn
	in    *bufio.Reader
	out   []byte
	since time.Time     // idle
	from  http1.Limited // of in
}

// roundTrip writes the request and reads the answer's headers.
func (l *link) roundTrip(req *http.Request, body *sent) (*http.Response, error) {
	// Whoever waits in a read or write of the connection is woken by its end.
	stop := context.AfterFunc(req.Context(), func() { l.raw.Close() })
	var answer *http.Response
	err := l.write(req, body)
	if err == nil {
		answer, err = l.readAnswer(req)
	}
	if err != nil {
		stop()
		return nil, err
	}
	answer.Body = &answerBody{ReadCloser: answer.Body, link: l, stop: stop, keep: !answer.Close && !req.Close}
	return answer, nil
}

// write sends the request in one write.
func (l *link) write(req *http.Request, body *sent) error {
	b := append(l.out[:0], req.Method...)
	b = append(append(append(b, ' '), req.URL.RequestURI()...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, req.Host...), "\r\n"...)
	for name, values := range req.Header {
		for _, v := range values {
			if name == "User-Agent" && v == "" {
				continue
			}
			if !plainValue(v) {
				return errHeaderValue
			}
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	if req.ContentLength > 0 || req.Method != http.MethodGet && req.Method != http.MethodHead {
		b = strconv.AppendInt(append(b, "Content-Length: "...), req.ContentLength, 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if body != nil {
		b = append(b, body.buf.b...)
	}
	_, err := l.conn.Write(b)
	clear(b) // the provider's key was in it
	if l.out = b[:0]; cap(b) > smallBuffer {
		l.out = nil
	}
	return err
}

// errHeaderValue is a header that would end its line.
var errHeaderValue = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("proxy: a header's value holds a control character")}

func plainValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// readAnswer reads the answer's headers, passing over interim ones.
func (l *link) readAnswer(req *http.Request) (*http.Response, error) {
	for range 5 {
		l.from.Left = l.up.headers
		answer, err := http.ReadResponse(l.in, req)
		l.from.Left = -1
		if err != nil {
			return nil, err
		}
		if answer.StatusCode >= 200 {
			answer.Request = nil // it holds the provider's key, and a stream may last for hours
			return answer, nil
		}
	}
	return nil, http1.ErrHeaders
}

// answerBody gives the connection back at its end.
type answerBody struct {
	io.ReadCloser
	link *link // nil once it is given back or closed
	stop func() bool
	keep bool
}

// Read implements io.Reader.
func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end(errors.Is(err, io.EOF))
	}
	return n, err
}

// Close implements io.Closer. A body that was not read to its end costs the
// connection: the provider stops then.
func (b *answerBody) Close() error {
	b.end(false)
	return nil
}

// begun reports that some of the body has come with the headers.
func (b *answerBody) begun() bool { return b.link != nil && b.link.in.Buffered() > 0 }

// await waits until there is something to read, or an error, which Read will give.
func (b *answerBody) await() {
	if b.link != nil {
		_, _ = b.link.in.Peek(1)
	}
}

// silent waits, and reports that it was for parkAfter and nothing came: then nothing
// is buffered either, in TLS or before it.
func (b *answerBody) silent(w *waits) bool {
	l := b.link
	if l == nil {
		return false
	}
	w.begin(l.conn)
	_, err := l.in.Peek(1)
	if !w.end(l.conn) {
		return false
	}
	return l.conn.SetReadDeadline(time.Time{}) == nil && errors.Is(err, os.ErrDeadlineExceeded) && l.in.Buffered() == 0
}

// waits are the connections of providers that are waited for. One sweep interrupts
// those that are silent for long: a deadline for each wait would cost a timer, and
// often a thread that is woken for it, between any two chunks.
type waits struct {
	mu    sync.Mutex             // protects what follows
	since map[net.Conn]time.Time // the zero time is interrupted
}

func (w *waits) begin(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since == nil {
		w.since = map[net.Conn]time.Time{}
	}
	w.since[c] = time.Now()
}

// end reports that the wait was interrupted.
func (w *waits) end(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	interrupted := w.since[c].IsZero()
	delete(w.since, c)
	return interrupted
}

// sweep interrupts the waits that began before a time.
func (w *waits) sweep(before time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, since := range w.since {
		if !since.IsZero() && since.Before(before) && c.SetReadDeadline(longAgo) == nil {
			w.since[c] = time.Time{}
		}
	}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

func (b *answerBody) end(whole bool) {
	l := b.link
	if l == nil {
		return
	}
	b.link = nil
	if b.stop() && whole && b.keep && l.in.Buffered() == 0 {
		l.up.put(l)
		return
	}
	l.conn.Close()
}
