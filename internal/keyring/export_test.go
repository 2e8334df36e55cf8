package keyring

import (
	"context"

	"github.com/tallystick/tallystick/internal/tenant"
)

// IntegrityRoot lets tests derive by another way.
func IntegrityRoot(r *Ring, id tenant.ID) [KeyBytes]byte {
	t, _ := r.find(id)
	k, err := r.secret(t.integrity)
	if err != nil {
		panic(err)
	}
	return k
}

// Subkey is the derivation from a root that a test chooses.
func Subkey(root [KeyBytes]byte, p Purpose, id tenant.ID, epoch uint32) [KeyBytes]byte {
	k, err := subkey(root, p, id, epoch)
	if err != nil {
		panic(err)
	}
	return k
}

// ParseLog reads a file's records from hostile bytes, as Open does.
func ParseLog(data []byte) (said, used int, err error) {
	items, used, err := parseRecords(data, 0)
	if err != nil {
		return len(items), used, err
	}
	c := newContents()
	if err := c.apply(items); err != nil {
		return 0, used, err
	}
	// What a file says, a compacted file must say again.
	again, _, err := parseRecords(appendRecords(nil, c.items()), 0)
	if err != nil {
		panic(err)
	}
	d := newContents()
	if err := d.apply(again); err != nil {
		panic(err)
	}
	if err := d.carry(c); err != nil {
		panic(err)
	}
	return len(items), used, nil
}

// SampleLog is good records of each form.
func SampleLog() []byte {
	k, _ := newLocalKey(make([]byte, KeyBytes))
	var items []item
	for _, l := range []label{{kindContext, "", 1}, {kindIntegrity, "acme", 1}, {kindSealing, "acme", 1}} {
		wrapped, _ := k.Wrap(context.Background(), make([]byte, KeyBytes), l.binding())
		items = append(items, item{form: itemKey, code: byte(l.kind), number: 1, at: 7, tenant: l.tenant, by: k.ID(), wrapped: wrapped})
	}
	b := appendRecords(nil, items[:1])
	b = appendRecords(b, items[1:])
	return appendRecords(b, []item{
		{form: itemEpoch, code: byte(SeriesMAC), number: 2, at: 8, tenant: "acme", state: Next},
		{form: itemEpoch, code: byte(SeriesMAC), number: 2, at: 9, tenant: "acme", state: Active},
		{form: itemDestroyed, code: byte(kindSealing), number: 1, at: 10, tenant: "acme"},
	})
}

// XAESSeal is the cipher with a nonce that a test chooses.
func XAESSeal(key [KeyBytes]byte, nonce, text, aad []byte) ([]byte, error) {
	x, err := newXAES(key)
	if err != nil {
		return nil, err
	}
	aead, err := x.message(nonce)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nonce[xaesPrefixBytes:], text, aad), nil
}

// DestroyedRecord is the record that a destruction appends.
func DestroyedRecord(id tenant.ID) []byte {
	return appendRecords(nil, []item{{form: itemDestroyed, code: byte(kindSealing), number: 1, at: 7, tenant: id}})
}

// WrappedSealingRoot is what the file holds of a tenant's sealing root.
func WrappedSealingRoot(r *Ring, id tenant.ID) []byte {
	t, _ := r.find(id)
	return t.sealing.wrapped
}
