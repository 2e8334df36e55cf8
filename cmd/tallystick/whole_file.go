package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// partPattern is what files are called that are being written.
const partPattern = ".export-*"

// createWhole writes beside the file, syncs, and renames: a file under the name
// asked for is always whole. What somebody who was killed has left of one is
// taken away by the next, which knows it by nobody holding its lock.
func createWhole(path string, write func(*os.File) error) error {
	dir := filepath.Dir(path)
	removeAbandonedParts(dir)
	out, err := createPart(dir)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	if err := errors.Join(write(out), out.Sync()); err != nil {
		return errors.Join(err, out.Close())
	}
	// The lock goes with the file: it is let go only under its name.
	return errors.Join(os.Rename(out.Name(), path), out.Close())
}

// createPart makes a locked file (mode 0600). Between its making and its lock
// somebody may have taken it for abandoned: then another one is made.
func createPart(dir string) (*os.File, error) {
	for {
		out, err := os.CreateTemp(dir, partPattern)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(out.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", out.Name(), err), out.Close(), os.Remove(out.Name()))
		} else if err == nil && samePlace(out) {
			return out, nil
		}
		out.Close() //nolint:errcheck // nothing was written
	}
}

// samePlace reports whether the file's name still leads to it.
func samePlace(f *os.File) bool {
	open, err1 := f.Stat()
	named, err2 := os.Lstat(f.Name())
	return err1 == nil && err2 == nil && os.SameFile(open, named)
}

// removeAbandonedParts takes away what is locked by nobody. What cannot be taken
// away stays, and hinders nobody.
func removeAbandonedParts(dir string) {
	names, _ := filepath.Glob(filepath.Join(dir, partPattern)) // the pattern is a good one
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && samePlace(f) {
			_ = os.Remove(name)
		}
		f.Close() //nolint:errcheck // it was not written
	}
}
