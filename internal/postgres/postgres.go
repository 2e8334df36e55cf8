// Package postgres is the only way to tenant data in Postgres.
//
// Every transaction that touches a tenant's rows enters a signed tenant context
// first (InTenant, InTenants, EachTenant); the database checks it in the
// policies of each table, so code that forgets gets an error and never another
// tenant's rows. A context is signed for one transaction: it is worth nothing
// in any other. Only a Bypass sees the rows of all tenants, in a pool of its
// own, and each use of it leaves an audit row.
//
// Open refuses a login that could ignore the policies or do more than its part.
// Nothing here ever sets a role or a session-level setting, which a pooler
// would hand to the next client, so a DSN may name PgBouncer in transaction mode.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Tx is a transaction. The names of the driver's types stand here so that other
// packages need not import the driver.
type (
	Tx   = pgx.Tx
	Rows = pgx.Rows
	Conn = pgx.Conn
)

// How transactions begin and enter a context. What begins goes by the simple
// protocol, all in one.
const (
	beginReadOnly = "begin isolation level repeatable read read only;"
	beginWrite    = "begin isolation level read committed;"
	// Without operators: the parser would need longer for them than the server
	// for the rest.
	askTransaction = "select pg_catalog.pg_backend_pid(), pg_catalog.timestamptz_send(pg_catalog.transaction_timestamp())"
	enterContext   = "select sec.enter($1)"
)

// DB is a pool of connections of one role.
type DB struct {
	pool    *pgxpool.Pool
	signer  *Signer
	tenants func(context.Context) ([]tenant.ID, error)
	limits  string // set in each transaction; "" or a statement
}

// Options of a DB.
type Options struct {
	// MaxConns bounds the pool; 0 is 4.
	MaxConns int32
	// StatementTimeout ends a statement that takes longer; 0 is none. It is set
	// in each transaction, so a pooler hands it to nobody else.
	StatementTimeout time.Duration
	// Name is shown by the server as application_name.
	Name string
	// Role is what the login must be, and be alone. Empty accepts any one that
	// row-level security binds.
	Role Role
	// Tenants lists all tenants for EachTenant; it may be nil.
	Tenants func(context.Context) ([]tenant.ID, error)
}

// Open connects and checks the role. The signer makes the tenant contexts.
//
// Errors: ErrOverprivileged, ErrSimpleProtocol, or what the server says.
func Open(ctx context.Context, dsn string, signer *Signer, opts Options) (*DB, error) {
	if opts.Role == RoleBypass || opts.Role == RoleBackup {
		return nil, fmt.Errorf("%w: %s is for OpenBypass and for pg_dump", ErrOverprivileged, opts.Role)
	}
	return open(ctx, dsn, signer, opts)
}

func open(ctx context.Context, dsn string, signer *Signer, opts Options) (*DB, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("postgres DSN: %w", err)
	}
	if cfg.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		return nil, ErrSimpleProtocol
	}
	cfg.MaxConns = 4
	if opts.MaxConns > 0 {
		cfg.MaxConns = opts.MaxConns
	}
	if opts.Name != "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = opts.Name
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open postgres: %w", err)
	}
	db := &DB{pool: pool, signer: signer, tenants: opts.Tenants}
	if opts.StatementTimeout > 0 {
		db.limits = "set local statement_timeout = " + strconv.FormatInt(max(1, opts.StatementTimeout.Milliseconds()), 10) + ";"
	}
	if err := db.checkRole(ctx, opts.Role); err != nil {
		pool.Close()
		return nil, err
	}
	return db, nil
}

// Close closes all connections.
func (db *DB) Close() { db.pool.Close() }

// Ping checks that the server answers.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// Acquire takes a connection out of the pool for a long-lived user; the caller
// calls release when done.
func (db *DB) Acquire(ctx context.Context) (conn *Conn, release func(), err error) {
	c, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c.Conn(), c.Release, nil
}

// Begin begins a transaction at READ COMMITTED in one round trip. The caller
// enters a context itself, with a Token, and ends the transaction.
func (db *DB) Begin(ctx context.Context, conn *Conn) (*Bound, error) {
	return begin(ctx, conn, beginWrite+db.limits+askTransaction)
}

// Token is the context of the tenants for that transaction: the one parameter
// of `select sec.enter($1)`.
func (db *DB) Token(tx *Bound, ids []string) string { return db.signer.token(tx.of, ids) }

// InTenant runs fn in a read-only transaction of one tenant.
func (db *DB) InTenant(ctx context.Context, id tenant.ID, fn func(Tx) error) error {
	return db.InTenants(ctx, []string{string(id)}, fn)
}

// InTenants runs fn in a read-only transaction of a set of tenants.
func (db *DB) InTenants(ctx context.Context, ids []string, fn func(Tx) error) error {
	return db.run(ctx, beginReadOnly, ids, fn)
}

// InTenantsWrite runs fn in a transaction of a set of tenants that may write
// what the role may write.
func (db *DB) InTenantsWrite(ctx context.Context, ids []string, fn func(Tx) error) error {
	return db.run(ctx, beginWrite, ids, fn)
}

// EachTenant runs fn once for every tenant, each in a read-only transaction of
// that tenant alone, and stops at the first error. It needs Options.Tenants,
// and no more rights than InTenant.
func (db *DB) EachTenant(ctx context.Context, fn func(tenant.ID, Tx) error) error {
	if db.tenants == nil {
		return ErrNoLister
	}
	ids, err := db.tenants(ctx)
	if err != nil {
		return fmt.Errorf("list the tenants: %w", err)
	}
	for _, id := range ids {
		if err := db.InTenant(ctx, id, func(tx Tx) error { return fn(id, tx) }); err != nil {
			return fmt.Errorf("tenant %s: %w", id, err)
		}
	}
	return nil
}

// run is a transaction of two round trips around fn: begin and commit. The context goes with fn's first statement.
func (db *DB) run(ctx context.Context, how string, ids []string, fn func(Tx) error) (err error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, err := begin(ctx, conn.Conn(), how+db.limits+askTransaction)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	// Also when fn panics. After a commit it does nothing.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if len(ids) > 0 {
		tx.pending = db.Token(tx, ids)
	}
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// Tx runs fn in a transaction without a tenant: it sees the tables that belong
// to no tenant, and any other is an error.
func (db *DB) Tx(ctx context.Context, fn func(Tx) error) error {
	return pgx.BeginFunc(ctx, db.pool, fn)
}

// IsNoRows reports that a query that needed a row had none.
func IsNoRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

// SQLState is the SQLSTATE of a server's error, or "".
func SQLState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Permanent reports an error that sending the same again cannot mend: one of
// data, constraint, syntax or privilege (SQLSTATE classes 22, 23 and 42).
// Everything else — the server is away, shutting down, out of space — passes,
// and so does a tenant context that expired while we were stopped.
func Permanent(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 || pg.Detail == "expired" {
		return false
	}
	class := pg.Code[:2]
	return class == "22" || class == "23" || class == "42"
}
