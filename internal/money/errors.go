package money

import "errors"

// The errors of this package. Each means that no amount was produced: the caller must
// report or reject, never go on with the zero value that accompanies it.
var (
	// ErrOverflow: the exact result lies outside the range of the result type.
	ErrOverflow = errors.New("money: amount out of range")
	// ErrSyntax: the text is not a plain decimal number.
	ErrSyntax = errors.New("money: not a decimal amount")
	// ErrPrecision: the text has a non-zero digit below 1e-12.
	ErrPrecision = errors.New("money: more than 12 fraction digits")
	// ErrDivideByZero: a rational with denominator zero.
	ErrDivideByZero = errors.New("money: division by zero")
	// ErrNegative: a quantity or rate that must not be negative was.
	ErrNegative = errors.New("money: negative quantity or rate")
	// ErrWire: the bytes are not a finite Postgres binary numeric.
	ErrWire = errors.New("money: not a binary numeric")
)
