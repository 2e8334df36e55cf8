package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
)

const (
	// gapInterval is how often events that were not taken are tried again.
	gapInterval = time.Second
	// maxWaiting bounds the events that wait as they are. Those beyond it are summed up,
	// at most maxSums sums of a grain.
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

// waiting is what the sink did not take: the event of a call, or of several.
type waiting struct {
	who   authn.Principal
	ev    event.Event
	calls int64
}

// gaps are the events that are in memory only: those of calls that were under way
// when the spool became full or broke and, with FailOpen, of those after. A kill of
// the process loses them, and only them; with the default their clients did not see
// their calls finish.
type gaps struct {
	mu     sync.Mutex // protects what follows
	events []waiting
	sums   sums
}

// add keeps a copy of the event. One that the next reading of a batch makes again is
// so marked.
func (g *gaps) add(who authn.Principal, ev *event.Event, read bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.events) >= maxWaiting {
		g.sums.add(who, ev, read)
		return
	}
	w := waiting{who, *ev, 1}
	w.ev.Tags = slices.Clone(ev.Tags)
	g.events = append(g.events, w)
}

// putBack keeps what was taken out and is not taken yet, as it is: the sink may have it
// after all. What was taken out is bounded, so this is too.
func (g *gaps) putBack(w *waiting) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, *w)
}

// waiting is how many calls wait.
func (g *gaps) waiting() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.sums.calls()
	for i := range g.events {
		n += g.events[i].calls
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
	return g.sums.take()
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
