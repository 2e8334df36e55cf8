package proxy

import (
	"errors"
	"net"
	"net/http"
	"syscall"
	"time"
)

// A stream may be silent for minutes while a model thinks, and ten thousand such
// streams must not take half a gigabyte of stacks and buffers. So a stream that is
// silent for parkAfter is parked (http1): no goroutine waits for it, but an entry in one
// epoll instance. When a side speaks or goes, a goroutine carries the copying on.

// parkAfter is longer than the pauses between the tokens of a model that writes.
const parkAfter = 200 * time.Millisecond

// errParked says that an exchange is not the caller's any more: another goroutine
// may have it already.
var errParked = errors.New("proxy: the stream is parked")

// parkable reports that the response that has begun may be parked.
func (x *exchange) parkable(length int64) bool {
	_, ours := x.resp.Body.(*answerBody)
	return ours && x.own != nil && x.stream && length < 0 && x.r.Method != http.MethodHead
}

// park leaves the exchange until a side speaks or goes. The headers and all that has
// come are with the client. False leaves it to the caller.
func (x *exchange) park() bool {
	body, ok := x.resp.Body.(*answerBody)
	if !ok || body.link == nil {
		return false
	}
	body.link.out = nil
	x.r, x.dropped, x.query = nil, nil, ""
	if !x.parked {
		x.parked = true
		x.p.parked.Add(1)
	}
	if x.own.Park(x.upstream, rawOf(body.link.raw), x.carryOn) {
		return true
	}
	x.mayPark = false
	return false
}

// carryOn goes on with a parked exchange.
func (x *exchange) carryOn() {
	copied := false
	defer func() {
		if !copied { // as in ServeHTTP; the server cuts the response
			x.release()
		}
	}()
	err := x.copy(-1, false)
	copied = true
	if !errors.Is(err, errParked) {
		x.finish(err)
	}
}

// finish ends an exchange that was parked.
func (x *exchange) finish(err error) {
	own, p := x.own, x.p
	if err == nil && x.trailers && x.kept {
		x.report(own.Header())
	}
	x.release()
	p.exchanges.Put(x)
	own.End(err)
}

// rawOf is the socket under a connection; nil is none.
func rawOf(c net.Conn) syscall.RawConn {
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}
