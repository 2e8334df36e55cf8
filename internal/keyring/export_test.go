package keyring

import "github.com/tallystick/tallystick/internal/tenant"

// IntegrityRoot lets tests derive by another way.
func IntegrityRoot(r *Ring, id tenant.ID) [KeyBytes]byte {
	t, _ := r.find(id)
	return t.integrity
}

// Subkey is the derivation from a root that a test chooses.
func Subkey(root [KeyBytes]byte, p Purpose, id tenant.ID, epoch uint32) [KeyBytes]byte {
	k, err := subkey(root, p, id, epoch)
	if err != nil {
		panic(err)
	}
	return k
}

// ParseLog runs the file's parser on hostile bytes under a fixed master key.
func ParseLog(data []byte) (keys, used int, err error) {
	w, err := newLocalWrapper(make([]byte, KeyBytes))
	if err != nil {
		return 0, 0, err
	}
	k, used, err := parseRecords(data, 0, w)
	return len(k), used, err
}

// SampleLog is two good records under ParseLog's master key.
func SampleLog() []byte {
	w, _ := newLocalWrapper(make([]byte, KeyBytes))
	b, _ := appendRecord(nil, []rootKey{newRoot(kindContext, "")}, w)
	b, _ = appendRecord(b, []rootKey{newRoot(kindIntegrity, "acme"), newRoot(kindSealing, "acme")}, w)
	return b
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
