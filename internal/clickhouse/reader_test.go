package clickhouse_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/tenant"
)

// escapes are statements that a reader must not be able to run. OUT stands for a
// file that must not come into being and URL for a server that must not be asked.
var escapes = []string{
	"INSERT INTO t VALUES (9, 'x')",
	"INSERT INTO t SETTINGS readonly = 0 VALUES (9, 'x')",
	"INSERT INTO t SELECT 9, 'x'",
	"INSERT INTO FUNCTION file('OUT', 'TSV', 'a Int32') SELECT 1",
	"INSERT INTO FUNCTION url('URL', 'TSV', 'a Int32') SELECT 1",
	"INSERT INTO t FROM INFILE '/etc/passwd' FORMAT TSV",
	"CREATE TABLE t2 (a Int32) ENGINE = Memory",
	"CREATE TEMPORARY TABLE t3 (a Int32)",
	"CREATE FUNCTION f AS (x) -> x",
	"CREATE USER u",
	"DROP TABLE t",
	"DROP TABLE t SETTINGS readonly = 0",
	"TRUNCATE TABLE t",
	"ALTER TABLE t DELETE WHERE 1",
	"ALTER TABLE t DELETE WHERE 1 SETTINGS readonly = 0",
	"DELETE FROM t WHERE 1",
	"OPTIMIZE TABLE t FINAL",
	"RENAME TABLE t TO t4",
	"DETACH TABLE t",
	"SYSTEM STOP MERGES",
	"SYSTEM SHUTDOWN",
	"KILL QUERY WHERE 1",
	"SET readonly = 0",
	"USE system",
	"SELECT 1 SETTINGS readonly = 0",
	"SELECT count() FROM (SELECT * FROM t SETTINGS readonly = 0)",
	"SELECT count() FROM (SELECT * FROM file('/etc/passwd', 'LineAsString') SETTINGS readonly = 0)",
	"SELECT count() FROM (SELECT * FROM file('/etc/passwd', 'LineAsString') SETTINGS readonly = 0, enable_analyzer = 1) SETTINGS enable_analyzer = 1",
	"WITH x AS (SELECT 1 SETTINGS readonly = 0) SELECT * FROM x",
	"SELECT 1 UNION ALL SELECT 2 SETTINGS readonly = 0",
	"SELECT 1; DROP TABLE t",
	"SELECT 1;\n-- \n DROP TABLE t",
	"SELECT * FROM file('/etc/passwd', 'LineAsString')",
	"SELECT * FROM default.`/etc/passwd`",
	"SELECT * FROM `default`.\"/etc/passwd\"",
	"SELECT * FROM url('URL', 'LineAsString')",
	"SELECT * FROM s3('URL', 'LineAsString')",
	"SELECT * FROM remote('127.0.0.1', 'default', 't')",
	"SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
	"SELECT * FROM executable('id', 'LineAsString', 'a String')",
	"SELECT * FROM sqlite('/etc/passwd', 't')",
	"SELECT 1 INTO OUTFILE 'OUT'",
	"SELECT 1 INTO /* x */ OUTFILE 'OUT' TRUNCATE FORMAT TSV",
	"SELECT 1 INTO\u00a0OUTFILE 'OUT'",
	"SELECT 1 into\toutfile'OUT'",
	"EXPLAIN SELECT 1 INTO OUTFILE 'OUT'",
	"BACKUP TABLE t TO File('OUT')",
	"EXECUTE AS default SELECT 1",
	"(SELECT 1) INTO OUTFILE 'OUT'",
	"SELECT 1 PARALLEL WITH DROP TABLE t",
	"DROP TABLE t PARALLEL WITH DROP TABLE t",
}

// hostEscapes are those of escapes that the writer must not be able to run either.
func hostEscape(sql string) bool {
	for _, word := range []string{"OUT", "URL", "/etc/passwd", "remote(", "mysql(", "executable(", "INFILE", "outfile", "SHUTDOWN", "CREATE FUNCTION", "CREATE USER", "; ", ";\n", "SET ", "USE "} {
		if strings.Contains(sql, word) {
			return true
		}
	}
	return false
}

func TestReaderCannotEscape(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a", "INSERT INTO t VALUES (1, 'one')")
	asked := false
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer trap.Close()
	out := filepath.Join(t.TempDir(), "out")
	fill := strings.NewReplacer("OUT'", out+"'", "URL", trap.URL).Replace

	reader := open(t, database, clickhouse.Reader)
	// The positive control: the same connection does answer.
	if n := count(t, reader, "SELECT count() FROM t"); n != 1 {
		t.Fatalf("%d rows", n)
	}
	for _, sql := range escapes {
		for _, how := range []string{"exec", "query", "settings"} {
			if err := attempt(t, reader, how, fill(sql)); err == nil {
				t.Errorf("a reader may run (%s): %s", how, sql)
			}
		}
		if hostEscape(sql) {
			if err := attempt(t, db, "exec", fill(sql)); err == nil {
				t.Errorf("a writer may run: %s", sql)
			}
		}
	}
	if n := count(t, reader, "SELECT count() FROM t"); n != 1 {
		t.Errorf("%d rows are left", n)
	}
	if n := count(t, db, "SELECT count() FROM system.tables WHERE database = currentDatabase()"); n != 1 {
		t.Errorf("%d tables are there", n)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("a file was written: %v", err)
	}
	if asked {
		t.Error("the engine asked another server")
	}
}

// attempt runs sql to its last row. The way "settings" asks the server to lift
// the restriction by settings of the request.
func attempt(t *testing.T, db *clickhouse.DB, how, sql string) error {
	ctx := t.Context()
	if how == "exec" {
		return db.Exec(ctx, sql)
	}
	if how == "settings" {
		ctx = ch.Context(ctx, ch.WithSettings(ch.Settings{"readonly": 0, "enable_analyzer": 1, "allow_ddl": 1}))
	}
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

func TestReaderInsertIsRefusedHere(t *testing.T) {
	database, _ := newDatabase(t)
	reader := open(t, database, clickhouse.Reader)
	if err := reader.Insert(t.Context(), "t", "", nil); err != clickhouse.ErrReadOnly {
		t.Fatal(err)
	}
}

// TestRowsToReaderPath posts rows to the reader's path past our own client.
func TestRowsToReaderPath(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socketPath(t))
	}}}
	defer client.CloseIdleConnections()
	query := url.Values{"database": {database}, "query": {"INSERT INTO t FORMAT TSV"}, "readonly": {"0"}}.Encode()
	for path, want := range map[string]int{"/reader": http.StatusInternalServerError, "/": http.StatusOK} {
		resp, err := client.Post("http://localhost"+path+"?"+query, "", strings.NewReader("1\n"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", path, resp.StatusCode, want)
		}
	}
	if n := count(t, db, "SELECT count() FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestQueryTenant(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db,
		"CREATE TABLE entries (tenant_id String, cost UInt64) ENGINE = MergeTree ORDER BY tenant_id",
		"CREATE TABLE hourly (tenant_id String, cost UInt64) ENGINE = SummingMergeTree ORDER BY tenant_id",
		"CREATE MATERIALIZED VIEW hourly_mv TO hourly AS SELECT tenant_id, sum(cost) AS cost FROM entries GROUP BY tenant_id",
		"INSERT INTO entries VALUES ('acme', 1), ('acme', 2), ('o\\'neil', 10), ('other', 100)")
	reader := open(t, database, clickhouse.Reader)
	for _, test := range []struct {
		tenant, sql string
		want        uint64
	}{
		{"acme", "SELECT sum(cost) FROM entries WHERE tenant_id = {tenant:String}", 3},
		{"o'neil", "SELECT sum(cost) FROM entries WHERE tenant_id = {tenant:String}", 10},
		// Queries that forget the parameter where it matters.
		{"acme", "SELECT sum(cost) FROM entries WHERE tenant_id = {tenant:String} OR 1", 3},
		{"acme", "SELECT sum(e.cost) FROM entries AS e WHERE {tenant:String} != ''", 3},
		{"acme", "SELECT sum(cost) FROM (SELECT * FROM entries) WHERE {tenant:String} != ''", 3},
		{"acme", "SELECT sum(b.cost) FROM (SELECT {tenant:String} AS k) AS a CROSS JOIN entries AS b", 3},
		{"acme", "WITH x AS (SELECT cost FROM entries) SELECT sum(cost) FROM x WHERE {tenant:String} != ''", 3},
		{"acme", "SELECT sum(cost) FROM (SELECT cost FROM entries UNION ALL SELECT cost FROM hourly) WHERE {tenant:String} != ''", 6},
		{"acme", "SELECT sum(cost) FROM hourly WHERE {tenant:String} != ''", 3},
		{"acme", "SELECT sum(cost) FROM hourly_mv WHERE {tenant:String} != ''", 3},
		{"acme", "SELECT sum(cost) FROM " + database + ".entries WHERE {tenant:String} != ''", 3},
		{"nobody", "SELECT sum(cost) FROM entries WHERE {tenant:String} != ''", 0},
	} {
		scope := clickhouse.Scope{Tenant: tenant.ID(test.tenant), Tables: []string{"entries", "hourly", "hourly_mv"}}
		rows, err := reader.QueryTenant(t.Context(), scope, test.sql, nil)
		if err != nil {
			t.Errorf("%s: %v", test.sql, err)
			continue
		}
		var sum uint64
		for rows.Next() {
			if err := rows.Scan(&sum); err != nil {
				t.Error(err)
			}
		}
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
		if sum != test.want {
			t.Errorf("%s as %s: %d, want %d", test.sql, test.tenant, sum, test.want)
		}
	}
}

func TestQueryTenantRefuses(t *testing.T) {
	database, _ := newDatabase(t)
	reader := open(t, database, clickhouse.Reader)
	scope := clickhouse.Scope{Tenant: "acme", Tables: []string{"t"}}
	for name, call := range map[string]func() error{
		"no parameter": func() error {
			_, err := reader.QueryTenant(t.Context(), scope, "SELECT 1", nil)
			return err
		},
		"no table": func() error {
			_, err := reader.QueryTenant(t.Context(), clickhouse.Scope{Tenant: "acme"}, "SELECT {tenant:String}", nil)
			return err
		},
		"no tenant": func() error {
			_, err := reader.QueryTenant(t.Context(), clickhouse.Scope{Tables: []string{"t"}}, "SELECT {tenant:String}", nil)
			return err
		},
		"own tenant": func() error {
			_, err := reader.QueryTenant(t.Context(), scope, "SELECT {tenant:String}", map[string]string{"tenant": "other"})
			return err
		},
	} {
		if err := call(); err != clickhouse.ErrNoTenant {
			t.Errorf("%s: %v", name, err)
		}
	}
}
