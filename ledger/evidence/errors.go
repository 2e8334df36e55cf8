package evidence

import "errors"

// Errors of exports and packages.
var (
	// ErrRange says that the ledger has no entries of the range that was asked for.
	ErrRange = errors.New("evidence: there are no such entries")
	// ErrUncovered says that the end of the range is under no checkpoint yet. One
	// is signed within minutes: ask again, or for an earlier end.
	ErrUncovered = errors.New("evidence: the end of the range is under no checkpoint yet")
	// ErrKept says that a checkpoint size was named that no checkpoint has reached.
	ErrKept = errors.New("evidence: no tree of that size is published")
	// ErrGap says that the store lacks an entry of the range. The ledger is broken,
	// which `ledger verify` says in full; no package is made of it.
	ErrGap = errors.New("evidence: an entry is missing in the store")
)
