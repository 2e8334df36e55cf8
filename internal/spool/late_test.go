package spool

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
)

// lateDisk counts fsyncs, and fails them while fail is set.
type lateDisk struct {
	realDisk
	fail  atomic.Pointer[error]
	syncs atomic.Int64
}

func (d *lateDisk) Sync(f *os.File) error {
	d.syncs.Add(1)
	if err := d.fail.Load(); err != nil {
		return *err
	}
	return d.realDisk.Sync(f)
}

// With SyncLate an append returns while its fsync is under way, and closing waits
// for the last one.
func TestAppendsReturnBeforeTheFsync(t *testing.T) {
	dir, d := t.TempDir(), &lateDisk{}
	s := open(t, dir, Options{SyncLate: true, disk: d})
	put(t, s, "first") // makes the segment, which is durable at once
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{SyncLate: true, disk: d})
	put(t, s, "second")
	before := d.syncs.Load()
	put(t, s, "third", "fourth")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if d.syncs.Load() == before {
		t.Error("nothing was fsync'd after the last append")
	}
	s = open(t, dir, Options{SyncLate: true})
	if st := s.Stats(); st.Records != 4 {
		t.Errorf("%d records, want 4", st.Records)
	}
}

// A failed fsync behind an append breaks the spool: nothing more is promised.
func TestAFailedLateFsyncBreaksTheSpool(t *testing.T) {
	d := &lateDisk{}
	s := open(t, t.TempDir(), Options{SyncLate: true, disk: d})
	put(t, s, "first")
	lost := errors.New("the disk is gone")
	d.fail.Store(&lost)
	for range 100_000 {
		if _, err := s.Append(context.Background(), [][]byte{[]byte("next")}); errors.Is(err, ErrBroken) {
			return
		}
	}
	t.Error("appends went on for a hundred thousand times")
}
