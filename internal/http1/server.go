// Package http1 serves HTTP/1.1 to programs that call over and over and wait for
// long: a Server for an http.Handler as net/http's is, with one goroutine for a
// connection, no timer and no read of the connection beside the handler's own, and
// with responses that may be parked: left by their goroutine until there is more to
// send.
//
// Why not net/http's: it reads each connection in a second goroutine while a handler
// works, to notice that the client has gone, and sets deadlines for each request. On
// the metering proxy that was a quarter of the CPU of a call, and a silent stream held
// 45 KiB where it holds 20 KiB parked (docs/decisions/0012). Here one sweep every
// SweepInterval looks after deadlines, and one epoll instance after clients that leave.
// Requests are parsed by net/http's own parser, so what is a valid request, and where
// it ends, is no matter of ours. HTTP/2 goes to net/http's server, and so does all
// where there is no epoll.
//
// Promises:
//   - A request's context ends when its client goes (its cause is ErrClientGone), not
//     later than two SweepIntervals after, or when the Server is closed.
//   - A response whose handler panics is cut: its client cannot take it for whole. Nor
//     is one taken for whole that is shorter than its Content-Length.
//   - A connection carries another request only when the one before was read to its
//     end, and answered.
//   - Everything that waits for a client is bounded: its headers, the next request,
//     a body by the handler's deadline, a write that does not move.
package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// SweepInterval is how exact the bounds on time are.
const SweepInterval = 100 * time.Millisecond

// lastWords is how long Close waits for handlers whose connections it has cut.
const lastWords = 10 * time.Second

// Server is configured by its fields, which must not change once it serves. Its methods
// may be called from many goroutines.
type Server struct {
	Handler http.Handler
	// TLSConfig makes it a server over TLS, nil over plain connections.
	TLSConfig *tls.Config
	// HeaderTimeout is how long a client may take for its TLS handshake, to begin its
	// first request, and to send the headers of each; IdleTimeout how long a connection
	// may be idle between two requests, and WriteTimeout how long one write may take.
	// All must be positive.
	HeaderTimeout, IdleTimeout, WriteTimeout time.Duration
	// MaxHeaderBytes bounds a request's headers (431), and must be positive.
	MaxHeaderBytes int
	// Log gets panics of the Handler and failures to accept.
	Log *slog.Logger

	begin  sync.Once
	failed error // of begin
	poller *poller
	std    *http.Server // for HTTP/2
	second *handover    // its listener
	ended  chan struct{}
	tick   atomic.Int64 // sweeps so far

	closing   atomic.Bool // no further requests
	mu        sync.Mutex  // protects what follows
	conns     map[*conn]struct{}
	listen    map[net.Listener]struct{}
	elsewhere int           // requests in the hands of std
	empty     chan struct{} // closed when closing and no connection or such request is left
}

// Serve serves the connections of l until the Server is shut down or closed; the error
// is http.ErrServerClosed then. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.begin.Do(func() { s.failed = s.start(l.Addr()) })
	if errors.Is(s.failed, errors.ErrUnsupported) {
		if s.TLSConfig != nil {
			return s.std.ServeTLS(l, "", "")
		}
		return s.std.Serve(l)
	}
	if s.failed != nil {
		return s.failed
	}
	if !s.addListener(l) {
		return http.ErrServerClosed
	}
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			s.accept(c)
		case s.closing.Load():
			return http.ErrServerClosed
		case !passing(err):
			return err
		default:
			s.Log.Warn("http1: a connection cannot be accepted now", "err", err)
			time.Sleep(SweepInterval) // until a file is free again
		}
	}
}

// passing reports an error of Accept that another connection need not meet.
func passing(err error) bool {
	for _, is := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// start prepares what all listeners share.
func (s *Server) start(addr net.Addr) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.TLSConfig != nil {
		s.TLSConfig = s.TLSConfig.Clone()
		for _, proto := range []string{"h2", "http/1.1"} {
			if !slices.Contains(s.TLSConfig.NextProtos, proto) {
				s.TLSConfig.NextProtos = append(s.TLSConfig.NextProtos, proto)
			}
		}
	}
	s.std = &http.Server{
		Handler: http.HandlerFunc(s.serveElsewhere), TLSConfig: s.TLSConfig, MaxHeaderBytes: s.MaxHeaderBytes,
		ReadHeaderTimeout: s.HeaderTimeout, IdleTimeout: s.IdleTimeout,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	var err error
	if s.poller, err = newPoller(); err != nil {
		return err
	}
	s.conns, s.listen = map[*conn]struct{}{}, map[net.Listener]struct{}{}
	s.ended, s.empty, s.second = make(chan struct{}), make(chan struct{}), newHandover(addr)
	go s.poller.run()
	go s.sweep()
	go func() { _ = s.std.Serve(s.second) }() // until it is closed
	return nil
}

// panicked logs a panic of what served a client; nil and http.ErrAbortHandler are none.
func (s *Server) panicked(client string, v any) {
	if v != nil && v != http.ErrAbortHandler { //nolint:errorlint // a panic's value is this very one
		s.Log.Error("http1: panic serving a request", "client", client, "panic", v, "stack", string(debug.Stack()))
	}
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listen[l] = struct{}{}
	return true
}

func (s *Server) accept(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	closing := s.closing.Load()
	if !closing {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if closing {
		nc.Close()
		return
	}
	go c.guard(c.serve)
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.tellEmpty()
}

// tellEmpty is called under mu.
func (s *Server) tellEmpty() {
	if s.closing.Load() && len(s.conns) == 0 && s.elsewhere == 0 && !isClosed(s.empty) {
		close(s.empty)
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// sweep ends what has lasted too long, and watches the clients of calls that last.
func (s *Server) sweep() {
	t := time.NewTicker(SweepInterval)
	defer t.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-t.C:
		}
		now := s.tick.Add(1)
		s.mu.Lock()
		for c := range s.conns {
			c.look(now)
		}
		s.mu.Unlock()
	}
}

// ticks is how many sweeps begin in d, and one more.
func ticks(d time.Duration) int64 { return int64((d+SweepInterval-1)/SweepInterval) + 1 }

// stop ends the taking of connections and requests. It reports whether the Server ever
// served by itself.
func (s *Server) stop() bool {
	s.begin.Do(func() { s.failed = http.ErrServerClosed })
	if s.failed != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing.Store(true)
	for l := range s.listen {
		l.Close()
	}
	clear(s.listen)
	for c := range s.conns {
		c.endIdle()
	}
	s.tellEmpty()
	return true
}

// Shutdown takes no further connections and requests, and waits until those in hand are
// answered, parked ones too, or ctx ends; the error is ctx's then.
func (s *Server) Shutdown(ctx context.Context) error {
	if !s.stop() {
		if s.std != nil {
			return s.std.Shutdown(ctx)
		}
		return nil
	}
	if err := s.std.Shutdown(ctx); err != nil {
		return err
	}
	select {
	case <-s.empty:
		s.end()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close cuts all connections. It gives the handlers a few seconds to end.
func (s *Server) Close() error {
	if !s.stop() {
		if s.std != nil {
			return s.std.Close()
		}
		return nil
	}
	err := s.std.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.cut(http.ErrServerClosed)
	}
	s.mu.Unlock()
	select {
	case <-s.empty:
	case <-time.After(lastWords):
	}
	s.end()
	return err
}

// end stops the goroutines that start began.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !isClosed(s.ended) {
		close(s.ended)
		s.poller.close()
	}
}
