// Package analytics keeps the ledger's entries in ClickHouse and answers
// reports from them: hops 6 and 7 of an event's life (docs/architecture.md).
//
// A [Writer] stores planned batches. What it promises: a plan that is stored
// again, after whatever was killed, changes nothing, neither in a table nor in
// the target of a view; and no entry of a plan can be seen before the plan
// itself is announced.
//
// A [Reporter] answers reports by a closed registry of statements. What it
// promises: every statement forces its tenant twice; nothing that a user wrote
// becomes SQL text; money is exact to 1e-12 USD; what has no price is counted
// and is in no sum; and an answer says which part of the ledger it is computed
// from.
//
// It never writes to the ledger, never updates a row and never deletes one.
package analytics

import (
	"errors"

	"github.com/tallystick/tallystick/internal/clickhouse"
)

// MaxRows is the most entries, and the most rollups, that one plan may hold:
// more would not be one block and so not be stored by one token.
const MaxRows = clickhouse.MaxBlockRows

var (
	// ErrFull says that a plan holds more than [MaxRows] rows. The caller must
	// plan less; nothing was stored.
	ErrFull = errors.New("analytics: the plan has too many rows for one block")
	// ErrPlan says that a plan cannot be stored as it is: it has no id or names
	// no range. Nothing was stored.
	ErrPlan = errors.New("analytics: bad plan")
)
