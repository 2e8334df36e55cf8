package ledger

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

// order asks for a turn for each, gives the first turn back, and then each as it
// is granted; it returns the partitions as they came.
func order(t *testing.T, n int, asks ...*turn) []int32 {
	t.Helper()
	s := newTurns(n)
	var waiting []*turn
	for _, a := range asks {
		waiting = append(waiting, s.join(t.Context(), a.partition, a.oldest))
	}
	var came []int32
	for len(waiting) > 0 {
		i := slices.IndexFunc(waiting, func(w *turn) bool { return w.come.Err() != nil })
		if i < 0 {
			t.Fatalf("%d wait and nobody's turn came", len(waiting))
		}
		if !s.wait(waiting[i]) {
			t.Fatal("a granted turn was not given")
		}
		came = append(came, waiting[i].partition)
		p := waiting[i].partition
		waiting = slices.Delete(waiting, i, i+1)
		s.release(p)
	}
	if s.free != n || len(s.waiting) != 0 {
		t.Errorf("%d of %d turns are free, %d wait", s.free, n, len(s.waiting))
	}
	return came
}

func TestTheOldestRecordGoesFirst(t *testing.T) {
	got := order(t, 1, &turn{partition: 0, oldest: 50}, &turn{partition: 1, oldest: 40}, &turn{partition: 2, oldest: 10}, &turn{partition: 3, oldest: 10})
	if want := []int32{0, 2, 3, 1}; !slices.Equal(got, want) {
		t.Errorf("came %v, want %v", got, want)
	}
}

func TestAPartitionFarBehindLeavesATurnToOthers(t *testing.T) {
	s := newTurns(2)
	behind := s.join(t.Context(), 7, 1)
	fresh := s.join(t.Context(), 8, 1000)
	again := s.join(t.Context(), 7, 2)
	other := s.join(t.Context(), 9, 2000)
	if !s.wait(behind) || !s.wait(fresh) || again.come.Err() != nil || other.come.Err() != nil {
		t.Fatal("two turns are not the first two's")
	}
	s.release(8)
	if other.come.Err() == nil || again.come.Err() != nil {
		t.Error("the second turn went to the partition that has one, while another waits")
	}
	s.release(9)
	if again.come.Err() == nil {
		t.Error("a partition does not get a free turn that nobody else wants")
	}
	s.release(7)
	s.release(7)
	if s.free != 2 {
		t.Errorf("%d turns are free", s.free)
	}
}

func TestATurnIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurns(1)
		first := s.join(t.Context(), 0, 1)
		ctx, cancel := context.WithCancel(t.Context())
		second := s.join(ctx, 1, 2)
		third := s.join(t.Context(), 2, 3)
		done := make(chan bool)
		go func() { done <- s.wait(second) }()
		synctest.Wait()
		cancel()
		if <-done {
			t.Error("a turn was given that never came")
		}
		s.leave(first) // granted: it goes to the next
		if !s.wait(third) {
			t.Error("the turn that was given up is lost")
		}
		s.release(2)
		if s.free != 1 || len(s.waiting) != 0 {
			t.Errorf("%d turns are free, %d wait", s.free, len(s.waiting))
		}
	})
}
