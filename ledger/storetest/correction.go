package storetest

import (
	"bytes"
	"testing"

	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
)

// originalsAreNewest: of a usage entry the store gives the newest correction, or
// the entry itself; of anything else nothing.
func originalsAreNewest(t *testing.T, s ledger.Store) {
	m := NewMaker(t, s, 0)
	b := m.Batch(6, "acme", "bravo")
	b.Rows[5].Kind = chain.Rejected // acme 6
	want := map[ledger.KeyRef][]byte{}
	ref := func(tenant string, seq int64) ledger.KeyRef {
		return ledger.KeyRef{Tenant: tenant, Key: Key(tenant, seq)}
	}
	canonical := func(b *ledger.Batch, tenant string, seq int64) []byte {
		return bytes.Clone(find(b, tenant, seq).Canonical)
	}
	want[ref("acme", 1)] = canonical(b, "acme", 1)
	m.commit(t, s, b)
	correct := func(b *ledger.Batch, tenant string, seq, original int64) {
		r := find(b, tenant, seq)
		r.Kind, r.Corrects = chain.Correction, original
		want[ref(tenant, original)] = canonical(b, tenant, seq)
	}
	b = m.Batch(3, "acme", "bravo")
	correct(b, "acme", 7, 2)
	correct(b, "acme", 8, 2)
	correct(b, "acme", 9, 3)
	correct(b, "bravo", 7, 2)
	m.commit(t, s, b)
	b = m.Batch(1, "acme")
	correct(b, "acme", 10, 3)
	m.commit(t, s, b)
	refs := []ledger.KeyRef{
		ref("acme", 6), ref("acme", 7), ref("acme", 99), {Tenant: "acme", Key: Key("bravo", 1)}, {Tenant: "nobody", Key: Key("acme", 1)},
	}
	for r := range want {
		refs = append(refs, r, r)
	}
	found, err := s.Originals(t.Context(), refs)
	if err != nil {
		t.Fatal(err)
	}
	got := map[ledger.KeyRef][]byte{}
	for _, o := range found {
		got[o.KeyRef] = o.Newest
	}
	if len(got) != len(want) {
		t.Errorf("%d originals, want %d", len(got), len(want))
	}
	for r, w := range want {
		if !bytes.Equal(got[r], w) {
			t.Errorf("the newest state of %s %v is %q, want %q", r.Tenant, r.Key, got[r], w)
		}
	}
	known, err := s.Known(t.Context(), []ledger.KeyRef{ref("acme", 7)})
	if err != nil || len(known) != 1 || known[0].Seq != 7 {
		t.Errorf("a correction's own id is known as %+v, %v", known, err)
	}
}
