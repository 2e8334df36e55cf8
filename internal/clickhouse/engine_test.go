package clickhouse_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/embedded"
)

// engine is the one engine of this package's tests; every test has its own
// database in it.
var engine *embedded.ClickHouse

func TestMain(m *testing.M) {
	embedded.MaybeChild()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tallystick-clickhouse-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lib, err := embedded.FindCHDB("")
	if err == nil {
		engine, err = embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{DataDir: dir, LibPath: lib})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need the real engine:", err)
		return 1
	}
	code := m.Run()
	stop, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := engine.Stop(stop); err != nil {
		fmt.Fprintln(os.Stderr, "stop:", err)
		return 1
	}
	return code
}

var databases atomic.Int64

// newDatabase creates an empty database and returns its name and a writer.
func newDatabase(t testing.TB) (string, *clickhouse.DB) {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	admin := open(t, "", clickhouse.Writer)
	if err := admin.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return name, open(t, name, clickhouse.Writer)
}

func open(t testing.TB, database string, role clickhouse.Role) *clickhouse.DB {
	t.Helper()
	db, err := clickhouse.Open(t.Context(), engine.DSN(database), role)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func mustExec(t testing.TB, db *clickhouse.DB, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
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
