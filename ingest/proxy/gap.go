package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
)

const (
	// gapInterval is how often events that were not taken are tried again.
	gapInterval = time.Second
	// maxWaiting bounds the events that wait as they are. Those beyond it are summed
	// up, at most maxSums sums.
	maxWaiting = 4096
	maxSums    = 1024
	// gapBatch is how many are tried in one go.
	gapBatch = 256
)

// errRefused is an event that the sink will never take: a fault of ours.
var errRefused = errors.New("proxy: the event was refused")

// submit keeps events, or says why not.
func (p *Proxy) submit(ctx context.Context, who authn.Principal, events []event.Event) error {
	out, err := p.parts.Sink.Submit(ctx, who, events)
	if err == nil && len(out.Refusals) > 0 {
		r := &out.Refusals[0]
		err = fmt.Errorf("%w: %s %s", errRefused, r.Field, r.Rule)
	}
	if err != nil {
		p.quiet.Do(func() {
			p.opts.Logger.ErrorContext(ctx, "proxy: usage is not kept yet", "events", len(events), "err", err)
		})
	}
	return err
}

// waiting is an event that the sink did not take.
type waiting struct {
	who  authn.Principal
	ev   event.Event
	read bool // the next reading of a batch makes it again
}

// sum is what several such events come to, of one tenant, provider and model.
type sum struct {
	who         authn.Principal
	ev          event.Event
	calls       int64
	first, last int64
}

type sumKey struct{ tenant, provider, model string }

// gaps are the events that are in memory only: those of calls that were under way
// when the spool became full or broke and, with FailOpen, of those after. A kill of
// the process loses them, and only them; with the default their clients did not see
// their calls finish.
type gaps struct {
	mu     sync.Mutex // protects what follows
	events []waiting
	sums   map[sumKey]*sum
	lost   int64 // calls beyond all bounds: only counted
}

// add keeps a copy of the event.
func (g *gaps) add(who authn.Principal, ev *event.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keep(who, ev, false) {
		return
	}
	if g.sums == nil {
		g.sums = map[sumKey]*sum{}
	}
	key := sumKey{ev.Tenant, ev.Provider, ev.Model}
	s := g.sums[key]
	if s == nil {
		if len(g.sums) >= maxSums {
			g.lost++
			return
		}
		s = &sum{who: who, ev: *ev, first: ev.OccurredAt}
		s.ev.Tokens, s.ev.Tags = [len(ev.Tokens)]int64{}, nil
		g.sums[key] = s
	}
	for c, n := range ev.Tokens {
		s.ev.Tokens[c] += n
	}
	s.calls++
	s.last = ev.OccurredAt
}

// addRead keeps copies of events that the next reading of a batch makes again. Beyond
// the bound they are only counted: in a sum they would be billed twice.
func (g *gaps) addRead(who authn.Principal, events []event.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range events {
		if !g.keep(who, &events[i], true) {
			g.lost++
		}
	}
}

// putBack keeps what was taken out and is not taken yet.
func (g *gaps) putBack(w *waiting) {
	if w.read {
		g.addRead(w.who, []event.Event{w.ev})
		return
	}
	g.add(w.who, &w.ev)
}

// keep keeps a copy of the event while there is room.
func (g *gaps) keep(who authn.Principal, ev *event.Event, read bool) bool {
	if len(g.events) >= maxWaiting {
		return false
	}
	w := waiting{who, *ev, read}
	w.ev.Tags = slices.Clone(ev.Tags)
	g.events = append(g.events, w)
	return true
}

// event is the sum as one event, which says that it is a gap.
func (s *sum) event() event.Event {
	ev := s.ev
	ev.Status, ev.ErrorType, ev.Estimated, ev.OccurredAt = event.StatusError, "spool_gap", true, s.last
	ev.LatencyMicros, ev.TTFTMicros, ev.ProviderRequestID = 0, 0, ""
	ev.Tags = []event.Tag{
		{Key: "gap_calls", Value: strconv.FormatInt(s.calls, 10)},
		{Key: "gap_from", Value: time.Unix(0, s.first).UTC().Format(time.RFC3339Nano)},
		{Key: "gap_to", Value: time.Unix(0, s.last).UTC().Format(time.RFC3339Nano)},
	}
	return ev
}

// waiting is how many calls wait.
func (g *gaps) waiting() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := int64(len(g.events)) + g.lost
	for _, s := range g.sums {
		n += s.calls
	}
	return n
}

// take takes out what is to be tried now.
func (g *gaps) take() []waiting {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := min(len(g.events), gapBatch); n > 0 {
		out := slices.Clone(g.events[:n])
		g.events = slices.Delete(g.events, 0, n)
		return out
	}
	var out []waiting
	for key, s := range g.sums {
		out = append(out, waiting{s.who, s.event(), false})
		delete(g.sums, key)
	}
	return out
}

// flushGaps tries what waits until the sink refuses.
func (p *Proxy) flushGaps(ctx context.Context) {
	for {
		batch := p.gaps.take()
		if len(batch) == 0 {
			return
		}
		failed := false
		for i := range batch {
			err := p.submit(ctx, batch[i].who, []event.Event{batch[i].ev})
			if errors.Is(err, ingest.ErrUnavailable) {
				p.gaps.putBack(&batch[i])
				failed = true
			}
		}
		if failed {
			return
		}
	}
}
