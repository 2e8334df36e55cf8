// Package ingest is the edge: hops 1 and 2 of the life of an event. It takes
// events by HTTP and gRPC, authenticates the caller, validates each event,
// stamps it, takes the person out of it, seals what is confidential and puts it
// into the topic `events`.
//
// It promises that an event it reports as accepted was acknowledged by Kafka,
// that every other event is answered with the field and the rule it broke or
// with "unavailable", and that a bad event never stops its neighbours. What it
// refuses it counts, per producer and reason, and the counts go to the ledger.
// Memory is bounded: a request over the limits is refused, never queued.
//
// It never decides about duplicates, prices or sequence numbers (hop 3 does),
// never stores a field it does not know, and never repeats what was in a field
// in an answer or a log, with the exception of a valid event id.
package ingest

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Log is where accepted events go. *kafka.Producer is one.
type Log interface {
	// ProduceBatch appends the records and waits until each is durable or has
	// failed, or ctx ends. results has one place per record. After
	// kafka.ErrUnacked the memory of a record's value is not used again; after
	// every other outcome it is. It may be called by many goroutines.
	ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error
}

// Keys derives the keys of tenants. *keyring.Ring is one.
type Keys interface {
	// Derive returns keyring.ErrNoKey for an unknown tenant. Any other error
	// means that the tenant cannot be served now. It may be called by many
	// goroutines; what it returned once for a tenant stays right for ever.
	Derive(id tenant.ID, purpose keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error)
	// Epoch is the active epoch of a purpose, 0 when its root is destroyed: within
	// a second the tenant is like an unknown one for whoever sends.
	Epoch(id tenant.ID, purpose keyring.Purpose) uint32
	// Seal encrypts plaintext for one place of the tenant and appends it to dst.
	// Every error means that the tenant cannot be served now.
	Seal(dst []byte, id tenant.ID, purpose keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error)
}

// Confidential knows which tags tenants keep confidential. Its methods may be
// called by many goroutines and obey ctx.
type Confidential interface {
	// Version is a number that has changed when any tenant's setting has.
	Version(ctx context.Context) (int64, error)
	// TagKeys are the keys of the tenant's confidential tags, nil when it has
	// none. They are at least as new as any Version that was read before.
	TagKeys(ctx context.Context, id tenant.ID) ([]string, error)
}

// Authenticator verifies bearer tokens. *authn.Static is one.
type Authenticator interface {
	// Authenticate returns authn.ErrUnauthenticated for a token it does not know.
	Authenticate(ctx context.Context, token string) (authn.Principal, error)
}

// Edge accepts events. Make one with New, serve Handler and RegisterGRPC, and
// keep Run going. All methods may be called from many goroutines.
type Edge struct {
	log     Log
	auth    Authenticator
	opts    Options
	logger  *slog.Logger
	tenants *tenants
	conf    confidential
	rules   mappings
	persons persons
	counts  *counters
	gate    *gate
	quiet   rate.Sometimes // for the log messages about unavailability

	accepted    atomic.Int64
	refused     atomic.Int64
	unavailable atomic.Int64

	frames sync.Pool // of *frame
	bodies sync.Pool // of *body
}

// New makes an edge. The error names the wrong options.
func New(log Log, keys Keys, auth Authenticator, opts Options) (*Edge, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	e := &Edge{
		log: log, auth: auth, opts: opts, logger: opts.Logger,
		tenants: newTenants(keys, opts.Partitions, opts.MaxCachedTenants),
		gate:    newGate(opts.MaxInFlight, opts.MaxInFlightBytes),
		conf:    confidential{src: opts.Confidential, now: opts.Now},
		rules:   mappings{src: opts.Mapping, now: opts.Now},
		quiet:   rate.Sometimes{Interval: time.Second},
	}
	e.counts = newCounters(opts)
	e.frames.New = func() any { return newFrame(e) }
	e.bodies.New = func() any { return new(body) }
	return e, nil
}

// Stats are totals since the edge was made.
type Stats struct {
	// Accepted events are durable in Kafka.
	Accepted int64
	// Refused events were answered with a rule that they broke.
	Refused int64
	// Unavailable events could not be made durable; their producers were told
	// to send them again. They are not part of Refused.
	Unavailable int64
	// InFlight is how many requests are being worked on.
	InFlight int
}

// Stats returns the totals.
func (e *Edge) Stats() Stats {
	return Stats{
		Accepted: e.accepted.Load(), Refused: e.refused.Load(),
		Unavailable: e.unavailable.Load(), InFlight: e.gate.inFlight(),
	}
}

// Run keeps the tenants' confidential tags and mapping rules fresh and sends the producer
// counters every Options.CountersInterval until ctx ends, and once more then. It returns nil: a send that fails is repeated with
// the next one, because counters are cumulative. Call it after the servers
// have stopped to have the last counts, or beside them; both is safe.
func (e *Edge) Run(ctx context.Context) error {
	tick := time.NewTicker(e.opts.CountersInterval)
	defer tick.Stop()
	ask := time.NewTicker(confidentialRefresh)
	defer ask.Stop()
	for {
		select {
		case <-ctx.Done():
			e.FlushCounters(context.WithoutCancel(ctx))
			return nil
		case <-ask.C:
			e.askConfidential(ctx)
			e.askMapping(ctx)
		case <-tick.C:
			e.FlushCounters(ctx)
		}
	}
}

// FlushCounters sends the counters that have changed since they were last
// sent. It returns whether all of them are durable.
func (e *Edge) FlushCounters(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, e.opts.Deadline)
	defer cancel()
	err := e.counts.flush(ctx, e.log, e.opts.Now())
	if err != nil {
		e.quiet.Do(func() { e.logger.WarnContext(ctx, "ingest: producer counters are not durable yet", "err", err) })
	}
	return err == nil
}

// caller is on whose behalf a frame of events is sent.
type caller struct {
	principal authn.Principal
	peer      authn.Peer
	// tenant is used for events that name none; empty when there is no default.
	tenant  string
	lenient bool
}

// countsFor is the tenant under which what cannot be attributed to an event's
// own tenant is counted: the caller's, if it exists, else the system chain of
// partition 0.
func (e *Edge) countsFor(c caller) tenant.ID {
	if id := tenant.ID(c.tenant); c.tenant != "" && c.principal.May(id) {
		if _, err := e.tenants.get(c.tenant); err == nil {
			return id
		}
	}
	return tenant.System(0)
}

// refuseRequest counts a request that was refused as a whole.
func (e *Edge) refuseRequest(c caller, reason string) {
	e.refused.Add(1)
	e.counts.refuse(e.countsFor(c), "", reason, 1)
}
