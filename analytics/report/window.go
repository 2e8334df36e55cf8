package report

import (
	"math"
	"time"
)

// Window is a half-open range of event time: two times, or a name.
type Window struct {
	Start, End time.Time
	// Name is one of Names, and then Start and End are zero.
	Name string
	// Zone is an IANA name; UTC when empty. Names and buckets are cut in it.
	Zone string
}

// The names of windows. Those that reach up to now end with the hour that is
// running, so that they consist of whole hours.
const (
	Last24Hours = "24h"
	Last7Days   = "7d"
	Last30Days  = "30d"
	Today       = "today"
	MonthToDate = "mtd"
	LastMonth   = "last_month"
	// All is from the tenant's first entry to its last.
	All = "all"
)

const windowNames = "24h, 7d, 30d, today, mtd, last_month, all"

// Span is a window whose ends are known, in whole microseconds.
type Span struct {
	Start, End time.Time
	Zone       *time.Location
}

// latest is the end of time as the ledger knows it: nanoseconds in an int64.
var latest = time.Unix(0, math.MaxInt64).Truncate(time.Microsecond)

// Resolve turns the window into two times. now is the present. extent is asked
// only for the window All and returns the first and last time of the tenant's
// entries, or zero times when there are none. Errors are *FieldError, or what
// extent returns.
func (w Window) Resolve(now time.Time, extent func() (first, last time.Time, err error)) (Span, error) {
	zone, err := w.zone()
	if err != nil {
		return Span{}, err
	}
	if w.Name == "" {
		return w.explicit(zone)
	}
	if !w.Start.IsZero() || !w.End.IsZero() {
		return Span{}, fail("window", "either a name or start and end")
	}
	now = now.In(zone)
	end := floor(now, time.Hour).Add(time.Hour)
	span := Span{End: end, Zone: zone}
	year, month, day := now.Date()
	switch w.Name {
	case Last24Hours:
		span.Start = end.Add(-24 * time.Hour)
	case Last7Days:
		span.Start = end.Add(-7 * 24 * time.Hour)
	case Last30Days:
		span.Start = end.Add(-30 * 24 * time.Hour)
	case Today:
		span.Start = dayStart(year, month, day, zone)
	case MonthToDate:
		span.Start = dayStart(year, month, 1, zone)
	case LastMonth:
		span.Start, span.End = dayStart(year, month-1, 1, zone), dayStart(year, month, 1, zone)
	case All:
		first, last, err := extent()
		if err != nil {
			return Span{}, err
		}
		if first.IsZero() {
			first, last = now, now
		}
		span.Start, span.End = floor(first, time.Hour), floor(last, time.Hour).Add(time.Hour)
	default:
		return Span{}, fail("window.name", "one of %s", windowNames)
	}
	span.Start, span.End = span.Start.In(zone), span.End.In(zone)
	return span, nil
}

func (w Window) zone() (*time.Location, error) {
	// "Local" would be the zone of whatever machine answers.
	if len(w.Zone) > MaxValueBytes || w.Zone == "Local" {
		return nil, fail("window.time_zone", "not an IANA time zone")
	}
	zone, err := time.LoadLocation(w.Zone)
	if err != nil {
		return nil, fail("window.time_zone", "not an IANA time zone")
	}
	return zone, nil
}

func (w Window) explicit(zone *time.Location) (Span, error) {
	switch {
	case w.Start.IsZero() || w.End.IsZero():
		return Span{}, fail("window", "start and end, or a name: %s", windowNames)
	case !w.Start.Before(w.End):
		return Span{}, fail("window.end", "must be after start")
	case w.Start.Before(time.Unix(0, 0)) || w.End.After(latest):
		return Span{}, fail("window", "times between 1970 and 2262")
	}
	// Times are stored in whole microseconds, cut off. Rounding up both ends
	// keeps "from start on" and "before end" true for every stored time.
	return Span{Start: ceil(w.Start).In(zone), End: ceil(w.End).In(zone), Zone: zone}, nil
}

func ceil(t time.Time) time.Time {
	if c := t.Truncate(time.Microsecond); c.Equal(t) {
		return c
	}
	return t.Truncate(time.Microsecond).Add(time.Microsecond)
}

// WholeHours reports whether both ends stand on whole hours of UTC.
func (s Span) WholeHours() bool { return wholeHour(s.Start) && wholeHour(s.End) }

func wholeHour(t time.Time) bool { return t.Unix()%3600 == 0 && t.Nanosecond() == 0 }

// floor is the last instant not after t that is a multiple of step since 1970
// in UTC.
func floor(t time.Time, step time.Duration) time.Time {
	seconds := int64(step / time.Second)
	rest := t.Unix() % seconds
	if rest < 0 {
		rest += seconds
	}
	return time.Unix(t.Unix()-rest, 0).In(t.Location())
}
