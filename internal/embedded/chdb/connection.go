package chdb

import (
	"errors"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"unsafe"
)

// Classes of chdb_classify_query_n: what the engine's own parser says that a
// statement does.
const (
	classReadOnly       = 0
	classMutating       = 1
	classMutatingGlobal = 2
	classControl        = 3
	classUnknown        = 4
)

// analysis is chdb_query_analysis_v1.
type analysis struct {
	size       uint32
	statements uint32
	flags      uint32
	class      uint32
}

// setting is one name and value.
type setting struct{ name, value string }

// session says which connection a request needs.
type session struct {
	database string
	settings []setting // sorted by name
	reader   bool
	// keep is false where the next request will surely have other settings.
	keep bool
}

// key is equal exactly for sessions that may share a connection.
func (s session) key() string {
	var b strings.Builder
	if s.reader {
		b.WriteByte('r')
	}
	b.WriteByte(0)
	b.WriteString(s.database)
	for _, v := range s.settings {
		b.WriteByte(0)
		b.WriteString(v.name)
		b.WriteByte('=')
		b.WriteString(v.value)
	}
	return b.String()
}

// sortSettings brings settings into the order that key and prepare rely on.
func sortSettings(settings []setting) {
	sort.Slice(settings, func(i, j int) bool { return settings[i].name < settings[j].name })
}

// connection is one engine connection. It runs one statement at a time and is
// used by one goroutine at a time, whoever holds its lease.
type connection struct {
	lib   *library
	outer unsafe.Pointer // what chdb_close_conn takes
	conn  unsafe.Pointer // what everything else takes
	tag   string         // log_comment of every query, by which kill finds it
	key   string
}

func (c *connection) close() { c.lib.closeConn(c.outer) }

// prepare selects the database and applies the settings, in one statement, so
// that a bad one is refused with the engine's own words.
func (c *connection) prepare(database string, settings []setting, reader bool) error {
	var statements []string
	if database != "" {
		statements = append(statements, "USE "+quoteName(database))
	}
	if len(settings) > 0 {
		var b strings.Builder
		for i, s := range settings {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(s.name + " = " + quoteString(s.value))
		}
		statements = append(statements, "SET "+b.String())
	}
	if reader {
		statements = append(statements, "SET enable_analyzer = 0", "SET readonly = 1")
	}
	for _, sql := range statements {
		if _, err := c.exec(sql, "Null", nil); err != nil {
			return err
		}
	}
	return nil
}

// classify asks the engine's parser how many statements sql holds and what the
// gravest of them does.
func (c *connection) classify(sql string) (statements int, class uint32) {
	a := analysis{size: uint32(unsafe.Sizeof(analysis{}))}
	failed := c.lib.classify(c.conn, stringData(sql), uintptr(len(sql)), nil, 0, unsafe.Pointer(&a)) != 0
	runtime.KeepAlive(sql)
	if failed {
		return 0, classUnknown
	}
	return int(a.statements), a.class
}

// explainRefusal returns the engine's own complaint about a statement that its
// parser could not classify. EXPLAIN AST parses and runs nothing; running the
// statement itself would execute what precedes the mistake.
func (c *connection) explainRefusal(sql string) error {
	const explain = "EXPLAIN AST "
	_, err := c.exec(explain+sql, "Null", nil)
	var complaint *engineError
	if !errors.As(err, &complaint) {
		return refusal(codeNotImplemented, "NOT_IMPLEMENTED", "this form of the statement is not supported")
	}
	complaint.text = shiftPositions(complaint.text, len(explain))
	return complaint
}

var failedPosition = regexp.MustCompile(`failed at position (\d+)`)

// shiftPositions makes positions count from the start of the client's own text.
func shiftPositions(text string, prefix int) string {
	return failedPosition.ReplaceAllStringFunc(text, func(match string) string {
		n, err := strconv.Atoi(failedPosition.FindStringSubmatch(match)[1])
		if err != nil || n <= prefix {
			return match
		}
		return "failed at position " + strconv.Itoa(n-prefix)
	})
}

// outcome is what a statement returned.
type outcome struct {
	data         []byte
	rowsWritten  uint64
	bytesWritten uint64
}

// exec runs one statement and copies its whole result; for statements whose
// results are small by nature.
func (c *connection) exec(sql, format string, params map[string]string) (outcome, error) {
	p := newParameters(params)
	result := c.lib.query(c.conn, stringData(sql), uintptr(len(sql)), stringData(format), uintptr(len(format)),
		p.names.pointers(), p.names.sizes(), p.values.pointers(), p.values.sizes(), uintptr(len(p.names.data)))
	runtime.KeepAlive(p)
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	defer c.lib.resultDestroy(result)
	return c.outcome(result)
}

// outcome copies a result out of the engine's memory.
func (c *connection) outcome(result unsafe.Pointer) (outcome, error) {
	if text := c.lib.resultError(result); text != "" {
		return outcome{}, parseEngineError(text)
	}
	o := outcome{rowsWritten: c.lib.rowsWritten(result), bytesWritten: c.lib.bytesWritten(result)}
	if n := c.lib.resultLen(result); n > 0 {
		o.data = append(o.data, unsafe.Slice((*byte)(c.lib.resultBuffer(result)), n)...)
	}
	return o, nil
}

// stream runs a query and calls each with pieces of the result as the engine
// makes them; a piece holds whole blocks and is valid during the call only.
// When each fails the query is cancelled and its error returned.
func (c *connection) stream(sql, format string, params map[string]string, each func(piece []byte) error) error {
	p := newParameters(params)
	result := c.lib.streamQuery(c.conn, stringData(sql), uintptr(len(sql)), stringData(format), uintptr(len(format)),
		p.names.pointers(), p.names.sizes(), p.values.pointers(), p.values.sizes(), uintptr(len(p.names.data)))
	runtime.KeepAlive(p)
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	defer c.lib.resultDestroy(result)
	if text := c.lib.resultError(result); text != "" {
		return parseEngineError(text)
	}
	for {
		more, err := c.fetch(result, each)
		if err != nil {
			c.lib.streamStop(c.conn, result)
			return err
		}
		if !more {
			return nil
		}
	}
}

// fetch hands one piece on; false at the end of the result.
func (c *connection) fetch(result unsafe.Pointer, each func([]byte) error) (bool, error) {
	piece := c.lib.streamFetch(c.conn, result)
	defer c.lib.resultDestroy(piece)
	if text := c.lib.resultError(piece); text != "" {
		return false, parseEngineError(text)
	}
	n := c.lib.resultLen(piece)
	if n == 0 {
		return false, nil
	}
	return true, each(unsafe.Slice((*byte)(c.lib.resultBuffer(piece)), n))
}

// parameters are query parameters in the form of the C interface.
type parameters struct{ names, values cStrings }

func newParameters(params map[string]string) parameters {
	names, values := make([]string, 0, len(params)), make([]string, 0, len(params))
	for name, value := range params {
		names, values = append(names, name), append(values, value)
	}
	return parameters{newCStrings(names), newCStrings(values)}
}
