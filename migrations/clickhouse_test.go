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

// TestClickHouseRollsUpStoredGPUTime stores time of GPUs as a program did that did
// not roll it up, and migrates, twice. A plan that was under way has stored the
// second entry of b and not its rollups.
func TestClickHouseRollsUpStoredGPUTime(t *testing.T) {
	dsn := testenv.ClickHouse(t)
	if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	db := openClickHouse(t, dsn)
	const back = "ALTER TABLE schema_version DELETE WHERE version >= 8 SETTINGS mutations_sync = 2"
	for _, sql := range []string{
		"ALTER TABLE rollup_hour DROP COLUMN sum_gpu_us", back,
		`INSERT INTO entry (tenant_id, seq, kind, occurred_at, model, team, status, gpu_us) VALUES
			('a', 1, 'usage', '2026-03-01 10:59:59.999999', 'p5', 'x', 'ok', 60), ('a', 2, 'usage', '2026-03-01 11:00:00', 'p5', 'x', 'ok', 30),
			('a', 3, 'correction', '2026-03-01 11:00:00', 'p5', 'x', 'ok', -10), ('a', 4, 'usage', '2026-03-01 11:30:00', 'gpt', 'y', 'ok', 0),
			('b', 1, 'usage', '2026-03-01 10:00:00', 'p5', '', 'ok', 5), ('b', 2, 'usage', '2026-03-01 10:00:00', 'p5', '', 'ok', 7)`,
		`INSERT INTO rollup_hour (tenant_id, dimension, hour, value, sum_requests, sum_corrections) VALUES
			('a', '', 492322, '', 1, 0), ('a', '', 492323, '', 2, 1), ('b', '', 492322, '', 1, 0)`,
	} {
		if err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for range 2 {
		if err := migrations.ClickHouse(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := db.QueryRow(t.Context(), `SELECT arrayStringConcat(arraySort(groupArray(line)), ' ') FROM (
			SELECT concat(tenant_id, '/', dimension, '=', value, '@', toString(hour - 492322), ':', toString(sum(sum_gpu_us))) AS line FROM rollup_hour
			WHERE dimension IN ('', 'team', 'status') GROUP BY tenant_id, dimension, value, hour)`).Scan(&got); err != nil {
			t.Fatal(err)
		}
		const want = "a/=@0:60 a/=@1:20 a/status=ok@0:60 a/status=ok@1:20 a/team=x@0:60 a/team=x@1:20 b/=@0:5 b/status=ok@0:5 b/team=@0:5"
		if got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		if err := db.Exec(t.Context(), back); err != nil {
			t.Fatal(err)
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
