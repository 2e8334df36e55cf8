// Package chdb serves ClickHouse's HTTP interface from libchdb, the ClickHouse
// engine as a shared library, so that the ordinary clickhouse-go client works
// against an engine that needs no server, no port and no C compiler.
//
// It runs in a process of its own: the engine installs signal handlers, starts
// threads and may abort, and none of that may touch the ledger. Package
// embedded starts that process from our own binary and owns its life.
//
// What it promises:
//
//   - Requests under [ReaderPath] cannot write, whatever their SQL or their
//     settings say: the statement must be classified as read-only by the
//     engine's own parser and runs on a connection that was put into read-only
//     mode before the statement was seen.
//   - No statement, on any path, reads or writes a file or an address of the
//     host: the engine's user holds no grant on any source, and the clauses that
//     its client library itself would execute (INTO OUTFILE, FROM INFILE) are
//     refused before they reach it.
//   - One insert or change at a time, in order of arrival; reads run in parallel
//     and never wait for a write.
//   - An insert is answered with 200 only after the engine has committed it, and
//     a request whose body ends early inserts nothing of the incomplete block.
//   - The settings of one request never reach another.
//
// What it never does: it never listens on a network address, keeps no system
// log tables (so no SQL text is stored), and never logs statements or values.
package chdb

import "errors"

// ReaderPath is the URL path whose requests are read-only.
const ReaderPath = "/reader"

var (
	// ErrLibrary says that libchdb cannot be loaded or lacks an entry point; the
	// engine package is damaged or of another version.
	ErrLibrary = errors.New("chdb: the engine library cannot be used")
	// ErrStart says that the engine refused to start on its directory. The
	// engine's own words are on the child's standard error.
	ErrStart = errors.New("chdb: the engine did not start")
)

// Config says where the engine lives and how much it may use.
type Config struct {
	// LibPath is the absolute path of libchdb.
	LibPath string
	// DataDir is the engine's own directory; created when missing.
	DataDir string
	// RunDir receives the generated configuration files (mode 0600).
	RunDir string
	// VersionFile records which engine wrote DataDir; empty for none. It lies
	// outside of DataDir, whose files are the engine's.
	VersionFile string
	// MaxMemoryBytes bounds what the engine allocates; a query that would pass
	// it fails with code 241.
	MaxMemoryBytes int64
	// Readers is the number of queries that run at the same time, 1 to 64.
	Readers int
	// MaxRequestBytes bounds the body of one request as sent.
	MaxRequestBytes int64
}
