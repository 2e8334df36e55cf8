package chdb

import (
	"net/http"
	"regexp"
	"strconv"
)

// Codes of ClickHouse's ErrorCodes.cpp that this package itself answers with or
// translates to an HTTP status.
const (
	codeBadArguments   = 36
	codeUnknownTable   = 60
	codeSyntaxError    = 62
	codeUnknownDB      = 81
	codeTimeout        = 159
	codeReadonly       = 164
	codeNotImplemented = 48
	codeTooManyBytes   = 307
	codeReceiveFailed  = 210
	codeQueryCancelled = 394
	codeUnknown        = 1002
)

// engineError is a refusal in ClickHouse's own words.
type engineError struct {
	code int
	text string // "Code: 60. DB::Exception: … (UNKNOWN_TABLE)"
}

// Error returns ClickHouse's text. It may quote values of the statement, so it
// goes to the client and never to a log.
func (e *engineError) Error() string { return e.text }

// refusal is an error of this package in the form of ClickHouse's.
func refusal(code int, name, message string) *engineError {
	return &engineError{code: code, text: "Code: " + strconv.Itoa(code) + ". DB::Exception: " + message + " (" + name + ")"}
}

var exceptionCode = regexp.MustCompile(`Code: (\d+)\.`)

// parseEngineError reads the code out of the engine's text. The first code
// counts: nested exceptions repeat or explain it.
func parseEngineError(text string) *engineError {
	code := codeUnknown
	if m := exceptionCode.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil && n > 0 {
			code = n
		}
	} else {
		text = "Code: " + strconv.Itoa(codeUnknown) + ". DB::Exception: " + text + " (UNKNOWN_EXCEPTION)"
	}
	return &engineError{code: code, text: text}
}

// status is the HTTP status that ClickHouse's server answers with.
func (e *engineError) status() int {
	switch e.code {
	case codeSyntaxError, codeBadArguments:
		return http.StatusBadRequest
	case codeUnknownTable, codeUnknownDB:
		return http.StatusNotFound
	case codeTooManyBytes:
		return http.StatusRequestEntityTooLarge
	case codeNotImplemented:
		return http.StatusNotImplemented
	case codeTimeout:
		return http.StatusRequestTimeout
	}
	return http.StatusInternalServerError
}
