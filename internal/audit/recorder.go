package audit

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Bounds of what callers can make a Recorder write. At the worst that the
// refused can do, a process writes some 260 rows a minute, about 150 MB a day;
// what is not told row by row is counted.
const (
	// DeniedWindow and AllowedWindow are how long equal events are counted
	// together before the count is written.
	DeniedWindow  = time.Minute
	AllowedWindow = 10 * time.Minute
	// deniedRows is how many refusals of one source and reason get rows of their
	// own in a window, deniedBudget how many of all sources together.
	deniedRows   = 10
	deniedBudget = 120
	// deniedSources is how many sources and reasons are told apart in a window;
	// the others are counted as one, in the chain Installation.
	deniedSources = 128
	// allowedSources is the same for credentials and addresses that were let in.
	allowedSources = 4096
)

const (
	// denialWait is how long a refusal waits for its row: it is refused anyway.
	denialWait   = 2 * time.Second
	retryWait    = time.Second
	tickInterval = time.Second
	finalWait    = 5 * time.Second
	// maxQueued bounds the rows that wait for the store; while so many do, events
	// are only counted.
	maxQueued = allowedSources + 2*deniedBudget
	// complainEvery is how often the log says that rows wait.
	complainEvery = time.Minute
)

// OverflowActor is the actor of the row that counts what more sources did than
// are told apart.
const OverflowActor = "(more sources than are told apart)"

// Sink writes events of one tenant durably and in order, all or none.
type Sink interface {
	recordAll(ctx context.Context, id tenant.ID, events []Event) error
}

// Recorder writes what callers cause without changing anything: that they were
// let in, and that they were refused. Rows of their own get the first event of
// an allowed source in a window, and the first ten of a refused one; what
// follows is counted, and the count is written when the window ends. A row that
// cannot be written waits and is tried again until Run ends; what a killed
// process loses is its counts of open windows.
//
// Its methods may be called from many goroutines. Run must be running.
type Recorder struct {
	sink Sink
	log  *slog.Logger
	now  func() time.Time
	wake chan struct{}

	mu      sync.Mutex // protects what follows
	allowed map[source]*tally
	denied  map[source]*tally
	budget  int       // rows of their own that refusals may still have
	refill  time.Time // when budget is full again
	queue   []queued
	held    int // rows that flush has taken from the queue
}

// source is what makes events equal.
type source struct {
	tenant                         tenant.ID
	actor, action, outcome, reason string
	resource                       string
	addr                           string // of IPv6 the /64: one customer has that many addresses
}

// tally counts one source's events in a window.
type tally struct {
	first   Event
	ends    time.Time
	written int
	counted int64
	begin   time.Time // of the counted
	until   time.Time
}

type queued struct {
	ev   Event
	done chan struct{} // closed when the row is durable; may be nil
}

// NewRecorder makes a Recorder that writes to log. A nil logger discards.
func NewRecorder(log *Log, logger *slog.Logger) *Recorder { return newRecorder(log, logger) }

func newRecorder(sink Sink, logger *slog.Logger) *Recorder {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Recorder{
		sink: sink, log: logger, now: time.Now, wake: make(chan struct{}, 1),
		allowed: map[source]*tally{}, denied: map[source]*tally{},
	}
}

// Allowed notes that a caller was let in. It never waits.
func (r *Recorder) Allowed(ev Event) {
	ev.Outcome = OK
	r.note(ev, r.allowed, AllowedWindow, allowedSources, 1, nil)
}

// Denied notes that a caller was refused, and waits a little for its row if it
// gets one of its own. Answer the caller afterwards, whatever became of the row.
func (r *Recorder) Denied(ctx context.Context, ev Event) {
	ev.Outcome = Denied
	done := make(chan struct{})
	if !r.note(ev, r.denied, DeniedWindow, deniedSources, deniedRows, done) {
		return
	}
	limit := time.NewTimer(denialWait)
	defer limit.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-limit.C:
	}
}

// DeniedLater is Denied for those who cannot wait.
func (r *Recorder) DeniedLater(ev Event) {
	ev.Outcome = Denied
	r.note(ev, r.denied, DeniedWindow, deniedSources, deniedRows, nil)
}

// note counts or queues an event and reports whether it was queued.
func (r *Recorder) note(ev Event, in map[source]*tally, window time.Duration, sources, rows int, done chan struct{}) bool {
	now := r.now()
	if ev.Tenant == "" {
		ev.Tenant = Installation
	}
	ev.At = now
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tallyOf(&ev, in, window, sources)
	own := t.written < rows && !r.full() && t.first.Actor != OverflowActor
	if own && rows == deniedRows {
		own = r.spend(now)
	}
	if !own {
		if t.counted++; t.counted == 1 {
			t.begin = now
		}
		t.until = now
		return false
	}
	t.written++
	r.queue = append(r.queue, queued{ev, done})
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return true
}

// full says that no more rows may wait. The caller holds mu.
func (r *Recorder) full() bool { return len(r.queue)+r.held >= maxQueued }

// tallyOf is the tally of an event's source, or the one for all that are too
// many. The caller holds mu.
func (r *Recorder) tallyOf(ev *Event, in map[source]*tally, window time.Duration, sources int) *tally {
	key := source{ev.Tenant, ev.Actor, ev.Action, ev.Outcome, ev.Reason, ev.Resource, network(ev.Addr)}
	if t := in[key]; t != nil {
		return t
	}
	first := *ev
	if len(in) >= sources {
		key = source{tenant: Installation, actor: OverflowActor, action: ev.Action, outcome: ev.Outcome}
		if t := in[key]; t != nil {
			return t
		}
		first = Event{Tenant: Installation, Actor: OverflowActor, Action: ev.Action, Outcome: ev.Outcome}
	}
	t := &tally{first: first, ends: ev.At.Add(window)}
	in[key] = t
	return t
}

// spend takes a row of the budget of refusals. The caller holds mu.
func (r *Recorder) spend(now time.Time) bool {
	if !now.Before(r.refill) {
		r.budget, r.refill = deniedBudget, now.Add(DeniedWindow)
	}
	r.budget--
	return r.budget >= 0
}

// network is the part of an address that one customer has.
func network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Unmap().Is4() {
		return addr
	}
	p, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return addr
	}
	return p.String()
}

// Run writes rows until ctx ends, and then what is left, counts included.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	var complained time.Time
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalWait)
			defer cancel()
			r.close(r.now(), true)
			err := r.flush(last)
			if err != nil {
				r.log.Error("audit rows are lost: they could not be written before the end", "rows", r.waiting(), "err", err)
			}
			return err
		case <-tick.C:
			r.close(r.now(), false)
		case <-r.wake:
		}
		if err := r.flush(ctx); err != nil && ctx.Err() == nil {
			if now := r.now(); now.Sub(complained) >= complainEvery {
				complained = now
				r.log.Error("audit rows cannot be written; they wait", "rows", r.waiting(), "err", err)
			}
			select {
			case <-time.After(retryWait):
			case <-ctx.Done():
			}
		}
	}
}

func (r *Recorder) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue)
}

// close queues the counts of windows that have ended, or at the last of all. A
// window whose count finds no room stays open and counts on.
func (r *Recorder) close(now time.Time, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, in := range []map[source]*tally{r.allowed, r.denied} {
		for key, t := range in {
			if !last && (now.Before(t.ends) || t.counted > 0 && r.full()) {
				continue
			}
			delete(in, key)
			if t.counted > 0 {
				ev := t.first
				ev.At, ev.Until, ev.Count, ev.RequestID = t.begin, t.until, t.counted, ""
				r.queue = append(r.queue, queued{ev: ev})
			}
		}
	}
}

// flush writes what is queued, a transaction per tenant. What could not be
// written stays queued, in its order.
func (r *Recorder) flush(ctx context.Context) error {
	r.mu.Lock()
	work := r.queue
	r.queue, r.held = nil, len(work)
	r.mu.Unlock()
	var errs []error
	var left []queued
	for len(work) > 0 {
		id := work[0].ev.Tenant
		var batch, rest []queued
		for _, q := range work {
			if q.ev.Tenant == id {
				batch = append(batch, q)
			} else {
				rest = append(rest, q)
			}
		}
		work = rest
		if err := r.write(ctx, id, batch); err != nil {
			errs = append(errs, err)
			left = append(left, batch...)
		}
	}
	r.mu.Lock()
	r.queue, r.held = append(left, r.queue...), 0
	r.mu.Unlock()
	return errors.Join(errs...)
}

// write writes a tenant's rows. A tenant without keys has no chain: its rows go
// into that of the installation.
func (r *Recorder) write(ctx context.Context, id tenant.ID, batch []queued) error {
	events := make([]Event, len(batch))
	for i := range batch {
		events[i] = batch[i].ev
	}
	err := r.sink.recordAll(ctx, id, events)
	if errors.Is(err, keyring.ErrNoKey) && id != Installation {
		for i := range events {
			events[i].Tenant, events[i].Resource = Installation, "tenant/"+string(id)
		}
		err = r.sink.recordAll(ctx, Installation, events)
	}
	if err != nil {
		return err
	}
	for _, q := range slices.Backward(batch) {
		if q.done != nil {
			close(q.done)
		}
	}
	return nil
}
