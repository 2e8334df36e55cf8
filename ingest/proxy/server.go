package proxy

import (
	"crypto/tls"
	"net/http"
	"time"
)

// readHeaderTimeout is how long a client may take to send a request's headers, and
// idleTimeout how long a connection may be idle between two requests.
const (
	readHeaderTimeout = 15 * time.Second
	idleTimeout       = 2 * time.Minute
)

// Server is the server to listen with, over the proxy's bounds. It has no bound on
// the whole of a request or response: those of bodies, answers and silence are the
// proxy's own.
func (p *Proxy) Server(config *tls.Config) *http.Server {
	return &http.Server{
		Handler: p, TLSConfig: config,
		ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: p.opts.MaxHeaderBytes,
	}
}
