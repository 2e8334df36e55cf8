package checkpoint

import (
	"context"
	"fmt"
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
	// Nodes answers spans whose nodes are stored: of full tiles, or roots of tiles.
	Nodes(ctx context.Context, log string, id tenant.ID, spans []Span) ([][]byte, error)
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
// entries out of the log itself.
type reader struct {
	store  Store
	source Source
	id     tenant.ID
}

// NewReader makes the Reader of a tenant's tree.
func NewReader(store Store, source Source, id tenant.ID) Reader {
	return reader{store, source, id}
}

// Nodes implements Reader.
func (r reader) Nodes(ctx context.Context, spans []Span) ([][]byte, error) {
	answers := make([][]byte, len(spans))
	var stored []Span
	var places []int
	for i, s := range spans {
		if s.Level > 0 || s.Stored {
			stored, places = append(stored, s), append(places, i)
			continue
		}
		leaves, err := r.leaves(ctx, s.From, s.To)
		if err != nil {
			return nil, err
		}
		answers[i] = leaves
	}
	if len(stored) == 0 {
		return answers, nil
	}
	nodes, err := r.store.Nodes(ctx, r.source.Log(), r.id, stored)
	if err != nil {
		return nil, err
	}
	for i, b := range nodes {
		answers[places[i]] = b
	}
	return answers, nil
}

// leaves hashes the entries from+1 to to again.
func (r reader) leaves(ctx context.Context, from, to int64) ([]byte, error) {
	out := make([]byte, 0, tileBytes)
	next := from + 1
	err := r.source.Rows(ctx, r.id, from+1, to, func(seq int64, canonical, _ []byte) error {
		if seq != next {
			return fmt.Errorf("%w: %s of tenant %s: entry %d is missing", ErrTree, r.source.Log(), r.id, next)
		}
		leaf := verify.LeafHash(canonical)
		out, next = append(out, leaf[:]...), next+1
		return nil
	})
	return out, err
}
