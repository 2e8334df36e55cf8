package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger"
)

const (
	// committing is how long a look-up waits for events that the ledger's writer has
	// before it, and committingPause how often it looks.
	committing      = 5 * time.Second
	committingPause = 50 * time.Millisecond
)

// loggedCalls answers which of the calls that a provider logged the metering proxy has
// metered, of all whose events the log had at some time: those that are not in the
// ledger yet, and of these not in ClickHouse, are waited for.
type loggedCalls struct {
	metered *analytics.Metered
	app     *postgres.DB // as postgres.RoleApp
	topic   ledger.Topic // of the events
	ends    func(context.Context) ([]int64, error)
	wait    time.Duration

	mu   sync.Mutex // protects seen
	seen map[tenant.ID]reached
}

// reached says that what the log had at a time is in ClickHouse, and up to which entry.
type reached struct {
	at     time.Time
	stored int64
}

var _ bedrock.Calls = (*loggedCalls)(nil)

// Calls implements bedrock.Calls. The error is analytics.ErrBehind where the stages are.
func (l *loggedCalls) Calls(ctx context.Context, id tenant.ID, requests []string, first, last, asOf time.Time) (map[string]int64, error) {
	// Calls that ended before need nothing that came later, so old logs wait once.
	if ended := last.Add(analytics.LongestCall); ended.Before(asOf) {
		asOf = ended
	}
	stored, err := l.reach(ctx, id, asOf)
	if err != nil {
		return nil, err
	}
	return l.metered.Calls(ctx, id, stored, requests, first, last)
}

// reach waits until what the log had at asOf is in ClickHouse, if it was not seen there
// before, and returns up to which entry it is.
func (l *loggedCalls) reach(ctx context.Context, id tenant.ID, asOf time.Time) (int64, error) {
	l.mu.Lock()
	seen, ok := l.seen[id]
	l.mu.Unlock()
	if ok && !seen.at.Before(asOf) {
		return seen.stored, nil
	}
	now := reached{at: time.Now()}
	err := l.written(ctx, id)
	if err == nil {
		now.stored, err = l.metered.CaughtUp(ctx, id)
	}
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[tenant.ID]reached{}
	}
	l.seen[id] = now
	return now.stored, nil
}

// written waits until the ledger's writer has done what the tenant's partition has now.
func (l *loggedCalls) written(ctx context.Context, id tenant.ID) error {
	ends, err := l.ends(ctx)
	if err != nil {
		return err
	}
	partition := id.Partition(int32(len(ends)))
	for deadline := time.Now().Add(l.wait); ; {
		next, err := l.next(ctx, partition)
		if err != nil || next >= ends[partition] {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: the ledger has %d of %d records of partition %d", analytics.ErrBehind, next, ends[partition], partition)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(committingPause):
		}
	}
}

// next is the offset that the ledger's writer goes on at, 0 for none yet.
func (l *loggedCalls) next(ctx context.Context, partition int32) (next int64, err error) {
	err = l.app.Tx(ctx, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select coalesce(max(next_offset), 0) from ledger.partition where partition = $1 and topic_id = $2`, partition, l.topic.ID).Scan(&next)
	})
	return next, err
}
