package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A stream may be silent for minutes while a model thinks. net/http keeps two
// goroutines with their stacks and 10 KiB of buffers for each connection that it
// serves; ten thousand silent streams would take half a gigabyte. So a stream that is
// silent for parkAfter is parked: its connection is taken over from net/http, and
// nothing waits for it but an entry in one epoll instance (poller). When a side speaks
// or goes, a goroutine carries the copying on. When the response is over, the
// connection is given back to its server, for the client's next request.

const (
	// parkAfter is longer than the pauses between the tokens of a model that writes.
	parkAfter = 200 * time.Millisecond
	// drainTime is how long parked streams may go on when Run ends.
	drainTime = 10 * time.Second
)

// errParked says that an exchange is not the caller's any more: another goroutine
// may have it already.
var errParked = errors.New("proxy: the stream is parked")

// errStopped is why the upstream's part of a parked call is ended by us.
var errStopped = errors.New("proxy: the proxy stops")

// lot are the streams that were taken over from net/http.
type lot struct {
	mu      sync.Mutex // protects what follows
	poller  *poller    // nil while nothing is parked: before Run and after it
	taken   map[*exchange]*taken
	servers map[*http.Server]*returning
	empty   sync.WaitGroup // of taken
}

// open lets streams be parked. Where there is no poller they stay with net/http.
func (l *lot) open() {
	p, err := newPoller()
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.poller != nil { // a second Run
		p.close()
		return
	}
	l.poller = p
	go p.run()
}

// close ends the parking. Streams that were taken over may go on for a while, and
// are cut then; it returns when all of them are settled.
func (l *lot) close(wait time.Duration) {
	l.mu.Lock()
	p := l.poller
	l.poller = nil
	l.mu.Unlock()
	if p == nil {
		return
	}
	p.close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.empty.Wait()
	}()
	select {
	case <-done:
		return
	case <-time.After(wait):
	}
	l.mu.Lock()
	for _, t := range l.taken {
		t.cancel(errStopped)
		t.conn.Close() // nor may a client that does not read hold us up
	}
	l.mu.Unlock()
	<-done
}

// waits returns the poller, nil where nothing is to be parked.
func (l *lot) waits() *poller {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.poller
}

// add notes that a connection is taken over.
func (l *lot) add(x *exchange, t *taken, srv *http.Server) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.poller == nil {
		return false
	}
	if l.taken == nil {
		l.taken, l.servers = map[*exchange]*taken{}, map[*http.Server]*returning{}
	}
	l.taken[x] = t
	l.empty.Add(1)
	if t.back = l.servers[srv]; t.back == nil {
		t.back = newReturning(t.conn.LocalAddr())
		l.servers[srv] = t.back
		go func(r *returning) {
			_ = srv.Serve(r) // ends with the server; r closes then, and with it what would come back
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.servers, srv)
		}(t.back)
	}
	return true
}

// waiting is how many streams are taken over.
func (l *lot) waiting() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.taken))
}

func (l *lot) remove(x *exchange) {
	l.mu.Lock()
	delete(l.taken, x)
	l.mu.Unlock()
	l.empty.Done()
}

// parkable reports that the response that has begun may be taken over: it is one
// whose framing net/http leaves to us then, chunks of HTTP/1.1.
func (x *exchange) parkable(length int64) bool {
	r := x.r
	_, ours := x.resp.Body.(*answerBody)
	return ours && x.stream && length < 0 && r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.Method != http.MethodHead &&
		x.resp.StatusCode >= 200 && x.resp.StatusCode != http.StatusNoContent && x.resp.StatusCode != http.StatusNotModified
}

// park leaves the exchange to the poller until a side speaks or goes. The headers and
// all that has come are with the client. False leaves it to the caller.
func (x *exchange) park() bool {
	body, ok := x.resp.Body.(*answerBody)
	p := x.p.lot.waits()
	if !ok || body.link == nil || p == nil || x.taken == nil && !x.takeOver() {
		x.mayPark = false
		return false
	}
	provider, client := rawOf(body.link.raw), rawOf(x.taken.conn)
	if provider == nil || client == nil {
		x.mayPark = false
		return false
	}
	body.link.out = nil
	return p.park(x, x.upstream, provider, client)
}

// takeOver takes the connection from net/http.
func (x *exchange) takeOver() bool {
	srv, ok := x.r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok {
		return false
	}
	conn, rw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return false
	}
	t := &taken{conn: conn, cancel: x.cancel, keep: !x.r.Close}
	if n := rw.Reader.Buffered(); n > 0 {
		b, _ := rw.Reader.Peek(n) // it is there
		t.first = append(t.first, b...)
	}
	x.leave() // the request's context ends with its handler
	// Where nothing may be parked any more the stream goes on here, and its
	// connection ends with it.
	x.p.lot.add(x, t, srv)
	x.taken, x.w, x.r, x.ctx = t, t, nil, context.WithoutCancel(x.upstream)
	x.dropped, x.query = nil, ""
	return true
}

// carryOn goes on with a parked exchange. gone says that its client has left.
func (x *exchange) carryOn(gone bool) {
	x.unwatch()
	if gone {
		x.cancel(errClient)
	}
	if err := x.copy(-1, false); !errors.Is(err, errParked) {
		x.finish(err)
	}
}

// finish ends an exchange whose connection was taken over.
func (x *exchange) finish(err error) {
	t, p := x.taken, x.p
	if err == nil && x.trailers && x.kept {
		x.report(t.Header())
	}
	if err == nil {
		err = t.end()
	}
	if t.back != nil {
		p.lot.remove(x)
	}
	x.release()
	p.exchanges.Put(x)
	if err != nil || !t.keep || t.back == nil {
		t.conn.Close()
		return
	}
	go t.back.give(t.conn, t.first)
}

// taken is a client's connection in the middle of a chunked response. It is the
// ResponseWriter of the rest.
type taken struct {
	conn   net.Conn
	cancel context.CancelCauseFunc // ends the upstream's part
	first  []byte                  // what the client has sent behind its request
	keep   bool                    // the client wants to keep the connection
	back   *returning              // nil while the proxy stops
	header http.Header             // trailers
}

// Header implements http.ResponseWriter: what is set becomes the trailers.
func (t *taken) Header() http.Header {
	if t.header == nil {
		t.header = http.Header{}
	}
	return t.header
}

// WriteHeader implements http.ResponseWriter; the headers have been sent.
func (t *taken) WriteHeader(int) {}

// FlushError lets http.ResponseController flush it: nothing is kept back.
func (t *taken) FlushError() error { return nil }

// Write sends b as one chunk in one write.
func (t *taken) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // an empty chunk is the end
	}
	buf := buffers.Get().(*buffer)
	defer buf.free()
	out := strconv.AppendInt(buf.b[:0], int64(len(b)), 16)
	buf.b = append(append(append(out, "\r\n"...), b...), "\r\n"...)
	if _, err := t.conn.Write(buf.b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// end sends the last chunk and the trailers.
func (t *taken) end() error {
	b := []byte("0\r\n")
	for name, values := range t.header {
		for _, v := range values {
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	_, err := t.conn.Write(append(b, "\r\n"...))
	return err
}

// returning gives connections back to the server that they came from, as its
// listener.
type returning struct {
	ctx   context.Context // until the server stops
	stop  context.CancelFunc
	conns chan net.Conn
	addr  net.Addr
}

func newReturning(addr net.Addr) *returning {
	r := &returning{conns: make(chan net.Conn), addr: addr}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// give waits for the client's next request, as long as the server itself would, and
// leaves the connection to the server. first has come already.
func (r *returning) give(c net.Conn, first []byte) {
	if a, ok := c.(interface{ used() net.Conn }); ok {
		c = a.used()
	}
	if len(first) == 0 {
		stop := context.AfterFunc(r.ctx, func() { c.Close() })
		var one [1]byte
		err := c.SetReadDeadline(time.Now().Add(idleTimeout))
		if err == nil {
			_, err = c.Read(one[:])
		}
		if !stop() || err != nil || c.SetReadDeadline(time.Time{}) != nil {
			c.Close()
			return
		}
		first = one[:]
	}
	select {
	case r.conns <- again(c, first):
	case <-r.ctx.Done():
		c.Close()
	}
}

// Accept implements net.Listener.
func (r *returning) Accept() (net.Conn, error) {
	select {
	case c := <-r.conns:
		return c, nil
	case <-r.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (r *returning) Close() error {
	r.stop()
	return nil
}

// Addr implements net.Listener.
func (r *returning) Addr() net.Addr { return r.addr }

// rawOf is the socket under a connection; nil is none.
func rawOf(c net.Conn) syscall.RawConn {
	for {
		if s, ok := c.(syscall.Conn); ok {
			if raw, err := s.SyscallConn(); err == nil {
				return raw
			}
			return nil
		}
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = inner.NetConn()
	}
}
