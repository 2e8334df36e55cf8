package gputime

import (
	"fmt"
	"time"

	"github.com/tallystick/tallystick/internal/gpu"
)

// Defaults of Options.
const (
	DefaultWindow   = 5 * time.Minute
	DefaultLateness = 2 * time.Minute
	DefaultMaxGap   = 2 * time.Minute
	DefaultHorizon  = gpu.DefaultMaxAge + ClockSlack
	DefaultCommit   = time.Second
)

// ClockSlack is by how much the log's clock may be ahead of that of the door which
// took a sample: a horizon is so much longer than the age to which doors take
// samples, so that none that was acknowledged is too old here.
const ClockSlack = time.Hour

// MaxHorizon is below the age to which the edge takes the events of samples.
const MaxHorizon = 366 * 24 * time.Hour

// Options of the processor. The zero value of a field means its default. Window and
// MaxGap decide what the events are: who changes Window begins other events under
// other ids for the windows that are open, so it is changed when nothing is.
type Options struct {
	// Window is the span that one event accounts for: whole seconds that divide an
	// hour, so that no event belongs to two hours of a report.
	Window time.Duration
	// Lateness is how long after its end, by the log's clock, a window waits for
	// samples; and how long a later sample waits for others before the next revision.
	Lateness time.Duration
	// MaxGap is the longest time that one sample can stand for; at most Window.
	MaxGap time.Duration
	// Horizon is how late a sample may be, by the log's clock. What is later is
	// refused, and counted. So long are windows kept in the store, some 1.6 KB each
	// with a sample every ten seconds; memory has only those that wait. A longer one
	// than before is in force for what comes from then on: windows that were
	// forgotten take no sample again.
	Horizon time.Duration
	// Commit is how long samples are taken into one transaction.
	Commit time.Duration
	// Now is the clock by which a silence is measured, for tests; default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.Window, DefaultWindow)
	def(&o.Lateness, DefaultLateness)
	def(&o.MaxGap, min(DefaultMaxGap, o.Window))
	def(&o.Horizon, DefaultHorizon)
	def(&o.Commit, DefaultCommit)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Validate reports a field that is out of range, by its setting's name.
func (o Options) Validate() error {
	o = o.withDefaults()
	switch {
	case o.Window < time.Second || o.Window%time.Second != 0 || time.Hour%o.Window != 0:
		return fmt.Errorf("gputime.window: must be whole seconds that divide an hour, is %s", o.Window)
	case o.MaxGap <= 0 || o.MaxGap > o.Window:
		return fmt.Errorf("gputime.max_gap: must be above 0 and at most gputime.window, is %s", o.MaxGap)
	case o.Lateness <= 0 || o.Lateness > time.Hour:
		return fmt.Errorf("gputime.lateness: must be above 0 and at most 1h, is %s", o.Lateness)
	case o.Horizon < o.Window+o.Lateness || o.Horizon > MaxHorizon:
		return fmt.Errorf("gputime.horizon: must be at least window and lateness together and at most %s, is %s", MaxHorizon, o.Horizon)
	}
	return nil
}
