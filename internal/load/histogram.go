package load

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets of 1/16 of a power of two of
// microseconds: quantiles are right to about 6 %.
type histogram struct {
	buckets [64 * 16]int64
	n       int64
	max     time.Duration
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.buckets[bucketOf(uint64(d/time.Microsecond))]++
	h.n++
	h.max = max(h.max, d)
}

func bucketOf(us uint64) int {
	if us < 16 {
		return int(us)
	}
	shift := bits.Len64(us) - 5
	return shift*16 + int(us>>shift) // the top five bits, 16 to 31
}

// bucketTop is the greatest duration that falls into a bucket.
func bucketTop(i int) time.Duration {
	if i < 32 {
		return time.Duration(i) * time.Microsecond
	}
	shift := i/16 - 1
	top := (uint64(i%16+16)+1)<<shift - 1
	return time.Duration(top) * time.Microsecond
}

func (h *histogram) quantile(q float64) time.Duration {
	rank := int64(q * float64(h.n))
	for i, n := range h.buckets {
		if rank -= n; rank < 0 {
			return min(bucketTop(i), h.max)
		}
	}
	return h.max
}

// Latency summarises durations.
type Latency struct {
	N   int64         `json:"n"`
	P50 time.Duration `json:"p50_ns"`
	P90 time.Duration `json:"p90_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

func (h *histogram) summary() Latency {
	return Latency{N: h.n, P50: h.quantile(0.5), P90: h.quantile(0.9), P99: h.quantile(0.99), Max: h.max}
}
