package usage

import "unicode/utf8"

// otherError is the error type of a response whose own is no name of an error.
const otherError = "provider_error"

// Limits of names of errors.
const (
	maxErrorName = 64
	maxErrorRun  = 24 // lower-case letters in a row
	maxDigits    = 6
)

// errorName keeps what can be the name of an error, such as invalid_request_error,
// RESOURCE_EXHAUSTED, ThrottlingException or 429. A provider that repeats a prompt where a
// name belongs, be it in base64 or hexadecimal digits, must not bring it into an event:
// such text has digits among its letters and capitals without words behind them.
func errorName(s string) string {
	if s == "" {
		return ""
	}
	var letters, capitals, lower, run, digits, groups int
	var last byte
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= utf8.RuneSelf:
			return otherError
		case c >= '0' && c <= '9':
			if digits++; last < '0' || last > '9' {
				groups++
			}
			run = 0
		case c >= 'a' && c <= 'z':
			letters, lower, run = letters+1, lower+1, run+1
		case c >= 'A' && c <= 'Z':
			letters, capitals, run = letters+1, capitals+1, 0
		default:
			run = 0
		}
		if run > maxErrorRun {
			return otherError
		}
		last = c
	}
	mixed := capitals > 0 && lower > 0
	// Of a name's capitals each begins a word, but for an acronym or two.
	if len(s) > maxErrorName || digits > maxDigits || mixed && (groups > 1 || 3*capitals > letters+6) {
		return otherError
	}
	return s
}
