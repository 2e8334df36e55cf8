package spool

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// KeyFile reads a spool's key from a file: 64 hexadecimal digits. Where there is
// none it makes one, readable by its owner only and durable when this returns. A
// key beside its spool keeps copies of the folder closed, not the machine.
func KeyFile(path string) (*[KeyBytes]byte, error) {
	if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("spool: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	defer f.Close()
	var text [2*KeyBytes + 2]byte
	n, err := f.Read(text[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read: %w", ErrKey, path, err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text[:n])))
	if err != nil || len(key) != KeyBytes {
		return nil, fmt.Errorf("%w: %s does not hold %d hexadecimal digits", ErrKey, path, 2*KeyBytes)
	}
	return (*[KeyBytes]byte)(key), nil
}

// createKey writes a new key to a file that is not there yet. It comes under its
// name as a whole or not at all.
func createKey(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".spool-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, KeyBytes)
	rand.Read(key) // crypto/rand.Read never returns an error
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // fails if another process was first
		return err
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.Sync()
}
