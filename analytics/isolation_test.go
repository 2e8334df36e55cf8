package analytics_test

import (
	"context"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/ledger/chain"
)

// answer is a result as text, row by row.
func answer(t *testing.T, rows driver.Rows, err error) []string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var targets []any
		for _, c := range rows.ColumnTypes() {
			targets = append(targets, reflect.New(c.ScanType()).Interface())
		}
		if err := rows.Scan(targets...); err != nil {
			t.Fatal(err)
		}
		var line []string
		for _, v := range targets {
			line = append(line, fmt.Sprint(reflect.ValueOf(v).Elem().Interface()))
		}
		all = append(all, strings.Join(line, "|"))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestIsolation asks every statement of the registry as one tenant beside
// another with the very same attributes. What it must answer is what it answers
// in a store of its own. Each of the two ways by which the tenant is forced must
// be enough alone, and with both taken away the other tenant's rows must show:
// else the test would show nothing.
func TestIsolation(t *testing.T) {
	const mine, theirs = "tenant-1", "tenant-0" // the latter has more entries
	g := newTraffic(9, 2, march, 30*time.Hour)
	entries := g.entries(1500)
	// Rows that every filter below lets through, for both.
	like := newTraffic(10, 1, march, 30*time.Hour)
	proto := &chain.Entry{}
	for proto.Kind != chain.Usage || len(proto.Event.Tags) == 0 || proto.Event.Tags[0].Key != "cost-centre" || !proto.Priced {
		like.next(proto)
	}
	for _, id := range []string{mine, theirs} {
		for range 5 {
			e := clone(proto)
			g.seq[id]++
			e.Event.Tenant, e.Seq = id, g.seq[id]
			entries = append(entries, e)
		}
		call := clone(proto)
		g.seq[id]++
		call.Event.Tenant, call.Seq, call.Event.Provider, call.Event.ProducerID = id, g.seq[id], "bedrock", event.ProxyProducer+"1"
		call.Event.ProviderRequestID = map[string]string{mine: "request-1", theirs: "request-2"}[id]
		entries = append(entries, call)
		e := &chain.Entry{Kind: chain.Rejected, RejectReason: chain.RejectConflict}
		g.seq[id]++
		e.Event.Tenant, e.Seq = id, g.seq[id]
		entries = append(entries, e)
	}
	shared, sharedReader := newStore(t)
	store(t, analytics.NewWriter(shared), "plan", 1, entries)
	writer, alone := newStore(t)
	own := slices.DeleteFunc(slices.Clone(entries), func(e *chain.Entry) bool { return e.Event.Tenant != mine })
	store(t, analytics.NewWriter(writer), "plan", 1, own)

	values := map[string][]string{"tag": {value(proto, "tag:cost-centre")}}
	for _, d := range report.Dimensions() {
		values[d] = []string{value(proto, d)}
	}
	span := report.Span{Start: march.Add(-time.Hour), End: march.Add(31 * time.Hour), Zone: time.UTC}
	statements := analytics.Statements(span, 1<<40, "cost-centre", values)
	t.Logf("%d statements", len(statements))
	for _, s := range statements {
		params := ch.Parameters{"tenant": mine}
		for k, v := range s.Params {
			params[k] = v
		}
		parameterOnly := ch.Context(t.Context(), ch.WithParameters(params))
		withoutCondition := strings.ReplaceAll(s.SQL, analytics.TenantCondition, "{tenant:String} != ''")
		scope := clickhouse.Scope{Tenant: mine, Tables: analytics.TablesOf(s.SQL)}
		want := ask(t, t.Context(), alone, scope, s.SQL, s.Params)
		if strings.Trim(strings.Join(want, ""), "0|") == "" {
			t.Errorf("%s: the rightful tenant sees nothing", s.Name)
		}
		if got := ask(t, t.Context(), sharedReader, scope, s.SQL, s.Params); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %q\nwant %q", s.Name, got, want)
		}
		if got := ask(t, t.Context(), sharedReader, scope, withoutCondition, s.Params); !slices.Equal(got, want) {
			t.Errorf("%s, filter alone:\n got %q\nwant %q", s.Name, got, want)
		}
		rows, err := sharedReader.Query(parameterOnly, s.SQL)
		if got := answer(t, rows, err); !slices.Equal(got, want) {
			t.Errorf("%s, parameter alone:\n got %q\nwant %q", s.Name, got, want)
		}
		rows, err = sharedReader.Query(parameterOnly, withoutCondition)
		if got := answer(t, rows, err); slices.Equal(got, want) {
			t.Errorf("%s: without any force it answers the same; the test shows nothing", s.Name)
		}
	}
}

func ask(t *testing.T, ctx context.Context, db *clickhouse.DB, scope clickhouse.Scope, sql string, params map[string]string) []string {
	t.Helper()
	rows, err := db.QueryTenant(ctx, scope, sql, params)
	return answer(t, rows, err)
}

var (
	fromWhat = regexp.MustCompile(`(?i)\b(?:FROM|JOIN|INTO|TABLE)\s+([^\s,)]+)`)
	// waysAround are ways past the tenant's filter that the engine leaves to a
	// reader (TestKnownHoles shows them), and ways out of it.
	waysAround = regexp.MustCompile(`(?i)\b(mergeTreeIndex|mergeTreeProjection|merge|system|information_schema|file|url|s3|remote|cluster|loop|numbers|executable|dictionary|SETTINGS|OUTFILE|INFILE|FORMAT|EXPLAIN|DESCRIBE|SHOW|_part|_table)\b`)
)

// TestStatementsStayWithinTheirTables reads the registry's text: nothing but
// the listed tables, which are those that get the filter, and no function that
// reads anything else.
func TestStatementsStayWithinTheirTables(t *testing.T) {
	span := report.Span{Start: march, End: march.Add(time.Hour), Zone: time.UTC}
	for _, s := range analytics.Statements(span, 1, "k", map[string][]string{}) {
		found := fromWhat.FindAllStringSubmatch(s.SQL, -1)
		if len(found) == 0 {
			t.Errorf("%s reads nothing: %s", s.Name, s.SQL)
		}
		for _, m := range found {
			if !strings.HasPrefix(m[1], "(") && !slices.Contains(analytics.Tables, m[1]) {
				t.Errorf("%s reads %s: %s", s.Name, m[1], s.SQL)
			}
		}
		if bad := waysAround.FindString(s.SQL); bad != "" {
			t.Errorf("%s uses %s: %s", s.Name, bad, s.SQL)
		}
		tables := len(found) - strings.Count(s.SQL, "FROM (")
		if n := strings.Count(s.SQL, analytics.TenantCondition); n != tables {
			t.Errorf("%s reads %d tables and forces its tenant %d times: %s", s.Name, tables, n, s.SQL)
		}
		if strings.ContainsAny(s.SQL, "$;") || strings.Contains(s.SQL, "--") {
			t.Errorf("%s: %s", s.Name, s.SQL)
		}
	}
}

// TestKnownHoles goes where ClickHouse lets a reader see past a filter, were it
// given SQL of its own. Those that are closed must stay so; those that are open
// are why no SQL is ever taken from a user and why the registry names tables
// only. When one of them closes, the test says so, and the list gets shorter.
func TestKnownHoles(t *testing.T) {
	writer, reader := newStore(t)
	store(t, analytics.NewWriter(writer), "plan", 1, newTraffic(5, 3, march, 48*time.Hour).entries(3000))
	scope := clickhouse.Scope{Tenant: "tenant-0", Tables: analytics.Tables}
	others := func(sql string) (bool, error) {
		rows, err := reader.QueryTenant(t.Context(), scope, sql+" WHERE {tenant:String} != ''", nil)
		if err != nil {
			return false, err
		}
		defer rows.Close()
		seen := false
		for rows.Next() {
			var s string
			if err := rows.Scan(&s); err != nil {
				return seen, err
			}
			seen = seen || s != "tenant-0"
		}
		return seen, rows.Err()
	}
	for _, sql := range []string{
		"SELECT toString(tenant_id) FROM entry",
		"SELECT toString(tenant_id) FROM usage_hour_view",
		"SELECT toString(tenant_id) FROM usage_hour",
		"SELECT toString(tenant_id) FROM announced",
		"SELECT toString(tenant_id) FROM view(SELECT * FROM entry)",
	} {
		if seen, err := others(sql); seen || err != nil {
			t.Errorf("%s: others seen: %v, %v", sql, seen, err)
		}
	}
	for _, sql := range []string{
		"SELECT toString(tenant_id) FROM mergeTreeIndex(currentDatabase(), 'entry')",
		"SELECT toString(tenant_id) FROM merge(currentDatabase(), 'entry')",
		"SELECT name FROM system.parts",
	} {
		if seen, err := others(sql); !seen || err != nil {
			t.Errorf("%s: others seen: %v, %v; the hole has closed, take it off the list", sql, seen, err)
		}
	}
	for _, sql := range []string{
		"ALTER TABLE entry DELETE WHERE tenant_id = 'tenant-1'",
		"ALTER TABLE entry UPDATE cost = 0 WHERE 1",
		"DELETE FROM entry WHERE 1",
		"INSERT INTO usage_hour (tenant_id) VALUES ('tenant-0')",
		"DROP VIEW usage_hour_view",
		"TRUNCATE TABLE announced",
		"SELECT 1 FROM file('/etc/passwd', 'LineAsString')",
		"SELECT count() FROM (SELECT * FROM entry SETTINGS additional_table_filters = {}, readonly = 0)",
		"SELECT 1 INTO OUTFILE '/tmp/tallystick-out'",
	} {
		if err := reader.Exec(t.Context(), sql); err == nil {
			t.Errorf("a reader may run: %s", sql)
		}
	}
	if n := count(t, reader, "SELECT count() FROM entry"); n != 3000 {
		t.Errorf("%d entries are left", n)
	}
}

// TestEveryTableIsFiltered reads the catalogue: whatever has a tenant is in the
// list of what gets the filter, or a view over it would be a way around.
func TestEveryTableIsFiltered(t *testing.T) {
	writer, _ := newStore(t)
	rows, err := writer.Query(t.Context(), "SELECT DISTINCT table FROM system.columns WHERE database = currentDatabase() AND name = 'tenant_id' ORDER BY table")
	found := answer(t, rows, err)
	listed := slices.Clone(analytics.Tables)
	slices.Sort(listed)
	if !slices.Equal(found, listed) {
		t.Errorf("tables with a tenant: %q; filtered are %q", found, listed)
	}
}

// TestFilterReachesViews shows two holes that a filter by table has, and that
// both are closed by where and how it is set. A view is read past the filter of
// the table that it writes to, so it has a filter of its own; and a filter on
// the table that is inserted into would keep rows from its views, so no insert
// of ours carries one.
func TestFilterReachesViews(t *testing.T) {
	writer, reader := newStore(t)
	store(t, analytics.NewWriter(writer), "plan", 1, newTraffic(5, 3, march, 48*time.Hour).entries(300))
	tenants := func(scope clickhouse.Scope) int {
		return len(ask(t, t.Context(), reader, scope, "SELECT DISTINCT toString(tenant_id) FROM usage_hour_view WHERE {tenant:String} != ''", nil))
	}
	if n := tenants(clickhouse.Scope{Tenant: "tenant-0", Tables: []string{"entry", "usage_hour"}}); n != 3 {
		t.Errorf("with filters on its table alone the view shows %d tenants, not all 3: the hole has closed, take it off the list", n)
	}
	if n := tenants(clickhouse.Scope{Tenant: "tenant-0", Tables: analytics.Tables}); n != 1 {
		t.Errorf("with its own filter the view shows %d tenants", n)
	}
	stored := count(t, writer, "SELECT uniqExact(tenant_id) FROM usage_hour")
	if stored != 3 {
		t.Errorf("the view took up entries of %d tenants, not of 3", stored)
	}
	// The table takes all rows of an insert under a filter, and its view none.
	filtered := ch.Context(t.Context(), ch.WithSettings(ch.Settings{"additional_table_filters": "{'entry': 'tenant_id = \\'tenant-0\\'', 'usage_hour': 'tenant_id = \\'tenant-0\\''}"}))
	if err := writer.Exec(filtered, "INSERT INTO entry (tenant_id, seq, kind, model) VALUES ('late-1', 1, 'usage', 'm'), ('late-2', 1, 'usage', 'm')"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, writer, "SELECT uniqExact(tenant_id) FROM entry WHERE tenant_id LIKE 'late-%'"); n != 2 {
		t.Errorf("an insert under a filter stored entries of %d tenants, not of 2", n)
	}
	if n := count(t, writer, "SELECT uniqExact(tenant_id) FROM usage_hour WHERE tenant_id LIKE 'late-%'"); n != 0 {
		t.Errorf("of two tenants' entries inserted under a filter the view took up those of %d: the hole has closed, take it off the list", n)
	}
}

// TestMutationsIgnoreFilters shows why a reader may not mutate: a mutation that
// the filter should hold to one tenant takes every tenant's rows.
func TestMutationsIgnoreFilters(t *testing.T) {
	writer, reader := newStore(t)
	store(t, analytics.NewWriter(writer), "plan", 1, newTraffic(5, 3, march, 48*time.Hour).entries(300))
	filtered := ch.Context(t.Context(), ch.WithSettings(ch.Settings{"additional_table_filters": "{'entry': 'tenant_id = \\'tenant-0\\''}", "mutations_sync": 2}))
	const mutation = "ALTER TABLE entry DELETE WHERE 1"
	if err := reader.Exec(filtered, mutation); err == nil {
		t.Error("a reader may mutate")
	}
	if n := count(t, writer, "SELECT count() FROM entry"); n != 300 {
		t.Fatalf("%d entries are left", n)
	}
	if err := writer.Exec(filtered, mutation); err != nil {
		t.Fatal(err)
	}
	if n := count(t, writer, "SELECT count() FROM entry"); n != 0 {
		t.Errorf("%d entries are left: mutations obey the filter now, take this off the list", n)
	}
}
