package connections

import "time"

// SetClock gives the store a test's clock.
func (s *Store) SetClock(now func() time.Time) { s.now = now }
