package keyring

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/tallystick/tallystick/internal/tenant"
)

// SealOverhead is how many bytes longer a sealed value is than its plaintext.
const SealOverhead = sealedHead + xaesNonceBytes + tagBytes

const (
	sealVersion = 1
	sealedHead  = 1 + 4 // version, epoch
	// messagesPerPrefix bounds how many nonces share their first half, and with
	// it a message key: far below the 2^32 that random nonces of AES-GCM allow.
	messagesPerPrefix = 1 << 20
)

// Place is where a sealed value is kept. It is bound to the value, so that
// nobody who can write to the store can move one to another row or column.
type Place struct{ Table, Column, Row string }

// sealKey identifies a derived sealing key.
type sealKey struct {
	id    tenant.ID
	p     Purpose
	epoch uint32
}

// sealer seals under one key. The expensive part, a message key, is shared by
// the values sealed one after the other.
type sealer struct {
	x *xaes

	mu     sync.Mutex // protects what follows
	prefix [xaesPrefixBytes]byte
	aead   cipher.AEAD
	left   int // messages that may still use aead
}

// Seal encrypts plaintext for one place of a tenant under its active sealing
// epoch and appends it to dst. The form, and what it is bound to, are in the
// package comment. Errors: ErrDestroyed, ErrNoKey, ErrPurpose for a purpose
// that does not seal, and what Derive says of a ring that cannot be read.
func (r *Ring) Seal(dst []byte, id tenant.ID, p Purpose, at Place, plaintext []byte) ([]byte, error) {
	s, epoch, err := r.sealer(id, p, 0)
	if err != nil {
		return nil, err
	}
	aead, prefix, err := s.next()
	if err != nil {
		return nil, fmt.Errorf("keyring: seal: %w", err)
	}
	dst = append(dst, sealVersion)
	dst = binary.BigEndian.AppendUint32(dst, epoch)
	dst = append(dst, prefix[:]...)
	var nonce [xaesNonceBytes - xaesPrefixBytes]byte
	rand.Read(nonce[:])
	dst = append(dst, nonce[:]...)
	return aead.Seal(dst, nonce[:], plaintext, sealAAD(id, p, at)), nil
}

// Open decrypts what Seal made for the same tenant, purpose and place, and
// appends the plaintext to dst. Errors: ErrSealed when it does not open there,
// ErrDestroyed when it never will again, and those of Seal.
func (r *Ring) Open(dst []byte, id tenant.ID, p Purpose, at Place, sealed []byte) ([]byte, error) {
	if len(sealed) < SealOverhead || sealed[0] != sealVersion {
		if err := r.canSeal(id, p); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %d bytes of an unknown form", ErrSealed, len(sealed))
	}
	epoch := binary.BigEndian.Uint32(sealed[1:])
	if epoch == 0 {
		return nil, fmt.Errorf("%w: epoch 0", ErrSealed)
	}
	s, _, err := r.sealer(id, p, epoch)
	if err != nil {
		return nil, err
	}
	nonce, text := sealed[sealedHead:sealedHead+xaesNonceBytes], sealed[sealedHead+xaesNonceBytes:]
	aead, err := s.x.message(nonce)
	if err != nil {
		return nil, fmt.Errorf("keyring: open: %w", err)
	}
	dst, err = aead.Open(dst, nonce[xaesPrefixBytes:], text, sealAAD(id, p, at))
	if err != nil {
		return nil, fmt.Errorf("%w: tenant %q, %s of %s.%s", ErrSealed, id, p, at.Table, at.Column)
	}
	return dst, nil
}

// SealedEpoch is the sealing epoch that a sealed value names, and false when it
// is no sealed value.
func SealedEpoch(sealed []byte) (epoch uint32, ok bool) {
	if len(sealed) < SealOverhead || sealed[0] != sealVersion {
		return 0, false
	}
	return binary.BigEndian.Uint32(sealed[1:]), true
}

// next gives the AEAD for one more message, and the first half of its nonce.
func (s *sealer) next() (cipher.AEAD, [xaesPrefixBytes]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		rand.Read(s.prefix[:])
		aead, err := s.x.message(s.prefix[:])
		if err != nil {
			return nil, s.prefix, err
		}
		s.aead, s.left = aead, messagesPerPrefix
	}
	s.left--
	return s.aead, s.prefix, nil
}

// canSeal says why a tenant's values of a purpose cannot be sealed or opened.
func (r *Ring) canSeal(id tenant.ID, p Purpose) error {
	_, err := r.sealable(id, p)
	return err
}

// sealable looks whether the tenant's sealing root is still there. It asks the
// file each time: a root that was destroyed must not be used from memory.
func (r *Ring) sealable(id tenant.ID, p Purpose) (view, error) {
	if !p.seals() {
		return view{}, fmt.Errorf("%w: %q does not seal", ErrPurpose, p)
	}
	if err := r.refresh(); err != nil {
		return view{}, err
	}
	t, err := r.lookup(id)
	if err == nil && t.destroyed {
		err = fmt.Errorf("%w: %q", ErrDestroyed, id)
	}
	return t, err
}

// sealer finds or makes the sealer of an epoch, of the active one when 0.
func (r *Ring) sealer(id tenant.ID, p Purpose, epoch uint32) (*sealer, uint32, error) {
	t, err := r.sealable(id, p)
	if err != nil {
		return nil, 0, err
	}
	active := t.active[SeriesSealing]
	if epoch == 0 {
		epoch = active
	}
	if epoch > active {
		return nil, 0, fmt.Errorf("%w: tenant %q has no sealing epoch %d", ErrSealed, id, epoch)
	}
	k := sealKey{id, p, epoch}
	r.mu.RLock()
	s := r.sealers[k]
	r.mu.RUnlock()
	if s != nil {
		return s, epoch, nil
	}
	if s, err = r.newSealer(t.sealing, k); err != nil {
		return nil, 0, err
	}
	return s, epoch, nil
}

func (r *Ring) newSealer(from *root, k sealKey) (*sealer, error) {
	secret, err := r.secret(from)
	if err != nil {
		return nil, err
	}
	key, err := subkey(secret, k.p, k.id, k.epoch)
	if err != nil {
		return nil, err
	}
	x, err := newXAES(key)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.held.tenants[k.id]; t.gone != 0 {
		return nil, fmt.Errorf("%w: %q", ErrDestroyed, k.id) // meanwhile
	}
	s := r.sealers[k]
	if s == nil {
		s = &sealer{x: x}
		r.sealers[k] = s
	}
	return s, nil
}

// sealAAD is what a sealed value is bound to beside its key.
func sealAAD(id tenant.ID, p Purpose, at Place) []byte {
	fields := [...]string{string(p), string(id), at.Table, at.Column, at.Row}
	n := 1
	for _, f := range fields {
		n += 4 + len(f)
	}
	b := append(make([]byte, 0, n), sealVersion)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}
