package analytics

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tallystick/tallystick/analytics/report"
)

// own makes the query show untagged usage as its default owners', and says who
// these are; nil when that is not asked for. A dimension that has no owner in the
// window is read as ever.
func (q *query) own(a *report.Allocation, groupBy []string) (*report.Allocated, error) {
	if a.Method != report.DefaultOwner {
		return nil, nil
	}
	periods, err := a.Within(q.span, groupBy)
	if err != nil {
		return nil, err
	}
	out := &report.Allocated{Method: a.Method, Periods: periods}
	if len(periods) == 0 || periods[0].Start.After(q.span.Start) {
		periods = append([]report.OwnerPeriod{{Start: q.span.Start}}, periods...)
	}
	for i, d := range groupBy {
		q.ownPlace(i, d, periods)
	}
	if q.shape.owned == 0 {
		return out, nil
	}
	for _, p := range periods {
		q.periods = append(q.periods, p.Start)
	}
	if slices.ContainsFunc(q.periods, func(t time.Time) bool { return t.Unix()%secondsPerHour != 0 || t.Nanosecond() != 0 }) {
		q.shape.source = bySingleEntry
	}
	return out, nil
}

// ownPlace gives the dimension at a place of the groups its owners by period.
func (q *query) ownPlace(i int, dimension string, periods []report.OwnerPeriod) {
	owners := make([]string, len(periods))
	for k, p := range periods {
		owners[k] = p.Owners[dimension]
	}
	if slices.ContainsFunc(owners, func(o string) bool { return o != "" }) {
		q.shape.owned |= 1 << i
		q.params[fmt.Sprintf("owners%d", i+1)] = stringsParam(owners)
	}
}

// divided answers with groups among which what untagged usage cost is divided. All
// groups are read, so that none's part depends on how many are shown.
func (r *Reporter) divided(ctx context.Context, req *report.GroupsRequest) (*report.Groups, error) {
	q, err := r.prepare(ctx, groupsForm, &req.Query, req.GroupBy, report.MaxDivided)
	if err != nil {
		return nil, err
	}
	out, err := r.groups(ctx, q, nil)
	if err != nil {
		return nil, err
	}
	if len(out.Groups) > report.MaxDivided {
		return nil, &report.FieldError{Field: "group_by", Message: fmt.Sprintf("more than %d groups; choose a shorter window to divide among them", report.MaxDivided)}
	}
	top := req.Top
	if top == 0 {
		top = report.DefaultTop
	}
	return out, out.Divide(top)
}
