package analytics

import (
	"cmp"
	"slices"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/invariant"
	"github.com/tallystick/tallystick/internal/money"
)

// groupKeys are the columns by which a row says which group it is of.
type groupKeys struct {
	n     int
	texts [report.MaxGroupBy]string
	other uint8
}

func newGroupKeys(n int) *groupKeys { return &groupKeys{n: n} }

// targets are where a row's keys are scanned into.
func (k *groupKeys) targets() []any {
	var targets []any
	for i := range k.n {
		targets = append(targets, &k.texts[i])
	}
	return append(targets, &k.other)
}

// values are the group's values, nil for "other".
func (k *groupKeys) values() []string {
	if k.other == 1 {
		return nil
	}
	return slices.Clone(k.texts[:k.n])
}

// groupCollector turns rows by group into groups.
type groupCollector struct {
	keys   *groupKeys
	owned  bool  // rows say whether they were moved
	split  bool  // groups say what of them is allocated
	moved  uint8 // of the present row, as what follows
	totals report.Totals

	groups         map[groupKeys]*report.Group
	sum, allocated report.Totals // of all groups
}

func newGroupCollector(q *query, split bool) *groupCollector {
	return &groupCollector{keys: newGroupKeys(q.shape.n), owned: q.shape.owned != 0, split: split, groups: map[groupKeys]*report.Group{}}
}

// targets are where a row's keys are scanned into.
func (c *groupCollector) targets() []any {
	targets := c.keys.targets()
	if c.owned {
		targets = append(targets, &c.moved)
	}
	return targets
}

// add takes over the present row.
func (c *groupCollector) add() error {
	g := c.groups[*c.keys]
	if g == nil {
		g = &report.Group{Values: c.keys.values(), Other: c.keys.other == 1}
		c.groups[*c.keys] = g
	}
	if err := c.sum.Add(&c.totals); err != nil {
		return err
	}
	if !c.split {
		return g.Totals.Add(&c.totals)
	}
	if c.moved == 1 {
		if err := c.allocated.Add(&c.totals); err != nil {
			return err
		}
	}
	return g.AddPart(&c.totals, c.moved == 1)
}

// finish orders the groups.
func (c *groupCollector) finish() (groups []report.Group) {
	for _, g := range c.groups {
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(a, b report.Group) int { return compareGroups(&a, &b) })
	return groups
}

// seriesCollector turns rows by bucket and group into series.
type seriesCollector struct {
	keys   *groupKeys
	owned  bool  // rows say whether they were moved
	split  bool  // series say what of them is allocated
	moved  uint8 // of the present row, as what follows
	bucket int64
	totals report.Totals

	edges     []int64
	series    map[groupKeys]*report.Series
	allocated report.Totals // of all series
}

func newSeriesCollector(q *query, split bool) *seriesCollector {
	return &seriesCollector{
		keys: newGroupKeys(q.shape.n), owned: q.shape.owned != 0, split: split, edges: q.edges(), series: map[groupKeys]*report.Series{},
	}
}

// targets are where a row's keys are scanned into.
func (c *seriesCollector) targets() []any {
	var targets []any
	if c.keys.n > 0 {
		targets = c.keys.targets()
	}
	if c.owned {
		targets = append(targets, &c.moved)
	}
	return append(targets, &c.bucket)
}

// add takes over the present row.
func (c *seriesCollector) add() error {
	i, found := slices.BinarySearch(c.edges, c.bucket)
	invariant.Check(found, "a bucket is one of those asked for", "%d", c.bucket)
	s := c.series[*c.keys]
	if s == nil {
		s = c.newSeries()
		c.series[*c.keys] = s
	}
	if err := s.Cost[i].Add(c.totals.Cost); err != nil {
		return err
	}
	s.Requests[i] += c.totals.Requests
	s.GPUMicros[i] += c.totals.GPUMicros
	if !c.split {
		return s.Totals.Add(&c.totals)
	}
	if c.moved == 1 {
		if err := s.Allocated[i].Add(c.totals.Cost); err != nil {
			return err
		}
		if err := c.allocated.Add(&c.totals); err != nil {
			return err
		}
	}
	return s.AddPart(&c.totals, c.moved == 1)
}

func (c *seriesCollector) newSeries() *report.Series {
	s := &report.Series{
		Group: report.Group{Values: c.keys.values(), Other: c.keys.other == 1},
		Cost:  make([]money.Sum, len(c.edges)), Requests: make([]int64, len(c.edges)), GPUMicros: make([]int64, len(c.edges)),
	}
	if c.split {
		s.Allocated = make([]money.Sum, len(c.edges))
	}
	return s
}

// finish orders the series as Groups does. A series without groups is there
// even when nothing was found.
func (c *seriesCollector) finish() (series []report.Series, totals report.Totals, err error) {
	if c.keys.n == 0 && len(c.series) == 0 {
		c.series[*c.keys] = c.newSeries()
	}
	for _, s := range c.series {
		series = append(series, *s)
		if err := totals.Add(&s.Totals); err != nil {
			return nil, totals, err
		}
	}
	slices.SortFunc(series, func(a, b report.Series) int { return compareGroups(&a.Group, &b.Group) })
	return series, totals, nil
}

// compareGroups puts the group of greater cost first, and "other" last.
func compareGroups(a, b *report.Group) int {
	if a.Other != b.Other {
		if a.Other {
			return 1
		}
		return -1
	}
	return cmp.Or(b.Totals.Cost.Cmp(a.Totals.Cost), slices.Compare(a.Values, b.Values))
}
