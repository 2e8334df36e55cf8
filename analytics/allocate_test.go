package analytics_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/ledger/chain"
)

// drawOwners draws owners that change at whole hours or, now and then, between; those
// of the dimensions that are asked for more often.
func (c *corpus) drawOwners(t *rapid.T, by []string) []report.OwnerPeriod {
	var periods []report.OwnerPeriod
	unit := rapid.SampledFrom([]time.Duration{time.Hour, time.Hour, time.Second}).Draw(t, "unit of changes")
	dimensions := report.Allocatable()
	for _, d := range by {
		if slices.Contains(report.Allocatable(), d) {
			dimensions = append(dimensions, d, d, d, d, d, d)
		}
	}
	least := rapid.SampledFrom([]int{0, 1, 1, 2}).Draw(t, "at least")
	for i, at := range rapid.SliceOfN(rapid.Int64Range(0, int64(25*24*time.Hour)), least, 4).Draw(t, "changes") {
		// The texts are values that usage carries itself, and some that mean
		// something where they are read as anything but a value.
		owner := rapid.SampledFrom([]string{"platform", "search", "it's", `\' OR 1`, "']", value(rapid.SampledFrom(c.entries).Draw(t, "like"), "team")})
		owners := rapid.MapOfN(rapid.SampledFrom(dimensions), owner, min(least, 1), 6).Draw(t, "owners")
		periods = append(periods, report.OwnerPeriod{
			Start: c.now.Add(-15 * 24 * time.Hour).Add(time.Duration(at)).Truncate(unit), Version: int64(i + 1), Owners: owners,
		})
	}
	slices.SortStableFunc(periods, func(a, b report.OwnerPeriod) int { return a.Start.Compare(b.Start) })
	return slices.CompactFunc(periods, func(a, b report.OwnerPeriod) bool { return a.Start.Equal(b.Start) })
}

// shownAs is what an entry is shown as and whether that is what it carries, the
// slow and obvious way.
func shownAs(e *chain.Entry, by []string, periods []report.OwnerPeriod) (values []string, moved bool) {
	for _, d := range by {
		v := value(e, d)
		if v == "" {
			for _, p := range periods {
				if !p.Start.After(time.Unix(0, e.Event.OccurredAt)) {
					v = p.Owners[d]
				}
			}
			moved = moved || v != ""
		}
		values = append(values, v)
	}
	return values, moved
}

// owned groups entries as they are shown; the first part of each group is direct,
// the second allocated.
func owned(entries []*chain.Entry, by []string, periods []report.OwnerPeriod) map[[report.MaxGroupBy]string][2][]*chain.Entry {
	groups := map[[report.MaxGroupBy]string][2][]*chain.Entry{}
	for _, e := range entries {
		values, moved := shownAs(e, by, periods)
		g := groups[key(values)]
		if moved {
			g[1] = append(g[1], e)
		} else {
			g[0] = append(g[0], e)
		}
		groups[key(values)] = g
	}
	return groups
}

func addUp(t *rapid.T, parts ...*report.Totals) (sum report.Totals) {
	for _, p := range parts {
		if err := sum.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	return sum
}

// drawGroupBy draws dimensions of which one at least can have an owner.
func drawGroupBy(t *rapid.T) []string {
	by := []string{rapid.SampledFrom([]string{"team", "team", "service", "environment", "feature", "agent", "end_customer"}).Draw(t, "owned")}
	for _, d := range drawDimensions(t, "group by", 2) {
		if d != by[0] {
			by = append(by, d)
		}
	}
	return by
}

// TestAllocationAgainstReference allocates at random and holds every figure against
// sums over the entries, and the totals against the report without allocation.
func TestAllocationAgainstReference(t *testing.T) {
	c := newCorpus(t, 21, 4000)
	moved := 0
	t.Run("groups", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			req := &report.GroupsRequest{Query: c.drawQuery(rt), GroupBy: drawGroupBy(rt), Top: rapid.IntRange(0, 12).Draw(rt, "top")}
			plain, err := c.reporter.Groups(t.Context(), req)
			if err != nil {
				rt.Fatal(err)
			}
			req.Allocation = report.Allocation{Method: report.DefaultOwner, Periods: c.drawOwners(rt, req.GroupBy)}
			got, err := c.reporter.Groups(t.Context(), req)
			if err != nil {
				rt.Fatal(err)
			}
			if got.Totals != plain.Totals {
				rt.Fatalf("allocated totals %+v, without %+v", got.Totals, plain.Totals)
			}
			span := c.span(rt, &req.Query)
			c.check(rt, &req.Query, span, got.Coverage)
			if got.Allocation.Totals.Requests > 0 {
				moved++
			}
			c.checkOwned(t, rt, req.GroupBy, req.Allocation.Periods, req.Top, matching(c.entries, req.Tenant, span, req.Filters), got.Groups, got.Allocation)
		})
	})
	t.Run("time series", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) { moved += c.checkOwnedSeries(t, rt) })
	})
	t.Logf("%d reports of 200 allocated something", moved)
	if moved < 20 {
		t.Errorf("something was allocated in %d reports only; the test shows nothing", moved)
	}
}

func (c *corpus) checkOwned(t *testing.T, rt *rapid.T, by []string, periods []report.OwnerPeriod, top int, entries []*chain.Entry, groups []report.Group, allocation *report.Allocated) {
	if top == 0 {
		top = report.DefaultTop
	}
	var want []report.Group
	var allocated, other report.Group
	other.Split = &report.Split{}
	for k, parts := range owned(entries, by, periods) {
		g := report.Group{Values: slices.Clone(k[:len(by)]), Split: &report.Split{Direct: totalsOf(t, parts[0]), Allocated: totalsOf(t, parts[1])}}
		g.Totals = addUp(rt, &g.Split.Direct, &g.Split.Allocated)
		allocated.Totals = addUp(rt, &allocated.Totals, &g.Split.Allocated)
		want = append(want, g)
	}
	slices.SortFunc(want, func(a, b report.Group) int {
		if n := b.Totals.Cost.Cmp(a.Totals.Cost); n != 0 {
			return n
		}
		return slices.Compare(a.Values, b.Values)
	})
	if len(want) > top {
		for _, g := range want[top:] {
			other.Totals, other.Other = addUp(rt, &other.Totals, &g.Totals), true
			other.Split.Direct = addUp(rt, &other.Split.Direct, &g.Split.Direct)
			other.Split.Allocated = addUp(rt, &other.Split.Allocated, &g.Split.Allocated)
		}
		want = append(want[:top:top], other)
	}
	if allocation.Totals != allocated.Totals {
		rt.Fatalf("allocated %+v, want %+v", allocation.Totals, allocated.Totals)
	}
	if !reflect.DeepEqual(groups, want) {
		rt.Fatalf("groups\n got %s\nwant %s", groupsText(groups), groupsText(want))
	}
}

func groupsText(groups []report.Group) string {
	var b strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&b, "%q %v %+v %+v\n", g.Values, g.Other, g.Totals, g.Split)
	}
	return b.String()
}

func (c *corpus) checkOwnedSeries(t *testing.T, rt *rapid.T) (moved int) {
	req := &report.TimeSeriesRequest{
		Query: c.drawQuery(rt), GroupBy: drawGroupBy(rt), Top: rapid.IntRange(0, 5).Draw(rt, "top"),
	}
	req.Allocation = report.Allocation{Method: report.DefaultOwner, Periods: c.drawOwners(rt, req.GroupBy)}
	span := c.span(rt, &req.Query)
	var buckets []time.Time
	req.Granularity, buckets = drawBuckets(rt, span, report.Hour, report.Day, report.Week)
	got, err := c.reporter.TimeSeries(t.Context(), req)
	if err != nil {
		rt.Fatal(err)
	}
	entries := matching(c.entries, req.Tenant, span, req.Filters)
	groups := make([]report.Group, len(got.Series))
	for i := range got.Series {
		groups[i] = got.Series[i].Group
	}
	if len(groups) == 0 {
		groups = nil
	}
	c.checkOwned(t, rt, req.GroupBy, req.Allocation.Periods, req.Top, entries, groups, got.Allocation)
	if want := totalsOf(t, entries); got.Totals != want {
		rt.Fatalf("totals %+v, want %+v", got.Totals, want)
	}
	named := map[[report.MaxGroupBy]string]int{}
	for i, s := range got.Series {
		if !s.Other {
			named[key(s.Values)] = i
		}
	}
	// By series and bucket, direct and allocated.
	parts := make([][][2][]*chain.Entry, len(got.Series))
	for i := range parts {
		parts[i] = make([][2][]*chain.Entry, len(buckets))
	}
	for _, e := range entries {
		values, isMoved := shownAs(e, req.GroupBy, req.Allocation.Periods)
		i, ok := named[key(values)]
		if !ok {
			i = len(got.Series) - 1
		}
		p := &parts[i][bucketOf(buckets, time.Unix(0, e.Event.OccurredAt))]
		if isMoved {
			p[1], moved = append(p[1], e), 1
		} else {
			p[0] = append(p[0], e)
		}
	}
	for i, s := range got.Series {
		for b := range buckets {
			direct, allocated := totalsOf(t, parts[i][b][0]), totalsOf(t, parts[i][b][1])
			if sum := addUp(rt, &direct, &allocated); s.Cost[b] != sum.Cost || s.Requests[b] != sum.Requests || s.Allocated[b] != allocated.Cost {
				rt.Fatalf("series %d bucket %v: %v of which %v, %d; want %+v of which %v", i, buckets[b], s.Cost[b], s.Allocated[b], s.Requests[b], sum, allocated.Cost)
			}
		}
	}
	return moved
}

// TestDividedAgainstReference divides by proportion: what each group carries itself
// is as without allocation, and the totals are those of the entries.
func TestDividedAgainstReference(t *testing.T) {
	c := newCorpus(t, 22, 3000)
	rapid.Check(t, func(rt *rapid.T) {
		req := &report.GroupsRequest{Query: c.drawQuery(rt), GroupBy: []string{rapid.SampledFrom(report.Allocatable()).Draw(rt, "by")}, Top: rapid.IntRange(0, 12).Draw(rt, "top")}
		req.Allocation.Method = report.Proportional
		got, err := c.reporter.Groups(t.Context(), req)
		if err != nil {
			rt.Fatal(err)
		}
		entries := matching(c.entries, req.Tenant, c.span(rt, &req.Query), req.Filters)
		all := groupsOf(t, entries, req.GroupBy, len(entries)+1)
		if want := totalsOf(t, entries); got.Totals != want {
			rt.Fatalf("totals %+v, want %+v", got.Totals, want)
		}
		var shown report.Totals
		for _, g := range got.Groups {
			shown = addUp(rt, &shown, &g.Totals)
			if sum := addUp(rt, &g.Split.Direct, &g.Split.Allocated); sum != g.Totals {
				rt.Fatalf("%q: %+v of %+v", g.Values, g.Totals, g.Split)
			}
			if g.Other || g.Values[0] == "" {
				continue
			}
			i := slices.IndexFunc(all, func(o report.Group) bool { return slices.Equal(o.Values, g.Values) })
			if i < 0 || all[i].Totals != g.Split.Direct {
				rt.Fatalf("%q: direct %+v, want %+v", g.Values, g.Split.Direct, all)
			}
		}
		if shown != got.Totals {
			rt.Fatalf("groups come to %+v, all to %+v", shown, got.Totals)
		}
	})
}

// TestOwnersChangeTooOften asks for a window with more owners than a report takes.
func TestOwnersChangeTooOften(t *testing.T) {
	c := newCorpus(t, 23, 50)
	a := report.Allocation{Method: report.DefaultOwner}
	for i := range report.MaxPeriods + 1 {
		a.Periods = append(a.Periods, report.OwnerPeriod{Start: c.now.Add(time.Duration(i-200) * time.Hour), Owners: map[string]string{"team": "t"}})
	}
	q := report.Query{Tenant: "tenant-0", Window: report.Window{Name: "30d"}}
	_, err := c.reporter.Groups(t.Context(), &report.GroupsRequest{Query: q, GroupBy: []string{"team"}, Allocation: a})
	if err == nil || !strings.HasPrefix(err.Error(), "window: default owners changed more than 100 times") {
		t.Errorf("%v", err)
	}
	q.Window.Name = "24h"
	if _, err := c.reporter.Groups(t.Context(), &report.GroupsRequest{Query: q, GroupBy: []string{"team"}, Allocation: a}); err != nil {
		t.Errorf("in a window with few: %v", err)
	}
}
