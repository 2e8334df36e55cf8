package transport_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tallystick/tallystick/internal/transport"
)

// files are a certificate and key where a server finds them.
type files struct{ cert, key string }

// issue makes a self-signed pair for 127.0.0.1 that ends at notAfter.
func issue(t *testing.T, name string, notAfter time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func (f files) write(t *testing.T, cert, key []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(f.cert, cert, 0o600), os.WriteFile(f.key, key, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func newFiles(t *testing.T) (f files, certPEM []byte) {
	t.Helper()
	dir := t.TempDir()
	f = files{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	cert, key := issue(t, "first", time.Now().Add(time.Hour))
	f.write(t, cert, key)
	return f, cert
}

func load(t *testing.T, f files, log *slog.Logger) *transport.Certificate {
	t.Helper()
	c, err := transport.Load(f.cert, f.key, log)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func trust(certs ...[]byte) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AppendCertsFromPEM(c)
	}
	return pool
}

// serveHTTP serves a handler over TLS and returns its address.
func serveHTTP(t *testing.T, c *transport.Certificate) string {
	t.Helper()
	l, err := transport.Listen(t.Context(), "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{TLSConfig: c.Config(), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
		Handler: transport.HSTS(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/missing" {
				http.NotFound(w, r)
			}
		}))}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

func TestOnlyTLS13OverHTTP(t *testing.T) {
	f, cert := newFiles(t)
	addr := serveHTTP(t, load(t, f, nil))
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: false, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: trust(cert), MinVersion: version, MaxVersion: version}) //nolint:gosec // that old versions are refused is the test
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
	resp, err := http.Get("http://" + addr + "/") //nolint:noctx // plaintext that must not be answered
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("a plaintext request got %d", resp.StatusCode)
		}
	}
}

func TestOnlyTLS13OverGRPC(t *testing.T) {
	f, cert := newFiles(t)
	c := load(t, f, nil)
	l, err := transport.Listen(t.Context(), "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(c.Config())))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	old := &tls.Config{RootCAs: trust(cert), MaxVersion: tls.VersionTLS12} //nolint:gosec // that it is refused is the test
	for name, tc := range map[string]struct {
		creds credentials.TransportCredentials
		ok    bool
	}{
		"TLS 1.3":   {credentials.NewTLS(&tls.Config{RootCAs: trust(cert), MinVersion: tls.VersionTLS13}), true},
		"TLS 1.2":   {credentials.NewTLS(old), false},
		"plaintext": {insecure.NewCredentials(), false},
	} {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(tc.creds))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		conn.Close()
	}
}

func TestHSTSOnEveryAnswerOverTLS(t *testing.T) {
	f, cert := newFiles(t)
	addr := serveHTTP(t, load(t, f, nil))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust(cert), MinVersion: tls.VersionTLS13}}}
	defer client.CloseIdleConnections()
	for _, path := range []string{"/", "/missing"} {
		resp, err := client.Get("https://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Strict-Transport-Security"); got != "max-age=31536000; includeSubDomains" {
			t.Errorf("%s: Strict-Transport-Security %q", path, got)
		}
	}
}

// peerOf is the name in the certificate that a new connection is shown.
func peerOf(t *testing.T, addr string, roots *x509.CertPool) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// A renewed certificate is used for new connections while an open one goes on.
func TestReloadWhileAConnectionLives(t *testing.T) {
	f, first := newFiles(t)
	c := load(t, f, nil)
	var changes []transport.Change
	c.OnChange(func(_ context.Context, ch transport.Change) { changes = append(changes, ch) })
	addr := serveHTTP(t, c)
	second, key := issue(t, "second", time.Now().Add(2*time.Hour))
	roots := trust(first, second)

	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	old := c.Fingerprint()
	f.write(t, second, key)
	if err := c.Reload(t.Context()); err != nil || c.Fingerprint() == old {
		t.Fatalf("Reload: %v, in use %s", err, c.Fingerprint())
	}
	if name := peerOf(t, addr, roots); name != "second" {
		t.Errorf("a new connection is shown %q", name)
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 32)
	if n, err := conn.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") {
		t.Errorf("the open connection: %q, %v", buf[:n], err)
	}
	if len(changes) != 1 || changes[0].Err != nil || changes[0].Fingerprint != c.Fingerprint() {
		t.Errorf("told of %+v", changes)
	}
	if err := c.Reload(t.Context()); err != nil || len(changes) != 1 {
		t.Errorf("nothing new: %v, told of %+v", err, changes)
	}
}

// A pair that cannot be used is refused loudly, and the old one stays.
func TestBadRenewalIsRefused(t *testing.T) {
	good, goodKey := issue(t, "good", time.Now().Add(time.Hour))
	expired, expiredKey := issue(t, "expired", time.Now().Add(-time.Hour))
	_, otherKey := issue(t, "other", time.Now().Add(time.Hour))
	for name, pair := range map[string][2][]byte{
		"expired":           {expired, expiredKey},
		"another's key":     {good, otherKey},
		"no certificate":    {goodKey, goodKey},
		"half a file":       {good[:len(good)/2], goodKey},
		"an empty key file": {good, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f, first := newFiles(t)
			var out bytes.Buffer
			c := load(t, f, slog.New(slog.NewTextHandler(&out, nil)))
			var changes []transport.Change
			c.OnChange(func(_ context.Context, ch transport.Change) { changes = append(changes, ch) })
			addr := serveHTTP(t, c)
			f.write(t, pair[0], pair[1])
			for range 3 {
				if err := c.Reload(t.Context()); !errors.Is(err, transport.ErrCertificate) {
					t.Errorf("Reload = %v", err)
				}
			}
			if name := peerOf(t, addr, trust(first)); name != "first" {
				t.Errorf("a connection is shown %q", name)
			}
			if len(changes) != 1 || !errors.Is(changes[0].Err, transport.ErrCertificate) || strings.Count(out.String(), "level=ERROR") != 1 {
				t.Errorf("told of %+v; log:\n%s", changes, out.String())
			}
			if strings.Contains(out.String(), "PRIVATE") {
				t.Errorf("the log shows a key:\n%s", out.String())
			}
			f.write(t, good, goodKey)
			if err := c.Reload(t.Context()); err != nil {
				t.Errorf("a good pair afterwards: %v", err)
			}
			if name := peerOf(t, addr, trust(good)); name != "good" {
				t.Errorf("afterwards a connection is shown %q", name)
			}
		})
	}
}

func TestLoadRefusesBadPairs(t *testing.T) {
	f, _ := newFiles(t)
	if _, err := transport.Load(f.cert, f.cert, nil); !errors.Is(err, transport.ErrCertificate) {
		t.Errorf("no key: %v", err)
	}
	if _, err := transport.Load(f.cert+"x", f.key, nil); !errors.Is(err, transport.ErrCertificate) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Run finds a renewal by itself, and at once when it is told.
func TestRunFindsRenewals(t *testing.T) {
	f, _ := newFiles(t)
	synctest.Test(t, func(t *testing.T) {
		renew := func(name string) {
			cert, key := issue(t, name, time.Now().Add(time.Hour))
			f.write(t, cert, key)
		}
		renew("in the bubble's time")
		c := load(t, f, nil)
		ctx, cancel := context.WithCancel(t.Context())
		hup, done := make(chan os.Signal, 1), make(chan struct{})
		go func() { defer close(done); _ = c.Run(ctx, hup) }()

		before := c.Fingerprint()
		renew("found by looking")
		time.Sleep(transport.PollInterval + time.Millisecond)
		synctest.Wait()
		looked := c.Fingerprint()
		if looked == before {
			t.Error("a renewal is not found after the interval")
		}
		renew("told by a signal")
		hup <- syscall.SIGHUP
		synctest.Wait()
		if c.Fingerprint() == looked {
			t.Error("a renewal is not found on SIGHUP")
		}
		cancel()
		<-done
	})
}

func TestListenWithoutTLSIsLoopbackOnly(t *testing.T) {
	for addr, ok := range map[string]bool{"127.0.0.1:0": true, "localhost:0": true, "[::1]:0": true, "0.0.0.0:0": false, ":0": false} {
		l, err := transport.Listen(t.Context(), addr, false)
		if err == nil {
			l.Close()
		}
		if ok && err != nil && !strings.Contains(addr, "::1") {
			t.Errorf("%s: %v", addr, err)
		}
		if !ok && !errors.Is(err, transport.ErrPlaintext) {
			t.Errorf("%s is served in the clear: %v", addr, err)
		}
		if l, err := transport.Listen(t.Context(), "0.0.0.0:0", true); err != nil {
			t.Errorf("with TLS: %v", err)
		} else {
			l.Close()
		}
	}
}
