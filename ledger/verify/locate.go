package verify

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"
)

// locate finds the first entry that is not the one a checkpoint commits to, by
// the store's own copy of the tree. It trusts nothing of that copy: its upper
// nodes must come to the signed root, and each node below must be that of its
// two children. It reports false when the copy is of no use.
func (p *treePlan) locate(ctx context.Context, r *Report, o *Options) (int64, bool) {
	c := p.firstBad()
	if c == nil || r.src == nil || c.Size > r.To {
		return 0, false
	}
	l := &locator{ctx, r.src, o}
	theirs := spans(0, c.Size)
	for i := range theirs {
		h, err := o.Stored(ctx, int(theirs[i].level), theirs[i].index)
		if err != nil {
			return 0, false
		}
		theirs[i].hash = h
	}
	if theirs.root() != tlog.Hash(c.Root) {
		return 0, false
	}
	for _, s := range theirs {
		first := s.index << s.level
		if first+1<<s.level < p.from {
			continue
		}
		if first < p.from-1 { // the range begins inside
			return 0, false
		}
		if ours, err := l.ours(s.level, s.index); err != nil || ours != s.hash {
			return l.descend(s)
		}
	}
	return 0, false
}

// firstBad is the smallest checkpoint that the entries do not agree with.
func (p *treePlan) firstBad() *Checkpoint {
	for i, c := range p.list {
		if root, ok := p.grow.roots[c.Size]; ok && root != tlog.Hash(c.Root) {
			return &p.list[i]
		}
	}
	return nil
}

type locator struct {
	ctx context.Context
	src Source
	o   *Options
}

// ours is the subtree's root by the entries as they stand.
func (l *locator) ours(level uint8, index int64) (tlog.Hash, error) {
	c := newChecker(l.o.form(), l.o.Tenant, nil)
	var f forest
	next := index << level
	err := l.src.Rows(l.ctx, next+1, next+1<<level, func(row *Row) error {
		f.add(subtree{0, next, c.leafOf(row.Canonical)})
		next++
		return nil
	})
	return f.root(), err
}

// descend goes down to the first leaf that differs.
func (l *locator) descend(s subtree) (int64, bool) {
	for s.level > 0 {
		var child [2]subtree
		for i := range child {
			child[i] = subtree{level: s.level - 1, index: s.index<<1 + int64(i)}
			h, err := l.o.Stored(l.ctx, int(child[i].level), child[i].index)
			if err != nil {
				return 0, false
			}
			child[i].hash = h
		}
		if tlog.NodeHash(child[0].hash, child[1].hash) != s.hash {
			return 0, false
		}
		left, err := l.ours(child[0].level, child[0].index)
		if err != nil {
			return 0, false
		}
		s = child[0]
		if left == s.hash {
			s = child[1]
		}
	}
	return s.index + 1, true
}
