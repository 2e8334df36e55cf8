package api

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/transport"
)

// Defaults of Options.
const (
	DefaultRequestTimeout = 30 * time.Second
	DefaultVerifyTimeout  = 10 * time.Minute
	DefaultMaxBodyBytes   = 1 << 20
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	writeGrace        = 30 * time.Second // for a slow reader, beyond the request's own time
	maxHeaderBytes    = 32 << 10
	readyTimeout      = 2 * time.Second
	// maxDownloadTime ends a download that goes on and on; one that stands still
	// ends much sooner.
	maxDownloadTime = 24 * time.Hour
)

// Options of a Server.
type Options struct {
	// RequestTimeout bounds one request, VerifyTimeout one :verify; 0 is the
	// default.
	RequestTimeout time.Duration
	VerifyTimeout  time.Duration
	// MaxBodyBytes bounds a request's body; 0 is the default.
	MaxBodyBytes int64
	// PageKey authenticates page tokens. All processes that serve one address
	// need the same; zero is a random one, whose tokens end with the process.
	PageKey [32]byte
	// TLS of HTTPServer and ServerOptions; nil serves plaintext, which belongs
	// on loopback only.
	TLS *tls.Config
	// Version is shown by /healthz.
	Version string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.RequestTimeout == 0 {
		o.RequestTimeout = DefaultRequestTimeout
	}
	if o.VerifyTimeout == 0 {
		o.VerifyTimeout = DefaultVerifyTimeout
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = DefaultMaxBodyBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Validate reports every wrong field at once, each by its name.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("api.%s: %s", field, want))
		}
	}
	check(o.RequestTimeout > 0, "request_timeout", "must be positive")
	check(o.VerifyTimeout > 0, "verify_timeout", "must be positive")
	check(o.MaxBodyBytes > 0, "max_body_bytes", "must be positive")
	check(o.TLS == nil || o.TLS.MinVersion >= transport.Version, "tls", "must be TLS 1.3 only")
	return errors.Join(errs...)
}
