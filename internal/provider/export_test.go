package provider

import "time"

// SetClock gives the gate another clock.
func (g *Gate) SetClock(now func() time.Time) { g.now = now }
