package verify

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
)

// The domains of the two chains (docs/ledger-format.md).
const (
	linksLedgerGenesis = "tallystick/genesis/v1\x00"
	linksLedgerChain   = "tallystick/chain/v1\x00"
	linksAuditGenesis  = "tallystick/audit/genesis/v1\x00"
	linksAuditChain    = "tallystick/audit/chain/v1\x00"
)

// Links recomputes the leaf hashes of a log's consecutive records from their
// bytes and holds each stored chain hash against the one that follows from them:
// what whoever signs a tree must do before. It looks at nothing inside the
// bytes. It is used by one goroutine.
type Links struct {
	next   int64
	prev   [HashSize]byte
	domain string
	leaf   hash.Hash
	out    [HashSize]byte
	link   []byte
	zero   [1]byte
}

// NewLedgerLinks begins behind the entry `after` of a ledger, whose chain hash is
// prev; with after 0 it begins at the genesis.
func NewLedgerLinks(tenantID string, after int64, prev [HashSize]byte) *Links {
	return newLinks(linksLedgerGenesis, linksLedgerChain, tenantID, after, prev)
}

// NewAuditLinks is NewLedgerLinks for the audit log.
func NewAuditLinks(tenantID string, after int64, prev [HashSize]byte) *Links {
	return newLinks(linksAuditGenesis, linksAuditChain, tenantID, after, prev)
}

func newLinks(genesis, chain, tenantID string, after int64, prev [HashSize]byte) *Links {
	if after == 0 {
		prev = sha256.Sum256([]byte(genesis + tenantID))
	}
	return &Links{next: after + 1, prev: prev, domain: chain, leaf: sha256.New()}
}

// Last is the number and chain hash of the last record that was checked.
func (l *Links) Last() (seq int64, chain [HashSize]byte) { return l.next - 1, l.prev }

// Add checks the next record and returns its leaf hash, which is valid until the
// next call. Fault explains an error.
func (l *Links) Add(seq int64, canonical, chain []byte) (*[HashSize]byte, error) {
	switch {
	case seq > l.next:
		return nil, breakAt(l.next, Gap, "the record is missing; the next one is %d", seq)
	case seq < l.next:
		return nil, breakAt(seq, Duplicate, "the number stands again after %d", l.next-1)
	}
	l.leaf.Reset()
	l.leaf.Write(l.zero[:])
	l.leaf.Write(canonical)
	l.leaf.Sum(l.out[:0])
	l.link = append(append(append(l.link[:0], l.domain...), l.prev[:]...), l.out[:]...)
	sum := sha256.Sum256(l.link)
	if !bytes.Equal(sum[:], chain) {
		return nil, breakAt(seq, Hash, "the stored chain hash does not follow from the bytes and the chain hash before")
	}
	l.prev, l.next = sum, seq+1
	return &l.out, nil
}

// LeafHash is the leaf hash of a record's canonical bytes: SHA-256(0x00 ‖ bytes).
func LeafHash(canonical []byte) [HashSize]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(canonical)
	return [HashSize]byte(h.Sum(nil))
}

// Fault is the first bad record and the reason that an error of this package
// tells of; ok is false for any other error.
func Fault(err error) (seq int64, reason Reason, message string, ok bool) {
	var b *broken
	if !errors.As(err, &b) {
		return 0, "", "", false
	}
	return b.seq, b.reason, b.message, true
}
