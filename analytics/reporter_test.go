package analytics_test

import (
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

var zones = []string{"", "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo"}

// corpus is a store with generated entries around a change of clocks and a
// month's end, and a Reporter on it whose clock stands within.
type corpus struct {
	entries  []*chain.Entry
	now      time.Time
	reporter *analytics.Reporter
}

func newCorpus(t testing.TB, seed uint64, n int) *corpus {
	t.Helper()
	writer, reader := newStore(t)
	from := time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)
	g := newTraffic(seed, 3, from, 20*24*time.Hour)
	c := &corpus{entries: g.entries(n), now: from.Add(13*24*time.Hour + 17*time.Minute)}
	w := analytics.NewWriter(writer)
	// In several plans, so that a late entry is one of a later block.
	for i, plan := 0, int64(1); i < n; i, plan = i+n/4+1, plan+1 {
		store(t, w, time.Unix(plan, 0).String(), plan, c.entries[i:min(n, i+n/4+1)])
	}
	c.reporter = analytics.NewReporter(reader, covering(c.entries), func() time.Time { return c.now })
	return c
}

// drawQuery draws a query that is valid.
func (c *corpus) drawQuery(t *rapid.T) report.Query {
	q := report.Query{Tenant: tenant.ID(rapid.SampledFrom([]string{"tenant-0", "tenant-1", "tenant-2", "nobody"}).Draw(t, "tenant"))}
	q.Window.Zone = rapid.SampledFrom(zones).Draw(t, "zone")
	q.Window.Name = rapid.SampledFrom([]string{"", "", "24h", "7d", "30d", "today", "mtd", "last_month", "all"}).Draw(t, "window")
	if q.Window.Name == "" {
		unit := rapid.SampledFrom([]time.Duration{time.Hour, 15 * time.Minute, time.Second, 1}).Draw(t, "unit")
		start := c.now.Add(-time.Duration(rapid.Int64Range(0, int64(15*24*time.Hour)).Draw(t, "start"))).Truncate(unit)
		q.Window.Start = start
		q.Window.End = start.Add(time.Duration(rapid.Int64Range(int64(time.Hour), int64(10*24*time.Hour)).Draw(t, "length"))).Truncate(unit)
	}
	for _, d := range drawDimensions(t, "filter", 2) {
		values := map[string]bool{}
		for range rapid.IntRange(1, 3).Draw(t, "values") {
			values[value(rapid.SampledFrom(c.entries).Draw(t, "like"), d)] = true
		}
		f := report.Filter{Dimension: d}
		for v := range values {
			f.Values = append(f.Values, v)
		}
		q.Filters = append(q.Filters, f)
	}
	return q
}

func drawDimensions(t *rapid.T, label string, most int) []string {
	all := append(report.Dimensions(), "tag:cost-centre", `tag:it's \ odd`, "tag:ß", "tag:absent")
	// Those that usage_hour has are drawn more often.
	all = append(all, "provider", "model", "service_tier", "status", "team", "service", "environment")
	return rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, most, rapid.ID[string]).Draw(t, label)
}

func (c *corpus) span(t *rapid.T, q *report.Query) report.Span {
	span, err := q.Window.Resolve(c.now, func() (first, last time.Time, err error) {
		for _, e := range matching(c.entries, q.Tenant, report.Span{Start: time.Unix(0, 0), End: c.now.AddDate(9, 0, 0)}, nil) {
			at := time.Unix(0, e.Event.OccurredAt)
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		}
		return first, last, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return span
}

func (c *corpus) check(t *rapid.T, q *report.Query, span report.Span, got report.Coverage) {
	seq := covering(c.entries).seq[string(q.Tenant)]
	want := report.Coverage{Start: span.Start, End: span.End, ToSeq: seq, HeadHash: [32]byte{byte(seq)}, Exact: true}
	if seq > 0 {
		want.FreshUntil = time.Unix(seq, 0).UTC()
	}
	if !got.Start.Equal(want.Start) || !got.End.Equal(want.End) {
		t.Fatalf("from %v to %v, want %v to %v", got.Start, got.End, want.Start, want.End)
	}
	got.Start, got.End = want.Start, want.End
	if got != want {
		t.Fatalf("coverage %+v, want %+v", got, want)
	}
}

func TestReportsAgainstReference(t *testing.T) {
	c := newCorpus(t, 7, 4000)
	t.Run("summary", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			req := &report.SummaryRequest{Query: c.drawQuery(rt)}
			span := c.span(rt, &req.Query)
			got, err := c.reporter.Summary(t.Context(), req)
			if err != nil {
				rt.Fatal(err)
			}
			if want := totalsOf(t, matching(c.entries, req.Tenant, span, req.Filters)); got.Totals != want {
				rt.Fatalf("got %+v, want %+v", got.Totals, want)
			}
			c.check(rt, &req.Query, span, got.Coverage)
		})
	})
	t.Run("groups", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			req := &report.GroupsRequest{Query: c.drawQuery(rt), GroupBy: drawDimensions(rt, "group by", 3), Top: rapid.IntRange(0, 12).Draw(rt, "top")}
			if len(req.GroupBy) == 0 {
				req.GroupBy = []string{"team"}
			}
			span := c.span(rt, &req.Query)
			got, err := c.reporter.Groups(t.Context(), req)
			if err != nil {
				rt.Fatal(err)
			}
			entries := matching(c.entries, req.Tenant, span, req.Filters)
			if want := groupsOf(t, entries, req.GroupBy, req.Top); !reflect.DeepEqual(got.Groups, want) {
				rt.Fatalf("groups\n got %+v\nwant %+v", got.Groups, want)
			}
			// Also a tag's groups sum up to the total and not beyond.
			if want := totalsOf(t, entries); got.Totals != want {
				rt.Fatalf("totals %+v, want %+v", got.Totals, want)
			}
			c.check(rt, &req.Query, span, got.Coverage)
		})
	})
	t.Run("time series", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) { c.checkSeries(t, rt) })
	})
}

// drawBuckets draws a granularity in which the span has not too many buckets: one of
// those, or months.
func drawBuckets(t *rapid.T, span report.Span, of ...report.Granularity) (report.Granularity, []time.Time) {
	var fit []report.Granularity
	for _, g := range append(of, report.Month) {
		if _, err := report.Buckets(span, g); err == nil {
			fit = append(fit, g)
		}
	}
	if len(fit) == 0 {
		t.Fatalf("%+v has too many months", span)
	}
	g := rapid.SampledFrom(fit).Draw(t, "granularity")
	buckets, _ := report.Buckets(span, g)
	return g, buckets
}

func (c *corpus) checkSeries(t *testing.T, rt *rapid.T) {
	req := &report.TimeSeriesRequest{
		Query: c.drawQuery(rt), GroupBy: drawDimensions(rt, "group by", 3), Top: rapid.IntRange(0, 5).Draw(rt, "top"),
	}
	span := c.span(rt, &req.Query)
	var buckets []time.Time
	req.Granularity, buckets = drawBuckets(rt, span, report.QuarterHour, report.Hour, report.Day, report.Week)
	got, err := c.reporter.TimeSeries(t.Context(), req)
	if err != nil {
		rt.Fatal(err)
	}
	if !reflect.DeepEqual(got.Buckets, buckets) {
		rt.Fatalf("buckets %v, want %v", got.Buckets, buckets)
	}
	entries := matching(c.entries, req.Tenant, span, req.Filters)
	groups := groupsOf(t, entries, req.GroupBy, req.Top)
	if len(req.GroupBy) == 0 {
		groups = []report.Group{{Values: []string{}, Totals: totalsOf(t, entries)}}
	}
	if len(got.Series) != len(groups) {
		rt.Fatalf("%d series, want %d", len(got.Series), len(groups))
	}
	named := map[[report.MaxGroupBy]string]int{}
	for i, s := range got.Series {
		if len(s.Values) == 0 {
			s.Values, groups[i].Values = nil, nil
		}
		if !reflect.DeepEqual(s.Group, groups[i]) {
			rt.Fatalf("series %d\n got %+v\nwant %+v", i, s.Group, groups[i])
		}
		if !s.Other {
			named[key(s.Values)] = i
		}
	}
	members := make([][][]*chain.Entry, len(groups))
	for i := range members {
		members[i] = make([][]*chain.Entry, len(buckets))
	}
	for _, e := range entries {
		var values []string
		for _, d := range req.GroupBy {
			values = append(values, value(e, d))
		}
		i, ok := named[key(values)]
		if !ok {
			i = len(groups) - 1
		}
		b := bucketOf(buckets, time.Unix(0, e.Event.OccurredAt))
		members[i][b] = append(members[i][b], e)
	}
	for i, s := range got.Series {
		for b := range buckets {
			if want := totalsOf(t, members[i][b]); s.Cost[b] != want.Cost || s.Requests[b] != want.Requests || s.GPUMicros[b] != want.GPUMicros {
				rt.Fatalf("series %d bucket %v: %v, %d and %d µs, want %+v", i, buckets[b], s.Cost[b], s.Requests[b], s.GPUMicros[b], want)
			}
		}
	}
	if sum := totalsOf(t, entries); got.Totals != sum {
		rt.Fatalf("totals %+v, want %+v", got.Totals, sum)
	}
	c.check(rt, &req.Query, span, got.Coverage)
}

func key(values []string) (k [report.MaxGroupBy]string) {
	copy(k[:], values)
	return k
}
