package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// memTree is a Reader over tiles and leaves in memory.
type memTree struct {
	leaves []byte
	tiles  map[[2]int64]Tile
	asked  int
}

func leafOf(i int64) Hash {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte{0}, uint64(i)))
}

// growTree makes a tree of n leaves, and the Reader of what is stored of it.
func growTree(t testing.TB, n int64) (*Tree, *memTree) {
	t.Helper()
	tree, mem := NewTree(), &memTree{tiles: make(map[[2]int64]Tile)}
	for i := range n {
		leaf := leafOf(i)
		mem.leaves = append(mem.leaves, leaf[:]...)
		if err := tree.Append(&leaf, mem.keep); err != nil {
			t.Fatal(err)
		}
	}
	return tree, mem
}

func (m *memTree) keep(t Tile) { m.tiles[[2]int64{int64(t.Level), t.Index}] = t }

func (m *memTree) Nodes(_ context.Context, spans []Span) ([][]byte, error) {
	var out [][]byte
	for _, s := range spans {
		m.asked++
		var b []byte
		for i := s.From; i < s.To; i++ {
			switch tile, ok := m.tiles[[2]int64{int64(s.Level), i / TileWidth}]; {
			case s.Stored && !ok:
				return nil, fmt.Errorf("%w: tile %d of level %d", ErrTree, i/TileWidth, s.Level)
			case s.Stored:
				b = append(b, tile.Hashes[i%TileWidth*HashSize:][:HashSize]...)
			case s.Level > 0:
				below, ok := m.tiles[[2]int64{int64(s.Level - 1), i}]
				if !ok {
					return nil, fmt.Errorf("%w: tile %d of level %d", ErrTree, i, s.Level-1)
				}
				b = append(b, below.Root[:]...)
			default:
				b = append(b, m.leaves[i*HashSize:][:HashSize]...)
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// tlogTree computes the same trees by golang.org/x/mod's code.
type tlogTree struct{ hashes []tlog.Hash }

func (t *tlogTree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = t.hashes[x]
	}
	return out, nil
}

func newTlogTree(t testing.TB, n int64) *tlogTree {
	tree := &tlogTree{}
	for i := range n {
		hs, err := tlog.StoredHashesForRecordHash(i, tlog.Hash(leafOf(i)), tree)
		if err != nil {
			t.Fatal(err)
		}
		tree.hashes = append(tree.hashes, hs...)
	}
	return tree
}

func (t *tlogTree) root(tb testing.TB, n int64) Hash {
	h, err := tlog.TreeHash(n, t)
	if err != nil {
		tb.Fatal(err)
	}
	return Hash(h)
}

// testSizes are around every edge of tiles and levels.
var testSizes = []int64{0, 1, 2, 3, 7, 8, 9, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 66_000, 70_001}

func TestRootsAreThoseOfAnotherImplementation(t *testing.T) {
	oracle := newTlogTree(t, 70_400)
	for _, n := range testSizes {
		tree, mem := growTree(t, n)
		root, err := tree.Root()
		if err != nil || n > 0 && root != oracle.root(t, n) {
			t.Fatalf("size %d: root %x, want %x (%v)", n, root, oracle.root(t, n), err)
		}
		again, err := Load(t.Context(), mem, n)
		if err != nil {
			t.Fatalf("size %d: %v", n, err)
		}
		// What is loaded has the root, and grows on as if it had never stopped.
		for i := n; i < n+300; i++ {
			leaf := leafOf(i)
			if err := again.Append(&leaf, mem.keep); err != nil {
				t.Fatal(err)
			}
			if i == n+3 || i == n+299 {
				got, err := again.Root()
				if want := oracle.root(t, i+1); err != nil || got != want {
					t.Fatalf("grown from %d to %d: root %x, want %x (%v)", n, i+1, got, want, err)
				}
			}
		}
	}
}

func TestProofsVerifyByAnotherImplementation(t *testing.T) {
	const most = 70_001
	_, mem := growTree(t, most)
	oracle := newTlogTree(t, most)
	rapid.Check(t, func(r *rapid.T) {
		stored := rapid.Int64Range(1, most).Draw(r, "stored")
		size := rapid.Int64Range(1, stored).Draw(r, "size")
		index := rapid.Int64Range(0, size-1).Draw(r, "index")
		mem.asked = 0
		hashes, err := Inclusion(t.Context(), mem, index, size, stored)
		if err != nil {
			r.Fatal(err)
		}
		if mem.asked > 8 {
			r.Fatalf("%d tiles were read for one proof", mem.asked)
		}
		var p tlog.RecordProof
		for _, h := range hashes {
			p = append(p, tlog.Hash(h))
		}
		root := oracle.root(t, size)
		if err := tlog.CheckRecord(p, size, tlog.Hash(root), index, tlog.Hash(leafOf(index))); err != nil {
			r.Fatalf("entry %d of %d: %v", index, size, err)
		}
		head := &Head{Size: size, Root: root}
		if err := VerifyInclusion(leafOf(index), index, head, hashes); err != nil {
			r.Fatal(err)
		}
		if len(hashes) > 0 {
			hashes[rapid.IntRange(0, len(hashes)-1).Draw(r, "changed")][3] ^= 1
			if VerifyInclusion(leafOf(index), index, head, hashes) == nil {
				r.Fatal("a changed proof verifies")
			}
		}
	})
}

func TestConsistencyVerifiesByAnotherImplementation(t *testing.T) {
	const most = 70_001
	_, mem := growTree(t, most)
	oracle := newTlogTree(t, most)
	rapid.Check(t, func(r *rapid.T) {
		stored := rapid.Int64Range(1, most).Draw(r, "stored")
		to := rapid.Int64Range(1, stored).Draw(r, "to")
		from := rapid.Int64Range(1, to).Draw(r, "from")
		hashes, err := Consistency(t.Context(), mem, from, to, stored)
		if err != nil {
			r.Fatal(err)
		}
		var p tlog.TreeProof
		for _, h := range hashes {
			p = append(p, tlog.Hash(h))
		}
		older, newer := Head{Size: from, Root: oracle.root(t, from)}, Head{Size: to, Root: oracle.root(t, to)}
		if err := tlog.CheckTree(p, to, tlog.Hash(newer.Root), from, tlog.Hash(older.Root)); err != nil {
			r.Fatalf("from %d to %d: %v", from, to, err)
		}
		if err := VerifyConsistency(&older, &newer, hashes); err != nil {
			r.Fatal(err)
		}
		older.Root[0] ^= 1
		if VerifyConsistency(&older, &newer, hashes) == nil && from > 0 {
			r.Fatal("another older root is consistent, too")
		}
	})
}

func TestProofsBeyondTheTree(t *testing.T) {
	_, mem := growTree(t, 10)
	for _, c := range []struct{ index, size, stored int64 }{{-1, 5, 10}, {5, 5, 10}, {0, 11, 10}} {
		if _, err := Inclusion(t.Context(), mem, c.index, c.size, c.stored); err == nil {
			t.Errorf("entry %d of %d of %d is proved", c.index, c.size, c.stored)
		}
	}
	for _, c := range []struct{ from, to, stored int64 }{{-1, 5, 10}, {6, 5, 10}, {1, 11, 10}} {
		if _, err := Consistency(t.Context(), mem, c.from, c.to, c.stored); err == nil {
			t.Errorf("%d to %d of %d is proved", c.from, c.to, c.stored)
		}
	}
}

// BenchmarkTree is the cost of the tree per leaf, hashing of leaves aside.
func BenchmarkTree(b *testing.B) {
	tree := NewTree()
	leaf := leafOf(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := tree.Append(&leaf, func(Tile) {}); err != nil {
			b.Fatal(err)
		}
	}
}
