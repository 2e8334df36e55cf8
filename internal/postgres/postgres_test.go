package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// seed makes one head row for each of two tenants, as the superuser.
func seed(t *testing.T, l *testenv.Ledger) {
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

// A context that SQL text sets by itself, or takes over from another
// transaction, is refused: this is what injected SQL could try.
func TestContextCannotBeForged(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	db, ctx := l.Open(t, postgres.RoleApp), t.Context()
	var stolen string
	if err := db.InTenant(ctx, "bravo", func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, "select current_setting('tallystick.context')").Scan(&stolen)
	}); err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(stolen, "bravo", "acme", 1)
	for _, ctxValue := range []string{stolen, forged, "1|acme|", "1|acme|00", "", "x", "1|acme", "9|acme|" + stolen[8:]} {
		wantDenied(t, "set_config "+ctxValue, db.InTenant(ctx, "acme", func(tx postgres.Tx) error {
			if _, err := tx.Exec(ctx, "select set_config('tallystick.context', $1, true)", ctxValue); err != nil {
				return err
			}
			_, err := heads(ctx, tx)
			return err
		}))
	}
	other := postgres.NewSigner(1, [32]byte{9}).Token([]string{"acme"})
	good := l.Signer.Token([]string{"acme"})
	for _, token := range []string{other, strings.Replace(good, "acme", "bravo", 1), good[:len(good)-1], "v1|1|9999999999|acme|", "v2" + good[2:], ""} {
		wantDenied(t, "token "+token, db.Tx(ctx, func(tx postgres.Tx) error {
			_, err := tx.Exec(ctx, "select sec.enter($1)", token)
			return err
		}))
	}
	// The same token is good when nothing was changed: the attempts above did not fail to run.
	if err := db.Tx(ctx, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, "select sec.enter($1)", good)
		return err
	}); err != nil {
		t.Errorf("an unchanged token is refused: %v", err)
	}
}

func TestExpiredTokenIsTransient(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	db, ctx := l.Open(t, postgres.RoleApp), t.Context()
	old := postgres.SignerAt(l.Signer, func() time.Time { return time.Now().Add(-time.Hour) })
	err := db.Tx(ctx, func(tx postgres.Tx) error {
		_, err := tx.Exec(ctx, "select sec.enter($1)", old.Token([]string{"acme"}))
		return err
	})
	wantDenied(t, "expired token", err)
	if postgres.Permanent(err) {
		t.Error("an expired token must be retried with a new one, not halt a partition")
	}
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
		{postgres.RoleApp, "select sec.hmac(1, 'x')"},
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

func TestOverprivilegedDSNIsRefused(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	if _, err := postgres.Open(t.Context(), l.AdminDSN, l.Signer, postgres.Options{}); !errors.Is(err, postgres.ErrOverprivileged) {
		t.Errorf("superuser DSN: got %v, want ErrOverprivileged", err)
	}
}
