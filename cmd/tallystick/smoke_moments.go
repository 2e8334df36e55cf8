package main

import (
	"math/rand/v2"
	"sync"
)

// smokeMoments says when to kill, by how much of the load is acknowledged: a
// time would hit another place on every machine.
type smokeMoments struct {
	due chan int64 // events in flight at the moment

	mu     sync.Mutex // protects all below: several connections report progress
	at     []int64    // acknowledged events, ascending
	closed bool
}

// spans are the shares of the load between which each kill falls.
var smokeSpans = [smokeKills][2]float64{{0.20, 0.45}, {0.55, 0.85}}

func (s *smoke) moments() *smokeMoments {
	m := &smokeMoments{due: make(chan int64, smokeKills)}
	r := rand.New(rand.NewPCG(s.f.seed, 0x6b696c6c)) //nolint:gosec // to be drawn again by seed
	total := float64(s.want.sent)
	for _, span := range smokeSpans {
		m.at = append(m.at, int64(total*(span[0]+r.Float64()*(span[1]-span[0]))))
	}
	return m
}

// progress takes the running totals of the load. A moment is due when its share
// is acknowledged and requests are under way.
func (m *smokeMoments) progress(sent, acked int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed && len(m.at) > 0 && acked >= m.at[0] && sent > acked {
		m.at = m.at[1:]
		m.due <- sent - acked // there is room for all moments
	}
}

// close ends due: the load is over.
func (m *smokeMoments) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	close(m.due)
}
