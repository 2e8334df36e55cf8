package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// seed makes one head row for each of two tenants, as the superuser.
func seed(t testing.TB, l *testenv.Ledger) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `insert into ledger.head (tenant_id, partition, seq, chain, key_epoch, received_at)
		select t, 0, 0, sha256(t::bytea), 1, now() from unnest(array['acme', 'bravo']) t`); err != nil {
		t.Fatal(err)
	}
}

func heads(ctx context.Context, tx postgres.Tx) (ids []string, err error) {
	rows, err := tx.Query(ctx, "select tenant_id from ledger.head order by 1")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// wantDenied fails the test unless the error is the database's refusal.
func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	if postgres.SQLState(err) != "42501" {
		t.Errorf("%s: got %v, want SQLSTATE 42501", what, err)
	}
}

func TestTenantContext(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	db, ctx := l.Open(t, postgres.RoleApp), t.Context()

	var got []string
	err := db.InTenant(ctx, "acme", func(tx postgres.Tx) (err error) {
		got, err = heads(ctx, tx)
		return err
	})
	if err != nil || len(got) != 1 || got[0] != "acme" {
		t.Fatalf("as acme: %v, %v; want [acme]", got, err)
	}
	wantDenied(t, "no context", db.Tx(ctx, func(tx postgres.Tx) error {
		_, err := heads(ctx, tx)
		return err
	}))
	wantDenied(t, "a set where one tenant is needed", db.InTenants(ctx, []string{"acme", "bravo"}, func(tx postgres.Tx) error {
		_, err := heads(ctx, tx)
		return err
	}))
}

func TestRolesCannotReachAround(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	ctx := t.Context()
	for _, c := range []struct {
		role postgres.Role
		sql  string
	}{
		{postgres.RoleApp, "update ledger.head set seq = 5"},
		{postgres.RoleApp, "insert into ledger.entry_0 select * from ledger.entry"},
		{postgres.RoleApp, "select * from ledger.entry_0"},
		{postgres.RoleApp, "select * from sec.context_key"},
		{postgres.RoleApp, "select sec.adopt()"},
		{postgres.RoleLedger, "select * from ledger.entry_0"},
		{postgres.RoleLedger, "update ledger.entry set seq = 0"},
		{postgres.RoleLedger, "delete from ledger.entry"},
		{postgres.RoleLedger, "truncate ledger.entry_0"},
		{postgres.RoleLedger, "delete from ledger.event_key"},
		{postgres.RoleLedger, "alter table ledger.entry disable row level security"},
	} {
		db := l.Open(t, c.role)
		wantDenied(t, string(c.role)+": "+c.sql, db.InTenantsWrite(ctx, []string{"acme"}, func(tx postgres.Tx) error {
			_, err := tx.Exec(ctx, c.sql)
			return err
		}))
	}
	// A row of another tenant is refused by the leaf's trigger, one of ours is taken.
	db := l.Open(t, postgres.RoleLedger)
	insert := func(id string) error {
		return db.InTenantsWrite(ctx, []string{"acme"}, func(tx postgres.Tx) error {
			_, err := tx.Exec(ctx, `insert into ledger.event_key_0 values ($1, gen_random_uuid(), gen_random_uuid(), 1)`, id)
			return err
		})
	}
	wantDenied(t, "foreign row", insert("bravo"))
	if err := insert("acme"); err != nil {
		t.Errorf("own row: %v", err)
	}
	wantDenied(t, "no context on the leaf", db.Tx(ctx, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, `insert into ledger.event_key_0 values ('acme', gen_random_uuid(), gen_random_uuid(), 1)`)
		return err
	}))
}
