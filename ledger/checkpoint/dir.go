package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/internal/tenant"
)

// ErrConflict says that something else is published already under the same size,
// key epoch or witness. What is published is never replaced.
var ErrConflict = errors.New("checkpoint: something else is published under that name")

// Dir is the append-only directory: one file a signed note,
// <dir>/<log>/<tenant>/<size, 20 digits>, beside it the answers of witnesses as
// <size>.<witness key id>, and the statements of signing keys as key-<epoch>.
//
// A file appears under its name whole and on disk, or not at all, and is never
// written again. Several processes may share a directory.
type Dir struct{ path string }

// OpenDir opens the directory and makes it if need be.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("checkpoint directory: %w", err)
	}
	return &Dir{path}, nil
}

// Path is where the directory is.
func (d *Dir) Path() string { return d.path }

func (d *Dir) folder(log string, id tenant.ID) string {
	return filepath.Join(d.path, log, filepath.FromSlash(string(id)))
}

func sizeName(size int64) string { return fmt.Sprintf("%020d", size) }

func keyName(epoch uint32) string { return fmt.Sprintf("key-%010d", epoch) }

// Add publishes the note of a size. It is durable when Add returns. The same
// note once more is no error; another one is ErrConflict.
func (d *Dir) Add(log string, id tenant.ID, size int64, signed string) error {
	return d.add(log, id, sizeName(size), signed)
}

// AddKey publishes the statement of a signing key, as Add does.
func (d *Dir) AddKey(log string, id tenant.ID, s *Statement) error {
	return d.add(log, id, keyName(s.Epoch), s.Note)
}

// AddCosignature publishes the first answer of a witness to a checkpoint. A
// later one, which differs in its time, is left out.
func (d *Dir) AddCosignature(log string, id tenant.ID, size int64, keyID uint32, line string) error {
	err := d.add(log, id, fmt.Sprintf("%s.%08x", sizeName(size), keyID), line)
	if errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}

// add writes a file beside its name, syncs it and links it there: a link never
// replaces what is there.
func (d *Dir) add(log string, id tenant.ID, name, content string) error {
	folder := d.folder(log, id)
	if err := d.makeFolder(folder); err != nil {
		return err
	}
	path := filepath.Join(folder, name)
	if err := linkNew(folder, path, content); !errors.Is(err, fs.ErrExist) {
		return err
	}
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	if string(have) != content {
		return fmt.Errorf("%w: %s", ErrConflict, path)
	}
	return syncFolder(folder) // whoever linked it may have died before this
}

func linkNew(folder, path, content string) (err error) {
	f, err := os.CreateTemp(folder, ".new-*")
	if err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	return syncFolder(folder)
}

// makeFolder makes a tenant's folder durably.
func (d *Dir) makeFolder(folder string) error {
	if _, err := os.Stat(folder); err == nil {
		return nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	for up := filepath.Dir(folder); ; up = filepath.Dir(up) {
		if err := syncFolder(up); err != nil {
			return err
		}
		if up == d.path || len(up) <= len(d.path) {
			return nil
		}
	}
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	return nil
}

// Newest is the note of the greatest size; ok is false when there is none.
func (d *Dir) Newest(log string, id tenant.ID) (size int64, signed string, ok bool, err error) {
	err = d.walk(log, id, func(name string) {
		if n, isSize := sizeOf(name); isSize {
			size = max(size, n)
		}
	})
	if err != nil || size == 0 {
		return 0, "", false, err
	}
	signed, err = d.Read(log, id, size)
	return size, signed, err == nil, err
}

// namesPerRead bounds the memory of a walk: a folder gets a file a minute, and
// is never emptied.
const namesPerRead = 1024

// walk calls fn with the names of a tenant's folder, in no order.
func (d *Dir) walk(log string, id tenant.ID, fn func(name string)) error {
	f, err := os.Open(d.folder(log, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(namesPerRead)
		for _, name := range names {
			fn(name)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("checkpoint directory: %w", err)
		}
	}
}

// names are the names of a tenant's folder in order.
func (d *Dir) names(log string, id tenant.ID) (names []string, err error) {
	err = d.walk(log, id, func(name string) { names = append(names, name) })
	slices.Sort(names)
	return names, err
}

// sizeOf is the size that a file's name says.
func sizeOf(name string) (int64, bool) {
	if len(name) != 20 {
		return 0, false
	}
	n, err := parseSize(strings.TrimLeft(name[:19], "0") + name[19:])
	return n, err == nil && sizeName(n) == name && n > 0
}

// Read is the note of a size.
func (d *Dir) Read(log string, id tenant.ID, size int64) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.folder(log, id), sizeName(size)))
	if err != nil {
		return "", fmt.Errorf("checkpoint directory: %w", err)
	}
	return string(b), nil
}

// Sizes are the sizes that notes are published of, in order.
func (d *Dir) Sizes(log string, id tenant.ID) (sizes []int64, err error) {
	names, err := d.names(log, id)
	for _, name := range names {
		if n, ok := sizeOf(name); ok {
			sizes = append(sizes, n)
		}
	}
	return sizes, err
}

// Statements are the statements of the signing keys, in order of epoch.
func (d *Dir) Statements(log string, id tenant.ID) (list []string, err error) {
	names, err := d.names(log, id)
	for _, name := range names {
		if !strings.HasPrefix(name, "key-") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d.folder(log, id), name))
		if err != nil {
			return nil, fmt.Errorf("checkpoint directory: %w", err)
		}
		list = append(list, string(b))
	}
	return list, err
}
