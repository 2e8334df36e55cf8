package gputime

import "errors"

var (
	// ErrFenced: another process has the partition by now. What was not committed is
	// its to do.
	ErrFenced = errors.New("gputime: another process has the partition")
	// ErrState: a stored window is not one that this program wrote. The partition halts.
	ErrState = errors.New("gputime: a stored window cannot be read")
	// ErrRefusedState: Postgres refuses what is to be stored, for a reason that time does
	// not mend. The partition halts.
	ErrRefusedState = errors.New("gputime: what is to be stored is refused")
)
