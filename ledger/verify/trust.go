package verify

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// logTrust is what is trusted of one log of a package: keys, and the checkpoints
// that they signed.
type logTrust struct {
	log    string
	origin string
	keys   VerifierKeys
	older  VerifierKeys // stated by the package, from before the first that is trusted
	list   []Checkpoint // sorted
	kept   []Checkpoint // those that came from outside
	cover  Checkpoint   // the one that covers the package
}

// openLog checks the signatures of a log's checkpoints. cover is the size that
// the manifest names.
func (p *pack) openLog(log string, cover int64) (*logTrust, error) {
	t := &logTrust{log: log}
	var err error
	if t.keys, err = p.trusted(log); err != nil {
		return nil, err
	}
	if err := t.follow(p.a); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.a.members)) {
		of, file, ok := checkpointName(name)
		if !ok || of != log || strings.HasPrefix(file, keyPrefix) {
			continue
		}
		if err := t.open(p, name, file, cover); err != nil {
			return nil, err
		}
	}
	if t.origin == "" || t.cover.Size != cover {
		return nil, &missing{fmt.Errorf("the package has no checkpoint of size %d of the %s", cover, log)}
	}
	if err := t.keep(p.o); err != nil {
		return nil, err
	}
	t.list = sortCheckpoints(t.list)
	err = t.quorum(p.o)
	if err != nil && log == auditLog { // witnesses are asked of the ledger
		p.rep.Warnings, err = append(p.rep.Warnings, err.Error()), nil
	}
	return t, err
}

// trusted are the keys that signatures of the log are checked with.
func (p *pack) trusted(log string) (VerifierKeys, error) {
	keys := p.o.Trusted
	if len(keys) == 0 && p.o.SelfAsserted {
		b, err := p.a.small(keysName)
		if err != nil {
			return nil, err
		}
		if keys, err = ParseKeys(b); err != nil {
			return nil, foundBy(BySignature, 0, Archive, "%s: %v", keysName, err)
		}
		if warning := "the keys are self-asserted: they come from the package itself, so anybody may have made it"; !slices.Contains(p.rep.Warnings, warning) {
			p.rep.Warnings = append(p.rep.Warnings, warning)
		}
	}
	var list VerifierKeys
	for _, v := range keys {
		if tenant, ok := originTenant(v.Name(), log); ok && tenant == p.m.Tenant {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		return nil, &missing{fmt.Errorf("no trusted key is of the %s of %s: get it from the operator by another way than this package", log, p.m.Tenant)}
	}
	return list, nil
}

// statementTitle begins the statement of a signing key.
const statementTitle = "tallystick signing key 1"

// follow adds the keys that are stated, in order of epoch: a statement counts when
// the key held last signed it, and the key that it brings is held then. Those
// from before the first trusted key are passed over.
func (t *logTrust) follow(a *archive) error {
	var last VerifierKeys // the key held last; none before the first is met
	for _, name := range slices.Sorted(maps.Keys(a.members)) {
		log, file, ok := checkpointName(name)
		if !ok || log != t.log || !strings.HasPrefix(file, keyPrefix) {
			continue
		}
		b, err := a.small(name)
		if err != nil {
			return err
		}
		signers := last
		if last == nil {
			signers = t.keys
		}
		v, err := statement(b, signers)
		if err != nil {
			return breakAt(0, Signature, "%s: %v", name, err)
		}
		if v == nil {
			t.before(b, last == nil)
			continue
		}
		last = VerifierKeys{v}
		held := func(o note.Verifier) bool { return o.KeyHash() == v.KeyHash() && o.Name() == v.Name() }
		if !slices.ContainsFunc(t.keys, held) {
			t.keys = append(t.keys, v)
		}
	}
	return nil
}

// before notes the key of a statement from before the first trusted key. It is
// not trusted: that a checkpoint has its signature only says what is missing.
func (t *logTrust) before(b []byte, first bool) {
	_, text, _ := strings.Cut(string(b), "\n")
	lines := strings.Split(text, "\n")
	if !first || len(lines) < 3 {
		return
	}
	if v, err := note.NewVerifier(lines[2]); err == nil && v.Name() == lines[0] {
		t.older = append(t.older, v)
	}
}

// statement is the key that a statement brings, nil when none of the signers
// signed it.
func statement(b []byte, signers VerifierKeys) (note.Verifier, error) {
	n, err := note.Open(b, note.VerifierList(signers...))
	if errors.As(err, new(*note.UnverifiedNoteError)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 5 || lines[0] != statementTitle || lines[1] != n.Sigs[0].Name {
		return nil, errors.New("it is no statement of a signing key of this log")
	}
	v, err := note.NewVerifier(lines[3])
	if err != nil || v.Name() != lines[1] {
		return nil, errors.New("it states no key of this log")
	}
	if _, err := note.Open(b, note.VerifierList(v)); err != nil {
		return nil, fmt.Errorf("the key that it states did not sign it: %w", err)
	}
	return v, nil
}

// open checks one checkpoint of the package.
func (t *logTrust) open(p *pack, name, file string, cover int64) error {
	b, err := p.a.small(name)
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(file, 10, 64)
	if err != nil {
		return breakAt(0, Archive, "%q", name)
	}
	c, err := OpenCheckpoint(b, t.keys, p.o.Witnesses)
	if errors.Is(err, ErrUnsigned) && len(t.older) > 0 {
		if _, olderErr := OpenCheckpoint(b, t.older, nil); olderErr == nil {
			return &missing{fmt.Errorf("%s is signed by a key from before the keys that you trust: trust the first key of the log too, from which the statements lead on", name)}
		}
	}
	if err != nil {
		return breakAt(size, Signature, "%s: %v", name, err)
	}
	if c.Size != size || c.Origin != t.origin && t.origin != "" {
		return breakAt(size, Signature, "%s is a checkpoint of size %d of %.200q", name, c.Size, c.Origin)
	}
	t.origin = c.Origin
	t.list = append(t.list, c)
	if c.Size == cover {
		t.cover = c
	}
	return nil
}

// file is the name of a checkpoint in a package.
func (t *logTrust) file(size int64) string {
	return fmt.Sprintf("%s%s/%020d", checkpointsDir, t.log, size)
}

// keep adds the checkpoints of this log that come from outside.
func (t *logTrust) keep(o *PackageOptions) error {
	for _, b := range o.Kept {
		c, err := OpenCheckpoint(b, t.keys, o.Witnesses)
		if _, ofThis := originTenant(c.Origin, t.log); !ofThis && !errors.Is(err, ErrNotCheckpoint) {
			continue // of the other log
		}
		if err != nil {
			return &missing{fmt.Errorf("the checkpoint from outside: %w", err)}
		}
		if c.Origin != t.origin {
			return &missing{fmt.Errorf("the checkpoint from outside is of %.200q, the package of %.200q", c.Origin, t.origin)}
		}
		t.list, t.kept = append(t.list, c), append(t.kept, c)
	}
	return nil
}

// quorum wants the witnesses' signatures on the newest checkpoint.
func (t *logTrust) quorum(o *PackageOptions) error {
	want := o.Quorum
	if want == 0 {
		want = len(o.Witnesses)
	}
	if len(t.cover.Witnesses) < want {
		return &missing{fmt.Errorf("%d of the %d witnesses asked for cosigned the checkpoint of size %d of the %s log", len(t.cover.Witnesses), want, t.cover.Size, t.log)}
	}
	return nil
}

// inside are the checkpoints whose roots the entries themselves give.
func (t *logTrust) inside(from, to int64) (list []Checkpoint) {
	for _, c := range t.list {
		if c.Size >= from-1 && c.Size <= to {
			list = append(list, c)
		}
	}
	return list
}

// tie ties the checkpoints whose roots the entries do not give to those that
// they do, by the consistency proofs of the package.
func (t *logTrust) tie(rep *Report, plan *treePlan, p logProofs) error {
	known := maps.Clone(plan.grow.roots)
	for again := true; again; {
		again = false
		for _, c := range t.list {
			if root, ok := known[c.Size]; ok {
				if root != tlog.Hash(c.Root) {
					return t.contradiction(rep, c, "two roots of one size")
				}
				continue
			}
			for i := range p.Consistency {
				tied, err := p.Consistency[i].check(c, known)
				if err != nil {
					return t.contradiction(rep, c, err.Error())
				}
				if tied {
					known[c.Size], again = c.Root, true
					break
				}
			}
		}
	}
	if _, ok := known[t.cover.Size]; !ok {
		return &missing{fmt.Errorf("no proof ties the %s to the checkpoint of size %d", t.log, t.cover.Size)}
	}
	if rep.Covered = max(rep.Covered, t.cover.Size); t.cover.Size < rep.To {
		return &missing{fmt.Errorf("the %s from %d to %d is under no checkpoint", t.log, t.cover.Size+1, rep.To)}
	}
	for _, c := range t.kept {
		if _, ok := known[c.Size]; ok {
			continue
		}
		if c.Size > t.cover.Size {
			return &missing{fmt.Errorf("the checkpoint from outside is of size %d and the package's newest of %d: the package is older, or the log was rolled back", c.Size, t.cover.Size)}
		}
		return &missing{fmt.Errorf("nothing in the package ties it to the checkpoint from outside of size %d: ask for a package with kept=%d", c.Size, c.Size)}
	}
	return nil
}

func (t *logTrust) contradiction(rep *Report, c Checkpoint, why string) error {
	return breakAt(max(rep.Covered, rep.From-1)+1, Consistency, "the checkpoint of size %d is not of the tree of these entries: %s", c.Size, why)
}

// check ties the checkpoint to a root that is known, when the proof is of both.
func (p *consistencyProof) check(c Checkpoint, known map[int64]tlog.Hash) (bool, error) {
	other := p.From
	if other == c.Size {
		other = p.To
	} else if p.To != c.Size {
		return false, nil
	}
	root, ok := known[other]
	if !ok || other == 0 || other == c.Size {
		return false, nil
	}
	proof := make(tlog.TreeProof, 0, len(p.Hashes))
	for _, text := range p.Hashes {
		h, err := hexHash(text)
		if err != nil {
			return false, err
		}
		proof = append(proof, h)
	}
	size, largeRoot, small, smallRoot := c.Size, tlog.Hash(c.Root), other, root
	if small > size {
		size, largeRoot, small, smallRoot = small, smallRoot, size, largeRoot
	}
	return true, tlog.CheckTree(proof, size, largeRoot, small, smallRoot)
}
