package money

import (
	"encoding/binary"
	"math/bits"
)

// The wire form of Postgres' numeric (src/backend/utils/adt/numeric.c, numeric_send): four
// big-endian 16-bit words — ndigits, weight, sign, dscale — and ndigits digits of base
// 10000, the first of which counts 10000^weight. With scale 12 the point falls between
// digits, three of them behind it.
const (
	pgBase           = 10000
	pgFractionDigits = Scale / 4
	pgHeaderLen      = 8
	pgNegative       = 0x4000
	// pgMaxDigits holds 10³⁸: ten groups of four decimal digits.
	pgMaxDigits = 10
	// PgNumericMaxLen is the longest value that AppendPgNumeric appends, in bytes.
	PgNumericMaxLen = pgHeaderLen + 2*pgMaxDigits
)

// AppendPgNumeric appends p as a binary numeric with scale 12, without the length word of
// a COPY field, and allocates only when dst must grow.
func (p Pico) AppendPgNumeric(dst []byte) []byte {
	return appendPgNumeric(dst, 0, p.abs(), p < 0)
}

// AppendPgNumeric appends s as Pico.AppendPgNumeric does.
func (s Sum) AppendPgNumeric(dst []byte) []byte {
	hi, lo := s.magnitude()
	return appendPgNumeric(dst, hi, lo, s.hi < 0)
}

// AppendPgField appends p as a whole field of a binary COPY row: the 32-bit length and
// the numeric.
func (p Pico) AppendPgField(dst []byte) []byte {
	at := len(dst)
	dst = p.AppendPgNumeric(append(dst, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

// AppendPgField appends s as Pico.AppendPgField does.
func (s Sum) AppendPgField(dst []byte) []byte {
	at := len(dst)
	dst = s.AppendPgNumeric(append(dst, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

func appendPgNumeric(dst []byte, hi, lo uint64, negative bool) []byte {
	var digits [pgMaxDigits]uint16
	first, last := pgMaxDigits, 0 // the span of non-zero digits, last exclusive
	for i := pgMaxDigits - 1; hi|lo != 0; i-- {
		var d uint64
		if hi == 0 {
			lo, d = lo/pgBase, lo%pgBase
		} else {
			hi, lo, d = divide(hi, lo, pgBase)
		}
		digits[i] = uint16(d)
		if d != 0 {
			first, last = i, max(last, i+1)
		}
	}
	count, weight, sign := 0, 0, uint16(0)
	if last > 0 {
		count = last - first
		weight = pgMaxDigits - pgFractionDigits - 1 - first
	}
	if negative {
		sign = pgNegative
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(count))
	dst = binary.BigEndian.AppendUint16(dst, uint16(int16(weight)))
	dst = binary.BigEndian.AppendUint16(dst, sign)
	dst = binary.BigEndian.AppendUint16(dst, Scale)
	for i := first; i < last; i++ {
		dst = binary.BigEndian.AppendUint16(dst, digits[i])
	}
	return dst
}

// ParsePgNumeric reads a binary numeric (without the length word of its field), exactly.
// Errors: ErrWire for bytes that are not one, NaN and infinities; ErrPrecision for a
// digit below 1e-12; ErrOverflow.
func ParsePgNumeric(b []byte) (Pico, error) {
	hi, lo, negative, err := parsePgMagnitude(b)
	if err != nil {
		return 0, err
	}
	return fromMagnitude(hi, lo, negative)
}

// ParsePgNumericSum is ParsePgNumeric for a Sum.
func ParsePgNumericSum(b []byte) (Sum, error) {
	hi, lo, negative, err := parsePgMagnitude(b)
	if err != nil {
		return Sum{}, err
	}
	return sumFromMagnitude(hi, lo, negative)
}

func parsePgMagnitude(b []byte) (hi, lo uint64, negative bool, err error) {
	if len(b) < pgHeaderLen {
		return 0, 0, false, ErrWire
	}
	count := int(binary.BigEndian.Uint16(b))
	weight := int(int16(binary.BigEndian.Uint16(b[2:])))
	sign := binary.BigEndian.Uint16(b[4:])
	digits := b[pgHeaderLen:]
	if len(digits) != 2*count || (sign != 0 && sign != pgNegative) {
		return 0, 0, false, ErrWire
	}
	if hi, lo, err = pgDigits(digits, weight); err != nil {
		return 0, 0, false, err
	}
	return hi, lo, sign == pgNegative, nil
}

// pgDigits adds up digits, the first of which counts 10000^weight, in units of 1e-12.
func pgDigits(digits []byte, weight int) (hi, lo uint64, err error) {
	position := weight + pgFractionDigits // the power of 10000 in units of 1e-12
	for ; len(digits) > 0; digits, position = digits[2:], position-1 {
		d := uint64(binary.BigEndian.Uint16(digits))
		switch {
		case d >= pgBase:
			return 0, 0, ErrWire
		case d != 0 && position < 0:
			return 0, 0, ErrPrecision
		case position >= 0:
			if hi, lo, err = shiftInGroup(hi, lo, d); err != nil {
				return 0, 0, err
			}
		}
	}
	for ; position >= 0 && hi|lo != 0; position-- {
		if hi, lo, err = shiftInGroup(hi, lo, 0); err != nil {
			return 0, 0, err
		}
	}
	return hi, lo, nil
}

// shiftInGroup returns hi:lo × 10000 + d, or ErrOverflow beyond 128 bits.
func shiftInGroup(hi, lo, d uint64) (uint64, uint64, error) {
	over, top := bits.Mul64(hi, pgBase)
	carry, low := bits.Mul64(lo, pgBase)
	low, c := bits.Add64(low, d, 0)
	top, c2 := bits.Add64(top, carry, c)
	if over != 0 || c2 != 0 {
		return 0, 0, ErrOverflow
	}
	return top, low, nil
}
