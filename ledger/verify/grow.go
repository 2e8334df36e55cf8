package verify

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// treePlan is what of the tree a verification wants, and what it has of it.
type treePlan struct {
	from    int64
	list    []Checkpoint // sorted
	cuts    []int64
	planted bool
	grow    *grower
}

// planTree says what to collect of the range from..to.
func (o *Options) planTree(r *Report, from, to int64) (*treePlan, error) {
	p := &treePlan{from: from, list: sortCheckpoints(o.Checkpoints)}
	if len(p.list) == 0 && o.rootAt == 0 && !o.Tree {
		return p, nil
	}
	if from > 1 && o.LeftEdge == nil {
		r.Warnings = append(r.Warnings, "the range was not held against checkpoints: the tree before it is not known")
		p.list = nil
		return p, nil
	}
	edge, err := leftEdge(from, o.LeftEdge)
	if err != nil {
		return nil, &missing{err}
	}
	p.planted, p.cuts, p.grow = true, sizes(p.list, from, to), newGrower(edge, from)
	if o.rootAt > 0 && !slices.Contains(p.cuts, o.rootAt) {
		p.cuts = append(p.cuts, o.rootAt)
		slices.Sort(p.cuts)
	}
	return p, nil
}

// checker makes a checker that collects what the plan wants.
func (p *treePlan) checker(o *Options) *checker {
	c := newChecker(o.form(), o.Tenant, o.Keys)
	if p.planted {
		c.plant = &planter{cuts: p.cuts}
	}
	return c
}

// harvest is what a checker collected since it began.
func (c *checker) harvest() []segment {
	if c.plant == nil {
		return nil
	}
	return c.plant.segments()
}

// conclude holds the checkpoints against the entries that were good, and says
// how far they cover them.
func (p *treePlan) conclude(ctx context.Context, r *Report, o *Options) error {
	if p.planted && o.Tree {
		r.Tree = p.grow.all.hashes()
	}
	if len(p.list) == 0 {
		return nil
	}
	for _, c := range p.list {
		if root, ok := p.grow.roots[c.Size]; ok && root == tlog.Hash(c.Root) {
			r.Covered = c.Size
		}
	}
	err := p.grow.compare(p.list, p.from)
	var b *broken
	if o.Stored == nil || !errors.As(err, &b) || b.reason != Root {
		return err
	}
	if seq, ok := p.locate(ctx, r, o); ok {
		b.seq = seq
	}
	return err
}

// earliest is the break with the lowest number; without one, the first error.
func earliest(errs ...error) (first error) {
	var lowest *broken
	for _, err := range errs {
		var b *broken
		switch {
		case errors.As(err, &b):
			if lowest == nil || b.seq < lowest.seq {
				lowest = b
			}
		case first == nil:
			first = err
		}
	}
	if lowest != nil {
		return lowest
	}
	return first
}
