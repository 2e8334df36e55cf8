package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	cursorName = "cursor"
	lockName   = "lock"
	slotBytes  = 128

	// NoteBytes is the length of what [Spool.Note] keeps.
	NoteBytes = 64
)

// cursor is the file that remembers what was acknowledged. Two slots are
// written in turn, so that a torn write leaves the other; a slot that a power
// cut threw back only has records come out again.
type cursor struct {
	f *os.File

	mu    sync.Mutex // protects what follows and the order of writes
	turn  uint64     // counts writes; its parity is the slot
	epoch uint64
	seq   uint64
	note  [NoteBytes]byte
}

func openCursor(path string) (*cursor, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	var raw [2 * slotBytes]byte
	n, err := f.ReadAt(raw[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("spool: cursor: %w", err), f.Close())
	}
	c := &cursor{f: f}
	for i := 0; (i+1)*slotBytes <= n; i++ {
		b := raw[i*slotBytes : (i+1)*slotBytes]
		turn := binary.LittleEndian.Uint64(b)
		if binary.LittleEndian.Uint32(b[slotBytes-4:]) != crc32.Checksum(b[:slotBytes-4], castagnoli) || turn < c.turn {
			continue
		}
		c.turn, c.epoch, c.seq = turn, binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		c.note = [NoteBytes]byte(b[24:])
	}
	return c, nil
}

// set writes the slot whose turn it is, if anything is new; a nil note stays as
// it is. It survives a kill, not a power cut.
func (c *cursor) set(epoch, seq uint64, note *[NoteBytes]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch == epoch {
		seq = max(seq, c.seq)
	}
	if note == nil {
		note = &c.note
	}
	if c.epoch == epoch && c.seq == seq && c.note == *note && c.turn > 0 {
		return nil
	}
	var b [slotBytes]byte
	binary.LittleEndian.PutUint64(b[0:], c.turn+1)
	binary.LittleEndian.PutUint64(b[8:], epoch)
	binary.LittleEndian.PutUint64(b[16:], seq)
	copy(b[24:], note[:])
	binary.LittleEndian.PutUint32(b[slotBytes-4:], crc32.Checksum(b[:slotBytes-4], castagnoli))
	if _, err := c.f.WriteAt(b[:], int64((c.turn+1)%2)*slotBytes); err != nil {
		return fmt.Errorf("spool: cursor: %w", err)
	}
	c.turn, c.epoch, c.seq, c.note = c.turn+1, epoch, seq, *note
	return nil
}

// sync makes what set wrote survive a power cut too.
func (c *cursor) sync(d disk) error {
	if err := d.Sync(c.f); err != nil {
		return fmt.Errorf("spool: cursor: %w", err)
	}
	return nil
}

// lockFolder keeps a second process out; the lock ends with the process.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
		}
		return nil, fmt.Errorf("spool: lock %s: %w", dir, err)
	}
	return f, nil
}

// disk is what a spool does to files that a crash or a full disk can spoil.
type disk interface {
	// WriteAt writes all of b or fails.
	WriteAt(f *os.File, b []byte, off int64) error
	// Sync returns when everything written to f, a folder too, survives a power cut.
	Sync(f *os.File) error
}

type realDisk struct{}

func (realDisk) WriteAt(f *os.File, b []byte, off int64) error {
	_, err := f.WriteAt(b, off)
	return err
}
