package checkpoint

import (
	"context"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/verify"
)

// End is the last record of a log and its chain hash.
type End struct {
	Seq   int64
	Chain Hash
}

// Source is a log as it is stored, of many tenants.
type Source interface {
	// Log is LedgerLog or AuditLog.
	Log() string
	// Ends are the ends of those of the tenants' logs that have records.
	Ends(ctx context.Context, ids []tenant.ID) (map[tenant.ID]End, error)
	// Chains are the stored chain hashes of one record of each tenant; a record
	// that is not there is left out.
	Chains(ctx context.Context, at map[tenant.ID]int64) (map[tenant.ID]Hash, error)
	// Rows calls fn with the records from..to in order of number, as they stand.
	// The slices are valid until fn returns; fn's error ends the reading.
	Rows(ctx context.Context, id tenant.ID, from, to int64, fn func(seq int64, canonical, chain []byte) error) error
	// Links checks the records behind the one with this number and chain hash.
	Links(id tenant.ID, after int64, chain Hash) *verify.Links
}

// Published is a checkpoint in the store.
type Published struct {
	Size     int64
	Root     Hash
	Chain    Hash // chain hash of record Size
	Note     string
	SignedAt time.Time
	// Cosignatures are the signature lines of witnesses.
	Cosignatures []string
}

// Store keeps tiles, checkpoints and statements, and never changes any.
type Store interface {
	// Newest are the newest checkpoints of those of the tenants that have one.
	Newest(ctx context.Context, log string, ids []tenant.ID) (map[tenant.ID]Published, error)
	// Nodes answers spans in one round trip beside the transaction's, of one
	// snapshot: nodes of full tiles, roots of tiles, and for leaves of no full tile
	// what leaf makes of the bytes of the records From+1 to To.
	Nodes(ctx context.Context, log string, id tenant.ID, spans []Span, leaf func(canonical []byte) Hash) ([][]byte, error)
	// Publish adds the tiles and the checkpoint in one transaction. ErrMoved when
	// the newest checkpoint is not the one of size after, 0 for none.
	Publish(ctx context.Context, log string, id tenant.ID, after int64, tiles []Tile, p *Published) error
	// Statements are those of the signing keys, in order of epoch.
	Statements(ctx context.Context, log string, id tenant.ID) ([]Statement, error)
	AddStatement(ctx context.Context, log string, id tenant.ID, s *Statement) error
	// AddCosignature keeps a witness's first line for a checkpoint.
	AddCosignature(ctx context.Context, log string, id tenant.ID, size int64, witness, line string) error
}

// reader is a tenant's tree: nodes out of the store, and the leaves of the last
// records hashed again from the log itself.
type reader struct {
	store Store
	log   string
	id    tenant.ID
}

// NewReader makes the Reader of a tenant's tree of a log.
func NewReader(store Store, log string, id tenant.ID) Reader {
	return reader{store, log, id}
}

// Nodes implements Reader.
func (r reader) Nodes(ctx context.Context, spans []Span) ([][]byte, error) {
	return r.store.Nodes(ctx, r.log, r.id, spans, verify.LeafHash)
}
