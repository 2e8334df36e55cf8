package verify

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoints are signed notes (C2SP signed-note, tlog-checkpoint): the root of
// a tree at one size, signed by the log's key, and perhaps cosigned by
// witnesses (C2SP tlog-cosignature, cosignature/v1).

// maxNoteBytes bounds a checkpoint: three short lines and some signatures.
const maxNoteBytes = 64 << 10

// Errors of keys and checkpoints.
var (
	// ErrKey says that a key file holds what is no verifier key.
	ErrKey = errors.New("verify: not a verifier key")
	// ErrNotCheckpoint says that bytes are no checkpoint at all.
	ErrNotCheckpoint = errors.New("verify: not a checkpoint")
	// ErrUnsigned says that a checkpoint has no signature by any key that is
	// trusted for it, ErrSignature that it has a false one.
	ErrUnsigned  = errors.New("verify: no signature by a trusted key")
	ErrSignature = errors.New("verify: a signature does not verify")
)

// Checkpoint is what a signed note says of a tree.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   [HashSize]byte
	// Witnesses are the trusted witnesses that cosigned it, by name.
	Witnesses []string
}

// VerifierKeys are the public keys that somebody trusts.
type VerifierKeys []note.Verifier

// The types of keys in C2SP signed-note.
const (
	keyEd25519     = 0x01
	keyCosignature = 0x04
)

// ParseKeys reads verifier keys ("name+hash+base64"), one a line; empty lines
// and those that begin with # do not count. Ed25519 keys of logs and of
// cosigners are known.
func ParseKeys(text []byte) (VerifierKeys, error) {
	var list VerifierKeys
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := parseKey(line)
		if err != nil {
			return nil, err
		}
		same := func(o note.Verifier) bool { return o.Name() == v.Name() && o.KeyHash() == v.KeyHash() }
		if !slices.ContainsFunc(list, same) {
			list = append(list, v)
		}
	}
	return list, nil
}

func parseKey(vkey string) (note.Verifier, error) {
	if v, err := note.NewVerifier(vkey); err == nil {
		return v, nil
	}
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: %.80q", ErrKey, vkey)
	}
	hash, err1 := strconv.ParseUint(parts[1], 16, 32)
	key, err2 := base64.StdEncoding.DecodeString(parts[2])
	v := &cosigner{name: parts[0], hash: uint32(hash)}
	if err1 != nil || err2 != nil || len(parts[1]) != 8 || len(key) != 1+ed25519.PublicKeySize || key[0] != keyCosignature ||
		v.hash != keyHash(v.name, key) {
		return nil, fmt.Errorf("%w: %.80q", ErrKey, vkey)
	}
	v.key = key[1:]
	return v, nil
}

// keyHash is the key id of C2SP signed-note.
func keyHash(name string, key []byte) uint32 {
	h := sha256.New()
	h.Write([]byte(name + "\n"))
	h.Write(key)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// cosigner verifies cosignature/v1: a time, and a signature of it and the note.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }

func (c *cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	if at > 1<<63-1 {
		return false
	}
	signed := fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, msg)
	return ed25519.Verify(c.key, signed, sig[8:])
}

// OpenCheckpoint checks the signatures of a checkpoint: one by a key of the log
// that is named like the checkpoint's origin, and those of witnesses that are
// known. Errors: ErrNotCheckpoint, ErrUnsigned, ErrSignature.
func OpenCheckpoint(signed []byte, log, witnesses VerifierKeys) (Checkpoint, error) {
	if len(signed) > maxNoteBytes {
		return Checkpoint{}, fmt.Errorf("%w: %d bytes", ErrNotCheckpoint, len(signed))
	}
	n, err := note.Open(signed, note.VerifierList(slices.Concat(log, witnesses)...))
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified):
		return parseUnsigned(unverified.Note.Text)
	case errors.As(err, &invalid):
		return Checkpoint{}, fmt.Errorf("%w: that of %.200q", ErrSignature, invalid.Name)
	case err != nil:
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrNotCheckpoint, err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return c, err
	}
	signedByLog := false
	for _, s := range n.Sigs {
		known := func(v note.Verifier) bool { return v.Name() == s.Name && v.KeyHash() == s.Hash }
		signedByLog = signedByLog || s.Name == c.Origin && slices.ContainsFunc(log, known)
		if slices.ContainsFunc(witnesses, known) && !slices.Contains(c.Witnesses, s.Name) {
			c.Witnesses = append(c.Witnesses, s.Name)
		}
	}
	if !signedByLog {
		return c, fmt.Errorf("%w: of %.200q", ErrUnsigned, c.Origin)
	}
	return c, nil
}

func parseUnsigned(text string) (Checkpoint, error) {
	c, err := parseCheckpoint(text)
	if err == nil {
		err = fmt.Errorf("%w: of %.200q", ErrUnsigned, c.Origin)
	}
	return c, err
}

// parseCheckpoint reads a note's text: origin, size, root, perhaps more lines.
func parseCheckpoint(text string) (c Checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] == "" || slices.Contains(lines[:len(lines)-1], "") {
		return c, fmt.Errorf("%w: not three lines", ErrNotCheckpoint)
	}
	c.Origin = lines[0]
	c.Size, err = strconv.ParseInt(lines[1], 10, 64)
	root, err2 := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || err2 != nil || c.Size < 0 || lines[1] != strconv.FormatInt(c.Size, 10) || len(root) != HashSize {
		return c, fmt.Errorf("%w: size or root", ErrNotCheckpoint)
	}
	c.Root = [HashSize]byte(root)
	return c, nil
}

// originTenant is the tenant that an origin names, when it is that of a tree of
// the given log ("ledger", "audit").
func originTenant(origin, log string) (string, bool) {
	at := strings.LastIndex(origin, "/"+log+"/")
	if at < 1 {
		return "", false
	}
	tenant := origin[at+len(log)+2:]
	return tenant, tenant != ""
}

// sortCheckpoints orders by size and keeps one of those that say the same.
func sortCheckpoints(list []Checkpoint) []Checkpoint {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Checkpoint) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), bytes.Compare(a.Root[:], b.Root[:]))
	})
	return slices.CompactFunc(list, func(a, b Checkpoint) bool { return a.Size == b.Size && a.Root == b.Root })
}

// sizes are those of sorted checkpoints that lie in from..to, each once.
func sizes(list []Checkpoint, from, to int64) (cuts []int64) {
	for _, c := range list {
		if c.Size >= from && c.Size <= to {
			cuts = append(cuts, c.Size)
		}
	}
	return slices.Compact(cuts)
}

// compare holds sorted checkpoints against the roots of the entries. A root
// that differs dates the change: it came after the greatest checkpoint before
// it that fits. One that differs before one that fits contradicts it: both are
// signed, and only one of them is of this ledger.
func (g *grower) compare(list []Checkpoint, from int64) error {
	good := from - 1
	var bad *Checkpoint
	for i := range list {
		root, ok := g.roots[list[i].Size]
		switch {
		case !ok:
		case root != tlog.Hash(list[i].Root):
			if bad == nil {
				bad = &list[i]
			}
		case bad != nil && (bad.Size == list[i].Size || bad.Size == good):
			return fork(bad.Size)
		case bad != nil:
			return breakAt(good+1, Consistency, "the checkpoints of sizes %d and %d are both signed and contradict each other", bad.Size, list[i].Size)
		default:
			good = list[i].Size
		}
	}
	if bad == nil {
		return nil
	}
	seq := good + 1
	if bad.Size < seq {
		return fork(bad.Size)
	}
	return breakAt(seq, Root, "the entries %d to %d are not those that the checkpoint of size %d commits to", seq, bad.Size, bad.Size)
}

func fork(size int64) error {
	return breakAt(max(size, 1), Consistency, "two checkpoints of size %d are signed and have different roots", size)
}
