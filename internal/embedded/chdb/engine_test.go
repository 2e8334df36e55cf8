package chdb_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/embedded/chdb"
)

const maxRequestBytes = 1 << 20

// engineHandler starts the one engine that a process can have. Unlike in
// Tallystick it runs in the test's own process, which is what lets a test see
// what it does to a Go program.
var engineHandler = sync.OnceValues(func() (http.Handler, error) {
	lib, err := embedded.FindCHDB("")
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Join(testDir, "engine"))
	if err != nil {
		return nil, err
	}
	cfg := chdb.Config{LibPath: lib, DataDir: dir, RunDir: testDir, MaxMemoryBytes: 512 << 20, Readers: 2, MaxRequestBytes: maxRequestBytes}
	engine, err := chdb.Open(cfg)
	if err != nil {
		return nil, err
	}
	return engine.Handler(cfg)
})

func serve(t *testing.T) http.Handler {
	t.Helper()
	h, err := engineHandler()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestGoSurvivesTheEngine: after the engine was loaded a nil dereference is
// still a panic that can be recovered from, and a busy loop is still preempted.
func TestGoSurvivesTheEngine(t *testing.T) {
	serve(t)
	recovered := func() (r any) {
		defer func() { r = recover() }()
		var nothing *struct{ field int }
		return nothing.field
	}()
	if err, ok := recovered.(runtime.Error); !ok || !strings.Contains(err.Error(), "nil pointer") {
		t.Errorf("recovered %v", recovered)
	}
	var stop atomic.Bool
	var busy sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		busy.Go(func() {
			for !stop.Load() {
			}
		})
	}
	runtime.GC() // needs every goroutine to stop for a moment
	stop.Store(true)
	busy.Wait()
}

func TestHandler(t *testing.T) {
	h := serve(t)
	for _, test := range []struct {
		name, method, target, body string
		header                     [2]string
		status                     int
		want                       string
	}{
		{name: "ping", method: "GET", target: "/ping", status: 200, want: "Ok.\n"},
		{name: "get", method: "GET", target: "/?query=SELECT+1", status: 200, want: "1\n"},
		{name: "post", method: "POST", target: "/", body: "SELECT 1 FORMAT JSONEachRow", status: 200, want: "{\"1\":1}\n"},
		{name: "both parts", method: "POST", target: "/?query=SELECT", body: " 2", status: 200, want: "2\n"},
		{name: "parameter", method: "POST", target: "/?param_x=7", body: "SELECT {x:UInt8}", status: 200, want: "7\n"},
		{name: "no rows", method: "POST", target: "/?default_format=Native&client_protocol_version=54460", body: "CREATE DATABASE IF NOT EXISTS x", status: 200},
		{name: "a table", method: "POST", target: "/", body: "CREATE TABLE rows (a Int32) ENGINE = Memory", status: 200},
		{name: "a text insert", method: "POST", target: "/?query=INSERT+INTO+rows+FORMAT+TSV", body: "1\n2\n", status: 200},
		{name: "a bad row", method: "POST", target: "/?query=INSERT+INTO+rows+FORMAT+TSV", body: "1\nx\n", status: 500, want: "Code: 27."},
		{name: "its rows", method: "POST", target: "/", body: "SELECT sum(a) FROM rows", status: 200, want: "3\n"},
		{name: "an insert into a function", method: "POST", target: "/?query=INSERT+INTO+FUNCTION+null('a+Int')+FORMAT+TSV", body: "1\n", status: 501, want: "Code: 48."},
		{name: "empty", method: "POST", target: "/", status: 400, want: "Code: 62."},
		{name: "syntax", method: "POST", target: "/", body: "SELEC 1", status: 400, want: "failed at position 7"},
		{name: "two statements", method: "POST", target: "/", body: "SELECT 1; SELECT 2", status: 400, want: "Multi-statements"},
		{name: "one statement and a semicolon", method: "POST", target: "/", body: "SELECT 1 ; -- end", status: 200, want: "1\n"},
		{name: "a statement before a mistake", method: "POST", target: "/", body: "CREATE DATABASE made_by_mistake; SELEC 1", status: 400, want: "Code: 62."},
		{name: "unknown setting", method: "POST", target: "/?no_such_setting=1", body: "SELECT 1", status: 500, want: "Code: 115."},
		{name: "a setting with SQL for a name", method: "POST", target: "/?" + url.QueryEscape("max_threads=1, readonly") + "=1", body: "SELECT 1", status: 400, want: "Code: 36."},
		{name: "a setting with SQL for a value", method: "POST", target: "/?max_block_size=" + url.QueryEscape("1', max_threads='64"), body: "SELECT 1", status: 500, want: "Code: "},
		{name: "unknown database", method: "POST", target: "/?database=nope", body: "SELECT 1", status: 404, want: "Code: 81."},
		{name: "protocol version", method: "POST", target: "/?client_protocol_version=x", body: "SELECT 1", status: 400, want: "Code: 36."},
		{name: "gzip", method: "POST", target: "/", body: "SELECT 1", header: [2]string{"Content-Encoding", "gzip"}, status: 501, want: "Code: 48."},
		{name: "external tables", method: "POST", target: "/", body: "SELECT 1", header: [2]string{"Content-Type", "multipart/form-data; boundary=x"}, status: 501, want: "Code: 48."},
		{name: "rubbish for compressed rows", method: "POST", target: "/?decompress=1&query=INSERT+INTO+rows+FORMAT+Native", body: strings.Repeat("rubbish", 20), status: 500, want: "Code: "},
		{name: "too large", method: "POST", target: "/", body: "SELECT '" + strings.Repeat("x", maxRequestBytes) + "'", status: 413, want: "Code: 307."},
		{name: "session", method: "POST", target: "/", body: "SET max_threads = 1", status: 501, want: "Code: 48."},
		{name: "another path", method: "POST", target: "/reader/x", body: "SELECT 1", status: 404, want: "404"},
		{name: "another verb", method: "DELETE", target: "/", status: 405},
	} {
		r := httptest.NewRequest(test.method, test.target, strings.NewReader(test.body))
		if test.header[0] != "" {
			r.Header.Set(test.header[0], test.header[1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		if w.Code != test.status || !strings.Contains(string(body), test.want) || test.want == "" && test.status == 200 && len(body) > 0 {
			t.Errorf("%s: %d %q", test.name, w.Code, body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/?query="+url.QueryEscape("SELECT count() FROM system.databases WHERE name = 'made_by_mistake'"), nil))
	if w.Body.String() != "0\n" {
		t.Error("a statement was run although the text that it came with is refused")
	}
}
