package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/kafka"
)

// broker is a producer that fails as its test tells it, and keeps what it took.
type broker struct {
	mu    sync.Mutex
	fails func(kafka.Record) error
	took  []kafka.Record
	calls int
}

func (b *broker) ProduceBatch(_ context.Context, recs []kafka.Record, results []kafka.Result) (first error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	for i, r := range recs {
		results[i] = kafka.Result{Offset: int64(len(b.took))}
		if b.fails != nil {
			if err := b.fails(r); err != nil {
				results[i] = kafka.Result{Offset: -1, Err: err}
				first = errors.Join(first, err)
				continue
			}
		}
		// A record whose acknowledgement is lost is kept all the same.
		r.Value = bytes.Clone(r.Value)
		b.took = append(b.took, r)
	}
	return first
}

// running starts a log's shipper and stops it at the test's end.
func running(t *testing.T, l *Log) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func event(partition int32, value string) kafka.Record {
	return kafka.Record{
		Topic: "events", Partition: partition, TimestampMs: 1_700_000_000_000, Key: []byte{byte(partition)}, Value: []byte(value),
		Headers: []kafka.Header{{Key: "h", Value: []byte("1")}},
	}
}

func TestLogCarriesRecordsOn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Key: key})
	to := &broker{}
	l := NewLog(s, to, LogOptions{})
	recs := []kafka.Record{event(3, "a"), event(4, "b")}
	results := make([]kafka.Result, 2)
	if err := l.ProduceBatch(t.Context(), recs, results); err != nil || results[0].Err != nil || results[1].Offset != -1 {
		t.Fatal(err, results)
	}
	if to.calls != 0 || l.Stats().Records != 2 {
		t.Errorf("before Run: %d calls, %+v", to.calls, l.Stats())
	}
	running(t, l)
	if left, err := l.Drain(t.Context()); left != 0 || err != nil {
		t.Fatal(left, err)
	}
	if fmt.Sprint(to.took) != fmt.Sprint(recs) {
		t.Errorf("shipped %v, want %v", to.took, recs)
	}
	if st := l.Stats(); st.Shipped != 2 || st.Records != 0 || st.Err != nil {
		t.Errorf("%+v", st)
	}
}

// TestLogWaitsForKafka keeps Kafka away for an hour: nothing is lost, the
// pauses grow, and what was taken meanwhile arrives in order.
func TestLogWaitsForKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), Options{})
		back := time.Now().Add(time.Hour)
		to := &broker{fails: func(kafka.Record) error {
			if time.Now().Before(back) {
				return kafka.ErrUnacked
			}
			return nil
		}}
		l := NewLog(s, to, LogOptions{})
		running(t, l)
		for i := range 60 {
			if err := l.ProduceBatch(t.Context(), []kafka.Record{event(1, fmt.Sprint(i))}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Second)
		}
		if st := l.Stats(); st.Records != 60 || !errors.Is(st.Err, kafka.ErrUnacked) || time.Since(st.Oldest) != 30*time.Minute {
			t.Errorf("while Kafka is away: %+v", st)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if left, err := l.Drain(ctx); left != 60 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drained with Kafka away: %d left, %v", left, err)
		}
		if _, err := l.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, r := range to.took {
			if string(r.Value) != fmt.Sprint(i) {
				t.Errorf("place %d: %s", i, r.Value)
			}
		}
		if len(to.took) != 60 || to.calls > 3000 {
			t.Errorf("%d records in %d calls", len(to.took), to.calls)
		}
	})
}

func TestLogAnswersLikeKafka(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxBytes: MinMaxBytes})
	l := NewLog(s, &broker{}, LogOptions{})
	big := event(1, string(make([]byte, MinMaxBytes/4)))
	results := make([]kafka.Result, 1)
	if err := l.ProduceBatch(t.Context(), []kafka.Record{big}, results); !errors.Is(err, kafka.ErrTooLarge) || !errors.Is(results[0].Err, kafka.ErrTooLarge) {
		t.Error(err, results)
	}
	var err error
	for err == nil {
		err = l.ProduceBatch(t.Context(), []kafka.Record{event(1, string(make([]byte, 30000)))}, results)
	}
	if !errors.Is(err, kafka.ErrFull) || !errors.Is(err, ErrFull) || !errors.Is(results[0].Err, kafka.ErrFull) {
		t.Error(err, results)
	}
	if err := l.ProduceBatch(t.Context(), []kafka.Record{event(1, "")}, make([]kafka.Result, 2)); err == nil {
		t.Error("two results for one record")
	}
	closeSpool(t, s)
	if err := l.ProduceBatch(t.Context(), []kafka.Record{event(1, "")}, nil); !errors.Is(err, kafka.ErrClosed) {
		t.Error(err)
	}
	if err := l.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLogKeepsOrderPerPartition fails random records of random attempts. Each
// partition's first sightings come in order, and none is missing.
func TestLogKeepsOrderPerPartition(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		synctest.Test(t, func(t *testing.T) {
			s := open(t, fmt.Sprintf("%s/%d", dir, n), Options{})
			failures := rapid.SliceOfN(rapid.IntRange(0, 9), 0, 40).Draw(rt, "failures")
			stuck := map[int32]bool{}
			calls := 0
			to := &broker{}
			to.fails = func(r kafka.Record) error {
				if to.calls != calls { // a new attempt
					calls = to.calls
					clear(stuck)
				}
				if len(failures) > 0 && !stuck[r.Partition] {
					stuck[r.Partition] = failures[0] == 0
					failures = failures[1:]
				}
				if stuck[r.Partition] { // as Kafka's client does, with those behind it
					return kafka.ErrUnacked
				}
				return nil
			}
			l := NewLog(s, to, LogOptions{ShipBytes: 100})
			want := map[int32][]string{}
			for i := range rapid.IntRange(1, 60).Draw(rt, "records") {
				r := event(rapid.Int32Range(0, 3).Draw(rt, "partition"), fmt.Sprint(i))
				want[r.Partition] = append(want[r.Partition], string(r.Value))
				if err := l.ProduceBatch(t.Context(), []kafka.Record{r}, nil); err != nil {
					t.Fatal(err)
				}
			}
			running(t, l)
			if _, err := l.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := map[int32][]string{}
			for _, r := range to.took {
				got[r.Partition] = append(got[r.Partition], string(r.Value))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				rt.Errorf("shipped %v, want %v", got, want)
			}
		})
	})
}
