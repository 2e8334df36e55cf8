// Package money is the only arithmetic that Tallystick does on money.
//
// What it is: Pico, one amount as an int64 of 1e-12 USD, and Sum, a signed 128-bit
// accumulator of such amounts that always fits Decimal(38,12), the column type
// of both databases.
//
// What it promises: every operation is exact or returns an error. Rounding happens in
// one function, RoundHalfEven, and nowhere else. The text form is canonical: an
// optional '-', at least one integer digit, a point and twelve fraction digits
// ("0.000001230000"), so equal amounts have equal text and equal text equal amounts.
//
// What it never does: use a float, wrap around, saturate, round without being asked,
// or know a currency other than USD.
package money

import (
	"math"
	"math/bits"
)

// Pico is an amount of money in units of 1e-12 USD. Its range is ±9,223,372.036854775807
// USD (and one unit more below zero), enough for one ledger entry; totals use Sum.
type Pico int64

const (
	// Scale is the number of decimal digits after the point of a Pico and a Sum.
	Scale = 12
	// USD is one US dollar.
	USD Pico = 1_000_000_000_000
	// Max and Min are the ends of the range of a Pico.
	Max Pico = math.MaxInt64
	Min Pico = math.MinInt64
)

// Add returns p+q, or ErrOverflow.
func (p Pico) Add(q Pico) (Pico, error) {
	s := p + q
	if (s > p) != (q > 0) && q != 0 {
		return 0, ErrOverflow
	}
	return s, nil
}

// Sub returns p-q, or ErrOverflow.
func (p Pico) Sub(q Pico) (Pico, error) {
	d := p - q
	if (d < p) != (q > 0) && q != 0 {
		return 0, ErrOverflow
	}
	return d, nil
}

// Neg returns -p, or ErrOverflow for Min.
func (p Pico) Neg() (Pico, error) {
	if p == Min {
		return 0, ErrOverflow
	}
	return -p, nil
}

// Mul returns p×n, or ErrOverflow.
func (p Pico) Mul(n int64) (Pico, error) {
	hi, lo := bits.Mul64(p.abs(), Pico(n).abs())
	return fromMagnitude(hi, lo, (p < 0) != (n < 0))
}

// abs returns |p|; the magnitude of Min fits a uint64.
func (p Pico) abs() uint64 {
	if p < 0 {
		return -uint64(p)
	}
	return uint64(p)
}

// fromMagnitude puts the sign back on a 128-bit magnitude.
func fromMagnitude(hi, lo uint64, negative bool) (Pico, error) {
	switch {
	case hi != 0:
		return 0, ErrOverflow
	case negative && lo <= 1<<63:
		return Pico(-lo), nil
	case lo <= math.MaxInt64:
		if negative {
			return -Pico(lo), nil
		}
		return Pico(lo), nil
	}
	return 0, ErrOverflow
}

// RoundHalfEven returns the exact rational num/den, in units of 1e-12 USD, rounded half
// to even, where num = hi·2⁶⁴+lo is not negative. It is the one rounding step that
// the ledger's rule 14 allows per component. Errors: ErrDivideByZero, ErrOverflow.
func RoundHalfEven(hi, lo, den uint64) (Pico, error) {
	if den == 0 {
		return 0, ErrDivideByZero
	}
	if hi >= den {
		return 0, ErrOverflow
	}
	q, r := bits.Div64(hi, lo, den)
	// r > den-r is 2r > den without the overflow of 2r.
	if half := den - r; r > half || (r == half && q&1 == 1) {
		q++ // q = 2⁶⁴-1 wraps to 0 only when hi = den-1 at the top; caught below
		if q == 0 {
			return 0, ErrOverflow
		}
	}
	if q > math.MaxInt64 {
		return 0, ErrOverflow
	}
	return Pico(q), nil
}

// attoPerPico is how many units of 1e-18 USD make one Pico.
const attoPerPico = 1_000_000

// MulAtto returns quantity × rate, where rate is in units of 1e-18 USD per unit of
// quantity, exact in 128 bits and then rounded half to even once to a Pico. Negative
// arguments are not amounts of anything and return ErrNegative.
func MulAtto(quantity, rate int64) (Pico, error) {
	if quantity < 0 || rate < 0 {
		return 0, ErrNegative
	}
	hi, lo := bits.Mul64(uint64(quantity), uint64(rate))
	if hi != 0 {
		return RoundHalfEven(hi, lo, attoPerPico)
	}
	// The common case: a 64-bit product, where the division by a constant is a
	// multiplication. q cannot reach MaxInt64 because it is at most 2⁶⁴/10⁶.
	q, r := lo/attoPerPico, lo%attoPerPico
	if r > attoPerPico/2 || (r == attoPerPico/2 && q&1 == 1) {
		q++
	}
	return Pico(q), nil
}
