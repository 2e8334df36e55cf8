package isolation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

// boundRoles are the roles that row-level security must hold.
var boundRoles = []postgres.Role{postgres.RoleApp, postgres.RoleLedger, postgres.RoleProcessors}

// arena is a migrated database in which every tenant table has rows of some
// tenants. Checks, foreign keys and triggers that are about content are taken
// out, so that any row of the right types goes in; what is about tenants stays.
type arena struct {
	l      *testenv.Ledger
	super  *pgx.Conn
	tables []relation
}

func newArena(t testing.TB) *arena {
	t.Helper()
	l := testenv.MigratedPostgres(t)
	a := &arena{l: l, super: connect(t, l.AdminDSN)}
	c, err := readCatalogue(t.Context(), a.super)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range c.relations {
		if r.Tenant && noTenant[r.Name].reason == "" {
			a.tables = append(a.tables, r)
		}
	}
	a.must(t, "set session_replication_role = replica")
	for _, sql := range []string{
		`select format('alter table %s drop constraint %I cascade', conrelid::regclass, conname) from pg_constraint k
		 where contype in ('c', 'f') and conislocal and coninhcount = 0 and conparentid = 0
		   and exists (select from pg_attribute a where a.attrelid = k.conrelid and a.attname = 'tenant_id')`,
		`select format('alter table %s disable trigger %I', tgrelid::regclass, tgname) from pg_trigger
		 where not tgisinternal and tgparentid = 0 and tgfoid <> 'sec.check_inserted'::regproc`,
	} {
		rows, err := a.super.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		a.must(t, statements...)
	}
	for i := range a.tables {
		a.fill(t, &a.tables[i])
	}
	return a
}

func (a *arena) must(t testing.TB, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := a.super.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// fill gives each tenant with rows three of them, or one where the key has room
// for no more.
func (a *arena) fill(t testing.TB, r *relation) {
	t.Helper()
	if r.Parent != "" {
		return // filled through its parent
	}
	target := a.target(t, r, "tallystick_owner")
	all := target.list(func(*column) bool { return true })
	for _, tenant := range []string{intruder, victim, bystander} {
		for i := range 3 {
			a.must(t, fmt.Sprintf("insert into %s (%s) select %s on conflict do nothing", target.name, strings.Join(all, ", "), target.values(all, tenant, i+1)))
		}
	}
}

// target reads what a role may do with a table.
func (a *arena) target(t testing.TB, r *relation, role string) *target {
	t.Helper()
	rows, err := a.super.Query(t.Context(), `
		select a.attname,
		  case when ty.typcategory = 'A' then '''{}'''
		       when ty.typname = 'uuid' then 'md5(''$I'')::uuid'
		       when ty.typname = 'bytea' then 'decode(lpad(to_hex($I), 64, ''0''), ''hex'')'
		       when ty.typname in ('json', 'jsonb') then '''{}'''
		       when ty.typname = 'inet' then '''10.0.0.$I'''
		       when ty.typcategory = 'N' then '$I'
		       when ty.typcategory = 'B' then 'true'
		       when ty.typcategory = 'D' then '''2026-01-0$I'''
		       when ty.typcategory = 'T' then '''$I hours'''
		       when ty.typcategory = 'E' then quote_literal((select enumlabel from pg_enum e where e.enumtypid = ty.oid order by enumsortorder limit 1))
		       else '''v$I''' end || '::' || format_type(a.atttypid, a.atttypmod),
		  coalesce(a.attnum = any (i.indkey), false),
		  has_column_privilege($2, a.attrelid, a.attnum, 'select'), has_column_privilege($2, a.attrelid, a.attnum, 'insert'),
		  has_column_privilege($2, a.attrelid, a.attnum, 'update')
		from pg_attribute a join pg_type ty on ty.oid = a.atttypid left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
		where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity <> 'a' order by a.attnum`, r.OID, role)
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{name: quoteName(r.Name), plain: r.Name, role: role, leaf: r.Parent != ""}
	if tg.columns, err = pgx.CollectRows(rows, pgx.RowToStructByPos[column]); err != nil {
		t.Fatal(err)
	}
	// Where only a policy for one tenant is the role's, no set of tenants helps.
	if err := a.super.QueryRow(t.Context(), `
		select has_table_privilege($2, $1::oid, 'delete'), has_table_privilege($2, $1::oid, 'truncate'),
		  not exists (select from pg_policy p where p.polrelid = $1 and $2::regrole = any (p.polroles)
		              and coalesce(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) = $3)`,
		r.OID, role, ofTenants).Scan(&tg.del, &tg.trunc, &tg.single); err != nil {
		t.Fatal(err)
	}
	names := tg.insertable()
	var line strings.Builder
	if _, err := a.super.PgConn().CopyTo(t.Context(), &line, "copy (select "+tg.values(names, newcomer, 1)+") to stdout"); err != nil {
		t.Fatal(err)
	}
	tg.copyLine = line.String()
	return tg
}

// tally is what a run of attempts counted.
type tally struct {
	attempts, controls int
	leaks              []string
	broken             []string // controls that did not work
}

func (t *tally) add(o *tally) {
	t.attempts += o.attempts
	t.controls += o.controls
	t.leaks, t.broken = append(t.leaks, o.leaks...), append(t.broken, o.broken...)
}

// attack tries every verb in every state on one table as one role. Each attempt
// has its control, in a transaction beside its own.
//
// Of every pair of verb and state one in `every` is tried, beginning at a place
// that differs from table to table.
func attack(ctx context.Context, s *session, super *pgx.Conn, tg *target, every int) (*tally, error) {
	n, turn := &tally{}, len(tg.plain)
	for i := range verbs {
		v := &verbs[i]
		statements := v.sql(tg)
		for j := range states {
			if turn++; turn%every != 0 {
				continue
			}
			st := &states[j]
			got, err := undisturbed(func() (got outcome, err error) {
				if err := s.begin(ctx); err != nil {
					return refused, err
				}
				if err = st.enter(ctx, s, v.wants); err == nil {
					got, err = v.run(ctx, s.conn, tg, statements)
				}
				return got, errors.Join(err, s.rollback(ctx))
			})
			n.attempts++
			if bad := judge(st, got, err); bad != "" {
				n.leaks = append(n.leaks, fmt.Sprintf("%s as %s, %s, context %s: %s", tg.plain, tg.role, v.name, st.name, bad))
			}
			got, err = undisturbed(func() (outcome, error) { return control(ctx, s, super, tg, v, statements) })
			if got == reached {
				n.controls++
			} else if len(n.broken) == 0 || n.broken[len(n.broken)-1] != tg.plain+v.name {
				n.broken = append(n.broken, fmt.Sprintf("%s as %s, %s: %v: %q", tg.plain, tg.role, v.name, err, statements))
			}
		}
	}
	return n, nil
}

// undisturbed tries again what a deadlock with another session ended: the roles
// are tried side by side, and some verbs lock a table and what hangs on it.
func undisturbed(try func() (outcome, error)) (got outcome, err error) {
	for range 10 {
		var pg *pgconn.PgError
		if got, err = try(); !errors.As(err, &pg) || pg.Code != "40P01" {
			break
		}
	}
	return got, err
}

// judge says what is wrong with an attempt's outcome, or nothing.
func judge(st *state, got outcome, err error) string {
	var pg *pgconn.PgError
	switch {
	case got == reached:
		return "LEAK"
	case err == nil && !st.lawful:
		return "no rows, where an error was promised"
	case err == nil:
		return ""
	case !errors.As(err, &pg):
		return err.Error()
	// 0A000 is COPY FROM on a table with policies; 42P01 and 3F000 cannot come.
	case pg.Code != "42501" && pg.Code != "0A000":
		return "an error that is no refusal: " + err.Error()
	}
	return ""
}

// control runs the same statements as the tenant whose rows they want; where the
// role has no privilege for them, as the superuser.
func control(ctx context.Context, s *session, super *pgx.Conn, tg *target, v *verb, statements []string) (outcome, error) {
	who := s
	if !v.may(tg) {
		who = &session{conn: super}
	}
	if err := who.begin(ctx); err != nil {
		return refused, err
	}
	err := who.sign(ctx, genuine(who.now, v.wants).String())
	if err == nil && who == s && (v.name == "take a row over" || v.name == "give a row away") {
		err = who.sign(ctx, genuine(who.now, strings.Join([]string{intruder, victim, newcomer}, ",")).String())
	}
	got := refused
	if err == nil {
		got, err = v.run(ctx, who.conn, tg, statements)
	}
	return got, errors.Join(err, who.rollback(ctx))
}

// TestAttempts tries every table, verb and context state as every role.
func TestAttempts(t *testing.T) {
	a := newArena(t)
	var targets []*target
	for i := range a.tables {
		for _, role := range boundRoles {
			targets = append(targets, a.target(t, &a.tables[i], string(role)))
		}
	}
	every := 7 // coprime with the number of states, so all of them come
	if full {
		every = 1
	}
	total := &tally{}
	results := make([]*tally, len(boundRoles))
	g, ctx := errgroup.WithContext(t.Context())
	for i, role := range boundRoles {
		s, super := openSession(t, a.l.DSNs[role]), connect(t, a.l.AdminDSN)
		if _, err := super.Exec(ctx, "set session_replication_role = replica"); err != nil {
			t.Fatal(err)
		}
		g.Go(func() error {
			results[i] = &tally{}
			for _, tg := range targets {
				if tg.role != string(role) {
					continue
				}
				n, err := attack(ctx, s, super, tg, every)
				results[i].add(n)
				if err != nil {
					return fmt.Errorf("%s as %s: %w", tg.plain, role, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, n := range results {
		total.add(n)
	}
	t.Logf("%d tables, %d verbs, %d states, %d roles: %d attempts, %d controls", len(a.tables), len(verbs), len(states), len(boundRoles), total.attempts, total.controls)
	for _, what := range first(total.leaks) {
		t.Error(what)
	}
	for _, what := range first(total.broken) {
		t.Error("control: " + what)
	}
	count(func() {
		counts.attempts += total.attempts
		counts.controls += total.controls
		counts.leaks += len(total.leaks)
	})
}

// first are as many as a person reads.
func first(list []string) []string { return list[:min(len(list), 40)] }
