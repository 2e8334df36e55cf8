package proxy

import (
	"crypto/tls"
	"time"

	"github.com/tallystick/tallystick/internal/http1"
)

// headerTimeout is how long a client may take to send a request's headers, and
// idleTimeout how long a connection may be idle between two requests.
const (
	headerTimeout = 15 * time.Second
	idleTimeout   = 2 * time.Minute
)

// Server is the server to listen with, over the proxy's bounds; over TLS where config
// is not nil. It has no bound on the whole of a request or response: those of bodies,
// answers and silence are the proxy's own.
func (p *Proxy) Server(config *tls.Config) *http1.Server {
	return &http1.Server{
		Handler: p, TLSConfig: config, Log: p.opts.Logger,
		HeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, WriteTimeout: p.opts.SilenceTimeout,
		MaxHeaderBytes: p.opts.MaxHeaderBytes,
	}
}
