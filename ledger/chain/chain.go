// Package chain is the ledger's format: the canonical bytes of an entry, the
// hash chain over them and the MAC beside the chain.
//
// It is a hand-over package: the ledger stage writes entries, every later
// stage and the verifier read them. It promises that an entry has exactly one
// encoding, that Decode accepts nothing but that encoding, and that nothing in
// it depends on a clock, on randomness or on how entries were batched. The
// format is described for strangers in docs/ledger-format.md, with vectors in
// testdata; a change here without a change there fails a test.
package chain

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// HashSize is the size of a leaf, of a chain hash and of a MAC.
const HashSize = sha256.Size

// Hash is a SHA-256 value.
type Hash [HashSize]byte

// Domains keep the uses of the hash apart. They are part of the format.
const (
	domainGenesis   = "tallystick/genesis/v1\x00"
	domainChain     = "tallystick/chain/v1\x00"
	domainMAC       = "tallystick/mac/v1\x00"
	domainRejection = "tallystick/rejection/v1\x00"
	domainControl   = "tallystick/control/v1\x00"
	domainCounters  = "tallystick/counters/v1\x00"
)

// Genesis is chain_0 of a tenant: SHA-256("tallystick/genesis/v1" ‖ 0x00 ‖ tenant).
func Genesis(tenant string) Hash {
	return sha256.Sum256(append([]byte(domainGenesis), tenant...))
}

// Hasher computes leaves, chain hashes and MACs without allocating. It is not
// safe for concurrent use.
type Hasher struct {
	h   hash.Hash
	buf [128]byte
	out [HashSize]byte
}

// NewHasher makes a Hasher.
func NewHasher() *Hasher { return &Hasher{h: sha256.New()} }

// Leaf is SHA-256(0x00 ‖ canonical), an RFC 6962 leaf hash.
func (s *Hasher) Leaf(canonical []byte) Hash {
	s.h.Reset()
	s.buf[0] = 0
	s.h.Write(s.buf[:1])
	s.h.Write(canonical)
	s.h.Sum(s.out[:0])
	return s.out
}

// Next is chain_n = SHA-256("tallystick/chain/v1" ‖ 0x00 ‖ chain_{n-1} ‖ leaf_n).
func (s *Hasher) Next(prev, leaf *Hash) Hash {
	b := append(s.buf[:0], domainChain...)
	b = append(b, prev[:]...)
	b = append(b, leaf[:]...)
	return sha256.Sum256(b)
}

// MACKey computes the MACs of one tenant and key epoch. It keeps its HMAC
// state, so it is not safe for concurrent use.
type MACKey struct {
	epoch uint32
	h     hash.Hash
	buf   [64]byte
	out   Hash
}

// NewMACKey makes the MAC key of a tenant's epoch from its 32 bytes.
func NewMACKey(key [32]byte, epoch uint32) *MACKey {
	return &MACKey{epoch: epoch, h: hmac.New(sha256.New, key[:])}
}

// Epoch is the key id that is stored beside each MAC.
func (k *MACKey) Epoch() uint32 { return k.epoch }

// MAC is HMAC-SHA-256(key, "tallystick/mac/v1" ‖ 0x00 ‖ epoch ‖ seq ‖ chain_seq),
// epoch as 4 and seq as 8 bytes big-endian.
func (k *MACKey) MAC(seq int64, chain *Hash) Hash {
	b := append(k.buf[:0], domainMAC...)
	b = binary.BigEndian.AppendUint32(b, k.epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	k.h.Reset()
	k.h.Write(b)
	k.h.Write(chain[:])
	k.h.Sum(k.out[:0])
	return k.out
}

// Position is where in Kafka a record stands.
type Position struct {
	TopicID   [16]byte
	Partition int32
	Offset    int64
}

func (p *Position) append(b []byte) []byte {
	b = append(b, p.TopicID[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(p.Partition))
	return binary.BigEndian.AppendUint64(b, uint64(p.Offset))
}
