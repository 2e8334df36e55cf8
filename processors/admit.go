package processors

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/ledger/chain"
)

// admit takes a partition in: what an earlier owner left undone is finished,
// ClickHouse is compared with the checkpoint, and the state is restored. It
// runs on the storer's goroutine; an error that does not halt is for trying
// again from the beginning.
func (st *storer) admit(ctx context.Context, p *partition) error {
	cp, err := st.r.store.Checkpoint(ctx, p.id)
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	if cp.Open != "" {
		if err := st.settle(ctx, cp.Open); err != nil {
			return fmt.Errorf("settle plan %s: %w", cp.Open, err)
		}
		if cp, err = st.r.store.Checkpoint(ctx, p.id); err != nil {
			return fmt.Errorf("read checkpoint: %w", err)
		}
		if cp.Open != "" {
			return fmt.Errorf("%w: partition %d has plan %s open", ErrFenced, p.id, cp.Open)
		}
	}
	if err := st.compare(ctx, p.id, cp); err != nil {
		return err
	}
	s := st.settled[p.id]
	delete(st.settled, p.id)
	if s == nil || s.commit != cp.Commit {
		if s, err = st.restore(ctx, p.id, cp.Commit); err != nil {
			return err
		}
	}
	if old := st.members[p.id]; old != nil {
		st.remove(old)
	}
	p.state, p.stored, p.seq = s, cp, newSequence(p.id, cp.Commit)
	p.snapshot, p.saved = time.Now(), s.kept
	p.topic.Store(&cp.Resume.Topic)
	p.stats.storedCommit.Store(cp.Commit)
	st.members[p.id] = p
	return nil
}

// compare halts rather than insert twice, or go on behind a hole.
func (st *storer) compare(ctx context.Context, partition int32, cp Checkpoint) error {
	largest, err := st.sink.Largest(ctx)
	if err != nil {
		if !st.sink.Transient(err) {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return err
	}
	switch at := largest[partition]; {
	case at > cp.Commit:
		return fmt.Errorf("%w: partition %d is stored up to commit %d, the checkpoint says %d", ErrAhead, partition, at, cp.Commit)
	case at < cp.Filled:
		return fmt.Errorf("%w: partition %d is stored up to commit %d, the checkpoint says %d", ErrBehind, partition, at, cp.Filled)
	}
	return nil
}

// settle finishes a plan that was recorded and perhaps stored. Its ranges are
// read again from the ledger, those of partitions that others have, too:
// storing them once more under the same token changes nothing.
func (st *storer) settle(ctx context.Context, id string) error {
	plan, err := st.r.store.Open(ctx, id)
	if err != nil || plan == nil {
		return err
	}
	st.log.LogAttrs(ctx, slog.LevelInfo, "settling a plan that was left open", slog.String("plan", id), slog.Int("partitions", len(plan.Ranges)))
	states := make([]*state, len(plan.Ranges))
	for i, rg := range plan.Ranges {
		if states[i], err = st.restore(ctx, rg.Partition, rg.From-1); err != nil {
			return err
		}
	}
	st.begin()
	for i, rg := range plan.Ranges {
		err := st.r.ledger.Frames(ctx, rg.Partition, rg.From, rg.To, func(f *chain.Frame) error { return st.apply(states[i], f) })
		if err != nil {
			return fmt.Errorf("read partition %d commits %d to %d: %w", rg.Partition, rg.From, rg.To, err)
		}
		states[i].commit = rg.To
	}
	if err := st.emit(states); err != nil {
		return err
	}
	if st.cover.rows > 0 {
		if err := st.sink.Store(ctx, plan); err != nil {
			if !st.sink.Transient(err) {
				return fmt.Errorf("%w: %w", ErrRefused, err)
			}
			return err
		}
	}
	if err := st.r.store.Confirm(ctx, plan, st.cover.list); err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	st.r.stats.settled.Add(1)
	clear(st.settled)
	st.settledAt = time.Now()
	for _, s := range states {
		st.settled[s.partition] = s
	}
	return nil
}

// release lets a partition go: what is not in a plan is forgotten, and its
// state is kept for the next owner. It runs on the storer's goroutine.
func (st *storer) release(ctx context.Context, p *partition) {
	if st.members[p.id] == p && p.stored.Commit > p.saved {
		st.save(ctx, p)
	}
	st.remove(p)
}
