package http1

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// serveElsewhere serves a request of net/http's server. That logs panics among what
// clients do wrong, so they are caught before it.
func (s *Server) serveElsewhere(w http.ResponseWriter, r *http.Request) {
	s.count(1)
	defer s.count(-1)
	defer func() {
		if v := recover(); v != nil {
			s.panicked(r.RemoteAddr, v)
			panic(http.ErrAbortHandler)
		}
	}()
	b := newBounded(w, s.WriteTimeout)
	defer b.end()
	s.Handler.ServeHTTP(b, r)
}

// count counts the requests in the hands of net/http's server.
func (s *Server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.elsewhere += n
	s.tellEmpty()
}

// bounded is a ResponseWriter of net/http's server of which no write takes longer than
// timeout: under HTTP/2 a client could else stop a handler for as long as it likes, by
// taking no more of one response.
type bounded struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	timer   *time.Timer // runs while a write does

	mu   sync.Mutex // protects what follows
	over bool       // the ResponseWriter is not the handler's any more
}

func newBounded(w http.ResponseWriter, timeout time.Duration) *bounded {
	b := &bounded{ResponseWriter: w, control: http.NewResponseController(w), timeout: timeout}
	b.timer = time.AfterFunc(timeout, b.interrupt)
	b.timer.Stop()
	return b
}

func (b *bounded) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		_ = b.control.SetWriteDeadline(longAgo) // of a stream that is closed
	}
}

func (b *bounded) end() {
	b.timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

// Write implements http.ResponseWriter.
func (b *bounded) Write(p []byte) (int, error) {
	b.timer.Reset(b.timeout)
	defer b.timer.Stop()
	return b.ResponseWriter.Write(p)
}

// FlushError lets http.ResponseController flush it.
func (b *bounded) FlushError() error {
	b.timer.Reset(b.timeout)
	defer b.timer.Stop()
	return b.control.Flush()
}

// Unwrap gives http.ResponseController the rest.
func (b *bounded) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// handover is the listener of connections that net/http is to serve.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// give leaves a connection to net/http, and closes it where that serves no more.
func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

// Accept implements net.Listener.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handover) Addr() net.Addr { return h.addr }
