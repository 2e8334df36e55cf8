package clickhouse_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/tallystick/tallystick/internal/clickhouse"
)

// usageTables are a table and a view target as the pipeline has them.
var usageTables = []string{
	`CREATE TABLE usage (tenant_id LowCardinality(String), seq UInt64, cost Int64) ENGINE = MergeTree ORDER BY (tenant_id, seq)
	 SETTINGS non_replicated_deduplication_window = 1000`,
	`CREATE TABLE usage_total (tenant_id LowCardinality(String), n UInt64, cost Int64) ENGINE = SummingMergeTree ORDER BY tenant_id
	 SETTINGS non_replicated_deduplication_window = 1000`,
	`CREATE MATERIALIZED VIEW usage_total_mv TO usage_total AS
	 SELECT tenant_id, count() AS n, sum(cost) AS cost FROM usage GROUP BY tenant_id`,
}

// usageBlock has rows from..from+n-1 over seven tenants; the cost of a row is
// its seq.
func usageBlock(from uint64, n int) clickhouse.Block {
	tenants := new(proto.ColStr).LowCardinality()
	seq, cost := new(proto.ColUInt64), new(proto.ColInt64)
	for i := range uint64(n) {
		tenants.Append(fmt.Sprintf("tenant-%d", (from+i)%7))
		seq.Append(from + i)
		cost.Append(int64(from + i))
	}
	return clickhouse.Block{{Name: "tenant_id", Data: tenants}, {Name: "seq", Data: seq}, {Name: "cost", Data: cost}}
}

// checkUsage compares table and view target with 0..n-1 inserted once each.
func checkUsage(t *testing.T, db *clickhouse.DB, n uint64) {
	t.Helper()
	for what, sql := range map[string]string{
		"rows":             "SELECT count() FROM usage",
		"distinct rows":    "SELECT uniqExact(seq) FROM usage",
		"rows by the view": "SELECT sum(n) FROM usage_total",
	} {
		if got := count(t, db, sql); got != n {
			t.Errorf("%s: %d, want %d", what, got, n)
		}
	}
	for what, sql := range map[string]string{
		"cost":             "SELECT toUInt64(sum(cost)) FROM usage",
		"cost by the view": "SELECT toUInt64(sum(cost)) FROM usage_total",
	} {
		if got, want := count(t, db, sql), n*(n-1)/2; got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
}

// TestTokenCounts sends blocks again, by the same way and by the other, and
// other rows under a used token.
func TestTokenCounts(t *testing.T) {
	_, db := newDatabase(t)
	mustExec(t, db, usageTables...)
	const blocks, rows = 5, 20_000
	for range 3 {
		for b := range uint64(blocks) {
			for _, way := range []*clickhouse.DB{db, db.WithoutFastPath()} {
				if err := way.Insert(t.Context(), "usage", fmt.Sprintf("batch-%d", b), usageBlock(b*rows, rows)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	checkUsage(t, db, blocks*rows)
	if err := db.Insert(t.Context(), "usage", "batch-0", usageBlock(1<<40, 10)); err != nil {
		t.Fatal(err)
	}
	checkUsage(t, db, blocks*rows)
	// The same rows under a new token are new rows: the token decides alone.
	if err := db.Insert(t.Context(), "usage", "batch-new", usageBlock(blocks*rows, 10)); err != nil {
		t.Fatal(err)
	}
	checkUsage(t, db, blocks*rows+10)
}

// TestLargeBlockIsOnePart sends the largest block that is allowed, twice.
func TestLargeBlockIsOnePart(t *testing.T) {
	_, db := newDatabase(t)
	mustExec(t, db, usageTables...)
	block := usageBlock(0, clickhouse.MaxBlockRows)
	for range 2 {
		if err := db.Insert(t.Context(), "usage", "large", block); err != nil {
			t.Fatal(err)
		}
	}
	checkUsage(t, db, clickhouse.MaxBlockRows)
	if n := count(t, db, "SELECT count() FROM system.parts WHERE table = 'usage' AND database = currentDatabase()"); n != 1 {
		t.Errorf("%d parts", n)
	}
}

func TestInsertRefuses(t *testing.T) {
	_, db := newDatabase(t)
	mustExec(t, db, usageTables...)
	uneven := usageBlock(0, 3)
	uneven[1].Data = new(proto.ColUInt64)
	for name, block := range map[string]clickhouse.Block{
		"no columns": {}, "uneven columns": uneven, "too many rows": usageBlock(0, clickhouse.MaxBlockRows+1),
	} {
		if err := db.Insert(t.Context(), "usage", "", block); !errors.Is(err, clickhouse.ErrBlock) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := db.Insert(t.Context(), "usage", "", usageBlock(0, 0)); err != nil {
		t.Errorf("an empty block: %v", err)
	}
	for name, test := range map[string]struct {
		table string
		block clickhouse.Block
		code  int32
	}{
		"missing table":  {"no_such_table", usageBlock(0, 1), 60},
		"missing column": {"usage", clickhouse.Block{{Name: "nope", Data: usageBlock(0, 1)[1].Data}}, 16},
		"quoted table":   {"usage` (seq) SELECT 1 -- ", usageBlock(0, 1), 60},
	} {
		for way, conn := range map[string]*clickhouse.DB{"post": db, "batch": db.WithoutFastPath()} {
			err := conn.Insert(t.Context(), test.table, "", test.block)
			if err == nil || clickhouse.Transient(err) || way == "post" && clickhouse.Code(err) != test.code {
				t.Errorf("%s by %s: %v", name, way, err)
			}
		}
	}
	checkUsage(t, db, 0)
}

// TestReadersBesideWriter runs reports while blocks are inserted. Each reader
// must see whole blocks only, and the connections must not mix up their answers.
func TestReadersBesideWriter(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db, usageTables...)
	const blocks, rows, readers = 40, 5_000, 6
	written := make(chan struct{})
	var group sync.WaitGroup
	for i := range uint64(readers) {
		reader := open(t, database, clickhouse.Reader)
		group.Go(func() {
			for n := uint64(0); ; n++ {
				select {
				case <-written:
					return
				default:
				}
				var seen, echo uint64
				err := reader.QueryRow(ch.Context(t.Context(), ch.WithParameters(ch.Parameters{"n": fmt.Sprint(i*1_000_000 + n)})),
					"SELECT count(), {n:UInt64} FROM usage").Scan(&seen, &echo)
				if err != nil {
					t.Error(err)
					return
				}
				if seen%rows != 0 || echo != i*1_000_000+n {
					t.Errorf("saw %d rows and the answer to %d", seen, echo)
				}
			}
		})
	}
	for b := range uint64(blocks) {
		if err := db.Insert(t.Context(), "usage", fmt.Sprint(b), usageBlock(b*rows, rows)); err != nil {
			t.Error(err)
		}
	}
	close(written)
	group.Wait()
	checkUsage(t, db, blocks*rows)
}

// TestInsertsInParallel checks that one inserter serves several goroutines.
func TestInsertsInParallel(t *testing.T) {
	_, db := newDatabase(t)
	mustExec(t, db, usageTables...)
	const writers, blocks, rows = 4, 10, 1_000
	var group sync.WaitGroup
	for w := range uint64(writers) {
		group.Go(func() {
			for b := range uint64(blocks) {
				from := (w*blocks + b) * rows
				if err := db.Insert(t.Context(), "usage", fmt.Sprintf("%d-%d", w, b), usageBlock(from, rows)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	checkUsage(t, db, writers*blocks*rows)
}

// TestErrorsHideTheStatement checks that neither SQL nor tokens get into errors
// of the network.
func TestErrorsHideTheStatement(t *testing.T) {
	_, err := clickhouse.Open(t.Context(), "clickhouse+unix:///nonexistent/secret-dir/x.sock", clickhouse.Writer)
	if err == nil || !clickhouse.Transient(err) {
		t.Errorf("a missing socket: %v", err)
	}
	for _, dsn := range []string{"", "bogus://user:s3cret@host", "clickhouse+unix://host/x", "http://user:s3cret@%zz", "http://u:s3cret@h?secure=true", "clickhouse://u:s3cret@h?dial_timeout=s3cret"} {
		_, err := clickhouse.Open(t.Context(), dsn, clickhouse.Writer)
		if !errors.Is(err, clickhouse.ErrDSN) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}
