package ledger

import (
	"context"
	"slices"
	"sync"
)

// turns bounds how many batches are built and committed at once, over all
// partitions of a Writer. Of those that wait the one with the oldest record goes
// first: under a backlog all partitions are behind by the same time, however
// unevenly they are loaded, and none is left to drain alone. But a partition
// gets a second turn only when no other waits: one that is hours behind does
// not stop the others.
//
// The age decides only who waits. It is in no batch.
type turns struct {
	mu      sync.Mutex // protects all below, and every turn's granted
	free    int
	waiting []*turn       // in order of arrival
	held    map[int32]int // turns of each partition
}

// turn is a place among those who wait, and then a right to build and commit one
// batch.
type turn struct {
	// come ends when the turn is granted, or with the context of join.
	come      context.Context
	end       context.CancelFunc
	partition int32
	oldest    int64 // unix milliseconds
	granted   bool
}

func newTurns(n int) *turns { return &turns{free: n, held: make(map[int32]int)} }

// join asks for a turn for a batch of the partition whose oldest record has the
// given time.
func (s *turns) join(ctx context.Context, partition int32, oldest int64) *turn {
	t := &turn{partition: partition, oldest: oldest}
	t.come, t.end = context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, t)
	s.grant()
	return t
}

// wait returns true when the turn is granted, and false when the context of join
// ended before; then the place is given up.
func (s *turns) wait(t *turn) bool {
	<-t.come.Done()
	s.mu.Lock()
	granted := t.granted
	s.mu.Unlock()
	if !granted {
		s.leave(t)
	}
	return granted
}

// leave gives the place up, or the turn back.
func (s *turns) leave(t *turn) {
	t.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.granted {
		s.giveBack(t.partition)
		return
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(w *turn) bool { return w == t })
}

// release gives a turn of the partition back after the commit.
func (s *turns) release(partition int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack(partition)
}

// giveBack is release with mu held.
func (s *turns) giveBack(partition int32) {
	s.free++
	s.held[partition]--
	s.grant()
}

// grant gives out what is free. mu is held.
func (s *turns) grant() {
	for s.free > 0 && len(s.waiting) > 0 {
		first := 0
		for i := range s.waiting {
			if s.before(s.waiting[i], s.waiting[first]) {
				first = i
			}
		}
		t := s.waiting[first]
		s.waiting = slices.Delete(s.waiting, first, first+1)
		s.free--
		s.held[t.partition]++
		t.granted = true
		t.end()
	}
}

// before says whether a goes before b.
func (s *turns) before(a, b *turn) bool {
	if m, n := s.held[a.partition] > 0, s.held[b.partition] > 0; m != n {
		return n
	}
	return a.oldest < b.oldest
}
