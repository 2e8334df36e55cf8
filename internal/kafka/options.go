package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// SASL mechanisms that are spoken.
const (
	MechanismPlain       = "PLAIN"
	MechanismScramSHA256 = "SCRAM-SHA-256"
	MechanismScramSHA512 = "SCRAM-SHA-512"
)

// DefaultClientID names this product in the brokers' logs and quotas.
const DefaultClientID = "tallystick"

// Connection timings. They bound how soon a dead broker is noticed, not how
// long an operation is retried: that is the caller's context.
const (
	dialTimeout        = 5 * time.Second
	metadataMinAge     = 250 * time.Millisecond
	requestRetryWindow = 15 * time.Second
)

// TLS is how the connection to the brokers is protected. Only TLS 1.3 is
// spoken. CertFile and KeyFile are read again on every connection, so a renewed
// client certificate needs no restart.
type TLS struct {
	Enabled bool
	// CAFile is a PEM bundle that replaces the system's roots; empty keeps them.
	CAFile string
	// CertFile and KeyFile are the client certificate (mTLS); both or neither.
	CertFile string
	KeyFile  string
	// ServerName replaces the broker's host name in verification.
	ServerName string
}

// SASL is who we are to the brokers. An empty Mechanism means no SASL.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
	Mechanism string
	Username  string
	// PasswordFile is read again on every authentication, so a rotated password
	// needs no restart; a trailing line break is dropped.
	PasswordFile string
	// Password is for configurations that give it by the environment; exactly
	// one of Password and PasswordFile is set.
	Password string
}

// String hides the password from %v and slog.
func (s SASL) String() string { return fmt.Sprintf("{%s %s ***}", s.Mechanism, s.Username) }

// GoString hides the password from %#v.
func (s SASL) GoString() string { return s.String() }

// LogValue hides the password from slog's JSON handler.
func (s SASL) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Config is how to reach one Kafka cluster. It is a plain value: copy it freely.
type Config struct {
	// Brokers are "host:port" seeds; the others are discovered from them.
	Brokers []string
	TLS     TLS
	SASL    SASL
	// ClientID is [DefaultClientID] when empty.
	ClientID string
	// TopicPrefix is put before the four topic names, so that several
	// installations or tests share a cluster.
	TopicPrefix string
	// AllowPlaintext lifts the rule that plaintext is spoken to loopback only.
	AllowPlaintext bool
	// Logger gets the client's own messages; nil drops them.
	Logger *slog.Logger

	// dial replaces the network in tests that cut it.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// prefixForm keeps full topic names inside Kafka's alphabet and 249 bytes.
var prefixForm = regexp.MustCompile(`^[a-zA-Z0-9._-]{0,200}$`)

// Topics are the four names with the prefix.
func (c Config) Topics() Topics {
	return Topics{
		Events:     c.TopicPrefix + "events",
		Telemetry:  c.TopicPrefix + "telemetry",
		Entries:    c.TopicPrefix + "entries",
		DeadLetter: c.TopicPrefix + "deadletter",
	}
}

// Validate reports every wrong field at once, each by its name.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("kafka.%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if len(c.Brokers) == 0 {
		bad("brokers", "at least one host:port is needed")
	}
	for _, b := range c.Brokers {
		host, port, err := net.SplitHostPort(b)
		switch {
		case err != nil || host == "" || port == "":
			bad("brokers", "%q is not host:port", b)
		case !c.TLS.Enabled && !c.AllowPlaintext && !isLoopback(host):
			bad("brokers", "%q is not loopback and TLS is off; enable kafka.tls, or set kafka.allow_plaintext on a network you trust", b)
		}
	}
	if !prefixForm.MatchString(c.TopicPrefix) {
		bad("topic_prefix", "%q must be at most 200 of a-z A-Z 0-9 . _ -", c.TopicPrefix)
	}
	c.TLS.validate(bad)
	c.SASL.validate(bad)
	return errors.Join(errs...)
}

func (t TLS) validate(bad func(field, format string, args ...any)) {
	if !t.Enabled {
		if t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" || t.ServerName != "" {
			bad("tls.enabled", "is false but other tls fields are set")
		}
		return
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		bad("tls.cert_file", "cert_file and key_file go together")
	}
}

func (s SASL) validate(bad func(field, format string, args ...any)) {
	switch s.Mechanism {
	case "":
		if s.Username != "" || s.Password != "" || s.PasswordFile != "" {
			bad("sasl.mechanism", "is empty but other sasl fields are set")
		}
		return
	case MechanismPlain, MechanismScramSHA256, MechanismScramSHA512:
	default:
		bad("sasl.mechanism", "%q is not one of %s, %s, %s", s.Mechanism, MechanismPlain, MechanismScramSHA256, MechanismScramSHA512)
	}
	if s.Username == "" {
		bad("sasl.username", "is needed with a mechanism")
	}
	if (s.Password == "") == (s.PasswordFile == "") {
		bad("sasl.password_file", "exactly one of password_file and password is needed")
	}
}

// Options are the client options that every producer, reader and admin shares.
// It reads the CA file, and fails with the field's name when that is not
// readable or not a certificate.
func (c Config) Options() ([]kgo.Opt, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	id := c.ClientID
	if id == "" {
		id = DefaultClientID
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(id),
		kgo.WithLogger(clientLog{orDiscard(c.Logger)}),
		kgo.DialTimeout(dialTimeout),
		kgo.MetadataMinAge(metadataMinAge),
		kgo.RetryTimeout(requestRetryWindow),
		kgo.DisableClientMetrics(),
	}
	switch {
	case c.dial != nil:
		opts = append(opts, kgo.Dialer(c.dial))
	case c.TLS.Enabled:
		conf, err := c.TLS.clientConfig()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(conf))
	case !c.AllowPlaintext:
		opts = append(opts, kgo.Dialer(loopbackDialer().DialContext))
	}
	if c.SASL.Mechanism != "" {
		opts = append(opts, kgo.SASL(c.SASL.mechanism()))
	}
	return opts, nil
}

// client makes a client with the shared options and then extra.
func (c Config) client(extra ...kgo.Opt) (*kgo.Client, error) {
	opts, err := c.Options()
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append(opts, extra...)...)
}

func (t TLS) clientConfig() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("kafka.tls.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("kafka.tls.ca_file: no certificate in %s", t.CAFile)
		}
	}
	if t.CertFile == "" {
		return conf, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("kafka.tls.cert_file: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return conf, nil
}

// secret is the password as of now.
func (s SASL) secret() (string, error) {
	if s.PasswordFile == "" {
		return s.Password, nil
	}
	b, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("kafka.sasl.password_file: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func (s SASL) mechanism() sasl.Mechanism {
	if s.Mechanism == MechanismPlain {
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			pass, err := s.secret()
			return plain.Auth{User: s.Username, Pass: pass}, err
		})
	}
	auth := func(context.Context) (scram.Auth, error) {
		pass, err := s.secret()
		return scram.Auth{User: s.Username, Pass: pass}, err
	}
	if s.Mechanism == MechanismScramSHA512 {
		return scram.Sha512(auth)
	}
	return scram.Sha256(auth)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// loopbackDialer refuses every address outside loopback at the moment of
// connecting: a loopback seed may advertise brokers that are somewhere else,
// and "localhost" may resolve to anything.
func loopbackDialer() *net.Dialer {
	return &net.Dialer{
		Timeout: dialTimeout,
		Control: func(_, address string, _ syscall.RawConn) error {
			host, _, err := net.SplitHostPort(address)
			if err != nil || !isLoopback(host) {
				return fmt.Errorf("kafka: plaintext to %s refused: not loopback and TLS is off", address)
			}
			return nil
		},
	}
}
