package verify

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Kept holds checkpoints from outside against trees that somebody else computed
// chunk by chunk, such as a server.
type Kept struct {
	list    []Checkpoint // sorted
	held    int64        // the greatest size whose tree was compared
	covered int64
}

// NewKept takes the checkpoints, signatures checked.
func NewKept(list []Checkpoint) *Kept { return &Kept{list: sortCheckpoints(list)} }

// Next is where a chunk from `from` to at most `to` must end: with the next
// checkpoint in it, or at `to`.
func (k *Kept) Next(from, to int64) int64 {
	for _, c := range k.list {
		if c.Size >= from && c.Size < to {
			return c.Size
		}
	}
	return to
}

// Hold compares the tree of the entries 1 to `to` with the checkpoints of that
// size. whole says that the ledger ends there: then none may be greater. Fault
// explains a break. A checkpoint of a size that was passed over, because a ledger
// grew while it was read, is an error: nothing was held against it.
func (k *Kept) Hold(to int64, whole bool, tree [][HashSize]byte) error {
	f, err := leftEdge(to+1, tree)
	if err != nil {
		return &missing{err}
	}
	g := &grower{all: f, roots: map[int64]tlog.Hash{to: f.root()}}
	if err := g.compare(k.list, k.covered+1); err != nil {
		return err
	}
	for _, c := range k.list {
		switch {
		case c.Size > k.held && c.Size < to:
			return &missing{fmt.Errorf("the tree of the checkpoint of %d entries was passed over on the way to %d; verify again", c.Size, to)}
		case c.Size == to:
			k.covered = to
		case c.Size > to && whole:
			return (&Options{Checkpoints: k.list}).rolledBack(to)
		}
	}
	k.held = to
	return nil
}

// Covered is the greatest size that agreed.
func (k *Kept) Covered() int64 { return k.covered }

// ParseTree reads the hashes of a tree in hexadecimal.
func ParseTree(list []string) ([][HashSize]byte, error) {
	if len(list) > 64 {
		return nil, fmt.Errorf("verify: a tree of %d hashes", len(list))
	}
	out := make([][HashSize]byte, 0, len(list))
	for _, text := range list {
		h, err := hexHash(text)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}
