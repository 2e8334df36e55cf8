package processors

import (
	"errors"
	"fmt"
)

// Errors that halt a partition: waiting does not mend them, and going on would
// count an entry twice or leave one out. Each message names the partition and
// the commit.
var (
	// ErrAhead: ClickHouse holds plans that Postgres knows nothing of, as after
	// restoring Postgres from a backup. The operator deletes the partition's
	// rows from ClickHouse and its checkpoint, and it is rebuilt from the ledger.
	ErrAhead = errors.New("clickhouse is ahead of the checkpoint: delete the partition from clickhouse and rebuild it from the ledger")
	// ErrBehind: ClickHouse has lost plans that were confirmed. The remedy is
	// the same.
	ErrBehind = errors.New("clickhouse lost plans that were confirmed: delete the partition from clickhouse and rebuild it from the ledger")
	// ErrMissing: the ledger lacks a commit or an entry that it must have.
	ErrMissing = errors.New("the ledger lacks entries of a commit")
	// ErrCorrupt: what the ledger holds does not decode, or does not follow the
	// entry before it.
	ErrCorrupt = errors.New("the ledger's entries do not fit together")
	// ErrRefused: Postgres or ClickHouse will never accept what was sent.
	ErrRefused = errors.New("a store refused the plan")
)

// Errors that pass.
var (
	// ErrFenced: another process took the partition over. The caller forgets
	// what it has of it and begins again at the checkpoint.
	ErrFenced = errors.New("the partition's checkpoint was moved by another process")
	// ErrLedgerBehind: the ledger does not have the commit yet, as while it is
	// recovering after a restore.
	ErrLedgerBehind = errors.New("the ledger does not have the commit yet")
)

// errDiscontinuity is a commit that does not follow what is stored. The first
// time it can mean that another process has moved on; only when it comes again
// at the same commit, after a fresh start, is the ledger itself at fault.
type errDiscontinuity struct {
	commit int64
	detail string
}

func (e *errDiscontinuity) Error() string {
	return fmt.Sprintf("commit %d: %s", e.commit, e.detail)
}

// Halts reports whether the error is one that waiting cannot mend.
func Halts(err error) bool {
	for _, target := range []error{ErrAhead, ErrBehind, ErrMissing, ErrCorrupt, ErrRefused} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
