// Package checkpoint states, signed and for good, what a chain held when: it
// keeps an RFC 6962 tree per tenant and log, signs its root as a C2SP
// tlog-checkpoint, publishes the signed notes, and proves against them that an
// entry is in the tree and that one tree continues another. The form of all of
// it is in docs/ledger-format.md, "Checkpoints and proofs".
//
// It promises: a root is signed only after every leaf under it was read back
// from the store and recomputed by the verifier's own code, with the stored
// chain hashes as the thread between them; what does not fit halts signing for
// that tenant and names the first bad entry. A signed note is in the append-only
// directory, on disk, before Postgres has it, so a crash in between leaves the
// directory ahead and never behind; the same size is never signed twice with
// another root. Tiles and notes are only ever added. It appends nothing to any
// chain and never repairs one.
package checkpoint

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tallystick/tallystick/internal/tenant"
)

// HashSize is the size of every hash of the tree.
const HashSize = 32

// Hash is a node of the tree, a leaf or a root.
type Hash = [HashSize]byte

// The logs that have trees.
const (
	LedgerLog = "ledger" // the entries of ledger.entry
	AuditLog  = "audit"  // the events of audit.event
)

// DefaultInstallation is the installation's name where none is configured.
const DefaultInstallation = "tallystick.local"

// Origin names the tree of a tenant's log for everybody: it is the first line of
// its checkpoints and the name of the keys that sign them.
func Origin(installation, log string, id tenant.ID) string {
	return installation + "/" + log + "/" + string(id)
}

// Head is what a checkpoint says: the tree of the origin has this root at this size.
type Head struct {
	Origin string
	Size   int64
	Root   Hash
}

// maxTextBytes bounds the text and the signed form of a note that is read.
const maxTextBytes = 64 << 10

// ErrText says that a text is not that of a checkpoint.
var ErrText = errors.New("checkpoint: not the text of a checkpoint")

// Text is the body of the note (C2SP tlog-checkpoint), without extension lines.
func (h *Head) Text() string {
	return h.Origin + "\n" + strconv.FormatInt(h.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(h.Root[:]) + "\n"
}

// ParseText reads a note's body. Extension lines are allowed and ignored. Every
// error matches ErrText.
func ParseText(text string) (h Head, err error) {
	body, ok := strings.CutSuffix(text, "\n")
	lines := strings.Split(body, "\n")
	if !ok || len(text) > maxTextBytes || len(lines) < 3 {
		return h, fmt.Errorf("%w: it has no three lines", ErrText)
	}
	for _, line := range lines {
		if line == "" {
			return h, fmt.Errorf("%w: an empty line", ErrText)
		}
	}
	h.Origin = lines[0]
	h.Size, err = parseSize(lines[1])
	if err != nil {
		return h, err
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != HashSize || len(lines[2]) != base64.StdEncoding.EncodedLen(HashSize) {
		return h, fmt.Errorf("%w: the third line is no root hash", ErrText)
	}
	h.Root = Hash(root)
	return h, nil
}

// parseSize reads a size: decimal digits without leading zeros, below 2^63.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%w: a size of %.24q", ErrText, s)
	}
	return int64(n), nil
}
