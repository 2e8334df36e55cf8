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
//
// One goroutine per partition puts frames in order and checks them; one storer
// goroutine per process owns all state, makes the plans and is the only user of
// the Sink. A plan takes whole commits of every partition at once, so that
// twelve partitions make one insert and not twelve.
package processors

import (
	"context"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors/finding"
)

// Range is consecutive commits of the ledger in one partition.
type Range struct {
	Partition int32
	From, To  int64 // numbers of the first and last commit, both included
	// Filled is the last of the commits that holds an entry, 0 when none does:
	// a commit that only counted duplicates is empty.
	Filled int64
	// Resume is where reading `entries` goes on after the range.
	Resume kafka.Position
}

// Plan is a batch for ClickHouse, recorded before it is sent.
type Plan struct {
	ID     string  // a UUID; the deduplication token of its inserts
	Ranges []Range // in ascending order of partition, one for each
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
// more. It is used by several goroutines.
type Ledger interface {
	// Frames calls fn with the frames of commits [from, to] in order; an empty
	// commit has none. A Frame's slices are valid until fn returns. fn may take
	// long: no transaction and no connection is held meanwhile. ErrLedgerBehind
	// when the ledger does not have all of the commits yet, ErrMissing when it
	// should have them and does not; an error of fn comes back as it is.
	Frames(ctx context.Context, partition int32, from, to int64, fn func(*chain.Frame) error) error
	// LastCommits is the number of the newest commit of each partition.
	LastCommits(ctx context.Context) (map[int32]int64, error)
}

// Checkpoint is how far a partition is stored in ClickHouse.
type Checkpoint struct {
	Commit int64 // the last stored commit, 0 before the first
	Filled int64 // the last stored commit that holds an entry, 0 before the first
	Resume kafka.Position
	Open   string // id of the plan that is recorded and not confirmed, or ""
}

// Covered is how far one tenant's chain is stored in ClickHouse.
type Covered struct {
	Tenant     string
	Partition  int32
	Seq        int64
	Chain      chain.Hash
	ReceivedAt int64 // largest of the stored entries, unix nanoseconds
}

// Store keeps checkpoints and plans where every process sees them. It is used
// by several goroutines. An error that is none of this package's sentinels
// passes with time, and says nothing about whether the change was made: doing
// it again is always right.
type Store interface {
	// Checkpoint reads how far the partition is; zero when it was never stored.
	Checkpoint(ctx context.Context, partition int32) (Checkpoint, error)
	// Record makes the plan durable. ErrFenced when a range does not begin
	// right after its partition's checkpoint, or another plan is open there.
	Record(ctx context.Context, plan *Plan) error
	// Open reads a plan that was recorded; nil when it has been confirmed.
	Open(ctx context.Context, id string) (*Plan, error)
	// Confirm moves the checkpoints to the end of the plan's ranges and the
	// coverage of its tenants, in one transaction. Confirming again changes
	// nothing, whoever did it first.
	Confirm(ctx context.Context, plan *Plan, covered []Covered) error
	// Covered reads the coverage of those of the tenants that have any.
	Covered(ctx context.Context, tenants []string) ([]Covered, error)
}

// Snapshot is the state of one processor in one partition after a commit.
type Snapshot struct {
	Processor string
	Version   int
	Commit    int64
	State     []byte
}

// Snapshots keeps state so that a start need not read the ledger from its
// beginning. Losing a snapshot costs time and nothing else.
type Snapshots interface {
	// Save replaces the processor's snapshot of an earlier commit.
	Save(ctx context.Context, partition int32, s *Snapshot) error
	// Load reads the newest snapshot; nil when there is none.
	Load(ctx context.Context, partition int32, processor string) (*Snapshot, error)
}

// Processor computes results from the entries of one partition. It is pure: its
// state after a commit is a function of the entries up to that commit and of
// its version, never of a clock or of how commits were batched into plans.
type Processor interface {
	// Name is stored with its snapshots; Version changes whenever the same
	// entries would give another state.
	Name() string
	Version() int
	// Apply takes the next entry in ledger order. The entry and its strings are
	// only valid during the call.
	Apply(e *chain.Entry) error
	// Flush emits what the entries since the last Flush add, in an order that
	// depends on nothing else. The emitted value is only valid during the call.
	Flush(emit func(*finding.Rollup) error) error
	// Snapshot appends the state to b, without what Flush has yet to emit.
	Snapshot(b []byte) []byte
	// Restore replaces the state by what Snapshot wrote.
	Restore(b []byte) error
}
