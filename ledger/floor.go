package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/tallystick/tallystick/ledger/chain"
)

// Errors of a partition that is not what was published of it. All halt it.
var (
	// ErrBelowCheckpoint says that a chain in the store is shorter than a signed
	// checkpoint that was published. Only a restore can lawfully bring that
	// about; then the partition is written in recovery.
	ErrBelowCheckpoint = errors.New("ledger: the store is below a published checkpoint")
	// ErrForked says that a chain in the store is another one than was published.
	ErrForked = errors.New("ledger: the store holds another chain than the published checkpoint")
	// ErrAltered says that what was published cannot be what was signed, so that
	// nothing can be held against it.
	ErrAltered = errors.New("ledger: a published checkpoint was altered")
	// ErrMissingRange says that recovery read the topic `events` to its end and
	// entries up to a published checkpoint are still missing.
	ErrMissingRange = errors.New("ledger: the log does not hold what the published checkpoint covers")
)

// errRecovered ends a partition's recovery: it is assigned anew, checked as any
// other, and then publishes what was held back.
var errRecovered = errors.New("ledger: replayed to the published checkpoint")

// Shortfall is a chain that is shorter than its newest published checkpoint.
type Shortfall struct {
	Tenant string
	Size   int64      // of the checkpoint
	Root   chain.Hash // of its tree
	Seq    int64      // of the head in the store, 0 when there is none
	Chain  chain.Hash // of that head
}

// String names what is missing, and both hashes.
func (s *Shortfall) String() string {
	return fmt.Sprintf("tenant %s: head %d (chain %x), published checkpoint %d (root %x)", s.Tenant, s.Seq, s.Chain, s.Size, s.Root)
}

// Floor knows what was published of the chains, in whatever a restore of the
// store does not roll back.
type Floor interface {
	// Check holds every chain of the partition against its newest published
	// checkpoint. It returns the chains that are shorter, ErrForked for one that
	// has another root at the checkpoint's size, and ErrAltered.
	Check(ctx context.Context, partition, partitions int32) ([]Shortfall, error)
}

// Recovery is what writing a partition below its checkpoints needs beside the
// operator's word for it.
type Recovery interface {
	// Begin records, durably and in the audit log, that the partition is being
	// replayed; from then on nothing of it is served.
	Begin(ctx context.Context, partition int32, epoch int64, short []Shortfall) error
	// End records that the roots are equal again. It is called at every
	// assignment of a partition that is not in recovery.
	End(ctx context.Context, partition int32) error
	// EndOffset is the offset behind the last record of the partition of `events`.
	EndOffset(ctx context.Context, partition int32) (int64, error)
}

// recovering is a partition that is replayed after a restore: it commits and
// publishes nothing until every chain has reached its checkpoint.
type recovering struct {
	recovery  Recovery
	partition int32

	mu   sync.Mutex // protects what follows
	left map[string]*Shortfall
}

// standing checks a partition that was just assigned. A nil recovering means
// that nothing published is undercut.
func (w *Writer) standing(ctx context.Context, topic Topic, partition int32, st *State, log *slog.Logger) (*recovering, error) {
	if w.opts.Floor == nil {
		return nil, nil
	}
	short, err := w.opts.Floor.Check(ctx, partition, topic.Partitions)
	if err != nil {
		return nil, fmt.Errorf("hold against the published checkpoints: %w", err)
	}
	if len(short) == 0 {
		if w.opts.Recovery != nil {
			if err := w.opts.Recovery.End(ctx, partition); err != nil {
				return nil, fmt.Errorf("end recovery: %w", err)
			}
		}
		return nil, nil
	}
	if w.opts.Recovery == nil || !w.opts.Recover {
		return nil, fmt.Errorf("%w: %s; and %d more. If the store was restored from a backup, start with ledger.recover", ErrBelowCheckpoint, &short[0], len(short)-1)
	}
	if err := w.opts.Recovery.Begin(ctx, partition, st.Epoch, short); err != nil {
		return nil, fmt.Errorf("begin recovery: %w", err)
	}
	r := &recovering{recovery: w.opts.Recovery, partition: partition, left: make(map[string]*Shortfall, len(short))}
	for i := range short {
		r.left[short[i].Tenant] = &short[i]
		log.LogAttrs(ctx, slog.LevelWarn, "ledger partition is in recovery", slog.String("tenant", short[i].Tenant),
			slog.Int64("seq", short[i].Seq), slog.Int64("checkpoint", short[i].Size))
	}
	return r, nil
}

// committed notes a batch. It is true when every chain has reached its checkpoint.
func (r *recovering) committed(b *Batch) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range b.Groups {
		if s := r.left[b.Groups[i].After.Tenant]; s != nil && b.Groups[i].After.Seq >= s.Size {
			delete(r.left, s.Tenant)
		}
	}
	return len(r.left) == 0
}

// complete reports whether every chain has reached its checkpoint.
func (r *recovering) complete() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.left) == 0
}

// idle is asked when no record came for a while and no batch is in hand: at the
// end of the log nothing can fill what is missing.
func (r *recovering) idle(ctx context.Context, next int64) error {
	end, err := r.recovery.EndOffset(ctx, r.partition)
	if err != nil || next < end {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.left {
		return fmt.Errorf("%w: %s; partition %d is read to its end at offset %d", ErrMissingRange, s, r.partition, end)
	}
	return nil
}
