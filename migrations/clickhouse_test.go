package migrations_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/migrations"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestClickHouse(t *testing.T) {
	dsn := testenv.ClickHouse(t)
	for range 2 {
		if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
	}
	db := openClickHouse(t, dsn)
	var names []string
	rows, err := db.Query(t.Context(), "SELECT name FROM system.tables WHERE database = currentDatabase() ORDER BY name")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if want := []string{"announced", "entry", "rollup_hour", "schema_version", "usage_hour", "usage_hour_view"}; !slices.Equal(names, want) {
		t.Errorf("tables %q, want %q", names, want)
	}
}

// TestClickHouseTables holds every table with tenant data against the rules:
// sorted by tenant first, and a deduplication window wherever rows come by plan.
func TestClickHouseTables(t *testing.T) {
	dsn := testenv.ClickHouse(t)
	if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	db := openClickHouse(t, dsn)
	var bad []struct {
		Name string `ch:"name"`
		SQL  string `ch:"create_table_query"`
	}
	err := db.Select(t.Context(), &bad, `SELECT name, create_table_query FROM system.tables
		WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'schema_version'
		AND NOT (startsWith(sorting_key, 'tenant_id,') AND partition_key = '' AND position(create_table_query, 'non_replicated_deduplication_window = 1000') > 0)`)
	if err != nil || len(bad) > 0 {
		t.Errorf("%v, %v", bad, err)
	}
}

func TestClickHouseAtOnce(t *testing.T) {
	dsn, lock := testenv.ClickHouse(t), testenv.Postgres(t)
	var done sync.WaitGroup
	for range 4 {
		done.Go(func() {
			if err := migrations.ClickHouseAlone(t.Context(), dsn, lock); err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
}

// TestClickHouseAfterKill removes what a migration that was killed before each
// of its versions would not have made.
func TestClickHouseAfterKill(t *testing.T) {
	for _, missing := range [][]string{
		{"DROP TABLE usage_hour_view", "TRUNCATE TABLE schema_version"},
		{"DROP TABLE announced", "ALTER TABLE schema_version DELETE WHERE version >= 4 SETTINGS mutations_sync = 2"},
		{"ALTER TABLE rollup_hour MODIFY COLUMN sum_input UInt64", "ALTER TABLE schema_version DELETE WHERE version >= 5 SETTINGS mutations_sync = 2"},
		{"DROP TABLE schema_version"},
	} {
		dsn := testenv.ClickHouse(t)
		if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		db := openClickHouse(t, dsn)
		for _, sql := range missing {
			if err := db.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
			t.Errorf("%q: %v", missing, err)
		}
		var n uint64
		if err := db.QueryRow(t.Context(), "SELECT count() FROM system.tables WHERE database = currentDatabase()").Scan(&n); err != nil || n != 6 {
			t.Errorf("%q: %d tables, %v", missing, n, err)
		}
	}
}

func TestClickHouseRefusesNewer(t *testing.T) {
	dsn := testenv.ClickHouse(t)
	if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	if err := openClickHouse(t, dsn).Exec(t.Context(), "INSERT INTO schema_version (version) SELECT 9999"); err != nil {
		t.Fatal(err)
	}
	if err := migrations.ClickHouse(t.Context(), dsn); !errors.Is(err, migrations.ErrNewerSchema) {
		t.Errorf("error %v", err)
	}
}

func openClickHouse(t *testing.T, dsn string) *clickhouse.DB {
	t.Helper()
	db, err := clickhouse.Open(t.Context(), dsn, clickhouse.Writer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}
