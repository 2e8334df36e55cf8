package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/migrations"
)

// as is a DSN with another login, whose role is made with the attributes and
// memberships given, and dropped with the test.
func as(t *testing.T, l *testenv.Ledger, attributes string, memberOf ...string) string {
	t.Helper()
	u, err := url.Parse(l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	name := "odd_" + strings.TrimPrefix(u.Path, "/")
	admin := connect(t, l.AdminDSN)
	run := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(context.WithoutCancel(t.Context()), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	run(fmt.Sprintf("drop role if exists %s", name))
	run(fmt.Sprintf("create role %s login password 'odd' %s", name, attributes))
	for _, group := range memberOf {
		run(fmt.Sprintf("grant %s to %s", group, name))
	}
	u.User = url.UserPassword(name, "odd")
	return u.String()
}

// TestOverprivilegedLoginsAreRefused makes a login of each kind that could step
// over row-level security, or do another role's work.
func TestOverprivilegedLoginsAreRefused(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	admin := connect(t, l.AdminDSN)
	for _, c := range []struct {
		name, attributes string
		memberOf         []string
		extra            string // SQL after the login was made; $LOGIN is its name
		role             postgres.Role
		want             string // in the error; "" is accepted
	}{
		{name: "app", memberOf: []string{"tallystick_app"}, role: postgres.RoleApp},
		{name: "app, any role", memberOf: []string{"tallystick_app"}},
		{name: "superuser", attributes: "superuser", want: "superuser as odd"},
		{name: "BYPASSRLS", attributes: "bypassrls", memberOf: []string{"tallystick_app"}, want: "BYPASSRLS as odd"},
		{name: "CREATEROLE", attributes: "createrole", memberOf: []string{"tallystick_app"}, want: "CREATEROLE as odd"},
		{name: "REPLICATION", attributes: "replication", memberOf: []string{"tallystick_app"}, want: "REPLICATION as odd"},
		{name: "could become owner", attributes: "noinherit", memberOf: []string{"tallystick_owner"}, want: "owner of"},
		{name: "migrator", memberOf: []string{"tallystick_migrator"}, want: "member of tallystick_migrator"},
		{name: "bypass group", memberOf: []string{"tallystick_bypass"}, want: "member of tallystick_bypass"},
		{name: "reads every table", memberOf: []string{"tallystick_app", "pg_read_all_data"}, role: postgres.RoleApp, want: "member of pg_read_all_data"},
		{name: "writes every table", memberOf: []string{"tallystick_app", "pg_write_all_data"}, want: "member of pg_write_all_data"},
		{name: "two roles", memberOf: []string{"tallystick_app", "tallystick_ledger"}, role: postgres.RoleApp, want: "member of tallystick_ledger"},
		{name: "another role", memberOf: []string{"tallystick_processors"}, role: postgres.RoleApp, want: "not a member of tallystick_app"},
		{name: "truncates", memberOf: []string{"tallystick_app"}, extra: "grant truncate on ledger.entry to $LOGIN", want: "may truncate ledger.entry"},
		{name: "owns", memberOf: []string{"tallystick_app"}, extra: "create table ledger.odd (); alter table ledger.odd owner to $LOGIN", want: "owner of ledger.odd"},
	} {
		dsn := as(t, l, c.attributes, c.memberOf...)
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Exec(t.Context(), strings.ReplaceAll(c.extra, "$LOGIN", u.User.Username())); err != nil {
			t.Fatal(err)
		}
		db, err := postgres.Open(t.Context(), dsn, l.Signer, postgres.Options{Role: c.role})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.Is(err, postgres.ErrOverprivileged) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want ErrOverprivileged with %q", c.name, err, c.want)
		}
		if db != nil {
			db.Close()
		}
		if _, err := admin.Exec(t.Context(), strings.ReplaceAll("drop owned by $LOGIN; drop role $LOGIN", "$LOGIN", u.User.Username())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEachLoginIsItsRole opens every login as every role: only its own fits.
func TestEachLoginIsItsRole(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	for _, login := range postgres.Logins() {
		for _, role := range []postgres.Role{postgres.RoleApp, postgres.RoleLedger, postgres.RoleProcessors} {
			db, err := postgres.Open(t.Context(), l.DSNs[login], l.Signer, postgres.Options{Role: role})
			if (err == nil) != (login == role) {
				t.Errorf("%s as %s: %v", login, role, err)
			}
			if err == nil {
				db.Close()
			}
		}
		b, err := postgres.OpenBypass(t.Context(), l.DSNs[login], l.Signer, auditTable{})
		if (err == nil) != (login == postgres.RoleBypass) {
			t.Errorf("%s as bypass: %v", login, err)
		}
		if err == nil {
			b.Close()
		}
	}
	for _, role := range []postgres.Role{postgres.RoleBypass, postgres.RoleBackup} {
		if _, err := postgres.Open(t.Context(), l.DSNs[role], l.Signer, postgres.Options{Role: role}); !errors.Is(err, postgres.ErrOverprivileged) {
			t.Errorf("Open as %s: %v", role, err)
		}
	}
	if _, err := postgres.Open(t.Context(), l.DSNs[postgres.RoleApp]+"&default_query_exec_mode=simple_protocol", l.Signer, postgres.Options{}); !errors.Is(err, postgres.ErrSimpleProtocol) {
		t.Errorf("simple protocol: %v", err)
	}
}

// auditTable appends to a table that audited makes.
type auditTable struct{ fail error }

func (a auditTable) AppendBypass(ctx context.Context, tx postgres.Tx, id tenant.ID, reason string) error {
	if a.fail != nil {
		return a.fail
	}
	_, err := tx.Exec(ctx, "insert into public.audited values ($1, $2)", string(id), reason)
	return err
}

func TestRunAsBypass(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	ctx := t.Context()
	admin := connect(t, l.AdminDSN)
	if _, err := admin.Exec(ctx, "create table public.audited (tenant text, reason text); grant insert on public.audited to tallystick_bypass"); err != nil {
		t.Fatal(err)
	}
	open := func(audit postgres.Appender) *postgres.Bypass {
		b, err := postgres.OpenBypass(ctx, l.DSNs[postgres.RoleBypass], l.Signer, audit)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	rows := func() (n int) {
		if err := admin.QueryRow(ctx, "select count(*) from public.audited").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b := open(auditTable{})
	var seen []string
	var entered, timeout string
	err := b.RunAsBypass(ctx, "acme", "compare heads", func(tx postgres.Tx) (err error) {
		if err := tx.QueryRow(ctx, "select sec.tenant(), current_setting('statement_timeout')").Scan(&entered, &timeout); err != nil {
			return err
		}
		seen, err = heads(ctx, tx)
		return err
	})
	if err != nil || len(seen) != 2 || entered != "acme" || timeout != "30s" || rows() != 1 {
		t.Errorf("%v as %q with timeout %s, %d audit rows, %v", seen, entered, timeout, rows(), err)
	}
	if err := b.RunAsBypass(ctx, "", "compare heads", func(tx postgres.Tx) error { _, err := heads(ctx, tx); return err }); err != nil || rows() != 2 {
		t.Errorf("for all tenants: %d audit rows, %v", rows(), err)
	}
	// What failed leaves no row, and what left no row did not run.
	failed := errors.New("fn failed")
	if err := b.RunAsBypass(ctx, "acme", "fails", func(postgres.Tx) error { return failed }); !errors.Is(err, failed) || rows() != 2 {
		t.Errorf("failing fn: %d audit rows, %v", rows(), err)
	}
	ran := false
	unaudited := open(auditTable{fail: errors.New("no room")})
	if err := unaudited.RunAsBypass(ctx, "acme", "x", func(postgres.Tx) error { ran = true; return nil }); err == nil || ran {
		t.Errorf("without an audit row fn ran: %v, %v", ran, err)
	}
	if err := b.RunAsBypass(ctx, "acme", "", func(postgres.Tx) error { ran = true; return nil }); !errors.Is(err, postgres.ErrReason) || ran {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := postgres.OpenBypass(ctx, l.DSNs[postgres.RoleBypass], l.Signer, nil); !errors.Is(err, postgres.ErrNoAudit) {
		t.Errorf("without an appender: %v", err)
	}
}

// The pool has two connections; a third use waits for one of them.
func TestBypassPoolIsOfTwo(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	ctx := t.Context()
	if _, err := connect(t, l.AdminDSN).Exec(ctx, "create table public.audited (tenant text, reason text); grant insert on public.audited to tallystick_bypass"); err != nil {
		t.Fatal(err)
	}
	b, err := postgres.OpenBypass(ctx, l.DSNs[postgres.RoleBypass], l.Signer, auditTable{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	err = b.RunAsBypass(ctx, "acme", "one", func(postgres.Tx) error {
		return b.RunAsBypass(ctx, "acme", "two", func(postgres.Tx) error {
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			if err := b.RunAsBypass(short, "acme", "three", func(postgres.Tx) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a third at once: %v", err)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEachTenant(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	ctx := t.Context()
	list := func(context.Context) ([]tenant.ID, error) { return []tenant.ID{"acme", "bravo", "delta"}, nil }
	db, err := postgres.Open(ctx, l.DSNs[postgres.RoleApp], l.Signer, postgres.Options{Tenants: list})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	got := map[tenant.ID]string{}
	if err := db.EachTenant(ctx, func(id tenant.ID, tx postgres.Tx) error {
		ids, err := heads(ctx, tx)
		got[id] = strings.Join(ids, ",")
		return err
	}); err != nil || len(got) != 3 || got["acme"] != "acme" || got["bravo"] != "bravo" || got["delta"] != "" {
		t.Errorf("%v, %v", got, err)
	}
	stop := errors.New("stop")
	n := 0
	if err := db.EachTenant(ctx, func(tenant.ID, postgres.Tx) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Errorf("%d calls, %v", n, err)
	}
	if err := l.Open(t, postgres.RoleApp).EachTenant(ctx, func(tenant.ID, postgres.Tx) error { return nil }); !errors.Is(err, postgres.ErrNoLister) {
		t.Errorf("without a lister: %v", err)
	}
}

// TestBound uses every way of the driver's Tx that the program uses, each as
// the first of its transaction, so that the context goes with it.
func TestBound(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	db, ctx := l.Open(t, postgres.RoleLedger), t.Context()
	const update = "update ledger.head set seq = seq + 1"
	for name, use := range map[string]func(tx postgres.Tx) (int64, error){
		"Exec": func(tx postgres.Tx) (int64, error) { tag, err := tx.Exec(ctx, update); return tag.RowsAffected(), err },
		"Exec with the driver's option": func(tx postgres.Tx) (int64, error) {
			tag, err := tx.Exec(ctx, update, pgx.QueryExecModeExec)
			return tag.RowsAffected(), err
		},
		"Query": func(tx postgres.Tx) (int64, error) { ids, err := heads(ctx, tx); return int64(len(ids)), err },
		"Query, closed early": func(tx postgres.Tx) (int64, error) {
			rows, err := tx.Query(ctx, "select tenant_id from ledger.head, generate_series(1, 1000)")
			if err != nil {
				return 0, err
			}
			rows.Next()
			rows.Close()
			ids, err := heads(ctx, tx)
			return int64(len(ids)), err
		},
		"QueryRow": func(tx postgres.Tx) (n int64, err error) {
			err = tx.QueryRow(ctx, "select count(*) from ledger.head").Scan(&n)
			return n, err
		},
		"SendBatch": func(tx postgres.Tx) (n int64, err error) {
			var b pgx.Batch
			b.Queue("select count(*) from ledger.head").QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			return n, tx.SendBatch(ctx, &b).Close()
		},
		"Prepare": func(tx postgres.Tx) (n int64, err error) {
			if _, err := tx.Prepare(ctx, "p", "select count(*) from ledger.head"); err != nil {
				return 0, err
			}
			err = tx.QueryRow(ctx, "p").Scan(&n)
			return n, err
		},
		"CopyFrom": func(tx postgres.Tx) (int64, error) {
			return tx.CopyFrom(ctx, pgx.Identifier{"ledger", "event_key_0"}, []string{"tenant_id", "key", "content", "seq"},
				pgx.CopyFromRows([][]any{{"acme", [16]byte{1}, [16]byte{2}, int64(1)}}))
		},
		"Conn": func(tx postgres.Tx) (n int64, err error) {
			err = tx.Conn().QueryRow(ctx, "select count(*) from ledger.head").Scan(&n)
			return n, err
		},
	} {
		err := db.InTenantsWrite(ctx, []string{"acme"}, func(tx postgres.Tx) error {
			n, err := use(tx)
			if n != 1 {
				t.Errorf("%s: %d rows", name, n)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := db.InTenants(ctx, []string{"acme"}, func(tx postgres.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, "select seq from ledger.head where seq < 0").Scan(&n); !postgres.IsNoRows(err) {
			t.Errorf("no rows: %v", err)
		}
		rows, err := tx.Query(ctx, "select nothing from ledger.head")
		if err == nil {
			rows.Close()
		}
		return err
	})
	if postgres.SQLState(err) != "42703" {
		t.Errorf("a wrong statement: %v", err)
	}
	// A panic leaves no transaction behind.
	func() {
		defer func() { _ = recover() }()
		_ = db.InTenant(ctx, "acme", func(postgres.Tx) error { panic("x") })
	}()
	if err := db.InTenant(ctx, "acme", func(tx postgres.Tx) error { _, err := heads(ctx, tx); return err }); err != nil {
		t.Error(err)
	}
}

// TestOwnerOwnsAll migrates as a login that is no superuser, as an operator
// would: afterwards everything belongs to the owner without a login.
func TestOwnerOwnsAll(t *testing.T) {
	ctx := t.Context()
	dsn := testenv.Postgres(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	database := strings.TrimPrefix(u.Path, "/")
	migrator := "migrator_" + database
	admin := connect(t, dsn)
	if _, err := admin.Exec(ctx, fmt.Sprintf("create role %s login createrole password 'm'; alter database %s owner to %s", migrator, database, migrator)); err != nil {
		t.Fatal(err)
	}
	// Roles are the cluster's: another test may have made them, as superuser.
	for _, role := range []string{"tallystick_owner", "tallystick_migrator"} {
		if _, err := admin.Exec(ctx, fmt.Sprintf("do $$ begin create role %s nologin; exception when duplicate_object then null; end $$; grant %s to %s", role, role, migrator)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, fmt.Sprintf("reassign owned by %s to current_user; drop owned by %s; drop role %s", migrator, migrator, migrator)); err != nil {
			t.Error(err)
		}
	})
	u.User = url.UserPassword(migrator, "m")
	for range 2 {
		if err := migrations.Postgres(ctx, u.String()); err != nil {
			t.Fatal(err)
		}
	}
	var others string
	if err := admin.QueryRow(ctx, `select coalesce(string_agg(c.oid::regclass::text, ', '), '') from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where n.nspname in ('sec', 'ledger', 'processors') and c.relowner <> 'tallystick_owner'::regrole`).Scan(&others); err != nil || others != "" {
		t.Errorf("not the owner's: %s, %v", others, err)
	}
}
