package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// open opens a spool that the test closes at its end.
func open(t testing.TB, dir string, opts Options) *Spool {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *Spool, records ...string) uint64 {
	t.Helper()
	var list [][]byte
	for _, r := range records {
		list = append(list, []byte(r))
	}
	first, err := s.Append(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	return first
}

// all reads everything that is not acknowledged, without acknowledging it.
func all(t testing.TB, s *Spool) (first uint64, records []string) {
	t.Helper()
	st := s.Stats()
	var b Batch
	for at := st.Acked; at < st.Last; at = b.Last() {
		if err := s.Read(t.Context(), at, 1, &b); err != nil {
			t.Fatal(err)
		}
		if b.First != at+1 {
			t.Fatalf("after %d comes %d", at, b.First)
		}
		if first == 0 {
			first = b.First
		}
		for _, r := range b.Records {
			records = append(records, string(r))
		}
	}
	return first, records
}

func closeSpool(t testing.TB, s *Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

var key = &[KeyBytes]byte{1, 2, 3}

func TestRecordsComeBackInOrder(t *testing.T) {
	for name, k := range map[string]*[KeyBytes]byte{"plain": nil, "sealed": key} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{Key: k})
			if first := put(t, s, "a", "", "c"); first != 1 {
				t.Errorf("the first record is number %d", first)
			}
			if first := put(t, s, "d"); first != 4 {
				t.Errorf("the fourth record is number %d", first)
			}
			epoch := s.Epoch()
			for range 2 {
				if first, got := all(t, s); first != 1 || fmt.Sprint(got) != "[a  c d]" {
					t.Errorf("read %d %q", first, got)
				}
				closeSpool(t, s)
				s = open(t, dir, Options{Key: k})
			}
			if err := s.Ack(3); err != nil {
				t.Fatal(err)
			}
			closeSpool(t, s)
			s = open(t, dir, Options{Key: k})
			if first, got := all(t, s); first != 4 || fmt.Sprint(got) != "[d]" {
				t.Errorf("after the acknowledgement of 3: read %d %q", first, got)
			}
			if s.Epoch() != epoch {
				t.Errorf("the epoch changed from %d to %d", epoch, s.Epoch())
			}
		})
	}
}

func TestSealedFolderShowsNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Key: key})
	put(t, s, "a canary sings")
	closeSpool(t, s)
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		if b, err := os.ReadFile(name); err != nil || bytes.Contains(b, []byte("canary")) {
			t.Errorf("%s shows the record (%v)", name, err)
		}
	}
	for what, k := range map[string]*[KeyBytes]byte{"no key": nil, "another key": {9}} {
		if _, err := Open(dir, Options{Key: k}); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, got := all(t, open(t, dir, Options{Key: key})); fmt.Sprint(got) != "[a canary sings]" {
		t.Errorf("after two refusals: %q", got)
	}
}

// TestNumbersAreUsedOnce acknowledges everything, so that no segment is left,
// and looks that the numbers go on.
func TestNumbersAreUsedOnce(t *testing.T) {
	dir := t.TempDir()
	var epoch uint64
	for i := range uint64(4) {
		s := open(t, dir, Options{})
		if i == 0 {
			epoch = s.Epoch()
		}
		if first := put(t, s, "x"); first != i+1 || s.Epoch() != epoch {
			t.Errorf("opened for the %d. time: record %d of epoch %d, want epoch %d", i+1, first, s.Epoch(), epoch)
		}
		if err := s.Ack(i + 1); err != nil {
			t.Fatal(err)
		}
		closeSpool(t, s)
	}
	// Without the folder it is another numbering.
	if s := open(t, filepath.Join(t.TempDir(), "new"), Options{}); s.Epoch() == epoch {
		t.Error("another folder has the same epoch")
	}
}

// TestNoteGoesWithTheAcknowledgement also after a process has let go of it.
func TestNoteGoesWithTheAcknowledgement(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if s.Note() != [NoteBytes]byte{} {
		t.Error("a new spool has a note")
	}
	put(t, s, "a", "b")
	for _, c := range []struct {
		through uint64
		note    byte
		acked   uint64
	}{{1, 7, 1}, {1, 8, 1}, {0, 9, 1}, {2, 10, 2}} {
		if err := s.AckNote(c.through, [NoteBytes]byte{0: c.note, NoteBytes - 1: c.note}); err != nil {
			t.Fatal(err)
		}
		closeSpool(t, s)
		s = open(t, dir, Options{})
		if n := s.Note(); n[0] != c.note || n[NoteBytes-1] != c.note || s.Stats().Acked != c.acked {
			t.Errorf("after note %d: %v, %+v", c.note, n, s.Stats())
		}
	}
	put(t, s, "c")
	if err := s.Ack(3); err != nil || s.Note()[0] != 10 {
		t.Errorf("an acknowledgement without a note: %v, %v", err, s.Note())
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "below", "spool.key")
	first, err := KeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := KeyFile(path)
	if err != nil || *again != *first || *first == [KeyBytes]byte{} {
		t.Errorf("%v: %x, then %x", err, first, again)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	for _, text := range []string{"", "abcd", "zz" + fmt.Sprintf("%062d", 0), fmt.Sprintf("%066d", 0)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := KeyFile(path); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	closeSpool(t, s)
	open(t, dir, Options{})
}

func TestFullHealsWithAcknowledgements(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxBytes: MinMaxBytes})
	record := bytes.Repeat([]byte("x"), 1000)
	n := uint64(0)
	var err error
	for err == nil {
		if _, err = s.Append(t.Context(), [][]byte{record}); err == nil {
			n++
		}
	}
	st := s.Stats()
	if !errors.Is(err, ErrFull) || st.Bytes > MinMaxBytes || st.Bytes < MinMaxBytes*9/10 {
		t.Fatalf("after %d records %v with %+v", n, err, st)
	}
	if _, err := s.Append(t.Context(), [][]byte{bytes.Repeat(record, MinMaxBytes/4/1000+1)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more than a quarter of the spool in one call: %v", err)
	}
	if err := s.Ack(n + 1); err == nil {
		t.Error("acknowledged what was never appended")
	}
	if err := s.Ack(n / 2); err != nil {
		t.Fatal(err)
	}
	put(t, s, string(record))
	if first, got := all(t, s); first != n/2+1 || uint64(len(got)) != n-n/2+1 {
		t.Errorf("%d records from %d, want %d from %d", len(got), first, n-n/2+1, n/2+1)
	}
}

func TestReadWaitsForRecords(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	got := make(chan string)
	go func() {
		var b Batch
		if err := s.Read(context.Background(), 0, 100, &b); err != nil {
			got <- err.Error()
			return
		}
		got <- string(b.Records[0])
	}()
	put(t, s, "late")
	if r := <-got; r != "late" {
		t.Errorf("read %q", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if err := s.Read(ctx, 1, 100, new(Batch)); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader whose time is up: %v", err)
	}
	go s.Close()
	if err := s.Read(t.Context(), 1, 100, new(Batch)); !errors.Is(err, ErrClosed) {
		t.Errorf("a reader of a closed spool: %v", err)
	}
	if _, err := s.Append(t.Context(), [][]byte{{1}}); !errors.Is(err, ErrClosed) {
		t.Errorf("an append to a closed spool: %v", err)
	}
	if err := s.Ack(1); !errors.Is(err, ErrClosed) {
		t.Errorf("an acknowledgement to a closed spool: %v", err)
	}
}

// TestReadFromAnywhere reads from every position of several segments, as an
// agent does that connects again.
func TestReadFromAnywhere(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxBytes: MinMaxBytes, SegmentBytes: minSegmentBytes, Key: key})
	var want []string
	for i := range 150 {
		r := fmt.Sprintf("%d %0500d", i, i)
		want = append(want, r, "second")
		put(t, s, r, "second")
	}
	if st := s.Stats(); st.Segments < 4 {
		t.Fatalf("only %d segments", st.Segments)
	}
	var b Batch
	for _, step := range []int{1, 7, -1} {
		for at := 0; at >= 0 && at < len(want); {
			from := at
			if step < 0 {
				from = len(want) - 1 - at
			}
			if err := s.Read(t.Context(), uint64(from), 4000, &b); err != nil {
				t.Fatal(err)
			}
			if b.First != uint64(from)+1 || len(b.Records) == 0 {
				t.Fatalf("after %d: %d records from %d", from, len(b.Records), b.First)
			}
			for i, r := range b.Records {
				if string(r) != want[from+i] {
					t.Fatalf("record %d is %q", from+i+1, r)
				}
			}
			at += max(step, -step)
		}
	}
}

func TestOldestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir, Options{})
		start := time.Now()
		for range 5 {
			put(t, s, "x")
			time.Sleep(10 * time.Second)
		}
		for _, k := range []*Spool{s, nil} {
			if k == nil { // and the same after the folder is opened again
				closeSpool(t, s)
				s = open(t, dir, Options{})
				k = s
			}
			if got := k.Stats(); got.Records != 5 || !got.Oldest.Equal(start) {
				t.Errorf("%+v, want the oldest of %s", got, start)
			}
		}
		if err := s.Ack(3); err != nil {
			t.Fatal(err)
		}
		if got := s.Stats(); got.Records != 2 || !got.Oldest.Equal(start.Add(30*time.Second)) {
			t.Errorf("after the acknowledgement of 3: %+v", got)
		}
		if err := s.Ack(5); err != nil {
			t.Fatal(err)
		}
		if got := s.Stats(); got.Records != 0 || !got.Oldest.IsZero() {
			t.Errorf("after the acknowledgement of all: %+v", got)
		}
	})
}

// TestDamageIsNotATornTail changes a byte anywhere in the middle: what was
// durable is never silently cut.
func TestDamageIsNotATornTail(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "first")
	put(t, s, "second")
	put(t, s, "third")
	closeSpool(t, s)
	name := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	last := len(whole) - (frameHeaderBytes + recordOverhead + len("third") + frameTrailerBytes)
	for i := range last {
		b := bytes.Clone(whole)
		b[i] ^= 0x40
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir, Options{}); err == nil {
			t.Fatalf("byte %d of %d changed and nothing said: %+v", i, last, s.Stats())
		} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrKey) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func TestMissingSegmentIsNoticed(t *testing.T) {
	fill := func(t *testing.T) (dir string, names []string) {
		dir = t.TempDir()
		s := open(t, dir, Options{MaxBytes: MinMaxBytes})
		for range 60 {
			put(t, s, string(bytes.Repeat([]byte("y"), 1000)))
		}
		closeSpool(t, s)
		names, err := segmentNames(dir)
		if err != nil || len(names) < 3 {
			t.Fatal(names, err)
		}
		return dir, names
	}
	for i := range 2 {
		dir, names := fill(t)
		if err := os.Remove(filepath.Join(dir, names[i])); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{MaxBytes: MinMaxBytes}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("without segment %d: %v", i, err)
		}
	}
	dir, names := fill(t)
	if err := os.Rename(filepath.Join(dir, names[0]), filepath.Join(dir, segmentName(2))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{MaxBytes: MinMaxBytes}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a segment under another's name: %v", err)
	}
	// A lost cursor loses nothing: what is there comes out again.
	dir, _ = fill(t)
	s := open(t, dir, Options{MaxBytes: MinMaxBytes})
	if err := s.Ack(50); err != nil {
		t.Fatal(err)
	}
	closeSpool(t, s)
	if err := os.Remove(filepath.Join(dir, cursorName)); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{MaxBytes: MinMaxBytes})
	if st := s.Stats(); st.Last != 60 || st.Acked >= 50 || st.Acked == 0 {
		t.Errorf("without its cursor: %+v", st)
	}
}

// faulty is a disk whose nth operation fails with err; it heals afterwards
// unless sticky.
type faulty struct {
	n       int
	err     error
	partial int // bytes that a failing write leaves on disk
	sticky  bool
}

func (d *faulty) fails() bool {
	d.n--
	return d.n == 0 || (d.n < 0 && d.sticky)
}

func (d *faulty) WriteAt(f *os.File, b []byte, off int64) error {
	if !d.fails() {
		return realDisk{}.WriteAt(f, b, off)
	}
	return errors.Join(d.err, realDisk{}.WriteAt(f, b[:min(d.partial, len(b))], off))
}

func (d *faulty) Sync(f *os.File) error {
	if d.fails() {
		return d.err
	}
	return realDisk{}.Sync(f)
}

// TestFailedWriteIsTakenBack fails each of the first operations in turn: those
// who waited for it are told, nothing of theirs is kept, and what comes later is.
func TestFailedWriteIsTakenBack(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for n := 1; n <= 9; n++ {
			d := &faulty{n: n, err: cause, partial: 37}
			dir := t.TempDir()
			s := open(t, dir, Options{disk: d, Key: key})
			var want []string
			failed := 0
			for i := range 4 {
				r := fmt.Sprint("record ", i)
				switch _, err := s.Append(t.Context(), [][]byte{[]byte(r)}); {
				case err == nil:
					want = append(want, r)
				case errors.Is(err, cause) && errors.Is(err, ErrFull) == (cause == syscall.ENOSPC):
					failed++
				default:
					t.Fatal(err)
				}
			}
			if failed != 1 {
				t.Errorf("operation %d failed: %d appends said so", n, failed)
			}
			if _, got := all(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("operation %d failed: %q, want %q", n, got, want)
			}
			closeSpool(t, s)
			s = open(t, dir, Options{Key: key})
			if _, got := all(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("operation %d failed, opened again: %q, want %q", n, got, want)
			}
			closeSpool(t, s)
		}
	}
}

// TestBrokenDiskEndsAppends: a write that can be neither made nor taken back
// leaves nothing to promise.
func TestBrokenDiskEndsAppends(t *testing.T) {
	dir := t.TempDir()
	// A segment takes three operations, a frame two: the second frame fails.
	s := open(t, dir, Options{disk: &faulty{n: 6, err: syscall.EIO, partial: 20, sticky: true}})
	put(t, s, "kept")
	for range 2 {
		if _, err := s.Append(t.Context(), [][]byte{[]byte("lost")}); !errors.Is(err, ErrBroken) {
			t.Errorf("on a broken disk: %v", err)
		}
	}
	s.Close()
	if _, got := all(t, open(t, dir, Options{})); fmt.Sprint(got) != "[kept]" {
		t.Errorf("opened again: %q", got)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{{MaxBytes: 1}, {MaxBytes: -1}, {SegmentBytes: 1}, {SegmentBytes: MaxSegmentBytes + 1}, {MaxBytes: 1 << 20, SegmentBytes: 1 << 20}} {
		if _, err := Open(t.TempDir(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
