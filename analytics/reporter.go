package analytics

import (
	"context"
	"fmt"
	"slices"
	"time"

	// Reports know every zone, whatever the host has installed.
	_ "time/tzdata"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/invariant"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// exactAttempts is how often a report is read to find a moment at which nothing
// was arriving.
const exactAttempts = 3

// CoverageReader knows how far a tenant's ledger has been confirmed to be in
// ClickHouse.
type CoverageReader interface {
	// Coverage returns the number of the newest entry that is stored with all
	// before it, the chain hash there and its received_at in unix nanoseconds;
	// zeros when there is none.
	Coverage(ctx context.Context, tenant tenant.ID) (seq int64, chain [32]byte, receivedAt int64, err error)
}

// Reporter answers reports. It is safe for concurrent use.
type Reporter struct {
	db       *clickhouse.DB
	coverage CoverageReader
	now      func() time.Time
}

// NewReporter makes a Reporter on a connection of role clickhouse.Reader, which
// stays the caller's. now is the clock of named windows.
func NewReporter(db *clickhouse.DB, coverage CoverageReader, now func() time.Time) *Reporter {
	return &Reporter{db: db, coverage: coverage, now: now}
}

// Summary answers with the totals of a window. Errors: *report.FieldError, or
// what the coverage, the server or the network says.
func (r *Reporter) Summary(ctx context.Context, req *report.SummaryRequest) (*report.Summary, error) {
	q, err := r.prepare(ctx, summaryForm, &req.Query, nil, 0)
	if err != nil {
		return nil, err
	}
	out := &report.Summary{}
	out.Coverage, err = r.run(ctx, q, func(rows driver.Rows) error {
		out.Totals = report.Totals{}
		return scanRows(rows, &out.Totals, nil)
	})
	return out, err
}

// Groups answers with the totals by group. Of groups of equal cost the one
// whose values sort first comes first. Errors as of Summary.
func (r *Reporter) Groups(ctx context.Context, req *report.GroupsRequest) (*report.Groups, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if req.Allocation.Method == report.Proportional {
		return r.divided(ctx, req)
	}
	q, err := r.prepare(ctx, groupsForm, &req.Query, req.GroupBy, req.Top)
	if err != nil {
		return nil, err
	}
	allocation, err := q.own(&req.Allocation, req.GroupBy)
	if err != nil {
		return nil, err
	}
	return r.groups(ctx, q, allocation)
}

// groups reads the groups of a query; allocation is nil when they are as tagged.
func (r *Reporter) groups(ctx context.Context, q *query, allocation *report.Allocated) (*report.Groups, error) {
	out := &report.Groups{Allocation: allocation}
	var err error
	out.Coverage, err = r.run(ctx, q, func(rows driver.Rows) error {
		collector := newGroupCollector(q, allocation != nil)
		if err := scanRows(rows, &collector.totals, collector.add, collector.targets()...); err != nil {
			return err
		}
		out.Groups, out.Totals = collector.finish(), collector.sum
		if allocation != nil {
			allocation.Totals = collector.allocated
		}
		return nil
	})
	return out, err
}

// TimeSeries answers with costs and requests over time, by group. The series
// stand in the order of Groups. Errors as of Summary.
func (r *Reporter) TimeSeries(ctx context.Context, req *report.TimeSeriesRequest) (*report.TimeSeries, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	q, err := r.prepareSeries(ctx, req)
	if err != nil {
		return nil, err
	}
	out := &report.TimeSeries{Buckets: q.buckets}
	if out.Allocation, err = q.own(&req.Allocation, req.GroupBy); err != nil {
		return nil, err
	}
	out.Coverage, err = r.run(ctx, q, func(rows driver.Rows) error {
		collector := newSeriesCollector(q, out.Allocation != nil)
		if err := scanRows(rows, &collector.totals, collector.add, collector.targets()...); err != nil {
			return err
		}
		out.Series, out.Totals, err = collector.finish()
		if out.Allocation != nil {
			out.Allocation.Totals = collector.allocated
		}
		return err
	})
	return out, err
}

// Conflicts counts the entries that were rejected because they used the event's
// id with other content.
func (r *Reporter) Conflicts(ctx context.Context, id tenant.ID, eventID string) (int64, error) {
	var n uint64
	key := event.KeyOf(eventID)
	err := r.one(ctx, id, conflictsSQL, map[string]string{"key": key.String()}, &n)
	return int64(n), err
}

// query is a report that is ready to be asked.
type query struct {
	tenant  tenant.ID
	exact   bool
	shape   shape
	span    report.Span
	params  map[string]string
	buckets []time.Time // of a time series
	periods []time.Time // of owners, the first the window's start; nil without owners
}

// prepare validates and turns a request into a query of single entries or, where
// they give the same answer, of hours.
func (r *Reporter) prepare(ctx context.Context, f form, req *report.Query, groupBy []string, top int) (*query, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	span, err := req.Window.Resolve(r.now(), func() (first, last time.Time, err error) { return r.extent(ctx, req.Tenant) })
	if err != nil {
		return nil, err
	}
	if top == 0 {
		top = report.DefaultTop
	}
	q := &query{
		tenant: req.Tenant, exact: req.Exact, span: span,
		shape:  shape{form: f, source: bySingleEntry, n: len(groupBy)},
		params: map[string]string{},
	}
	if f != summaryForm && len(groupBy) > 0 {
		q.params["top"] = intParam(int64(top))
	}
	hours := span.WholeHours()
	for i, name := range groupBy {
		c := q.column("group_by", name, fmt.Sprintf("key%d", i+1))
		q.shape.groups[i] = c
		hours = hours && c.inHours()
	}
	for _, filter := range req.Filters {
		c := q.column("filters", filter.Dimension, fmt.Sprintf("tag%d", q.shape.tags+1))
		hours = hours && c.inHours()
		if c == tagColumnID {
			q.shape.tags++
			q.params[fmt.Sprintf("in_tag%d", q.shape.tags)] = stringsParam(filter.Values)
			continue
		}
		q.shape.filters |= 1 << c
		q.params["in_"+columns[c].name] = stringsParam(filter.Values)
	}
	if hours {
		q.shape.source = byHour
	}
	return q, nil
}

// column finds a validated dimension's column and sets the parameter of a tag's key.
func (q *query) column(field, name, keyParam string) column {
	d, err := report.ParseDimension(field, name)
	c, known := columnOf(d)
	invariant.Check(err == nil && known, "a validated dimension has a column", "%q", name)
	if c == tagColumnID {
		q.params[keyParam] = stringParam(d.Key)
	}
	return c
}

func (r *Reporter) prepareSeries(ctx context.Context, req *report.TimeSeriesRequest) (*query, error) {
	q, err := r.prepare(ctx, seriesForm, &req.Query, req.GroupBy, req.Top)
	if err != nil {
		return nil, err
	}
	if q.buckets, err = report.Buckets(q.span, req.Granularity); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(q.buckets, func(t time.Time) bool { return t.Unix()%secondsPerHour != 0 }) {
		q.shape.source = bySingleEntry
	}
	return q, nil
}

// unit is a time in the unit of the source: microseconds or hours.
func (s source) unit(t time.Time) int64 {
	if s == byHour {
		return t.Unix() / secondsPerHour
	}
	return t.UnixMicro()
}

// units are times in the unit of the source.
func (s source) units(times []time.Time) []int64 {
	units := make([]int64, len(times))
	for i, t := range times {
		units[i] = s.unit(t)
	}
	return units
}

// bind sets the parameters that depend on the source.
func (q *query) bind(seq int64) {
	s := q.shape.source
	q.params["start"], q.params["end"] = intParam(s.unit(q.span.Start)), intParam(s.unit(q.span.End))
	delete(q.params, "seq")
	if s == bySingleEntry {
		q.params["seq"] = intParam(seq)
	}
	if q.shape.form == seriesForm {
		q.params["edges"] = intsParam(q.edges())
	}
	if q.shape.owned != 0 {
		q.params["periods"] = intsParam(s.units(q.periods))
	}
}

func (q *query) edges() []int64 { return q.shape.source.units(q.buckets) }

// run asks the query and says what the answer covers.
//
// Single entries are bounded by number, so the answer is exact at once. Sums by
// hour are exact if nothing beyond the covered entry had been announced when the
// read was over: entries are announced before they are stored. Under steady
// load that may never be so; then the answer says that it is not exact or, when
// the request insists, is read from single entries.
func (r *Reporter) run(ctx context.Context, q *query, read func(driver.Rows) error) (report.Coverage, error) {
	for attempt := 1; ; attempt++ {
		covered, err := r.attempt(ctx, q, read)
		switch {
		case err != nil || covered.Exact:
			return covered, err
		case q.shape.source == bySingleEntry:
			return covered, nil
		case attempt < exactAttempts:
		case q.exact:
			q.shape.source = bySingleEntry
		default:
			return covered, nil
		}
	}
}

func (r *Reporter) attempt(ctx context.Context, q *query, read func(driver.Rows) error) (report.Coverage, error) {
	seq, chain, receivedAt, err := r.coverage.Coverage(ctx, q.tenant)
	if err != nil {
		return report.Coverage{}, fmt.Errorf("read what ClickHouse covers: %w", err)
	}
	q.bind(seq)
	if err := r.read(ctx, q.tenant, q.shape.statement(), q.params, read); err != nil {
		return report.Coverage{}, err
	}
	var announced uint64
	if err := r.one(ctx, q.tenant, announcedSQL, nil, &announced); err != nil {
		return report.Coverage{}, err
	}
	covered := report.Coverage{Start: q.span.Start, End: q.span.End, ToSeq: seq, HeadHash: chain}
	// Fewer announced than confirmed is a ClickHouse that lost what it had.
	covered.Exact = announced == uint64(seq) || q.shape.source == bySingleEntry && announced > uint64(seq)
	if receivedAt > 0 {
		covered.FreshUntil = time.Unix(0, receivedAt).UTC()
	}
	return covered, nil
}

// extent is the first and last hour with usage of the tenant.
func (r *Reporter) extent(ctx context.Context, id tenant.ID) (first, last time.Time, err error) {
	var rows uint64
	var from, to int32
	if err := r.one(ctx, id, extentSQL, nil, &rows, &from, &to); err != nil || rows == 0 {
		return time.Time{}, time.Time{}, err
	}
	return time.Unix(int64(from)*secondsPerHour, 0), time.Unix(int64(to)*secondsPerHour, 0), nil
}

// read runs one statement of the registry for the tenant.
func (r *Reporter) read(ctx context.Context, id tenant.ID, sql string, params map[string]string, scan func(driver.Rows) error) error {
	rows, err := r.db.QueryTenant(ctx, clickhouse.Scope{Tenant: id, Tables: tablesOf(sql)}, sql, params)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	defer rows.Close()
	if err := scan(rows); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// one reads a single row.
func (r *Reporter) one(ctx context.Context, id tenant.ID, sql string, params map[string]string, targets ...any) error {
	return r.read(ctx, id, sql, params, func(rows driver.Rows) error {
		for rows.Next() {
			if err := rows.Scan(targets...); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// scanRows reads rows that consist of targets and then totals, and calls each
// after every row.
func scanRows(rows driver.Rows, totals *report.Totals, each func() error, targets ...any) error {
	var cost string
	var counts [5]int64
	var byClass [tokens.NumClasses]int64
	targets = append(slices.Clone(targets), &cost)
	for i := range counts {
		targets = append(targets, &counts[i])
	}
	for i := range byClass {
		targets = append(targets, &byClass[i])
	}
	var gpu int64
	targets = append(targets, &gpu)
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return err
		}
		sum, err := money.ParseSum(cost)
		if err != nil {
			return fmt.Errorf("a sum of costs: %w", err)
		}
		*totals = report.Totals{
			Cost: sum, Requests: counts[0], Failed: counts[1], Unpriced: counts[2],
			Estimated: counts[3], Corrections: counts[4], Tokens: byClass, GPUMicros: gpu,
		}
		if each != nil {
			if err := each(); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}
