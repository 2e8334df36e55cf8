package ingest

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
)

// Limits of a request. They are part of the API.
const (
	// MaxBodyBytes bounds a request's body, as sent and again decompressed.
	MaxBodyBytes = 4 << 20
	// MaxEvents bounds the events of one request or one frame of a stream.
	MaxEvents = 1000
)

// Defaults of Options.
const (
	DefaultPartitions       = 12
	DefaultDeadline         = 10 * time.Second
	DefaultBodyTimeout      = 15 * time.Second
	DefaultMaxFuture        = 10 * time.Minute
	DefaultMaxAge           = 400 * 24 * time.Hour
	DefaultMaxInFlight      = 64
	DefaultMaxInFlightBytes = 256 << 20
	DefaultCountersInterval = 10 * time.Second
	DefaultMaxCachedTenants = 50_000
	DefaultMaxProducers     = 20_000
)

// Options configure an Edge. The zero value of a field means its default.
type Options struct {
	// Topic is the full name of the topic events; required.
	Topic string
	// Partitions is how many that topic has; default 12.
	Partitions int32
	// Deadline is how long a request waits for Kafka's acknowledgement before
	// its events are reported as unavailable; default 10 s.
	Deadline time.Duration
	// BodyTimeout is how long a client may take to send a body; default 15 s.
	BodyTimeout time.Duration
	// MaxFuture and MaxAge bound occurred_at against the edge's clock; default
	// 10 minutes ahead and 400 days back.
	MaxFuture time.Duration
	MaxAge    time.Duration
	// Lenient drops unknown fields where a request does not say itself what to
	// do with them; the default refuses them. They are never stored.
	Lenient bool
	// MaxInFlight and MaxInFlightBytes bound the requests that are worked on at
	// once and the bytes of their bodies; default 64 and 256 MiB. What is over
	// them gets 503 at once.
	MaxInFlight      int
	MaxInFlightBytes int64
	// Confidential is asked for the tags that are to be sealed; nil when no
	// tenant can have any. While it does not answer, events with tags are
	// refused as unavailable: an edge that does not know may not store them.
	Confidential Confidential
	// Mapping is asked for the rules that say whom calls are for; nil when no
	// tenant can have any.
	Mapping Mapping
	// EdgeID names this instance in the producer counters; required. EdgeEpoch
	// must be greater than at its last start; default is the time of the start
	// in unix microseconds.
	EdgeID    string
	EdgeEpoch int64
	// CountersInterval is how often producer counters are sent; default 10 s.
	CountersInterval time.Duration
	// MaxCachedTenants and MaxProducers bound the memory for tenants' keys and
	// for producers' counters; default 50,000 and 20,000. Producers beyond the
	// bound share one counter per tenant.
	MaxCachedTenants int
	MaxProducers     int
	// Denied is told who tried what it may not: to send events without the scope
	// for it, or for a tenant that is not its own. It must not wait; nil is nobody.
	Denied func(p authn.Principal, from authn.Peer, reason string)
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Logger gets the few messages there are; nil drops them.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Partitions = cmp.Or(o.Partitions, DefaultPartitions)
	o.Deadline = cmp.Or(o.Deadline, DefaultDeadline)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, DefaultBodyTimeout)
	o.MaxFuture = cmp.Or(o.MaxFuture, DefaultMaxFuture)
	o.MaxAge = cmp.Or(o.MaxAge, DefaultMaxAge)
	o.MaxInFlight = cmp.Or(o.MaxInFlight, DefaultMaxInFlight)
	o.MaxInFlightBytes = cmp.Or(o.MaxInFlightBytes, DefaultMaxInFlightBytes)
	o.CountersInterval = cmp.Or(o.CountersInterval, DefaultCountersInterval)
	o.MaxCachedTenants = cmp.Or(o.MaxCachedTenants, DefaultMaxCachedTenants)
	o.MaxProducers = cmp.Or(o.MaxProducers, DefaultMaxProducers)
	if o.Now == nil {
		o.Now = time.Now
	}
	o.EdgeEpoch = cmp.Or(o.EdgeEpoch, o.Now().UnixMicro())
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
			errs = append(errs, fmt.Errorf("ingest.%s: %s", field, want))
		}
	}
	check(o.Topic != "", "topic", "must be set")
	check(o.EdgeID != "" && len(o.EdgeID) <= 128, "edge_id", "must be set and at most 128 bytes")
	check(o.Partitions > 0, "partitions", "must be positive")
	check(o.Deadline > 0, "deadline", "must be positive")
	check(o.BodyTimeout > 0, "body_timeout", "must be positive")
	check(o.MaxFuture > 0, "max_future", "must be positive")
	check(o.MaxAge > 0, "max_age", "must be positive")
	check(o.MaxInFlight > 0, "max_in_flight", "must be positive")
	check(o.MaxInFlightBytes >= 2*MaxBodyBytes, "max_in_flight_bytes", "must hold at least one request (8 MiB)")
	check(o.CountersInterval > 0, "counters_interval", "must be positive")
	check(o.MaxCachedTenants > 0, "max_cached_tenants", "must be positive")
	check(o.MaxProducers > 0, "max_producers", "must be positive")
	check(o.EdgeEpoch > 0, "edge_epoch", "must be positive")
	return errors.Join(errs...)
}
