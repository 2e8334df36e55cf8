package chdb

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// library holds the entry points of libchdb that this package uses. Handles are
// opaque pointers into the engine's own heap; Go never looks behind them, and
// the garbage collector ignores them because they lie outside its arenas.
type library struct {
	version     func() string
	setSignals  func(enabled int32)
	connect     func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	closeConn   func(conn unsafe.Pointer)
	query       func(conn unsafe.Pointer, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr, names, nameLens, values, valueLens unsafe.Pointer, n uintptr) unsafe.Pointer
	streamQuery func(conn unsafe.Pointer, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr, names, nameLens, values, valueLens unsafe.Pointer, n uintptr) unsafe.Pointer
	streamFetch func(conn, result unsafe.Pointer) unsafe.Pointer
	streamStop  func(conn, result unsafe.Pointer)

	classify func(conn unsafe.Pointer, sql unsafe.Pointer, sqlLen uintptr, database unsafe.Pointer, databaseLen uintptr, out unsafe.Pointer) int32

	insert        func(conn unsafe.Pointer, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr) unsafe.Pointer
	insertAppend  func(stream, data unsafe.Pointer, n uintptr) int32
	insertDone    func(stream unsafe.Pointer) unsafe.Pointer
	insertCancel  func(stream unsafe.Pointer)
	insertError   func(stream unsafe.Pointer) string
	insertDestroy func(stream unsafe.Pointer)

	resultBuffer  func(result unsafe.Pointer) unsafe.Pointer
	resultLen     func(result unsafe.Pointer) uintptr
	resultError   func(result unsafe.Pointer) string
	rowsWritten   func(result unsafe.Pointer) uint64
	bytesWritten  func(result unsafe.Pointer) uint64
	resultDestroy func(result unsafe.Pointer)
}

// openLibrary loads libchdb from path, which must be absolute so that the
// loader searches nowhere, and resolves every entry point at once: an older or
// newer library fails here and not in the middle of an insert.
func openLibrary(path string) (lib *library, err error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLibrary, err)
	}
	lib = &library{}
	for name, fn := range map[string]any{
		"chdb_version":                     &lib.version,
		"chdb_set_signal_handlers_enabled": &lib.setSignals,
		"chdb_connect":                     &lib.connect,
		"chdb_close_conn":                  &lib.closeConn,
		"chdb_query_with_params_n":         &lib.query,
		"chdb_stream_query_with_params_n":  &lib.streamQuery,
		"chdb_stream_fetch_result":         &lib.streamFetch,
		"chdb_stream_cancel_query":         &lib.streamStop,
		"chdb_classify_query_n":            &lib.classify,
		"chdb_stream_insert_n":             &lib.insert,
		"chdb_stream_append":               &lib.insertAppend,
		"chdb_stream_done":                 &lib.insertDone,
		"chdb_stream_cancel_insert":        &lib.insertCancel,
		"chdb_stream_insert_error":         &lib.insertError,
		"chdb_destroy_insert_stream":       &lib.insertDestroy,
		"chdb_result_buffer":               &lib.resultBuffer,
		"chdb_result_length":               &lib.resultLen,
		"chdb_result_error":                &lib.resultError,
		"chdb_result_rows_written":         &lib.rowsWritten,
		"chdb_result_bytes_written":        &lib.bytesWritten,
		"chdb_destroy_query_result":        &lib.resultDestroy,
	} {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLibrary, err)
		}
		purego.RegisterFunc(fn, symbol)
	}
	return lib, nil
}

// cStrings lays strings out as the parallel pointer and length arrays of the C
// interface. The strings need no terminating zero: every call takes lengths.
type cStrings struct {
	data    []*byte
	lengths []uintptr
}

func newCStrings(values []string) cStrings {
	c := cStrings{data: make([]*byte, len(values)), lengths: make([]uintptr, len(values))}
	for i, v := range values {
		// An empty string still needs an address: the engine refuses null.
		b := append([]byte(v), 0)
		c.data[i], c.lengths[i] = &b[0], uintptr(len(v))
	}
	return c
}

func (c cStrings) pointers() unsafe.Pointer {
	if len(c.data) == 0 {
		return nil
	}
	return unsafe.Pointer(&c.data[0])
}

func (c cStrings) sizes() unsafe.Pointer {
	if len(c.lengths) == 0 {
		return nil
	}
	return unsafe.Pointer(&c.lengths[0])
}

// stringData is the address of the bytes of s, which the engine only reads.
func stringData(s string) unsafe.Pointer { return unsafe.Pointer(unsafe.StringData(s)) }

// argv lays arguments out for chdb_connect: zero-terminated, copied by the
// engine before it returns.
func argv(args []string) (pointers []*byte) {
	for _, a := range args {
		b := append([]byte(a), 0)
		pointers = append(pointers, &b[0])
	}
	return pointers
}

// open makes one engine connection; nil when the engine refuses.
func (l *library) open(args []string) unsafe.Pointer {
	pointers := argv(args)
	conn := l.connect(int32(len(pointers)), unsafe.Pointer(&pointers[0]))
	runtime.KeepAlive(pointers)
	return conn
}
