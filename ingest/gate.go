package ingest

import (
	"context"
	"sync"
)

// gate bounds what is worked on at once. A request is never made to wait in
// it: a queue here would only hide from producers that they are too fast. A
// stream is, because its client is then held back by flow control.
type gate struct {
	places   chan struct{} // one element per request in work
	maxBytes int64

	mu    sync.Mutex // protects bytes
	bytes int64
}

func newGate(maxRequests int, maxBytes int64) *gate {
	return &gate{places: make(chan struct{}, maxRequests), maxBytes: maxBytes}
}

// reserve takes room for a body.
func (g *gate) reserve(bytes int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bytes+bytes > g.maxBytes {
		return false
	}
	g.bytes += bytes
	return true
}

func (g *gate) release(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes -= bytes
}

// enter takes one of the places for requests whose body has arrived, so that
// slow senders do not hold places.
func (g *gate) enter() bool {
	select {
	case g.places <- struct{}{}:
		return true
	default:
		return false
	}
}

// wait is enter for a stream: it waits for a place until ctx ends.
func (g *gate) wait(ctx context.Context) error {
	select {
	case g.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gate) leave() { <-g.places }

func (g *gate) inFlight() int { return len(g.places) }
