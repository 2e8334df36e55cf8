package keyring

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Purpose names what a derived key is for. Keys of different purposes tell
// nothing about each other.
type Purpose string

// The purposes that exist. The package comment gives their derivations.
const (
	MAC       Purpose = "mac"       // HMAC of ledger entries, by key epoch
	Dedupe    Purpose = "dedupe"    // content_mac of events, epoch 0
	Pseudonym Purpose = "pseudonym" // pseudonyms of persons, epoch 0
)

// valid says which epochs a purpose may be derived for.
func (p Purpose) valid(epoch uint32) bool {
	switch p {
	case MAC:
		return true
	case Dedupe, Pseudonym:
		return epoch == 0
	default:
		return false
	}
}

// Derive gives a tenant's key for a purpose and key epoch. It costs a few
// hash blocks, so callers keep what they got. Errors: ErrNoKey for a tenant
// without keys, ErrPurpose for a purpose or an epoch that does not exist, and
// ErrCorrupt when a look for new keys finds damage.
func (r *Ring) Derive(id tenant.ID, p Purpose, epoch uint32) ([KeyBytes]byte, error) {
	if !p.valid(epoch) {
		return [KeyBytes]byte{}, fmt.Errorf("%w: %q epoch %d", ErrPurpose, p, epoch)
	}
	t, err := r.lookup(id)
	if err != nil {
		return [KeyBytes]byte{}, err
	}
	return subkey(t.integrity, p, id, epoch)
}

// ExportMACKey is the MAC key of one epoch, for `ledger verify` and for an
// export that somebody else verifies. Who holds it can forge MACs of that
// tenant and epoch, and nothing else.
func (r *Ring) ExportMACKey(id tenant.ID, epoch uint32) ([KeyBytes]byte, error) {
	return r.Derive(id, MAC, epoch)
}

// subkey is the derivation of the package comment.
func subkey(root [KeyBytes]byte, p Purpose, id tenant.ID, epoch uint32) (key [KeyBytes]byte, err error) {
	info := append([]byte("tallystick/"), p...)
	info = append(info, 0)
	info = append(info, id...)
	info = append(info, 0)
	info = binary.BigEndian.AppendUint32(info, epoch)
	out, err := hkdf.Key(sha256.New, root[:], nil, string(info), KeyBytes)
	if err != nil {
		return key, fmt.Errorf("keyring: derive: %w", err)
	}
	copy(key[:], out)
	return key, nil
}
