package testenv

import (
	"context"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestMain(m *testing.M) { Main(m) }

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	last := results[len(results)-1]
	if len(last.Rows) == 0 {
		return ""
	}
	return string(last.Rows[0][0])
}

func TestPostgresGivesEachTestItsOwnEmptyDatabase(t *testing.T) {
	var first string
	t.Run("first", func(t *testing.T) {
		dsn := Postgres(t)
		first = query(t, dsn, "CREATE TABLE a (x int); SELECT current_database()")
	})
	dsn := Postgres(t)
	if n := query(t, dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); n != "0" {
		t.Errorf("a fresh database has %s tables", n)
	}
	if n := query(t, dsn, "SELECT count(*) FROM pg_database WHERE datname = '"+first+"'"); n != "0" {
		t.Errorf("the database of an ended test is still there")
	}
	if super := query(t, dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"); super != "t" {
		t.Errorf("rolsuper = %s, want t", super)
	}
}

func TestKafkaPrefixesDiffer(t *testing.T) {
	a, b := Kafka(t), Kafka(t)
	if len(a.Seeds) == 0 || a.TopicPrefix == b.TopicPrefix || a.TopicPrefix == "" {
		t.Errorf("got %+v and %+v", a, b)
	}
}

func TestWithDatabase(t *testing.T) {
	for _, c := range []struct{ dsn, want string }{
		{"postgres://u:p@h:1/db?sslmode=disable", "postgres://u:p@h:1/new?sslmode=disable"},
		{"postgres://u:p@/?dbname=db&host=%2Frun", "postgres://u:p@/new?host=%2Frun"},
		{"postgresql://h", "postgresql://h/new"},
		{"host=/run user=u dbname=db", "host=/run user=u dbname=db dbname=new"},
	} {
		got, err := withDatabase(c.dsn, "new")
		if err != nil || got != c.want {
			t.Errorf("withDatabase(%q) = %q, %v; want %q", c.dsn, got, err, c.want)
		}
	}
	if _, err := withDatabase("postgres://%zz", "new"); err == nil {
		t.Error("a broken URL was accepted")
	}
}

func TestDataFindsThePack(t *testing.T) {
	if _, err := os.Stat(Data(t, "README.md")); err != nil {
		t.Error(err)
	}
}

func TestClickHouseGivesADatabase(t *testing.T) {
	dsn := ClickHouse(t)
	if other := ClickHouse(t); other == dsn {
		t.Error("two calls gave the same database")
	}
	postSQL(t, dsn, "CREATE TABLE "+databaseOf(t, dsn)+".a (x Int8) ENGINE = MergeTree ORDER BY x")
}

func databaseOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if db := u.Query().Get("database"); db != "" {
		return db
	}
	return strings.TrimPrefix(u.Path, "/")
}
