package kafka

import (
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

// fetched is what the client would hand over for records at these offsets.
func fetched(offsets ...int64) kgo.Fetches {
	var recs []*kgo.Record
	for _, o := range offsets {
		recs = append(recs, &kgo.Record{Offset: o, Value: fmt.Append(nil, o)})
	}
	return kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "t", Partitions: []kgo.FetchPartition{{Records: recs}}}}}}
}

func TestHoleInOffsetsIsDataLoss(t *testing.T) {
	for _, tt := range []struct {
		name    string
		offsets []int64
		want    error
	}{
		{"in order", []int64{7, 8, 9}, nil},
		{"hole before", []int64{8, 9}, ErrDataLoss},
		{"hole inside", []int64{7, 9}, ErrDataLoss},
		{"backwards", []int64{7, 6}, ErrDataLoss},
		{"twice", []int64{7, 7}, ErrDataLoss},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &Reader{topic: "t", next: 7}
			if err := r.collect(fetched(tt.offsets...)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if tt.want != nil && len(r.out) != 0 {
				t.Errorf("%d records of a broken fetch would be delivered", len(r.out))
			}
		})
	}
}

// The buffer's room is taken whole or not at all, never exceeded, and comes
// back entirely.
func TestRoomIsAllOrNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := room{maxRecords: rapid.IntRange(1, 50).Draw(t, "maxRecords"), maxBytes: rapid.IntRange(1, 500).Draw(t, "maxBytes")}
		type batch struct{ n, size int }
		var held []batch
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "release") {
				r.release(held[0].n, held[0].size)
				held = held[1:]
				continue
			}
			b := batch{rapid.IntRange(1, 60).Draw(t, "n"), rapid.IntRange(0, 600).Draw(t, "size")}
			n, size := b.n, b.size
			for _, h := range held {
				n, size = n+h.n, size+h.size
			}
			err := r.reserve(b.n, b.size)
			switch {
			case b.n > r.maxRecords || b.size > r.maxBytes:
				if !errors.Is(err, ErrTooLarge) {
					t.Fatalf("never fits: %v", err)
				}
			case n > r.maxRecords || size > r.maxBytes:
				if !errors.Is(err, ErrFull) {
					t.Fatalf("no room: %v", err)
				}
			case err != nil:
				t.Fatalf("there is room: %v", err)
			default:
				held = append(held, b)
			}
		}
		for _, h := range held {
			r.release(h.n, h.size)
		}
		if r.records != 0 || r.bytes != 0 {
			t.Fatalf("left over: %d records, %d bytes", r.records, r.bytes)
		}
	})
}
