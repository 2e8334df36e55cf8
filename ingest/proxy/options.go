package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Defaults of Options.
const (
	DefaultMaxBodyBytes     = 32 << 20
	DefaultMaxHeaderBytes   = 64 << 10
	DefaultMaxCalls         = 20_000
	DefaultMaxBodiesBytes   = 512 << 20
	DefaultBodyTimeout      = time.Minute
	DefaultAnswerTimeout    = 10 * time.Minute
	DefaultSilenceTimeout   = 5 * time.Minute
	DefaultIdleConnsPerHost = 256
)

// Options configure a Proxy. The zero value of a field means its default.
type Options struct {
	// ProducerID names this proxy in its events; required. ProducerEpoch must be
	// greater than at its last start; default is the time of the start in unix
	// microseconds.
	ProducerID    string
	ProducerEpoch int64
	// Providers are the upstreams; default BuiltinProviders.
	Providers []Provider
	// FailOpen lets calls through while the spool is full. What cannot be kept
	// then is summed up and becomes an event of its own when there is room again.
	// The default refuses calls with 503.
	FailOpen bool
	// MaxBodyBytes bounds a request's body (413), MaxBodiesBytes those in hand
	// together (503), MaxCalls the calls in hand (503), MaxHeaderBytes the headers of
	// a request (431); default 32 MiB, 512 MiB, 20,000 and 64 KiB.
	MaxBodyBytes, MaxBodiesBytes int64
	MaxCalls                     int64
	MaxHeaderBytes               int
	// BodyTimeout is how long a client may take to send a request (408),
	// AnswerTimeout how long a provider to begin its answer (504), SilenceTimeout
	// how long a response may be silent before it is broken off; default 1, 10 and
	// 5 minutes.
	BodyTimeout, AnswerTimeout, SilenceTimeout time.Duration
	// IdleConnsPerHost bounds the idle connections kept to a provider; default 256.
	IdleConnsPerHost int
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Logger gets the few messages there are; nil drops them.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	o.MaxBodyBytes = cmp.Or(o.MaxBodyBytes, DefaultMaxBodyBytes)
	o.MaxBodiesBytes = cmp.Or(o.MaxBodiesBytes, DefaultMaxBodiesBytes)
	o.MaxCalls = cmp.Or(o.MaxCalls, DefaultMaxCalls)
	o.MaxHeaderBytes = cmp.Or(o.MaxHeaderBytes, DefaultMaxHeaderBytes)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, DefaultBodyTimeout)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, DefaultAnswerTimeout)
	o.SilenceTimeout = cmp.Or(o.SilenceTimeout, DefaultSilenceTimeout)
	o.IdleConnsPerHost = cmp.Or(o.IdleConnsPerHost, DefaultIdleConnsPerHost)
	if o.Now == nil {
		o.Now = time.Now
	}
	o.ProducerEpoch = cmp.Or(o.ProducerEpoch, o.Now().UnixMicro())
	if o.Providers == nil {
		o.Providers = BuiltinProviders()
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
			errs = append(errs, fmt.Errorf("proxy.%s: %s", field, want))
		}
	}
	check(o.ProducerID != "" && len(o.ProducerID) <= 128, "producer_id", "must be set and at most 128 bytes")
	check(o.ProducerEpoch > 0, "producer_epoch", "must be positive")
	check(o.MaxBodyBytes > 0 && o.MaxBodyBytes <= o.MaxBodiesBytes, "max_body_bytes", "must be positive and at most max_bodies_bytes")
	check(o.MaxCalls > 0, "max_calls", "must be positive")
	check(o.MaxHeaderBytes > 0, "max_header_bytes", "must be positive")
	check(o.BodyTimeout > 0, "body_timeout", "must be positive")
	check(o.AnswerTimeout > 0, "answer_timeout", "must be positive")
	check(o.SilenceTimeout > 0, "silence_timeout", "must be positive")
	check(o.IdleConnsPerHost > 0, "idle_conns_per_host", "must be positive")
	return errors.Join(append(errs, checkProviders(o.Providers)...)...)
}
