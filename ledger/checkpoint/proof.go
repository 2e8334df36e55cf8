package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// ErrSize says that a proof was asked for that cannot be: an entry beyond the
// tree, or a tree beyond what is published.
var ErrSize = errors.New("checkpoint: no such entry or tree size")

// Inclusion proves that leaf index (entry index+1) is in the tree of the given
// size (RFC 6962, 2.1.1). stored is the size up to which tiles are stored, the
// newest checkpoint's; size is at most that.
func Inclusion(ctx context.Context, r Reader, index, size, stored int64) ([]Hash, error) {
	if index < 0 || index >= size || size > stored {
		return nil, fmt.Errorf("%w: entry %d in a tree of %d, of which %d are published", ErrSize, index+1, size, stored)
	}
	nodes, err := proof.Inclusion(uint64(index), uint64(size))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSize, err)
	}
	return collect(ctx, r, nodes, stored)
}

// Consistency proves that the tree of size to continues the one of size from
// (RFC 6962, 2.1.2); stored is as for Inclusion.
func Consistency(ctx context.Context, r Reader, from, to, stored int64) ([]Hash, error) {
	if from < 0 || from > to || to > stored {
		return nil, fmt.Errorf("%w: from %d to %d, of which %d are published", ErrSize, from, to, stored)
	}
	nodes, err := proof.Consistency(uint64(from), uint64(to))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSize, err)
	}
	return collect(ctx, r, nodes, stored)
}

// collect reads the nodes of a proof, each tile once, and joins those that stand
// for a subtree that is not full.
func collect(ctx context.Context, r Reader, nodes proof.Nodes, stored int64) ([]Hash, error) {
	var spans []Span
	place := make([]int, len(nodes.IDs)) // of each node, in spans
	for i, id := range nodes.IDs {
		place[i] = addSpan(&spans, spanOf(id, stored))
	}
	answers, err := readNodes(ctx, r, spans)
	if err != nil {
		return nil, err
	}
	hashes := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		s, want := spans[place[i]], spanOf(id, stored)
		root := subtreeRoot(answers[place[i]][(want.From-s.From)*HashSize : (want.To-s.From)*HashSize])
		hashes[i] = root[:]
	}
	joined, err := nodes.Rehash(hashes, ranges.Hash)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTree, err)
	}
	out := make([]Hash, len(joined))
	for i, h := range joined {
		out[i] = Hash(h)
	}
	return out, nil
}

// spanOf is the part of a tile that a node is the root of.
func spanOf(id compact.NodeID, stored int64) Span {
	level := int(id.Level) / tileHeight
	width := int64(1) << (int(id.Level) % tileHeight)
	s := Span{Level: level, From: int64(id.Index) * width}
	s.To = s.From + width
	tile := s.From / TileWidth
	s.Stored = (tile+1)<<(tileHeight*(level+1)) <= stored
	return s
}

// addSpan adds the span, or widens one of the same tile.
func addSpan(spans *[]Span, s Span) int {
	for i := range *spans {
		have := &(*spans)[i]
		if have.Level == s.Level && have.From/TileWidth == s.From/TileWidth {
			have.From, have.To = min(have.From, s.From), max(have.To, s.To)
			return i
		}
	}
	*spans = append(*spans, s)
	return len(*spans) - 1
}

// VerifyInclusion checks that the leaf with this hash is leaf index of the tree.
func VerifyInclusion(leaf Hash, index int64, h *Head, hashes []Hash) error {
	return proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(index), uint64(h.Size), leaf[:], slicesOf(hashes), h.Root[:])
}

// VerifyConsistency checks that the newer tree continues the older one.
func VerifyConsistency(older, newer *Head, hashes []Hash) error {
	return proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(older.Size), uint64(newer.Size), slicesOf(hashes), older.Root[:], newer.Root[:])
}

func slicesOf(hashes []Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}
