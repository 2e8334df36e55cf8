package verify

import (
	"archive/zip"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// PackageOptions are whom the reader of a package trusts, and what he kept.
type PackageOptions struct {
	// Tenant, when set, must be the package's.
	Tenant string
	// Trusted are the log's public keys, known from elsewhere. Key statements in
	// the package that these sign are followed.
	Trusted VerifierKeys
	// SelfAsserted takes the keys in the package for trusted when Trusted holds
	// none: that shows that the package fits together, not who made it.
	SelfAsserted bool
	// Witnesses cosigned the newest checkpoint, at least Quorum of them; 0 is all.
	Witnesses VerifierKeys
	Quorum    int
	// Kept are signed checkpoints of the ledger from elsewhere: earlier packages,
	// a witness, the auditor's own copy.
	Kept [][]byte
	// MACKeys and AuditMACKeys check MACs; nil leaves them unchecked.
	MACKeys, AuditMACKeys Keys
	// MACTenant, when set, is whose keys they are: those of another tenant than
	// the package's say nothing.
	MACTenant string
	Workers   int
	Progress  func(done, total int64)
}

// Package checks an evidence package (docs/ledger-format.md): the form of the
// archive, signatures, entries, chain, MACs, the tree's root at every checkpoint
// in the range and the proof to the one beyond, the audit rows in the same way,
// and every sum that the manifest gives. The error is that of the context, or
// ErrNotPackage; everything else is a verdict.
func Package(ctx context.Context, r io.ReaderAt, size int64, o PackageOptions) (Report, error) {
	rep := &Report{MACsChecked: o.MACKeys != nil}
	p := &pack{o: &o, rep: rep}
	err := p.verify(ctx, r, size)
	if errors.Is(err, ErrNotPackage) {
		return *rep, err
	}
	return rep.conclude(ctx, err)
}

// pack is a package that is being checked.
type pack struct {
	o   *PackageOptions
	rep *Report
	a   *archive
	m   *ManifestInfo
	proofs
}

// proofs ties the ranges of a package to trees: proofs.json, by log.
type proofs map[string]logProofs

type logProofs struct {
	// LeftEdge are the perfect subtrees before the range, in hexadecimal.
	LeftEdge []string `json:"left_edge"`
	// Consistency are proofs from one size to another.
	Consistency []consistencyProof `json:"consistency"`
}

type consistencyProof struct {
	From   int64    `json:"from"`
	To     int64    `json:"to"`
	Hashes []string `json:"hashes"`
}

func (p *pack) verify(ctx context.Context, r io.ReaderAt, size int64) (err error) {
	if p.a, err = openArchive(r, size); err != nil {
		return err
	}
	b, err := p.a.small(manifestName)
	if err != nil {
		return err
	}
	if p.m, err = parseManifest(b); err != nil {
		return err
	}
	p.rep.Package, p.rep.Tenant, p.rep.From, p.rep.To = p.m, p.m.Tenant, p.m.From, p.m.To
	if p.o.Tenant != "" && p.o.Tenant != p.m.Tenant {
		return breakAt(0, Manifest, "the package is of tenant %.80q, not %q", p.m.Tenant, p.o.Tenant)
	}
	if p.o.MACTenant != "" && p.o.MACTenant != p.m.Tenant {
		return &missing{fmt.Errorf("the MAC keys are of tenant %q, the package is of %.80q", p.o.MACTenant, p.m.Tenant)}
	}
	if err := p.readProofs(); err != nil {
		return err
	}
	err = p.ledger(ctx)
	var b2 *broken
	if err != nil && !errors.As(err, &b2) {
		return err
	}
	auditErr := p.audit(ctx)
	if err == nil {
		err = auditErr
	}
	// A manifest that does not fit is reported when nothing deeper is wrong.
	if err == nil {
		err = p.rest()
	}
	return err
}

// rest reads what nothing else did, so that every member was held against the
// manifest.
func (p *pack) rest() error {
	for _, name := range slices.Sorted(maps.Keys(p.a.members)) {
		if _, read := p.a.digests[name]; read {
			continue
		}
		if _, err := p.a.small(name); err != nil {
			return err
		}
	}
	return p.m.checkFiles(p.a)
}

func (p *pack) readProofs() error {
	b, err := p.a.small(proofsName)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &p.proofs); err != nil {
		return foundBy(ByProof, 0, Archive, "%s cannot be read: %v", proofsName, err)
	}
	return nil
}

// ledger checks the entries.
func (p *pack) ledger(ctx context.Context) error {
	t, err := p.openLog(ledgerLog, p.m.Anchored.Size)
	if err != nil {
		return err
	}
	from, to, err := p.m.window()
	if err != nil {
		return err
	}
	o := Options{
		Tenant: p.m.Tenant, Workers: p.o.Workers, Keys: p.o.MACKeys, Progress: p.o.Progress,
		log: ledgerForm, datesFrom: from, datesTo: to,
	}
	rep, err := p.entries(ctx, t, entriesName, o, p.m.From, p.m.To)
	if rep != nil {
		rep.Package, rep.Warnings = p.m, append(p.rep.Warnings, rep.Warnings...)
		*p.rep = *rep
	}
	if err != nil {
		return err
	}
	return earliest(p.m.checkSums(&p.rep.Sums), p.anchored(t))
}

// anchored holds the manifest's checkpoint against the one that was checked.
func (p *pack) anchored(t *logTrust) error {
	c, said := t.cover, p.m.Anchored
	if said.Origin != c.Origin || said.Size != c.Size || said.Root != hex.EncodeToString(c.Root[:]) || said.File != t.file(c.Size) {
		return breakAt(0, Manifest, "its checkpoint is %d of %.200q, the signed one %d of %.200q", said.Size, said.Origin, c.Size, c.Origin)
	}
	return nil
}

// AuditInfo is what a manifest says of the audit rows.
type AuditInfo struct {
	From       int64          `json:"from_seq"`
	To         int64          `json:"to_seq"`
	Checkpoint CheckpointInfo `json:"checkpoint"`
	// Uncovered is how many rows of the time are under no checkpoint yet and so
	// are not here.
	Uncovered int64 `json:"uncovered"`
}

// audit checks the audit rows.
func (p *pack) audit(ctx context.Context) error {
	m := p.m.Audit
	if m == nil {
		if p.a.members[auditName] != nil {
			return breakAt(0, Manifest, "it says nothing of the audit rows that are there")
		}
		return nil
	}
	t, err := p.openLog(auditLog, m.Checkpoint.Size)
	if err != nil {
		return err
	}
	o := Options{Tenant: p.m.Tenant, Workers: p.o.Workers, Keys: p.o.AuditMACKeys, log: auditForm}
	rep, err := p.entries(ctx, t, auditName, o, m.From, m.To)
	if rep != nil {
		*rep, _ = rep.conclude(ctx, err)
		p.rep.Audit = rep
	}
	var b *broken
	if errors.As(err, &b) {
		return &broken{b.seq, AuditTrail, ByAudit, fmt.Sprintf("event %d: %s (%s): %s", b.seq, b.reason, b.detector, b.message)}
	}
	if err == nil && m.Uncovered > 0 {
		p.rep.Warnings = append(p.rep.Warnings, fmt.Sprintf("%d audit rows of the time are not in the package: no checkpoint covered them yet", m.Uncovered))
	}
	return err
}

// entries checks one log's file: the entries, the roots at every checkpoint in
// its range, and the proofs beyond.
func (p *pack) entries(ctx context.Context, t *logTrust, name string, o Options, from, to int64) (*Report, error) {
	member := p.a.members[name]
	if member == nil {
		return nil, &missing{fmt.Errorf("the package has no %s", name)}
	}
	in, err := member.Open()
	if err != nil {
		return nil, breakAt(0, Archive, "%q: %v", name, err)
	}
	defer in.Close()
	edge, err := p.leftEdge(t.log, from)
	if err != nil {
		return nil, err
	}
	o.Checkpoints, o.LeftEdge, o.rootAt = t.inside(from, to), edge, to
	digest := sha256.New()
	buffered := bufio.NewReaderSize(io.TeeReader(in, digest), int(min(1<<20, max(member.UncompressedSize64, maxHeaderBytes))))
	h, err := readHeader(buffered, o.form().magic)
	if err != nil || h.Tenant != p.m.Tenant || h.From != from || h.To != to {
		return nil, breakAt(0, Manifest, "%s is not the export of %s %d to %d of %s", name, t.log, from, to, p.m.Tenant)
	}
	rep, plan, err := checkFile(ctx, buffered, h, o)
	rep.Checkpoints = t.list
	if err != nil {
		return rep, archiveError(name, err)
	}
	p.a.digests[name] = [32]byte(digest.Sum(nil))
	return rep, t.tie(rep, plan, p.proofs[t.log])
}

// archiveError tells a checksum of the archive that is wrong from a file that
// cannot be read.
func archiveError(name string, err error) error {
	if errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) {
		return breakAt(0, Archive, "%q: its checksum is wrong", name)
	}
	return err
}

func (p *pack) leftEdge(log string, from int64) ([][HashSize]byte, error) {
	edge := make([][HashSize]byte, 0, 64)
	for _, text := range p.proofs[log].LeftEdge {
		h, err := hexHash(text)
		if err != nil || len(edge) > 64 {
			return nil, foundBy(ByProof, 0, Archive, "the left edge of %s", log)
		}
		edge = append(edge, h)
	}
	if len(spans(0, from-1)) != len(edge) {
		return nil, foundBy(ByProof, from, MissingAnchor, "the left edge before %s %d has %d hashes", log, from, len(edge))
	}
	return edge, nil
}

func hexHash(text string) (h [HashSize]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != HashSize || strings.ToLower(text) != text {
		return h, fmt.Errorf("not a hash: %.80q", text)
	}
	return [HashSize]byte(b), nil
}
