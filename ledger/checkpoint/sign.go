package checkpoint

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Keys gives the Ed25519 keys that sign a tenant's checkpoints. Both logs of a
// tenant are signed with the same key under different names: the signed text
// begins with the origin, which keeps them apart.
type Keys interface {
	// SigningEpoch is the epoch to sign with now, 1 or more.
	SigningEpoch(id tenant.ID) uint32
	// SigningKey is the key of an epoch. Earlier epochs stay available.
	SigningKey(id tenant.ID, epoch uint32) (ed25519.PrivateKey, error)
}

// ErrSignature says that a note is not signed by a key that it must be signed by.
var ErrSignature = errors.New("checkpoint: no valid signature of the log's key")

// Signer signs notes under an origin with an Ed25519 key.
type Signer struct {
	note.Verifier
	vkey string
	key  ed25519.PrivateKey
}

// NewSigner makes the signer of an origin.
func NewSigner(origin string, key ed25519.PrivateKey) (*Signer, error) {
	vkey, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("verifier key of %q: %w", origin, err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("verifier key of %q: %w", origin, err)
	}
	return &Signer{Verifier: v, vkey: vkey, key: key}, nil
}

// VKey is the public key in the form of C2SP signed-note: name+hash+base64.
func (s *Signer) VKey() string { return s.vkey }

// Sign implements note.Signer.
func (s *Signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// SignHead is the signed note of a head. Ed25519 draws nothing at random: the
// same head and key give the same bytes.
func (s *Signer) SignHead(h *Head) (string, error) {
	if h.Origin != s.Name() {
		return "", fmt.Errorf("%w: a head of %q, a key of %q", ErrSignature, h.Origin, s.Name())
	}
	b, err := note.Sign(&note.Note{Text: h.Text()}, s)
	return string(b), err
}

// Open reads a signed checkpoint of the origin. One of the verifiers' signatures
// must be valid; unknown ones are ignored. Errors match ErrSignature or ErrText.
func Open(signed, origin string, verifiers ...note.Verifier) (h Head, err error) {
	if len(signed) > maxTextBytes {
		return h, fmt.Errorf("%w: %d bytes", ErrText, len(signed))
	}
	n, err := note.Open([]byte(signed), note.VerifierList(verifiers...))
	if err != nil {
		return h, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if h, err = ParseText(n.Text); err != nil {
		return h, err
	}
	if h.Origin != origin {
		return h, fmt.Errorf("%w: origin %.200q, want %q", ErrText, h.Origin, origin)
	}
	return h, nil
}

// OpenUnverified reads a checkpoint without looking at its signatures.
func OpenUnverified(signed string) (Head, error) {
	text, _, ok := strings.Cut(signed, "\n\n")
	if !ok || len(signed) > maxTextBytes {
		return Head{}, fmt.Errorf("%w: no signatures follow", ErrText)
	}
	return ParseText(text + "\n")
}

// keyTitle begins the statement of a signing key.
const keyTitle = "tallystick signing key 1"

// Statement says, signed, which key an epoch's checkpoints are signed with.
type Statement struct {
	Epoch uint32
	VKey  string
	// Note is the statement, signed by the key itself and by the one before it.
	Note string
}

// State makes the statement of next; former is the signer of the epoch before,
// nil in the first.
func State(epoch uint32, next, former *Signer) (Statement, error) {
	text := keyTitle + "\n" + next.Name() + "\n" + strconv.FormatUint(uint64(epoch), 10) + "\n" + next.VKey() + "\n"
	signers := []note.Signer{next}
	if former != nil {
		signers = append(signers, former)
	}
	b, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		return Statement{}, fmt.Errorf("state signing key: %w", err)
	}
	return Statement{Epoch: epoch, VKey: next.VKey(), Note: string(b)}, nil
}

// Verifiers follows the statements of an origin, in order of epoch, from the key
// that is trusted, and returns a verifier for each key. The trusted key may be
// that of any epoch; earlier ones are not reached from it.
func Verifiers(origin, trusted string, statements []string) ([]note.Verifier, error) {
	v, err := note.NewVerifier(trusted)
	if err != nil || v.Name() != origin {
		return nil, fmt.Errorf("%w: the trusted key is not one of %q", ErrSignature, origin)
	}
	verifiers := []note.Verifier{v}
	for _, s := range statements {
		next, err := openStatement(origin, s, verifiers[len(verifiers)-1])
		if err != nil {
			return nil, err
		}
		if next != nil && next.KeyHash() != verifiers[len(verifiers)-1].KeyHash() {
			verifiers = append(verifiers, next)
		}
	}
	return verifiers, nil
}

// openStatement is the key that the statement brings; nil when the key we hold
// did not sign it, as for statements from before it.
func openStatement(origin, statement string, held note.Verifier) (note.Verifier, error) {
	n, err := note.Open([]byte(statement), note.VerifierList(held))
	var unknown *note.UnverifiedNoteError
	if errors.As(err, &unknown) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 5 || lines[0] != keyTitle || lines[1] != origin {
		return nil, fmt.Errorf("%w: not the statement of a signing key of %q", ErrText, origin)
	}
	next, err := note.NewVerifier(lines[3])
	if err != nil || next.Name() != origin {
		return nil, fmt.Errorf("%w: the stated key is not one of %q", ErrText, origin)
	}
	return next, nil
}
