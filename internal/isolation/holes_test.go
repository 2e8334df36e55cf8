package isolation

import (
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/postgres"
)

// TestHolesAreFound makes holes in a database, one at a time, and shows that the
// attempts reach through each. Without it, "no leak" could mean that nothing
// was tried.
func TestHolesAreFound(t *testing.T) {
	a := newArena(t)
	ctx := t.Context()
	definition := func(function string) (sql string) {
		t.Helper()
		if err := a.super.QueryRow(ctx, "select pg_get_functiondef($1::regprocedure)", function).Scan(&sql); err != nil {
			t.Fatal(err)
		}
		return sql
	}
	one, many := definition("sec.tenant()"), definition("sec.tenants()")
	// swap replaces a part of a function that must be there.
	swap := func(sql, old, with string) string {
		t.Helper()
		if !strings.Contains(sql, old) {
			t.Fatalf("%q is not in %s", old, sql)
		}
		return strings.ReplaceAll(sql, old, with)
	}
	for _, hole := range []struct {
		name, table string
		role        postgres.Role
		open, close []string
		want        string // in a leak, or in a broken control
	}{
		{"a policy that lets everything through", "ledger.head", postgres.RoleApp, []string{"alter policy app on ledger.head using (true)"},
			[]string{"alter policy app on ledger.head using (tenant_id = (select sec.tenant()))"}, "context none: LEAK"},
		{"row-level security disabled", "ledger.counter", postgres.RoleLedger, []string{"alter table ledger.counter disable row level security"},
			[]string{"alter table ledger.counter enable row level security"}, "update all, returning, context none: LEAK"},
		{"a check that lets everything through", "audit.event", postgres.RoleApp, []string{"alter policy app on audit.event with check (true)"},
			[]string{"alter policy app on audit.event with check (tenant_id = (select sec.tenant()))"}, "insert, context none: LEAK"},
		{"a context that trusts the well-known setting", "ledger.head", postgres.RoleApp,
			[]string{"create or replace function sec.tenant() returns text language sql stable as $$ select current_setting('app.tenant_id', true) $$"}, []string{one},
			"context the well-known setting alone: LEAK"},
		{"a context that does not look at the transaction", "ledger.head", postgres.RoleProcessors,
			[]string{swap(many, "and part[5] = encode(timestamptz_send(transaction_timestamp()), 'hex')", "")}, []string{many}, "context replayed from an earlier transaction: LEAK"},
		{"a context that does not look at the backend", "ledger.head", postgres.RoleProcessors,
			[]string{swap(swap(many, "part[4] = pg_backend_pid()::text", "true"), "and part[5] = encode(timestamptz_send(transaction_timestamp()), 'hex')", "")}, []string{many},
			"context taken from another backend: LEAK"},
		{"a context that never expires", "ledger.head", postgres.RoleApp, []string{swap(one, "and part[3] >= part[5]", "")}, []string{one}, "context expired: LEAK"},
		{"a context whose signature is not looked at", "ledger.head", postgres.RoleApp, []string{swap(one, "or mac <> part[7]", ""),
			swap(swap(one, "or hashtextextended(mac, 0) <> hashtextextended(part[7], 0)", ""), "or mac <> part[7]", "")}, []string{one}, "context forged with another key: LEAK"},
		{"a context that is zero rows when it is missing", "ledger.head", postgres.RoleApp,
			[]string{"create or replace function sec.tenant() returns text language sql stable as $$ select null::text $$"}, []string{one}, "context none: no rows"},
		{"a leaf whose rows nobody checks", "ledger.entry_0", postgres.RoleLedger, []string{"alter table ledger.entry_0 disable trigger check_tenants"},
			[]string{"alter table ledger.entry_0 enable trigger check_tenants"}, "copy in, context none: LEAK"},
		{"TRUNCATE", "ledger.head", postgres.RoleLedger, []string{"grant truncate on ledger.head to tallystick_ledger"},
			[]string{"revoke truncate on ledger.head from tallystick_ledger"}, "truncate, context none: LEAK"},
		{"a role that owns the table", "ledger.head", postgres.RoleApp, []string{"alter table ledger.head owner to tallystick_app"},
			[]string{"alter table ledger.head owner to tallystick_owner", "grant select on ledger.head to tallystick_app"}, "disable, context none: LEAK"},
		{"a statement that never runs", "processors.coverage", postgres.RoleApp, []string{"drop policy app on processors.coverage"},
			[]string{"create policy app on processors.coverage for select to tallystick_app using (tenant_id = (select sec.tenant()))"}, "control: "},
	} {
		a.must(t, "begin")
		a.must(t, hole.open...)
		a.must(t, "commit")
		n, err := attack(ctx, openSession(t, a.l.DSNs[hole.role]), a.super, a.named(t, hole.table, hole.role), 1)
		if err != nil {
			t.Fatal(err)
		}
		found := strings.Join(n.leaks, "\n")
		for _, what := range n.broken {
			found += "\ncontrol: " + what
		}
		if !strings.Contains(found, hole.want) {
			t.Errorf("%s: %q was not found among %d leaks", hole.name, hole.want, len(n.leaks))
		}
		a.must(t, hole.close...)
		if n, err = attack(ctx, openSession(t, a.l.DSNs[hole.role]), a.super, a.named(t, hole.table, hole.role), 11); err != nil || len(n.leaks) > 0 || len(n.broken) > 0 {
			t.Errorf("%s, closed again: %q, %q, %v", hole.name, first(n.leaks), first(n.broken), err)
		}
	}
}

// named is the target of one table.
func (a *arena) named(t testing.TB, table string, role postgres.Role) *target {
	t.Helper()
	for i := range a.tables {
		if a.tables[i].Name == table {
			return a.target(t, &a.tables[i], string(role))
		}
	}
	t.Fatalf("there is no table %s", table)
	return nil
}
