// Package proxy is the metering proxy: the base URL that clients of OpenAI,
// Anthropic, Gemini, Vertex, Bedrock and OpenAI-compatible providers are pointed
// at. It authenticates the caller by our own token, decides whether the call may
// go, puts the tenant's provider key in, forwards it, and reads what the call
// used out of a copy of the response.
//
// Promises:
//   - The client gets the provider's bytes, unchanged and as they come: each chunk
//     of a stream is passed on before the next is read.
//   - Every call of a metered endpoint that was authenticated makes exactly one
//     event, also one that was blocked, killed, refused by the provider or broken
//     off. A background response makes its one event when it is read and over, and
//     the same one whenever it is read again; so does each line of a batch's results.
//     A call of which something arrived is
//     never an event of 0 tokens in silence: what the provider did not state is
//     counted or estimated and says so.
//   - The end of a response (its last bytes, the event by which a stream says that
//     it is over, or the terminator of a chunked body) is released only when the
//     call's event is kept by the Sink. Killing the process loses no usage of a
//     call that its client saw finished.
//   - Nothing is sent twice: retries are the client's. When either side goes, so
//     does the other.
//   - Prompts, answers and provider keys are in memory while they pass, and nowhere
//     else: not in events, errors, logs. Under Capture a keyed digest of the prompt
//     is in the event.
//
// It never changes a request's body, never chooses a model and never caches an
// answer; of answers it changes one thing, the address of a batch's results (near.go).
// Requests to endpoints that use no tokens (listings, files that are no
// results) pass without an event.
package proxy

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tallystick/tallystick/ingest/usage"
	"github.com/tallystick/tallystick/internal/authn"
)

// Parts are what a Proxy is made of. Those that may be nil say so.
type Parts struct {
	// Auth knows our API tokens.
	Auth authn.Authenticator
	// Sink keeps events; Room says whether it has room, nil is always.
	Sink Sink
	Room Room
	// Keys are the providers' keys.
	Keys Keys
	// Rules, Switch, Limits, Budgets, Capture, Pricer and Metered may each be nil: the
	// caller says whom a call is for, and nothing is killed, limited, reserved, digested,
	// priced or told then.
	Rules   Rules
	Switch  Switch
	Limits  Limits
	Budgets Budgets
	Capture Capture
	Pricer  Pricer
	Metered Metered
	// Digester computes digests for Capture; nil exactly when Capture is.
	Digester Digester
	// Upstream sends requests to the providers of Options, Foreign those to a base
	// that a tenant set; it must refuse addresses that are not for tenants. nil is
	// NewUpstream's, and nowhere.
	Upstream, Foreign http.RoundTripper
}

// Proxy is an http.Handler. Make one with New; all methods may be called from
// many goroutines. Keep Run going beside the server.
type Proxy struct {
	parts  Parts
	opts   Options
	routes routes
	seq    atomic.Int64
	calls  atomic.Int64 // in hand
	bytes  atomic.Int64 // of request bodies in hand
	// prompts are bytes of requests that are held until their usage is known.
	prompts atomic.Int64
	gaps    gaps
	batches batches
	parked  atomic.Int64 // streams, at least once
	waits   waits
	quiet   rate.Sometimes // for the log messages about a sink that fails

	done, refused, truncated atomic.Int64

	exchanges sync.Pool // of *exchange
	asks      sync.Pool // of *usage.RequestReader
	buffers   [2]sync.Pool
}

// Stats are totals since the proxy was made.
type Stats struct {
	// Calls were metered, and lines of batches, of which Refused never went upstream
	// and Truncated were broken off. InFlight is how many are in hand.
	Calls, Refused, Truncated, InFlight int64
	// Gap is how many events wait outside the spool because it did not take them.
	Gap int64
	// Parked is how many streams in hand were silent for so long that they were
	// parked.
	Parked int64
}

// New makes a proxy. The error names the wrong options.
func New(parts Parts, opts Options) (*Proxy, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if parts.Auth == nil || parts.Sink == nil || parts.Keys == nil || (parts.Capture == nil) != (parts.Digester == nil) {
		return nil, errors.New("proxy: Auth, Sink and Keys are required, and Capture and Digester go together")
	}
	if parts.Upstream == nil {
		parts.Upstream = NewUpstream(opts, nil)
	}
	p := &Proxy{parts: parts, opts: opts, routes: newRoutes(opts.Providers), quiet: rate.Sometimes{Interval: time.Second}}
	p.asks.New = func() any { return usage.NewRequestReader() }
	p.exchanges.New = func() any { return newExchange(p) }
	p.buffers[small].New = func() any { b := make([]byte, smallBuffer); return &b }
	p.buffers[large].New = func() any { b := make([]byte, largeBuffer); return &b }
	return p, nil
}

// Stats returns the totals.
func (p *Proxy) Stats() Stats {
	return Stats{
		Calls: p.done.Load(), Refused: p.refused.Load(), Truncated: p.truncated.Load(),
		InFlight: p.calls.Load(), Gap: p.gaps.waiting(), Parked: p.parked.Load(),
	}
}

// Run submits what the Sink did not take at once, until ctx ends and once more
// then, and has silent streams parked meanwhile. End it after the server, and before
// the Sink. It returns nil.
func (p *Proxy) Run(ctx context.Context) error {
	tick := time.NewTicker(gapInterval)
	defer tick.Stop()
	sweep := time.NewTicker(parkAfter / 2)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			p.flushGaps(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
			p.flushGaps(ctx)
		case now := <-sweep.C:
			p.waits.sweep(now.Add(-parkAfter))
		}
	}
}

// ServeHTTP forwards one call.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == ReadyPath {
		p.ready(w)
		return
	}
	x := p.exchanges.Get().(*exchange)
	ended := false
	defer func() {
		if !ended { // a fault of ours must not cost a place among MaxCalls for ever
			x.release()
		}
	}()
	err := x.serve(w, r)
	ended = true
	if errors.Is(err, errParked) {
		return
	}
	x.release()
	p.exchanges.Put(x)
	if err != nil {
		panic(http.ErrAbortHandler) // the client must see that the response is cut
	}
}
