package ingest

import (
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash"
)

// macKey is HMAC-SHA-256 under one key (RFC 2104) with the two key blocks
// already hashed. It is read-only after it was made, so all goroutines share
// it, and 50,000 tenants need no hash objects of their own: a frame brings one.
type macKey struct {
	inner, outer []byte // SHA-256 states after key ⊕ ipad and key ⊕ opad
}

func newMACKey(key [sha256.Size]byte) (*macKey, error) {
	inner, err := keyBlockState(key, 0x36)
	if err != nil {
		return nil, err
	}
	outer, err := keyBlockState(key, 0x5c)
	if err != nil {
		return nil, err
	}
	return &macKey{inner, outer}, nil
}

func keyBlockState(key [sha256.Size]byte, pad byte) ([]byte, error) {
	var block [sha256.BlockSize]byte
	copy(block[:], key[:])
	for i := range block {
		block[i] ^= pad
	}
	h := sha256.New()
	h.Write(block[:])
	state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("ingest: state of SHA-256: %w", err)
	}
	return state, nil
}

// macHash is one goroutine's SHA-256.
type macHash struct {
	h     hash.Hash
	state encoding.BinaryUnmarshaler // h again
	sum   [sha256.Size]byte
}

func newMACHash() *macHash {
	h := sha256.New()
	return &macHash{h: h, state: h.(encoding.BinaryUnmarshaler)}
}

// mac is HMAC-SHA-256(key, msg). It does not allocate.
func (m *macHash) mac(key *macKey, msg []byte) ([sha256.Size]byte, error) {
	if err := m.state.UnmarshalBinary(key.inner); err != nil {
		return m.sum, fmt.Errorf("ingest: state of SHA-256: %w", err)
	}
	m.h.Write(msg)
	inner := m.h.Sum(m.sum[:0])
	if err := m.state.UnmarshalBinary(key.outer); err != nil {
		return m.sum, fmt.Errorf("ingest: state of SHA-256: %w", err)
	}
	m.h.Write(inner)
	m.h.Sum(m.sum[:0])
	return m.sum, nil
}
