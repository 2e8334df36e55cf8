package main

import (
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Epoch is the epoch that the edge seals in.
func (k edgeKeys) Epoch(id tenant.ID, p keyring.Purpose) uint32 { return k.a.ring.Epoch(id, p) }

// Seal seals for the edge.
func (k edgeKeys) Seal(dst []byte, id tenant.ID, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error) {
	return k.a.ring.Seal(dst, id, p, at, plaintext)
}
