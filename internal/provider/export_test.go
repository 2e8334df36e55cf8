package provider

import "time"

// SetClock gives the gate another clock.
func (g *Gate) SetClock(now func() time.Time) { g.now = now }

// Flush writes what was settled.
func (g *Gate) Flush() { g.flush(testContext()) }
