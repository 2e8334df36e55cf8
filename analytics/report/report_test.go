package report_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/analytics/report"
)

func load(t testing.TB, name string) *time.Location {
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func TestBuckets(t *testing.T) {
	for _, c := range []struct {
		zone, start, end string
		g                report.Granularity
		want             string
	}{
		{"Europe/Berlin", "2026-03-29T00:30:00+01:00", "2026-03-29T04:00:00+02:00", report.Hour,
			"2026-03-29T00:00:00+01:00 2026-03-29T01:00:00+01:00 2026-03-29T03:00:00+02:00"},
		{"Europe/Berlin", "2026-10-25T01:00:00+02:00", "2026-10-25T04:00:00+01:00", report.Hour,
			"2026-10-25T01:00:00+02:00 2026-10-25T02:00:00+02:00 2026-10-25T02:00:00+01:00 2026-10-25T03:00:00+01:00"},
		{"Europe/Berlin", "2026-03-28T12:00:00+01:00", "2026-03-30T12:00:00+02:00", report.Day,
			"2026-03-28T00:00:00+01:00 2026-03-29T00:00:00+01:00 2026-03-30T00:00:00+02:00"},
		{"UTC", "2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z", report.Month, "2026-01-01T00:00:00Z 2026-02-01T00:00:00Z 2026-03-01T00:00:00Z"},
		{"UTC", "2024-02-28T00:00:00Z", "2024-03-01T00:00:01Z", report.Day,
			"2024-02-28T00:00:00Z 2024-02-29T00:00:00Z 2024-03-01T00:00:00Z"},
		{"UTC", "2026-01-01T00:00:00Z", "2026-01-12T00:00:01Z", report.Week, "2025-12-29T00:00:00Z 2026-01-05T00:00:00Z 2026-01-12T00:00:00Z"},
		{"Asia/Kolkata", "2026-01-01T00:00:00+05:30", "2026-01-01T02:00:00+05:30", report.Hour, "2026-01-01T00:00:00+05:30 2026-01-01T01:00:00+05:30"},
		{"America/New_York", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00", report.Day, "2026-11-01T00:00:00-04:00"},
		// The clock moves by half an hour, so one hour has only half.
		{"Australia/Lord_Howe", "2026-10-04T01:00:00+10:30", "2026-10-04T04:00:00+11:00", report.Hour,
			"2026-10-04T01:00:00+10:30 2026-10-04T02:30:00+11:00 2026-10-04T03:00:00+11:00"},
		{"Australia/Lord_Howe", "2026-04-05T01:00:00+11:00", "2026-04-05T03:00:00+10:30", report.Hour,
			"2026-04-05T01:00:00+11:00 2026-04-05T01:30:00+10:30 2026-04-05T02:00:00+10:30"},
		// Midnight that does not exist, and a day that does not.
		{"America/Sao_Paulo", "2018-11-03T12:00:00-03:00", "2018-11-05T00:00:00-02:00", report.Day, "2018-11-03T00:00:00-03:00 2018-11-04T01:00:00-02:00"},
		{"America/Sao_Paulo", "2018-02-17T12:00:00-02:00", "2018-02-19T00:00:00-03:00", report.Day, "2018-02-17T00:00:00-02:00 2018-02-18T00:00:00-03:00"},
		{"Pacific/Apia", "2011-12-29T00:00:00-10:00", "2012-01-01T00:00:00+14:00", report.Day, "2011-12-29T00:00:00-10:00 2011-12-31T00:00:00+14:00"},
	} {
		zone := load(t, c.zone)
		start, _ := time.Parse(time.RFC3339, c.start)
		end, _ := time.Parse(time.RFC3339, c.end)
		got, err := report.Buckets(report.Span{Start: start, End: end, Zone: zone}, c.g)
		var texts []string
		for _, b := range got {
			texts = append(texts, b.In(zone).Format(time.RFC3339))
		}
		if s := strings.Join(texts, " "); err != nil || s != c.want {
			t.Errorf("%s %s from %s: %v\n got %s\nwant %s", c.zone, c.g, c.start, err, s, c.want)
		}
	}
}

// TestBucketsAreComplete draws spans in every kind of zone: buckets rise, the
// first holds the start, the last is before the end, each starts where the
// calendar or the clock says, and none is left out.
func TestBucketsAreComplete(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Cairo", "Pacific/Apia", "America/Santiago", "Asia/Beirut"}
	lengths := map[report.Granularity]time.Duration{
		report.Minute: time.Minute, report.QuarterHour: 15 * time.Minute, report.Hour: time.Hour, report.Day: 24 * time.Hour, report.Week: 168 * time.Hour, report.Month: 730 * time.Hour,
	}
	rapid.Check(t, func(t *rapid.T) {
		zone, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		g := rapid.SampledFrom([]report.Granularity{report.Minute, report.QuarterHour, report.Hour, report.Day, report.Week, report.Month}).Draw(t, "granularity")
		start := time.UnixMicro(rapid.Int64Range(1_200_000_000, 1_900_000_000).Draw(t, "start")*1e6 + rapid.Int64Range(0, 999_999).Draw(t, "micros"))
		n := rapid.IntRange(1, 1900).Draw(t, "length")
		if g == report.Month {
			n %= 500
		}
		span := report.Span{Start: start, End: start.Add(time.Duration(n)*lengths[g] + 1), Zone: zone}
		buckets, err := report.Buckets(span, g)
		if err != nil {
			t.Fatal(err)
		}
		if buckets[0].After(span.Start) || !buckets[len(buckets)-1].Before(span.End) {
			t.Fatalf("from %v to %v: %v … %v", span.Start, span.End, buckets[0], buckets[len(buckets)-1])
		}
		if next := append(buckets[1:len(buckets):len(buckets)], span.End)[0]; !span.Start.Before(next) {
			t.Fatalf("the start %v is not in the first bucket, the next begins at %v", span.Start, next)
		}
		for i, b := range buckets {
			if i > 0 && !buckets[i-1].Before(b) {
				t.Fatalf("%v comes after %v", b, buckets[i-1])
			}
			// One moment before the start belongs to the bucket before.
			if label(b, g) == label(b.Add(-time.Nanosecond), g) {
				t.Fatalf("%v begins no %s", b, g)
			}
			if i > 0 {
				checkNoneLeftOut(t, buckets[i-1], b, g)
			}
		}
	})
}

// label is what all moments of one bucket share on the clock or calendar.
func label(t time.Time, g report.Granularity) string {
	switch g {
	case report.Minute:
		return t.Format("2006-01-02 15:04 -0700")
	case report.QuarterHour:
		return t.Format("2006-01-02 15 -0700 ") + string(rune('0'+t.Minute()/15))
	case report.Hour:
		return t.Format("2006-01-02 15 -0700")
	case report.Week:
		return t.AddDate(0, 0, -(int(t.Weekday())+6)%7).Format("2006-01-02")
	case report.Month:
		return t.Format("2006-01")
	}
	return t.Format("2006-01-02")
}

func checkNoneLeftOut(t *rapid.T, from, to time.Time, g report.Granularity) {
	step := to.Sub(from) / 50
	for at := from; at.Before(to); at = at.Add(max(step, time.Second)) {
		if label(at, g) != label(from, g) {
			t.Fatalf("between %v and %v there is %v", from, to, at)
		}
	}
}

func TestBucketLimit(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	span := report.Span{Start: start, End: start.Add(report.MaxBuckets * time.Minute), Zone: time.UTC}
	if got, err := report.Buckets(span, report.Minute); err != nil || len(got) != report.MaxBuckets {
		t.Errorf("%d buckets, %v", len(got), err)
	}
	span.End = span.End.Add(time.Microsecond)
	var wrong *report.FieldError
	if _, err := report.Buckets(span, report.Minute); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "2000") {
		t.Errorf("error %v", err)
	}
	span.End = span.Start.AddDate(200, 0, 0)
	if _, err := report.Buckets(span, report.Minute); !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
}

func TestWindows(t *testing.T) {
	now := time.Date(2026, 3, 29, 22, 17, 5, 123, time.UTC) // 00:17 of the 30th in Berlin
	first, last := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for _, c := range []struct{ name, zone, start, end string }{
		{"24h", "", "2026-03-28T23:00:00Z", "2026-03-29T23:00:00Z"},
		{"7d", "Europe/Berlin", "2026-03-22T23:00:00Z", "2026-03-29T23:00:00Z"},
		{"30d", "", "2026-02-27T23:00:00Z", "2026-03-29T23:00:00Z"},
		{"today", "", "2026-03-29T00:00:00Z", "2026-03-29T23:00:00Z"},
		{"today", "Europe/Berlin", "2026-03-29T22:00:00Z", "2026-03-29T23:00:00Z"},
		{"mtd", "Europe/Berlin", "2026-02-28T23:00:00Z", "2026-03-29T23:00:00Z"},
		{"last_month", "UTC", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"last_month", "America/New_York", "2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z"},
		{"all", "UTC", "2026-01-02T03:00:00Z", "2026-05-06T08:00:00Z"},
	} {
		got, err := report.Window{Name: c.name, Zone: c.zone}.Resolve(now, func() (time.Time, time.Time, error) { return first, last, nil })
		if err != nil || got.Start.UTC().Format(time.RFC3339Nano) != c.start || got.End.UTC().Format(time.RFC3339Nano) != c.end || !got.WholeHours() {
			t.Errorf("%s in %s: %v to %v, %v", c.name, c.zone, got.Start.UTC(), got.End.UTC(), err)
		}
	}
	broken := errors.New("broken")
	if _, err := (report.Window{Name: "all"}).Resolve(now, func() (a, b time.Time, err error) { return a, b, broken }); err != broken {
		t.Errorf("error %v", err)
	}
	empty, err := report.Window{Name: "all"}.Resolve(now, func() (a, b time.Time, err error) { return a, b, nil })
	if err != nil || !empty.Start.Equal(now.Truncate(time.Hour)) || !empty.End.Equal(now.Truncate(time.Hour).Add(time.Hour)) {
		t.Errorf("all of nothing: %v, %v", empty, err)
	}
	january, err := report.Window{Name: "last_month"}.Resolve(time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC), nil)
	if err != nil || january.Start.Format(time.DateOnly) != "2025-12-01" {
		t.Errorf("last month in January: %v, %v", january, err)
	}
}

func TestWindowsRefuse(t *testing.T) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		w     report.Window
		field string
	}{
		"nothing":     {report.Window{}, "window"},
		"no end":      {report.Window{Start: at}, "window"},
		"both":        {report.Window{Name: "7d", Start: at, End: at.Add(1)}, "window"},
		"empty":       {report.Window{Start: at, End: at}, "window.end"},
		"backward":    {report.Window{Start: at, End: at.Add(-1)}, "window.end"},
		"before 1970": {report.Window{Start: time.Unix(-1, 0), End: at}, "window"},
		"after 2262":  {report.Window{Start: at, End: at.AddDate(300, 0, 0)}, "window"},
		"name":        {report.Window{Name: "8d"}, "window.name"},
		"zone":        {report.Window{Name: "7d", Zone: "Mars/Olympus"}, "window.time_zone"},
		"local":       {report.Window{Name: "7d", Zone: "Local"}, "window.time_zone"},
		"path":        {report.Window{Name: "7d", Zone: "../../etc/passwd"}, "window.time_zone"},
	} {
		var wrong *report.FieldError
		if _, err := c.w.Resolve(at, nil); !errors.As(err, &wrong) || wrong.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := report.Query{Tenant: "acme", Filters: []report.Filter{{Dimension: "tag:a b", Values: []string{""}}}}
	groups := report.GroupsRequest{Query: ok, GroupBy: []string{"team", "tag:x", "model"}, Top: 50}
	series := report.TimeSeriesRequest{Query: ok, Granularity: report.Day}
	if err := errors.Join(groups.Validate(), series.Validate()); err != nil {
		t.Error(err)
	}
	filters := func(f ...report.Filter) report.Query { return report.Query{Tenant: "acme", Filters: f} }
	team := report.Filter{Dimension: "team", Values: []string{"a"}}
	for name, c := range map[string]struct {
		err   func() error
		field string
	}{
		"no tenant":     {(&report.Query{}).Validate, "tenant_id"},
		"system":        {(&report.Query{Tenant: "system/0"}).Validate, "tenant_id"},
		"twice":         {ptr(filters(team, team)).Validate, "filters[1].dimension"},
		"no value":      {ptr(filters(report.Filter{Dimension: "team"})).Validate, "filters[0].values"},
		"many values":   {ptr(filters(report.Filter{Dimension: "team", Values: make([]string, 101)})).Validate, "filters[0].values"},
		"long value":    {ptr(filters(report.Filter{Dimension: "team", Values: []string{strings.Repeat("x", 257)}})).Validate, "filters[0].values"},
		"control":       {ptr(filters(report.Filter{Dimension: "team", Values: []string{"a\tb"}})).Validate, "filters[0].values"},
		"bad UTF-8":     {ptr(filters(report.Filter{Dimension: "team", Values: []string{"\xff"}})).Validate, "filters[0].values"},
		"many filters":  {ptr(filters(slices.Repeat([]report.Filter{team}, 9)...)).Validate, "filters"},
		"no group":      {(&report.GroupsRequest{Query: ok}).Validate, "group_by"},
		"four groups":   {(&report.GroupsRequest{Query: ok, GroupBy: []string{"team", "model", "agent", "status"}}).Validate, "group_by"},
		"group twice":   {(&report.GroupsRequest{Query: ok, GroupBy: []string{"team", "team"}}).Validate, "group_by[1]"},
		"top":           {(&report.GroupsRequest{Query: ok, GroupBy: []string{"team"}, Top: 51}).Validate, "top"},
		"negative":      {(&report.GroupsRequest{Query: ok, GroupBy: []string{"team"}, Top: -1}).Validate, "top"},
		"no granule":    {(&report.TimeSeriesRequest{Query: ok}).Validate, "granularity"},
		"wrong granule": {(&report.TimeSeriesRequest{Query: ok, Granularity: "PT2H"}).Validate, "granularity"},
	} {
		var wrong *report.FieldError
		if err := c.err(); !errors.As(err, &wrong) || wrong.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }
