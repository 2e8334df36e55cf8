package verify

import (
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// The tree of RFC 6962 over a tenant's entries: leaf n-1 is that of entry n. It
// is built from the leaf hashes that checking an entry gives anyway, in pieces
// by many goroutines, and put together from left to right.

// subtree is the root of a perfect subtree: that of the leaves from
// index<<level on, 1<<level of them.
type subtree struct {
	level uint8
	index int64
	hash  tlog.Hash
}

// forest is consecutive perfect subtrees from left to right, as few as there
// can be.
type forest []subtree

// add appends the subtree that follows the last one.
func (f *forest) add(s subtree) {
	list := *f
	for n := len(list); n > 0 && s.index&1 == 1 && list[n-1].level == s.level; n-- {
		s = subtree{s.level + 1, s.index >> 1, tlog.NodeHash(list[n-1].hash, s.hash)}
		list = list[:n-1]
	}
	*f = append(list, s)
}

// root is the tree's root, when the forest begins with the first leaf.
func (f forest) root() tlog.Hash {
	if len(f) == 0 {
		h, _ := tlog.TreeHash(0, nil) // reads nothing: the hash of no leaves
		return h
	}
	h := f[len(f)-1].hash
	for _, s := range slices.Backward(f[:len(f)-1]) {
		h = tlog.NodeHash(s.hash, h)
	}
	return h
}

// maxLevel bounds the subtrees of a tree of any size: the next one would have
// 2^62 leaves.
const maxLevel = 61

// spans are the subtrees, without hashes, of the leaves from first to before
// end: the one way to write them as few as there can be.
func spans(first, end int64) forest {
	var f forest
	for first < end {
		level := uint8(0)
		for level < maxLevel && first>>level&1 == 0 && int64(2)<<level <= end-first {
			level++
		}
		f = append(f, subtree{level: level, index: first >> level})
		first += 1 << level
	}
	return f
}

// leftEdge is the forest of the entries before `from`, out of its hashes.
func leftEdge(from int64, hashes [][HashSize]byte) (forest, error) {
	f := spans(0, from-1)
	if len(f) != len(hashes) {
		return nil, fmt.Errorf("the tree's left edge before entry %d has %d hashes, not %d", from, len(f), len(hashes))
	}
	for i := range f {
		f[i].hash = hashes[i]
	}
	return f, nil
}

// segment is the forest of some consecutive entries. When it ends at a cut, the
// root of the tree that ends there is wanted.
type segment struct {
	nodes forest
	cut   int64 // number of the last entry; 0 when nobody asked for a root there
}

// planter collects the leaves of consecutive entries. It belongs to one
// goroutine.
type planter struct {
	cuts []int64 // sizes whose roots are wanted, ascending
	next int     // index of the next cut
	now  forest
	done []segment
}

// begin forgets what was collected, and goes on before entry seq.
func (p *planter) begin(seq int64) {
	p.now, p.done = nil, nil
	p.next, _ = slices.BinarySearch(p.cuts, seq)
}

// leaf takes the leaf hash of entry seq.
func (p *planter) leaf(seq int64, hash tlog.Hash) {
	p.now.add(subtree{0, seq - 1, hash})
	if p.next < len(p.cuts) && p.cuts[p.next] == seq {
		p.done = append(p.done, segment{p.now, seq})
		p.now = nil
		p.next++
	}
}

// segments are what was collected.
func (p *planter) segments() []segment {
	if len(p.now) > 0 {
		p.done = append(p.done, segment{nodes: p.now})
		p.now = nil
	}
	return p.done
}

// grower puts segments together, in order, after the left edge.
type grower struct {
	all   forest
	roots map[int64]tlog.Hash // by size
}

func newGrower(edge forest, from int64) *grower {
	return &grower{slices.Clone(edge), map[int64]tlog.Hash{from - 1: edge.root()}}
}

func (g *grower) append(list []segment) {
	for _, s := range list {
		for _, n := range s.nodes {
			g.all.add(n)
		}
		if s.cut > 0 {
			g.roots[s.cut] = g.all.root()
		}
	}
}

// hashes are those of the forest.
func (f forest) hashes() [][HashSize]byte {
	list := make([][HashSize]byte, len(f))
	for i, s := range f {
		list[i] = s.hash
	}
	return list
}
