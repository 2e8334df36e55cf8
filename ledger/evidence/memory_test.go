package evidence_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strconv"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"
)

// memory is one log of a tenant in memory, with its tree and checkpoints. Only
// the writers' format code makes its bytes.
type memory struct {
	ends   verify.Ends
	rows   []verify.Row
	times  []time.Time
	hashes []tlog.Hash // in the order of tlog.StoredHashIndex
	notes  []evidence.Checkpoint
	keys   []evidence.Key
	signer note.Signer
	vkey   string
	origin string
}

func (m *memory) Ends(context.Context) (verify.Ends, error) { return m.ends, nil }

func (m *memory) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	for i := max(from-1, 0); i < min(to, int64(len(m.rows))); i++ {
		r := m.rows[i]
		if err := fn(&r); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (m *memory) Occurred(_ context.Context, from, before time.Time) (first, last int64, err error) {
	for i, at := range m.times {
		if !at.IsZero() && !at.Before(from) && at.Before(before) {
			if first == 0 {
				first = int64(i + 1)
			}
			last = int64(i + 1)
		}
	}
	return first, last, nil
}

func (m *memory) Happened(ctx context.Context, from, to time.Time) (first, last int64, err error) {
	return m.Occurred(ctx, from, to.Add(1))
}

func (m *memory) Newest(ctx context.Context) (evidence.Checkpoint, bool, error) {
	if len(m.notes) == 0 {
		return evidence.Checkpoint{}, false, nil
	}
	return m.notes[len(m.notes)-1], true, nil
}

func (m *memory) Covering(_ context.Context, size int64) (evidence.Checkpoint, bool, error) {
	for _, c := range m.notes {
		if c.Size >= size {
			return c, true, nil
		}
	}
	return evidence.Checkpoint{}, false, nil
}

func (m *memory) Checkpoints(_ context.Context, from, to int64, limit int) (list []evidence.Checkpoint, err error) {
	for _, c := range m.notes {
		if c.Size >= from && c.Size <= to && len(list) < limit {
			list = append(list, c)
		}
	}
	return list, nil
}

func (m *memory) Keys(context.Context) ([]evidence.Key, error) { return m.keys, nil }

func (m *memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		list[i] = m.hashes[at]
	}
	return list, nil
}

func (m *memory) Inclusion(_ context.Context, index, size int64) (list []evidence.Hash, err error) {
	p, err := tlog.ProveRecord(size, index, m)
	for _, h := range p {
		list = append(list, h)
	}
	return list, err
}

func (m *memory) Consistency(_ context.Context, from, to int64) (list []evidence.Hash, err error) {
	p, err := tlog.ProveTree(to, from, m)
	for _, h := range p {
		list = append(list, h)
	}
	return list, err
}

// add appends a row and its leaf.
func (m *memory) add(t testing.TB, r verify.Row, at time.Time) {
	t.Helper()
	m.rows, m.times = append(m.rows, r), append(m.times, at)
	m.ends = verify.Ends{HasHead: true, Seq: r.Seq, LastSeq: r.Seq, Chain: [32]byte(r.Chain), Epoch: r.Epoch}
	hashes, err := tlog.StoredHashes(r.Seq-1, r.Canonical, m)
	if err != nil {
		t.Fatal(err)
	}
	m.hashes = append(m.hashes, hashes...)
}

// sign publishes a checkpoint of the size.
func (m *memory) sign(t testing.TB, size int64, cosigners ...note.Signer) {
	t.Helper()
	root, err := tlog.TreeHash(size, m)
	if err != nil {
		t.Fatal(err)
	}
	m.notes = append(m.notes, m.note(t, size, root, cosigners...))
}

func (m *memory) note(t testing.TB, size int64, root tlog.Hash, cosigners ...note.Signer) evidence.Checkpoint {
	t.Helper()
	text := fmt.Sprintf("%s\n%d\n%s\n", m.origin, size, root)
	b, err := note.Sign(&note.Note{Text: text}, append([]note.Signer{m.signer}, cosigners...)...)
	if err != nil {
		t.Fatal(err)
	}
	return evidence.Checkpoint{Origin: m.origin, Size: size, Root: evidence.Hash(root), Note: b}
}

// useKey signs with a key from now on, and states it.
func (m *memory) useKey(t testing.TB, origin string, seed byte) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	vkey, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	former := m.signer
	m.signer, m.vkey, m.origin = ed25519Signer{v, key}, vkey, origin
	signers := []note.Signer{m.signer}
	if former != nil {
		signers = append(signers, former)
	}
	epoch := len(m.keys) + 1
	statement, err := note.Sign(&note.Note{Text: fmt.Sprintf("tallystick signing key 1\n%s\n%d\n%s\n", origin, epoch, vkey)}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	m.keys = append(m.keys, evidence.Key{Epoch: uint32(epoch), VKey: vkey, Statement: statement})
}

type ed25519Signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s ed25519Signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func macKey(epoch uint32) ([32]byte, error) { return [32]byte{byte(epoch), 7}, nil }

// day is midnight of a day of November 2026.
func day(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }

const hour = int64(time.Hour)

// newLedger makes a good ledger of n entries, one an hour from the 1st on; every
// seventh arrives two days late.
func newLedger(t testing.TB, tenantID string, n int) *memory {
	t.Helper()
	m := &memory{}
	m.useKey(t, "test.example/ledger/"+tenantID, 1)
	h, prev, epoch := chain.NewHasher(), chain.Genesis(tenantID), uint32(1)
	for seq := int64(1); seq <= int64(n); seq++ {
		e := chain.Entry{Kind: chain.Usage, Seq: seq, Priced: seq%3 != 0, PricingVersion: 1}
		at := day(1).UnixNano() + seq*hour
		e.Event = event.Event{Tenant: tenantID, ID: fmt.Sprint("e", seq), OccurredAt: at, ReceivedAt: at + 5, Provider: "p", Model: "m"}
		if seq%7 == 0 {
			e.Event.OccurredAt -= 48 * hour
		}
		e.Event.Tokens[tokens.Input] = seq
		if e.Priced {
			e.Cost = money.Pico(seq * 17)
		}
		if seq == 1 || seq == 6 {
			e = chain.Entry{Kind: chain.Control, Seq: seq, ControlKind: event.ControlKeyEpoch, ControlVersion: strconv.Itoa(1 + int(seq/6))}
			e.Event.Tenant, e.Event.ReceivedAt = tenantID, at
			epoch = 1 + uint32(seq/6)
		}
		e.Position.Offset = seq
		canonical := e.Append(nil)
		leaf := h.Leaf(canonical)
		prev = h.Next(&prev, &leaf)
		key, _ := macKey(epoch)
		mac := chain.NewMACKey(key, epoch).MAC(seq, &prev)
		var occurred time.Time
		if e.Event.OccurredAt != 0 {
			occurred = time.Unix(0, e.Event.OccurredAt)
		}
		m.add(t, verify.Row{Seq: seq, Epoch: int64(epoch), Canonical: canonical, Chain: bytes.Clone(prev[:]), MAC: mac[:]}, occurred)
	}
	return m
}

// newAudit makes a good audit log of n rows, one an hour.
func newAudit(t testing.TB, tenantID string, n int) *memory {
	t.Helper()
	m := &memory{}
	m.useKey(t, "test.example/audit/"+tenantID, 1)
	prev := audit.Genesis("acme")
	for seq := int64(1); seq <= int64(n); seq++ {
		at := day(1).Add(time.Duration(seq) * time.Hour)
		canonical := auditEvent(tenantID, seq, at)
		prev = audit.Next(prev, audit.Leaf(canonical))
		key, _ := macKey(1)
		mac := audit.MAC(key, 1, seq, prev)
		m.add(t, verify.Row{Seq: seq, Epoch: 1, Canonical: canonical, Chain: bytes.Clone(prev[:]), MAC: mac[:]}, at)
	}
	return m
}

// auditEvent is the canonical form of a small audit event, by the document.
func auditEvent(tenantID string, seq int64, at time.Time) []byte {
	b := []byte{1, 0x40, 1, byte(len(tenantID))}
	b = append(b, tenantID...)
	b = append(b, 2)
	number := []byte{byte(seq)}
	if seq > 255 {
		number = []byte{byte(seq >> 8), byte(seq)}
	}
	b = append(append(b, byte(len(number))), number...)
	b = append(b, 3, 8)
	for shift := 56; shift >= 0; shift -= 8 {
		b = append(b, byte(at.UnixNano()>>shift))
	}
	return append(b, 5, 5, 'l', 'o', 'g', 'i', 'n')
}

func encodeBase64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
