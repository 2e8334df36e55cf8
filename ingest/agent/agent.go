// Package agent is the gateway of GPU agents: hops 1 and 2 for what they
// measure. It takes samples over long-lived gRPC streams, and by single requests
// where a network keeps no stream open, and puts them into the topic
// `telemetry`.
//
// It promises that nobody is let in whose hello was not verified, whatever the
// configuration says: the one thing that speaks for an agent, the type admitted,
// is made in one place, from a proof. That a stream is one agent's of one tenant
// for life, and ends within seconds when the agent is revoked. That a frame is
// acknowledged only after Kafka has it, by epoch and number, so that an agent
// which keeps frames until then loses none, whatever dies. That what is over a
// limit is refused with a delay and counted, and never dropped in silence.
//
// A frame may come to stand in the topic twice (an acknowledgement was lost, an
// agent went back): readers drop what they have by tenant, agent, epoch and
// number. The gateway never looks into a measurement further than its form and
// range, never stores a field that it does not know, and never logs a secret, a
// proof or a sample.
package agent

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Log is where samples go. *kafka.Producer is one.
type Log interface {
	// ProduceBatch appends the records and waits until each is durable or has
	// failed, or ctx ends. results has one place per record. After
	// kafka.ErrUnacked the memory of a record's value is not used again; after
	// every other outcome it is. It may be called by many goroutines.
	ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error
}

// Verifier checks proofs. *agentauth.Peppers is one.
type Verifier interface {
	// Verify returns agentauth.ErrRefused unless mac was made over the message with
	// a secret of the agent. It takes the same steps for every agent, also for one
	// that does not exist. until is when the secret ends; zero when nothing ends it.
	Verify(k agentauth.Key, message, mac []byte) (until time.Time, err error)
}

// Admission says how agents stand that have proved who they are. Errors:
// agentauth.ErrRefused, agentauth.ErrUnavailable.
type Admission interface {
	Standings(ctx context.Context, id tenant.ID, asks []agentauth.Ask) ([]agentauth.Standing, error)
	// UseNonce uses up a nonce; ErrRefused when it was used before.
	UseNonce(ctx context.Context, k agentauth.Key, epoch int64, nonce []byte) (agentauth.Standing, error)
}

// Revocations tells of agents that are not in force any more.
type Revocations interface {
	// Revocations is a number that has changed when any agent was revoked.
	Revocations(ctx context.Context) (int64, error)
	// Revoked returns those of the agents that are not in force. It is at least as
	// new as any number that was read before.
	Revoked(ctx context.Context, id tenant.ID, agents []string) ([]string, error)
}

// Reports keeps what was counted and heard of agents.
type Reports interface {
	// Save writes all reports or none; writing one again changes nothing.
	Save(ctx context.Context, id tenant.ID, run agentauth.Run, reports []agentauth.Report) error
	// SweepNonces forgets a tenant's nonces that no request can use any more.
	SweepNonces(ctx context.Context, id tenant.ID) (int64, error)
}

// Register is the register of agents. *agentauth.Register is one.
type Register interface {
	Admission
	Revocations
	Reports
}

// Gateway takes telemetry. Make one with New, serve it with Serve, and keep Run
// going as long. All methods may be called from many goroutines.
type Gateway struct {
	opts     Options
	log      *slog.Logger
	register Register
	verifier Verifier
	batches  *batcher
	asks     *lookups
	limits   *limits
	stopping chan struct{} // closed when streams are to end

	mu        sync.Mutex // protects what follows
	agents    map[agentauth.Key]*producer
	nonces    map[tenant.ID]time.Time // when a tenant last used one
	stopOnce  sync.Once
	stats     stats
	frames    sync.Pool // of *frame
	values    sync.Pool // of *[]byte: the values of records
	complaint rate.Sometimes
}

// stats are totals since the gateway was made.
type stats struct {
	streams, admitted, refusedHellos, unaries              atomic.Int64
	acceptedFrames, acceptedSamples, duplicates            atomic.Int64
	refusedSamples, delayedFrames, unavailable, refusedIPs atomic.Int64
}

// Stats are totals since the gateway was made.
type Stats struct {
	// Streams is how many agents are connected now.
	Streams int64
	// Admitted and RefusedHellos count hellos and single requests.
	Admitted, RefusedHellos int64
	// AcceptedFrames are in Kafka, with AcceptedSamples. DuplicateFrames came again
	// after they were acknowledged.
	AcceptedFrames, AcceptedSamples, DuplicateFrames int64
	// RefusedSamples broke a rule, for ever; DelayedFrames were over a limit and
	// UnavailableFrames not durable in time: these come again.
	RefusedSamples, DelayedFrames, UnavailableFrames int64
	// RefusedConnections were over the limit of their source address.
	RefusedConnections int64
}

// New makes a gateway. The error names the wrong options.
func New(log Log, verifier Verifier, register Register, opts Options) (*Gateway, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{
		opts: opts, log: opts.Logger, register: register, verifier: verifier,
		batches: newBatcher(log, opts), limits: newLimits(opts), stopping: make(chan struct{}),
		agents: map[agentauth.Key]*producer{}, nonces: map[tenant.ID]time.Time{},
		complaint: rate.Sometimes{Interval: time.Second},
	}
	g.asks = newLookups(register.Standings)
	g.frames.New = func() any { return new(frame) }
	g.values.New = func() any { return new([]byte) }
	return g, nil
}

// Stats returns the totals.
func (g *Gateway) Stats() Stats {
	s := &g.stats
	return Stats{
		Streams: s.streams.Load(), Admitted: s.admitted.Load(), RefusedHellos: s.refusedHellos.Load(),
		AcceptedFrames: s.acceptedFrames.Load(), AcceptedSamples: s.acceptedSamples.Load(), DuplicateFrames: s.duplicates.Load(),
		RefusedSamples: s.refusedSamples.Load(), DelayedFrames: s.delayedFrames.Load(), UnavailableFrames: s.unavailable.Load(),
		RefusedConnections: s.refusedIPs.Load(),
	}
}

// Run carries frames to Kafka, looks for revoked agents and writes reports until
// ctx ends; what waits for Kafka is settled then, and the last reports are
// written. Call it beside Serve, and end it after it.
func (g *Gateway) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	carry, stopCarrying := context.WithCancel(context.WithoutCancel(ctx))
	for range g.opts.Producers {
		parts.Go(func() { g.batches.run(carry) })
	}
	watch := time.NewTicker(g.opts.RevocationInterval)
	defer watch.Stop()
	report := time.NewTicker(g.opts.ReportInterval)
	defer report.Stop()
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for _, id := range g.opts.Tenants() { // what an earlier run has left
		g.nonceUsed(id)
	}
	seen := int64(-1)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-watch.C:
			seen = g.watch(ctx, seen)
		case <-report.C:
			g.Flush(ctx)
		case <-sweep.C:
			g.sweepNonces(ctx)
		}
	}
	stopCarrying()
	parts.Wait()
	g.Flush(context.WithoutCancel(ctx))
	return nil
}

// stop has every stream settle what it has in flight and end.
func (g *Gateway) stop() { g.stopOnce.Do(func() { close(g.stopping) }) }

// complain logs that something has failed and is tried again, once a second.
func (g *Gateway) complain(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		g.complaint.Do(func() { g.log.WarnContext(ctx, what, "err", err) })
	}
}
