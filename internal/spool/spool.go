// Package spool is a queue on disk between something that must not lose what it
// took and something that may be away: the metering proxy and Kafka, the GPU
// agent and its gateway.
//
// It promises:
//
//   - What [Spool.Append] returned without an error survives kill -9 and a power
//     cut: the records were fsync'd before it returned. Appends that wait at the
//     same time share one write and one fsync. With [Options.SyncLate] the fsync
//     comes behind it, and a power cut takes what was appended meanwhile.
//   - Records come out in the order of their sequence numbers, without a gap,
//     until they are acknowledged ([Spool.Ack]). A record may come out again
//     after a crash: what reads a spool delivers at least once.
//   - A sequence number is used once in the life of a spool, whatever was
//     acknowledged or cut; a folder that was lost begins with another epoch.
//   - The folder never grows beyond [Options.MaxBytes]; then Append fails with
//     [ErrFull] and nothing of its records is kept.
//   - A tail that a crash left half-written is cut at [Open]. Damage anywhere
//     else is [ErrCorrupt] and nothing is thrown away.
//   - With [Options.Key] what lies on disk is AES-256-GCM, and a changed byte is
//     noticed as such.
//
// It never logs a record, never drops one to make room, and never reorders.
//
// [Log] puts a Kafka producer behind a spool, with the interface that the edge
// asks of Kafka itself. The layout on disk is described in docs/spool-format.md.
package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Spool is an open folder. Append may be called by many goroutines; Read and
// Ack belong to one reader at a time.
type Spool struct {
	dir  string
	opts Options
	lock *os.File
	root *os.File // the folder itself, to make names in it durable

	wake    chan struct{} // capacity 1: there is a group to write
	stop    chan struct{}
	stopped chan struct{} // closed when the writer has ended
	dirty   chan struct{} // capacity 1: with SyncLate, there is something to fsync
	synced  chan struct{} // closed when nothing is left to fsync and nobody will

	// writing is held by whoever writes a group; it is taken before files and mu.
	writing sync.Mutex

	// mu protects what follows. It is never held during I/O.
	mu       sync.Mutex
	closed   bool
	broken   error  // set for good when the state of the disk is not known
	pending  *group // what the next write will hold; never nil
	inflight *group // what is being written, or nil
	spare    []byte // the buffer of the group before, for the next one
	segments []*segment
	last     uint64 // newest durable sequence number
	acked    uint64
	bytes    int64 // of all segments on disk
	reserved int64 // promised to pending and inflight
	marks    []mark

	// acks lets one Ack at a time remove segments; it is taken before files and mu.
	acks sync.Mutex
	// files lets nobody close a segment that is being read.
	files sync.RWMutex

	cursor *cursor
	epoch  uint64
}

// mark says when a sequence number was appended; there is one a second at most.
type mark struct {
	seq uint64
	ms  int64
}

// group is what one write and one fsync make durable.
type group struct {
	buf   []byte // room for the frame's header, then the records
	count int
	room  int64 // reserved for it
	first uint64
	err   error
	done  chan struct{} // closed after first and err are set
}

func newGroup(buf []byte) *group {
	if cap(buf) < frameHeaderBytes {
		buf = make([]byte, 0, 64<<10)
	}
	return &group{buf: buf[:frameHeaderBytes], done: make(chan struct{})}
}

// Stats say how a spool is at one moment.
type Stats struct {
	// Records are appended and not yet acknowledged.
	Records uint64
	// Bytes are on disk; MaxBytes is their bound. Acknowledged records are
	// removed by whole segments, so Bytes falls in steps.
	Bytes, MaxBytes int64
	// Last is the newest durable sequence number, Acked the newest acknowledged.
	Last, Acked uint64
	// Oldest is when the oldest unacknowledged record was appended, exact to a
	// second; zero when there is none.
	Oldest time.Time
	// Segments is how many files there are.
	Segments int
}

// Open makes the folder or opens what is in it, checks every record, and cuts
// what a crash left half-written. One process has a spool open at a time:
// [ErrLocked].
func Open(dir string, opts Options) (*Spool, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		dir: dir, opts: opts, lock: lock,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
		dirty: make(chan struct{}, 1), synced: make(chan struct{}),
		pending: newGroup(nil),
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	go s.write()
	if opts.SyncLate {
		go s.syncLate()
	} else {
		close(s.synced)
	}
	return s, nil
}

// load reads what is in the folder.
func (s *Spool) load() error {
	root, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	s.root = root
	if s.cursor, err = openCursor(filepath.Join(s.dir, cursorName)); err != nil {
		return err
	}
	names, err := segmentNames(s.dir)
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := s.loadSegment(name, i == len(names)-1); err != nil {
			return err
		}
	}
	return s.settle()
}

// loadSegment adds one file. The newest may have a torn tail, which is cut, or
// nothing of use at all, and then it is removed.
func (s *Spool) loadSegment(name string, newest bool) error {
	path := filepath.Join(s.dir, name)
	seg, found, err := openSegment(path, s.opts.Key, newest, s.opts.SyncLate)
	if err != nil {
		return err
	}
	if seg == nil {
		s.opts.Log.Warn("spool: removed a segment that a crash left without a record", "segment", name)
		return os.Remove(path)
	}
	if found.torn > 0 {
		s.opts.Log.Warn("spool: cut a half-written tail", "segment", name, "bytes", found.torn, "at", seg.size)
		if err := errors.Join(seg.f.Truncate(seg.size), s.opts.disk.Sync(seg.f)); err != nil {
			return errors.Join(fmt.Errorf("spool: cut %s: %w", name, err), seg.f.Close())
		}
	}
	if seg.last < seg.first { // a header and no frame
		return errors.Join(seg.f.Close(), os.Remove(path))
	}
	s.segments = append(s.segments, seg)
	s.bytes += seg.size
	for _, m := range found.marks {
		s.mark(m.seq, m.ms)
	}
	return nil
}

// settle checks that the segments and the cursor tell one story.
func (s *Spool) settle() error {
	s.epoch = s.cursor.epoch
	if n := len(s.segments); n > 0 {
		s.epoch = s.segments[n-1].epoch
	}
	if s.epoch == 0 {
		s.epoch = uint64(s.opts.Now().UnixNano())
	}
	if s.cursor.epoch != s.epoch {
		s.cursor.note = [NoteBytes]byte{} // another numbering's
	}
	if s.cursor.epoch == s.epoch {
		s.acked = s.cursor.seq
	} else if len(s.segments) > 0 {
		// The cursor is lost: everything that is here comes out again.
		s.acked = s.segments[0].first - 1
	}
	s.last = s.acked
	for i, seg := range s.segments {
		// Before the first segment there must be only what is acknowledged, and
		// between two of them as well: a cut tail loses only such records.
		before := s.acked
		if i > 0 {
			before = max(before, s.segments[i-1].last)
		}
		if seg.first > before+1 {
			return fmt.Errorf("%w: records %d to %d are missing before %s", ErrCorrupt, before+1, seg.first-1, seg.name())
		}
		if seg.epoch != s.epoch || (i > 0 && seg.first <= s.segments[i-1].last) {
			return fmt.Errorf("%w: %s does not follow the segment before it", ErrCorrupt, seg.name())
		}
		s.last = max(s.last, seg.last)
	}
	if err := s.cursor.set(s.epoch, s.acked, nil); err != nil {
		return err
	}
	return s.release(s.acked)
}

// Epoch identifies the spool's numbering: when its folder was first made, in
// nanoseconds since 1970. Sequence numbers of one epoch are never used twice.
func (s *Spool) Epoch() uint64 { return s.epoch }

// Append makes the records durable and returns the sequence number of the
// first; the others follow it. It copies them.
//
// Errors: [ErrFull] when there is no room, [ErrTooLarge] when there never is,
// [ErrClosed], [ErrBroken], or the disk's own; nothing of the records is kept
// then. When ctx ends first they may be kept or not: its cause is returned.
func (s *Spool) Append(ctx context.Context, records [][]byte) (first uint64, err error) {
	if len(records) == 0 {
		return 0, nil
	}
	size := int64(0)
	for _, r := range records {
		size += int64(recordOverhead + len(r))
	}
	g, rel, err := s.join(ctx, size, func(g *group) {
		for _, r := range records {
			g.buf = appendRecord(g.buf, r)
		}
		g.count += len(records)
	})
	if err != nil {
		return 0, err
	}
	return g.wait(ctx, rel)
}

// join finds room in the group that is written next and has add put the
// records there. rel is how many records of others are before them.
func (s *Spool) join(ctx context.Context, size int64, add func(*group)) (g *group, rel int, err error) {
	if size > s.opts.maxAppend() {
		return nil, 0, fmt.Errorf("%w: %d bytes in one call; at most %d", ErrTooLarge, size, s.opts.maxAppend())
	}
	for {
		s.mu.Lock()
		g = s.pending
		if err := s.refuse(size); err != nil {
			s.mu.Unlock()
			return nil, 0, err
		}
		if g.count == 0 || int64(len(g.buf))+size <= maxGroupBytes {
			break
		}
		s.mu.Unlock()
		// The group is full of others' records: wait for it to be written.
		select {
		case <-g.done:
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
	room := size + frameOverhead + segmentHeaderBytes
	rel = g.count
	add(g)
	g.room += room
	s.reserved += room
	s.mu.Unlock()
	if s.opts.SyncLate && s.writing.TryLock() {
		// Without an fsync a write is shorter than to have another goroutine make it.
		s.flush()
		s.writing.Unlock()
		return g, rel, nil
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return g, rel, nil
}

// refuse says why size bytes cannot be taken now, or nil. mu is held.
func (s *Spool) refuse(size int64) error {
	switch {
	case s.closed:
		return ErrClosed
	case s.broken != nil:
		return s.broken
	case s.bytes+s.reserved+size+frameOverhead+segmentHeaderBytes > s.opts.MaxBytes:
		return ErrFull
	}
	return nil
}

// wait returns when the group is durable or has failed.
func (g *group) wait(ctx context.Context, rel int) (uint64, error) {
	select {
	case <-g.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if g.err != nil {
		return 0, g.err
	}
	return g.first + uint64(rel), nil
}

// Ack says that the records up to and including through need not be kept. It
// is remembered through a kill of the process; a power cut may forget the
// newest, whose records then come out again. It is an error to acknowledge what
// was never appended.
func (s *Spool) Ack(through uint64) error { return s.ack(through, nil) }

// AckNote is Ack and keeps the note in the same write, so that the note always
// belongs to what is acknowledged. An older acknowledgement keeps the note too.
func (s *Spool) AckNote(through uint64, note [NoteBytes]byte) error { return s.ack(through, &note) }

// Note is what AckNote kept last, zeros if nothing: a place for its owner's
// counts, as durable as acknowledgements are. It is empty in a new epoch.
func (s *Spool) Note() [NoteBytes]byte {
	s.cursor.mu.Lock()
	defer s.cursor.mu.Unlock()
	return s.cursor.note
}

func (s *Spool) ack(through uint64, note *[NoteBytes]byte) error {
	s.acks.Lock()
	defer s.acks.Unlock()
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return ErrClosed
	case through > s.last:
		last := s.last
		s.mu.Unlock()
		return fmt.Errorf("spool: %d acknowledged, the newest record is %d", through, last)
	case through <= s.acked:
		through = s.acked
		s.mu.Unlock()
		return s.cursor.set(s.epoch, through, note)
	}
	s.acked = through
	for len(s.marks) > 1 && s.marks[1].seq <= through+1 {
		s.marks = s.marks[1:]
	}
	s.mu.Unlock()
	if err := s.cursor.set(s.epoch, through, note); err != nil {
		return err
	}
	return s.release(through)
}

// release removes the segments that hold only acknowledged records, but not the
// one that is written. The cursor is durable before: were it not, a power cut
// could leave neither segment nor cursor, and sequence numbers would come twice.
func (s *Spool) release(through uint64) error {
	s.mu.Lock()
	n := 0
	for n < len(s.segments) && s.segments[n].last <= through && !s.segments[n].active {
		n++
	}
	gone := s.segments[:n:n]
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	if err := s.cursor.sync(s.opts.disk); err != nil {
		return err
	}
	s.files.Lock()
	defer s.files.Unlock()
	var errs []error
	freed := int64(0)
	for _, seg := range gone {
		errs = append(errs, seg.f.Close(), ignoreMissing(os.Remove(filepath.Join(s.dir, seg.name()))))
		freed += seg.size
	}
	s.mu.Lock()
	s.segments = s.segments[n:]
	s.bytes -= freed
	s.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("spool: remove what was acknowledged: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mark notes when seq was appended. mu is held, or nobody else knows s.
func (s *Spool) mark(seq uint64, ms int64) {
	if n := len(s.marks); n == 0 || ms-s.marks[n-1].ms >= 1000 {
		s.marks = append(s.marks, mark{seq, ms})
	}
}

// Stats are exact at some moment during the call.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Records: s.last - s.acked, Bytes: s.bytes, MaxBytes: s.opts.MaxBytes,
		Last: s.last, Acked: s.acked, Segments: len(s.segments),
	}
	if st.Records > 0 {
		// The newest mark that is not after the oldest record.
		for _, m := range s.marks {
			if m.seq > s.acked+1 && !st.Oldest.IsZero() {
				break
			}
			st.Oldest = time.UnixMilli(m.ms)
		}
	}
	return st
}

// Close writes what was appended, then closes the files. Appends that come
// later fail with [ErrClosed]. It may be called twice.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.stopped
		<-s.synced
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.stopped
	<-s.synced
	return errors.Join(s.cursor.sync(s.opts.disk), s.closeFiles())
}

// closeFiles closes whatever is open; the lock last.
func (s *Spool) closeFiles() error {
	s.files.Lock()
	defer s.files.Unlock()
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.f.Close())
	}
	if s.cursor != nil {
		errs = append(errs, s.cursor.f.Close())
	}
	if s.root != nil {
		errs = append(errs, s.root.Close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}
