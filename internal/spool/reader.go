package spool

import (
	"context"
	"fmt"
	"slices"
	"sort"
)

// Batch is a reader's memory: what the last [Spool.Read] gave it, and where the
// next one goes on. The zero value is ready. It belongs to one goroutine.
type Batch struct {
	// First is the sequence number of Records[0].
	First uint64
	// Records share the batch's memory until the next Read into it.
	Records [][]byte

	buf  []byte
	next uint64 // the record at offset off of the segment that begins with seg
	seg  uint64
	off  int64
}

// Last is the sequence number of the newest record, or 0.
func (b *Batch) Last() uint64 {
	if len(b.Records) == 0 {
		return 0
	}
	return b.First + uint64(len(b.Records)) - 1
}

// Read fills b with the records after the given sequence number, or after the
// newest acknowledged one if that is later. It waits until there is one or ctx
// ends, and stops adding after maxBytes or at the end of a segment; what one
// Append brought is never split.
func (s *Spool) Read(ctx context.Context, after uint64, maxBytes int, b *Batch) error {
	b.First, b.Records, b.buf = 0, b.Records[:0], b.buf[:0]
	for {
		if err := s.await(ctx, after); err != nil {
			return err
		}
		if done, err := s.readNow(after, maxBytes, b); done || err != nil {
			return err
		}
	}
}

// Wait returns once there is a record after the given one to read, or ctx ends.
func (s *Spool) Wait(ctx context.Context, after uint64) error { return s.await(ctx, after) }

// await returns once the record after after is durable.
func (s *Spool) await(ctx context.Context, after uint64) error {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		if max(after, s.acked) < s.last {
			s.mu.Unlock()
			return nil
		}
		g := s.pending
		if s.inflight != nil {
			g = s.inflight
		}
		s.mu.Unlock()
		select {
		case <-g.done:
		case <-s.stop:
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// readNow fills b from the segment that holds the record after after. It does
// nothing when an acknowledgement has just removed it.
func (s *Spool) readNow(after uint64, maxBytes int, b *Batch) (done bool, err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	s.mu.Lock()
	want := max(after, s.acked) + 1
	var seg *segment
	if want <= s.last && !s.closed {
		i := sort.Search(len(s.segments), func(i int) bool { return s.segments[i].last >= want })
		seg = s.segments[i]
	}
	s.mu.Unlock()
	if seg == nil {
		return false, nil
	}
	if b.next != want || b.seg != seg.first {
		b.seg, b.next, b.off = seg.first, seg.first, segmentHeaderBytes
	}
	return true, s.fill(seg, want, maxBytes, b)
}

// fill reads whole frames from b's place, passing over those before want.
func (s *Spool) fill(seg *segment, want uint64, maxBytes int, b *Batch) error {
	s.mu.Lock()
	size, newest := seg.size, seg.last
	s.mu.Unlock()
	var ends []int // of each frame's content within buf
	var heads []frameHead
	for b.next <= newest && len(b.buf) < max(maxBytes, 1) {
		h, err := b.head(seg, size)
		if err != nil {
			return err
		}
		if h.last() >= want {
			if err := b.content(seg, h); err != nil {
				return err
			}
			ends, heads = append(ends, len(b.buf)), append(heads, h)
		}
		b.next, b.off = h.last()+1, b.off+h.size()
	}
	return b.split(seg, want, heads, ends)
}

// head reads the header at b's place.
func (b *Batch) head(seg *segment, size int64) (frameHead, error) {
	var raw [frameHeaderBytes]byte
	if _, err := seg.f.ReadAt(raw[:], b.off); err != nil {
		return frameHead{}, b.damaged(seg, err)
	}
	h, err := seg.parseHead(raw[:])
	if err == nil && (h.first != b.next || b.off+h.size() > size) {
		err = errFrame
	}
	if err != nil {
		return frameHead{}, b.damaged(seg, err)
	}
	return h, nil
}

// content adds a frame's plain content to buf.
func (b *Batch) content(seg *segment, h frameHead) error {
	start := len(b.buf)
	b.buf = slices.Grow(b.buf, int(h.size()))
	raw := b.buf[start : start+int(h.size())]
	if _, err := seg.f.ReadAt(raw, b.off); err != nil {
		return b.damaged(seg, err)
	}
	plain, err := seg.content(h, raw)
	if err != nil {
		return b.damaged(seg, err)
	}
	b.buf = append(b.buf[:start], plain...)
	return nil
}

// split cuts buf into records, after it has its final place in memory.
func (b *Batch) split(seg *segment, want uint64, heads []frameHead, ends []int) (err error) {
	start := 0
	for i, h := range heads {
		if b.Records, err = splitRecords(b.Records, b.buf[start:ends[i]], h.count); err != nil {
			return b.damaged(seg, err)
		}
		start = ends[i]
	}
	b.First = heads[0].first
	if skip := want - b.First; skip > 0 {
		b.First, b.Records = want, b.Records[skip:]
	}
	return nil
}

// damaged forgets the place, so that the next Read begins at the segment's start.
func (b *Batch) damaged(seg *segment, err error) error {
	at := b.off
	*b = Batch{}
	return fmt.Errorf("%w: %s at byte %d: %w", ErrCorrupt, seg.name(), at, err)
}
