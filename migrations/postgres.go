package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed postgres/*.sql
var postgresFiles embed.FS

// ErrNewerSchema says that a newer binary has migrated the database.
var ErrNewerSchema = errors.New("the database's schema is newer than this binary; use the newer binary")

// Postgres migrates the database at the DSN, whose role must own it, to the
// newest schema, and makes tallystick_owner the owner of everything in it. Only one of several processes that call it at once does the
// work; the others wait.
func Postgres(ctx context.Context, dsn string) error {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("postgres DSN: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	sub, err := fs.Sub(postgresFiles, "postgres")
	if err != nil {
		return err
	}
	release, err := lockMigrations(ctx, db, postgresLock)
	if err != nil {
		return err
	}
	defer release()
	if err := up(ctx, goose.DialectPostgres, db, sub); err != nil {
		return err
	}
	// Whoever migrates, tallystick_owner owns: the login that migrated then has
	// no rights by ownership that outlive its membership.
	if _, err := db.ExecContext(ctx, "select sec.adopt()"); err != nil {
		return fmt.Errorf("give the tables to tallystick_owner: %w", err)
	}
	return nil
}

// Keys of the session locks that serialise migrations.
const (
	postgresLock   = 0x7461_6c6c_79
	clickhouseLock = 0x7461_6c6c_7a
)

func lockMigrations(ctx context.Context, db *sql.DB, key int64) (release func(), err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	if _, err := conn.ExecContext(ctx, "select pg_advisory_lock($1)", key); err != nil {
		conn.Close()
		return nil, fmt.Errorf("lock migrations: %w", err)
	}
	// Closing the session releases its lock, whatever happened before.
	return func() { conn.Close() }, nil
}

func up(ctx context.Context, dialect goose.Dialect, db *sql.DB, files fs.FS) error {
	p, err := goose.NewProvider(dialect, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if current > target {
		return fmt.Errorf("%w: schema %d, newest known %d", ErrNewerSchema, current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}
