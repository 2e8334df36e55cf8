package isolation

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/migrations"
)

// shapes are queries that forget their tenant, each in another place. $T is the
// table, $D the database; the first column is a tenant's name. The victim has
// two rows and the intruder one.
var shapes = []string{
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $D.$T WHERE {tenant:String} != ''",
	"SELECT toString(x.tenant_id) FROM $T AS x WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $T WHERE tenant_id = {tenant:String} OR 1",
	"SELECT toString(tenant_id) FROM $T WHERE tenant_id = 'bravo' AND {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $T PREWHERE 1 WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM (SELECT * FROM $T) WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM (SELECT * FROM (SELECT tenant_id FROM $T ORDER BY tenant_id)) WHERE {tenant:String} != ''",
	"WITH x AS (SELECT tenant_id FROM $T) SELECT toString(tenant_id) FROM x WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} != '' UNION ALL SELECT toString(tenant_id) FROM $T",
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} = '' UNION DISTINCT SELECT toString(tenant_id) FROM $T",
	"SELECT toString(b.tenant_id) FROM (SELECT {tenant:String} AS k) AS a CROSS JOIN $T AS b",
	"SELECT toString(b.tenant_id) FROM (SELECT arrayJoin(['acme', 'bravo']) AS k WHERE {tenant:String} != '') AS a INNER JOIN $T AS b ON toString(b.tenant_id) = a.k",
	"SELECT toString(b.tenant_id) FROM (SELECT tenant_id FROM $T WHERE tenant_id = {tenant:String}) AS a RIGHT JOIN $T AS b ON a.tenant_id = b.tenant_id",
	"SELECT 'bravo' WHERE {tenant:String} != '' AND 'bravo' IN (SELECT toString(tenant_id) FROM $T)",
	"SELECT 'bravo' WHERE {tenant:String} != '' AND (SELECT countIf(tenant_id = 'bravo') FROM $T) > 0",
	"SELECT arrayJoin((SELECT groupUniqArray(toString(tenant_id)) FROM $T)) WHERE {tenant:String} != ''",
	"SELECT arrayJoin(groupUniqArray(toString(tenant_id))) FROM $T WHERE {tenant:String} != ''",
	"SELECT toString(max(tenant_id)) FROM $T WHERE {tenant:String} != ''",
	"SELECT toString(max(tenant_id)) FROM $T HAVING {tenant:String} != ''",
	"SELECT if(count() > 1, 'bravo', '') FROM $T HAVING {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} != '' GROUP BY tenant_id WITH TOTALS",
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} != '' ORDER BY tenant_id LIMIT 1 BY tenant_id",
	"SELECT DISTINCT toString(tenant_id) FROM $T WHERE {tenant:String} != ''",
	"SELECT toString(last_value(tenant_id) OVER (ORDER BY tenant_id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)) FROM $T WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM view(SELECT tenant_id FROM $T) WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $T FINAL WHERE {tenant:String} != ''",
	"SELECT toString(COLUMNS('tenant_id')) FROM $T WHERE {tenant:String} != ''",
}

// refusals are shapes that a reader must not be able to ask at all; a writer is,
// which shows that they would work.
var refusals = []string{
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} != '' SETTINGS additional_table_filters = {}",
	"SELECT toString(tenant_id) FROM (SELECT * FROM $T SETTINGS additional_table_filters = {}) WHERE {tenant:String} != ''",
	"SELECT toString(tenant_id) FROM $T WHERE {tenant:String} != '' SETTINGS readonly = 0, additional_table_filters = {}",
}

// TestClickHouse asks for every table with tenant data in every shape, with the
// filter that QueryTenant forces and nothing else to hold the query back.
func TestClickHouse(t *testing.T) {
	dsn := testenv.ClickHouse(t)
	if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	open := func(role clickhouse.Role) *clickhouse.DB {
		db, err := clickhouse.Open(t.Context(), dsn, role)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	writer, reader := open(clickhouse.Writer), open(clickhouse.Reader)
	tables := clickhouseTables(t, writer)
	for _, name := range tables {
		if name.view {
			continue
		}
		values := " (tenant_id) VALUES ('acme'), ('bravo'), ('bravo')"
		if name.sum != "" { // rows of which all sums are zero are dropped
			values = " (tenant_id, " + name.sum + ") VALUES ('acme', 1), ('bravo', 1), ('bravo', 1)"
		}
		if name.name == "entry" { // what the view takes up
			values = " (tenant_id, seq, kind, model) VALUES ('acme', 1, 'usage', 'a'), ('bravo', 1, 'usage', 'b'), ('bravo', 2, 'usage', 'c')"
		}
		if err := writer.Exec(t.Context(), "INSERT INTO "+name.name+values); err != nil {
			t.Fatal(err)
		}
	}
	var database string
	if err := reader.QueryRow(t.Context(), "SELECT currentDatabase()").Scan(&database); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range tables {
		all = append(all, name.name)
	}
	ask := func(db *clickhouse.DB, as tenant.ID, shape, table string) (seen map[string]bool, err error) {
		sql := strings.NewReplacer("$T", table, "$D", database).Replace(shape)
		rows, err := db.QueryTenant(t.Context(), clickhouse.Scope{Tenant: as, Tables: all}, sql, nil)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		seen = map[string]bool{}
		for rows.Next() {
			var who string
			if err := rows.Scan(&who); err != nil {
				return seen, err
			}
			seen[who] = true
		}
		return seen, rows.Err()
	}
	n := &tally{}
	for _, table := range tables {
		for _, shape := range shapes {
			if strings.Contains(shape, "FINAL") && !table.final {
				continue
			}
			// Rows that were merged are one, and the count of them tells nothing.
			if strings.Contains(shape, "count()") && table.final {
				continue
			}
			n.attempts++
			if seen, err := ask(reader, intruder, shape, table.name); err != nil || seen[victim] {
				n.leaks = append(n.leaks, fmt.Sprintf("%s: %s: %v, %v", table.name, shape, seen, err))
			}
			seen, err := ask(reader, victim, shape, table.name)
			if err != nil || !seen[victim] || seen[intruder] {
				n.broken = append(n.broken, fmt.Sprintf("%s: %s: %v, %v", table.name, shape, seen, err))
				continue
			}
			n.controls++
		}
		for _, shape := range refusals {
			n.attempts++
			if seen, err := ask(reader, intruder, shape, table.name); err == nil {
				n.leaks = append(n.leaks, fmt.Sprintf("%s: %s: may be asked: %v", table.name, shape, seen))
			}
			if seen, err := ask(writer, intruder, shape, table.name); err != nil || !seen[victim] {
				n.broken = append(n.broken, fmt.Sprintf("%s, as writer: %s: %v, %v", table.name, shape, seen, err))
				continue
			}
			n.controls++
		}
	}
	t.Logf("%d tables, %d shapes: %d attempts", len(tables), len(shapes)+len(refusals), n.attempts)
	for _, what := range first(n.leaks) {
		t.Error(what)
	}
	for _, what := range first(n.broken) {
		t.Error("control: " + what)
	}
	// Without the filter the same reader sees everything: it is the filter that
	// holds the queries back.
	rows, err := reader.Query(t.Context(), "SELECT DISTINCT toString(tenant_id) FROM entry")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	unfiltered := 0
	for rows.Next() {
		unfiltered++
	}
	if unfiltered != 2 {
		t.Errorf("without the filter a reader sees %d tenants; the test shows nothing", unfiltered)
	}
	count(func() {
		counts.attempts += n.attempts
		counts.controls += n.controls
		counts.leaks += len(n.leaks)
	})
}

// chTable is a table or view of ClickHouse with tenant data.
type chTable struct {
	name, sum   string // sum is a column that is summed up, or ""
	view, final bool   // final: rows of one key are merged
}

// clickhouseTables lists them from the catalogue. Whatever has no tenant_id is
// known by name.
func clickhouseTables(t *testing.T, db *clickhouse.DB) (list []chTable) {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT name, engine, has((SELECT groupArray(table) FROM system.columns WHERE database = currentDatabase() AND name = 'tenant_id'), name),
		(SELECT groupArray((table, name)) FROM system.columns WHERE database = currentDatabase() AND startsWith(name, 'sum_') AND type = 'UInt64') AS sums,
		arrayFirst(x -> x.1 = tables.name, sums).2
		FROM system.tables AS tables WHERE database = currentDatabase() ORDER BY name`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, engine, sum string
		var has uint8
		if err := rows.Scan(&name, &engine, &has, new(any), &sum); err != nil {
			t.Fatal(err)
		}
		switch {
		case has == 1:
			list = append(list, chTable{name, sum, strings.HasSuffix(engine, "View"), engine != "MergeTree" && strings.HasSuffix(engine, "MergeTree") || strings.HasSuffix(engine, "View")})
		case name != "schema_version":
			t.Errorf("table %s of ClickHouse has no tenant_id and is not known", name)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}
