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

// seriesCollector turns rows by bucket and group into series.
type seriesCollector struct {
	keys   *groupKeys
	bucket int64
	totals report.Totals // of the present row
	edges  []int64
	series map[groupKeys]*report.Series
}

func newSeriesCollector(q *query) *seriesCollector {
	return &seriesCollector{keys: newGroupKeys(q.shape.n), edges: q.edges(), series: map[groupKeys]*report.Series{}}
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
	return s.Totals.Add(&c.totals)
}

func (c *seriesCollector) newSeries() *report.Series {
	return &report.Series{
		Group: report.Group{Values: c.keys.values(), Other: c.keys.other == 1},
		Cost:  make([]money.Sum, len(c.edges)), Requests: make([]int64, len(c.edges)),
	}
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
	slices.SortFunc(series, func(a, b report.Series) int {
		if a.Other != b.Other {
			if a.Other {
				return 1
			}
			return -1
		}
		return cmp.Or(b.Totals.Cost.Cmp(a.Totals.Cost), slices.Compare(a.Values, b.Values))
	})
	return series, totals, nil
}
