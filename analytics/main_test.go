package analytics_test

import (
	"testing"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/migrations"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// newStore migrates a fresh database and opens it in both roles.
func newStore(t testing.TB) (writer, reader *clickhouse.DB) {
	t.Helper()
	dsn := testenv.ClickHouse(t)
	if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	return open(t, dsn, clickhouse.Writer), open(t, dsn, clickhouse.Reader)
}

func open(t testing.TB, dsn string, role clickhouse.Role) *clickhouse.DB {
	t.Helper()
	db, err := clickhouse.Open(t.Context(), dsn, role)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// count returns one number.
func count(t testing.TB, db *clickhouse.DB, sql string) uint64 {
	t.Helper()
	var n uint64
	if err := db.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}
