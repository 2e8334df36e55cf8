package money

import (
	"math/bits"
	"strconv"
)

// maxTextLen bounds what Parse looks at, so a hostile megabyte of zeros costs nothing.
const maxTextLen = 128

// String returns the canonical text: twelve fraction digits, no exponent, no '+'.
func (p Pico) String() string {
	var buf [24]byte
	return string(p.AppendTo(buf[:0]))
}

// AppendTo appends the canonical text to dst; it allocates only when dst must grow.
func (p Pico) AppendTo(dst []byte) []byte {
	if p < 0 {
		dst = append(dst, '-')
	}
	m := p.abs()
	dst = strconv.AppendUint(dst, m/uint64(USD), 10)
	return appendFraction(dst, m%uint64(USD))
}

// appendFraction appends the point and exactly twelve digits of f < 1e12.
func appendFraction(dst []byte, f uint64) []byte {
	var digits [Scale]byte
	for i := Scale - 1; i >= 0; i-- {
		digits[i] = byte('0' + f%10)
		f /= 10
	}
	dst = append(dst, '.')
	return append(dst, digits[:]...)
}

// MarshalText returns the canonical text; JSON therefore carries money as a string.
func (p Pico) MarshalText() ([]byte, error) { return p.AppendTo(nil), nil }

// UnmarshalText is Parse. A JSON number is refused by encoding/json itself, because a
// number may have passed through somebody's float.
func (p *Pico) UnmarshalText(text []byte) error {
	v, err := Parse(string(text))
	if err == nil {
		*p = v
	}
	return err
}

// Parse reads a plain decimal such as "12", "-0.5" or "0.000001230000", exactly. It refuses
// exponents, signs other than '-', blanks and empty sides of the point (ErrSyntax), a
// non-zero digit below 1e-12 (ErrPrecision) and what does not fit (ErrOverflow).
func Parse(s string) (Pico, error) {
	hi, lo, negative, err := parseMagnitude(s)
	if err != nil {
		return 0, err
	}
	return fromMagnitude(hi, lo, negative)
}

// ParseSum is Parse for a Sum.
func ParseSum(s string) (Sum, error) {
	hi, lo, negative, err := parseMagnitude(s)
	if err != nil {
		return Sum{}, err
	}
	return sumFromMagnitude(hi, lo, negative)
}

// parseMagnitude reads the digits of s as a 128-bit count of 1e-12 units.
func parseMagnitude(s string) (hi, lo uint64, negative bool, err error) {
	if len(s) > 0 && s[0] == '-' {
		negative, s = true, s[1:]
	}
	if len(s) > maxTextLen {
		return 0, 0, false, ErrSyntax
	}
	point, err := checkDecimal(s)
	if err != nil {
		return 0, 0, false, err
	}
	for i := 0; i < point+1+Scale; i++ {
		if i == point {
			continue
		}
		var digit byte
		if i < len(s) {
			digit = s[i] - '0'
		}
		if hi, lo, err = shiftInDigit(hi, lo, digit); err != nil {
			return 0, 0, false, err
		}
	}
	return hi, lo, negative, nil
}

// checkDecimal checks digits, one optional point and that no non-zero digit lies below
// 1e-12; it returns the index of the point, or len(s) without one.
func checkDecimal(s string) (point int, err error) {
	point = len(s)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.' && point == len(s):
			point = i
		case c < '0' || c > '9':
			return 0, ErrSyntax
		}
	}
	if point == 0 || point == len(s)-1 {
		return 0, ErrSyntax
	}
	for i := point + 1 + Scale; i < len(s); i++ {
		if s[i] != '0' {
			return 0, ErrPrecision
		}
	}
	return point, nil
}

// shiftInDigit returns hi:lo × 10 + digit, or ErrOverflow beyond 128 bits.
func shiftInDigit(hi, lo uint64, digit byte) (uint64, uint64, error) {
	over, top := bits.Mul64(hi, 10)
	carry, low := bits.Mul64(lo, 10)
	low, c := bits.Add64(low, uint64(digit), 0)
	top, c2 := bits.Add64(top, carry, c)
	if over != 0 || c2 != 0 {
		return 0, 0, ErrOverflow
	}
	return top, low, nil
}
