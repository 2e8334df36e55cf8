package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// write is the goroutine that writes: it takes whatever waits, writes it
// with one fsync, and only then wakes those who wait for it. With SyncLate an
// append that finds nobody writing writes itself.
func (s *Spool) write() {
	defer close(s.stopped)
	for {
		select {
		case <-s.wake:
			s.writing.Lock()
			s.flush()
			s.writing.Unlock()
		case <-s.stop:
			s.writing.Lock()
			s.flush()
			s.writing.Unlock()
			return
		}
	}
}

// flush writes the waiting group, if there is one. writing is held. It returns when nothing
// waits or the group was written; who joined meanwhile has set wake again.
func (s *Spool) flush() {
	s.mu.Lock()
	g := s.pending
	if g.count == 0 {
		s.mu.Unlock()
		return
	}
	s.pending, s.inflight, s.spare = newGroup(s.spare), g, nil
	err := s.broken
	s.mu.Unlock()
	if err == nil {
		err = s.commit(g)
	}
	s.mu.Lock()
	g.err = err
	s.reserved -= g.room
	s.inflight = nil
	if cap(g.buf) <= 2*maxGroupBytes { // one huge call does not pin its memory
		s.spare = g.buf
	}
	g.buf = nil
	s.mu.Unlock()
	close(g.done)
}

// commit makes the group durable and gives it its numbers.
func (s *Spool) commit(g *group) error {
	seg, err := s.active()
	if err != nil {
		return s.failed(nil, err)
	}
	ms := s.opts.Now().UnixMilli()
	first := s.last + 1 // only who holds writing moves last
	frame := seg.frame(g.buf, first, g.count, ms)
	g.buf = frame
	err = s.opts.disk.WriteAt(seg.f, frame, seg.size)
	if err == nil && !s.opts.SyncLate {
		err = s.opts.disk.Sync(seg.f)
	}
	if err != nil {
		return s.failed(seg, err)
	}
	if s.opts.SyncLate {
		select {
		case s.dirty <- struct{}{}:
		default:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.first = first
	s.last = first + uint64(g.count) - 1
	seg.last = s.last
	seg.size += int64(len(frame))
	s.bytes += int64(len(frame))
	s.mark(first, ms)
	return nil
}

// active is the segment that is written, begun anew when it is full. What was
// open before this process is never written again: its frames' nonces are used.
func (s *Spool) active() (*segment, error) {
	s.mu.Lock()
	var seg, full *segment
	if n := len(s.segments); n > 0 && s.segments[n-1].active {
		seg = s.segments[n-1]
	}
	last := s.last
	if seg != nil && seg.size >= s.opts.SegmentBytes {
		seg, full = nil, seg
	}
	s.mu.Unlock()
	if seg != nil {
		return seg, nil
	}
	if full != nil {
		// What the next segment holds must not outlive what came before it.
		if err := s.sync(full); err != nil {
			return nil, err
		}
		s.mu.Lock()
		full.active = false
		s.mu.Unlock()
	}
	seg, err := createSegment(s.dir, s.root, last+1, s.epoch, s.opts.Key, s.opts.Now().UnixMilli(), s.opts.disk)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = append(s.segments, seg)
	s.bytes += segmentHeaderBytes
	return seg, nil
}

// sync makes durable what was written late. It does nothing without SyncLate.
func (s *Spool) sync(seg *segment) error {
	if !s.opts.SyncLate {
		return nil
	}
	s.files.RLock() // nobody may close it meanwhile
	defer s.files.RUnlock()
	s.mu.Lock()
	gone := len(s.segments) == 0 || s.segments[len(s.segments)-1] != seg
	s.mu.Unlock()
	if gone {
		return nil
	}
	return s.opts.disk.Sync(seg.f)
}

// lateInterval is the pause between two fsyncs behind the writer: one for every
// call would cost more than the call.
const lateInterval = 2 * time.Millisecond

// syncLate is the one goroutine that fsyncs behind the writer. When the disk fails,
// what was promised may not hold: the spool takes nothing more.
func (s *Spool) syncLate() {
	defer close(s.synced)
	for last := false; !last; {
		select {
		case <-s.dirty:
		case <-s.stopped:
			last = true
		}
		s.mu.Lock()
		var seg *segment
		if n := len(s.segments); n > 0 && s.segments[n-1].active {
			seg = s.segments[n-1]
		}
		s.mu.Unlock()
		if seg == nil {
			continue
		}
		if err := s.sync(seg); err != nil {
			s.mu.Lock()
			s.broken = fmt.Errorf("%w: fsync: %w", ErrBroken, err)
			s.mu.Unlock()
			s.opts.Log.Error("spool: broken", "err", err)
		}
		select {
		case <-time.After(lateInterval):
		case <-s.stopped:
		}
	}
}

// failed takes back what a failed write may have left, so that only its own
// callers fail, and translates the disk's error. When it cannot, the spool is
// broken: what is on disk is not known, and nothing is promised upon it.
func (s *Spool) failed(seg *segment, cause error) error {
	if errors.Is(cause, syscall.ENOSPC) || errors.Is(cause, syscall.EDQUOT) {
		cause = fmt.Errorf("%w: %w", ErrFull, cause)
	} else {
		cause = fmt.Errorf("spool: write: %w", cause)
	}
	if seg == nil {
		s.opts.Log.Error("spool: cannot begin a segment", "err", cause)
		return cause
	}
	var undo error
	if seg.last < seg.first {
		undo = s.drop(seg)
	} else if undo = seg.f.Truncate(seg.size); undo == nil {
		undo = s.opts.disk.Sync(seg.f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The next write begins a new segment, with another key: a nonce of this one
	// may be on disk already.
	seg.active = false
	if undo != nil {
		s.broken = fmt.Errorf("%w: %w", ErrBroken, undo)
		s.opts.Log.Error("spool: broken", "err", errors.Join(cause, undo))
		return errors.Join(cause, s.broken)
	}
	s.opts.Log.Error("spool: a write failed and was taken back", "err", cause)
	return cause
}

// drop removes the newest segment, which has no record.
func (s *Spool) drop(seg *segment) error {
	s.mu.Lock()
	s.segments = s.segments[:len(s.segments)-1]
	s.bytes -= segmentHeaderBytes
	s.mu.Unlock()
	return errors.Join(seg.f.Close(), os.Remove(filepath.Join(s.dir, seg.name())))
}
