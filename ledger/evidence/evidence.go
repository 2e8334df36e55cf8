// Package evidence writes what an auditor takes away: exports of a ledger, and
// evidence packages, which tie a range of it to signed checkpoints
// (docs/ledger-format.md, "The export file" and "Evidence packages").
//
// It promises that a package is written in one pass with bounded memory, whatever
// the range; that it holds no entry that no checkpoint covers; that what its
// manifest says of the entries was added up from the very bytes in it; and that a
// package is whole or has no directory, so a cut one cannot be taken for a whole
// one. It verifies nothing: that is for those who receive it, with other code
// (ledger/verify). It never writes to a ledger.
package evidence

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/tallystick/tallystick/ledger/verify"
)

// Hash is a node of a tree.
type Hash = [hashBytes]byte

// Checkpoint is a published checkpoint: the signed note with the signature lines
// of witnesses.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   Hash
	Note   []byte
}

// Key is a key that checkpoints were signed with.
type Key struct {
	Epoch     uint32
	VKey      string
	Statement []byte // signed by the key and the one before it
}

// Tree is the published tree of one tenant's log. Proofs are those of RFC 6962;
// sizes are at most that of the newest checkpoint.
type Tree interface {
	// Newest is the newest checkpoint; false when none was ever signed.
	Newest(ctx context.Context) (Checkpoint, bool, error)
	// Covering is the smallest checkpoint of at least the size; false without one.
	Covering(ctx context.Context, size int64) (Checkpoint, bool, error)
	// Checkpoints are up to limit of those with sizes from..to, spread over them,
	// in order.
	Checkpoints(ctx context.Context, from, to int64, limit int) ([]Checkpoint, error)
	// Keys are those that signed, in order of epoch.
	Keys(ctx context.Context) ([]Key, error)
	Inclusion(ctx context.Context, index, size int64) ([]Hash, error)
	Consistency(ctx context.Context, from, to int64) ([]Hash, error)
}

// Ledger is one tenant's ledger as it is stored.
type Ledger interface {
	verify.Source
	// Occurred is the smallest range with all entries that occurred in
	// [from, before); zeros when there are none.
	Occurred(ctx context.Context, from, before time.Time) (first, last int64, err error)
}

// AuditLog is one tenant's audit log as it is stored.
type AuditLog interface {
	verify.Source
	// Happened is the smallest range with all events of [from, to].
	Happened(ctx context.Context, from, to time.Time) (first, last int64, err error)
}

// Stores are what a package is made of. Audit may be nil: then it has no audit
// rows.
type Stores struct {
	Ledger     Ledger
	LedgerTree Tree
	Audit      AuditLog
	AuditTree  Tree
}

// Request says what a package is to hold: a range of entries, or days.
type Request struct {
	Tenant string
	// From and To are the range, both included. 0 is the first entry, and the last
	// one under a checkpoint.
	From, To int64
	// Dates, when set, are the days instead.
	Dates *Dates
	// Kept are sizes of checkpoints that the reader has; the package gets proofs
	// that tie it to them.
	Kept []int64
	// MadeBy names the program and its version.
	MadeBy string
	// Now is when the package is made.
	Now time.Time
}

// Dates are days, whole in their time zone. A package of them is the smallest
// range that holds every entry that occurred on them: entries stand in order of
// arrival, so it may hold others that occurred on other days.
type Dates struct {
	From, Before time.Time // Before is exclusive
	TimeZone     string
}

// Plan is a package that can be written: everything about it is known but the
// entries themselves.
type Plan struct {
	From, To   int64
	Checkpoint Checkpoint // covers the range

	req    Request
	stores Stores
	note   string // on the dates
	keys   []Key
	inside []Checkpoint
	audit  *auditPlan
	proofs map[string]logProofs
}

// maxInside is how many checkpoints inside a range a package carries. They date
// a change: the fewer, the wider the range that it may lie in.
const maxInside = 1000

// New plans a package. It reads checkpoints and proofs, and no entries. Errors:
// ErrRange, ErrUncovered, ErrKept, those of the stores.
func New(ctx context.Context, s Stores, req Request) (*Plan, error) {
	p := &Plan{req: req, stores: s, proofs: map[string]logProofs{}}
	if p.req.Now.IsZero() {
		p.req.Now = time.Now()
	}
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	var ok bool
	var err error
	if p.Checkpoint, ok, err = s.LedgerTree.Covering(ctx, p.To); err != nil || !ok {
		return nil, orElse(err, fmt.Errorf("%w: entry %d", ErrUncovered, p.To))
	}
	if p.inside, err = s.LedgerTree.Checkpoints(ctx, max(p.From-1, 1), p.To, maxInside); err != nil {
		return nil, err
	}
	if p.keys, err = s.LedgerTree.Keys(ctx); err != nil {
		return nil, err
	}
	proofs, err := prove(ctx, s.LedgerTree, p.From, p.To, p.Checkpoint.Size, req.Kept)
	if err != nil {
		return nil, err
	}
	p.proofs[ledgerLog] = proofs
	return p, nil
}

func orElse(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// resolve finds the range.
func (p *Plan) resolve(ctx context.Context) error {
	newest, ok, err := p.stores.LedgerTree.Newest(ctx)
	if err != nil || !ok {
		return orElse(err, fmt.Errorf("%w: none was ever signed", ErrUncovered))
	}
	p.From, p.To = max(p.req.From, 1), p.req.To
	if d := p.req.Dates; d != nil {
		if p.From, p.To, err = p.stores.Ledger.Occurred(ctx, d.From, d.Before); err != nil {
			return err
		}
		if p.From == 0 || p.From > newest.Size {
			return fmt.Errorf("%w: none that occurred on these days is under a checkpoint", ErrRange)
		}
		if p.To > newest.Size && d.Before.After(p.req.Now) {
			p.note = fmt.Sprintf("the period was not over: entries %d to %d of it were under no checkpoint yet and are not here", newest.Size+1, p.To)
			p.To = newest.Size
		}
	}
	if p.To == 0 {
		p.To = newest.Size
	}
	switch {
	case p.From > p.To || p.req.From < 0 || p.req.To < 0:
		return ErrRange
	case p.To > newest.Size:
		ends, err := p.stores.Ledger.Ends(ctx)
		if err == nil && p.To > ends.Seq {
			return fmt.Errorf("%w: the ledger ends at %d", ErrRange, ends.Seq)
		}
		return orElse(err, fmt.Errorf("%w: the newest covers %d entries", ErrUncovered, newest.Size))
	}
	return nil
}

// Entries is how many entries the package holds.
func (p *Plan) Entries() int64 { return p.To - p.From + 1 }

// Write writes the package. When it fails, what was written has no directory and
// is no package. progress, when set, is told of entries now and then.
func (p *Plan) Write(ctx context.Context, w io.Writer, progress func(done, total int64)) (*Manifest, error) {
	z := newZip(w, p.req.Now)
	m := p.manifest()
	if err := z.add(readmeName, readme); err != nil {
		return nil, err
	}
	if err := p.writeEntries(ctx, z, m, progress); err != nil {
		return nil, fmt.Errorf("write the entries: %w", err)
	}
	if err := p.writeAudit(ctx, z, m); err != nil {
		return nil, fmt.Errorf("write the audit rows: %w", err)
	}
	if err := p.writeCheckpoints(z); err != nil {
		return nil, err
	}
	if err := z.addJSON(proofsName, p.proofs); err != nil {
		return nil, err
	}
	m.Files = z.files
	if err := z.addJSON(manifestName, m); err != nil {
		return nil, err
	}
	return m, z.close()
}
