package keyring

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"
)

const (
	masterName = "master.key"    // the master key itself
	sealedName = "master.sealed" // the master key under a passphrase
	nextSuffix = ".next"         // a master key that a rewrap is moving to

	sealedMagic     = "TSMASTR1"
	sealedSaltBytes = 16
	sealedBytes     = len(sealedMagic) + sealedSaltBytes + 12 + KeyBytes + tagBytes

	localPrefix = "local:"
)

// Cost of a guess at a passphrase: Argon2id as RFC 9106, section 4, recommends
// it where 2 GiB are too much.
const (
	argonPasses    = 3
	argonKiB       = 64 << 10
	argonLanes     = 4
	minPassphrase  = 12 // bytes
	argonVersioned = "tallystick/master/argon2id/3/65536/4"
)

// localKey wraps with AES-256-GCM under a master key that lies in a file.
type localKey struct {
	id   string
	aead cipher.AEAD
}

func newLocalKey(master []byte) (*localKey, error) {
	block, err := aes.NewCipher(master)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMasterKey, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	// A digest of 32 random bytes tells nothing about them.
	digest := sha256.Sum256(append([]byte("tallystick/master-id\x00"), master...))
	return &localKey{localPrefix + hex.EncodeToString(digest[:8]), aead}, nil
}

// ID implements KMS.
func (k *localKey) ID() string { return k.id }

// Wrap implements KMS. Nonces are random: a ring would need 2^32 keys before
// their chance of meeting matters.
func (k *localKey) Wrap(_ context.Context, secret []byte, at Binding) ([]byte, error) {
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(secret)+k.aead.Overhead())
	rand.Read(nonce)
	return k.aead.Seal(nonce, nonce, secret, at.Bytes()), nil
}

// Unwrap implements KMS.
func (k *localKey) Unwrap(_ context.Context, wrapped []byte, at Binding) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(wrapped) < n {
		return nil, fmt.Errorf("%w: wrapped key of %d bytes", ErrCorrupt, len(wrapped))
	}
	secret, err := k.aead.Open(nil, wrapped[:n], wrapped[n:], at.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%w: it does not open the %s root of tenant %q", ErrMasterKey, at.Kind, at.Tenant)
	}
	return secret, nil
}

// localKeys are the master keys in the ring's directory.
type localKeys struct {
	dir        string
	passphrase []byte // nil: master keys lie in the open, mode 0600

	mu     sync.Mutex           // protects byFile
	byFile map[string]*localKey // by name of the file
}

// name is the file that holds this installation's master key.
func (l *localKeys) name() string {
	if l.passphrase != nil {
		return sealedName
	}
	return masterName
}

// current is the master key that wraps new keys, nil when there is none. A
// ring that was made without a passphrase goes on with its plain master key
// until a rewrap moves it.
func (l *localKeys) current() KMS {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range []string{l.name(), masterName} {
		if k := l.byFile[name]; k != nil {
			return k
		}
	}
	return nil
}

// find gives the master keys that may have wrapped under an ID.
func (l *localKeys) find(by string) (found []KMS) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.byFile {
		if by == "" || k.id == by {
			found = append(found, k)
		}
	}
	return found
}

// load reads what master keys there are. One that needs a passphrase we were
// not given is left out.
func (l *localKeys) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := map[string]*localKey{}
	// The staged names come first: one that gets its final name in between is
	// then read twice and not missed.
	for _, name := range []string{masterName + nextSuffix, sealedName + nextSuffix, masterName, sealedName} {
		master, err := l.read(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if master == nil {
			continue
		}
		if found[name], err = newLocalKey(master); err != nil {
			return err
		}
	}
	l.byFile = found
	return nil
}

func (l *localKeys) read(name string) ([]byte, error) {
	path := filepath.Join(l.dir, name)
	if name == masterName || name == masterName+nextSuffix {
		return readSecret(path, KeyBytes)
	}
	sealed, err := readSecret(path, sealedBytes)
	if err != nil || l.passphrase == nil {
		return nil, err
	}
	return openMaster(l.passphrase, sealed)
}

// make stores a new master key under the file's name and answers it.
func (l *localKeys) make(name string) (*localKey, error) {
	master := make([]byte, KeyBytes)
	rand.Read(master)
	content := master
	if name == sealedName || name == sealedName+nextSuffix {
		var err error
		if content, err = sealMaster(l.passphrase, master); err != nil {
			return nil, err
		}
	}
	if err := writeDurably(filepath.Join(l.dir, name), content); err != nil {
		return nil, fmt.Errorf("keyring: make master key: %w", err)
	}
	k, err := newLocalKey(master)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byFile == nil {
		l.byFile = map[string]*localKey{}
	}
	l.byFile[name] = k
	return k, nil
}

// tidy finishes what a rewrap began: a staged master key that something is
// wrapped under takes its place, and one that nothing needs goes. With retire,
// so do master keys in their place that nothing is wrapped under any more. The
// caller holds the ring's file lock.
func (l *localKeys) tidy(used map[string]bool, retire bool) error {
	for _, name := range []string{masterName, sealedName} {
		path := filepath.Join(l.dir, name)
		if err := errors.Join(clearLeftovers(path), clearLeftovers(path+nextSuffix)); err != nil {
			return err
		}
		l.mu.Lock()
		next, now := l.byFile[name+nextSuffix], l.byFile[name]
		l.mu.Unlock()
		var err error
		switch {
		case next != nil && used[next.id]:
			err = l.promote(path)
		case next != nil:
			err = scrub(path+nextSuffix, path)
		case retire && now != nil && !used[now.id] && !used[""]:
			err = errors.Join(os.Rename(path, path+oldSuffix), clearLeftovers(path))
		}
		if err != nil {
			return err
		}
	}
	return l.load()
}

// promote gives a staged master key its name, and overwrites the old one.
func (l *localKeys) promote(path string) error {
	err := os.Link(path, path+oldSuffix)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keyring: %w", err)
	}
	if err := os.Rename(path+nextSuffix, path); err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return errors.Join(syncParent(path), clearLeftovers(path))
}

// sealMaster encrypts a master key under a passphrase.
func sealMaster(passphrase, master []byte) ([]byte, error) {
	if len(passphrase) < minPassphrase {
		return nil, fmt.Errorf("%w: the passphrase has %d bytes, want %d or more", ErrMasterKey, len(passphrase), minPassphrase)
	}
	out := make([]byte, len(sealedMagic)+sealedSaltBytes+12, sealedBytes)
	copy(out, sealedMagic)
	rand.Read(out[len(sealedMagic):])
	aead, err := passphraseAEAD(passphrase, out)
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, out[len(sealedMagic)+sealedSaltBytes:], master, []byte(argonVersioned)), nil
}

func openMaster(passphrase, sealed []byte) ([]byte, error) {
	if string(sealed[:len(sealedMagic)]) != sealedMagic {
		return nil, fmt.Errorf("%w: %s is of an unknown form", ErrMasterKey, sealedName)
	}
	aead, err := passphraseAEAD(passphrase, sealed)
	if err != nil {
		return nil, err
	}
	head := len(sealedMagic) + sealedSaltBytes
	master, err := aead.Open(nil, sealed[head:head+12], sealed[head+12:], []byte(argonVersioned))
	if err != nil {
		return nil, fmt.Errorf("%w: the passphrase does not open %s", ErrMasterKey, sealedName)
	}
	return master, nil
}

func passphraseAEAD(passphrase, sealed []byte) (cipher.AEAD, error) {
	salt := sealed[len(sealedMagic) : len(sealedMagic)+sealedSaltBytes]
	block, err := aes.NewCipher(argon2.IDKey(passphrase, salt, argonPasses, argonKiB, argonLanes, KeyBytes))
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return cipher.NewGCM(block)
}

// readSecret refuses a file that anyone but its owner can read or write, and a
// link, which would let somebody else's file decide.
func readSecret(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	name := filepath.Base(path)
	if mode := info.Mode(); mode.Perm()&0o077 != 0 || !mode.IsRegular() {
		return nil, fmt.Errorf("%w: %s has mode %v, want 0600", ErrPermissions, name, mode)
	}
	if info.Size() != int64(size) {
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d", ErrMasterKey, name, info.Size(), size)
	}
	secret := make([]byte, size)
	if _, err := io.ReadFull(f, secret); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMasterKey, err)
	}
	return secret, nil
}
