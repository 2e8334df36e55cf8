package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Defaults and bounds of [Options].
const (
	DefaultMaxBytes = 1 << 30
	MinMaxBytes     = 256 << 10
	MaxSegmentBytes = 64 << 20
	minSegmentBytes = 16 << 10

	// KeyBytes is the length of Options.Key.
	KeyBytes = 32

	// maxGroupBytes is what waiting appends may fill before further ones wait
	// for the write: it bounds memory, and what a reader has to read at once.
	maxGroupBytes = 1 << 20
)

// Options of a spool. The zero value of a field means its default.
type Options struct {
	// MaxBytes bounds the folder, with everything in it that is not the lock and
	// the cursor (1 KiB together); default 1 GiB, at least 256 KiB.
	MaxBytes int64
	// SegmentBytes is when a new file is begun; default MaxBytes/16, at most
	// 64 MiB. Room comes back by whole files, so about two of them may be full
	// of acknowledged records.
	SegmentBytes int64
	// Key seals what lies on disk; nil leaves it plain. A folder keeps to what it
	// was begun with: see [ErrKey].
	Key *[KeyBytes]byte
	// SyncLate has an append return when its records are written; they are fsync'd
	// behind it, 2 ms after the fsync before at the latest. kill -9 loses nothing; a
	// power cut or a crash of the kernel takes what was appended in those 2 ms and as
	// long as the disk then took. The default waits for the fsync.
	SyncLate bool
	// Log hears of cut tails and failed writes, never of records. Default: nobody.
	Log *slog.Logger
	// Now is the clock that ages are taken from; default time.Now.
	Now func() time.Time

	disk disk // tests put a failing one here
}

func (o Options) withDefaults() Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = min(max(o.MaxBytes/16, minSegmentBytes), MaxSegmentBytes)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.disk == nil {
		o.disk = realDisk{}
	}
	return o
}

// Validate reports every wrong field at once, each by its name.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	if o.MaxBytes < MinMaxBytes {
		errs = append(errs, fmt.Errorf("spool.max_bytes: must be at least %d, is %d", MinMaxBytes, o.MaxBytes))
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > MaxSegmentBytes || o.SegmentBytes > o.MaxBytes/2 {
		errs = append(errs, fmt.Errorf("spool.segment_bytes: must be between %d and %d and at most half of max_bytes, is %d",
			minSegmentBytes, MaxSegmentBytes, o.SegmentBytes))
	}
	return errors.Join(errs...)
}

// maxAppend is the most that one call may bring: a quarter of the spool, so
// that one caller cannot fill it, and what a frame's length can say.
func (o Options) maxAppend() int64 { return min(o.MaxBytes/4, MaxSegmentBytes) }
