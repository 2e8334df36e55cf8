package clickhouse

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"
)

func oneColumn(n int) Block {
	column := make(proto.ColUInt64, n)
	return Block{{Name: "a", Data: &column}}
}

// stub is a server that keeps the last request and answers as told.
type stub struct {
	*httptest.Server
	request *http.Request
	body    []byte
	status  int
	answer  string
}

func newStub(t *testing.T) *stub {
	s := &stub{status: http.StatusOK}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.request = r
		s.body, _ = io.ReadAll(r.Body)
		w.WriteHeader(s.status)
		_, _ = io.WriteString(w, s.answer)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *stub) db(t *testing.T, dsn string) *DB {
	t.Helper()
	opt, err := parseDSN(strings.ReplaceAll(dsn, "HOST", strings.TrimPrefix(s.URL, "http://")), Writer)
	if err != nil {
		t.Fatal(err)
	}
	return &DB{role: Writer, fast: newHTTPInserter(opt)}
}

func TestPost(t *testing.T) {
	s := newStub(t)
	db := s.db(t, "http://user:s3cret@HOST/money?compress=lz4")
	if err := db.Insert(t.Context(), "a.b", "token 1", oneColumn(3)); err != nil {
		t.Fatal(err)
	}
	query := s.request.URL.Query()
	for name, want := range map[string]string{
		"query": "INSERT INTO `a`.`b` (`a`) FORMAT Native", "database": "money", "insert_deduplication_token": "token 1",
		"async_insert": "0", "deduplicate_blocks_in_dependent_materialized_views": "1", "decompress": "1",
	} {
		if got := query.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if s.request.Header.Get("X-ClickHouse-Key") != "s3cret" || strings.Contains(s.request.URL.String(), "s3cret") {
		t.Error("the password must travel in its header and nowhere else")
	}
	plain, err := io.ReadAll(compress.NewReader(bytes.NewReader(s.body)))
	if want := 1 + 1 + 2 + 7 + 3*8; !errors.Is(err, io.EOF) || len(plain) != want {
		t.Errorf("%d bytes (%v), want %d", len(plain), err, want)
	}
}

func TestPostErrors(t *testing.T) {
	s := newStub(t)
	db := s.db(t, "http://HOST/")
	for _, test := range []struct {
		status    int
		answer    string
		code      int32
		transient bool
	}{
		{500, "Code: 241. DB::Exception: Memory limit exceeded (MEMORY_LIMIT_EXCEEDED)", 241, true},
		{404, "Code: 60. DB::Exception: no table (UNKNOWN_TABLE)", 60, false},
		{200, "\r\n__exception__\r\nabcdefghijklmnop\r\nCode: 252. DB::Exception: Too many parts (TOO_MANY_PARTS)\n68 abcdefghijklmnop\r\n__exception__\r\n", 252, true},
		{503, "", 0, true},
		{403, "<html>proxy</html>", 0, false},
	} {
		s.status, s.answer = test.status, test.answer
		err := db.Insert(t.Context(), "t", "secret-token", oneColumn(1))
		if err == nil || Code(err) != test.code || Transient(err) != test.transient {
			t.Errorf("%d %q: %v (code %d, transient %t)", test.status, test.answer, err, Code(err), Transient(err))
		}
		if err != nil && strings.Contains(err.Error(), "secret-token") {
			t.Errorf("the error names the request: %v", err)
		}
	}
}

// TestPostFailsOver: a host that cannot be reached costs one failed call.
func TestPostFailsOver(t *testing.T) {
	s := newStub(t)
	db := s.db(t, "http://127.0.0.1:1,HOST/")
	if err := db.Insert(t.Context(), "t", "x", oneColumn(1)); !Transient(err) {
		t.Fatalf("the first host: %v", err)
	}
	for range 3 {
		if err := db.Insert(t.Context(), "t", "x", oneColumn(1)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParseDSN(t *testing.T) {
	opt, err := parseDSN("clickhouse+unix:///run/x.sock?database=d&max_threads=3", Reader)
	if err != nil || opt.HttpUrlPath != readerPath || opt.Auth.Database != "d" || opt.Settings["readonly"] != 1 {
		t.Errorf("%+v, %v", opt, err)
	}
	if opt.Settings["max_threads"] != readerMaxThreads {
		t.Error("a DSN lifted a reader's limit")
	}
	opt, err = parseDSN("https://u:p@host:8443/d", Writer)
	if err != nil || opt.TLS == nil || opt.TLS.InsecureSkipVerify || opt.Protocol != ch.HTTP {
		t.Errorf("%+v, %v", opt, err)
	}
	if _, err := parseDSN("clickhouse://host/d", 0); err == nil {
		t.Error("a connection without a role")
	}
}
