package analytics

import (
	"fmt"
	"slices"
	"time"

	"github.com/tallystick/tallystick/analytics/report"
)

// Tables are the tables that tenants' statements may name, TablesOf those that
// one names.
var (
	Tables   = tables
	TablesOf = tablesOf
)

// TenantCondition is how statements force their tenant.
const TenantCondition = tenantCondition

// OperatorStatements see all tenants.
var OperatorStatements = []string{storeTotalsSQL, storeCostSQL, largestSQL}

// Statement is one of the registry with values for its parameters.
type Statement struct {
	Name   string
	SQL    string
	Params map[string]string
}

// Statements are those of every report, source, dimension and filter, each
// dimension and filter alone and all together, and the others of tenants.
func Statements(span report.Span, seq int64, tagKey string, values map[string][]string) []Statement {
	all := []Statement{
		{"announced", announcedSQL, nil}, {"extent", extentSQL, nil},
		{"metered", meteredSQL, map[string]string{
			"start": intParam(span.Start.UnixMicro()), "end": intParam(span.End.UnixMicro()), "requests": stringsParam([]string{"request-1", "request-2"}),
		}},
		{"conflicts", conflictsSQL, map[string]string{"key": "00000000000000000000000000000000"}},
	}
	for _, s := range shapes() {
		q := &query{shape: s, span: span, params: map[string]string{"top": "3"}}
		if s.form == seriesForm {
			var err error
			if q.buckets, err = report.Buckets(span, report.Hour); err != nil {
				panic(err)
			}
		}
		for i := range s.n {
			if s.groups[i] == tagColumnID {
				q.params[fmt.Sprintf("key%d", i+1)] = stringParam(tagKey)
			}
		}
		for i := range s.n {
			if s.owned&(1<<i) != 0 {
				q.params[fmt.Sprintf("owners%d", i+1)] = stringsParam([]string{"first's", ""})
				q.periods = []time.Time{span.Start, span.Start.Add(2 * time.Hour)}
			}
		}
		for i, c := range columns {
			if s.filters&(1<<i) != 0 {
				q.params["in_"+c.name] = stringsParam(values[c.name])
			}
		}
		for i := range s.tags {
			q.params[fmt.Sprintf("tag%d", i+1)] = stringParam(tagKey)
			q.params[fmt.Sprintf("in_tag%d", i+1)] = stringsParam(values["tag"])
		}
		q.bind(seq)
		all = append(all, Statement{fmt.Sprintf("%+v", s), s.statement(), q.params})
	}
	return all
}

// teamColumn and environmentColumn are two that untagged usage has owners in.
const (
	teamColumn        column = 6
	environmentColumn column = 12
)

// shapes covers every piece that a statement may be made of.
func shapes() (all []shape) {
	for _, from := range []source{bySingleEntry, byHour} {
		var usable []column
		for i := range columns {
			if from == bySingleEntry || columns[i].hour {
				usable = append(usable, column(i))
			}
		}
		tags := 0
		if from == bySingleEntry {
			usable, tags = append(usable, tagColumnID), 2
		}
		every := uint16(0)
		for _, c := range usable {
			s := shape{source: from, filters: 1 << c}
			if c == tagColumnID {
				s.filters, s.tags = 0, 1
			}
			every |= s.filters
			all = append(all, s)
			for _, f := range []form{groupsForm, seriesForm} {
				all = append(all, shape{form: f, source: from, n: 1, groups: [3]column{c}},
					shape{form: f, source: from, n: 3, groups: [3]column{c, usable[0], usable[len(usable)-1]}})
				if c != tagColumnID && slices.Contains(report.Allocatable(), columns[c].name) {
					all = append(all, shape{form: f, source: from, n: 1, groups: [3]column{c}, owned: 1})
				}
			}
		}
		for _, f := range []form{summaryForm, groupsForm, seriesForm} {
			s := shape{form: f, source: from, filters: every, tags: tags}
			if f == groupsForm {
				s.n, s.groups = 2, [3]column{usable[1], usable[2]}
			}
			all = append(all, s)
			if f != groupsForm {
				all = append(all, shape{form: f, source: from})
			}
			if f != summaryForm {
				s.n, s.groups, s.owned = 3, [3]column{teamColumn, usable[0], environmentColumn}, 0b101
				all = append(all, s)
			}
		}
	}
	return all
}
