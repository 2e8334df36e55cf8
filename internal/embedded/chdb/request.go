package chdb

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/compress"
)

// maxStatementBytes bounds the SQL of one request; rows of an insert travel in
// the body and do not count.
const maxStatementBytes = 8 << 20

// request is one HTTP request, understood.
type request struct {
	session
	sql      string
	stmt     statement
	rows     io.Reader // the body of an insert; nil when the body was SQL
	params   map[string]string
	format   string // default output format
	revision uint64
	compress *compress.Writer
	token    string // insert_deduplication_token
	queryID  string
}

// transportParams are URL parameters of ClickHouse's HTTP interface that are no
// settings and that either have no meaning here or are read by name.
var transportParams = map[string]bool{
	"query": true, "database": true, "default_format": true, "client_protocol_version": true,
	"query_id": true, "quota_key": true, "user": true, "password": true, "compress": true, "decompress": true,
	"network_compression_method": true, "network_zstd_compression_level": true, "stacktrace": true,
	"wait_end_of_query": true, "buffer_size": true, "add_http_cors_header": true, "http_make_head_request": true,
	"send_progress_in_http_headers": true, "http_headers_progress_interval_ms": true, "enable_http_compression": true,
}

// reservedSettings cannot be chosen by a request: they are how a reader is kept
// from writing and how a query is found again to cancel it.
var reservedSettings = map[string]bool{
	"readonly": true, "log_comment": true, "enable_analyzer": true, "allow_experimental_analyzer": true, "allow_ddl": true,
}

// parseRequest reads everything but the rows of an insert.
func (s *server) parseRequest(r *http.Request) (*request, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, refusal(codeBadArguments, "BAD_ARGUMENTS", "the query string cannot be parsed")
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, refusal(codeNotImplemented, "NOT_IMPLEMENTED", "use ClickHouse's own compression (decompress=1) instead of Content-Encoding")
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/") {
		return nil, refusal(codeNotImplemented, "NOT_IMPLEMENTED", "external tables are not supported")
	}
	q := &request{
		session: session{database: values.Get("database"), reader: r.URL.Path == ReaderPath, keep: true},
		params:  map[string]string{},
		format:  values.Get("default_format"),
		queryID: values.Get("query_id"),
	}
	if q.format == "" {
		q.format = "TabSeparated"
	}
	if v := values.Get("client_protocol_version"); v != "" {
		if q.revision, err = strconv.ParseUint(v, 10, 32); err != nil {
			return nil, refusal(codeBadArguments, "BAD_ARGUMENTS", "client_protocol_version is no number")
		}
	}
	if err := q.readSettings(values); err != nil {
		return nil, err
	}
	body, err := s.body(r, values)
	if err != nil {
		return nil, err
	}
	return q, q.readStatement(values.Get("query"), body)
}

// readSettings sorts URL parameters into query parameters and settings.
func (q *request) readSettings(values url.Values) error {
	for name := range values {
		value := values.Get(name)
		switch param, isParam := strings.CutPrefix(name, "param_"); {
		case isParam:
			q.params[param] = value
		case transportParams[name] || reservedSettings[name]:
		case name == "insert_deduplication_token":
			q.token = value
		case name == "max_execution_time":
			q.settings = append(q.settings, setting{name, coarseSeconds(value)})
		case !isSettingName(name):
			return refusal(codeBadArguments, "BAD_ARGUMENTS", "the query string holds a name that is no setting")
		default:
			q.settings = append(q.settings, setting{name, value})
			// A filter names one tenant, so its connection would hardly be used again.
			q.keep = q.keep && name != "additional_table_filters"
		}
	}
	sortSettings(q.settings)
	if values.Get("compress") != "1" {
		return nil
	}
	q.compress = compress.NewWriter(compress.LevelZero, compressionMethod(values.Get("network_compression_method")))
	return nil
}

func compressionMethod(name string) compress.Method {
	switch strings.ToUpper(name) {
	case "ZSTD":
		return compress.ZSTD
	case "NONE":
		return compress.None
	}
	return compress.LZ4
}

// isSettingName keeps anything but plain names out of a SET statement.
func isSettingName(name string) bool {
	if name == "" || len(name) > 100 {
		return false
	}
	for i := range len(name) {
		if !isWordByte(name[i]) {
			return false
		}
	}
	return true
}

// executionSteps are the values to which max_execution_time is rounded up.
// clickhouse-go derives it from every context's deadline, so that as sent it
// would make nearly every request need a connection of its own. What ends a
// query at the exact time is the client's leaving.
var executionSteps = []int{1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 3600, 4 * 3600, 24 * 3600}

// coarseSeconds leaves what is no whole positive number for the engine to judge.
func coarseSeconds(value string) string {
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		return value
	}
	for _, step := range executionSteps {
		if n <= step {
			return strconv.Itoa(step)
		}
	}
	return value
}

// body is the request's body, bounded and decompressed.
func (s *server) body(r *http.Request, values url.Values) (io.Reader, error) {
	limited := http.MaxBytesReader(nil, r.Body, s.cfg.MaxRequestBytes)
	if values.Get("decompress") == "1" {
		return &frameReader{r: compress.NewReader(limited)}, nil
	}
	return limited, nil
}

// frameReader makes the end of a compressed body an ordinary io.EOF: the
// decompressor wraps it together with the name of what it was reading.
type frameReader struct{ r *compress.Reader }

func (f *frameReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// readStatement finds SQL and rows. As in ClickHouse's server the text of the
// query parameter and of the body are one statement; where the parameter ends in
// an INSERT's FORMAT clause the body is its rows.
func (q *request) readStatement(inURL string, body io.Reader) error {
	if inURL != "" {
		if q.stmt = parseStatement(inURL); q.stmt.verb == "INSERT" && q.stmt.format != "" {
			q.sql, q.rows = inURL, body
			return q.check()
		}
	}
	text, err := io.ReadAll(io.LimitReader(body, maxStatementBytes+1))
	if err != nil {
		return &bodyError{err}
	}
	if len(text) > maxStatementBytes {
		return refusal(codeTooManyBytes, "TOO_MANY_BYTES", fmt.Sprintf("a statement may have %d bytes", maxStatementBytes))
	}
	q.sql = inURL + string(text)
	q.stmt = parseStatement(q.sql)
	return q.check()
}

// check refuses what must not even reach the engine's client library.
func (q *request) check() error {
	switch {
	case q.stmt.verb == "":
		return refusal(codeSyntaxError, "SYNTAX_ERROR", "Empty query")
	case q.stmt.hostFile:
		return refusal(codeNotImplemented, "NOT_IMPLEMENTED", "INTO OUTFILE and FROM INFILE are not supported")
	case q.stmt.verb == "SET" || q.stmt.verb == "USE":
		return refusal(codeNotImplemented, "NOT_IMPLEMENTED", "there are no sessions: pass settings and database in the URL")
	}
	return nil
}
