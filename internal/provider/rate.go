package provider

import "time"

// bucket holds a rate per minute: a leaky bucket as large as one minute's worth,
// kept as the time at which it will be empty (the generic cell rate algorithm,
// ITU-T I.371, in its virtual scheduling form). It may be overdrawn, which later
// takings wait for. The zero value is empty.
type bucket struct{ empty time.Time }

// span is how long n take at a rate per minute. Both are at most MaxPerMinute, so
// it does not overflow; what is more is as much.
func span(n, perMinute int64) time.Duration {
	return time.Duration(min(n, MaxPerMinute)) * time.Minute / time.Duration(perMinute)
}

// take puts n in if there is room now, else it says when there will be.
func (b *bucket) take(n, perMinute int64, now time.Time) (wait time.Duration) {
	from := b.from(now)
	// What is larger than the bucket goes when it is empty.
	if wait = from.Add(min(span(n, perMinute), time.Minute)).Sub(now) - time.Minute; wait > 0 {
		return wait
	}
	b.empty = from.Add(span(n, perMinute))
	return 0
}

// change puts n in, or takes -n out, whatever room there is.
func (b *bucket) change(n, perMinute int64, now time.Time) {
	if n < 0 {
		b.empty = b.from(now).Add(-span(-n, perMinute))
		return
	}
	b.empty = b.from(now).Add(span(n, perMinute))
}

func (b *bucket) from(now time.Time) time.Time {
	if b.empty.Before(now) {
		return now
	}
	return b.empty
}
