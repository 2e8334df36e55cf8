package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tallystick/tallystick/internal/tenant"
)

const masterName = "master.key"

// kind says which root a stored key is. The numbers are written to disk.
type kind byte

const (
	kindIntegrity kind = 1
	kindSealing   kind = 2
	kindContext   kind = 3
)

// String is the kind's name in the AAD, hence part of the format.
func (k kind) String() string {
	switch k {
	case kindIntegrity:
		return "integrity"
	case kindSealing:
		return "sealing"
	case kindContext:
		return "context"
	default:
		return "unknown"
	}
}

// label says which key a wrapped key is; it is bound to the wrapping, so that
// a wrapped key cannot be moved to another tenant, kind or version.
type label struct {
	kind    kind
	tenant  tenant.ID
	version uint32
}

// rootKey is one root with its label.
type rootKey struct {
	label
	secret [KeyBytes]byte
}

// wrapper encrypts root keys under a key that is not stored with them. Wrap
// answers bytes that may be stored anywhere; Unwrap accepts them only under
// the very label they were wrapped with, and answers ErrMasterKey otherwise.
// Both may be called from many goroutines and keep no reference to their
// arguments.
type wrapper interface {
	Wrap(l label, secret []byte) ([]byte, error)
	Unwrap(l label, wrapped []byte) ([]byte, error)
}

// localWrapper wraps with AES-256-GCM under the key of a local file.
type localWrapper struct{ aead cipher.AEAD }

func newLocalWrapper(master []byte) (*localWrapper, error) {
	block, err := aes.NewCipher(master)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMasterKey, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return &localWrapper{aead}, nil
}

// Wrap implements wrapper. Nonces are random: a ring would need 2^32 keys
// before their chance of meeting matters.
func (w *localWrapper) Wrap(l label, secret []byte) ([]byte, error) {
	nonce := make([]byte, w.aead.NonceSize(), w.aead.NonceSize()+len(secret)+w.aead.Overhead())
	rand.Read(nonce)
	return w.aead.Seal(nonce, nonce, secret, aad(l)), nil
}

// Unwrap implements wrapper.
func (w *localWrapper) Unwrap(l label, wrapped []byte) ([]byte, error) {
	n := w.aead.NonceSize()
	if len(wrapped) < n {
		return nil, fmt.Errorf("%w: wrapped key of %d bytes", ErrCorrupt, len(wrapped))
	}
	secret, err := w.aead.Open(nil, wrapped[:n], wrapped[n:], aad(l))
	if err != nil {
		return nil, fmt.Errorf("%w: it does not open the %s root of tenant %q", ErrMasterKey, l.kind, l.tenant)
	}
	return secret, nil
}

// aad is the label's encoding of the package comment.
func aad(l label) []byte {
	b := append([]byte("tallystick/keyring/1\x00"), l.kind.String()...)
	b = append(b, 0)
	b = append(b, l.tenant...)
	b = append(b, 0)
	return binary.BigEndian.AppendUint32(b, l.version)
}

// loadMaster reads the master key, or makes it when mayMake. The caller holds
// the file lock, so only one process makes it; it is durable, complete and
// mode 0600 before it has its name.
func loadMaster(dir string, mayMake bool) (master []byte, made bool, err error) {
	path := filepath.Join(dir, masterName)
	master, err = readMaster(path)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return master, false, err
	}
	if !mayMake {
		return nil, false, fmt.Errorf("%w: %s is missing beside existing keys", ErrMasterKey, masterName)
	}
	master = make([]byte, KeyBytes)
	rand.Read(master)
	if err := writeDurably(path, master); err != nil {
		return nil, false, fmt.Errorf("keyring: make master key: %w", err)
	}
	return master, true, nil
}

// readMaster refuses a key that anyone but its owner can read or write, and a
// link, which would let somebody else's file decide.
func readMaster(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if mode := info.Mode(); mode.Perm()&0o077 != 0 || !mode.IsRegular() {
		return nil, fmt.Errorf("%w: %s has mode %v, want 0600", ErrPermissions, masterName, mode)
	}
	if info.Size() != KeyBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d", ErrMasterKey, masterName, info.Size(), KeyBytes)
	}
	master := make([]byte, KeyBytes)
	if _, err := io.ReadFull(f, master); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMasterKey, err)
	}
	return master, nil
}

// writeDurably gives path its whole content or none, whatever crashes.
func writeDurably(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncParent(path)
}

// syncParent makes the directory entry of path durable.
func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
