package kafka

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	ok := Config{Brokers: []string{"127.0.0.1:9092"}}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // field named by the error; "" when valid
	}{
		{"loopback", func(*Config) {}, ""},
		{"loopback v6", func(c *Config) { c.Brokers = []string{"[::1]:9092", "localhost:9092"} }, ""},
		{"no brokers", func(c *Config) { c.Brokers = nil }, "kafka.brokers"},
		{"no port", func(c *Config) { c.Brokers = []string{"127.0.0.1"} }, "kafka.brokers"},
		{"plaintext elsewhere", func(c *Config) { c.Brokers = []string{"10.0.0.1:9092"} }, "kafka.brokers"},
		{"name that starts like loopback", func(c *Config) { c.Brokers = []string{"127.0.0.1.example.com:9092"} }, "kafka.brokers"},
		{"plaintext allowed", func(c *Config) { c.Brokers, c.AllowPlaintext = []string{"10.0.0.1:9092"}, true }, ""},
		{"tls elsewhere", func(c *Config) { c.Brokers, c.TLS.Enabled = []string{"k.example.com:9093"}, true }, ""},
		{"tls fields without tls", func(c *Config) { c.TLS.CAFile = "ca.pem" }, "kafka.tls.enabled"},
		{"key without cert", func(c *Config) { c.TLS = TLS{Enabled: true, KeyFile: "k.pem"} }, "kafka.tls.cert_file"},
		{"prefix", func(c *Config) { c.TopicPrefix = "eu/" }, "kafka.topic_prefix"},
		{"long prefix", func(c *Config) { c.TopicPrefix = strings.Repeat("a", 201) }, "kafka.topic_prefix"},
		{"scram", func(c *Config) { c.SASL = SASL{Mechanism: MechanismScramSHA512, Username: "u", Password: "p"} }, ""},
		{"unknown mechanism", func(c *Config) { c.SASL = SASL{Mechanism: "GSSAPI", Username: "u", Password: "p"} }, "kafka.sasl.mechanism"},
		{"user without mechanism", func(c *Config) { c.SASL = SASL{Username: "u"} }, "kafka.sasl.mechanism"},
		{"no user", func(c *Config) { c.SASL = SASL{Mechanism: MechanismPlain, Password: "p"} }, "kafka.sasl.username"},
		{"no password", func(c *Config) { c.SASL = SASL{Mechanism: MechanismPlain, Username: "u"} }, "kafka.sasl.password_file"},
		{"two passwords", func(c *Config) {
			c.SASL = SASL{Mechanism: MechanismPlain, Username: "u", Password: "p", PasswordFile: "f"}
		}, "kafka.sasl.password_file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := ok
			tt.change(&cfg)
			err := cfg.Validate()
			if (err == nil) != (tt.want == "") || (err != nil && !strings.HasPrefix(err.Error(), tt.want+": ")) {
				t.Errorf("got %v, want an error of %q", err, tt.want)
			}
			if _, optErr := cfg.Options(); err != nil && optErr == nil {
				t.Error("Options accepts what Validate refuses")
			}
		})
	}
}

func TestOtherOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{TopicSpec{}.Validate(), ""},
		{TopicSpec{Partitions: -1}.Validate(), "kafka.partitions"},
		{TopicSpec{Retention: 31 * 24 * time.Hour}.Validate(), "kafka.retention"},
		{TopicSpec{TelemetryRetention: time.Second}.Validate(), "kafka.telemetry_retention"},
		{TopicSpec{ReplicationFactor: 2, MinInsyncReplicas: 3}.Validate(), "kafka.min_insync_replicas"},
		{ProducerOptions{}.Validate(), ""},
		{ProducerOptions{Linger: -1}.Validate(), "kafka.producer.linger"},
		{ProducerOptions{DeliveryTimeout: time.Millisecond}.Validate(), "kafka.producer.delivery_timeout"},
		{ConsumerOptions{Topic: "t"}.Validate(), "kafka.consumer.group"},
		{ConsumerOptions{Group: "g"}.Validate(), "kafka.consumer.topic"},
	} {
		if (tt.err == nil) != (tt.want == "") || (tt.err != nil && !strings.HasPrefix(tt.err.Error(), tt.want+": ")) {
			t.Errorf("got %v, want an error of %q", tt.err, tt.want)
		}
	}
}

func TestThreeReplicasNeedTwoInSync(t *testing.T) {
	if got := (TopicSpec{ReplicationFactor: 3}).withDefaults().MinInsyncReplicas; got != 2 {
		t.Errorf("min in-sync replicas %d", got)
	}
}

func TestPasswordNeverPrinted(t *testing.T) {
	cfg := Config{SASL: SASL{Mechanism: MechanismPlain, Username: "u", Password: "hunter2"}}
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("x", "cfg", cfg.SASL)
	fmt.Fprintf(&out, "%v %+v %#v %s", cfg, cfg, cfg, cfg.SASL)
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("printed: %s", out.String())
	}
}

func TestPasswordFileIsReadEachTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	s := SASL{Mechanism: MechanismPlain, Username: "u", PasswordFile: file}
	for _, want := range []string{"first", "second"} {
		if err := os.WriteFile(file, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.secret(); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.secret(); err == nil || !strings.HasPrefix(err.Error(), "kafka.sasl.password_file: ") {
		t.Errorf("missing file: %v", err)
	}
}

// A loopback seed may name brokers that are elsewhere, or resolve to elsewhere.
func TestPlaintextDialsOnlyLoopback(t *testing.T) {
	d := loopbackDialer()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("loopback: %v", err)
	}
	c.Close()
	if _, err := d.DialContext(t.Context(), "tcp", "192.0.2.1:9092"); err == nil || !strings.Contains(err.Error(), "refused: not loopback") {
		t.Errorf("elsewhere: %v", err)
	}
}

// Over TLS the client shows its certificate, checks the server's against the
// CA file, and speaks 1.3 only.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, pair, pool := selfSigned(t, dir)
	other := t.TempDir()
	otherCA, _, _, _ := selfSigned(t, other)
	for _, tt := range []struct {
		name     string
		ca       string
		max      uint16
		accepted bool
	}{
		{"1.3", certFile, tls.VersionTLS13, true},
		{"1.2 is refused", certFile, tls.VersionTLS12, false},
		{"a stranger's certificate is refused", otherCA, tls.VersionTLS13, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, handshakes := tlsServer(t, &tls.Config{
				Certificates: []tls.Certificate{pair}, MaxVersion: tt.max, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			})
			cfg := Config{Brokers: []string{addr}, TLS: TLS{Enabled: true, CAFile: tt.ca, CertFile: certFile, KeyFile: keyFile}}
			admin, err := NewAdmin(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			go func() { _ = admin.Ping(ctx) }() // the server is no broker: only the handshake is of interest
			select {
			case err := <-handshakes:
				if (err == nil) != tt.accepted {
					t.Errorf("handshake: %v, want accepted %v", err, tt.accepted)
				}
			case <-ctx.Done():
				t.Error("no handshake")
			}
		})
	}
	_, err := NewAdmin(Config{Brokers: []string{"127.0.0.1:1"}, TLS: TLS{Enabled: true, CAFile: keyFile}})
	if err == nil || !strings.HasPrefix(err.Error(), "kafka.tls.ca_file: ") {
		t.Errorf("a key as CA: %v", err)
	}
	_, err = NewAdmin(Config{Brokers: []string{"127.0.0.1:1"}, TLS: TLS{Enabled: true, CertFile: dir, KeyFile: keyFile}})
	if err == nil || !strings.HasPrefix(err.Error(), "kafka.tls.cert_file: ") {
		t.Errorf("a folder as certificate: %v", err)
	}
}

// tlsServer reports the outcome of its first handshakes.
func tlsServer(t *testing.T, conf *tls.Config) (string, <-chan error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	handshakes := make(chan error, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// The last flight of a 1.3 handshake is the client's verdict on us.
			err = errors.Join(c.(*tls.Conn).Handshake(), firstByte(c))
			c.Close()
			select {
			case handshakes <- err:
			default:
			}
		}
	}()
	return l.Addr().String(), handshakes
}

func firstByte(c net.Conn) error {
	_, err := c.Read(make([]byte, 1))
	return err
}

func selfSigned(t *testing.T, dir string) (certFile, keyFile string, pair tls.Certificate, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := errors.Join(os.WriteFile(certFile, certPEM, 0o600), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, pair, pool
}
