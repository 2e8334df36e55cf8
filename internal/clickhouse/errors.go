package clickhouse

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"

	ch "github.com/ClickHouse/clickhouse-go/v2"
)

var (
	// ErrDSN says that a DSN cannot be understood. It never quotes it.
	ErrDSN = errors.New("clickhouse: the DSN cannot be understood")
	// ErrReadOnly says that a [Reader] was asked to write: a mistake in wiring.
	ErrReadOnly = errors.New("clickhouse: a reader cannot write")
	// ErrBlock says that a block cannot be sent as it is: no columns, columns of
	// different lengths, or more than [MaxBlockRows] rows. Nothing was inserted.
	ErrBlock = errors.New("clickhouse: bad block")
	// ErrNoTenant says that a query made for one tenant does not name the
	// parameter {tenant:String} or no table, or brings its own tenant parameter.
	// Nothing was sent.
	ErrNoTenant = errors.New("clickhouse: the query does not force its tenant")
)

// transientCodes are exceptions that may go away by themselves: the server is
// busy, short of memory, disk or connections, restarting, or lacks replicas.
// Names and numbers are those of ClickHouse's ErrorCodes.cpp.
var transientCodes = map[int32]bool{
	74:   true, // CANNOT_READ_FROM_FILE_DESCRIPTOR
	75:   true, // CANNOT_WRITE_TO_FILE_DESCRIPTOR: also a full disk
	76:   true, // CANNOT_OPEN_FILE: also too many open files
	159:  true, // TIMEOUT_EXCEEDED
	160:  true, // TOO_SLOW
	173:  true, // CANNOT_ALLOCATE_MEMORY
	202:  true, // TOO_MANY_SIMULTANEOUS_QUERIES
	203:  true, // NO_FREE_CONNECTION
	209:  true, // SOCKET_TIMEOUT
	210:  true, // NETWORK_ERROR
	225:  true, // NO_ZOOKEEPER
	236:  true, // ABORTED
	241:  true, // MEMORY_LIMIT_EXCEEDED
	242:  true, // TABLE_IS_READ_ONLY: a replica without its coordinator
	243:  true, // NOT_ENOUGH_SPACE
	252:  true, // TOO_MANY_PARTS: merges lag behind
	279:  true, // ALL_CONNECTION_TRIES_FAILED
	285:  true, // TOO_FEW_LIVE_REPLICAS
	286:  true, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
	289:  true, // REPLICA_IS_NOT_IN_QUORUM
	319:  true, // UNKNOWN_STATUS_OF_INSERT: the token makes a repeat safe
	394:  true, // QUERY_WAS_CANCELLED
	425:  true, // SYSTEM_ERROR
	439:  true, // CANNOT_SCHEDULE_TASK
	473:  true, // DEADLOCK_AVOIDED
	499:  true, // S3_ERROR
	745:  true, // SERVER_OVERLOADED
	999:  true, // KEEPER_EXCEPTION
	1001: true, // STD_EXCEPTION: also an allocation that failed
	1002: true, // UNKNOWN_EXCEPTION: the embedded engine refused a connection
}

// Transient reports whether the same call may succeed later: the network, a
// timeout, a server that is busy or restarting. Everything else — a bad query,
// a missing table, a value that does not fit — stays an error however often it
// is repeated. A cancelled context is not transient: its owner wants to stop.
func Transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	var exception *ch.Exception
	if errors.As(err, &exception) {
		return transientCodes[exception.Code]
	}
	var response *ch.HTTPError
	if errors.As(err, &response) {
		switch response.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	for _, target := range []error{
		context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, driver.ErrBadConn, net.ErrClosed,
		ch.ErrAcquireConnTimeout, ch.ErrConnectionClosed,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.ENOENT,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	var network net.Error
	return errors.As(err, &network)
}

// Code returns ClickHouse's exception code in err, or 0.
func Code(err error) int32 {
	var exception *ch.Exception
	if errors.As(err, &exception) {
		return exception.Code
	}
	return 0
}
