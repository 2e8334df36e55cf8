package checkpoint

import (
	"context"
	"fmt"
	"slices"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/verify"
)

// Floor holds chains against what was published of them; it is the writer's
// ledger.Floor. It reads the directory, which a restore of the store does not
// roll back, and the store.
type Floor struct {
	source       Source
	store        Store
	dir          *Dir
	keys         Keys
	installation string
	tenants      func() []tenant.ID
}

var _ ledger.Floor = (*Floor)(nil)

// NewFloor makes a Floor. tenants are all that have keys: the keys' store is not
// rolled back with the ledger's.
func NewFloor(source Source, store Store, dir *Dir, keys Keys, installation string, tenants func() []tenant.ID) *Floor {
	if installation == "" {
		installation = DefaultInstallation
	}
	return &Floor{source, store, dir, keys, installation, tenants}
}

// standard is the newest checkpoint of a tenant, wherever it is published.
type standard struct {
	Head
	row     Published // of the store; its size may be smaller
	inStore bool      // the store has this very checkpoint
}

// Check implements ledger.Floor.
func (f *Floor) Check(ctx context.Context, partition, partitions int32) ([]ledger.Shortfall, error) {
	var ids []tenant.ID
	for _, id := range f.tenants() {
		if id.Partition(partitions) == partition {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	var short []ledger.Shortfall
	for chunk := range slices.Chunk(ids, tenantsPerRound) {
		part, err := f.check(ctx, chunk)
		if err != nil {
			return nil, err
		}
		short = append(short, part...)
	}
	return short, nil
}

func (f *Floor) check(ctx context.Context, ids []tenant.ID) ([]ledger.Shortfall, error) {
	standards, err := f.standards(ctx, ids)
	if err != nil || len(standards) == 0 {
		return nil, err
	}
	ends, err := f.source.Ends(ctx, ids)
	if err != nil {
		return nil, err
	}
	var short []ledger.Shortfall
	at := make(map[tenant.ID]int64)
	for _, id := range ids {
		s, ok := standards[id]
		if !ok {
			continue
		}
		if end := ends[id]; end.Seq < s.Size {
			short = append(short, ledger.Shortfall{Tenant: string(id), Size: s.Size, Root: chain.Hash(s.Root), Seq: end.Seq, Chain: chain.Hash(end.Chain)})
			continue
		}
		at[id] = s.Size
	}
	chains, err := f.source.Chains(ctx, at)
	if err != nil {
		return nil, err
	}
	for id, size := range at {
		if err := f.same(ctx, id, standards[id], chains[id]); err != nil {
			return nil, fmt.Errorf("tenant %s at %d: %w", id, size, err)
		}
	}
	return short, nil
}

// standards are the newest checkpoints, their signatures verified.
func (f *Floor) standards(ctx context.Context, ids []tenant.ID) (map[tenant.ID]*standard, error) {
	log := f.source.Log()
	rows, err := f.store.Newest(ctx, log, ids)
	if err != nil {
		return nil, err
	}
	found := make(map[tenant.ID]*standard)
	for _, id := range ids {
		size, signed, inDir, err := f.dir.Newest(log, id)
		if err != nil {
			return nil, err
		}
		row, inStore := rows[id]
		if !inDir && !inStore {
			continue
		}
		s := &standard{row: row, inStore: inStore && row.Size >= size}
		if s.inStore {
			size = row.Size
		}
		if s.Head, err = f.open(id, size, row.Note, s.inStore, signed, inDir && (!inStore || row.Size <= size)); err != nil {
			return nil, err
		}
		if s.inStore && row.Root != s.Root {
			return nil, fmt.Errorf("%w: tenant %s: the row of size %d has root %x, its note %x", ledger.ErrAltered, id, row.Size, row.Root, s.Root)
		}
		found[id] = s
	}
	return found, nil
}

// open verifies the note of the store, that of the directory, or both, which
// must then agree.
func (f *Floor) open(id tenant.ID, size int64, stored string, inStore bool, signed string, inDir bool) (h Head, err error) {
	origin := Origin(f.installation, f.source.Log(), id)
	verifiers, err := verifiersOf(f.keys, origin, id)
	if err != nil {
		return h, err
	}
	for _, n := range []struct {
		note string
		use  bool
	}{{stored, inStore}, {signed, inDir}} {
		if !n.use {
			continue
		}
		got, err := Open(n.note, origin, verifiers...)
		if err != nil {
			return h, fmt.Errorf("%w: tenant %s, size %d: %w", ledger.ErrAltered, id, size, err)
		}
		if got.Size != size {
			return h, fmt.Errorf("%w: tenant %s, size %d: the note says %d", ledger.ErrAltered, id, size, got.Size)
		}
		if h.Size != 0 && got.Root != h.Root {
			return h, fmt.Errorf("%w: tenant %s, size %d: root %x in the store, %x in the directory", ledger.ErrForked, id, size, h.Root, got.Root)
		}
		h = got
	}
	return h, nil
}

// same holds a chain that reaches the checkpoint against it. Where the store has
// the checkpoint, its chain hash tells; else the root is computed from the rows.
func (f *Floor) same(ctx context.Context, id tenant.ID, s *standard, stored Hash) error {
	if s.inStore {
		if stored != s.row.Chain {
			return fmt.Errorf("%w: entry %d has chain hash %x, signed was %x under root %x", ledger.ErrForked, s.Size, stored, s.row.Chain, s.Root)
		}
		return nil
	}
	root, err := f.root(ctx, id, &s.row, s.Size)
	if err != nil {
		return err
	}
	if root != s.Root {
		return fmt.Errorf("%w: root %x, published %x", ledger.ErrForked, root, s.Root)
	}
	return nil
}

// root computes the root at a size from the rows behind a checkpoint of the store.
func (f *Floor) root(ctx context.Context, id tenant.ID, from *Published, size int64) (Hash, error) {
	tree, err := loadSigned(ctx, NewReader(f.store, f.source.Log(), id), from)
	if err != nil {
		return Hash{}, fmt.Errorf("%w: %w", ledger.ErrAltered, err)
	}
	links := f.source.Links(id, from.Size, from.Chain)
	err = f.source.Rows(ctx, id, from.Size+1, size, func(seq int64, canonical, chain []byte) error {
		leaf, err := links.Add(seq, canonical, chain)
		if err != nil {
			return err
		}
		return tree.Append(leaf, func(Tile) {})
	})
	if _, _, _, ok := verify.Fault(err); ok {
		return Hash{}, fmt.Errorf("%w: %w", ledger.ErrForked, err)
	}
	if err != nil {
		return Hash{}, err
	}
	if tree.Size() != size {
		return Hash{}, fmt.Errorf("%w: entries end at %d", ledger.ErrForked, tree.Size())
	}
	return tree.Root()
}
