package ledger

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/tallystick/tallystick/internal/kafka"
)

// occupiedStore answers every commit as a store does whose unique index speaks.
type occupiedStore struct {
	Store
	commits int
}

func (s *occupiedStore) Assign(context.Context, Topic, int32) (State, error) {
	return State{Epoch: 1}, nil
}
func (s *occupiedStore) Heads(context.Context, []string) ([]Head, error)      { return nil, nil }
func (s *occupiedStore) Known(context.Context, []KeyRef) ([]KnownKey, error)  { return nil, nil }
func (s *occupiedStore) Published(context.Context, int32, int64, int64) error { return nil }
func (s *occupiedStore) Commit(context.Context, *Batch) error                 { s.commits++; return ErrExists }

// oneRecord is a log with one record that nobody can read.
type oneRecord struct{ given bool }

func (o *oneRecord) Open(context.Context, kafka.Position) (Reader, error) { return &oneRecord{}, nil }
func (o *oneRecord) CommitForLag(int64)                                   {}
func (o *oneRecord) Close()                                               {}
func (o *oneRecord) Next(ctx context.Context) ([]kafka.Record, error) {
	if !o.given {
		o.given = true
		return []kafka.Record{{Key: []byte("acme"), Value: []byte("x")}}, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// A batch whose rows exist already is tried again, because a commit of the last
// owner may have been under way; it is not tried for ever.
func TestRowsThatExistHaltInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &occupiedStore{}
		w := NewWriter(store, benchKeys{}, nil, kafka.Topics{}, Options{}, slog.New(slog.DiscardHandler))
		err := w.RunPartition(t.Context(), Topic{Partitions: 1}, 0, &oneRecord{})
		if !errors.Is(err, ErrRefused) || !errors.Is(err, ErrExists) {
			t.Errorf("the partition ends with %v, want ErrRefused for ErrExists", err)
		}
		if store.commits < maxExists {
			t.Errorf("%d commits were tried, want at least %d", store.commits, maxExists)
		}
	})
}
