package report

import "time"

// Granularity is the length of a time series' buckets, an ISO 8601 duration.
type Granularity string

// The granularities. Days, weeks (from Monday) and months are those of the
// calendar in the window's zone; so a day may have 23 or 25 hours.
const (
	Minute           Granularity = "PT1M"
	QuarterHour      Granularity = "PT15M"
	Hour             Granularity = "PT1H"
	Day              Granularity = "P1D"
	Week             Granularity = "P1W"
	Month            Granularity = "P1M"
	granularityNames             = "PT1M, PT15M, PT1H, P1D, P1W, P1M"
)

func (g Granularity) valid() bool {
	switch g {
	case Minute, QuarterHour, Hour, Day, Week, Month:
		return true
	}
	return false
}

// step is the length of buckets that are cut by the clock, 0 for those that are
// cut by the calendar.
func (g Granularity) step() time.Duration {
	switch g {
	case Minute:
		return time.Minute
	case QuarterHour:
		return 15 * time.Minute
	case Hour:
		return time.Hour
	}
	return 0
}

// Buckets are the starts of all buckets that the span touches, in order. The
// first may start before the span; it then holds the part within. The error is
// a *FieldError that names the limit.
func Buckets(s Span, g Granularity) ([]time.Time, error) {
	if !g.valid() {
		return nil, fail("granularity", "one of %s", granularityNames)
	}
	c := newCuts(s, g)
	var starts []time.Time
	for t := c.first(s.Start); t.Before(s.End); t = c.next(t) {
		if len(starts) == MaxBuckets {
			return nil, fail("granularity", "the window has more than %d buckets of this length; choose a longer one or a shorter window", MaxBuckets)
		}
		starts = append(starts, t)
	}
	return starts, nil
}

// cuts walks over the starts of buckets.
type cuts struct {
	g    Granularity
	zone *time.Location
	// of a calendar bucket: the date that it starts with
	year  int
	month time.Month
	day   int
}

func newCuts(s Span, g Granularity) *cuts { return &cuts{g: g, zone: s.Zone} }

// first is the start of the bucket that t is in.
func (c *cuts) first(t time.Time) time.Time {
	t = t.In(c.zone)
	if c.g.step() > 0 {
		return clockFloor(t, c.g.step())
	}
	c.year, c.month, c.day = t.Date()
	switch c.g {
	case Week:
		c.day -= (int(t.Weekday()) + 6) % 7
	case Month:
		c.day = 1
	}
	return c.start()
}

// next is the start of the bucket after the one that starts at t.
func (c *cuts) next(t time.Time) time.Time {
	if step := c.g.step(); step > 0 {
		return clockFloor(t.Add(step), step)
	}
	// A zone may have skipped a whole day: such a bucket is empty and left out.
	n := c.start()
	for !n.After(t) {
		switch c.g {
		case Day:
			c.day++
		case Week:
			c.day += 7
		case Month:
			c.month++
		}
		n = c.start()
	}
	return n
}

func (c *cuts) start() time.Time { return dayStart(c.year, c.month, c.day, c.zone) }

// clockFloor is the start of the hour, quarter or minute that t is in by the
// clock of its zone. Where the clock was moved within, it is the moment of that.
func clockFloor(t time.Time, step time.Duration) time.Time {
	_, offset := t.Zone()
	shift := time.Duration(offset) * time.Second
	start := floor(t.Add(shift), step).Add(-shift)
	if moved, _ := t.ZoneBounds(); !moved.IsZero() && moved.After(start) {
		start = moved
	}
	return start.In(t.Location())
}

// dayStart is the first instant of a date, also where the clock is moved at
// midnight and where the date does not exist (then the moment it was skipped).
func dayStart(year int, month time.Month, day int, zone *time.Location) time.Time {
	noon := time.Date(year, month, day, 12, 0, 0, 0, time.UTC)
	midnight := noon.Add(-12 * time.Hour)
	before := offsetAt(time.Date(year, month, day-1, 12, 0, 0, 0, zone))
	after := offsetAt(time.Date(year, month, day, 12, 0, 0, 0, zone))
	byBefore, byAfter := midnight.Add(-before).In(zone), midnight.Add(-after).In(zone)
	if before == after {
		return byBefore
	}
	moved, _ := time.Date(year, month, day, 12, 0, 0, 0, zone).ZoneBounds()
	switch {
	case byBefore.Before(moved):
		return byBefore
	case !byAfter.Before(moved):
		return byAfter
	}
	return moved.In(zone)
}

func offsetAt(t time.Time) time.Duration {
	_, offset := t.Zone()
	return time.Duration(offset) * time.Second
}
