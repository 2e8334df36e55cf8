// Package ledger is the single writer of the ledger: hops 3 and 4 of an
// event's life (docs/architecture.md).
//
// One goroutine per partition of the topic `events` reads records, decides
// which are new, prices and numbers them, chains and MACs them, and commits
// them in one Postgres transaction together with the Kafka offset after them.
// Then it publishes them, in order, to the topic `entries`.
//
// It promises: per tenant, sequence numbers run 1..n without gap or duplicate
// whatever is killed and whoever else believes to be the writer; an entry's
// canonical bytes are a pure function of the Kafka record and of earlier
// ledger state, so replaying the log gives the same hashes; a bad record
// becomes a ledgered rejection and stops nobody; a transient failure stops the
// partition and is retried for ever, never skipped; an impossible one halts it.
// It never reads a clock for anything that is stored, and never keeps a
// record's body.
package ledger

import (
	"context"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Store is where the ledger is kept. The implementation decides nothing: it
// makes a batch durable, or says why not. Methods are called by one goroutine
// per partition, except Known and Keys, which run beside Commit.
type Store interface {
	// Assign makes the caller the partition's only writer: it raises the fence,
	// so that every earlier owner's Commit fails with ErrFenced, and returns the
	// partition's state. ErrTopicChanged when the stored offsets are of another
	// topic or partition count.
	Assign(ctx context.Context, topic Topic, partition int32) (State, error)
	// Heads returns the heads of those of the tenants that have one.
	Heads(ctx context.Context, tenants []string) ([]Head, error)
	// Known returns those of the keys that the ledger holds, in any order.
	Known(ctx context.Context, refs []KeyRef) ([]KnownKey, error)
	// Originals returns, for those of the refs that are usage entries of the
	// ledger, the newest entry that says what the original comes to. A ref may
	// stand there twice.
	Originals(ctx context.Context, refs []KeyRef) ([]Original, error)
	// Keys calls fn for every key of the tenants. The slice is reused.
	Keys(ctx context.Context, tenants []string, fn func(tenant string, keys []event.Key)) error
	// Commit makes the batch durable in one transaction. ErrFenced when another
	// writer took over or a head is not where the batch says. When the outcome
	// is not known the error says nothing about it: Assign tells.
	Commit(ctx context.Context, b *Batch) error
	// Published notes that everything up to the batch is in `entries`, when
	// there is no commit for the note to ride in.
	Published(ctx context.Context, partition int32, epoch, batch int64) error
	// Batch reads the sealed entries of a committed batch, in commit order.
	Batch(ctx context.Context, partition int32, batch int64) (*Batch, error)
}

// Keys gives the writer its MAC keys.
type Keys interface {
	// MACKey is the key of the tenant's epoch. An error means that the key
	// cannot be had now; the partition waits for it.
	MACKey(id tenant.ID, epoch uint32) ([32]byte, error)
}

// Topic identifies the topic `events` as the writer found it.
type Topic struct {
	ID         [16]byte
	Partitions int32
}

// State is a partition's place in the log, as the store has it.
type State struct {
	Epoch          int64
	NextOffset     int64
	LastBatch      int64
	PublishedBatch int64
	// Controls are the newest global control records of each kind.
	Controls []ControlRow
	// Quarantined are the offsets from NextOffset on whose records an operator
	// has turned into rejections. They count by offset, so a replay decides alike.
	Quarantined []int64
}

// Head is the end of a tenant's chain.
type Head struct {
	Tenant     string
	Seq        int64
	Chain      chain.Hash
	KeyEpoch   uint32
	PriceBook  chain.Hash // the last book its chain names; zero when none
	ReceivedAt int64      // of the newest entry, unix nanoseconds
}

// KeyRef is an event key of a tenant.
type KeyRef struct {
	Tenant string
	Key    event.Key
}

// Content is the first half of an event's content MAC: enough to tell the same
// body from another one under the tenant's secret key.
type Content [16]byte

// KnownKey is a key that the ledger holds.
type KnownKey struct {
	KeyRef
	Content Content
	Seq     int64
}

// Batch is what one commit writes. Its memory belongs to the writer and is
// reused after the batch is published.
type Batch struct {
	Topic       Topic
	Partition   int32
	Epoch       int64
	Number      int64
	FirstOffset int64
	NextOffset  int64
	Published   int64 // highest batch known to be published

	Groups   []Group
	Rows     []Row // grouped by tenant, in sequence order: the order of publication
	Controls []ControlRow
	Counts   []CounterRow
	// Subjects are the persons that the batch may be the first to name.
	Subjects []SubjectRow
}

// Group is the rows of one tenant in a batch, and what they do to its head.
type Group struct {
	Before Head
	After  Head
	New    bool // the head is made by this batch
	// Rows[First : First+Count] are the group's.
	First, Count int
}

// Row is one sealed entry and its projections.
type Row struct {
	chain.Sealed
	Seq        int64
	Kind       chain.Kind
	OccurredAt int64 // unix nanoseconds, 0 when the entry has none
	Priced     bool
	Cost       money.Pico
	Key        event.Key
	Content    Content
	Corrects   int64 // of a correction, the number of its original
}

// ControlRow is a global control record with its place in the log.
type ControlRow struct {
	Offset  int64
	Kind    string
	Version string
	Hash    chain.Hash
	Content []byte
	// IssuedAt is the record's own time, unix nanoseconds.
	IssuedAt int64
}

// CounterRow adds to what the writer counted of one producer.
type CounterRow struct {
	Tenant     string
	ProducerID string
	Duplicates int64
	Conflicts  int64
	Rejected   int64
}
