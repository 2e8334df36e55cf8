package main

import (
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Seal seals for the edge.
func (k edgeKeys) Seal(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error) {
	return k.a.ring.Seal(dst, id, p, at, plaintext)
}
