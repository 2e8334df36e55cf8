package processors

import (
	"fmt"
	"strings"

	"github.com/tallystick/tallystick/internal/arena"
	"github.com/tallystick/tallystick/ledger/chain"
)

// place is where a frame stands in relation to what has been read.
type place uint8

const (
	placeNext place = iota // it is the next one
	placeSeen              // nothing of it is new
	placeGap               // something before it is missing
)

// sequence puts frames into commits. It is pure, and accepts a frame only as
// the next of its commit, of its partition and of its tenant's chain.
type sequence struct {
	partition int32
	batch     int64 // the commit that is read next or in part
	index     int32 // how many of its entries have been read
	total     int32 // entries of that commit, once one has been read
	cur       *commit
	// heads is the newest accepted entry of each tenant that was learnt.
	heads map[string]*head
	// undo is what heads were before the commit that is read in part.
	undo  []moved
	entry chain.Entry
}

type head struct{ seq int64 }

type moved struct {
	head   *head
	before int64
}

func newSequence(partition int32, stored int64) *sequence {
	return &sequence{partition: partition, batch: stored + 1, heads: make(map[string]*head), cur: &commit{}}
}

// done is the newest commit that is complete.
func (s *sequence) done() int64 { return s.batch - 1 }

// place compares a frame with what has been read.
func (s *sequence) place(f *chain.Frame) place {
	end := f.Index + int32(len(f.Entries))
	switch {
	case f.Batch < s.batch, f.Batch == s.batch && end <= s.index:
		return placeSeen
	case f.Batch == s.batch && f.Index == s.index && (s.index == 0 || f.Total == s.total):
		return placeNext
	default:
		return placeGap
	}
}

// abandon forgets a commit that was read in part.
func (s *sequence) abandon() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i].head.seq = s.undo[i].before
	}
	s.undo = s.undo[:0]
	s.index, s.total = 0, 0
	s.cur.reset()
}

// skip passes over commits before the given one, which are empty.
func (s *sequence) skip(batch int64) {
	if batch > s.batch {
		s.abandon()
		s.batch = batch
	}
}

// learn notes where a tenant's chain is stored.
func (s *sequence) learn(tenant string, seq int64) {
	s.heads[strings.Clone(tenant)] = &head{seq}
}

// accept takes the next frame into the commit in hand; its tenant must have
// been learnt. raw is the frame's encoding, or nil to make it. When complete is
// true the commit is; the caller takes it and puts an empty one in its place.
func (s *sequence) accept(f *chain.Frame, raw []byte) (complete bool, err error) {
	h := s.heads[f.Tenant]
	if err := s.check(f, h.seq+1); err != nil {
		return false, err
	}
	s.undo = append(s.undo, moved{h, h.seq})
	h.seq += int64(len(f.Entries))
	s.cur.number = f.Batch
	s.cur.add(f, raw)
	s.index += int32(len(f.Entries))
	s.total = f.Total
	if s.index < s.total {
		return false, nil
	}
	s.batch, s.index, s.total, s.undo = s.batch+1, 0, 0, s.undo[:0]
	return true, nil
}

// check reads every entry of the frame, so that whoever reads the commit later
// cannot fail, and one partition's bad entry never stops another's plan.
func (s *sequence) check(f *chain.Frame, want int64) error {
	bad := func(format string, args ...any) error {
		return &errDiscontinuity{commit: f.Batch, detail: fmt.Sprintf("tenant %s: ", f.Tenant) + fmt.Sprintf(format, args...)}
	}
	if f.FirstSeq != want {
		return bad("entry %d where %d is due", f.FirstSeq, want)
	}
	for i := range f.Entries {
		seq := f.FirstSeq + int64(i)
		if err := s.entry.Decode(f.Entries[i].Canonical); err != nil {
			return bad("entry %d: %v", seq, err)
		}
		if s.entry.Seq != seq || s.entry.Event.Tenant != f.Tenant {
			return bad("entry %d is entry %d of another place", seq, s.entry.Seq)
		}
	}
	return nil
}

// commit is the frames of one commit of the ledger, or, without any, the note
// that everything up to its number is empty.
type commit struct {
	number int64
	rows   int
	resume int64 // offset in `entries` after it
	bytes  int64 // of all frames
	list   [][]byte
	arena  arena.Arena // of the frames
}

// reset empties the commit and gives its memory back.
func (c *commit) reset() {
	c.arena.Reset()
	clear(c.list)
	c.number, c.rows, c.resume, c.bytes, c.list = 0, 0, 0, 0, c.list[:0]
}

// add copies a frame; raw is its encoding, or nil.
func (c *commit) add(f *chain.Frame, raw []byte) {
	var own []byte
	if raw != nil {
		own = c.arena.Copy(raw)
	} else {
		var w chain.FrameWriter
		w.Begin(c.arena.Open(0), f)
		for i := range f.Entries {
			w.Add(&f.Entries[i])
		}
		own = c.arena.Close(w.Finish())
	}
	c.list = append(c.list, own)
	c.bytes += int64(len(own))
	c.rows += len(f.Entries)
}

// frames calls fn with each frame, decoded into f.
func (c *commit) frames(f *chain.Frame, fn func(*chain.Frame) error) error {
	for _, raw := range c.list {
		if err := f.Decode(raw); err != nil {
			return fmt.Errorf("%w: our own copy of commit %d: %w", ErrCorrupt, c.number, err)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}
