package http1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"
)

// ErrClientGone is why a request's context ends when its client does not wait for the
// answer.
var ErrClientGone = errors.New("http1: the client has gone")

// errCut is a response that is not to look whole.
var errCut = errors.New("http1: the response is cut")

const (
	readBuffer = 4 << 10
	// maxDrain is how much of a body that the handler did not read is read to keep the
	// connection; behind a larger one it is closed.
	maxDrain = 256 << 10
	// lingerTime is how long a client may read an answer after which its connection
	// is closed while it still sends: closed at once, the answer might be lost.
	lingerTime = 500 * time.Millisecond
	// expired is conn.until when the sweep has interrupted the read.
	expired = -1
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// readers are the buffers of connections that are not parked.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

// conn is a client's connection. One goroutine at a time reads, answers and writes;
// only what says so is for others too.
type conn struct {
	srv    *Server
	raw    net.Conn
	rwc    net.Conn // TLS, or raw; until the handshake is over it is the goroutine's own
	tls    *tls.ConnectionState
	socket syscall.RawConn // nil is none
	remote string
	in     *bufio.Reader // nil while nothing is read
	from   Limited       // of in
	served bool          // a request
	posted bool          // the last one
	body   body
	res    Response

	turn    atomic.Int64 // counts who has taken the connection over
	idle    atomic.Bool  // no request is in hand
	until   atomic.Int64 // tick by which a read must end, 0 is never, or expired
	writing atomic.Int64 // tick by which a write must end, 0 is never

	mu     sync.Mutex              // protects what follows
	cancel context.CancelCauseFunc // of the request in hand, nil is none
	since  int64                   // tick at which it began
	watch  uint64                  // id in the poller, 0 is none
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, raw: nc, rwc: nc, remote: nc.RemoteAddr().String(), from: Limited{Left: -1}}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.socket = raw
		}
	}
	return c
}

// serve serves a new connection.
func (c *conn) serve() {
	if c.srv.TLSConfig != nil && !c.handshake() {
		c.srv.remove(c)
		return
	}
	c.loop()
}

// guard runs what has the connection. Where that panics, or ends its goroutine, the
// connection ends, and nothing else.
func (c *conn) guard(run func()) {
	turn, returned := c.turn.Load(), false
	defer func() {
		if returned {
			return
		}
		c.srv.panicked(c.remote, recover())
		if c.turn.Load() == turn { // else somebody else has it
			c.res.err = errCut
			c.over()
			c.close()
		}
	}()
	run()
	returned = true
}

// handshake reports whether the connection stays here.
func (c *conn) handshake() bool {
	secure := tls.Server(c.rwc, c.srv.TLSConfig)
	ctx, cancel := context.WithTimeout(context.Background(), c.srv.HeaderTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && plain.RecordHeader[0] >= 'A' && plain.RecordHeader[0] <= 'Z' {
			_, _ = io.WriteString(plain.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		c.srv.Log.Debug("http1: no handshake", "client", c.remote, "err", err)
		c.rwc.Close()
		return false
	}
	state := secure.ConnectionState()
	if state.NegotiatedProtocol == "h2" {
		c.srv.second.give(secure)
		return false
	}
	c.rwc, c.tls = secure, &state
	return true
}

// loop serves one call after the other while the connection is its caller's.
func (c *conn) loop() {
	turn := c.turn.Load()
	for c.await() {
		if c.call(turn) {
			return // somebody else has the connection
		}
		if !c.over() {
			break
		}
	}
	c.close()
}

func (c *conn) close() {
	c.giveReader()
	c.rwc.Close()
	c.srv.remove(c)
}

func (c *conn) giveReader() {
	if c.in != nil {
		c.in.Reset(nil)
		readers.Put(c.in)
		c.in = nil
	}
}

// allow bounds what is read from now on; 0 is no bound. It reports that the bound before
// has passed: nothing can be read any more then.
func (c *conn) allow(d time.Duration) (late bool) {
	at := int64(0)
	if d > 0 {
		at = c.srv.tick.Load() + ticks(d)
	}
	return c.until.Swap(at) == expired
}

// look is the sweep's, and called by it only.
func (c *conn) look(now int64) {
	if at := c.until.Load(); at > 0 && now > at && c.until.CompareAndSwap(at, expired) {
		_ = c.rwc.SetReadDeadline(longAgo) // of a connection that is closed
	}
	if at := c.writing.Load(); at > 0 && now > at {
		_ = c.rwc.SetWriteDeadline(longAgo)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now > c.since+1 {
		c.watchClient()
	}
}

// watchClient has the request's context end when the client goes. It is called under
// mu.
func (c *conn) watchClient() {
	if c.cancel == nil || c.watch != 0 || c.socket == nil {
		return
	}
	cancel := c.cancel
	c.watch = c.srv.poller.watch(c.socket, func() { cancel(ErrClientGone) })
}

// endIdle ends the connection if it waits for a request.
func (c *conn) endIdle() {
	if c.idle.Load() {
		_ = c.rwc.SetReadDeadline(longAgo)
	}
}

// cut ends the connection and the request in hand, of which nothing is sent any more.
func (c *conn) cut(cause error) {
	c.raw.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel(cause)
	}
}

// await waits for the next request to begin, and bounds the reading of its headers.
func (c *conn) await() bool {
	if c.in == nil {
		c.in = readers.Get().(*bufio.Reader)
		c.from.From = c.rwc
		c.in.Reset(&c.from)
	}
	wait, begins := c.srv.IdleTimeout, 4 // bytes by which a request begins; fewer are its end
	if !c.served {
		wait, begins = c.srv.HeaderTimeout, 1
	}
	c.allow(wait)
	c.idle.Store(true)
	if c.srv.closing.Load() {
		return false
	}
	_, err := c.in.Peek(begins)
	c.idle.Store(false)
	return err == nil && !c.allow(c.srv.HeaderTimeout)
}

// call reads a request and has it answered. It reports whether the response was parked.
func (c *conn) call(turn int64) (parked bool) {
	c.served = true
	r, err := c.request()
	if c.allow(0) {
		err = errHeaderTime
	}
	c.res.reset(c, r)
	if err != nil {
		c.res.err = err
		c.refuse(err)
		return false
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	c.mu.Lock()
	c.cancel, c.since = cancel, c.srv.tick.Load()
	c.mu.Unlock()
	c.res.cancel = cancel
	own := r.WithContext(ctx)
	if !c.body.ended {
		c.body.from, c.body.to = r, own
	}
	c.srv.Handler.ServeHTTP(&c.res, own)
	return c.turn.Load() != turn
}

// errHeaderTime are headers that took longer than HeaderTimeout.
var errHeaderTime = errors.New("http1: the headers took too long")

// over ends the call, and reports whether the connection can carry another.
func (c *conn) over() bool {
	c.mu.Lock()
	cancel, watch := c.cancel, c.watch
	c.cancel, c.watch = nil, 0
	c.mu.Unlock()
	if watch != 0 {
		c.srv.poller.forget(watch)
	}
	w := &c.res
	if w.err == nil {
		w.err = w.finish()
	}
	if cancel != nil {
		cancel(nil)
	}
	if w.err != nil {
		if w.framing == untilClose {
			c.breakOff()
		}
		return false
	}
	if !c.body.drain() {
		c.linger()
		return false
	}
	return !w.close
}

// breakOff closes the connection in a way that its client does not take for the end of
// a response: neither a FIN nor a close_notify of TLS is sent.
func (c *conn) breakOff() {
	if tcp, ok := c.raw.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0) // of a connection that is closed
	}
	c.raw.Close()
}

// linger lets the client read the answer before the connection is closed. Of a client
// that goes on sending no more is read than there is to gain.
func (c *conn) linger() {
	end := time.Now().Add(lingerTime)
	half, ok := c.rwc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.rwc.SetReadDeadline(end) != nil {
		return
	}
	if _, err := io.CopyN(io.Discard, c.rwc, maxDrain); err == nil { // whatever it is, it is not read
		time.Sleep(time.Until(end))
	}
}

// request reads the headers of a request. What net/http's server asks of one beyond its
// parser is asked here.
func (c *conn) request() (*http.Request, error) {
	if c.posted { // old clients send an empty line behind a body (RFC 9112, 2.2)
		lines, _ := c.in.Peek(4) // the parser meets the error again
		_, _ = c.in.Discard(len(lines) - len(bytes.TrimLeft(lines, "\r\n")))
	}
	c.from.Left = int64(c.srv.MaxHeaderBytes) + readBuffer // what is read ahead may be the body's
	r, err := http.ReadRequest(c.in)
	if c.from.Left == 0 && err != nil {
		err = ErrHeaders
	}
	c.from.Left = -1
	if err != nil {
		return nil, err
	}
	if err := valid(r); err != nil {
		return nil, err
	}
	c.posted = r.Method == http.MethodPost
	r.RemoteAddr, r.TLS = c.remote, c.tls
	return r, nil
}

// badRequest is a request that is refused, and why.
type badRequest struct {
	code int
	text string
}

// Error implements error.
func (b badRequest) Error() string { return fmt.Sprintf("http1: %d %s", b.code, b.text) }

// valid is what a request must be beyond what the parser wants. Of a request whose target
// is a whole URL the parser leaves the target's host, and nobody asks for another.
func valid(r *http.Request) error {
	switch {
	case r.ProtoMajor != 1:
		return badRequest{http.StatusHTTPVersionNotSupported, "unsupported protocol version"}
	case r.ProtoAtLeast(1, 1) && r.Host == "" && r.Method != http.MethodConnect:
		return badRequest{http.StatusBadRequest, "missing required Host header"}
	case !httpguts.ValidHostHeader(r.Host):
		return badRequest{http.StatusBadRequest, "malformed Host header"}
	}
	for name, values := range r.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return badRequest{http.StatusBadRequest, "invalid header name"}
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return badRequest{http.StatusBadRequest, "invalid header value"}
			}
		}
	}
	if e := r.Header.Get("Expect"); e != "" && !httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue") {
		return badRequest{http.StatusExpectationFailed, "unknown expectation"}
	}
	return nil
}

// refuse answers what is no request, where somebody waits for an answer.
func (c *conn) refuse(err error) {
	var bad badRequest
	var broken *net.OpError
	switch {
	case errors.As(err, &bad):
	case errors.Is(err, ErrHeaders):
		bad = badRequest{http.StatusRequestHeaderFieldsTooLarge, "the headers are too large"}
	case errors.Is(err, errHeaderTime), errors.Is(err, io.EOF), errors.As(err, &broken), errors.Is(err, os.ErrDeadlineExceeded):
		return
	default: // the parser's error repeats what it has read, which may be a key
		bad = badRequest{http.StatusBadRequest, "malformed HTTP request"}
	}
	c.allowWrite()
	_, err = fmt.Fprintf(c.rwc, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		bad.code, http.StatusText(bad.code), len(bad.text)+1, bad.text)
	c.writing.Store(0)
	if err == nil {
		c.linger()
	}
}

func (c *conn) allowWrite() { c.writing.Store(c.srv.tick.Load() + ticks(c.srv.WriteTimeout)) }

// write sends b.
func (c *conn) write(b []byte) error {
	c.allowWrite()
	_, err := c.rwc.Write(b)
	c.writing.Store(0)
	return err
}

// body is the body of the request in hand.
type body struct {
	io.ReadCloser
	conn   *conn
	ended  bool // it was read to its end
	long   bool // more than maxDrain
	expect bool // the client waits for 100 Continue

	from, to *http.Request // the parser's, which gets the trailers, and the handler's; nil once it ended
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.expect {
		b.expect = false
		if !b.conn.res.begun {
			if err := b.conn.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
				return 0, err
			}
		}
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && !b.ended {
		b.ended = true
		b.to.Trailer = b.from.Trailer
		b.from, b.to = nil, nil // the connection may be idle for long
	}
	return n, err
}

// Close implements io.Closer. The rest of the body is the connection's affair.
func (b *body) Close() error { return nil }

// drain reads what the handler left of the body, and reports whether that was all.
func (b *body) drain() bool {
	if b.ended {
		return true
	}
	if b.expect || b.long { // whether the client sends it without 100 Continue is its choice
		return false
	}
	c := b.conn
	c.allow(c.srv.HeaderTimeout)
	_, err := io.CopyN(io.Discard, b, maxDrain)
	return !c.allow(0) && errors.Is(err, io.EOF)
}
