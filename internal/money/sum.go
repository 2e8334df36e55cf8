package money

import (
	"math/big"
	"math/bits"
	"strconv"
)

// Sum is an exact total of amounts in units of 1e-12 USD, a signed 128-bit integer that is
// kept within ±(10³⁸-1), the range of Decimal(38,12). The zero value is zero. Sums are
// values: they may be copied and compared with ==. A Sum is not safe for concurrent
// change.
type Sum struct {
	hi int64 // two's complement, high word
	lo uint64
}

// limit is 10³⁸, the first magnitude that a Sum does not hold.
const (
	limitHi = 0x4B3B4CA85A86C47A
	limitLo = 0x098A224000000000
)

// SumOf returns p as a Sum.
func SumOf(p Pico) Sum { return Sum{hi: int64(p) >> 63, lo: uint64(p)} }

// AddPico adds p to s. On ErrOverflow s is unchanged.
func (s *Sum) AddPico(p Pico) error { return s.Add(SumOf(p)) }

// Add adds t to s. On ErrOverflow s is unchanged.
func (s *Sum) Add(t Sum) error {
	lo, carry := bits.Add64(s.lo, t.lo, 0)
	hi, _ := bits.Add64(uint64(s.hi), uint64(t.hi), carry)
	return s.set(Sum{int64(hi), lo}, (s.hi < 0) == (t.hi < 0))
}

// Sub subtracts t from s. On ErrOverflow s is unchanged.
func (s *Sum) Sub(t Sum) error {
	lo, borrow := bits.Sub64(s.lo, t.lo, 0)
	hi, _ := bits.Sub64(uint64(s.hi), uint64(t.hi), borrow)
	return s.set(Sum{int64(hi), lo}, (s.hi < 0) != (t.hi < 0))
}

// set stores r in s unless it is out of range; mayWrap says that the operands' signs
// allow the 128-bit result to have changed sign by wrapping.
func (s *Sum) set(r Sum, mayWrap bool) error {
	if (mayWrap && (r.hi < 0) != (s.hi < 0)) || !r.inRange() {
		return ErrOverflow
	}
	*s = r
	return nil
}

// inRange reports |s| < 10³⁸.
func (s Sum) inRange() bool {
	hi, lo := s.magnitude()
	return hi < limitHi || (hi == limitHi && lo < limitLo)
}

// magnitude returns |s| as two words.
func (s Sum) magnitude() (hi, lo uint64) {
	if s.hi >= 0 {
		return uint64(s.hi), s.lo
	}
	lo, borrow := bits.Sub64(0, s.lo, 0)
	hi, _ = bits.Sub64(0, uint64(s.hi), borrow)
	return hi, lo
}

// sumFromMagnitude puts the sign back and checks the range.
func sumFromMagnitude(hi, lo uint64, negative bool) (Sum, error) {
	if hi > limitHi || (hi == limitHi && lo >= limitLo) {
		return Sum{}, ErrOverflow
	}
	s := Sum{int64(hi), lo}
	if negative {
		hi, lo = s.negated()
		s = Sum{int64(hi), lo}
	}
	return s, nil
}

// negated returns the two's complement words of -s.
func (s Sum) negated() (hi, lo uint64) {
	lo, borrow := bits.Sub64(0, s.lo, 0)
	hi, _ = bits.Sub64(0, uint64(s.hi), borrow)
	return hi, lo
}

// Neg returns -s; the range is symmetric, so this cannot fail.
func (s Sum) Neg() Sum {
	hi, lo := s.negated()
	return Sum{int64(hi), lo}
}

// Cmp returns -1, 0 or +1 as s is less than, equal to or greater than t.
func (s Sum) Cmp(t Sum) int {
	switch {
	case s == t:
		return 0
	case s.hi < t.hi || (s.hi == t.hi && s.lo < t.lo):
		return -1
	}
	return 1
}

// IsZero reports s == 0.
func (s Sum) IsZero() bool { return s == Sum{} }

// Sign returns -1, 0 or +1.
func (s Sum) Sign() int { return s.Cmp(Sum{}) }

// Pico returns s as a Pico, or ErrOverflow.
func (s Sum) Pico() (Pico, error) {
	hi, lo := s.magnitude()
	return fromMagnitude(hi, lo, s.hi < 0)
}

// Words returns the two's complement words of s, the value of a Decimal(38,12) column:
// ClickHouse stores lo and then hi, each little-endian.
func (s Sum) Words() (hi, lo uint64) { return uint64(s.hi), s.lo }

// SumFromWords is the inverse of Words; words outside Decimal(38,12) return ErrOverflow.
func SumFromWords(hi, lo uint64) (Sum, error) {
	s := Sum{int64(hi), lo}
	if !s.inRange() {
		return Sum{}, ErrOverflow
	}
	return s, nil
}

// Big returns s in units of 1e-12 USD as a new big.Int.
func (s Sum) Big() *big.Int {
	hi, lo := s.magnitude()
	b := new(big.Int).SetUint64(hi)
	b.Lsh(b, 64).Or(b, new(big.Int).SetUint64(lo))
	if s.hi < 0 {
		b.Neg(b)
	}
	return b
}

// SumFromBig returns b, in units of 1e-12 USD, as a Sum, or ErrOverflow.
func SumFromBig(b *big.Int) (Sum, error) {
	if b.BitLen() > 127 {
		return Sum{}, ErrOverflow
	}
	m := new(big.Int).Abs(b)
	lo := m.Uint64() // the low 64 bits
	hi := new(big.Int).Rsh(m, 64).Uint64()
	return sumFromMagnitude(hi, lo, b.Sign() < 0)
}

// String returns the canonical text: twelve fraction digits, no exponent, no '+'.
func (s Sum) String() string {
	var buf [48]byte
	return string(s.AppendTo(buf[:0]))
}

// AppendTo appends the canonical text to dst; it allocates only when dst must grow.
func (s Sum) AppendTo(dst []byte) []byte {
	if s.hi < 0 {
		dst = append(dst, '-')
	}
	hi, lo := s.magnitude()
	hi, lo, fraction := divide(hi, lo, uint64(USD))
	// The dollars are below 10²⁶: two groups of at most 13 digits.
	_, high, low := divide(hi, lo, 1e13)
	if high != 0 {
		dst = strconv.AppendUint(dst, high, 10)
		for width := uint64(1e12); width > low && width > 1; width /= 10 {
			dst = append(dst, '0')
		}
	}
	dst = strconv.AppendUint(dst, low, 10)
	return appendFraction(dst, fraction)
}

// divide returns the quotient words and the remainder of hi:lo / den, den > 0.
func divide(hi, lo, den uint64) (qhi, qlo, rem uint64) {
	qhi, rem = hi/den, hi%den
	qlo, rem = bits.Div64(rem, lo, den)
	return qhi, qlo, rem
}

// MarshalText returns the canonical text; JSON therefore carries money as a string.
func (s Sum) MarshalText() ([]byte, error) { return s.AppendTo(nil), nil }

// UnmarshalText is ParseSum.
func (s *Sum) UnmarshalText(text []byte) error {
	v, err := ParseSum(string(text))
	if err == nil {
		*s = v
	}
	return err
}
