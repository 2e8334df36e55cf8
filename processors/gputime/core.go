package gputime

import (
	"cmp"
	"slices"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/gpu"
)

// Batch is one record of `telemetry`.
type Batch struct {
	Tenant, Agent string
	// ReceivedAt is the log's clock, in unix microseconds.
	ReceivedAt int64
	Samples    []Sample
	// Malformed is how many samples of the record were none.
	Malformed int
}

// Counts say what became of the samples of one agent. Each sample is in one of the
// first five.
type Counts struct {
	Accounted int64 // in a window
	Duplicate int64 // there already
	Late      int64 // beyond the horizon
	Future    int64 // its end lies ahead of its receipt
	Malformed int64 // none that time can be accounted by, or too many

	// WithoutTime is how many of the accounted ones stood for no time when they came:
	// they do not say since when, and no look at the same part of the device was there
	// that ended at most MaxGap before. The first look at a device is one.
	WithoutTime int64
	// ClippedMicros is the time, in microseconds, that accounted samples say to stand
	// for beyond MaxGap. It is in no event.
	ClippedMicros int64
}

func (c *Counts) add(d *Counts) {
	c.Accounted += d.Accounted
	c.Duplicate += d.Duplicate
	c.Late += d.Late
	c.Future += d.Future
	c.Malformed += d.Malformed
	c.WithoutTime += d.WithoutTime
	c.ClippedMicros += d.ClippedMicros
}

// Source names whose samples are counted.
type Source struct{ Tenant, Agent string }

// Core is the state of one partition. It does no I/O and reads no clock; what it
// does depends on the batches that were applied, in order, alone. It is not safe
// for concurrent use.
type Core struct {
	window, lateness, maxGap, horizon int64 // microseconds

	clock   int64 // greatest ReceivedAt so far
	oldest  int64 // no sample is accounted that ends then or before; never goes back
	nextDue int64 // no window is due before
	windows map[place]*window
	counts  map[Source]*Counts
	events  []event.Event
	facts   map[string]*facts
	scratch []byte
}

// NewCore makes a Core at the log's clock and the Oldest of what was stored.
func NewCore(opts Options, clock, oldest int64) *Core {
	opts = opts.withDefaults()
	return &Core{
		window: opts.Window.Microseconds(), lateness: opts.Lateness.Microseconds(), maxGap: opts.MaxGap.Microseconds(),
		horizon: opts.Horizon.Microseconds(), clock: clock, oldest: oldest,
		windows: make(map[place]*window), counts: make(map[Source]*Counts), facts: make(map[string]*facts),
	}
}

// placesOf are the windows that a sample touches: one, or two at an edge. A sample
// that does not say since when also stands beside those that may follow on it.
func (c *Core) placesOf(tenant string, s *Sample) []place {
	from, to := max(s.Start, s.End-c.maxGap), s.End-1
	if s.Start == s.End {
		from, to = s.End-c.maxGap, s.End+c.maxGap
	}
	first, last := floor(from, c.window), floor(max(from, to), c.window)
	places := []place{{tenant, s.GPU, first}}
	if last != first {
		places = append(places, place{tenant, s.GPU, first + c.window})
		if last > first+c.window {
			places = append(places, place{tenant, s.GPU, last})
		}
	}
	return places
}

func floor(t, unit int64) int64 {
	q := t / unit
	if t%unit < 0 {
		q--
	}
	return q * unit
}

// Needs are the windows of the batch that must be read from the store before it is
// applied: those that the store may have and Core does not.
func (c *Core) Needs(b *Batch, into map[Place]struct{}) {
	for i := range b.Samples {
		if s := &b.Samples[i]; c.refuses(s, max(c.clock, b.ReceivedAt)) == nil {
			for _, p := range c.placesOf(b.Tenant, s) {
				if c.windows[p] == nil {
					into[Place{p.tenant, p.gpu, p.start}] = struct{}{}
				}
			}
		}
	}
}

// Place names a stored window. Start is in unix microseconds.
type Place struct {
	Tenant, GPU string
	Start       int64
}

// Stored is a window as the store keeps it.
type Stored struct {
	Place
	End        int64 // unix microseconds
	DirtySince int64 // the log's clock; 0: every sample is in an event
	State      []byte
}

// Learn takes over a window that was read from the store. The error is ErrState.
func (c *Core) Learn(s *Stored) error {
	w := newWindow(place{s.Tenant, s.GPU, s.Start})
	if err := w.decode(s.State, c.intern); err != nil {
		return err
	}
	w.dirtySince = s.DirtySince
	c.windows[w.place] = w
	if w.dirtySince != 0 {
		c.nextDue = min(c.nextDue, c.due(w))
	}
	return nil
}

// refuses says which count of a sample goes up that is accounted in no window.
func (c *Core) refuses(s *Sample, clock int64) func(*Counts) *int64 {
	switch {
	case s.End > clock+gpu.MaxAhead.Microseconds():
		return func(n *Counts) *int64 { return &n.Future }
	case s.End <= max(c.oldest, clock-c.horizon):
		return func(n *Counts) *int64 { return &n.Late }
	}
	return nil
}

// Apply takes a batch. What Needs named of it must have been learned.
func (c *Core) Apply(b *Batch) {
	c.clock = max(c.clock, b.ReceivedAt)
	c.oldest = max(c.oldest, c.clock-c.horizon)
	n := c.counts[Source{b.Tenant, b.Agent}]
	if n == nil {
		n = &Counts{}
		c.counts[Source{b.Tenant, b.Agent}] = n
	}
	n.Malformed += int64(b.Malformed)
	for i := range b.Samples {
		s := &b.Samples[i]
		if count := c.refuses(s, c.clock); count != nil {
			*count(n)++
			continue
		}
		switch c.put(b.Tenant, s) {
		case added:
			n.Accounted++
			c.countGap(n, b.Tenant, s)
		case duplicate, replaced:
			n.Duplicate++
		case full:
			n.Malformed++
		}
	}
	c.advance()
}

// countGap counts the time before a sample that nothing accounts for. The sample is
// in its windows.
func (c *Core) countGap(n *Counts, tenant string, s *Sample) {
	if s.Start < s.End {
		n.ClippedMicros += max(0, s.End-c.maxGap-s.Start)
		return
	}
	// A look that this one may follow on is in this window: it touches what follows
	// on it for MaxGap.
	w := c.windows[place{tenant, s.GPU, floor(s.End-1, c.window)}]
	list := w.parts[s.part()]
	i, _ := at(list, s.End)
	for i--; i >= 0 && list[i].end >= s.End-c.maxGap; i-- {
		if list[i].start == list[i].end {
			return
		}
	}
	n.WithoutTime++
}

// put takes a sample into each window that it touches.
func (c *Core) put(tenant string, s *Sample) (worst outcome) {
	c.scratch = appendFacts(c.scratch[:0], s)
	f := c.facts[string(c.scratch)]
	if f == nil {
		// What appendFacts writes is what factsOf reads.
		f, _ = c.intern(string(c.scratch))
	}
	for i, p := range c.placesOf(tenant, s) {
		w := c.windows[p]
		if w == nil {
			w = newWindow(p)
			c.windows[p] = w
		}
		got := c.add(w, s, f)
		if got == added || got == replaced {
			w.changed = true
			if w.dirtySince == 0 {
				w.dirtySince = max(1, c.clock)
				c.nextDue = min(c.nextDue, c.due(w))
			}
		}
		if i == 0 {
			worst = got
		}
	}
	return worst
}

// add takes a sample into a window. What a collector tells in pieces is put together.
func (c *Core) add(w *window, s *Sample, f *facts) outcome {
	have := w.same(s)
	if !s.Relayed || have == nil {
		return w.add(s, f)
	}
	both := have.facts
	if f != both {
		// What appendFacts writes is what factsOf reads.
		both, _ = c.intern(string(appendFacts(nil, union(have.facts, f))))
	}
	used := lesser(have.used, s.Used)
	if both == have.facts && used == have.used {
		return duplicate
	}
	have.facts, have.used = both, used
	return replaced
}

// intern keeps equal facts once: a device says the same for hours.
func (c *Core) intern(text string) (*facts, error) {
	if known := c.facts[text]; known != nil {
		return known, nil
	}
	f, err := factsOf(text)
	if err != nil {
		return nil, err
	}
	if len(c.facts) > maxFacts {
		clear(c.facts)
	}
	c.facts[text] = f
	return f, nil
}

// maxFacts bounds what is kept for sharing.
const maxFacts = 100_000

// due is when, by the log's clock, the window's next revision is made.
func (c *Core) due(w *window) int64 { return max(w.start+c.window, w.dirtySince) + c.lateness }

// advance makes the revisions that are due, in the order of their windows, and
// forgets what is beyond the horizon.
func (c *Core) advance() {
	if c.nextDue > c.clock {
		return
	}
	var ready []*window
	c.nextDue = 1<<63 - 1
	for _, w := range c.windows {
		switch {
		case w.dirtySince == 0:
		case c.due(w) <= c.clock:
			ready = append(ready, w)
		default:
			c.nextDue = min(c.nextDue, c.due(w))
		}
	}
	slices.SortFunc(ready, func(a, b *window) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.gpu, b.gpu))
	})
	for _, w := range ready {
		c.emit(w)
	}
}

// emit makes the events of the window's next revision: one for each item that
// comes to something else than its newest event says.
func (c *Core) emit(w *window) {
	parts := w.allocate(c.window, c.maxGap)
	for i := range w.emitted {
		if _, ok := parts[i]; !ok {
			parts[i] = 0
		}
	}
	digest := w.digest()
	for _, i := range sortedItems(parts) {
		micros := parts[i]
		was, known := w.emitted[i]
		if known && was.micros == micros || !known && micros == 0 {
			continue
		}
		revision := uint64(0)
		if known {
			revision = was.revision + 1
		}
		w.emitted[i] = emission{micros, revision}
		c.events = append(c.events, w.event(&i, c.window, micros, revision, digest))
	}
	w.dirtySince, w.changed = 0, true
}

// Clock is the log's clock, in unix microseconds.
func (c *Core) Clock() int64 { return c.clock }

// Oldest is the end, in unix microseconds, to which samples are refused: their
// windows may be forgotten, and would begin again under the ids of events that there
// are. It does not go back when the horizon becomes longer.
func (c *Core) Oldest() int64 { return c.oldest }

// Waiting reports whether a window waits for time to pass, and until when by the
// log's clock.
func (c *Core) Waiting() (until int64, ok bool) {
	for _, w := range c.windows {
		if w.dirtySince != 0 && (!ok || c.due(w) < until) {
			until, ok = c.due(w), true
		}
	}
	return until, ok
}

// Changes are what happened since Take was called last.
type Changes struct {
	Windows []Stored
	Counts  map[Source]Counts
	Events  []event.Event
	// Forget is the log's time before which windows ended that nothing can change
	// any more.
	Forget int64
}

// Take gives what is to be stored, and drops windows from memory that are stored
// and wait for nothing; those that a late sample touches are read again.
func (c *Core) Take() Changes {
	ch := Changes{Counts: make(map[Source]Counts, len(c.counts)), Events: c.events, Forget: c.oldest - c.window - c.maxGap}
	c.events = nil
	var changed []*window
	for p, w := range c.windows {
		if w.changed {
			changed = append(changed, w)
		}
		if w.dirtySince == 0 && w.start+c.window+keep.Microseconds() < c.clock {
			delete(c.windows, p)
		}
	}
	// In order, so that two transactions lock rows in one.
	slices.SortFunc(changed, func(a, b *window) int { return comparePlaces(a.place, b.place) })
	for _, w := range changed {
		ch.Windows = append(ch.Windows, Stored{
			Place: Place{w.tenant, w.gpu, w.start}, End: w.start + c.window, DirtySince: w.dirtySince, State: w.encode(),
		})
		w.changed = false
	}
	for s, n := range c.counts {
		if *n != (Counts{}) {
			ch.Counts[s] = *n
		}
	}
	clear(c.counts)
	return ch
}

// keep is how long a window stays in memory after its end: what is a little late is
// the usual.
const keep = 10 * time.Minute

func comparePlaces(a, b place) int {
	return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.gpu, b.gpu), cmp.Compare(a.start, b.start))
}
