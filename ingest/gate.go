package ingest

import (
	"sync"
	"time"
)

// gate bounds what is worked on at once. It never makes anybody wait: a queue
// here would only hide from producers that they are too fast.
type gate struct {
	maxRequests int
	maxBytes    int64

	mu       sync.Mutex // protects the two counts
	requests int
	bytes    int64
}

func newGate(maxRequests int, maxBytes int64) *gate {
	return &gate{maxRequests: maxRequests, maxBytes: maxBytes}
}

// reserve takes room for a body that is about to be read.
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
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.requests == g.maxRequests {
		return false
	}
	g.requests++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests--
}

func (g *gate) inFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.requests
}

// rateLimit lets one message through per interval.
type rateLimit struct {
	interval time.Duration

	mu   sync.Mutex // protects next
	next time.Time
}

func (r *rateLimit) allow(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.next) {
		return false
	}
	r.next = now.Add(r.interval)
	return true
}
