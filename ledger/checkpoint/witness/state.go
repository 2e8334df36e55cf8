package witness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tallystick/tallystick/ledger/checkpoint"
)

// ErrState says that the state directory cannot be trusted: it is in use, or a
// file in it is not what this program wrote. An operator decides.
var ErrState = errors.New("witness: the state directory cannot be used")

// state is the directory of newest checkpoints: one file per log, named by the
// hash of its origin, with the signed note in it.
type state struct {
	path string
	lock *os.File
}

// openState opens the directory for this process alone.
func openState(path string) (*state, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	f, err := os.OpenFile(filepath.Join(path, "in-use"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s is in use by another witness", ErrState, path)
	}
	return &state{path, f}, nil
}

func (s *state) close() error { return s.lock.Close() }

func (s *state) file(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(s.path, hex.EncodeToString(sum[:]))
}

// read is the newest checkpoint of a log; size 0 when there is none.
func (s *state) read(origin string) (checkpoint.Head, error) {
	b, err := os.ReadFile(s.file(origin))
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint.Head{Origin: origin}, nil
	}
	if err != nil {
		return checkpoint.Head{}, fmt.Errorf("%w: %w", ErrState, err)
	}
	h, err := checkpoint.OpenUnverified(string(b))
	if err != nil || h.Origin != origin {
		return checkpoint.Head{}, fmt.Errorf("%w: %s is not the checkpoint of %q: %w", ErrState, s.file(origin), origin, err)
	}
	return h, nil
}

// write makes the note the newest of its log. It is on disk when write returns.
func (s *state) write(origin, signed string) error {
	f, err := os.CreateTemp(s.path, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing is there after the rename
	_, err = f.WriteString(signed)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.file(origin)); err != nil {
		return err
	}
	dir, err := os.Open(s.path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
