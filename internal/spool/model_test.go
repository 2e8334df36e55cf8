package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"pgregory.net/rapid"
)

// errPower is what every disk operation says after the power is cut.
var errPower = errors.New("the power is cut")

// powerDisk is a disk that is cut off in the middle of one operation and stays
// so: a write leaves any part of what it wrote, or none.
type powerDisk struct {
	left int // operations until the cut
	keep func(n int) int
}

func (d *powerDisk) WriteAt(f *os.File, b []byte, off int64) error {
	d.left--
	switch {
	case d.left > 0:
		return realDisk{}.WriteAt(f, b, off)
	case d.left == 0:
		return errors.Join(errPower, realDisk{}.WriteAt(f, b[:d.keep(len(b))], off))
	}
	return errPower
}

func (d *powerDisk) Sync(f *os.File) error {
	d.left--
	if d.left <= 0 {
		return errPower
	}
	return nil // the file system of the test keeps what was written anyway
}

// model is what a spool must be: the records that were appended for sure, those
// that may have been, and what was acknowledged.
type model struct {
	dir     string
	opts    Options
	s       *Spool
	disk    *powerDisk
	certain []string // records 1..n
	maybe   []string // those of the one append that the cut hit
	acked   uint64
	made    int
	epoch   uint64
}

// TestSpoolKeepsWhatItTook runs random appends, reads and acknowledgements with
// cuts of power in the middle of any disk operation, after any byte of a write,
// against a model that is a slice.
func TestSpoolKeepsWhatItTook(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "spool")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		m := &model{dir: dir, opts: Options{MaxBytes: MinMaxBytes, SegmentBytes: minSegmentBytes}}
		if rapid.Bool().Draw(t, "sealed") {
			m.opts.Key = key
		}
		m.reopen(t)
		t.Repeat(map[string]func(*rapid.T){
			"":        m.check,
			"append":  m.append,
			"ack":     m.ack,
			"restart": m.restart,
		})
		m.s.Close()
	})
}

// reopen opens the folder as it is and plans the next cut.
func (m *model) reopen(t *rapid.T) {
	m.disk = &powerDisk{
		left: rapid.IntRange(2, 40).Draw(t, "operations until the cut"),
		keep: func(n int) int { return rapid.IntRange(0, n).Draw(t, "bytes kept") },
	}
	opts := m.opts
	opts.disk = m.disk
	s, err := Open(m.dir, opts)
	for errors.Is(err, errPower) { // cut while it cut the torn tail, or removed segments
		opts.disk = realDisk{}
		s, err = Open(m.dir, opts)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.s = s
	st := s.Stats()
	// The append that was hit is there as a whole or not at all.
	switch st.Last {
	case uint64(len(m.certain)):
	case uint64(len(m.certain) + len(m.maybe)):
		m.certain = append(m.certain, m.maybe...)
	default:
		t.Fatalf("%d records after the crash, want %d or %d more", st.Last, len(m.certain), len(m.maybe))
	}
	m.maybe = nil
	if m.epoch != 0 && m.epoch != s.Epoch() && len(m.certain) > 0 {
		t.Fatalf("epoch %d became %d", m.epoch, s.Epoch())
	}
	m.epoch = s.Epoch()
	if st.Acked > m.acked {
		t.Fatalf("acknowledged %d, after the crash %d", m.acked, st.Acked)
	}
	m.acked = st.Acked
}

func (m *model) append(t *rapid.T) {
	var list [][]byte
	var names []string
	for range rapid.IntRange(1, 5).Draw(t, "records") {
		m.made++
		r := fmt.Sprintf("%d:%0*d", m.made, rapid.IntRange(0, 4000).Draw(t, "size"), 0)
		list, names = append(list, []byte(r)), append(names, r)
	}
	first, err := m.s.Append(context.Background(), list)
	switch {
	case err == nil:
		if first != uint64(len(m.certain))+1 {
			t.Fatalf("record %d is numbered %d", len(m.certain)+1, first)
		}
		m.certain = append(m.certain, names...)
	case errors.Is(err, ErrFull):
		if st := m.s.Stats(); st.Bytes < m.opts.MaxBytes/2 {
			t.Fatalf("full with %+v", st)
		}
	case errors.Is(err, errPower) || errors.Is(err, ErrBroken):
		if m.disk.left <= 0 && m.maybe == nil {
			m.maybe = names
		}
		m.crash(t)
	default:
		t.Fatal(err)
	}
}

func (m *model) ack(t *rapid.T) {
	st := m.s.Stats()
	through := rapid.Uint64Range(st.Acked, st.Last).Draw(t, "through")
	switch err := m.s.Ack(through); {
	case err == nil:
		m.acked = through
	case errors.Is(err, errPower):
		m.acked = through // it may be remembered
		m.crash(t)
	default:
		t.Fatal(err)
	}
}

func (m *model) restart(t *rapid.T) {
	if err := m.s.Close(); err != nil && !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	m.reopen(t)
}

// crash lets go of the spool as a killed process does: nothing more is written.
func (m *model) crash(t *rapid.T) {
	m.disk.left = 0
	m.s.Close()
	m.reopen(t)
}

// check reads everything and compares.
func (m *model) check(t *rapid.T) {
	st := m.s.Stats()
	if st.Bytes > m.opts.MaxBytes || st.Last != uint64(len(m.certain)) || st.Acked != m.acked {
		t.Fatalf("%+v, want %d records, %d acknowledged", st, len(m.certain), m.acked)
	}
	var b Batch
	for at := st.Acked; at < st.Last; at = b.Last() {
		if err := m.s.Read(context.Background(), at, rapid.IntRange(1, 9000).Draw(t, "bytes"), &b); err != nil {
			t.Fatal(err)
		}
		if b.First != at+1 {
			t.Fatalf("after %d comes %d", at, b.First)
		}
		for i, r := range b.Records {
			if want := m.certain[b.First-1+uint64(i)]; string(r) != want {
				t.Fatalf("record %d is %.20q, want %.20q", b.First+uint64(i), r, want)
			}
		}
	}
}
