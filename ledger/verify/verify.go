// Package verify says whether a tenant's ledger is intact.
//
// It reads entries from a Source or an export file and recomputes everything
// that docs/ledger-format.md defines: the canonical form of each entry, its
// leaf and chain hash, its MAC where keys are given, the projected columns, the
// numbers without gap or duplicate, and the head. It shares no code with the
// writer but the format: the decoder and the formulas here were written from
// the document, and tests hold both against the same vectors.
//
// It promises that a ledger it calls intact is, byte for byte, what its chain
// hash commits to; that a broken one is reported by its first bad entry; and
// that missing evidence (a store that is away, a key that cannot be had) gives
// Unknown and never Intact. It never writes, and holds a few hundred kilobytes
// per worker whatever the ledger's size.
package verify

import (
	"context"
	"errors"
	"fmt"
)

// Verdict is what a verification came to.
type Verdict string

// The verdicts.
const (
	Intact  Verdict = "intact"
	Broken  Verdict = "broken"
	Unknown Verdict = "unknown" // part of the evidence is missing
)

// Reason is why an entry is bad.
type Reason string

// The reasons of a broken ledger.
const (
	// Gap: an entry is missing.
	Gap Reason = "gap"
	// Duplicate: a number stands twice, or entries are out of order.
	Duplicate Reason = "duplicate"
	// PreviousHash: the entry is not the successor of the one before it: neither
	// its own chain hash nor the right one has its MAC, or the first entry of the
	// range does not follow from the anchor.
	PreviousHash Reason = "previous hash"
	// Hash: the entry's bytes and its chain hash do not belong together, or the
	// bytes are not the canonical form of anything.
	Hash Reason = "hash"
	// MAC: bytes and hash fit, but whoever wrote them did not have the key.
	MAC Reason = "MAC"
	// Projection: a column beside the bytes says something else than the bytes.
	Projection Reason = "projected column differs"
	// UnknownVersion: the bytes begin with a version or kind that this verifier
	// does not know.
	UnknownVersion Reason = "unknown version"
	// Correction: a correction names no entry before it.
	Correction Reason = "correction"
	// MissingAnchor: the entry before the range, or the head, is not there.
	MissingAnchor Reason = "missing anchor"
	// Truncated: entries end before the head or a checkpoint says, or the head
	// stands before the end of the entries.
	Truncated Reason = "truncated"
	// Root: entries and chain are good in themselves and are not those that a
	// signed checkpoint commits to.
	Root Reason = "root differs"
	// Signature: a checkpoint is not signed by the key that it should be.
	Signature Reason = "checkpoint signature"
	// MissingCheckpoint: a published checkpoint is gone from where it stood.
	MissingCheckpoint Reason = "checkpoint missing"
	// Consistency: two signed checkpoints are not of one growing tree.
	Consistency Reason = "consistency"
	// Manifest: the package is not what its manifest says.
	Manifest Reason = "manifest"
	// Archive: the package is no archive of the form it must have.
	Archive Reason = "archive"
	// AuditTrail: the audit rows are not intact; the number is that of a row.
	AuditTrail Reason = "audit trail"
)

// Detector is which check found a break.
type Detector string

// The detectors.
const (
	ByNumber     Detector = "number"     // numbers without gap or duplicate
	ByChain      Detector = "chain"      // chain hash of the bytes and the entry before
	ByMAC        Detector = "mac"        // MAC under the tenant's key
	ByProjection Detector = "projection" // what stands beside the bytes
	ByFormat     Detector = "format"     // canonical form, versions
	ByHead       Detector = "head"       // the head and the end of the entries
	ByRoot       Detector = "root"       // the tree's root and a checkpoint
	BySignature  Detector = "signature"  // checkpoints as they are published: signatures, completeness
	ByProof      Detector = "proof"      // consistency of checkpoints
	ByManifest   Detector = "manifest"   // what the package says of itself
	ByArchive    Detector = "archive"    // the form of the ZIP file
	ByAudit      Detector = "audit"      // the audit trail
)

// detectors name the check that gives each reason; the few that two checks
// give are told apart where they arise.
var detectors = map[Reason]Detector{
	Gap: ByNumber, Duplicate: ByNumber, PreviousHash: ByChain, Hash: ByChain, MAC: ByMAC, Projection: ByProjection,
	UnknownVersion: ByFormat, Correction: ByFormat, MissingAnchor: ByHead, Truncated: ByHead, Root: ByRoot, Signature: BySignature,
	Consistency: ByProof, MissingCheckpoint: BySignature, Manifest: ByManifest, Archive: ByArchive, AuditTrail: ByAudit,
}

// HashSize is the size of hashes and MACs.
const HashSize = 32

// Row is one stored entry. Its slices are valid until the call that was given
// it returns.
type Row struct {
	Seq       int64
	Epoch     int64 // key epoch
	Canonical []byte
	Chain     []byte
	MAC       []byte

	// The projections, where the store has any.
	Projected   bool
	Kind        int64
	HasOccurred bool
	Occurred    int64 // unix microseconds
	HasCost     bool
	Cost        int64 // 1e-12 USD
	// CostBad says that the column holds no amount of the ledger's precision.
	CostBad bool
}

// Ends is what a Source knows of the chain's end, from one snapshot.
type Ends struct {
	HasHead bool
	Seq     int64
	Chain   [HashSize]byte
	Epoch   int64
	// LastSeq is the greatest number of an entry, 0 when there are none.
	LastSeq int64
}

// Source is one tenant's ledger in a store. Its methods may be called from many
// goroutines. An error means that the store does not give the evidence.
type Source interface {
	Ends(ctx context.Context) (Ends, error)
	// Rows calls fn with the entries from..to in order of number. fn's error ends
	// the reading and is returned.
	Rows(ctx context.Context, from, to int64, fn func(*Row) error) error
}

// Keys gives MAC keys of one tenant, by key epoch.
type Keys func(epoch uint32) ([32]byte, error)

// Options of a verification.
type Options struct {
	Tenant string
	// From and To are the range, both included; 0 is the first and the last.
	From, To int64
	// Workers read and check parts of the range at once; 0 is 1.
	Workers int
	// Keys check MACs; nil leaves them unchecked.
	Keys Keys
	// Checkpoints are what the entries must agree with, signatures checked
	// (OpenCheckpoint). Those beyond a range that was asked for say nothing of it.
	Checkpoints []Checkpoint
	// Published are the ledger's own checkpoints, with signatures yet to be checked.
	Published *Published
	// LeftEdge is, for a range that does not begin at 1, the hashes of the tree
	// before it: the perfect subtrees of its leaves, from left to right. Without
	// it such a range is not held against checkpoints.
	LeftEdge [][HashSize]byte
	// Tree wants the report's Tree.
	Tree bool
	// Stored, when set, is the store's own copy of the tree: the root of the
	// leaves index<<level on, 1<<level of them. It is used only where it agrees
	// with a checkpoint and the entries do not, to find the first bad one.
	Stored func(ctx context.Context, level int, index int64) ([HashSize]byte, error)
	// Progress, when set, is called now and then by one goroutine at a time with
	// the number of entries checked and to be checked.
	Progress func(done, total int64)

	log *logForm // nil is the ledger's
	// datesFrom and datesTo are the window of Sums.Dated, unix nanoseconds.
	datesFrom, datesTo int64
	// rootAt is a size whose root is wanted without a checkpoint of it.
	rootAt int64
}

// OfAudit is the options for the tenant's audit log in place of its ledger.
func (o Options) OfAudit() Options {
	o.log = auditForm
	return o
}

func (o *Options) form() *logForm {
	if o.log == nil {
		return ledgerForm
	}
	return o.log
}

// Report is what a verification found.
type Report struct {
	Verdict  Verdict
	Tenant   string
	Entries  int64 // checked and good
	From, To int64
	// HeadHash is the chain hash of the last good entry.
	HeadHash    [HashSize]byte
	MACsChecked bool
	// Sums is what the good entries add up to.
	Sums Sums
	// Tree is the tree of the entries 1 to To, when asked for: its perfect subtrees,
	// from left to right. It is the LeftEdge of what follows.
	Tree [][HashSize]byte
	// Covered is the size of the greatest checkpoint that the entries agree with.
	Covered int64
	// Warnings are what a reader of the verdict must know beside it.
	Warnings []string
	// FirstBad is the number of the first bad entry, Reason and Message say why,
	// when Broken. Message also explains Unknown.
	FirstBad int64
	Reason   Reason
	Detector Detector
	Message  string
	// NoTenant says that the ledger has neither a head nor entries of the tenant:
	// it was never written for, or everything is gone.
	NoTenant bool
	// Checkpoints are those that were held against the entries, by size.
	Checkpoints []Checkpoint
	// Package is what an evidence package says of itself, nil elsewhere.
	Package *ManifestInfo
	// Audit is what was found of a package's audit rows, nil without any. A break
	// of them is the package's too.
	Audit *Report

	src Source // while it is being verified
}

// ErrRange says that the range asked for is not one.
var ErrRange = errors.New("verify: the range is empty or begins beyond the end")

// errNoTenant is evidence that is missing altogether.
var errNoTenant = errors.New("the ledger knows no such tenant")

// broken is why a ledger is broken; it travels as an error.
type broken struct {
	seq      int64
	reason   Reason
	detector Detector
	message  string
}

func (b *broken) Error() string { return fmt.Sprintf("entry %d: %s: %s", b.seq, b.reason, b.message) }

func breakAt(seq int64, reason Reason, format string, args ...any) error {
	return foundBy(detectors[reason], seq, reason, format, args...)
}

func foundBy(by Detector, seq int64, reason Reason, format string, args ...any) error {
	return &broken{seq, reason, by, fmt.Sprintf(format, args...)}
}

// missing is evidence that cannot be had; it travels as an error.
type missing struct{ error }

func (m *missing) Unwrap() error { return m.error }

// conclude turns how a verification ended into the report's verdict. Only the
// caller's own context and range are errors.
func (r *Report) conclude(ctx context.Context, err error) (Report, error) {
	var b *broken
	switch {
	case err == nil:
		r.Verdict = Intact
	case errors.As(err, &b):
		r.Verdict, r.FirstBad, r.Reason, r.Detector, r.Message = Broken, b.seq, b.reason, b.detector, b.message
	case errors.Is(err, ErrRange):
		return *r, err
	case ctx.Err() != nil:
		return *r, ctx.Err()
	default:
		r.Verdict, r.Message, r.NoTenant = Unknown, err.Error(), errors.Is(err, errNoTenant)
	}
	return *r, nil
}
