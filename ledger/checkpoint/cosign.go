package checkpoint

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// Cosignatures of C2SP tlog-cosignature, the Ed25519 form "cosignature/v1": a
// time, and a signature of the time with the checkpoint's whole text.
const (
	algEd25519     = 1
	algCosignature = 4
	timeBytes      = 8
)

// ErrCosigner says that a text is not the public key of a witness.
var ErrCosigner = errors.New("checkpoint: not the verifier key of a witness")

// Cosigner verifies the cosignatures of one witness; it is a note.Verifier.
type Cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

var _ note.Verifier = (*Cosigner)(nil)

// NewCosigner names a witness by its public key.
func NewCosigner(name string, key ed25519.PublicKey) (*Cosigner, error) {
	valid := name != "" && utf8.ValidString(name) && strings.IndexFunc(name, unicode.IsSpace) < 0 && !strings.Contains(name, "+")
	if !valid || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: name %.100q", ErrCosigner, name)
	}
	return &Cosigner{name, keyHash(name, algCosignature, key), key}, nil
}

// ParseCosigner reads a verifier key: name+hash+base64(type ‖ key), where type is
// that of cosignatures (4) or of plain Ed25519 keys (1), which some witnesses
// still publish for the same key.
func ParseCosigner(vkey string) (*Cosigner, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, key64, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(key64)
	if err != nil || len(key) != 1+ed25519.PublicKeySize || key[0] != algCosignature && key[0] != algEd25519 {
		return nil, fmt.Errorf("%w: %.100q", ErrCosigner, vkey)
	}
	if want := fmt.Sprintf("%08x", keyHash(name, key[0], key[1:])); hash != want {
		return nil, fmt.Errorf("%w: its hash is %.8q, that of its key %s", ErrCosigner, hash, want)
	}
	return NewCosigner(name, key[1:])
}

// VKey is the verifier key of type 4.
func (c *Cosigner) VKey() string {
	return fmt.Sprintf("%s+%08x+%s", c.name, c.hash, base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, c.key...)))
}

// Name implements note.Verifier.
func (c *Cosigner) Name() string { return c.name }

// KeyHash implements note.Verifier.
func (c *Cosigner) KeyHash() uint32 { return c.hash }

// Verify implements note.Verifier.
func (c *Cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != timeBytes+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at < 1<<63 && ed25519.Verify(c.key, cosigned(at, msg), sig[timeBytes:])
}

// cosigned is what is signed: two lines, and the checkpoint's text.
func cosigned(at uint64, text []byte) []byte {
	return append([]byte("cosignature/v1\ntime "+strconv.FormatUint(at, 10)+"\n"), text...)
}

// keyHash is the key id of C2SP signed-note.
func keyHash(name string, alg byte, key []byte) uint32 {
	sum := sha256.Sum256(append(append([]byte(name), '\n', alg), key...))
	return binary.BigEndian.Uint32(sum[:])
}

// CosignLine signs the text of a checkpoint as a witness and returns the
// signature line, with its newline.
func CosignLine(name string, key ed25519.PrivateKey, text string, at time.Time) (string, error) {
	c, err := NewCosigner(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		return "", err
	}
	now := uint64(max(at.Unix(), 0))
	b := binary.BigEndian.AppendUint32(nil, c.hash)
	b = binary.BigEndian.AppendUint64(b, now)
	b = append(b, ed25519.Sign(key, cosigned(now, []byte(text)))...)
	return "— " + name + " " + base64.StdEncoding.EncodeToString(b) + "\n", nil
}

// Cosignature is the line of the witness among the lines, once it is verified
// against the signed note.
func (c *Cosigner) Cosignature(signed, lines string) (string, error) {
	n, err := note.Open([]byte(signed+lines), note.VerifierList(c))
	if err != nil {
		return "", fmt.Errorf("%w: the answer of %s: %w", ErrSignature, c.name, err)
	}
	return "— " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n", nil
}
