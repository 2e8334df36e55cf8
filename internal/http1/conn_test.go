package http1

import (
	"net"
	"testing"
	"time"
)

// lateConn is a connection on which a request comes just as the sweep gives it up.
type lateConn struct {
	net.Conn
	c *conn
}

func (l *lateConn) Read(p []byte) (int, error) {
	l.c.until.Store(expired)
	return copy(p, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"), nil
}

// A request that comes as the connection is given up is not begun: its body could not
// be read any more.
func TestRequestComesTooLate(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := newConn(&Server{HeaderTimeout: time.Minute, IdleTimeout: time.Minute}, near)
	c.rwc = &lateConn{near, c}
	if c.await() {
		t.Error("it is begun")
	}
	// A handler that lifts its deadline too late has the connection closed behind its answer.
	c.res.conn = c
	c.until.Store(expired)
	if err := c.res.SetReadDeadline(time.Time{}); err != nil || !c.res.close || c.until.Load() != expired {
		t.Errorf("close %v, until %d: %v", c.res.close, c.until.Load(), err)
	}
}
