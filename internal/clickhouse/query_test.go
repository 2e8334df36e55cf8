package clickhouse_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/tallystick/tallystick/internal/clickhouse"
)

func TestParameters(t *testing.T) {
	_, db := newDatabase(t)
	for _, value := range []string{"", "plain", "it's; DROP TABLE x --", `back\slash`, "tab\tnew\nline", "☃ {x:String}", "\x00"} {
		ctx := ch.Context(t.Context(), ch.WithParameters(ch.Parameters{"v": escapeParam(value)}))
		var got string
		if err := db.QueryRow(ctx, "SELECT {v:String}").Scan(&got); err != nil {
			t.Errorf("%q: %v", value, err)
		}
		if got != value {
			t.Errorf("%q came back as %q", value, got)
		}
	}
	var sum int64
	ctx := ch.Context(t.Context(), ch.WithParameters(ch.Parameters{"a": "-5", "l": "[1, 2, 3]", "t": "2026-03-29 01:30:00"}))
	err := db.QueryRow(ctx, "SELECT {a:Int64} + arraySum({l:Array(UInt8)}) + toHour({t:DateTime('UTC')})").Scan(&sum)
	if err != nil || sum != 2 {
		t.Errorf("%d, %v", sum, err)
	}
	if err := db.QueryRow(t.Context(), "SELECT {missing:String}").Scan(&sum); clickhouse.Code(err) != 456 {
		t.Errorf("a missing parameter: %v", err)
	}
}

// escapeParam writes a value as ClickHouse reads parameters: escaped as in TSV.
func escapeParam(s string) string {
	return strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\x00", `\0`).Replace(s)
}

func TestErrorCodes(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db, "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
	reader := open(t, database, clickhouse.Reader)
	for sql, test := range map[string]struct {
		code      int32
		transient bool
	}{
		"SELEC 1":               {62, false},
		"SELECT * FROM missing": {60, false},
		"SELECT nope FROM t":    {47, false},
		"SELECT toUInt8('x')":   {6, false},
		"SELECT throwIf(number = 1000000) FROM numbers(2000000) SETTINGS max_block_size = 1000":                                                      {395, false},
		"SELECT sleepEachRow(1) FROM numbers(30) SETTINGS max_execution_time = 1, max_block_size = 1, function_sleep_max_microseconds_per_block = 0": {159, true},
		"SELECT groupArray(toString(number)) FROM numbers(100000000) SETTINGS max_memory_usage = 100000000":                                          {241, true},
		"SELECT 1 SETTINGS no_such_setting = 1": {115, false},
	} {
		for role, conn := range map[string]*clickhouse.DB{"writer": db, "reader": reader} {
			if role == "reader" && strings.Contains(sql, "SETTINGS max") {
				continue // a reader's own limits cannot be changed by the statement
			}
			err := attempt(t, conn, "query", sql)
			if role == "reader" && strings.Contains(sql, "SETTINGS") {
				if err == nil {
					t.Errorf("a reader may run %s", sql)
				}
				continue
			}
			if clickhouse.Code(err) != test.code || clickhouse.Transient(err) != test.transient {
				t.Errorf("%s: %v (transient %t), want code %d", sql, err, clickhouse.Transient(err), test.code)
			}
		}
	}
}

func TestTransient(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("anything"), false},
		{clickhouse.ErrBlock, false},
		{context.Canceled, false},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), true},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), true},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
		{&net.OpError{Op: "dial", Err: context.Canceled}, false},
		{&ch.Exception{Code: 241}, true},
		{&ch.Exception{Code: 252}, true},
		{&ch.Exception{Code: 60}, false},
		{&ch.HTTPError{StatusCode: 500, Err: &ch.Exception{Code: 319}}, true},
		{&ch.HTTPError{StatusCode: 404, Err: &ch.Exception{Code: 60}}, false},
		{&ch.HTTPError{StatusCode: http.StatusServiceUnavailable, Err: errors.New("busy")}, true},
		{&ch.HTTPError{StatusCode: http.StatusForbidden, Err: errors.New("no")}, false},
	} {
		if got := clickhouse.Transient(test.err); got != test.want {
			t.Errorf("%v: %t", test.err, got)
		}
	}
}

// TestResultStreams reads far more than the engine may hold at once.
func TestResultStreams(t *testing.T) {
	_, db := newDatabase(t)
	const rows = 20_000_000
	before := residentBytes(t, engine.PID())
	result, err := db.Query(t.Context(), "SELECT number, toString(number) FROM numbers(20000000)")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	var sum, n, most uint64
	for result.Next() {
		var v uint64
		var s string
		if err := result.Scan(&v, &s); err != nil {
			t.Fatal(err)
		}
		sum += v
		if n++; n%1_000_000 == 0 {
			most = max(most, residentBytes(t, engine.PID()))
		}
	}
	if err := result.Err(); err != nil || n != rows || sum != rows*(rows-1)/2 {
		t.Errorf("%d rows, sum %d, %v", n, sum, err)
	}
	const limit = 200 << 20
	if most > before+limit {
		t.Errorf("the engine's process grew from %d to %d MiB for one result", before>>20, most>>20)
	}
}

func residentBytes(t testing.TB, pid int) uint64 {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident uint64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * uint64(os.Getpagesize())
}

// TestClientLeaves checks that a query ends soon after its client has left,
// before its first row and in the middle of its rows, and that the engine goes
// on serving.
func TestClientLeaves(t *testing.T) {
	database, db := newDatabase(t)
	for name, sql := range map[string]string{
		"before the first row": "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) = 1",
		"between rows":         "SELECT number FROM system.numbers",
	} {
		t.Run(name, func(t *testing.T) {
			reader := open(t, database, clickhouse.Reader)
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				failed <- func() error {
					rows, err := reader.Query(ctx, sql)
					if err != nil {
						return err
					}
					defer rows.Close()
					for rows.Next() {
					}
					return rows.Err()
				}()
			}()
			await(t, "the query to run", func() bool { return running(t, db, sql) })
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("the client's error is %v", err)
			}
			await(t, "the query to end", func() bool { return !running(t, db, sql) })
			if n := count(t, open(t, database, clickhouse.Reader), "SELECT count() FROM numbers(5)"); n != 5 {
				t.Errorf("%d", n)
			}
		})
	}
}

// TestConnectBesideLongQueries opens a connection while every slot for reports
// is taken.
func TestConnectBesideLongQueries(t *testing.T) {
	database, _ := newDatabase(t)
	const sql = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) = 2"
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer cancel()
	reader := open(t, database, clickhouse.Reader)
	for range 2*runtime.NumCPU() + 8 { // more than there are slots
		busy.Go(func() {
			var n uint64
			if err := reader.QueryRow(ctx, sql).Scan(&n); !errors.Is(err, context.Canceled) {
				t.Errorf("a long query ended: %v", err)
			}
		})
	}
	// A question to the engine would wait behind them.
	await(t, "the queries to run", func() bool { return engineBusy(t) })
	open(t, database, clickhouse.Reader)
	open(t, database, clickhouse.Writer)
}

// engineBusy reports whether the engine computes with more than one thread.
func engineBusy(t *testing.T) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", engine.PID()))
	if err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, task := range tasks {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", engine.PID(), task.Name()))
		if err == nil && strings.Contains(string(stat), ") R ") {
			running++
		}
	}
	return running > 2
}

// running asks the engine whether a query with that text is being run.
func running(t *testing.T, db *clickhouse.DB, sql string) bool {
	ctx := ch.Context(t.Context(), ch.WithParameters(ch.Parameters{"sql": sql}))
	var n uint64
	if err := db.QueryRow(ctx, "SELECT count() FROM system.processes WHERE query = {sql:String}").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// await asks again and again; every question takes the engine a moment.
func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestRowsCutShort sends half of an insert's body and goes away.
func TestRowsCutShort(t *testing.T) {
	database, db := newDatabase(t)
	mustExec(t, db, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	conn, err := net.Dial("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	// One block of 1000 rows is announced; 100 arrive.
	head := "\x01\xe8\x07\x01a\x06UInt64"
	body := head + strings.Repeat("\x00\x00\x00\x00\x00\x00\x00\x01", 100)
	fmt.Fprintf(conn, "POST /?database=%s&query=INSERT+INTO+t+FORMAT+Native HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s",
		database, len(head)+8000, body)
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || strings.Contains(string(answer), " 200 ") {
		t.Errorf("%q, %v", answer, err)
	}
	conn.Close()
	if n := count(t, db, "SELECT count() FROM t"); n != 0 {
		t.Errorf("%d rows of a cut insert are in the table", n)
	}
	mustExec(t, db, "INSERT INTO t VALUES (1)")
	if n := count(t, db, "SELECT count() FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// TestSettingsStayWithTheirRequest lets requests with different settings use
// the same few connections.
func TestSettingsStayWithTheirRequest(t *testing.T) {
	_, db := newDatabase(t)
	for i := range 60 {
		want := fmt.Sprint(1 + i%4)
		ctx := t.Context()
		if i%4 > 0 {
			ctx = ch.Context(ctx, ch.WithSettings(ch.Settings{"max_block_size": want}))
		} else {
			want = "65409"
		}
		var got string
		if err := db.QueryRow(ctx, "SELECT toString(getSetting('max_block_size'))").Scan(&got); err != nil || got != want {
			t.Fatalf("%s, want %s: %v", got, want, err)
		}
	}
}
