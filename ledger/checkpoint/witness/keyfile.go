package witness

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/ledger/checkpoint"
)

// ErrKeyFile says that a file does not hold the key of a witness.
var ErrKeyFile = errors.New("witness: not a witness's key file")

// Key forms of C2SP signed-note: the key type stands before the seed.
const (
	keyPrefix    = "PRIVATE+KEY+"
	typeEd25519  = 1
	typeCosigner = 4
)

// CreateKey makes a key and writes it to a new file that only the owner reads.
// It returns the verifier key.
func CreateKey(path, name string) (vkey string, err error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	c, err := checkpoint.NewCosigner(name, pub)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	secret := append([]byte{typeCosigner}, key.Seed()...)
	_, err = fmt.Fprintf(f, "%s%s+%08x+%s\n", keyPrefix, name, c.KeyHash(), base64.StdEncoding.EncodeToString(secret))
	return c.VKey(), errors.Join(err, f.Sync(), f.Close())
}

// LoadKey reads a key file, as CreateKey or any note tool writes it. The file
// must not be readable by others.
func LoadKey(path string) (name string, key ed25519.PrivateKey, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", nil, fmt.Errorf("%w: %s may be read by others; chmod 600", ErrKeyFile, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(string(b)), keyPrefix)
	parts := strings.SplitN(rest, "+", 3)
	if !ok || len(parts) != 3 {
		return "", nil, fmt.Errorf("%w: %s", ErrKeyFile, path)
	}
	secret, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(secret) != 1+ed25519.SeedSize || secret[0] != typeCosigner && secret[0] != typeEd25519 {
		return "", nil, fmt.Errorf("%w: %s", ErrKeyFile, path)
	}
	return parts[0], ed25519.NewKeyFromSeed(secret[1:]), nil
}

// LoadLogs reads the verifier keys of the logs that are witnessed: one a line; empty
// lines and those that begin with # are passed over.
func LoadLogs(path string) (keys []note.Verifier, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		keys = append(keys, v)
	}
	return keys, nil
}
