package authn

import (
	"context"
	"net"
	"net/http"
)

// Peer is where a request comes from, for the audit log.
type Peer struct {
	// Addr is the address of the connection, without its port. Headers that a
	// proxy may add are not believed: anybody can send them.
	Addr      string
	Client    string // user agent
	RequestID string
}

type peerKey struct{}

// WithPeer has the context carry where its request comes from.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// PeerOf is where the request of a context comes from.
func PeerOf(ctx context.Context) Peer {
	p, _ := ctx.Value(peerKey{}).(Peer)
	return p
}

// HTTPPeer reads the peer of an HTTP request.
func HTTPPeer(r *http.Request, requestID string) Peer {
	return Peer{Addr: Host(r.RemoteAddr), Client: r.UserAgent(), RequestID: requestID}
}

// Host is an address without its port.
func Host(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// TellPeer has a handler's requests carry where they come from.
func TellPeer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(WithPeer(r.Context(), HTTPPeer(r, ""))))
	})
}
