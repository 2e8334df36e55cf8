// Package transport is how this program's listeners speak: TLS 1.3 and nothing
// else, with a certificate that is renewed without a restart.
//
// It promises that a listener without a certificate takes connections from this
// machine only; that no older version of TLS is ever negotiated; that a new
// certificate is used by the next handshake while open connections go on; and
// that a new pair which cannot be used is refused loudly, the old one staying
// in use. Every answer over TLS tells browsers to use nothing else for a year.
// It never logs a key and keeps none but the one in use.
//
// One of our processes listens beside it: the embedded ClickHouse, a child on
// loopback with a password of its own, which only its parent calls.
package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Version is the one version of TLS that is spoken.
const Version = tls.VersionTLS13

// PollInterval is how long a renewed certificate waits at most until it is
// noticed; SIGHUP has it looked for at once.
const PollInterval = 10 * time.Second

// hsts is the Strict-Transport-Security header: one year (RFC 6797).
const hsts = "max-age=31536000; includeSubDomains"

var (
	// ErrCertificate says that a certificate and key cannot be used together, or
	// not now. At the start it ends the program; later the old pair stays.
	ErrCertificate = errors.New("transport: the certificate cannot be used")
	// ErrPlaintext says that an address outside this machine was to be served
	// without TLS.
	ErrPlaintext = errors.New("transport: without a certificate only loopback is served")
)

// Change tells of a new pair in the files: that it is used, or why not.
type Change struct {
	// Fingerprint is the SHA-256 of the new certificate, in hexadecimal; "" when
	// it could not be read.
	Fingerprint string
	NotAfter    time.Time
	Err         error // matches ErrCertificate; nil when the pair is used now
}

// Certificate is a certificate and key in two PEM files, and what is in use of
// them. Its methods may be called from many goroutines.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time
	current           atomic.Pointer[pair]

	mu      sync.Mutex // orders reloads, protects what follows
	seen    [sha256.Size]byte
	changed func(context.Context, Change)
}

// pair is a certificate in use.
type pair struct {
	cert        tls.Certificate
	fingerprint string
	notAfter    time.Time
}

// Load reads the files, which must hold a pair that is valid now. Errors match
// ErrCertificate.
func Load(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log, now: time.Now}
	content, p, err := c.read()
	if err != nil {
		return nil, err
	}
	c.seen = content
	c.current.Store(p)
	return c, nil
}

// OnChange has fn called of each Change that Reload finds, such as to audit it.
func (c *Certificate) OnChange(fn func(context.Context, Change)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = fn
}

// Config is TLS 1.3 with whatever certificate is in use at each handshake.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{
		MinVersion: Version,
		MaxVersion: Version,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &c.current.Load().cert, nil
		},
	}
}

// Fingerprint is the SHA-256 of the certificate in use, in hexadecimal.
func (c *Certificate) Fingerprint() string { return c.current.Load().fingerprint }

// NotAfter is when the certificate in use ends.
func (c *Certificate) NotAfter() time.Time { return c.current.Load().notAfter }

// Run looks for a renewed pair every PollInterval, and whenever now gives a
// value, until ctx ends.
func (c *Certificate) Run(ctx context.Context, now <-chan os.Signal) error {
	tick := time.NewTicker(PollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-now:
		}
		_ = c.Reload(ctx) // told in the log and to OnChange
	}
}

// Reload uses what the files hold if it has changed and is good. A bad pair is
// told of once for each content: between the renewal of the two files they do
// not belong together, and the next look finds them whole.
func (c *Certificate) Reload(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	content, p, err := c.read()
	if content == c.seen {
		return err
	}
	c.seen = content
	change := Change{Err: err}
	if err != nil {
		c.log.Error("the new certificate is refused; the old one stays in use", "file", c.certFile,
			"in_use", c.Fingerprint(), "not_after", c.NotAfter(), "err", err)
	} else {
		c.current.Store(p)
		change.Fingerprint, change.NotAfter = p.fingerprint, p.notAfter
		c.log.Info("a new certificate is in use", "file", c.certFile, "fingerprint", p.fingerprint, "not_after", p.notAfter)
	}
	if c.changed != nil {
		c.changed(ctx, change)
	}
	return err
}

// read reads the pair and a digest of the files' content. Modification times
// are not looked at: they tell nothing of two writes within a second, or of a
// link that was moved.
func (c *Certificate) read() (content [sha256.Size]byte, p *pair, err error) {
	cert, certErr := os.ReadFile(c.certFile)
	key, keyErr := os.ReadFile(c.keyFile)
	h := sha256.New()
	for _, part := range [][]byte{cert, key} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	content = [sha256.Size]byte(h.Sum(nil))
	if err := errors.Join(certErr, keyErr); err != nil {
		return content, nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	p, err = parse(cert, key, c.now())
	if err != nil {
		err = fmt.Errorf("%w: %s: %w", ErrCertificate, c.certFile, err)
	}
	return content, p, err
}

// parse accepts a pair that belongs together and is valid at the time.
func parse(cert, key []byte, now time.Time) (*pair, error) {
	loaded, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err // the library's text holds nothing of the key
	}
	leaf, err := x509.ParseCertificate(loaded.Certificate[0])
	if err != nil {
		return nil, err
	}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("valid from %s to %s only", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	loaded.Leaf = leaf
	sum := sha256.Sum256(leaf.Raw)
	return &pair{loaded, hex.EncodeToString(sum[:]), leaf.NotAfter}, nil
}

// Listen opens a TCP address. Without TLS the address must turn out to be
// loopback, whatever its name resolves to, else the error is ErrPlaintext.
func Listen(ctx context.Context, addr string, encrypted bool) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); !encrypted && (!ok || !tcp.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrPlaintext, l.Addr()), l.Close())
	}
	return l, nil
}

// HSTS sets Strict-Transport-Security on every answer to a request that came
// over TLS, also on those of handlers that know nothing of it.
func HSTS(next http.Handler) http.Handler {
	value := []string{hsts}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			w.Header()["Strict-Transport-Security"] = value
		}
		next.ServeHTTP(w, r)
	})
}
