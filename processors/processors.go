// Package processors runs what is computed from the ledger: hops 5 and 6 of an
// event's life (docs/architecture.md).
//
// The runner reads the topic `entries`, partition by partition, hands every
// entry to pure processors exactly once and in ledger order, and stores entries
// and results in ClickHouse by planned batches: the exact range of ledger
// commits is recorded in Postgres first, then inserted under the plan's token,
// then confirmed. Whatever is killed, the same plan is sent again and ClickHouse
// drops what it has.
//
// It promises that a gap in `entries` is seen and filled from the ledger, that
// replaying gives the same results, and that it halts rather than count an
// entry twice. It never writes to the ledger.
package processors

import (
	"context"

	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// Range is consecutive commits of the ledger in one partition.
type Range struct {
	Partition int32
	From, To  int64 // numbers of the first and last commit, both included
}

// Plan is a batch for ClickHouse, recorded before it is sent.
type Plan struct {
	ID     string // a UUID; the deduplication token of its inserts
	Ranges []Range
}

// Sink stores what a plan names. It is used by one goroutine.
type Sink interface {
	// Reset empties the block for the next plan.
	Reset()
	// Append adds one entry of the plan; commit is its number in its partition.
	// The entry and its strings are only valid during the call.
	Append(e *chain.Entry, commit int64) error
	// AppendRollup adds one result row of the plan.
	AppendRollup(r *finding.Rollup) error
	// Store inserts all that was appended since Reset under the plan's token and
	// returns when it is durable. Storing the same plan again changes nothing.
	Store(ctx context.Context, plan *Plan) error
	// Largest is, per partition, the largest commit that any stored plan names.
	Largest(ctx context.Context) (map[int32]int64, error)
	// Transient reports whether an error of Store or Largest passes with time.
	Transient(err error) bool
}

// Ledger reads committed entries back, for what the topic does not hold any
// more. A Frame's slices are valid until fn returns.
type Ledger interface {
	// Frames calls fn with the frames of commits [from, to] in order.
	Frames(ctx context.Context, partition int32, from, to int64, fn func(*chain.Frame) error) error
}
