package chain

import (
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// AddsUnpriced is what the entry adds to the calls that reports count as unpriced: a
// usage entry without a price 1, a correction -1, 0 or 1. A call that failed and used
// nothing is not among them, because it costs exactly 0 at any price: one that was
// stopped, or had no provider key, was never sent. Its entry says all the same that
// no price was found. A call that succeeded without a count may have used what nobody
// counted, so it stays unpriced.
func (e *Entry) AddsUnpriced() int64 {
	now := one(!e.Priced && !usedNothing(e.Event.Status, &e.Event.Tokens, e.Event.GPUMicros))
	switch e.Kind {
	case Usage:
		return now
	case Correction:
		d := &e.Corrected
		was := e.Event.Tokens
		for c, n := range &d.Tokens {
			was[c] -= n
		}
		wasPriced := d.Unpriced+one(d.Priced) > 0
		now = one(!d.Priced && !usedNothing(e.Event.Status, &e.Event.Tokens, e.Event.GPUMicros))
		return now - one(!wasPriced && !usedNothing(e.Event.Status, &was, e.Event.GPUMicros-d.GPUMicros))
	}
	return 0
}

// usedNothing reports that a call failed and has no quantity that could be billed.
func usedNothing(status string, v *tokens.Vector, gpuMicros int64) bool {
	switch status {
	case event.StatusBlocked, event.StatusKilled, event.StatusError:
		return *v == (tokens.Vector{}) && gpuMicros == 0
	}
	return false
}
