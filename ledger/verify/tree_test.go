package verify

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// leaves are the leaf hashes of a ledger in memory.
func (m *memory) leaves() []tlog.Hash {
	list := make([]tlog.Hash, len(m.rows))
	for i := range m.rows {
		list[i] = tlog.RecordHash(m.rows[i].Canonical)
	}
	return list
}

// storedTree is a tree as tlog has it.
func storedTree(t interface{ Fatal(...any) }, leaves []tlog.Hash) tlog.HashReader {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			out[i] = stored[at]
		}
		return out, nil
	})
	for i, leaf := range leaves {
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	return reader
}

func mustRoot(t interface{ Fatal(...any) }, r tlog.HashReader, size int64) [HashSize]byte {
	h, err := tlog.TreeHash(size, r)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// However a tree is cut into pieces, it has the root that tlog computes.
func TestForestsJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "leaves")
		leaves := make([]tlog.Hash, n)
		for i := range leaves {
			leaves[i] = tlog.RecordHash([]byte{byte(i), byte(i >> 8)})
		}
		tree := storedTree(t, leaves)
		before := int64(rapid.IntRange(0, n-1).Draw(t, "before"))
		var edge forest
		for i := range before {
			edge.add(subtree{0, i, leaves[i]})
		}
		if given, err := leftEdge(before+1, edge.hashes()); err != nil || given.root() != tlog.Hash(mustRoot(t, tree, before)) {
			t.Fatalf("the left edge before %d: %v", before+1, err)
		}
		p := &planter{cuts: []int64{}}
		for cut := before + 1; cut <= int64(n); cut += int64(rapid.IntRange(1, n).Draw(t, "cut")) {
			p.cuts = append(p.cuts, cut)
		}
		g := newGrower(edge, before+1)
		for seq := before + 1; seq <= int64(n); {
			p.begin(seq)
			end := min(seq+int64(rapid.IntRange(0, n).Draw(t, "piece")), int64(n))
			for ; seq <= end; seq++ {
				p.leaf(seq, leaves[seq-1])
			}
			g.append(p.segments())
		}
		if g.all.root() != tlog.Hash(mustRoot(t, tree, int64(n))) || len(g.all) != len(spans(0, int64(n))) {
			t.Fatal("another root")
		}
		for size, root := range g.roots {
			if root != tlog.Hash(mustRoot(t, tree, size)) {
				t.Fatalf("another root at %d", size)
			}
		}
		if len(g.roots) != len(p.cuts)+1 {
			t.Fatalf("%d roots of %d", len(g.roots), len(p.cuts)+1)
		}
	})
}

func TestVerifyHoldsCheckpoints(t *testing.T) {
	m := newMemory("acme", 200)
	tree := storedTree(t, m.leaves())
	at := func(size int64) Checkpoint { return Checkpoint{Size: size, Root: mustRoot(t, tree, size)} }
	bad := func(size int64) Checkpoint { return Checkpoint{Size: size, Root: [32]byte{1}} }
	for name, c := range map[string]struct {
		from, to int64
		list     []Checkpoint
		reason   Reason
		seq      int64
		covered  int64
	}{
		"fits":                  {0, 0, []Checkpoint{at(200), at(7), at(64)}, "", 0, 200},
		"differs":               {0, 0, []Checkpoint{at(7), bad(64)}, Root, 8, 7},
		"differs at once":       {0, 0, []Checkpoint{bad(64), bad(70)}, Root, 1, 0},
		"contradicts":           {0, 0, []Checkpoint{at(7), bad(64), at(70)}, Consistency, 8, 70},
		"two of one size":       {0, 0, []Checkpoint{at(64), bad(64)}, Consistency, 64, 64},
		"rolled back":           {0, 0, []Checkpoint{at(200), bad(201)}, Truncated, 201, 200},
		"beyond what was asked": {0, 150, []Checkpoint{at(100), bad(201)}, "", 0, 100},
		"a range":               {65, 150, []Checkpoint{at(64), at(100), bad(30)}, "", 0, 100},
		"a range that differs":  {65, 150, []Checkpoint{at(64), bad(100)}, Root, 65, 64},
	} {
		o := Options{Tenant: "acme", From: c.from, To: c.to, Keys: testKey, Workers: 2, Checkpoints: c.list, Tree: true}
		if c.from > 1 {
			o.LeftEdge = edgeOf(m, c.from)
		}
		r := run(t, m, o)
		if (r.Verdict == Broken) != (c.reason != "") || r.Reason != c.reason || r.FirstBad != c.seq || r.Covered != c.covered {
			t.Errorf("%s: %+v", name, r)
		}
		if got, err := leftEdge(r.To+1, r.Tree); c.reason == "" && (err != nil || got.root() != tlog.Hash(mustRoot(t, tree, r.To))) {
			t.Errorf("%s: the tree up to %d: %v", name, r.To, err)
		}
	}
	if r := run(t, m, Options{Tenant: "acme", From: 65, Checkpoints: []Checkpoint{bad(100)}}); r.Verdict != Intact || len(r.Warnings) != 1 {
		t.Errorf("without the tree before: %+v", r)
	}
	if r := run(t, m, Options{Tenant: "acme", From: 65, LeftEdge: edgeOf(m, 64), Checkpoints: []Checkpoint{at(100)}}); r.Verdict != Unknown {
		t.Errorf("with another tree before: %+v", r)
	}
	if r := run(t, &memory{}, Options{Tenant: "acme", Checkpoints: []Checkpoint{at(100)}}); r.Reason != Truncated || r.FirstBad != 1 {
		t.Errorf("everything gone: %+v", r)
	}
}

// edgeOf is the tree before entry from.
func edgeOf(m *memory, from int64) [][HashSize]byte {
	var f forest
	for i, leaf := range m.leaves()[:from-1] {
		f.add(subtree{0, int64(i), leaf})
	}
	return f.hashes()
}

// A store whose own tree still comes to the signed root shows the very entry.
func TestLocate(t *testing.T) {
	for _, seq := range []int64{2, 64, 65, 128, 129, 199} {
		m := newMemory("acme", 200)
		leaves := m.leaves()
		tree := storedTree(t, leaves)
		list := []Checkpoint{{Size: 199, Root: mustRoot(t, tree, 199)}}
		stored := func(_ context.Context, level int, index int64) ([HashSize]byte, error) {
			h, err := tree.ReadHashes([]int64{tlog.StoredHashIndex(level, index)})
			if err != nil {
				return [HashSize]byte{}, err
			}
			return h[0], nil
		}
		rewriteFrom(m, seq, func(b []byte) { b[len(b)-1]++ })
		o := Options{Tenant: "acme", Checkpoints: list}
		if r := run(t, m, o); r.Reason != Root || r.FirstBad != 1 {
			t.Errorf("entry %d, without the stored tree: %+v", seq, r)
		}
		o.Stored = stored
		if r := run(t, m, o); r.Reason != Root || r.FirstBad != seq {
			t.Errorf("entry %d: %+v", seq, r)
		}
		o.Stored = func(context.Context, int, int64) ([HashSize]byte, error) { return [HashSize]byte{}, errors.New("away") }
		if r := run(t, m, o); r.Reason != Root || r.FirstBad != 1 {
			t.Errorf("entry %d, with a tree that is away: %+v", seq, r)
		}
		altered := func(ctx context.Context, level int, index int64) ([HashSize]byte, error) {
			h, err := stored(ctx, level, index)
			h[0] ^= 1
			return h, err
		}
		if o.Stored = altered; run(t, m, o).FirstBad != 1 {
			t.Errorf("entry %d: an altered tree is believed", seq)
		}
	}
}

func TestKept(t *testing.T) {
	m := newMemory("acme", 100)
	tree := storedTree(t, m.leaves())
	k := NewKept([]Checkpoint{{Size: 60, Root: mustRoot(t, tree, 60)}, {Size: 30, Root: mustRoot(t, tree, 30)}, {Size: 100, Root: [32]byte{7}}})
	if a, b, c := k.Next(1, 50), k.Next(31, 100), k.Next(61, 80); a != 30 || b != 60 || c != 80 {
		t.Errorf("chunks end at %d, %d, %d", a, b, c)
	}
	for _, to := range []int64{30, 45, 60} {
		if err := k.Hold(to, false, edgeOf(m, to+1)); err != nil {
			t.Errorf("at %d: %v", to, err)
		}
	}
	if k.Covered() != 60 {
		t.Errorf("covered %d", k.Covered())
	}
	if seq, reason, _, ok := Fault(k.Hold(100, true, edgeOf(m, 101))); !ok || reason != Root || seq != 61 {
		t.Errorf("another root: %s at %d", reason, seq)
	}
	if seq, reason, _, ok := Fault(k.Hold(80, true, edgeOf(m, 81))); !ok || reason != Truncated || seq != 81 {
		t.Errorf("rolled back: %s at %d", reason, seq)
	}
	grown := NewKept([]Checkpoint{{Size: 60, Root: mustRoot(t, tree, 60)}})
	if err := grown.Hold(61, true, edgeOf(m, 62)); err == nil || !strings.Contains(err.Error(), "60 entries was passed over") {
		t.Errorf("a checkpoint that was passed over: %v", err)
	}
	if err := k.Hold(80, false, nil); err == nil {
		t.Error("a tree that is missing")
	}
	if _, err := ParseTree([]string{"xyz"}); err == nil {
		t.Error("a hash that is none")
	}
}

// Sizes that nobody has end the search for subtrees all the same.
func TestSpansOfAnySize(t *testing.T) {
	for _, end := range []int64{0, 1, 7, 1 << 40, 1<<62 - 1, 1 << 62, 1<<63 - 1} {
		var leaves uint64
		next := int64(0)
		for _, s := range spans(0, end) {
			if s.index<<s.level != next {
				t.Fatalf("of %d: a gap at %d", end, next)
			}
			leaves += 1 << s.level
			next += 1 << s.level
		}
		if leaves != uint64(end) {
			t.Errorf("of %d: %d leaves", end, leaves)
		}
	}
}
