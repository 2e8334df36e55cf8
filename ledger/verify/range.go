package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// chunkEntries is how many entries one worker checks at a time: enough that
// opening a cursor costs nothing, few enough that all workers end together.
const chunkEntries = 50_000

// Verify checks a range of a tenant's ledger in a store. The error is that of
// the context, or ErrRange; everything else is a verdict.
func Verify(ctx context.Context, src Source, o Options) (Report, error) {
	r := &Report{Tenant: o.Tenant, From: max(o.From, 1), MACsChecked: o.Keys != nil}
	return r.conclude(ctx, r.verify(ctx, src, o))
}

func (r *Report) verify(ctx context.Context, src Source, o Options) error {
	ends, err := src.Ends(ctx)
	if err != nil {
		return &missing{err}
	}
	whole := o.To == 0 || o.To >= ends.Seq
	r.src = src
	published, publishedErr := o.Published.open(o.Tenant)
	o.Checkpoints = slices.Concat(o.Checkpoints, published)
	switch {
	case !ends.HasHead && ends.LastSeq == 0 && len(o.Checkpoints) > 0:
		return o.rolledBack(0)
	case !ends.HasHead && ends.LastSeq == 0:
		return &missing{errNoTenant}
	case !ends.HasHead:
		r.To = ends.LastSeq
		return breakAt(ends.LastSeq+1, MissingAnchor, "there are entries up to %d and no head", ends.LastSeq)
	case o.From < 0 || o.To < 0 || o.To != 0 && o.To < r.From || r.From > max(ends.Seq, 1):
		return ErrRange
	}
	r.To = ends.Seq
	if !whole {
		r.To = o.To
	}
	plan, err := o.planTree(r, r.From, r.To)
	if err != nil {
		return err
	}
	err = r.chunks(ctx, src, &o, plan)
	if err == nil && whole {
		err = earliest(r.end(o, ends), o.rolledBack(ends.Seq))
	}
	return earliest(err, plan.conclude(ctx, r, &o), publishedErr)
}

// rolledBack says whether a checkpoint lies beyond the end.
func (o *Options) rolledBack(end int64) error {
	for _, c := range o.Checkpoints {
		if c.Size > end {
			return foundBy(ByRoot, end+1, Truncated, "the ledger ends at %d, and a checkpoint of size %d is signed", end, c.Size)
		}
	}
	return nil
}

// end compares the end of what was checked with the head.
func (r *Report) end(o Options, ends Ends) error {
	if ends.LastSeq > ends.Seq {
		return breakAt(ends.Seq+1, Truncated, "the head stands at %d, but entries go on to %d", ends.Seq, ends.LastSeq)
	}
	if ends.Seq == 0 {
		r.HeadHash = o.form().genesisOf(o.Tenant)
	}
	if r.HeadHash != ends.Chain {
		return breakAt(max(ends.Seq, 1), Hash, "the head at %d has another chain hash", ends.Seq)
	}
	return nil
}

// part is a chunk of the range and what came of it.
type part struct {
	from, to int64
	anchor   [HashSize]byte // what the first entry was chained to
	end      [HashSize]byte // chain hash of the last entry
	sums     Sums
	segments []segment
	err      error
}

// chunks checks the range, several parts at once, and finds the first bad entry.
func (r *Report) chunks(ctx context.Context, src Source, o *Options, plan *treePlan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := &queue{next: r.From, last: r.To, total: r.To - r.From + 1, progress: o.Progress}
	var done sync.WaitGroup
	for range max(o.Workers, 1) {
		done.Go(func() {
			c := plan.checker(o)
			for p := q.take(); p != nil; p = q.take() {
				c.sums = &p.sums
				p.err = p.check(ctx, src, c)
				p.segments = c.harvest()
				q.finish(p)
			}
		})
	}
	done.Wait()
	return r.join(q.parts, plan)
}

// join puts the parts together: each must begin where the one before ended.
func (r *Report) join(parts []*part, plan *treePlan) error {
	for i, p := range parts {
		if i > 0 && p.anchor != parts[i-1].end && p.err == nil {
			return breakAt(p.from-1, Hash, "its chain hash changed while it was read")
		}
		r.Sums.merge(&p.sums)
		if plan.planted {
			plan.grow.append(p.segments)
		}
		if p.err != nil {
			var b *broken
			if errors.As(p.err, &b) {
				r.Entries += max(0, b.seq-p.from)
			}
			return p.err
		}
		r.Entries += p.to - p.from + 1
		r.HeadHash = p.end
	}
	return nil
}

// check checks one part, with the stored chain hash before it as the anchor.
func (p *part) check(ctx context.Context, src Source, c *checker) error {
	anchored := p.from == 1
	first := p.from
	if anchored {
		c.beginGenesis()
	} else {
		first--
	}
	err := src.Rows(ctx, first, p.to, func(row *Row) error {
		if anchored {
			return c.check(row)
		}
		if row.Seq != first || len(row.Chain) != HashSize {
			return breakAt(first, MissingAnchor, "the entry before the range is not there")
		}
		anchored = true
		c.begin(p.from, [HashSize]byte(row.Chain), row.Epoch, true)
		p.anchor = c.prev
		return nil
	})
	switch {
	case err != nil:
		return classify(err)
	case !anchored:
		return breakAt(first, MissingAnchor, "the entry before the range is not there")
	case c.next <= p.to:
		return p.short(ctx, src, c.next)
	}
	p.end = c.prev
	return nil
}

// short says why a part ends early: entries follow, or none do.
func (p *part) short(ctx context.Context, src Source, next int64) error {
	ends, err := src.Ends(ctx)
	if err != nil {
		return &missing{err}
	}
	if ends.LastSeq > next {
		return breakAt(next, Gap, "the entry is missing; entries go on to %d", ends.LastSeq)
	}
	return breakAt(next, Truncated, "the head stands at %d, but entries end at %d", ends.Seq, next-1)
}

// classify tells a break from a store that failed.
func classify(err error) error {
	var b *broken
	var m *missing
	if errors.As(err, &b) || errors.As(err, &m) {
		return err
	}
	return &missing{fmt.Errorf("read entries: %w", err)}
}

// queue hands out parts in order. After a bad part it hands out none: those
// before it are taken already.
type queue struct {
	mu       sync.Mutex // protects what follows
	next     int64
	last     int64
	stopped  bool
	parts    []*part
	done     int64
	total    int64
	progress func(done, total int64)
}

func (q *queue) take() *part {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped || q.next > q.last {
		return nil
	}
	p := &part{from: q.next, to: min(q.next+chunkEntries-1, q.last)}
	q.next = p.to + 1
	q.parts = append(q.parts, p)
	return p
}

func (q *queue) finish(p *part) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = q.stopped || p.err != nil
	q.done += p.to - p.from + 1
	if q.progress != nil && p.err == nil {
		q.progress(q.done, q.total)
	}
}
