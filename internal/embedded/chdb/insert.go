package chdb

import (
	"errors"
	"io"
	"runtime"
	"unsafe"
)

// insertChunkBytes is how much of a body is handed to the engine at once.
const insertChunkBytes = 256 << 10

// insert streams body into sql ("INSERT INTO t (a, b)" without FORMAT and
// data), which the engine parses as format. It returns after the commit.
//
// The engine takes a block when all of it has arrived, so a body that ends
// early inserts nothing of its last block; with one block per body, as our
// writers send, that is nothing at all. The buffer is scratch space of at least
// one byte.
func (c *connection) insert(sql, format string, body io.Reader, buffer []byte) (outcome, error) {
	stream := c.lib.insert(c.conn, stringData(sql), uintptr(len(sql)), stringData(format), uintptr(len(format)))
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	defer c.lib.insertDestroy(stream)
	if text := c.lib.insertError(stream); text != "" {
		return outcome{}, parseEngineError(text)
	}
	if err := c.feed(stream, body, buffer); err != nil {
		c.lib.insertCancel(stream)
		return outcome{}, err
	}
	result := c.lib.insertDone(stream)
	defer c.lib.resultDestroy(result)
	return c.outcome(result)
}

// feed appends body piece by piece. An engine that has failed stops taking
// data; its reason comes with insertDone, so that is no error here.
func (c *connection) feed(stream unsafe.Pointer, body io.Reader, buffer []byte) error {
	for {
		n, err := body.Read(buffer)
		if n > 0 && c.lib.insertAppend(stream, unsafe.Pointer(&buffer[0]), uintptr(n)) != 0 {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &bodyError{err}
		}
	}
}

// bodyError says that the request ended before its body did.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "chdb: read the rows of an insert: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }
