package checkpoint_test

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/verify"
)

// proofLimit is what the proof of any entry may take.
const proofLimit = 5 * time.Millisecond

// BenchmarkProof proves entries of a ledger of 10,000,100 entries out of a real
// Postgres: its tiles, and the rows behind the last full one. The limit is 5 ms.
func BenchmarkProof(b *testing.B) {
	const n = 10_000_100
	w := newWorld(b)
	fillTree(w, n)
	r := checkpoint.NewReader(w.store(), checkpoint.LedgerLog, "acme")
	tree, err := checkpoint.Load(b.Context(), r, n)
	if err != nil {
		b.Fatal(err)
	}
	root, err := tree.Root()
	if err != nil {
		b.Fatal(err)
	}
	head := &checkpoint.Head{Size: n, Root: root}
	for name, prove := range map[string]func(index int64) error{
		"inclusion": func(index int64) error {
			proof, err := checkpoint.Inclusion(b.Context(), r, index, n, n)
			if err == nil {
				err = checkpoint.VerifyInclusion(bigLeaf(index), index, head, proof)
			}
			return err
		},
		"consistency": func(index int64) error {
			_, err := checkpoint.Consistency(b.Context(), r, index+1, n, n)
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			random := rand.New(rand.NewPCG(1, 2))
			var times []time.Duration
			for i := 0; b.Loop(); i++ {
				index := random.Int64N(n)
				if i%8 == 0 {
					index = n - 1 - random.Int64N(200) // behind the last full tile
				}
				start := time.Now()
				if err := prove(index); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(times[len(times)-1].Microseconds()), "max-µs")
			over, _ := slices.BinarySearch(times, proofLimit)
			b.ReportMetric(float64(len(times)-over), "over-5ms")
		})
	}
}

// bigBytes are the canonical bytes of an entry of the synthetic ledger.
func bigBytes(index int64) []byte {
	b := make([]byte, 600)
	binary.BigEndian.PutUint64(b, uint64(index))
	return b
}

func bigLeaf(index int64) checkpoint.Hash {
	if index >= 9_999_872 {
		return verify.LeafHash(bigBytes(index))
	}
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte{0}, uint64(index)))
}

// fillTree stores the tiles of a tree of n leaves, and the rows behind them.
func fillTree(w *world, n int64) {
	w.t.Helper()
	tree := checkpoint.NewTree()
	var tiles []checkpoint.Tile
	var after int64
	flush := func() {
		p := &checkpoint.Published{Size: tree.Size(), Note: "synthetic"}
		if err := w.store().Publish(w.t.Context(), checkpoint.LedgerLog, tenant.ID("acme"), after, tiles, p); err != nil {
			w.t.Fatal(err)
		}
		after, tiles = tree.Size(), nil
	}
	for i := range n {
		leaf := bigLeaf(i)
		if err := tree.Append(&leaf, func(t checkpoint.Tile) { tiles = append(tiles, t) }); err != nil {
			w.t.Fatal(err)
		}
		if len(tiles) >= 1000 {
			flush()
		}
	}
	flush()
	db := w.admin()
	if _, err := db.Exec(`alter table ledger.entry_0 disable trigger check_tenants`); err != nil {
		w.t.Fatal(err)
	}
	for i := n - n%checkpoint.TileWidth; i < n; i++ {
		if _, err := db.Exec(`insert into ledger.entry_0 (tenant_id, seq, kind, key_epoch, canonical, chain, mac) values ('acme', $1, 1, 1, $2, $3, $3)`,
			i+1, bigBytes(i), make([]byte, 32)); err != nil {
			w.t.Fatal(err)
		}
	}
	// What a server does after ten million rows in ten seconds, and not in a proof.
	for _, sql := range []string{`vacuum (analyze) ledger.tree_tile`, `vacuum (analyze) ledger.entry`, `checkpoint`} {
		if _, err := db.Exec(sql); err != nil {
			w.t.Fatal(err)
		}
	}
}
