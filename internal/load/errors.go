package load

import "errors"

var (
	// ErrOptions: the options contradict each other or are out of range. The
	// caller corrects them.
	ErrOptions = errors.New("load: bad options")
	// ErrTrace: the trace file cannot be read or has no known form.
	ErrTrace = errors.New("load: bad trace")
	// ErrAuth: the server refused the credential (401, 403).
	ErrAuth = errors.New("load: not authorised")
	// ErrRefused: the server refused a request as a whole for a reason that
	// sending it again cannot change.
	ErrRefused = errors.New("load: request refused")
	// ErrUnavailable: the deadline passed while the server was away.
	ErrUnavailable = errors.New("load: server unavailable")
	// ErrStopped: the load was stopped before it had sent anything.
	ErrStopped = errors.New("load: stopped before it began")

	// errEnd: the source has no more calls.
	errEnd = errors.New("end of source")
)
