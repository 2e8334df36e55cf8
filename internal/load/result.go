package load

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tallystick/tallystick/internal/oracle"
)

// State is what is needed to continue a load, and what must have come of it so far.
type State struct {
	// Plan names everything that decides the content of the events.
	Plan string    `json:"plan"`
	Seed uint64    `json:"seed"`
	Base time.Time `json:"base"`
	// Next is the position of the first call that was not sent.
	Next int64 `json:"next"`
	// Complete says that every event that was made is acknowledged; else InDoubt
	// of them were made, but may or may not have arrived.
	Complete bool  `json:"complete"`
	InDoubt  int64 `json:"in_doubt"`
	// Expectation is of acknowledged events only.
	Expectation oracle.Expectation `json:"expected"`
}

// Result is what a load did.
type Result struct {
	State
	// Calls are the source's; Sent and Acked count events with injected ones.
	Calls    int64 `json:"calls"`
	Sent     int64 `json:"sent"`
	Acked    int64 `json:"acked"`
	Requests int64 `json:"requests"`
	// Retries are requests that were sent again; Retransmitted are their events
	// by kind. Each of them may or may not have arrived twice: so many more
	// duplicates and conflicts than expected may be in the ledger at most.
	Retries       int64         `json:"retries"`
	Retransmitted Retransmitted `json:"retransmitted"`
	// Surprises counts answers other than expected, the first of them in detail.
	Surprises      int64      `json:"surprises"`
	FirstSurprises []Surprise `json:"first_surprises,omitempty"`

	Duration time.Duration `json:"duration_ns"`
	// Latency is of acknowledged requests; Lag is how late the requests of a
	// paced load were sent.
	Latency Latency `json:"latency"`
	Lag     Latency `json:"lag"`
}

// Retransmitted counts events that were sent more than once because an answer
// was missing, by what was expected of them.
type Retransmitted struct {
	Accepted   int64 `json:"accepted"`
	Duplicates int64 `json:"duplicates"`
	Conflicts  int64 `json:"conflicts"`
	Refused    int64 `json:"refused"`
}

// Surprise is an answer other than expected.
type Surprise struct {
	EventID  string `json:"event_id"`
	Expected string `json:"expected"` // "accepted" or "field rule"
	Got      string `json:"got"`
}

// EventsPerSecond is the rate of acknowledged events.
func (r *Result) EventsPerSecond() float64 {
	if r.Duration <= 0 {
		return 0
	}
	return float64(r.Acked) / r.Duration.Seconds()
}

func (s *sender) result(g *generator, took time.Duration) *Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Result{
		State: State{
			Plan: s.o.fingerprint(), Seed: s.o.Seed, Base: s.o.Base.UTC(), Next: g.next,
			Complete: s.clean, InDoubt: s.inDoubt, Expectation: *s.plan.tally.Expectation(),
		},
		Calls: g.taken, Sent: s.sent.Load(), Acked: s.acked.Load(), Requests: s.requests.Load(),
		Retries: s.retries.Load(), Retransmitted: s.retransmitted,
		Surprises: s.surprised, FirstSurprises: slices.Clone(s.surprises),
		Duration: took, Latency: s.latency.summary(), Lag: s.lag.summary(),
	}
}

// Write writes the result as indented JSON.
func (r *Result) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(r)
}

// WriteFile writes the result as JSON, whole or not at all: an older file of
// the name stays until the new one is complete.
func (r *Result) WriteFile(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".expect-*")
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	if err := r.Write(f); err != nil {
		_ = f.Close()
		return fmt.Errorf("load: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

// maxStateBytes bounds a state file: 100,000 tenants with two weeks of hours.
const maxStateBytes = 4 << 30

// ReadState reads what WriteFile wrote.
func ReadState(path string) (*State, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	var s State
	if err := json.NewDecoder(io.LimitReader(f, maxStateBytes)).Decode(&s); err != nil {
		return nil, fmt.Errorf("load: %s is no expectation file: %w", filepath.Base(path), err)
	}
	return &s, nil
}
