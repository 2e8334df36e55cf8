// Package pgtree is the published trees in Postgres as evidence packages need
// them: checkpoints as they stand, and proofs out of the stored tiles.
//
// It reads in the tenant's context, as the role postgres.RoleApp, and never
// writes. It checks nothing: a proof made of altered tiles does not verify.
package pgtree

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

// Stores are all that a package of the tenant is made of.
func Stores(db *postgres.DB, id tenant.ID) evidence.Stores {
	return evidence.Stores{
		Ledger: pgread.New(db, id), LedgerTree: New(db, checkpoint.LedgerLog, id),
		Audit: pgread.NewAudit(db, id), AuditTree: New(db, checkpoint.AuditLog, id),
	}
}

// Tree is the published tree of one log of a tenant.
type Tree struct {
	notes *pgread.Checkpoints
	nodes checkpoint.Reader
}

var _ evidence.Tree = (*Tree)(nil)

// New makes the tree of a log: checkpoint.LedgerLog or checkpoint.AuditLog.
func New(db *postgres.DB, log string, id tenant.ID) *Tree {
	return &Tree{pgread.NewCheckpoints(db, id, log), checkpoint.NewReader(pgstore.NewCheckpoints(db), log, id)}
}

// published is a note with what it says.
func published(n pgread.Note) (evidence.Checkpoint, error) {
	h, err := checkpoint.OpenUnverified(string(n.Text))
	if err != nil {
		return evidence.Checkpoint{}, fmt.Errorf("the checkpoint of size %d: %w", n.Size, err)
	}
	return evidence.Checkpoint{Origin: h.Origin, Size: n.Size, Root: n.Root, Note: n.Text}, nil
}

func first(n pgread.Note, ok bool, err error) (evidence.Checkpoint, bool, error) {
	if err != nil || !ok {
		return evidence.Checkpoint{}, false, err
	}
	c, err := published(n)
	return c, err == nil, err
}

// Newest implements evidence.Tree.
func (t *Tree) Newest(ctx context.Context) (evidence.Checkpoint, bool, error) {
	return first(t.notes.Newest(ctx))
}

// Covering implements evidence.Tree.
func (t *Tree) Covering(ctx context.Context, size int64) (evidence.Checkpoint, bool, error) {
	return first(t.notes.Covering(ctx, size))
}

// Checkpoints implements evidence.Tree.
func (t *Tree) Checkpoints(ctx context.Context, from, to int64, limit int) (list []evidence.Checkpoint, err error) {
	notes, err := t.notes.Between(ctx, from, to, limit)
	for i := range notes {
		c, err := published(notes[i])
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, err
}

// Keys implements evidence.Tree.
func (t *Tree) Keys(ctx context.Context) (list []evidence.Key, err error) {
	keys, err := t.notes.Keys(ctx)
	for _, k := range keys {
		list = append(list, evidence.Key(k))
	}
	return list, err
}

// Inclusion implements evidence.Tree.
func (t *Tree) Inclusion(ctx context.Context, index, size int64) ([]evidence.Hash, error) {
	n, _, err := t.notes.Newest(ctx)
	if err != nil {
		return nil, err
	}
	return checkpoint.Inclusion(ctx, t.nodes, index, size, n.Size)
}

// Consistency implements evidence.Tree.
func (t *Tree) Consistency(ctx context.Context, from, to int64) ([]evidence.Hash, error) {
	n, _, err := t.notes.Newest(ctx)
	if err != nil {
		return nil, err
	}
	return checkpoint.Consistency(ctx, t.nodes, from, to, n.Size)
}

// Node is the root of the leaves index<<level on, 1<<level of them, as the store
// has it.
func (t *Tree) Node(ctx context.Context, level int, index int64) ([32]byte, error) {
	n, ok, err := t.notes.Newest(ctx)
	if err != nil || !ok {
		return [32]byte{}, errors.Join(err, checkpoint.ErrTree)
	}
	// A node is the root of a part of a tile.
	const height = 8
	span := checkpoint.Span{Level: level / height, From: index << (level % height)}
	span.To = span.From + 1<<(level%height)
	span.Stored = (span.From/checkpoint.TileWidth+1)<<(height*(span.Level+1)) <= n.Size
	answers, err := t.nodes.Nodes(ctx, []checkpoint.Span{span})
	if err != nil {
		return [32]byte{}, err
	}
	hashes := answers[0]
	if len(hashes) != int(span.To-span.From)*checkpoint.HashSize {
		return [32]byte{}, checkpoint.ErrTree
	}
	for len(hashes) > checkpoint.HashSize {
		next := hashes[:0:0]
		for pair := range slices.Chunk(hashes, 2*checkpoint.HashSize) {
			h := rfc6962.DefaultHasher.HashChildren(pair[:checkpoint.HashSize], pair[checkpoint.HashSize:])
			next = append(next, h...)
		}
		hashes = next
	}
	return [32]byte(hashes), nil
}
