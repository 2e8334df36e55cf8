package authn

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// TokenPrefix begins every token that this package makes, so that secret
// scanners can recognise one.
const TokenPrefix = "tsk_"

// minTokenBytes refuses a token file that somebody filled by hand with
// something that can be guessed.
const minTokenBytes = 24

var (
	// ErrTokenFileMode says that others than the owner can reach the token file.
	// Make a new token: this one may have been read.
	ErrTokenFileMode = errors.New("authn: token file must be readable by its owner only (mode 0600)")
	// ErrTokenFile says that the token file holds no usable token.
	ErrTokenFile = errors.New("authn: token file holds no token of at least 24 characters")
)

// NewToken makes a token of 256 random bits.
func NewToken() string {
	var b [32]byte
	rand.Read(b[:]) // crypto/rand.Read never returns an error
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// LoadOrCreateToken reads the token in the file, which it makes, with a new
// token and mode 0600, when there is none. Of several processes that start at
// once, all get the token of the first.
func LoadOrCreateToken(path string) (string, error) {
	token, err := LoadToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return token, err
	}
	if err := createToken(path, NewToken()); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("authn: %w", err)
	}
	return LoadToken(path)
}

// createToken writes beside the path and links the file into place, so that
// nobody ever reads half a token and an existing file is never replaced.
func createToken(path, token string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(token + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// LoadToken reads the token in the file. Errors: ErrTokenFileMode, ErrTokenFile,
// or what the file system says.
func LoadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("authn: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("authn: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%w: %s", ErrTokenFileMode, path)
	}
	const maxTokenBytes = 4096
	b := make([]byte, maxTokenBytes)
	n, err := f.Read(b)
	if err != nil && n == 0 {
		return "", fmt.Errorf("%w: %s", ErrTokenFile, path)
	}
	token := strings.TrimSpace(string(b[:n]))
	if len(token) < minTokenBytes || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("%w: %s", ErrTokenFile, path)
	}
	return token, nil
}
