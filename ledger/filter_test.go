package ledger

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/event"
)

func filterKey(n uint64) (k event.Key) {
	binary.BigEndian.PutUint64(k[8:], n) // in order, as UUIDv7 are
	return k
}

// A key that was added is never taken for new, over every growth of the filter,
// and few new ones are taken for known.
func TestFilter(t *testing.T) {
	f := newFilter()
	const n = 200_000
	for i := range uint64(n) {
		k := filterKey(i)
		f.add(uint32(i%7), &k)
	}
	if len(f.layers) < 3 {
		t.Fatalf("%d layers: growth was not tested", len(f.layers))
	}
	for i := range uint64(n) {
		k := filterKey(i)
		if !f.maybe(uint32(i%7), &k) {
			t.Fatalf("key %d of tenant %d was added and is taken for new", i, i%7)
		}
	}
	wrong := 0
	for i := range uint64(n) {
		k := filterKey(i)
		if f.maybe(uint32(i%7+7), &k) { // the same keys of other tenants
			wrong++
		}
	}
	if share := float64(wrong) / n; share > 0.02 {
		t.Errorf("%.2f %% of new keys are taken for known", 100*share)
	}
}

func TestFilterNeverForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFilter()
		keys := rapid.SliceOf(rapid.Custom(func(t *rapid.T) recentKey {
			k := recentKey{tenant: rapid.Uint32().Draw(t, "tenant")}
			copy(k.key[:], rapid.SliceOfN(rapid.Byte(), event.KeySize, event.KeySize).Draw(t, "key"))
			return k
		})).Draw(t, "keys")
		for i := range keys {
			f.add(keys[i].tenant, &keys[i].key)
			for j := range keys[:i+1] {
				if !f.maybe(keys[j].tenant, &keys[j].key) {
					t.Fatalf("key %d is forgotten", j)
				}
			}
		}
	})
}
