package pgstore_test

import (
	"testing"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger/storetest"
)

// Subject reads a person, as the app role would.
func (s store) Subject(t *testing.T, id, pseudonym string) (out storetest.Subject, ok bool) {
	t.Helper()
	err := s.l.Open(t, postgres.RoleApp).InTenants(t.Context(), []string{id}, func(tx postgres.Tx) error {
		return tx.QueryRow(t.Context(), `
			select identity, first_seen - date '1970-01-01', last_seen - date '1970-01-01', erased_at is not null
			from ledger.subject where pseudonym = $1`, pseudonym).Scan(&out.Identity, &out.First, &out.Last, &out.Erased)
	})
	if err != nil && !postgres.IsNoRows(err) {
		t.Fatal(err)
	}
	return out, err == nil
}

// Erase takes a person's identity away, as the app role would.
func (s store) Erase(t *testing.T, id, pseudonym string) {
	t.Helper()
	s.inApp(t, id, "update ledger.subject set identity = null, erased_at = now() where tenant_id = $1 and pseudonym = $2", id, pseudonym)
}

func (s store) inApp(t *testing.T, id, sql string, args ...any) {
	t.Helper()
	err := s.l.Open(t, postgres.RoleApp).InTenantsWrite(t.Context(), []string{id}, func(tx postgres.Tx) error {
		_, err := tx.Exec(t.Context(), sql, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The writer can neither read, change nor erase an identity; who serves the API
// can erase one and write none.
func TestWhoMayEraseAnIdentity(t *testing.T) {
	s := open(t)
	s.admin(t, `insert into ledger.subject (tenant_id, pseudonym, identity, first_seen, last_seen)
		values ('acme', repeat('a', 32), 'x', '2026-11-22', '2026-11-22')`)
	for _, c := range []struct {
		role postgres.Role
		sql  string
		want string
	}{
		{postgres.RoleLedger, "select identity from ledger.subject", "42501"},
		{postgres.RoleLedger, "update ledger.subject set identity = 'y'", "42501"},
		{postgres.RoleLedger, "update ledger.subject set identity = null, erased_at = now()", "42501"},
		{postgres.RoleLedger, "update ledger.subject set erased_at = null", "42501"},
		{postgres.RoleLedger, "delete from ledger.subject", "42501"},
		{postgres.RoleLedger, "truncate ledger.subject", "42501"},
		{postgres.RoleLedger, "select tag_keys from ledger.confidential", "42501"},
		{postgres.RoleLedger, "update ledger.subject set last_seen = '2026-11-23'", ""},
		{postgres.RoleApp, "insert into ledger.subject (tenant_id, pseudonym, identity) values ('acme', repeat('b', 32), 'y')", "42501"},
		{postgres.RoleApp, "update ledger.subject set last_seen = '2026-11-24'", "42501"},
		{postgres.RoleApp, "update ledger.subject set identity = null", "23514"},
		{postgres.RoleApp, "update ledger.subject set identity = null, erased_at = now()", ""},
		{postgres.RoleApp, "insert into ledger.subject (tenant_id, pseudonym, erased_at) values ('acme', repeat('b', 32), now())", ""},
		{postgres.RoleApp, "insert into ledger.subject (tenant_id, pseudonym, erased_at) values ('bravo', repeat('b', 32), now())", "42501"},
		{postgres.RoleApp, "delete from ledger.subject", ""},
		{postgres.RoleApp, "truncate ledger.subject", "42501"},
		{postgres.RoleApp, "update ledger.confidential_version set version = 1", "42501"},
		{postgres.RoleProcessors, "select * from ledger.subject", "42501"},
	} {
		err := s.l.Open(t, c.role).InTenantsWrite(t.Context(), []string{"acme"}, func(tx postgres.Tx) error {
			_, err := tx.Exec(t.Context(), c.sql)
			return err
		})
		if postgres.SQLState(err) != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%s: %s: %v, want SQLSTATE %q", c.role, c.sql, err, c.want)
		}
	}
}

// Every change of a tenant's confidential tags moves the one version that edges
// ask for.
func TestConfidentialVersionMoves(t *testing.T) {
	s := open(t)
	version := func() (v int64) {
		err := s.l.Open(t, postgres.RoleApp).Tx(t.Context(), func(tx postgres.Tx) error {
			return tx.QueryRow(t.Context(), "select version from ledger.confidential_version").Scan(&v)
		})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	last := version()
	for _, sql := range []string{
		"insert into ledger.confidential (tenant_id, tag_keys) values ('acme', '{patient}')",
		"update ledger.confidential set tag_keys = '{}'",
	} {
		s.inApp(t, "acme", sql)
		if v := version(); v <= last {
			t.Errorf("%s: version %d after %d", sql, v, last)
		} else {
			last = v
		}
	}
}
