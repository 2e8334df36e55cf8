package keyring

import (
	"crypto/ed25519"
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
	// Of the integrity root, which proves.
	MAC        Purpose = "mac"        // HMAC of ledger entries, by key epoch
	Dedupe     Purpose = "dedupe"     // content_mac of events, epoch 0
	Pseudonym  Purpose = "pseudonym"  // pseudonyms of persons, epoch 0
	Digest     Purpose = "digest"     // keyed digests of prompts and answers, epoch 0
	Checkpoint Purpose = "checkpoint" // Ed25519 seed of checkpoints, by its own epoch
	Audit      Purpose = "audit"      // HMAC of audit rows, by its own epoch

	// Of the sealing root, which hides. They share one epoch per tenant, and
	// their keys never leave this package: Seal and Open use them.
	SealTags    Purpose = "seal-tags"    // confidential tags in entries
	SealSubject Purpose = "seal-subject" // identities of persons
	SealSecret  Purpose = "seal-secret"  // secrets that a tenant gave us
)

// seals reports that the purpose's keys come from the sealing root.
func (p Purpose) seals() bool { return p == SealTags || p == SealSubject || p == SealSecret }

// valid says which epochs a purpose may be derived for.
func (p Purpose) valid(epoch uint32) bool {
	switch p {
	case MAC, Checkpoint, Audit:
		return true
	case Dedupe, Pseudonym, Digest:
		return epoch == 0
	default:
		return false
	}
}

// SigningKey is the key that signs checkpoints: Ed25519 with the derived key of
// Checkpoint as its seed. Checkpoints are signed in the active epoch; a past one
// signs only the statement that hands over to the next. Errors: ErrEpoch for an
// epoch that was never active, and those of Derive.
func (r *Ring) SigningKey(id tenant.ID, epoch uint32) (ed25519.PrivateKey, error) {
	if err := r.refresh(); err != nil {
		return nil, err
	}
	t, err := r.lookup(id)
	if err != nil {
		return nil, err
	}
	if active := t.active[SeriesCheckpoint]; epoch == 0 || epoch > active {
		return nil, fmt.Errorf("%w: checkpoint epoch %d of tenant %q, %d is active", ErrEpoch, epoch, id, active)
	}
	return r.checkpointKey(id, epoch)
}

func (r *Ring) checkpointKey(id tenant.ID, epoch uint32) (ed25519.PrivateKey, error) {
	seed, err := r.Derive(id, Checkpoint, epoch)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed[:]), nil
}

// VerifyKey is the public half of SigningKey, for any epoch.
func (r *Ring) VerifyKey(id tenant.ID, epoch uint32) (ed25519.PublicKey, error) {
	key, err := r.checkpointKey(id, epoch)
	if err != nil {
		return nil, err
	}
	return key.Public().(ed25519.PublicKey), nil
}

// Derive gives a tenant's key for a purpose and key epoch. It costs a few
// hash blocks, so callers keep what they got. Errors: ErrNoKey for a tenant
// without keys, ErrPurpose for a purpose or an epoch that does not exist,
// ErrUnavailable while the key service is away, and ErrCorrupt when a look for
// new keys finds damage.
func (r *Ring) Derive(id tenant.ID, p Purpose, epoch uint32) ([KeyBytes]byte, error) {
	if !p.valid(epoch) {
		return [KeyBytes]byte{}, fmt.Errorf("%w: %q epoch %d", ErrPurpose, p, epoch)
	}
	t, err := r.lookup(id)
	if err != nil {
		return [KeyBytes]byte{}, err
	}
	secret, err := r.secret(t.integrity)
	if err != nil {
		return [KeyBytes]byte{}, err
	}
	return subkey(secret, p, id, epoch)
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
