package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/verify"
)

// grown is a tree up to its newest checkpoint, and what signs the next.
type grown struct {
	id     tenant.ID
	tree   *Tree
	chain  Hash // chain hash of the tree's last record
	epoch  uint32
	signer *Signer
}

func (c *Checkpointer) fault(id tenant.ID, seq int64, reason, format string, args ...any) error {
	return &Fault{Log: c.source.Log(), Tenant: id, Seq: seq, Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// advance signs a tenant's log up to its end.
func (c *Checkpointer) advance(ctx context.Context, id tenant.ID, end End) error {
	g, err := c.grown(ctx, id, end)
	if err != nil {
		return err
	}
	if g == nil {
		c.signed[id] = 0
		return nil
	}
	for g.tree.Size() < end.Seq {
		before := g.tree.Size()
		p, tiles, err := c.extend(ctx, g, min(end.Seq, before+c.opts.MaxEntries))
		if err != nil {
			return err
		}
		if p.Size == end.Seq && p.Chain != end.Chain {
			return c.fault(id, end.Seq, ReasonHeadHash, "the head's chain hash is %x, that of its entry %x", end.Chain, p.Chain)
		}
		if err := c.sign(ctx, g, p); err != nil {
			return err
		}
		if err := c.publish(ctx, g, before, tiles, p); err != nil {
			return err
		}
	}
	c.signed[id] = g.tree.Size()
	c.keep(id, g)
	return nil
}

// grown is the tenant's tree as it was last signed: from memory, or read and
// held against everything that is published of it. nil when there is neither a
// log nor a checkpoint.
func (c *Checkpointer) grown(ctx context.Context, id tenant.ID, end End) (*grown, error) {
	if g := c.trees[id]; g != nil {
		if end.Seq < g.tree.Size() {
			return nil, c.fault(id, g.tree.Size(), ReasonBelow, "the log ends at %d", end.Seq)
		}
		return g, c.ensureSigner(ctx, g)
	}
	row, inStore, head, inDir, err := c.published(ctx, id)
	if err != nil {
		return nil, err
	}
	if !inStore && !inDir && end.Seq == 0 {
		return nil, nil
	}
	if newest := max(row.Size, head.Size); end.Seq < newest {
		return nil, c.fault(id, newest, ReasonBelow, "the log ends at %d", end.Seq)
	}
	g := &grown{id: id, chain: row.Chain}
	if g.tree, err = loadSigned(ctx, NewReader(c.store, c.source.Log(), id), &row); err != nil {
		if errors.Is(err, ErrTree) {
			err = c.fault(id, row.Size, ReasonTree, "%v", err)
		}
		return nil, err
	}
	if err := c.ensureSigner(ctx, g); err != nil {
		return nil, err
	}
	if inStore {
		// A witness that has seen more says so at once, not with the next entry.
		c.posts.enqueue(id, &row)
	}
	return g, c.level(ctx, g, &row, inStore, &head, inDir)
}

// published reads the newest checkpoint of store and directory and checks that
// each is what was signed.
func (c *Checkpointer) published(ctx context.Context, id tenant.ID) (row Published, inStore bool, head Head, inDir bool, err error) {
	origin := Origin(c.opts.Installation, c.source.Log(), id)
	rows, err := c.store.Newest(ctx, c.source.Log(), []tenant.ID{id})
	if err != nil {
		return row, false, head, false, err
	}
	size, signed, inDir, err := c.dir.Newest(c.source.Log(), id)
	if err != nil {
		return row, false, head, false, err
	}
	// After the reading: a key that was made meanwhile may have signed it.
	verifiers, err := verifiersOf(c.keys, origin, id)
	if err != nil {
		return row, false, head, false, err
	}
	if row, inStore = rows[id]; inStore {
		h, err := Open(row.Note, origin, verifiers...)
		if err != nil {
			return row, true, head, false, c.fault(id, row.Size, ReasonNote, "the stored note: %v", err)
		}
		if h.Size != row.Size || h.Root != row.Root {
			return row, true, head, false, c.fault(id, row.Size, ReasonNote, "the note says size %d, root %x; the row %d, %x", h.Size, h.Root, row.Size, row.Root)
		}
	}
	if !inDir {
		return row, inStore, head, false, nil
	}
	if head, err = Open(signed, origin, verifiers...); err != nil {
		return row, inStore, head, true, c.fault(id, size, ReasonNote, "the note in %s: %v", c.dir.Path(), err)
	}
	if head.Size != size {
		return row, inStore, head, true, c.fault(id, size, ReasonNote, "the note in %s says size %d", c.dir.Path(), head.Size)
	}
	return row, inStore, head, true, nil
}

// level brings store and directory to the same checkpoint. The directory is
// ahead after a death between the two writes, or when the store was restored;
// it is behind when it is new, or somebody took files away.
func (c *Checkpointer) level(ctx context.Context, g *grown, row *Published, inStore bool, head *Head, inDir bool) error {
	switch {
	case inStore && (!inDir || head.Size < row.Size):
		c.log.LogAttrs(ctx, slog.LevelWarn, "the checkpoint directory lacked what is published", slog.String("tenant", string(g.id)),
			slog.Int64("size", row.Size), slog.Int64("directory_size", head.Size))
		return c.dir.Add(c.source.Log(), g.id, row.Size, row.Note)
	case inDir && head.Size == row.Size && head.Root != row.Root:
		return c.fault(g.id, head.Size, ReasonForked, "the directory has root %x, the store %x", head.Root, row.Root)
	case !inDir || head.Size <= row.Size:
		return nil
	}
	p, tiles, err := c.extend(ctx, g, head.Size)
	if err != nil {
		return err
	}
	if p.Root != head.Root {
		return c.fault(g.id, head.Size, ReasonForked, "the log has root %x, published is %x", p.Root, head.Root)
	}
	if p.Note, err = c.dir.Read(c.source.Log(), g.id, head.Size); err != nil {
		return err
	}
	return c.publish(ctx, g, row.Size, tiles, p)
}

// extend reads the records behind the tree back from the store, recomputes their
// leaves and grows the tree by them. After an error the tree is no longer good.
func (c *Checkpointer) extend(ctx context.Context, g *grown, to int64) (*Published, []Tile, error) {
	var tiles []Tile
	links := c.source.Links(g.id, g.tree.Size(), g.chain)
	emit := func(t Tile) { tiles = append(tiles, t) }
	err := c.source.Rows(ctx, g.id, g.tree.Size()+1, to, func(seq int64, canonical, chain []byte) error {
		leaf, err := links.Add(seq, canonical, chain)
		if err != nil {
			return err
		}
		return g.tree.Append(leaf, emit)
	})
	if seq, reason, message, ok := verify.Fault(err); ok {
		return nil, nil, c.fault(g.id, seq, string(reason), "%s", message)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read records: %w", err)
	}
	last, chain := links.Last()
	if last != to {
		return nil, nil, c.fault(g.id, last+1, string(verify.Truncated), "the head stands beyond %d, but records end at %d", to, last)
	}
	root, err := g.tree.Root()
	if err != nil {
		return nil, nil, err
	}
	g.chain = chain
	return &Published{Size: to, Root: root, Chain: chain}, tiles, nil
}

// sign makes the note.
func (c *Checkpointer) sign(_ context.Context, g *grown, p *Published) (err error) {
	p.Note, err = g.signer.SignHead(&Head{Origin: g.signer.Name(), Size: p.Size, Root: p.Root})
	return err
}

// publish puts the checkpoint into the directory, then into the store, then to
// the witnesses. Whoever dies in between finds the directory ahead.
func (c *Checkpointer) publish(ctx context.Context, g *grown, after int64, tiles []Tile, p *Published) error {
	log := c.source.Log()
	if err := c.dir.Add(log, g.id, p.Size, p.Note); err != nil {
		if errors.Is(err, ErrConflict) {
			return c.fault(g.id, p.Size, ReasonForked, "%v", err)
		}
		return err
	}
	if err := c.store.Publish(ctx, log, g.id, after, tiles, p); err != nil {
		return err
	}
	c.mu.Lock()
	c.status.Checkpoints++
	c.status.Entries += p.Size - after
	c.mu.Unlock()
	c.posts.enqueue(g.id, p)
	return nil
}

// ensureSigner makes the signer of the epoch in force. A key that was not stated
// yet is stated first, in the directory and then in the store.
func (c *Checkpointer) ensureSigner(ctx context.Context, g *grown) error {
	epoch := c.keys.SigningEpoch(g.id)
	if g.signer != nil && g.epoch == epoch {
		return nil
	}
	log, origin := c.source.Log(), Origin(c.opts.Installation, c.source.Log(), g.id)
	stated, err := c.store.Statements(ctx, log, g.id)
	if err != nil {
		return err
	}
	var former *Signer
	for e := uint32(1); e <= epoch; e++ {
		signer, err := signerOf(c.keys, origin, g.id, e)
		if err != nil {
			return err
		}
		if int(e) <= len(stated) {
			if stated[e-1].VKey != signer.VKey() || stated[e-1].Epoch != e {
				return c.fault(g.id, g.tree.Size(), ReasonKeys, "epoch %d is stated as %q, ours is %q", e, stated[e-1].VKey, signer.VKey())
			}
			former = signer
			continue
		}
		s, err := State(e, signer, former)
		if err != nil {
			return err
		}
		if err := c.dir.AddKey(log, g.id, &s); err != nil {
			return err
		}
		if err := c.store.AddStatement(ctx, log, g.id, &s); err != nil {
			return err
		}
		former = signer
	}
	if former == nil {
		return fmt.Errorf("tenant %s has no signing key", g.id)
	}
	g.epoch, g.signer = epoch, former
	return nil
}

func signerOf(keys Keys, origin string, id tenant.ID, epoch uint32) (*Signer, error) {
	key, err := keys.SigningKey(id, epoch)
	if err != nil {
		return nil, fmt.Errorf("signing key of tenant %s epoch %d: %w", id, epoch, err)
	}
	return NewSigner(origin, key)
}

// verifiersOf are the verifiers of all keys that the tenant's checkpoints may be
// signed with.
func verifiersOf(keys Keys, origin string, id tenant.ID) ([]note.Verifier, error) {
	var list []note.Verifier
	for e := uint32(1); e <= keys.SigningEpoch(id); e++ {
		s, err := signerOf(keys, origin, id, e)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// loadSigned reads the right edge of a published tree and holds it against the root.
func loadSigned(ctx context.Context, r Reader, p *Published) (*Tree, error) {
	if p.Size == 0 {
		return NewTree(), nil
	}
	t, err := Load(ctx, r, p.Size)
	if err != nil {
		return nil, err
	}
	root, err := t.Root()
	if err == nil && root != p.Root {
		err = fmt.Errorf("%w: tiles and last entries have root %x, signed is %x", ErrTree, root, p.Root)
	}
	return t, err
}
