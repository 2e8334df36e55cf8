// Package postgres is the only way to tenant data in Postgres.
//
// Every transaction that touches a tenant's rows enters a signed tenant context
// first (InTenant, InTenants); the database checks it in the policies of each
// table, so code that forgets gets an error and never another tenant's rows.
// A DB refuses to open with a role that could ignore the policies. It never
// sets a role or a session-level setting, which a pooler would hand to the
// next client.
package postgres

import (
	"context"
	"errors"
	"fmt"
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

// Isolation and access of read-only transactions.
var readOnly = pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}

// DB is a pool of connections of one role.
type DB struct {
	pool   *pgxpool.Pool
	signer *Signer
}

// Options of a DB.
type Options struct {
	// MaxConns bounds the pool; 0 is 4.
	MaxConns int32
	// StatementTimeout ends a statement that takes longer; 0 is none.
	StatementTimeout time.Duration
	// Name is shown by the server as application_name.
	Name string
}

// Open connects and checks the role. The signer makes the tenant contexts.
func Open(ctx context.Context, dsn string, signer *Signer, opts Options) (*DB, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("postgres DSN: %w", err)
	}
	cfg.MaxConns = 4
	if opts.MaxConns > 0 {
		cfg.MaxConns = opts.MaxConns
	}
	if opts.Name != "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = opts.Name
	}
	if opts.StatementTimeout > 0 {
		cfg.ConnConfig.RuntimeParams["statement_timeout"] = fmt.Sprint(opts.StatementTimeout.Milliseconds())
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open postgres: %w", err)
	}
	db := &DB{pool: pool, signer: signer}
	if err := db.checkRole(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return db, nil
}

// checkRole refuses a role that row-level security does not bind.
func (db *DB) checkRole(ctx context.Context) error {
	var name string
	var super, bypass, owns bool
	err := db.pool.QueryRow(ctx, `
		select r.rolname, r.rolsuper, r.rolbypassrls,
		       exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
		               where n.nspname in ('sec', 'ledger', 'processors') and pg_has_role(c.relowner, 'member'))
		from pg_roles r where r.rolname = current_user`).Scan(&name, &super, &bypass, &owns)
	if err != nil {
		return fmt.Errorf("check postgres role: %w", err)
	}
	if super || bypass || owns {
		return fmt.Errorf("%w: role %q: superuser %v, bypassrls %v, owner of tables %v", ErrOverprivileged, name, super, bypass, owns)
	}
	return nil
}

// Close closes all connections.
func (db *DB) Close() { db.pool.Close() }

// Ping checks that the server answers.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// Signer is what signs this DB's tenant contexts.
func (db *DB) Signer() *Signer { return db.signer }

// Acquire takes a connection out of the pool for a long-lived user; the caller
// calls release when done.
func (db *DB) Acquire(ctx context.Context) (conn *Conn, release func(), err error) {
	c, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c.Conn(), c.Release, nil
}

// InTenant runs fn in a read-only transaction of one tenant.
func (db *DB) InTenant(ctx context.Context, id tenant.ID, fn func(Tx) error) error {
	return db.InTenants(ctx, []string{string(id)}, fn)
}

// InTenants runs fn in a read-only transaction of a set of tenants.
func (db *DB) InTenants(ctx context.Context, ids []string, fn func(Tx) error) error {
	return pgx.BeginTxFunc(ctx, db.pool, readOnly, func(tx Tx) error {
		if err := db.Enter(ctx, tx, ids); err != nil {
			return err
		}
		return fn(tx)
	})
}

// InTenantsWrite runs fn in a transaction of a set of tenants that may write
// what the role may write.
func (db *DB) InTenantsWrite(ctx context.Context, ids []string, fn func(Tx) error) error {
	return pgx.BeginFunc(ctx, db.pool, func(tx Tx) error {
		if err := db.Enter(ctx, tx, ids); err != nil {
			return err
		}
		return fn(tx)
	})
}

// Enter makes the tenants those of the transaction.
func (db *DB) Enter(ctx context.Context, tx Tx, ids []string) error {
	if _, err := tx.Exec(ctx, "select sec.enter($1)", db.signer.Token(ids)); err != nil {
		return fmt.Errorf("enter tenant context: %w", err)
	}
	return nil
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
