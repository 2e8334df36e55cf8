package verify

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"
)

// logForm is what tells the chains of one log from those of another: the domains
// of the formulas in docs/ledger-format.md, and what canonical bytes may hold.
type logForm struct {
	magic   string // of its export file
	genesis string
	chain   string
	mac     string
	decode  func(c *content, canonical []byte) error
	// epochs says that the entries themselves bring new key epochs.
	epochs bool
}

var (
	ledgerForm = &logForm{
		"tallystick ledger export 1\n", "tallystick/genesis/v1\x00", "tallystick/chain/v1\x00", "tallystick/mac/v1\x00",
		(*content).decode, true,
	}
	auditForm = &logForm{
		"tallystick audit export 1\n", "tallystick/audit/genesis/v1\x00", "tallystick/audit/chain/v1\x00", "tallystick/audit/mac/v1\x00",
		(*content).decodeAudit, false,
	}
)

func (f *logForm) genesisOf(tenant string) [HashSize]byte {
	return sha256.Sum256([]byte(f.genesis + tenant))
}

// checker checks consecutive entries of one tenant. It is used by one goroutine.
type checker struct {
	form   *logForm
	tenant string
	keys   Keys
	next   int64 // number of the next entry
	prev   [HashSize]byte
	// epoch in force before the next entry; -1 when the first entry decides.
	epoch int64
	first bool // the next entry is the first after an anchor from the store

	plant *planter // collects leaves; nil when nobody wants the tree
	sums  *Sums    // adds up what the entries say; nil when nobody wants that

	leaf    hash.Hash
	link    []byte // chain domain, previous chain hash, leaf hash
	macs    map[uint32]hash.Hash
	body    content
	scratch [HashSize]byte
	zero    [1]byte
	macHead []byte // MAC domain; room for epoch, number, chain hash
}

func newChecker(form *logForm, tenant string, keys Keys) *checker {
	c := &checker{form: form, tenant: tenant, keys: keys, leaf: sha256.New(), macs: make(map[uint32]hash.Hash)}
	c.link = append(make([]byte, 0, len(form.chain)+2*HashSize), form.chain...)[:len(form.chain)+2*HashSize]
	c.macHead = append(make([]byte, 0, len(form.mac)+4+8+HashSize), form.mac...)
	return c
}

// begin sets the checker before entry seq, after the anchor.
func (c *checker) begin(seq int64, prev [HashSize]byte, epoch int64, stored bool) {
	c.next, c.prev, c.epoch, c.first = seq, prev, epoch, stored
	if c.plant != nil {
		c.plant.begin(seq)
	}
}

// beginGenesis sets the checker before entry 1. A system chain begins in epoch
// 1, any other with the control entry that brings its first epoch.
func (c *checker) beginGenesis() { c.begin(1, c.form.genesisOf(c.tenant), -1, false) }

// check checks the next entry. The error is *broken or *missing.
func (c *checker) check(r *Row) error {
	if r.Seq != c.next {
		return c.numbering(r)
	}
	if len(r.Chain) != HashSize || len(r.MAC) != HashSize {
		return breakAt(r.Seq, Hash, "a hash or MAC of %d and %d bytes", len(r.Chain), len(r.MAC))
	}
	chain := c.chainOf(r.Canonical)
	if !bytes.Equal(chain[:], r.Chain) {
		return c.mismatch(r, chain)
	}
	if err := c.checkBody(r); err != nil {
		return err
	}
	if c.keys != nil {
		ok, err := c.macFits(r, chain[:])
		if err != nil {
			return err
		}
		if !ok {
			return breakAt(r.Seq, MAC, "bytes and hash fit, but the MAC is not that of key epoch %d", r.Epoch)
		}
	}
	if c.plant != nil {
		c.plant.leaf(r.Seq, tlog.Hash(c.link[len(c.form.chain)+HashSize:]))
	}
	if c.sums != nil {
		c.sums.add(&c.body)
	}
	c.prev, c.next, c.epoch, c.first = chain, r.Seq+1, r.Epoch, false
	return nil
}

func (c *checker) numbering(r *Row) error {
	if r.Seq > c.next {
		return breakAt(c.next, Gap, "the entry is missing; the next one is %d", r.Seq)
	}
	return breakAt(r.Seq, Duplicate, "the number stands again after %d", c.next-1)
}

// chainOf is the chain hash of the next entry with these bytes. It leaves their
// leaf hash at the end of c.link.
func (c *checker) chainOf(canonical []byte) [HashSize]byte {
	copy(c.link[len(c.form.chain):], c.prev[:])
	c.leafOf(canonical)
	return sha256.Sum256(c.link)
}

func (c *checker) leafOf(canonical []byte) tlog.Hash {
	c.leaf.Reset()
	c.leaf.Write(c.zero[:])
	c.leaf.Write(canonical)
	at := len(c.form.chain) + HashSize
	return tlog.Hash(c.leaf.Sum(c.link[:at])[at:])
}

// mismatch says why the stored chain hash is not the one of the bytes.
func (c *checker) mismatch(r *Row, chain [HashSize]byte) error {
	if err := c.form.decode(&c.body, r.Canonical); err != nil {
		return breakAt(r.Seq, Hash, "%v", err)
	}
	if c.first {
		return breakAt(r.Seq, PreviousHash, "it does not follow from the chain hash stored at %d", r.Seq-1)
	}
	if c.keys != nil {
		stored, err := c.macFits(r, r.Chain)
		if err != nil {
			return err
		}
		recomputed, err := c.macFits(r, chain[:])
		if err != nil {
			return err
		}
		if !stored && !recomputed {
			return breakAt(r.Seq, PreviousHash, "it is not the successor of entry %d", r.Seq-1)
		}
	}
	return breakAt(r.Seq, Hash, "the stored chain hash is not the one of the entry's bytes")
}

// checkBody decodes the entry and compares what stands beside the bytes.
func (c *checker) checkBody(r *Row) error {
	b := &c.body
	switch err := c.form.decode(b, r.Canonical); {
	case err == nil:
	case errors.Is(err, errVersion):
		return breakAt(r.Seq, UnknownVersion, "version %d, kind %d: use a newer verifier", r.Canonical[0], r.Canonical[1])
	default:
		return foundBy(ByFormat, r.Seq, Hash, "%v", err)
	}
	differs := func(column string, stored, canonical any) error {
		return breakAt(r.Seq, Projection, "%s is %v, the entry says %v", column, stored, canonical)
	}
	if b.seq != r.Seq {
		return differs("seq", r.Seq, b.seq)
	}
	if string(b.tenant) != c.tenant {
		return differs("tenant_id", c.tenant, fmt.Sprintf("%.64q", b.tenant))
	}
	if b.kind == kindCorrection && c.form.epochs && (b.corrects < 1 || b.corrects >= r.Seq) {
		return foundBy(ByFormat, r.Seq, Correction, "it corrects entry %d, which is not before it", b.corrects)
	}
	if epoch, err := c.epochOf(r); err != nil {
		return err
	} else if r.Epoch != epoch {
		return differs("key_epoch", r.Epoch, epoch)
	}
	if !r.Projected {
		return nil
	}
	return c.checkColumns(r, differs)
}

func (c *checker) checkColumns(r *Row, differs func(string, any, any) error) error {
	b := &c.body
	if r.Kind != int64(b.kind) {
		return differs("kind", r.Kind, b.kind)
	}
	if r.HasOccurred != (b.occurred != 0) || r.Occurred != floorMicros(b.occurred) {
		return differs("occurred_at", r.Occurred, floorMicros(b.occurred))
	}
	if r.HasCost != b.priced || r.CostBad || r.Cost != b.cost {
		return differs("cost_usd", optional(r.HasCost, r.Cost), optional(b.priced, b.cost))
	}
	return nil
}

func optional(has bool, v int64) string {
	if !has {
		return "null"
	}
	return strconv.FormatInt(v, 10) + "e-12"
}

// floorMicros shortens nanoseconds towards the past.
func floorMicros(ns int64) int64 {
	us := ns / 1000
	if ns%1000 < 0 {
		us--
	}
	return us
}

// epochOf is the key epoch that the entry must have: that of the entry before
// it, or the one that it brings itself.
func (c *checker) epochOf(r *Row) (int64, error) {
	if r.Epoch < 1 || r.Epoch > 1<<31-1 {
		return 0, breakAt(r.Seq, Projection, "key_epoch is %d", r.Epoch)
	}
	if !c.form.epochs {
		return r.Epoch, nil
	}
	b := &c.body
	if b.kind == kindControl && string(b.control) == "key_epoch" {
		n, err := strconv.ParseInt(string(b.controlVers), 10, 32)
		if err != nil || n < 1 {
			return 0, breakAt(r.Seq, Hash, "a key epoch %.20q", b.controlVers)
		}
		return n, nil
	}
	if c.epoch < 0 {
		return 1, nil // a system chain
	}
	return c.epoch, nil
}

// macFits reports whether the row's MAC is that of the chain hash.
func (c *checker) macFits(r *Row, chain []byte) (bool, error) {
	epoch := uint32(r.Epoch)
	h, ok := c.macs[epoch]
	if !ok {
		key, err := c.keys(epoch)
		if err != nil {
			return false, &missing{fmt.Errorf("entry %d: the MAC key of epoch %d: %w", r.Seq, r.Epoch, err)}
		}
		h = hmac.New(sha256.New, key[:])
		c.macs[epoch] = h
	}
	m := c.macHead
	m = binary.BigEndian.AppendUint32(m, epoch)
	m = binary.BigEndian.AppendUint64(m, uint64(r.Seq))
	m = append(m, chain...)
	h.Reset()
	h.Write(m)
	return hmac.Equal(h.Sum(c.scratch[:0]), r.MAC), nil
}
