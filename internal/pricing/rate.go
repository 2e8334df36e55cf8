package pricing

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
)

// Rate is a price per token in units of 1e-18 USD (atto-USD), 0 or more, or NoRate. The
// finest published rates (1e-10 USD) fit with eight digits to spare; the largest Rate is
// 9.2 USD per token.
type Rate int64

// NoRate marks a class that has no price. It is not zero: zero is a price.
const NoRate Rate = -1

const maxInt64 = math.MaxInt64

// rateScale is the decimal scale of a Rate.
const rateScale = 18

// ParseRate reads the literal of a JSON number, in USD per token, exactly: decimal digits,
// an optional fraction and exponent. A value that is negative, is not a whole number of
// 1e-18 USD or exceeds a Rate is ErrRate; nothing is rounded.
func ParseRate(literal string) (Rate, error) {
	mantissa, exponent, err := parseDecimal(literal)
	if err != nil {
		return NoRate, err
	}
	v, ok := scaleUp(mantissa, exponent+rateScale)
	if !ok {
		return NoRate, fmt.Errorf("%w: %.40q", ErrRate, literal)
	}
	return Rate(v), nil
}

// scaleUp returns m × 10^e if e is not negative and the result fits an int64.
func scaleUp(m uint64, e int) (int64, bool) {
	if m == 0 {
		return 0, true
	}
	if e < 0 {
		return 0, false
	}
	for ; e > 0; e-- {
		if m > maxInt64/10 {
			return 0, false
		}
		m *= 10
	}
	return int64(m), m <= maxInt64
}

// parseDecimal splits a JSON number into mantissa × 10^exponent, with the trailing zeros of
// the mantissa moved into the exponent, so equal values give equal parts.
func parseDecimal(literal string) (mantissa uint64, exponent int, err error) {
	bad := func() (uint64, int, error) { return 0, 0, fmt.Errorf("%w: %.40q", ErrRate, literal) }
	rest := literal
	digits, seenPoint := 0, false
	zeros := 0 // zeros read but not yet needed
scan:
	for ; rest != ""; rest = rest[1:] {
		switch c := rest[0]; {
		case c == '.' && !seenPoint && digits > 0:
			seenPoint = true
			continue
		case c < '0' || c > '9':
			break scan
		case c == '0':
			zeros++
		default:
			if mantissa, err = appendDigits(mantissa, zeros, uint64(c-'0')); err != nil {
				return bad()
			}
			zeros = 0
		}
		digits++
		if seenPoint {
			exponent--
		}
	}
	if digits == 0 || (seenPoint && literal[len(literal)-len(rest)-1] == '.') {
		return bad()
	}
	if rest != "" {
		e, ok := parseExponent(rest)
		if !ok {
			return bad()
		}
		exponent += e
	}
	if mantissa == 0 {
		return 0, 0, nil
	}
	return mantissa, exponent + zeros, nil
}

// appendDigits returns m followed by zeros and one digit, if that fits.
func appendDigits(m uint64, zeros int, digit uint64) (uint64, error) {
	if m == 0 {
		return digit, nil
	}
	for range zeros + 1 {
		hi, lo := bits.Mul64(m, 10)
		if hi != 0 {
			return 0, ErrRate
		}
		m = lo
	}
	if m > math.MaxUint64-digit {
		return 0, ErrRate
	}
	return m + digit, nil
}

// parseExponent reads "e-7" and the like; exponents beyond ±1000 are no price.
func parseExponent(s string) (int, bool) {
	if len(s) < 2 || len(s) > 6 || (s[0] != 'e' && s[0] != 'E') {
		return 0, false
	}
	e, err := strconv.Atoi(s[1:])
	return e, err == nil && e >= -1000 && e <= 1000
}

// times returns r × mantissa × 10^exponent, exactly, or ErrRate.
func (r Rate) times(mantissa uint64, exponent int) (Rate, error) {
	hi, lo := bits.Mul64(uint64(r), mantissa)
	for ; exponent < 0; exponent++ {
		var rem uint64
		hi, rem = hi/10, hi%10
		if lo, rem = bits.Div64(rem, lo, 10); rem != 0 {
			return NoRate, ErrRate
		}
	}
	v, ok := scaleUp(lo, exponent)
	if hi != 0 || !ok {
		return NoRate, ErrRate
	}
	return Rate(v), nil
}
