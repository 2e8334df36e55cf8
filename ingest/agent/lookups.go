package agent

import (
	"context"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// maxAsks bounds the agents of one question to the register. There is one
	// question at a time: a question costs far more than an agent in it, and those
	// that come meanwhile share the next one of their tenant. So when thousands of
	// agents come back together, it is the questions that grow and not their number.
	maxAsks    = 500
	askTimeout = 5 * time.Second
)

// lookups asks the register for many agents of a tenant at once.
type lookups struct {
	ask  func(ctx context.Context, id tenant.ID, asks []agentauth.Ask) ([]agentauth.Standing, error)
	turn sync.Mutex // held by who asks

	mu      sync.Mutex // protects waiting and asking
	waiting map[tenant.ID][]waiter
	asking  map[tenant.ID]bool
}

type waiter struct {
	ask    agentauth.Ask
	answer chan<- standing
}

type standing struct {
	agentauth.Standing
	err error
}

func newLookups(ask func(context.Context, tenant.ID, []agentauth.Ask) ([]agentauth.Standing, error)) *lookups {
	return &lookups{
		ask: ask, waiting: map[tenant.ID][]waiter{}, asking: map[tenant.ID]bool{},
	}
}

// get waits for the answer about one agent. The question is asked after get was
// called: an agent that was revoked before is not live in the answer.
func (l *lookups) get(ctx context.Context, id tenant.ID, ask agentauth.Ask) (agentauth.Standing, error) {
	answer := make(chan standing, 1)
	l.mu.Lock()
	l.waiting[id] = append(l.waiting[id], waiter{ask, answer})
	if !l.asking[id] {
		l.asking[id] = true
		go l.run(id)
	}
	l.mu.Unlock()
	select {
	case s := <-answer:
		return s.Standing, s.err
	case <-ctx.Done():
		return agentauth.Standing{}, agentauth.ErrUnavailable
	}
}

// run asks for those that wait, until nobody does.
func (l *lookups) run(id tenant.ID) {
	for {
		l.turn.Lock() // waiters of a mutex take turns, and so do tenants
		l.mu.Lock()
		all := l.waiting[id]
		batch := all[:min(len(all), maxAsks)]
		if len(batch) == 0 {
			delete(l.waiting, id)
			delete(l.asking, id)
			l.mu.Unlock()
			l.turn.Unlock()
			return
		}
		l.waiting[id] = all[len(batch):]
		l.mu.Unlock()
		l.question(id, batch)
		l.turn.Unlock()
	}
}

func (l *lookups) question(id tenant.ID, batch []waiter) {
	asks := make([]agentauth.Ask, len(batch))
	for i, w := range batch {
		asks[i] = w.ask
	}
	// Many callers share it: one that goes away ends nothing.
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	got, err := l.ask(ctx, id, asks)
	for i, w := range batch {
		s := standing{err: err}
		if err == nil {
			s.Standing = got[i]
		}
		w.answer <- s
	}
}
