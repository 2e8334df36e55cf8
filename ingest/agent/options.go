package agent

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/transport"
)

// Limits of the protocol. They are told in the answer to a hello.
const (
	// MaxSamples bounds the samples of a frame.
	MaxSamples = 1000
	// MaxFrameBytes bounds a frame; a record made of it fits into every Kafka.
	MaxFrameBytes = 768 << 10
	// MaxWorkloads bounds what one sample lists.
	MaxWorkloads = 64
	// ClockWindow is how far the clock of a request without a stream may be off.
	ClockWindow = 300 * time.Second

	maxHelloBytes     = 4 << 10
	maxInventoryBytes = 512 << 10
	maxDevices        = 256
	maxLostReasons    = 32
	maxInterval       = 24 * time.Hour // of one sample
)

// Defaults of Options.
const (
	DefaultListen           = "127.0.0.1:50051"
	DefaultPartitions       = 12
	DefaultTenantRate       = 50_000
	DefaultStreamRate       = 5_000
	DefaultPerAddress       = 256
	DefaultMaxConnections   = 20_000
	DefaultWindow           = 32
	DefaultProducers        = 4
	DefaultMaxInFlightBytes = 64 << 20
	DefaultDeadline         = 10 * time.Second
	DefaultHelloTimeout     = 10 * time.Second
	DefaultHeartbeat        = 30 * time.Second
	DefaultRevocation       = time.Second
	DefaultReport           = 2 * time.Second
	DefaultMaxFuture        = gpu.MaxAhead
	DefaultMaxAge           = gpu.DefaultMaxAge

	sweepInterval = time.Minute
	// forgetAfter is how long an agent that has gone is remembered.
	forgetAfter = 10 * time.Minute
	// staleLife is how long an agent that was in force is still let in while the
	// register cannot be asked. It proves itself all the same.
	staleLife = 5 * time.Minute
	// burstSeconds of a rate may come at once.
	burstSeconds = 2
)

// Options configure a Gateway. The zero value of a field means its default.
// There is none that lets an agent in without a proof, and none may be added: a
// test tries every field.
type Options struct {
	// Topic is the full name of the topic telemetry; required.
	Topic string
	// Partitions is how many that topic has; default 12.
	Partitions int32
	// GatewayID names this instance in records and reports; required. Epoch must be
	// greater than at its last start; default is the time of the start in unix
	// microseconds.
	GatewayID string
	Epoch     int64

	// TLS of the listener, TLS 1.3 only; with client certificates if they are
	// asked for. nil serves plaintext, on loopback connections only.
	TLS *tls.Config

	// TenantRate and StreamRate bound the samples per second of a tenant and of an
	// agent; default 50,000 and 5,000. Two seconds' worth may come at once, and
	// always a whole frame.
	TenantRate, StreamRate int
	// PerAddress bounds the connections of one source address (an IPv6 /64), and
	// MaxConnections those of all; default 256 and 20,000.
	PerAddress, MaxConnections int
	// Window bounds the frames of one stream that wait for Kafka, and
	// MaxInFlightBytes the bytes of all; default 32 and 64 MiB. Then agents are
	// held back by flow control.
	Window           int
	MaxInFlightBytes int64
	// Producers is how many batches go to Kafka at once; default 4.
	Producers int

	// Deadline is how long a frame waits for Kafka; default 10 s.
	Deadline time.Duration
	// HelloTimeout is how long an agent may take to answer the challenge; 10 s.
	HelloTimeout time.Duration
	// Heartbeat is how often agents are asked to send one; default 30 s.
	Heartbeat time.Duration
	// RevocationInterval is how often revoked agents are looked for; default 1 s.
	RevocationInterval time.Duration
	// ReportInterval is how often reports are written; default 2 s.
	ReportInterval time.Duration
	// MaxFuture and MaxAge bound the end of a sample against the gateway's clock;
	// default 10 minutes ahead and 35 days back. What processors/gputime would not
	// account for must be refused here, where its agent hears of it and counts it.
	MaxFuture, MaxAge time.Duration

	// MaxGap is the longest time that a sample is accounted for, as processors/gputime
	// has it: agents are told it in the answer to a hello. 0 tells nothing.
	MaxGap time.Duration

	// Served says whether a tenant can be served; nil serves all. Streams of one
	// that cannot any more end like those of a revoked agent.
	Served func(id tenant.ID) bool
	// Tenants lists those whose old nonces are looked for at the start; nil is none.
	Tenants func() []tenant.ID
	// Admitted and Denied are told who was let in, and who was refused and claimed
	// what. They must not wait; nil is nobody.
	Admitted func(id tenant.ID, agent string, from authn.Peer)
	Denied   func(from authn.Peer, reason string)
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Logger gets the few messages there are; nil drops them.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Partitions = cmp.Or(o.Partitions, DefaultPartitions)
	o.TenantRate = cmp.Or(o.TenantRate, DefaultTenantRate)
	o.StreamRate = cmp.Or(o.StreamRate, DefaultStreamRate)
	o.PerAddress = cmp.Or(o.PerAddress, DefaultPerAddress)
	o.MaxConnections = cmp.Or(o.MaxConnections, DefaultMaxConnections)
	o.Window = cmp.Or(o.Window, DefaultWindow)
	o.Producers = cmp.Or(o.Producers, DefaultProducers)
	o.MaxInFlightBytes = cmp.Or(o.MaxInFlightBytes, DefaultMaxInFlightBytes)
	o.Deadline = cmp.Or(o.Deadline, DefaultDeadline)
	o.HelloTimeout = cmp.Or(o.HelloTimeout, DefaultHelloTimeout)
	o.Heartbeat = cmp.Or(o.Heartbeat, DefaultHeartbeat)
	o.RevocationInterval = cmp.Or(o.RevocationInterval, DefaultRevocation)
	o.ReportInterval = cmp.Or(o.ReportInterval, DefaultReport)
	o.MaxFuture = cmp.Or(o.MaxFuture, DefaultMaxFuture)
	o.MaxAge = cmp.Or(o.MaxAge, DefaultMaxAge)
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Epoch = cmp.Or(o.Epoch, o.Now().UnixMicro())
	if o.Served == nil {
		o.Served = func(tenant.ID) bool { return true }
	}
	if o.Tenants == nil {
		o.Tenants = func() []tenant.ID { return nil }
	}
	if o.Admitted == nil {
		o.Admitted = func(tenant.ID, string, authn.Peer) {}
	}
	if o.Denied == nil {
		o.Denied = func(authn.Peer, string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate reports every wrong field at once, each by its name.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("agent.%s: %s", field, want))
		}
	}
	check(o.Topic != "", "topic", "must be set")
	check(o.GatewayID != "" && len(o.GatewayID) <= 128, "gateway_id", "must be set and at most 128 bytes")
	check(o.Epoch > 0, "epoch", "must be positive")
	check(o.Partitions > 0, "partitions", "must be positive")
	check(o.TLS == nil || o.TLS.MinVersion >= transport.Version, "tls", "must be TLS 1.3 only")
	check(o.TenantRate > 0, "tenant_rate", "must be positive")
	check(o.StreamRate > 0, "stream_rate", "must be positive")
	check(o.PerAddress > 0, "per_address", "must be positive")
	check(o.MaxConnections > 0, "max_connections", "must be positive")
	check(o.Window > 0, "window", "must be positive")
	check(o.Producers > 0, "producers", "must be positive")
	check(o.MaxInFlightBytes >= 2*MaxFrameBytes, "max_in_flight_bytes", "must hold two frames (1.5 MiB)")
	check(o.MaxGap >= 0, "max_gap", "must not be negative")
	for name, d := range map[string]time.Duration{
		"deadline": o.Deadline, "hello_timeout": o.HelloTimeout, "heartbeat": o.Heartbeat, "revocation_interval": o.RevocationInterval,
		"report_interval": o.ReportInterval, "max_future": o.MaxFuture, "max_age": o.MaxAge,
	} {
		check(d > 0, name, "must be positive")
	}
	return errors.Join(errs...)
}
