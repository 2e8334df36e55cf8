package testenv

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/migrations"
)

// Ledger is a migrated Postgres database with a login for each role.
type Ledger struct {
	AdminDSN string
	DSNs     map[postgres.Role]string
	Signer   *postgres.Signer
}

// MigratedPostgres gives the test a fresh database with the current schema.
func MigratedPostgres(t testing.TB) *Ledger {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l := &Ledger{AdminDSN: Postgres(t), Signer: postgres.NewSigner(1, [32]byte{1, 2, 3})}
	if err := migrations.Postgres(ctx, l.AdminDSN); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	var err error
	if l.DSNs, err = postgres.Provision(ctx, l.AdminDSN, l.Signer, [32]byte{4}); err != nil {
		t.Fatalf("provision: %v", err)
	}
	return l
}

// Open opens the database as a role and closes it with the test.
func (l *Ledger) Open(t testing.TB, role postgres.Role) *postgres.DB {
	t.Helper()
	db, err := postgres.Open(t.Context(), l.DSNs[role], l.Signer, postgres.Options{MaxConns: 8})
	if err != nil {
		t.Fatalf("open as %s: %v", role, err)
	}
	t.Cleanup(db.Close)
	return db
}

// Exec runs a statement as superuser, to make or damage what no role of ours may.
func (l *Ledger) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // a test's
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
