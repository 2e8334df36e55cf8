package analytics

import (
	"strconv"
	"strings"

	"github.com/tallystick/tallystick/analytics/report"
)

// The statements of reports are put together from the constants of this file
// by closed choices: which report, which table, which dimensions. Nothing else
// can become part of one; values travel as parameters.

// source is a table that a report is read from.
type source uint8

const (
	// bySingleEntry reads table entry. It knows every dimension and can be
	// bounded to the entries that an answer says it covers.
	bySingleEntry source = iota
	// byHour reads the sums of table usage_hour.
	byHour
)

// form is a kind of report.
type form uint8

const (
	summaryForm form = iota
	groupsForm
	seriesForm
)

// column is a dimension in the closed table of columns.
type column uint8

// tagColumnID stands for the tag of the position it is used at.
const tagColumnID column = 0xff

// columns are the columns of dimensions, by their place in this list; their
// names are constants of the schema.
var columns = []struct {
	name string // of the dimension and of the column
	hour bool   // usage_hour has it too
}{
	{"provider", true},
	{"model", true},
	{"operation", false},
	{"region", false},
	{"service_tier", true},
	{"status", true},
	{"team", true},
	{"service", true},
	{"feature", false},
	{"agent", false},
	{"user_pseudonym", false},
	{"end_customer", false},
	{"environment", true},
	{"gpu_state", false},
	{"purchase_option", false},
}

// columnOf finds a dimension's column.
func columnOf(d report.Dimension) (column, bool) {
	if d.IsTag() {
		return tagColumnID, true
	}
	for i := range columns {
		if columns[i].name == d.Name {
			return column(i), true
		}
	}
	return 0, false
}

// inHours reports whether usage_hour has the column.
func (c column) inHours() bool { return c != tagColumnID && columns[c].hour }

// shape is all that decides a statement's text.
type shape struct {
	form    form
	source  source
	groups  [report.MaxGroupBy]column // the first n of them
	n       int
	owned   uint8  // one bit per place of groups: untagged usage has owners there
	filters uint16 // one bit per column
	tags    int    // filters that are tags
}

const (
	tenantCondition = `tenant_id = {tenant:String}`

	entryFrom = ` FROM entry WHERE ` + tenantCondition + ` AND kind IN ('usage', 'correction')` +
		` AND occurred_at >= fromUnixTimestamp64Micro({start:Int64}, 'UTC') AND occurred_at < fromUnixTimestamp64Micro({end:Int64}, 'UTC')` +
		` AND seq <= {seq:UInt64}`
	hourFrom = ` FROM usage_hour WHERE ` + tenantCondition + ` AND hour >= {start:Int64} AND hour < {end:Int64}`

	// edges are of the unit that the bucket's expression has: microseconds in
	// one table, hours in the other. roundDown searches by halves.
	entryBucket = `roundDown(` + entryTime + `, {edges:Array(Int64)}) AS bucket`
	hourBucket  = `roundDown(` + hourTime + `, {edges:Array(Int64)}) AS bucket`

	entryCost = `sum(ifNull(cost, toDecimal128(0, 12)))`
	hourCost  = `sum(sum_cost)`

	entryCounts = `toInt64(countIf(kind = 'usage')) AS a_requests, toInt64(countIf(kind = 'usage' AND status != 'ok')) AS a_failed,` +
		` toInt64(countIf(kind = 'usage' AND isNull(cost))) + sum(unpriced_delta) AS a_unpriced,` +
		` toInt64(countIf(estimated)) + sum(estimated_delta) AS a_estimated,` +
		` toInt64(countIf(kind = 'correction')) AS a_corrections,` +
		` sum(input) AS a_input, sum(cache_read) AS a_cache_read,` +
		` sum(cache_write_5m) AS a_cache_write_5m, sum(cache_write_1h) AS a_cache_write_1h,` +
		` sum(output) AS a_output, sum(reasoning) AS a_reasoning,` +
		` sum(audio_input) AS a_audio_input, sum(audio_output) AS a_audio_output,` +
		` sum(image_input) AS a_image_input, sum(image_output) AS a_image_output, sum(gpu_us) AS a_gpu_us`
	hourCounts = `toInt64(sum(sum_requests)) AS a_requests, toInt64(sum(sum_failed)) AS a_failed, sum(sum_unpriced) AS a_unpriced,` +
		` sum(sum_estimated) AS a_estimated, toInt64(sum(sum_corrections)) AS a_corrections, sum(sum_input) AS a_input, sum(sum_cache_read) AS a_cache_read,` +
		` sum(sum_cache_write_5m) AS a_cache_write_5m, sum(sum_cache_write_1h) AS a_cache_write_1h, sum(sum_output) AS a_output,` +
		` sum(sum_reasoning) AS a_reasoning, sum(sum_audio_input) AS a_audio_input, sum(sum_audio_output) AS a_audio_output,` +
		` sum(sum_image_input) AS a_image_input, sum(sum_image_output) AS a_image_output, sum(sum_gpu_us) AS a_gpu_us`

	// sums are what every statement of a report ends its columns with.
	sums = `toString(a_cost), a_requests, a_failed, a_unpriced, a_estimated, a_corrections, a_input, a_cache_read, a_cache_write_5m,` +
		` a_cache_write_1h, a_output, a_reasoning, a_audio_input, a_audio_output, a_image_input, a_image_output, a_gpu_us`
	sumsOfSums = `toString(sum(a_cost)), sum(a_requests), sum(a_failed), sum(a_unpriced), sum(a_estimated), sum(a_corrections), sum(a_input),` +
		` sum(a_cache_read), sum(a_cache_write_5m), sum(a_cache_write_1h), sum(a_output), sum(a_reasoning), sum(a_audio_input),` +
		` sum(a_audio_output), sum(a_image_input), sum(a_image_output), sum(a_gpu_us)`

	// The k-th dimension has these names: $K its column, $N its number.
	//
	// Without a sub-query: the engine analyses each level anew, which costs a
	// small report more than reading does.
	summaryTemplate = `SELECT toString($COST), $COUNTS$FROM`

	groupsTemplate = `SELECT $OUT, other, ` + sumsOfSums +
		` FROM (SELECT *, row_number() OVER (ORDER BY a_cost DESC, $NAMES) > {top:UInt32} AS other` +
		` FROM (SELECT $KEYS, $SUMS$FROM GROUP BY $NAMES))` +
		` GROUP BY other, $OUTNAMES ORDER BY other, sum(a_cost) DESC, $OUTNAMES`

	seriesTemplate = `SELECT $OUTNAMES, other, bucket, ` + sums +
		` FROM (SELECT $BUCKET, ($COLUMNS) NOT IN (SELECT $COLUMNS$FROM GROUP BY $COLUMNS ORDER BY $COST DESC, $COLUMNS LIMIT {top:UInt32}) AS other,` +
		` $OUTCOLUMNS, $SUMS$FROM GROUP BY bucket, other, $OUTNAMES)` +
		` ORDER BY bucket, other, $OUTNAMES`

	// With owners the columns are what usage is shown as, and moved says of which
	// rows that is not what they carry. The groups come in no order: a group is of
	// one row or two.
	ownedGroupsTemplate = `SELECT $OUTNAMES, other, moved, ` + sums +
		` FROM (SELECT ($COLUMNS) NOT IN (SELECT $COLUMNS$FROM GROUP BY $COLUMNS ORDER BY $COST DESC, $COLUMNS LIMIT {top:UInt32}) AS other,` +
		` $OUTCOLUMNS, $MOVED AS moved, $SUMS$FROM GROUP BY other, moved, $OUTNAMES)`

	ownedSeriesTemplate = `SELECT $OUTNAMES, other, moved, bucket, ` + sums +
		` FROM (SELECT $BUCKET, ($COLUMNS) NOT IN (SELECT $COLUMNS$FROM GROUP BY $COLUMNS ORDER BY $COST DESC, $COLUMNS LIMIT {top:UInt32}) AS other,` +
		` $OUTCOLUMNS, $MOVED AS moved, $SUMS$FROM GROUP BY bucket, other, moved, $OUTNAMES)`

	// ownedColumn is the column $K with the owner in place of "" whose period the
	// row's time $T is in. The first period begins with the window.
	ownedColumn = `if($K = '', unhex(transform(roundDown($T, {periods:Array(Int64)}), {periods:Array(Int64)}, {owners$N:Array(String)}, '')), toString($K))`
	entryTime   = `toUnixTimestamp64Micro(occurred_at)`
	hourTime    = `toInt64(hour)`

	ungroupedSeriesTemplate = `SELECT bucket, ` + sums + ` FROM (SELECT $BUCKET, $SUMS$FROM GROUP BY bucket) ORDER BY bucket`
)

// statement is the text of the shape's query.
func (s shape) statement() string {
	from, bucket, cost, counts := entryFrom, entryBucket, entryCost, entryCounts
	if s.source == byHour {
		from, bucket, cost, counts = hourFrom, hourBucket, hourCost, hourCounts
	}
	template := summaryTemplate
	switch {
	case s.form == groupsForm && s.owned != 0:
		template = ownedGroupsTemplate
	case s.form == groupsForm:
		template = groupsTemplate
	case s.form == seriesForm && s.owned != 0:
		template = ownedSeriesTemplate
	case s.form == seriesForm && s.n > 0:
		template = seriesTemplate
	case s.form == seriesForm:
		template = ungroupedSeriesTemplate
	}
	return strings.NewReplacer(
		"$FROM", from+s.conditions(), "$SUMS", cost+" AS a_cost, "+counts, "$COUNTS", counts, "$BUCKET", bucket, "$COST", cost,
		"$OUTCOLUMNS", s.list("if(other, '', toString($K)) AS o$N"), "$OUTNAMES", s.list("o$N"),
		"$OUT", s.list("if(other, '', toString(g$N)) AS o$N"),
		"$KEYS", s.list("$K AS g$N"), "$NAMES", s.list("g$N"), "$COLUMNS", s.list("$K"), "$MOVED", s.moved(),
	).Replace(template)
}

// moved is the expression of whether an owner stands for a row's own value.
func (s shape) moved() string {
	var parts []string
	for i := range s.n {
		if s.owned&(1<<i) != 0 {
			parts = append(parts, "toString("+columns[s.groups[i]].name+") != "+s.expression(i))
		}
	}
	return strings.Join(parts, " OR ")
}

// expression is that of the dimension at a place of the groups.
func (s shape) expression(i int) string {
	number := strconv.Itoa(i + 1)
	c := s.groups[i]
	switch {
	case c == tagColumnID:
		return strings.ReplaceAll("tags[unhex({key$N:String})]", "$N", number)
	case s.owned&(1<<i) == 0:
		return columns[c].name
	}
	at := entryTime
	if s.source == byHour {
		at = hourTime
	}
	return strings.NewReplacer("$K", columns[c].name, "$T", at, "$N", number).Replace(ownedColumn)
}

// list repeats a piece for each dimension of the shape.
func (s shape) list(piece string) string {
	parts := make([]string, s.n)
	for i := range parts {
		parts[i] = strings.NewReplacer("$K", s.expression(i), "$N", strconv.Itoa(i+1)).Replace(piece)
	}
	return strings.Join(parts, ", ")
}

// conditions are those of the filters. For most columns hex runs once per value
// of a part's dictionary and not once per row.
func (s shape) conditions() string {
	var b strings.Builder
	for i := range columns {
		if s.filters&(1<<i) != 0 {
			b.WriteString(strings.ReplaceAll(" AND hex($C) IN {in_$C:Array(String)}", "$C", columns[i].name))
		}
	}
	for i := range s.tags {
		b.WriteString(strings.ReplaceAll(" AND hex(tags[unhex({tag$N:String})]) IN {in_tag$N:Array(String)}", "$N", strconv.Itoa(i+1)))
	}
	return b.String()
}

// tables are those with tenant data that a tenant's statements may read; each
// gets the tenant's filter from the engine as well, under every name it has.
var tables = []string{"entry", "usage_hour", "usage_hour_view", "rollup_hour", "announced"}

// tablesOf are those of the tables whose names stand in the statement, which is
// all that it can read: the engine spends more on a filter's text than on a row.
func tablesOf(sql string) []string {
	named := make([]string, 0, len(tables))
	for _, t := range tables {
		if strings.Contains(sql, t) {
			named = append(named, t)
		}
	}
	return named
}

// The statements that are no reports over dimensions.
const (
	// announcedSQL is how far the tenant's entries may have been stored.
	announcedSQL = `SELECT max(seq) FROM announced WHERE ` + tenantCondition
	// extentSQL is the first and last hour with usage.
	extentSQL = `SELECT count(), min(hour), max(hour) FROM usage_hour WHERE ` + tenantCondition
	// conflictsSQL counts the rejections of one event id.
	conflictsSQL = `SELECT count() FROM entry WHERE ` + tenantCondition + ` AND kind = 'rejected' AND reject_reason = 'conflict'` +
		` AND event_key = toFixedString(unhex({key:String}), 16)`

	// meteredSQL is how far the tenant's entries may have been stored, under the id '',
	// and which of some calls the metering proxy has entries of; see [Metered].
	meteredSQL = `SELECT request, used FROM (SELECT '' AS request, toInt64(max(seq)) AS used FROM announced WHERE ` + tenantCondition +
		` UNION ALL SELECT provider_request_id AS request, input + cache_read + cache_write_5m + cache_write_1h + output + reasoning +` +
		` audio_input + audio_output + image_input + image_output AS used FROM entry WHERE ` + tenantCondition + ` AND kind = 'usage'` +
		` AND occurred_at >= fromUnixTimestamp64Micro({start:Int64}, 'UTC') AND occurred_at <= fromUnixTimestamp64Micro({end:Int64}, 'UTC')` +
		` AND provider_request_id != '' AND hex(provider_request_id) IN {requests:Array(String)}) ORDER BY request, used`

	// The statements for operators see all tenants; see [Operator].
	storeTotalsSQL = `SELECT tenant_id, toString(kind), reject_reason, count(),` +
		` toInt64(countIf(kind = 'usage' AND isNull(cost))) + sum(unpriced_delta), toString(sum(ifNull(cost, toDecimal128(0, 12)))), uniqExactIf((event_key, content), reject_reason = 'conflict')` +
		` FROM entry GROUP BY tenant_id, kind, reject_reason ORDER BY tenant_id, kind, reject_reason`
	storeCostSQL = `SELECT toString(sum(sum_cost)), sum(sum_requests), sum(sum_unpriced) FROM usage_hour`
)
