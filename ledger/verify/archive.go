package verify

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The ZIP file of an evidence package has one plain form, so that what one
// program sees in it is what every other sees: members are stored, not
// compressed (nothing can swell), stand one after the other without gaps or
// overlaps, and have names out of a short list, each once.
const (
	manifestName   = "manifest.json"
	entriesName    = "entries.tsx"
	proofsName     = "proofs.json"
	keysName       = "keys.txt"
	readmeName     = "README.txt"
	checkpointsDir = "checkpoints/"
	keyPrefix      = "key-" // of statements of signing keys

	maxMembers       = 4096
	maxSmallBytes    = 8 << 20 // of every member but the entries
	memberOverhead   = 30 + 255 + 64 + 24
	directoryPerFile = 46 + 255 + 64 + 64
)

// ErrNotPackage says that a file is no evidence package.
var ErrNotPackage = errors.New("verify: not an evidence package")

// archive is an opened package.
type archive struct {
	members map[string]*zip.File
	// digests are the SHA-256 of members that were read to their end.
	digests map[string][32]byte
}

// openArchive opens the ZIP file and holds it against its form. Errors:
// ErrNotPackage for what never was one, *missing for one that is cut, *broken
// for one of another form.
func openArchive(r io.ReaderAt, size int64) (*archive, error) {
	var magic [4]byte
	if n, err := r.ReadAt(magic[:], 0); n < len(magic) || magic != [4]byte{'P', 'K', 3, 4} {
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, &missing{err}
		}
		return nil, ErrNotPackage
	}
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, &missing{fmt.Errorf("the archive has no readable directory, so it is cut or damaged: %w", err)}
	}
	a := &archive{members: make(map[string]*zip.File), digests: make(map[string][32]byte)}
	if len(z.File) > maxMembers || z.Comment != "" {
		return nil, breakAt(0, Archive, "%d members, a comment of %d bytes", len(z.File), len(z.Comment))
	}
	for _, f := range z.File {
		if err := a.admit(f); err != nil {
			return nil, err
		}
	}
	return a, a.layout(z.File, size)
}

// admit takes a member that may be there.
func (a *archive) admit(f *zip.File) error {
	switch {
	case !memberName(f.Name):
		return breakAt(0, Archive, "a member %.80q that a package does not have", f.Name)
	case a.members[f.Name] != nil:
		return breakAt(0, Archive, "two members %q", f.Name)
	case f.Method != zip.Store || f.CompressedSize64 != f.UncompressedSize64 || f.Flags&1 != 0:
		return breakAt(0, Archive, "%q is compressed or encrypted; members are stored as they are", f.Name)
	case f.Name != entriesName && f.UncompressedSize64 > maxSmallBytes:
		return breakAt(0, Archive, "%q claims %d bytes", f.Name, f.UncompressedSize64)
	}
	a.members[f.Name] = f
	return nil
}

func memberName(name string) bool {
	switch name {
	case manifestName, entriesName, proofsName, keysName, readmeName, auditName:
		return true
	}
	_, _, ok := checkpointName(name)
	return ok
}

// checkpointName splits checkpoints/LOG/FILE, where the file is a checkpoint by
// its size or the statement of a signing key by its epoch.
func checkpointName(name string) (log, file string, ok bool) {
	rest, ok := strings.CutPrefix(name, checkpointsDir)
	if !ok {
		return "", "", false
	}
	log, file, ok = strings.Cut(rest, "/")
	epoch, isKey := strings.CutPrefix(file, keyPrefix)
	ok = ok && (log == ledgerLog || log == auditLog) && (isDigits(file, 20) || isKey && isDigits(epoch, 10))
	return log, file, ok
}

func isDigits(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789") == ""
}

// layout wants the members one after the other.
func (a *archive) layout(files []*zip.File, size int64) error {
	type span struct{ from, to int64 }
	var list []span
	for _, f := range files {
		at, err := f.DataOffset()
		if err != nil {
			return breakAt(0, Archive, "%q: %v", f.Name, err)
		}
		n := int64(f.UncompressedSize64)
		if n < 0 || at > size || n > size-at {
			return breakAt(0, Archive, "%q claims %d bytes and the file has %d", f.Name, f.UncompressedSize64, size)
		}
		list = append(list, span{at, at + n})
	}
	slices.SortFunc(list, func(a, b span) int { return int(min(max(a.from-b.from, -1), 1)) })
	end := int64(0)
	for _, s := range list {
		if s.from < end+30 || s.from > end+memberOverhead {
			return breakAt(0, Archive, "members overlap, or bytes stand between them at %d", end)
		}
		end = s.to
	}
	if size-end > 24+int64(len(list))*directoryPerFile+56+20+22 {
		return breakAt(0, Archive, "%d bytes after the last member", size-end)
	}
	return nil
}

// small reads a member other than the entries.
func (a *archive) small(name string) ([]byte, error) {
	f := a.members[name]
	if f == nil {
		return nil, &missing{fmt.Errorf("the package has no %s", name)}
	}
	in, err := f.Open()
	if err != nil {
		return nil, breakAt(0, Archive, "%q: %v", name, err)
	}
	defer in.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(in, maxSmallBytes+1)); err != nil {
		return nil, archiveError(name, &missing{fmt.Errorf("read %s: %w", name, err)})
	}
	a.digests[name] = sha256.Sum256(b.Bytes())
	return b.Bytes(), nil
}
