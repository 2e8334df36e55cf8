package analytics_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/tenant"
)

// injections are texts that would mean something, were they ever read as SQL,
// as an array's literal or as the escaped text that parameters travel in.
var injections = []string{
	`'`, `''`, `"`, "`", `\`, `\\`, `\'`, `'\''`, `\n`, `\t`, `\0`, `\N`, `NULL`, `[]`, `['a','b']`, `a','b`, `a'] OR 1 --`, `')`, `'))`,
	`' OR '1'='1`, `' OR 1 = 1 --`, `' UNION ALL SELECT * FROM entry --`, `'; DROP TABLE entry; --`, `1; DROP TABLE entry`, `x) OR (1`,
	`{tenant:String}`, `{seq:UInt64}`, `$FROM`, `$K`, `%27`, `%27%20OR%201`, `&readonly=0`, `#`, `/*`, `*/`, `-- `, `sleep(3)`, `tenant-1`,
	`' SETTINGS readonly = 0 --`, `' FORMAT Native --`, `\x27 OR 1`, `ʼ`, `＇`, `🧾`, `ß`, ` `, `  lead`, `trail  `, `a,b`, `(`, `)`, `[`, `]`, `{`, `}`,
}

// TestInjection stores each text as the value of every dimension, as a tag's
// key and as a tag's value, and asks for it by every parameter that takes text:
// it must be found as itself and find nothing else.
func TestInjection(t *testing.T) {
	writer, reader := newStore(t)
	g := newWorkload(1, 2, march, 10)
	entries := g.entries(len(injections) + 20)
	for i, text := range injections {
		ev := &entries[i].Event
		for _, field := range []*string{&ev.Provider, &ev.Model, &ev.Operation, &ev.Region, &ev.ServiceTier, &ev.Status, &ev.Team, &ev.Service, &ev.Feature,
			&ev.Agent, &ev.UserPseudonym, &ev.EndCustomer, &ev.Environment} {
			*field = text
		}
		ev.Tenant = "tenant-0"
		ev.Tags = []event.Tag{{Key: "key", Value: text}, {Key: "t" + text, Value: "v" + text}}
		g.seq["tenant-0"]++
		entries[i].Seq = g.seq["tenant-0"]
	}
	store(t, analytics.NewWriter(writer), `plan' "\ `, 1, entries)
	r := analytics.NewReporter(reader, covering(entries), time.Now)
	span := report.Span{Start: march.Add(-24 * time.Hour), End: march.Add(time.Hour)}
	base := report.Query{Tenant: "tenant-0", Window: report.Window{Start: span.Start, End: span.End}}
	for _, text := range injections {
		for _, filters := range [][]report.Filter{
			{{Dimension: "team", Values: []string{text}}},
			{{Dimension: "model", Values: []string{text, "absent"}}, {Dimension: "status", Values: []string{"absent", text}}},
			{{Dimension: "feature", Values: []string{text}}, {Dimension: "user_pseudonym", Values: []string{text}}},
			{{Dimension: "tag:key", Values: []string{text}}},
			{{Dimension: "tag:t" + text, Values: []string{"v" + text}}, {Dimension: "tag:key", Values: []string{text, "'"}}},
		} {
			q := base
			q.Filters = filters
			want := matching(entries, q.Tenant, span, filters)
			got, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
			if err != nil || got.Totals != totalsOf(t, want) || len(want) != 1 {
				t.Errorf("%q %v: %v, %v; want %d entries", text, filters, got, err, len(want))
			}
		}
		got, err := r.Groups(t.Context(), &report.GroupsRequest{Query: base, GroupBy: []string{"tag:t" + text, "end_customer"}, Top: 50})
		if want := groupsOf(t, matching(entries, base.Tenant, span, nil), []string{"tag:t" + text, "end_customer"}, 50); err != nil || !reflect.DeepEqual(got.Groups, want) {
			t.Errorf("%q: groups %+v, %v; want %+v", text, got, err, want)
		}
	}
	if n := count(t, writer, "SELECT count() FROM entry"); n != uint64(len(entries)) {
		t.Errorf("%d entries are left", n)
	}
}

// TestNamesAreClosed puts each text where only a name of a list may stand. It
// must be refused here, with the field named, before anything is sent.
func TestNamesAreClosed(t *testing.T) {
	closed := &clickhouse.DB{} // whatever is sent to it panics
	r := analytics.NewReporter(closed, &coverage{}, time.Now)
	base := report.Query{Tenant: "acme", Window: report.Window{Name: "7d"}}
	for _, text := range append(injections, "tenant_id", "seq", "cost", "tag", "tag:", "sum_cost", "hour", "tag:a\x00", "tag:"+strings.Repeat("x", 300), "\xff") {
		bad := map[string]func() error{
			"tenant_id": func() error {
				q := base
				q.Tenant = tenant.ID(text + "'")
				_, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
				return err
			},
			"window.name": func() error {
				q := base
				q.Window = report.Window{Name: text}
				_, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
				return err
			},
			"window.time_zone": func() error {
				q := base
				q.Window.Zone = text + "/" + text
				_, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
				return err
			},
			"filters[0].dimension": func() error {
				q := base
				q.Filters = []report.Filter{{Dimension: text, Values: []string{"x"}}}
				_, err := r.Summary(t.Context(), &report.SummaryRequest{Query: q})
				return err
			},
			"group_by[0]": func() error {
				_, err := r.Groups(t.Context(), &report.GroupsRequest{Query: base, GroupBy: []string{text}})
				return err
			},
			"group_by[1]": func() error {
				_, err := r.TimeSeries(t.Context(), &report.TimeSeriesRequest{Query: base, GroupBy: []string{"team", text}, Granularity: report.Day})
				return err
			},
			"granularity": func() error {
				_, err := r.TimeSeries(t.Context(), &report.TimeSeriesRequest{Query: base, Granularity: report.Granularity(text)})
				return err
			},
		}
		for field, call := range bad {
			var wrong *report.FieldError
			if err := call(); !errors.As(err, &wrong) || wrong.Field != field {
				t.Errorf("%s = %q: %v", field, text, err)
			}
		}
	}
}
