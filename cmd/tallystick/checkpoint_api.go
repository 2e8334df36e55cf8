package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// proofs serves checkpoints and proofs to the API, as the role
// postgres.RoleApp: what the ledger stage knows, in the API's terms.
type proofs struct {
	store   *pgstore.Checkpoints
	sources map[string]checkpoint.Source
}

var _ api.Checkpoints = proofs{}

func newProofs(db *postgres.DB) proofs {
	return proofs{pgstore.NewCheckpoints(db), map[string]checkpoint.Source{
		checkpoint.LedgerLog: pglog.NewLedger(db, db), checkpoint.AuditLog: pglog.NewAudit(db, db),
	}}
}

// Checkpoint implements api.Checkpoints.
func (p proofs) Checkpoint(ctx context.Context, log string, id tenant.ID, size int64) (*api.Checkpoint, error) {
	before := int64(0)
	if size > 0 {
		before = size + 1
	}
	list, err := p.Checkpoints(ctx, log, id, before, 1)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || size > 0 && list[0].Size != size {
		return nil, fmt.Errorf("%w: no such checkpoint", api.ErrNotFound)
	}
	return &list[0], nil
}

// Checkpoints implements api.Checkpoints.
func (p proofs) Checkpoints(ctx context.Context, log string, id tenant.ID, before int64, limit int) ([]api.Checkpoint, error) {
	rows, err := p.store.List(ctx, log, id, before, limit)
	list := make([]api.Checkpoint, len(rows))
	for i := range rows {
		list[i] = api.Checkpoint{Size: rows[i].Size, Root: rows[i].Root, Note: rows[i].Note, Cosignatures: rows[i].Cosignatures, SignedAt: rows[i].SignedAt}
	}
	return list, proofError(err)
}

// stored is the size up to which tiles are stored.
func (p proofs) stored(ctx context.Context, log string, id tenant.ID) (int64, error) {
	newest, err := p.store.Newest(ctx, log, []tenant.ID{id})
	return newest[id].Size, err
}

// Inclusion implements api.Checkpoints.
func (p proofs) Inclusion(ctx context.Context, log string, id tenant.ID, seq, size int64) (leaf [32]byte, proof [][32]byte, err error) {
	stored, err := p.stored(ctx, log, id)
	if err != nil {
		return leaf, nil, proofError(err)
	}
	source := p.sources[log]
	if proof, err = checkpoint.Inclusion(ctx, checkpoint.NewReader(p.store, log, id), seq-1, size, stored); err != nil {
		return leaf, nil, proofError(err)
	}
	found := false
	err = source.Rows(ctx, id, seq, seq, func(_ int64, canonical, _ []byte) error {
		leaf, found = verify.LeafHash(canonical), true
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: entry %d", api.ErrNotFound, seq)
	}
	return leaf, proof, proofError(err)
}

// Consistency implements api.Checkpoints.
func (p proofs) Consistency(ctx context.Context, log string, id tenant.ID, from, to int64) ([][32]byte, error) {
	stored, err := p.stored(ctx, log, id)
	if err != nil {
		return nil, proofError(err)
	}
	hashes, err := checkpoint.Consistency(ctx, checkpoint.NewReader(p.store, log, id), from, to, stored)
	return hashes, proofError(err)
}

// SigningKeys implements api.Checkpoints.
func (p proofs) SigningKeys(ctx context.Context, log string, id tenant.ID) ([]*pb.SigningKey, error) {
	list, err := p.store.Statements(ctx, log, id)
	keys := make([]*pb.SigningKey, len(list))
	for i := range list {
		keys[i] = &pb.SigningKey{Epoch: int64(list[i].Epoch), Vkey: list[i].VKey, Statement: list[i].Note}
	}
	return keys, proofError(err)
}

// proofError tells the API what was not published.
func proofError(err error) error {
	if errors.Is(err, checkpoint.ErrSize) {
		return fmt.Errorf("%w: %w", api.ErrNotFound, err)
	}
	return err
}

const (
	// gateTime is how long the API may not know that a partition is in recovery,
	// and how long it does not ask again after a failure.
	gateTime = time.Second
	// gateLimit bounds the question, for which every other caller waits.
	gateLimit = 2 * time.Second
)

// recoveryGate keeps the API from serving a partition that is replayed after a
// restore, whichever process replays it.
type recoveryGate struct {
	db         *postgres.DB
	partitions int32

	mu     sync.Mutex // protects what follows
	asked  time.Time
	closed map[int32]bool
	err    error
}

// open is api.ErrUnavailable for a tenant of a partition in recovery.
func (g *recoveryGate) open(ctx context.Context, id tenant.ID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.asked) > gateTime {
		// The answer is everybody's: one caller that goes away does not spoil it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gateLimit)
		defer cancel()
		g.closed, g.err = pgstore.RecoveringPartitions(ctx, g.db)
		g.asked = time.Now()
	}
	if g.err != nil {
		return fmt.Errorf("%w: %w", api.ErrUnavailable, g.err)
	}
	if g.closed[id.Partition(g.partitions)] {
		return fmt.Errorf("%w: the tenant's ledger is being replayed after a restore", api.ErrUnavailable)
	}
	return nil
}
