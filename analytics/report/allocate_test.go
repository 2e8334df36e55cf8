package report_test

import (
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/money"
)

func drawTotals(t *rapid.T) report.Totals {
	n := rapid.Int64Range(-3, 40)
	totals := report.Totals{
		Cost:     money.SumOf(money.Pico(rapid.OneOf(n, rapid.Int64Range(-1e6, 1e18)).Draw(t, "cost"))),
		Requests: rapid.Int64Range(0, 50).Draw(t, "requests"), Failed: rapid.Int64Range(0, 50).Draw(t, "failed"),
		GPUMicros: n.Draw(t, "gpu"),
	}
	for c := range totals.Tokens {
		totals.Tokens[c] = rapid.OneOf(n, rapid.Int64Range(0, 1e15)).Draw(t, "tokens")
	}
	return totals
}

func drawGroups(t *rapid.T) (groups []report.Group, sum report.Totals) {
	values := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"", "", "a", "b", "c", "d", "e", "f", "ß"}), 0, 8, rapid.ID[string]).Draw(t, "values")
	for _, v := range values {
		g := report.Group{Values: []string{v}, Totals: drawTotals(t)}
		groups = append(groups, g)
		if err := sum.Add(&g.Totals); err != nil {
			t.Fatal(err)
		}
	}
	return groups, sum
}

func sumOf(t *rapid.T, groups []report.Group, part func(*report.Group) *report.Totals) (sum report.Totals) {
	for i := range groups {
		if err := sum.Add(part(&groups[i])); err != nil {
			t.Fatal(err)
		}
	}
	return sum
}

// Whatever is divided, no total changes, no part is a whole unit away from its
// exact share, and neither order nor top changes a part.
func TestDivide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		groups, sum := drawGroups(t)
		g := &report.Groups{Groups: slices.Clone(groups), Totals: sum}
		if err := g.Divide(len(groups)); err != nil {
			t.Fatal(err)
		}
		top := rapid.IntRange(1, 8).Draw(t, "top")
		few := &report.Groups{Groups: rapid.Permutation(groups).Draw(t, "order"), Totals: sum}
		if err := few.Divide(top); err != nil {
			t.Fatal(err)
		}
		for _, of := range []*report.Groups{g, few} {
			direct := sumOf(t, of.Groups, func(g *report.Group) *report.Totals { return &g.Split.Direct })
			allocated := sumOf(t, of.Groups, func(g *report.Group) *report.Totals { return &g.Split.Allocated })
			if all := sumOf(t, of.Groups, func(g *report.Group) *report.Totals { return &g.Totals }); all != sum || of.Totals != sum {
				t.Fatalf("groups come to %+v, before to %+v", all, sum)
			}
			if allocated != of.Allocation.Totals {
				t.Fatalf("parts come to %+v, allocated is %+v", allocated, of.Allocation.Totals)
			}
			if err := direct.Add(&allocated); err != nil || direct != sum {
				t.Fatalf("direct and allocated come to %+v, all to %+v", direct, sum)
			}
		}
		if n := min(top, len(groups)); !reflect.DeepEqual(few.Groups[:n], g.Groups[:n]) {
			t.Fatalf("the first %d are %+v, of all %+v", n, few.Groups, g.Groups)
		}
		checkShares(t, groups, g.Groups)
	})
}

// checkShares holds each part of the cost against the fraction that it stands for.
func checkShares(t *rapid.T, before, after []report.Group) {
	amount, weights := new(big.Int), new(big.Int)
	for _, g := range before {
		if g.Values[0] == "" {
			amount = g.Totals.Cost.Big()
		} else if g.Totals.Cost.Sign() > 0 {
			weights.Add(weights, g.Totals.Cost.Big())
		}
	}
	for _, g := range after {
		part := new(big.Rat).SetInt(g.Split.Allocated.Cost.Big())
		if g.Values[0] == "" || weights.Sign() == 0 || g.Split.Direct.Cost.Sign() <= 0 {
			if part.Sign() != 0 {
				t.Fatalf("%q gets %v", g.Values, part)
			}
			if g.Values[0] == "" && weights.Sign() > 0 && !g.Totals.Cost.IsZero() {
				t.Fatalf("%v stays untagged", g.Totals.Cost)
			}
			continue
		}
		share := new(big.Rat).SetFrac(new(big.Int).Mul(amount, g.Split.Direct.Cost.Big()), weights)
		if off := part.Sub(part, share); off.Abs(off).Cmp(big.NewRat(1, 1)) >= 0 {
			t.Fatalf("%q is %v away from its share %v", g.Values, off, share)
		}
	}
}

// An example by hand: 10 units by 1:1:1 and by 3:3:1.
func TestDivideByHand(t *testing.T) {
	for _, c := range []struct {
		untagged int64
		costs    []int64
		want     []int64
	}{
		{10, []int64{5, 5, 5}, []int64{4, 3, 3}},
		{10, []int64{3, 3, 1}, []int64{4, 4, 2}}, // 4.28, 4.28 and 1.43: the last has the largest remainder
		{-10, []int64{5, 5, 5}, []int64{-4, -3, -3}},
		{10, []int64{7, -2, 0}, []int64{10, 0, 0}},
		{10, []int64{0, -2, 0}, []int64{0, 0, 0}},
		{0, []int64{1, 1, 1}, []int64{0, 0, 0}},
	} {
		g := &report.Groups{Groups: []report.Group{{Values: []string{""}, Totals: report.Totals{Cost: money.SumOf(money.Pico(c.untagged)), Requests: 7}}}}
		for i, cost := range c.costs {
			g.Groups = append(g.Groups, report.Group{Values: []string{string(rune('a' + i))}, Totals: report.Totals{Cost: money.SumOf(money.Pico(cost)), Requests: 1}})
		}
		if err := g.Divide(report.MaxTop); err != nil {
			t.Fatal(err)
		}
		got := make([]int64, len(c.costs))
		for _, group := range g.Groups {
			if group.Values[0] == "" {
				if group.Totals.Requests != 7 {
					t.Errorf("%v: %d requests are left untagged", c, group.Totals.Requests)
				}
				continue
			}
			p, err := group.Split.Allocated.Cost.Pico()
			if err != nil || group.Totals.Requests != 1 {
				t.Fatalf("%+v, %v", group, err)
			}
			got[group.Values[0][0]-'a'] = int64(p)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d by %v is %v, want %v", c.untagged, c.costs, got, c.want)
		}
	}
}

func TestValidateAllocation(t *testing.T) {
	q := report.Query{Tenant: "acme", Window: report.Window{Name: "7d"}}
	groups := func(m report.Method, by ...string) error {
		return (&report.GroupsRequest{Query: q, GroupBy: by, Allocation: report.Allocation{Method: m}}).Validate()
	}
	series := func(m report.Method, by ...string) error {
		return (&report.TimeSeriesRequest{Query: q, Granularity: report.Day, GroupBy: by, Allocation: report.Allocation{Method: m}}).Validate()
	}
	for name, c := range map[string]struct {
		err   error
		field string
	}{
		"team":               {groups(report.DefaultOwner, "team"), ""},
		"team beside others": {groups(report.DefaultOwner, "model", "team", "tag:x"), ""},
		"series":             {series(report.DefaultOwner, "environment"), ""},
		"proportional":       {groups(report.Proportional, "service"), ""},
		"no method":          {groups("", "user_pseudonym"), ""},
		"another method":     {groups("even", "team"), "allocate"},
		"people":             {groups(report.DefaultOwner, "user_pseudonym"), "allocate"},
		"a tag":              {groups(report.Proportional, "tag:team"), "allocate"},
		"nothing to own":     {series(report.DefaultOwner), "allocate"},
		"two to divide by":   {groups(report.Proportional, "team", "model"), "group_by"},
		"a divided series":   {series(report.Proportional, "team"), "allocate"},
	} {
		var wrong *report.FieldError
		switch {
		case c.field == "" && c.err != nil:
			t.Errorf("%s: %v", name, c.err)
		case c.field != "" && (!errors.As(c.err, &wrong) || wrong.Field != c.field):
			t.Errorf("%s: %v, want an error of %s", name, c.err, c.field)
		}
	}
}

func TestWithin(t *testing.T) {
	day := func(d int) time.Time { return time.Date(2026, 3, d, 0, 0, 0, 0, time.UTC) }
	a := report.Allocation{Method: report.DefaultOwner}
	for i, d := range []int{1, 10, 20} {
		a.Periods = append(a.Periods, report.OwnerPeriod{Start: day(d), Version: int64(i + 1), Owners: map[string]string{"team": fmt.Sprint("t", d), "service": "s"}})
	}
	for _, c := range []struct {
		from, to int
		want     string
	}{
		{2, 9, "[2:1]"}, {10, 20, "[10:2]"}, {9, 21, "[9:1 10:2 20:3]"}, {25, 26, "[25:3]"},
	} {
		periods, err := a.Within(report.Span{Start: day(c.from), End: day(c.to)}, []string{"model", "team"})
		var got []string
		for _, p := range periods {
			got = append(got, fmt.Sprintf("%d:%d", p.Start.Day(), p.Version))
			if len(p.Owners) != 1 || p.Owners["team"] == "" {
				t.Errorf("owners %v", p.Owners)
			}
		}
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("from %d to %d: %v, %v; want %s", c.from, c.to, got, err, c.want)
		}
	}
	before := report.Span{Start: day(1).AddDate(0, -1, 0), End: day(1)}
	if periods, err := a.Within(before, []string{"team"}); err != nil || len(periods) != 0 {
		t.Errorf("before any: %v, %v", periods, err)
	}
}
