package spool

import "errors"

var (
	// ErrFull: there is no room below [Options.MaxBytes] or on the disk. It heals
	// when the reader acknowledges; until then refuse what comes in.
	ErrFull = errors.New("spool: full")
	// ErrTooLarge: the records of one call never fit. Do not retry it.
	ErrTooLarge = errors.New("spool: too large")
	// ErrClosed: the spool was closed.
	ErrClosed = errors.New("spool: closed")
	// ErrBroken: a write failed and could not be taken back, so what is on disk
	// is not known. Only opening the folder again heals it.
	ErrBroken = errors.New("spool: broken by a failed write")
	// ErrCorrupt: a record that was durable is not what it was, or is missing.
	// Nothing heals it; the folder is left as it is for a person to look at.
	ErrCorrupt = errors.New("spool: corrupt")
	// ErrLocked: another process has the folder open.
	ErrLocked = errors.New("spool: in use by another process")
	// ErrKey: the folder is sealed and the key is missing or another one, or the
	// folder is plain and a key was given.
	ErrKey = errors.New("spool: wrong key")
)
