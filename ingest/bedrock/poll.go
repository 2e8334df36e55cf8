package bedrock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Defaults of a Poller.
const (
	// DefaultInterval is how long after a pass the next one begins.
	DefaultInterval = time.Minute
	// lookInterval is how often it is asked which connections are due.
	lookInterval = 10 * time.Second
	// leaseLife is for one object at a time; renewed while it is read.
	leaseLife = 2 * time.Minute
	// parallelTenants is how many tenants are read at once.
	parallelTenants = 4
	// stallLimit ends the reading of an object of which nothing comes.
	stallLimit = 2 * time.Minute
	// maxPause bounds the pause after passes that failed.
	maxPause = 30 * time.Minute
)

// Poller reads the connections of all tenants. Several processes may run one:
// each connection is read by one of them at a time.
type Poller struct {
	Store    *connections.Store
	Sink     Sink
	Keys     Keys
	Settings Settings
	// Calls is asked before events are made of records; nil is not.
	Calls Calls
	// Tenants lists the tenants.
	Tenants func() []tenant.ID
	// Open opens a connection's source.
	Open func(ctx context.Context, c *connections.Bedrock) (Source, error)
	// Interval is the pause between passes; 0 is DefaultInterval.
	Interval time.Duration
	Log      *slog.Logger // nil discards

	owner uuid.UUID
	lease time.Duration

	version int64       // of the connections that reading is made of
	reading []tenant.ID // tenants with a connection to read
}

// Run reads until ctx ends; an object in hand is given up then and read again by
// whoever comes next.
func (p *Poller) Run(ctx context.Context) error {
	p.begin()
	tick := time.NewTicker(min(lookInterval, p.Interval))
	defer tick.Stop()
	for {
		if err := p.look(ctx); err != nil && ctx.Err() == nil {
			p.Log.Warn("bedrock: connections cannot be looked for", "err", err)
		}
		p.all(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *Poller) begin() {
	p.owner = uuid.New()
	if p.Interval == 0 {
		p.Interval = DefaultInterval
	}
	if p.lease == 0 {
		p.lease = leaseLife
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
}

// all reads the tenants' connections, several at once, so that a slow one of a
// tenant keeps nobody else waiting for long.
func (p *Poller) all(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(parallelTenants)
	for _, id := range p.reading {
		g.Go(func() error {
			if err := p.tenant(ctx, id); err != nil && ctx.Err() == nil {
				p.Log.Warn("bedrock: connections cannot be looked at", "tenant", id, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // each has said what was wrong
}

// look finds the tenants with connections anew when any connection has changed:
// one question, however many tenants there are.
func (p *Poller) look(ctx context.Context) error {
	version, err := p.Store.Version(ctx)
	if err != nil || version == p.version {
		return err
	}
	var reading []tenant.ID
	for _, id := range p.Tenants() {
		if id.IsSystem() {
			continue
		}
		switch any, err := p.Store.Any(ctx, id); {
		case err != nil:
			return err
		case any:
			reading = append(reading, id)
		}
	}
	p.version, p.reading = version, reading
	return nil
}

// tenant reads the tenant's connections that are due.
func (p *Poller) tenant(ctx context.Context, id tenant.ID) error {
	for ctx.Err() == nil {
		l, ok, err := p.Store.Lease(ctx, id, p.owner, p.lease)
		if err != nil || !ok {
			return err
		}
		err = p.pass(ctx, &l)
		switch {
		case ctx.Err() != nil:
			return ctx.Err() // the lease ends by itself
		case errors.Is(err, connections.ErrLost):
			continue
		}
		failure, pause := "", p.Interval
		if err != nil {
			failure = err.Error()
			pause = min(p.Interval<<min(l.State.Failures+1, 10), max(maxPause, p.Interval))
			p.Log.Warn("bedrock: a connection cannot be read", "tenant", id, "connection", l.ID, "err", err)
		}
		if err := p.Store.Finish(ctx, &l, failure, pause); err != nil && !errors.Is(err, connections.ErrLost) {
			return err
		}
	}
	return ctx.Err()
}

// pass reads all that a connection has.
func (p *Poller) pass(ctx context.Context, l *connections.Lease) error {
	who := authn.Principal{Subject: "connection/" + l.ID, Tenants: []tenant.ID{l.Tenant}, Scopes: authn.Ingest}
	job, err := NewJob(ctx, p.Keys, p.Settings, l.Tenant, who)
	if err != nil {
		return err
	}
	src, err := p.Open(ctx, &l.Bedrock)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // it was only read from
	job.Follow, job.Calls = src.Follow, p.Calls
	job.Pauses = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second}
	return src.Objects(ctx, cursors{p.Store, l}, func(o Object) error { return p.object(ctx, l, src, &job, o) })
}

// object reads one object and then moves the cursor.
func (p *Poller) object(ctx context.Context, l *connections.Lease, src Source, job *Job, o Object) error {
	// A large object takes longer than the lease: it is renewed meanwhile, and the
	// reading ends when it was lost.
	ctx, cancel := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		p.renew(ctx, l, cancel)
	}()
	stalled := time.AfterFunc(stallLimit, func() { cancel(errStalled) })
	defer stalled.Stop()
	sum, err := p.read(ctx, src, job, o, func() { stalled.Reset(stallLimit) })
	cause := context.Cause(ctx)
	cancel(nil)
	<-renewed
	if cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	progress := connections.Progress{Series: o.Series, Position: o.Position, Forward: o.Forward, Counts: connections.Counts{
		Objects: sum.Objects, Records: sum.Records, Accepted: sum.Accepted, Refused: sum.RefusedTotal(), Malformed: sum.Malformed, Damaged: sum.Damaged,
		Metered: sum.Metered,
	}}
	if o.Version != "" {
		progress.Object, progress.Version = o.Name, o.Version
	}
	ctx = context.WithoutCancel(ctx)
	if err := p.Store.Done(ctx, l, p.lease, progress); err != nil {
		return err
	}
	return src.Done(ctx, o)
}

// errStalled: nothing of an object came for stallLimit. It is read again later.
var errStalled = errors.New("bedrock: an object stood still")

// read reads an object; came is called whenever something of it has come.
func (p *Poller) read(ctx context.Context, src Source, job *Job, o Object, came func()) (sum Summary, err error) {
	body, err := src.Open(ctx, o)
	if errors.Is(err, ErrGone) {
		return sum, nil // its owner took it away before we came
	}
	if err != nil {
		return sum, err
	}
	defer body.Close() //nolint:errcheck // it was only read from
	if err := job.Import(ctx, p.Sink, o.Name, progressing{body, came}, &sum); err != nil {
		return sum, fmt.Errorf("bedrock: read an object: %w", err)
	}
	if sum.Differing > 0 {
		p.Log.Warn("bedrock: records state other tokens than the metering proxy's entries of their calls, which stand", "tenant", job.Tenant, "object", o.Name, "records", sum.Differing)
	}
	if sum.Damaged+sum.Malformed > 0 {
		p.Log.Warn("bedrock: an object has lines that are no records", "tenant", job.Tenant, "object", o.Name, "malformed", sum.Malformed, "damaged", sum.Damaged > 0)
	}
	return sum, nil
}

// progressing tells that something came.
type progressing struct {
	r    io.Reader
	came func()
}

// Read implements io.Reader.
func (p progressing) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.came()
	}
	return n, err
}

// renew prolongs the lease until ctx ends.
func (p *Poller) renew(ctx context.Context, l *connections.Lease, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(p.lease / 4)
	defer tick.Stop()
	held := *l
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := p.Store.Done(ctx, &held, p.lease, connections.Progress{}); errors.Is(err, connections.ErrLost) {
			cancel(err)
			return
		}
	}
}

// cursors are those of one connection.
type cursors struct {
	store *connections.Store
	lease *connections.Lease
}

// Cursor implements Cursors.
func (c cursors) Cursor(ctx context.Context, series string) (string, error) {
	return c.store.Cursor(ctx, c.lease, series)
}

// Read implements Cursors.
func (c cursors) Read(ctx context.Context, series string) (map[string]string, error) {
	return c.store.Read(ctx, c.lease, series)
}
