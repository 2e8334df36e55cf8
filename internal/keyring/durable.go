package keyring

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Suffixes of a file on its way to another content. Both hold secrets that are
// perhaps no longer wanted, so a leftover of a crash is overwritten, not just
// removed.
const (
	newSuffix = ".new"
	oldSuffix = ".old"
)

// replaceFile gives path another content, whatever crashes, and makes the old
// one unreadable: its blocks are overwritten before they are let go. What a
// copy-on-write file system, a flash disk or a backup keeps is beyond it.
func replaceFile(path string, content []byte) error {
	if err := clearLeftovers(path); err != nil {
		return err
	}
	if err := os.Link(path, path+oldSuffix); err != nil {
		return err
	}
	if err := writeDurably(path, content); err != nil {
		return errors.Join(err, os.Remove(path+oldSuffix))
	}
	return clearLeftovers(path)
}

// clearLeftovers overwrites and removes what replaceFile, or a crash in it,
// left beside path.
func clearLeftovers(path string) error {
	for _, name := range []string{path + oldSuffix, path + newSuffix} {
		if err := scrub(name, path); err != nil {
			return err
		}
	}
	return nil
}

// scrub overwrites and removes a file, but only removes the name when it is
// another name of keep.
func scrub(name, keep string) error {
	info, err := os.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	kept, err := os.Lstat(keep)
	if same := err == nil && os.SameFile(info, kept); !same && info.Mode().IsRegular() {
		if err := overwrite(name, info.Size()); err != nil {
			return fmt.Errorf("keyring: overwrite %s: %w", filepath.Base(name), err)
		}
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	return syncParent(name)
}

func overwrite(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, size), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Truncate(0) // who still reads it sees that it shrank
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// writeDurably gives path its whole content or none, whatever crashes.
func writeDurably(path string, data []byte) error {
	tmp := path + newSuffix
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
