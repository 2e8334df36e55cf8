package chdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	chproto "github.com/ClickHouse/ch-go/proto"
)

const (
	// rowsTimeout ends an insert whose client has stopped sending; it holds the
	// only slot of changes.
	rowsTimeout = 30 * time.Second
	// sendTimeout ends a result that nobody reads; it holds a connection.
	sendTimeout = 60 * time.Second
	// summaryHeader carries counters of a statement, as in ClickHouse's server.
	summaryHeader = "X-ClickHouse-Summary"
)

// server answers ClickHouse's HTTP interface.
type server struct {
	cfg     Config
	engine  *Engine
	version string
	// buffers are for the rows of inserts, insertChunkBytes each.
	buffers sync.Pool
}

// Handler serves the engine. Paths: /ping, [ReaderPath], and / for everything
// that may write.
func (e *Engine) Handler(cfg Config) (http.Handler, error) {
	version, err := e.Version()
	if err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, engine: e, version: version}
	s.buffers.New = func() any { b := make([]byte, insertChunkBytes); return &b }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Ok.\n") })
	for _, pattern := range []string{"GET /{$}", "POST /{$}", "GET " + ReaderPath, "POST " + ReaderPath} {
		mux.HandleFunc(pattern, s.serve)
	}
	return mux, nil
}

// serve answers one statement.
func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	q, err := s.parseRequest(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("X-ClickHouse-Server-Display-Name", "tallystick-embedded")
	w.Header().Set("X-ClickHouse-Timezone", "UTC")
	if q.queryID != "" {
		w.Header().Set("X-ClickHouse-Query-Id", q.queryID)
	}
	switch {
	case q.rows != nil:
		err = s.insert(w, r, q)
	default:
		err = s.statement(w, r, q)
	}
	if err != nil {
		s.fail(w, err)
	}
}

// insert feeds the rows of the body to the engine.
func (s *server) insert(w http.ResponseWriter, r *http.Request, q *request) error {
	if q.reader {
		return refusal(codeReadonly, "READONLY", "Cannot execute query in readonly mode.")
	}
	l, err := s.engine.acquire(r.Context(), q.session, s.engine.writes)
	if err != nil {
		return err
	}
	defer l.release()
	sql := q.stmt.body + q.tokenClause()
	if n, class := l.classify(sql + " FORMAT " + q.stmt.format); n != 1 || class != classMutating {
		return l.explainRefusal(sql + " FORMAT " + q.stmt.format)
	}
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	rows := &impatientReader{r: q.rows, control: http.NewResponseController(w)}
	out, err := l.insert(sql, q.stmt.format, rows, *buffer)
	rows.forgive()
	if err != nil {
		// The engine restores an insert's settings on every path, but a failed
		// connection is not worth trusting.
		l.spoiled = true
		return err
	}
	if !s.engine.yields { // the engine starts these threads soon after its first part
		s.engine.yields = yieldMerges()
	}
	w.Header().Set(summaryHeader, summary(out))
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil
}

// tokenClause hands the deduplication token to the one INSERT it belongs to.
func (q *request) tokenClause() string {
	switch {
	case q.token == "":
		return ""
	case q.stmt.settings:
		return ", insert_deduplication_token = " + quoteString(q.token)
	}
	return " SETTINGS insert_deduplication_token = " + quoteString(q.token)
}

func summary(o outcome) string {
	return fmt.Sprintf(`{"written_rows":"%d","written_bytes":"%d"}`, o.rowsWritten, o.bytesWritten)
}

// impatientReader gives the client rowsTimeout for every piece of a body.
type impatientReader struct {
	r       io.Reader
	control *http.ResponseController
}

func (i *impatientReader) Read(p []byte) (int, error) {
	// Not every test writer can; then the body has no deadline.
	_ = i.control.SetReadDeadline(time.Now().Add(rowsTimeout))
	n, err := i.r.Read(p)
	if err != nil {
		i.forgive()
	}
	return n, err
}

// forgive lifts the deadline: the commit may take longer, and a deadline that
// passes then would look as if the client had left.
func (i *impatientReader) forgive() { _ = i.control.SetReadDeadline(time.Time{}) }

// statement runs anything but an insert with rows.
func (s *server) statement(w http.ResponseWriter, r *http.Request, q *request) error {
	if q.token != "" {
		q.settings = append(q.settings, setting{"insert_deduplication_token", q.token})
		sortSettings(q.settings)
		q.keep = false
	}
	l, err := s.engine.acquire(r.Context(), q.session, s.lane(q))
	if err != nil {
		return err
	}
	defer l.release()
	n, class := l.classify(q.sql)
	switch {
	case n > 1:
		return refusal(codeSyntaxError, "SYNTAX_ERROR", "Multi-statements are not allowed")
	case class == classUnknown:
		return l.explainRefusal(q.sql)
	case q.reader && class != classReadOnly:
		return refusal(codeReadonly, "READONLY", "Cannot execute query in readonly mode.")
	case class != classReadOnly && q.stmt.looksReadOnly():
		// A SELECT that changes something writes a file of the host.
		return refusal(codeNotImplemented, "NOT_IMPLEMENTED", "this form of the statement is not supported")
	}
	if class == classControl {
		l.spoiled = true
	}
	if class == classReadOnly {
		stop := s.killWhenGone(r.Context(), l)
		defer stop()
	}
	if q.stmt.reads() {
		return s.streamResult(w, l, q)
	}
	return s.wholeResult(w, l, q)
}

// greeting is what clickhouse-go asks every new connection, ping what it asks to
// see whether one still works.
const (
	greeting = "SELECT displayName(), version(), revision(), timezone()"
	ping     = "SELECT 1"
)

// lane chooses the queue in which a statement waits.
func (s *server) lane(q *request) lane {
	switch {
	case q.sql == greeting || q.sql == ping:
		return s.engine.greets
	case q.reader || q.stmt.looksReadOnly():
		return s.engine.reads
	}
	return s.engine.writes
}

// looksReadOnly sorts statements by their first word, to choose the queue that
// they wait in. A wrong guess costs waiting time and nothing else.
func (s statement) looksReadOnly() bool {
	switch s.verb {
	case "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK":
		return true
	}
	return s.reads()
}

// killWhenGone cancels the query on l when the client leaves, and spoils l then,
// so that no later query can be hit. The returned function must be called before
// l is released; it waits for a cancellation under way.
func (s *server) killWhenGone(ctx context.Context, l *lease) (stop func()) {
	ended, watched := make(chan struct{}), make(chan struct{})
	var killed bool
	go func() {
		defer close(watched)
		select {
		case <-ctx.Done():
			killed = true
			s.engine.kill(l.tag)
		case <-ended:
		}
	}()
	return func() {
		close(ended)
		<-watched
		l.spoiled = l.spoiled || killed
	}
}

// wholeResult runs a statement whose result is small.
func (s *server) wholeResult(w http.ResponseWriter, l *lease, q *request) error {
	out, err := l.exec(q.sql, q.format, q.params)
	if err != nil {
		return err
	}
	w.Header().Set(summaryHeader, summary(out))
	body := s.newResult(w, q)
	if len(out.data) > 0 {
		if err := body.send(out.data); err != nil {
			return err
		}
	}
	body.end()
	return nil
}

// streamResult sends a result block by block, as fast as the client reads.
func (s *server) streamResult(w http.ResponseWriter, l *lease, q *request) error {
	body := s.newResult(w, q)
	if err := l.stream(q.sql, q.format, q.params, body.send); err != nil {
		l.spoiled = true
		if !body.begun {
			return err
		}
		body.abort(err)
		return nil
	}
	body.end()
	return nil
}

// result writes one answer; the status goes out with the first piece, so an
// error before it still has its own status.
type result struct {
	w       http.ResponseWriter
	control *http.ResponseController
	q       *request
	native  bool
	begun   bool
	buffer  chproto.Buffer
}

func (s *server) newResult(w http.ResponseWriter, q *request) *result {
	format := q.stmt.format
	if format == "" {
		format = q.format
	}
	w.Header().Set("X-ClickHouse-Format", format)
	w.Header().Set("Content-Type", "application/octet-stream")
	return &result{w: w, control: http.NewResponseController(w), q: q, native: format == "Native"}
}

// send passes one piece of the engine's output on.
func (r *result) send(piece []byte) error {
	if r.native && r.q.revision > 0 {
		r.buffer.Buf = r.buffer.Buf[:0]
		if err := recode(piece, r.q.revision, &r.buffer); err != nil {
			return err
		}
		piece = r.buffer.Buf
	}
	r.begin()
	return frames(r.q.compress, piece, func(b []byte) error {
		_ = r.control.SetWriteDeadline(time.Now().Add(sendTimeout))
		if _, err := r.w.Write(b); err != nil {
			return fmt.Errorf("chdb: send a result: %w", err)
		}
		return nil
	})
}

func (r *result) begin() {
	if !r.begun {
		r.begun = true
		r.w.Header().Set("X-ClickHouse-Exception-Tag", midStreamTag)
		r.w.WriteHeader(http.StatusOK)
	}
}

// end finishes a result without rows too: an empty body is an empty result.
func (r *result) end() {
	if !r.begun {
		r.w.Header().Set("Content-Length", "0")
		r.w.WriteHeader(http.StatusOK)
	}
	_ = r.control.SetWriteDeadline(time.Time{})
}

// abort reports a failure after the status was sent.
func (r *result) abort(cause error) {
	var refused *engineError
	if !errors.As(cause, &refused) {
		refused = refusal(codeUnknown, "UNKNOWN_EXCEPTION", "the result was cut short")
	}
	_ = r.control.Flush()
	_ = r.control.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, _ = r.w.Write(midStreamError(refused.text, r.q.compress != nil))
	// The deadline must not outlive the answer: the connection is used again.
	_ = r.control.Flush()
	_ = r.control.SetWriteDeadline(time.Time{})
}

// fail answers with an error before any result.
func (s *server) fail(w http.ResponseWriter, err error) {
	var refused *engineError
	var tooLong *http.MaxBytesError
	var cut *bodyError
	switch {
	case errors.As(err, &tooLong):
		refused = refusal(codeTooManyBytes, "TOO_MANY_BYTES", fmt.Sprintf("a request may have %d bytes", tooLong.Limit))
	case errors.As(err, &refused):
	case errors.As(err, &cut):
		refused = refusal(codeReceiveFailed, "NETWORK_ERROR", "the request ended before its body did")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		refused = refusal(codeQueryCancelled, "QUERY_WAS_CANCELLED", "the client left")
	default:
		refused = refusal(codeUnknown, "UNKNOWN_EXCEPTION", err.Error())
	}
	w.Header().Set("X-ClickHouse-Exception-Code", strconv.Itoa(refused.code))
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.WriteHeader(refused.status())
	_, _ = io.WriteString(w, refused.text+" (version "+s.version+")\n")
}
