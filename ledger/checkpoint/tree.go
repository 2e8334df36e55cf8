package checkpoint

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
)

// A tree is stored in tiles of TileWidth hashes: tile i of level l holds the
// nodes of tree level 8·l with the numbers 256·i to 256·i+255. Only full tiles
// are stored. The rest, the tree's right edge, comes from the tiles below it:
// node j of level 8·(l+1) is the root of tile j of level l, and the last leaves
// are hashed again from the entries themselves.
const (
	TileWidth   = 256
	tileHeight  = 8
	maxLevels   = 8 // 256^8 = 2^64 leaves
	tileBytes   = TileWidth * HashSize
	nodePrefix  = 1
	nodeMessage = 1 + 2*HashSize
)

// ErrTree says that stored tiles are not those of one tree.
var ErrTree = errors.New("checkpoint: the stored tree does not fit together")

// Tile is a full tile.
type Tile struct {
	Level  int
	Index  int64
	Root   Hash
	Hashes []byte // TileWidth hashes
}

// ranges makes compact ranges. It holds nothing but the hash function.
var ranges = &compact.RangeFactory{Hash: func(l, r []byte) []byte {
	h := node(l, r)
	return h[:]
}}

// node is the hash of an inner node: SHA-256(0x01 ‖ left ‖ right), RFC 6962.
func node(l, r []byte) Hash {
	var b [nodeMessage]byte
	b[0] = nodePrefix
	copy(b[1:], l)
	copy(b[1+HashSize:], r)
	return sha256.Sum256(b[:])
}

// subtreeRoot is the root of a perfect subtree, of which the hashes are a level.
// Their number is a power of two, at most TileWidth.
func subtreeRoot(hashes []byte) Hash {
	var buf [tileBytes]byte
	level := buf[:copy(buf[:], hashes)]
	for n := len(level) / HashSize; n > 1; n /= 2 {
		for i := range n / 2 {
			h := node(level[2*i*HashSize:(2*i+1)*HashSize], level[(2*i+1)*HashSize:(2*i+2)*HashSize])
			copy(level[i*HashSize:], h[:])
		}
	}
	return Hash(level[:HashSize])
}

// EmptyRoot is the root of a tree without leaves.
func EmptyRoot() Hash { return sha256.Sum256(nil) }

// Tree grows by leaves and knows its root. It holds the tiles that are not full
// yet, one a level, and no other hash of the leaves below it.
type Tree struct {
	size int64
	edge [maxLevels][]byte
	full *compact.Range // over the leaves of all full tiles of level 0
}

// NewTree makes an empty tree.
func NewTree() *Tree { return &Tree{full: ranges.NewEmptyRange(0)} }

// Size is the number of leaves.
func (t *Tree) Size() int64 { return t.size }

// Append adds a leaf hash. emit is called with each tile that becomes full; the
// tile is the callee's.
func (t *Tree) Append(leaf *Hash, emit func(Tile)) error {
	if t.edge[0] == nil {
		t.edge[0] = make([]byte, 0, tileBytes)
	}
	t.edge[0] = append(t.edge[0], leaf[:]...)
	t.size++
	if len(t.edge[0]) < tileBytes {
		return nil
	}
	root := t.close(0, emit)
	r, err := ranges.NewRange(uint64(t.size-TileWidth), uint64(t.size), [][]byte{root[:]})
	if err == nil {
		err = t.full.AppendRange(r, nil)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTree, err)
	}
	return nil
}

// close hands out the full tile of a level and adds its root to the level above.
func (t *Tree) close(level int, emit func(Tile)) Hash {
	root := subtreeRoot(t.edge[level])
	emit(Tile{Level: level, Index: t.size>>(tileHeight*(level+1)) - 1, Root: root, Hashes: t.edge[level]})
	t.edge[level] = nil
	if level+1 < maxLevels {
		t.edge[level+1] = append(t.edge[level+1], root[:]...)
		if len(t.edge[level+1]) == tileBytes {
			t.close(level+1, emit)
		}
	}
	return root
}

// Root is the root hash of the tree as it is.
func (t *Tree) Root() (Hash, error) {
	if t.size == 0 {
		return EmptyRoot(), nil
	}
	r, err := ranges.NewRange(0, t.full.End(), slices.Clone(t.full.Hashes()))
	if err != nil {
		return Hash{}, fmt.Errorf("%w: %w", ErrTree, err)
	}
	for leaf := range slices.Chunk(t.edge[0], HashSize) {
		if err := r.Append(leaf, nil); err != nil {
			return Hash{}, fmt.Errorf("%w: %w", ErrTree, err)
		}
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return Hash{}, fmt.Errorf("%w: %w", ErrTree, err)
	}
	return Hash(root), nil
}

// Span names the nodes of tree level 8·Level with the numbers From to To-1. They
// lie in one tile. Stored says that the tile is full; else the nodes are the
// roots of tiles one level lower, or, at level 0, leaves of the last entries.
type Span struct {
	Level    int
	From, To int64
	Stored   bool
}

// Reader reads the nodes of one tenant's tree.
type Reader interface {
	// Nodes answers each span with its hashes, joined, all of one snapshot. A
	// node that is not there is an error that matches ErrTree.
	Nodes(ctx context.Context, spans []Span) ([][]byte, error)
}

// Load reads the right edge of the tree at the size.
func Load(ctx context.Context, r Reader, size int64) (*Tree, error) {
	var spans []Span
	for level := range maxLevels {
		if n := size >> (tileHeight * level); n%TileWidth > 0 {
			spans = append(spans, Span{Level: level, From: n - n%TileWidth, To: n})
		}
	}
	answers, err := readNodes(ctx, r, spans)
	if err != nil {
		return nil, err
	}
	t := &Tree{size: size}
	var whole [][]byte // perfect subtrees over the full tiles, the leftmost first
	for i := len(spans) - 1; i >= 0; i-- {
		level := spans[i].Level
		t.edge[level] = slices.Grow(answers[i], tileBytes-len(answers[i]))
		if level > 0 {
			whole = append(whole, perfect(answers[i])...)
		}
	}
	if t.full, err = ranges.NewRange(0, uint64(size-size%TileWidth), whole); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTree, err)
	}
	return t, nil
}

// perfect are the roots of the perfect subtrees that the first nodes of a tile
// form, the largest first.
func perfect(hashes []byte) (roots [][]byte) {
	for width := int64(TileWidth / 2); width > 0; width /= 2 {
		if int64(len(hashes)/HashSize)&width == 0 {
			continue
		}
		root := subtreeRoot(hashes[:width*HashSize])
		roots, hashes = append(roots, root[:]), hashes[width*HashSize:]
		if len(hashes) == 0 {
			break
		}
	}
	return roots
}

// readNodes asks the reader and holds the answers against what was asked.
func readNodes(ctx context.Context, r Reader, spans []Span) ([][]byte, error) {
	if len(spans) == 0 {
		return nil, nil
	}
	answers, err := r.Nodes(ctx, spans)
	if err != nil {
		return nil, err
	}
	if len(answers) != len(spans) {
		return nil, fmt.Errorf("%w: %d answers to %d spans", ErrTree, len(answers), len(spans))
	}
	for i, s := range spans {
		if int64(len(answers[i])) != (s.To-s.From)*HashSize {
			return nil, fmt.Errorf("%w: nodes %d to %d of level %d: %d bytes", ErrTree, s.From, s.To-1, tileHeight*s.Level, len(answers[i]))
		}
	}
	return answers, nil
}
