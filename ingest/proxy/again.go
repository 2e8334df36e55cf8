package proxy

import (
	"crypto/tls"
	"net"
)

// again wraps a connection of which some bytes have been read already. The server
// sees TLS where there is TLS: by it a request is known as one that came encrypted.
func again(c net.Conn, first []byte) net.Conn {
	r := &rereading{Conn: c, first: first}
	if t, ok := c.(*tls.Conn); ok {
		return &rereadingTLS{rereading: r, tls: t}
	}
	return r
}

type rereading struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (r *rereading) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// NetConn is the connection below, as tls.Conn has it.
func (r *rereading) NetConn() net.Conn { return r.Conn }

// used is the connection without its wrapping, which has done its work when a server
// has read a request.
func (r *rereading) used() net.Conn {
	if len(r.first) > 0 {
		return r
	}
	return r.Conn
}

type rereadingTLS struct {
	*rereading
	tls *tls.Conn
}

// ConnectionState is what net/http asks for the TLS of a request.
func (r *rereadingTLS) ConnectionState() tls.ConnectionState { return r.tls.ConnectionState() }
