package bedrock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Object is something with log records that a source has.
type Object struct {
	// Series is what the object's order is within: a folder of keys, a log stream.
	Series string
	// Name is unique in the source. Without one the place of its records says
	// nothing of them.
	Name string
	// Version tells an object from one that was under its name before. "" is not
	// remembered: Position, or the source itself, says what was read.
	Version string
	// Position is where the series' cursor may stand when the object is done, ""
	// leaves it. Forward says that positions are in the order of names.
	Position string
	Forward  bool
	Size     int64 // in bytes; 0 is unknown
	// Handle is the source's own.
	Handle any
}

// Cursors is what a source asks about a connection before it names objects.
type Cursors interface {
	// Cursor is the series' last Position, "" before the first.
	Cursor(ctx context.Context, series string) (string, error)
	// Read are the objects behind it that were read, with their versions.
	Read(ctx context.Context, series string) (map[string]string, error)
}

// Source is a place with logs. It is used by one goroutine at a time. Errors that
// a person must mend match ErrDenied.
type Source interface {
	// Objects calls fn with every object that was not read yet, in the order of
	// their series, and ends with fn's error. An object's Handle may be used until
	// fn returns.
	Objects(ctx context.Context, at Cursors, fn func(Object) error) error
	// Open opens an object. Errors: ErrGone.
	Open(ctx context.Context, o Object) (io.ReadCloser, error)
	// Follow opens what a record refers to, if it lies where this source may
	// look; else ErrGone.
	Follow(ctx context.Context, ref string) (io.ReadCloser, error)
	// Done is called when an object's events are durable and its cursor is too.
	Done(ctx context.Context, o Object) error
	Close() error
}

// Directory is a folder of log files, with all below it. It never leaves the
// folder, whatever links say.
type Directory struct{ root *os.Root }

// OpenDirectory opens a folder below base; name is relative and clean.
func OpenDirectory(base, name string) (*Directory, error) {
	outer, err := os.OpenRoot(base)
	if err != nil {
		return nil, fmt.Errorf("bedrock: the directory of logs: %w", err)
	}
	defer outer.Close() //nolint:errcheck // only opened
	root, err := outer.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("bedrock: the directory of logs: %w", err)
	}
	return &Directory{root}, nil
}

// Objects implements Source. Hidden files, and those that records refer to, are
// left out.
func (d *Directory) Objects(ctx context.Context, at Cursors, fn func(Object) error) error {
	read, err := at.Read(ctx, "files")
	if err != nil {
		return err
	}
	return fs.WalkDir(d.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "data") {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), ".") {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		version := fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano())
		if read[name] == version {
			return nil
		}
		return fn(Object{Series: "files", Name: name, Version: version, Size: info.Size()})
	})
}

// Open implements Source.
func (d *Directory) Open(_ context.Context, o Object) (io.ReadCloser, error) { return d.open(o.Name) }

func (d *Directory) open(name string) (io.ReadCloser, error) {
	f, err := d.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return f, err
}

// Follow implements Source: a bucket that was copied here has the answer in a
// folder data, under the last part of its key.
func (d *Directory) Follow(_ context.Context, ref string) (io.ReadCloser, error) {
	return d.open("data/" + path.Base(ref))
}

// Done implements Source.
func (d *Directory) Done(context.Context, Object) error { return nil }

// Close implements Source.
func (d *Directory) Close() error { return d.root.Close() }
