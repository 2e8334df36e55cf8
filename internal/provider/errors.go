package provider

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalid says that what was given cannot be kept; the error is a *FieldError.
	ErrInvalid = errors.New("provider: not acceptable")
	// ErrNotFound says that the tenant has no such key or switch in force.
	ErrNotFound = errors.New("provider: no such thing in force")
	// ErrExists says that the same switch is in force already.
	ErrExists = errors.New("provider: there is one in force already")
	// ErrBudget says that a month's spend cap is reached; the text names the cap.
	// Answer 429; the caller need not come again before the cap is raised or the
	// month is over.
	ErrBudget = errors.New("provider: the spend cap is reached")
	// ErrNoKey says that the tenant has no key for the provider that can be used.
	// Answer 502.
	ErrNoKey = errors.New("provider: no key for this provider")
	// ErrUnavailable says that nobody can tell now what the tenant allows. Answer
	// 503: the caller comes again.
	ErrUnavailable = errors.New("provider: what the tenant allows cannot be told now")
)

// FieldError says which field of what was given breaks which rule. It matches
// ErrInvalid. Its text never holds a key.
type FieldError struct {
	Field string // as in the API, such as "value"
	Rule  string // such as "pattern", "length", "limit"
	Text  string
}

// Error is the text for people.
func (e *FieldError) Error() string { return e.Text }

// Unwrap makes it match ErrInvalid.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// wrong is a FieldError.
func wrong(field, rule, format string, args ...any) error {
	return &FieldError{field, rule, fmt.Sprintf(format, args...)}
}
