// Package clickhouse is the one way in to ClickHouse, whether it is the engine
// embedded in a child process or a server or cluster given by DSN.
//
// What it promises:
//
//   - A [Reader] cannot write. The embedded engine enforces it whatever a query
//     or its settings say; a real server gets readonly=1 with every query, and
//     should give the reader's user a read-only profile as well.
//   - [DB.Insert] returns nil only after the rows are committed, and the same
//     block sent again with the same token changes nothing, neither in the table
//     nor in the targets of its materialised views, as long as all of them have
//     a deduplication window.
//   - [DB.QueryTenant] forces the tenant twice: as a parameter that the query
//     must use and as a filter on every table named, below the query's own text.
//   - [Transient] tells what to retry from what to halt on.
//
// What it never does: it never puts values into SQL text, never buffers inserts
// in the server (async_insert stays 0), and never logs a DSN or a statement.
package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Role says what a connection is for.
type Role uint8

const (
	// Writer inserts, migrates, and reads what it needs for that.
	Writer Role = iota + 1
	// Reader runs reports: read-only and with small limits.
	Reader
)

// Limits of a reader's query. Two threads leave the other reports and the
// writer their share of a small machine.
const (
	readerMaxThreads       = 2
	readerMaxExecutionTime = 60 * time.Second
	readerMaxResultRows    = 10_000_000
)

const (
	unixScheme = "clickhouse+unix"
	// readerPath is the embedded engine's path for requests that cannot write.
	readerPath = "/reader"
	// unixHost stands in the URLs of requests that go to a socket. No proxy
	// setting of the environment ever applies to it.
	unixHost = "localhost"

	maxOpenConns    = 16
	maxIdleConns    = 8
	dialTimeout     = 10 * time.Second
	responseTimeout = 10 * time.Minute
)

// DB is an open pool of connections in one role. Besides its own methods it has
// those of clickhouse-go's connection (Query, QueryRow, Select, Exec, …).
type DB struct {
	driver.Conn
	role Role
	fast *httpInserter // nil where the server is reached by the native protocol
}

// Open connects to the server of dsn and checks that it answers. A dsn is what
// clickhouse-go understands (clickhouse:// and http://, https://, with
// secure=true for TLS over clickhouse://), or clickhouse+unix:///path/of/socket?database=name for the embedded
// engine. Unknown parameters of the URL are settings of every query.
//
// Errors: [ErrDSN] (without the DSN, which may hold a password), or what the
// server or the network says.
func Open(ctx context.Context, dsn string, role Role) (*DB, error) {
	opt, err := parseDSN(dsn, role)
	if err != nil {
		return nil, err
	}
	conn, err := ch.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("clickhouse: open: %w", err)
	}
	db := &DB{Conn: conn, role: role}
	if role == Writer && opt.Protocol == ch.HTTP {
		db.fast = newHTTPInserter(opt)
	}
	if err := conn.Ping(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("clickhouse: connect: %w", err), db.Close())
	}
	return db, nil
}

// Close closes the connections. Queries that run are cancelled.
func (db *DB) Close() error {
	if db.fast != nil {
		db.fast.close()
	}
	return db.Conn.Close()
}

// parseDSN turns a DSN into clickhouse-go's options for the role.
func parseDSN(dsn string, role Role) (*ch.Options, error) {
	var opt *ch.Options
	var err error
	switch scheme, _, _ := strings.Cut(dsn, "://"); scheme {
	case unixScheme:
		opt, err = parseUnixDSN(dsn, role)
	case "clickhouse", "http", "https":
		opt, err = ch.ParseDSN(secureHTTPS(dsn))
	default:
		return nil, ErrDSN
	}
	if err != nil {
		// Parsers quote their input, which may hold a password.
		return nil, ErrDSN
	}
	if role != Writer && role != Reader {
		return nil, fmt.Errorf("clickhouse: unknown role %d", role)
	}
	if opt.TLS != nil {
		opt.TLS.MinVersion = tls.VersionTLS12
	}
	setDefaults(opt)
	for name, value := range roleSettings(role) {
		opt.Settings[name] = value
	}
	return opt, nil
}

// secureHTTPS adds the parameter without which clickhouse-go refuses an https
// address.
func secureHTTPS(dsn string) string {
	if !strings.HasPrefix(dsn, "https://") || strings.Contains(dsn, "secure=") {
		return dsn
	}
	if strings.Contains(dsn, "?") {
		return dsn + "&secure=true"
	}
	return dsn + "?secure=true"
}

func setDefaults(opt *ch.Options) {
	if opt.Settings == nil {
		opt.Settings = ch.Settings{}
	}
	if opt.MaxOpenConns == 0 {
		opt.MaxOpenConns, opt.MaxIdleConns = maxOpenConns, maxIdleConns
	}
	if opt.DialTimeout == 0 {
		opt.DialTimeout = dialTimeout
	}
	if opt.ReadTimeout == 0 {
		opt.ReadTimeout = responseTimeout
	}
	if opt.ClientInfo.Products == nil {
		opt.ClientInfo.Products = append(opt.ClientInfo.Products, struct{ Name, Version string }{"tallystick", ""})
	}
}

// parseUnixDSN reads clickhouse+unix:///path?database=x&setting=y.
func parseUnixDSN(dsn string, role Role) (*ch.Options, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Host != "" || u.User != nil {
		return nil, ErrDSN
	}
	opt := &ch.Options{
		Protocol:    ch.HTTP,
		Addr:        []string{unixHost},
		Compression: &ch.Compression{Method: ch.CompressionNone},
		Settings:    ch.Settings{},
		DialContext: func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", u.Path)
		},
		TransportFunc: func(t *http.Transport) (http.RoundTripper, error) {
			t.Proxy = nil
			return t, nil
		},
	}
	if role == Reader {
		opt.HttpUrlPath = readerPath
	}
	for name, values := range u.Query() {
		if name == "database" {
			opt.Auth.Database = values[0]
			continue
		}
		opt.Settings[name] = values[0]
	}
	return opt, nil
}

// roleSettings go with every query of the role. The old analyzer is chosen for
// readers because under the new one a SETTINGS clause nested in a sub-query
// escapes readonly=1 on servers before 26.6.4.51 and 26.7.6.49.
func roleSettings(role Role) ch.Settings {
	settings := ch.Settings{
		"session_timezone": "UTC",
		"async_insert":     0,
	}
	if role == Reader {
		settings["enable_analyzer"] = 0
		settings["readonly"] = 1
		settings["max_threads"] = readerMaxThreads
		settings["max_execution_time"] = int(readerMaxExecutionTime / time.Second)
		settings["max_result_rows"] = readerMaxResultRows
	}
	return settings
}
