package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// verify reports whether the files below root are the pinned ones.
//
// Reading 560 MB takes half a second, so a good result is remembered in the
// user's cache folder together with every file's device, inode, size,
// modification and change time; while none of them differs, the files are not
// read again. The change time cannot be set by a program, so restoring the
// modification time after an edit does not hide the edit.
func (p pin) verify(root string) error {
	files, err := p.list(root)
	if err != nil {
		return err
	}
	want := p.stamp(files)
	stamp := verifiedStampPath(root)
	if stamp != "" {
		if got, err := os.ReadFile(stamp); err == nil && string(got) == want {
			return nil
		}
	}
	if err := p.checkSums(root, files); err != nil {
		return err
	}
	if stamp != "" {
		// A failure only costs the next start another reading.
		_ = writeFileAtomic(stamp, []byte(want), 0o600)
	}
	return nil
}

// engineFile is one regular file of a package.
type engineFile struct {
	path string // relative to the package root, with slashes
	info fs.FileInfo
}

// list returns the files that verify covers, sorted by path. Symbolic links are
// left out: the package has none, and ensureSymlinks sets the few that the
// loader needs.
func (p pin) list(root string) ([]engineFile, error) {
	var files []engineFile
	if p.tree == "" {
		for _, name := range slices.Sorted(maps.Keys(p.files)) {
			info, err := os.Lstat(filepath.Join(root, filepath.FromSlash(name)))
			if err != nil || !info.Mode().IsRegular() {
				return nil, p.missingFile(root, name)
			}
			files = append(files, engineFile{name, info})
		}
		return files, nil
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		files = append(files, engineFile{filepath.ToSlash(rel), info})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading engine package %s: %w", p.pkg, err)
	}
	slices.SortFunc(files, func(a, b engineFile) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// stamp identifies the state of files on disk without reading them.
func (p pin) stamp(files []engineFile) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %s\n", p.pkg, p.version, p.tree)
	for _, name := range slices.Sorted(maps.Keys(p.files)) {
		fmt.Fprintf(h, "%s %s\n", name, p.files[name])
	}
	for _, f := range files {
		fmt.Fprintf(h, "%s %d %d %s\n", f.path, f.info.Size(), f.info.ModTime().UnixNano(), inodeIdentity(f.info))
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n"
}

// checkSums reads the files and compares them with the pinned sums.
func (p pin) checkSums(root string, files []engineFile) error {
	tree := sha256.New()
	seen := 0
	for _, f := range files {
		sum, err := fileSHA256(filepath.Join(root, filepath.FromSlash(f.path)))
		if err != nil {
			return fmt.Errorf("reading engine package %s: %w", p.pkg, err)
		}
		if want, ok := p.files[f.path]; ok {
			seen++
			if sum != want {
				return p.checksumError(f.path)
			}
		}
		fmt.Fprintf(tree, "%s  %s\n", sum, f.path)
	}
	if seen != len(p.files) {
		for name := range p.files {
			if !slices.ContainsFunc(files, func(f engineFile) bool { return f.path == name }) {
				return p.missingFile(root, name)
			}
		}
	}
	if p.tree != "" && hex.EncodeToString(tree.Sum(nil)) != p.tree {
		return p.checksumError("a library or data file")
	}
	return nil
}

func (p pin) checksumError(what string) error {
	return fmt.Errorf("%w: %s of %s %s; it was not used. Delete the folder node_modules and run `make engines` again",
		ErrChecksum, what, p.pkg, p.version)
}

func (p pin) missingFile(root, name string) error {
	return fmt.Errorf("%w: %s lacks %s in %s; delete the folder node_modules and run `make engines` again",
		ErrEngineMissing, p.pkg, name, root)
}

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var h hash.Hash = sha256.New()
	if _, err := io.CopyBuffer(h, onlyReader{f}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// onlyReader hides os.File's WriteTo, which would copy in 32 KiB pieces.
type onlyReader struct{ io.Reader }

// inodeIdentity returns device, inode and change time as text.
func inodeIdentity(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	sec, nsec := changeTime(st)
	return fmt.Sprintf("%d %d %d.%d", st.Dev, st.Ino, sec, nsec)
}

// verifiedStampPath returns where the stamp of the package at root lies, or ""
// when there is no private cache folder.
func verifiedStampPath(root string) string {
	cache, err := cacheDir()
	if err != nil {
		return ""
	}
	key := sha256.Sum256([]byte(root))
	return filepath.Join(cache, "verified", hex.EncodeToString(key[:12]))
}
