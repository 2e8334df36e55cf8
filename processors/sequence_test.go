package processors

import (
	"testing"

	"github.com/tallystick/tallystick/ledger/chain"
)

// FuzzTake feeds hostile records between true ones: whatever they are, the
// partition goes on and hands over nothing but the ledger.
func FuzzTake(f *testing.F) {
	w := newWorld(1)
	w.commit(0, 4, 3)
	w.commit(0, 2)
	for _, c := range w.commits[0] {
		for _, frame := range c {
			f.Add(encode(&frame), 1)
		}
	}
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, hostile []byte, at int) {
		l := nothing{newLife(w)}
		r, err := New(Parts{Ledger: w.reader(), Store: l, Snapshots: l, Sink: l, Processors: rollups}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := &partition{r: r, log: r.log, stats: r.partitionStats(0), src: source{l.life, 0}}
		if err := r.storer.admit(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		recs := [][]byte{hostile}
		for _, c := range w.commits[0] {
			for _, frame := range cut(c, 3) {
				recs = append(recs, encode(&frame), hostile)
			}
		}
		for i := range recs {
			if err := p.take(t.Context(), recordsOf(recs[i], int64(i))); err != nil {
				return // a forged entry may halt the partition; it never passes
			}
		}
		if p.seq.done() < 2 { // as when the ledger's own number shows it
			if err := p.backfill(t.Context(), 2, 99); err != nil {
				return
			}
		}
		var done []int64
		for _, c := range p.ready {
			done = append(done, c.number)
			rows := 0
			if err := c.frames(&chain.Frame{}, func(f *chain.Frame) error { rows += len(f.Entries); return nil }); err != nil || rows != c.rows {
				t.Fatalf("commit %d: %d rows, says %d: %v", c.number, rows, c.rows, err)
			}
		}
		if len(done) != 2 || done[0] != 1 || done[1] != 2 {
			t.Fatalf("commits %v are complete, want 1 and 2", done)
		}
	})
}
