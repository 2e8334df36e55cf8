package arena

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is put in stays as it was until Reset, whatever comes after it.
func TestPiecesKeepTheirContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := NewPool(rapid.IntRange(0, 4).Draw(t, "chunks") * ChunkBytes)
		a := New(pool)
		for range rapid.IntRange(1, 3).Draw(t, "rounds") {
			var got, want [][]byte
			for i := range rapid.IntRange(0, 20).Draw(t, "pieces") {
				size := rapid.OneOf(rapid.IntRange(0, 2000), rapid.IntRange(0, 2*ChunkBytes)).Draw(t, "size")
				hint := rapid.IntRange(0, size+10).Draw(t, "hint")
				piece := bytes.Repeat([]byte{byte(i + 1)}, size)
				got = append(got, a.Close(append(a.Open(hint), piece...)))
				want = append(want, piece)
			}
			for i := range got {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("piece %d of %d bytes changed", i, len(want[i]))
				}
			}
			a.Reset()
			if len(pool.free) > pool.max {
				t.Fatalf("the pool keeps %d chunks, at most %d", len(pool.free), pool.max)
			}
		}
	})
}

// Filling, giving back and filling again needs no new memory.
func TestReuseDoesNotAllocate(t *testing.T) {
	a, piece := New(NewPool(8*ChunkBytes)), make([]byte, 400)
	fill := func() {
		for range 2000 {
			a.Copy(piece)
		}
		a.Reset()
	}
	fill()
	if n := testing.AllocsPerRun(10, fill); n > 0 {
		t.Errorf("%v allocations per refill, want 0", n)
	}
}
