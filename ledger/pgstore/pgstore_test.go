package pgstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/storetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// store is a Store with what the suite reads beside the interface.
type store struct {
	*pgstore.Store
	l *testenv.Ledger
}

func open(t *testing.T) store {
	l := testenv.MigratedPostgres(t)
	return store{pgstore.New(l.Open(t, postgres.RoleLedger)), l}
}

// admin runs a statement as the superuser.
func (s store) admin(t *testing.T, sql string, args ...any) {
	t.Helper()
	s.l.Exec(t, sql, args...)
}

// Counters reads a tenant's counters, as the app role would.
func (s store) Counters(t *testing.T, id string) (out []ledger.CounterRow) {
	t.Helper()
	err := s.l.Open(t, postgres.RoleApp).InTenants(t.Context(), []string{id}, func(tx postgres.Tx) error {
		rows, err := tx.Query(t.Context(), `select tenant_id, producer_id, duplicates, conflicts, rejected from ledger.counter order by 1, 2`)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, pgx.RowToStructByPos[ledger.CounterRow])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) ledger.Store { return open(t) })
}

// The database itself holds a batch's rows against the set of tenants that its
// context names: a writer that mixes tenants up is refused, not obeyed (rule 15).
func TestRule15ForeignRowsAreRefused(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	b := m.Batch(2, "acme", "bravo")
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	m.Done(b)
	// The context is signed for the groups' tenants; a row of delta gets in.
	db := s.l.Open(t, postgres.RoleLedger)
	for _, sql := range []string{
		`copy ledger.entry_0 (tenant_id, seq, kind, key_epoch, canonical, chain, mac) from stdin`,
		`copy ledger.event_key_0 (tenant_id, key, content, seq) from stdin`,
	} {
		line := "delta\t1\t1\t1\t\\\\x00\t\\\\x00\t\\\\x00\n"
		if strings.Contains(sql, "event_key") {
			line = "delta\t00000000-0000-0000-0000-000000000001\t00000000-0000-0000-0000-000000000001\t1\n"
		}
		for _, c := range []struct{ tenant, want string }{{"acme", "42501"}, {"delta", ""}} {
			err := db.InTenantsWrite(t.Context(), []string{c.tenant}, func(tx postgres.Tx) error {
				_, err := tx.Conn().PgConn().CopyFrom(t.Context(), strings.NewReader(line), sql)
				return err
			})
			if postgres.SQLState(err) != c.want {
				t.Errorf("a row of delta in the context of %s: %v, want SQLSTATE %q", c.tenant, err, c.want)
			}
		}
	}
}

// The writer's role must not be able to ignore row-level security (rule 15).
func TestRule15WriterRoleIsBound(t *testing.T) {
	s := open(t)
	if _, err := postgres.Open(t.Context(), s.l.AdminDSN, s.l.Signer, postgres.Options{}); !errors.Is(err, postgres.ErrOverprivileged) {
		t.Errorf("a superuser's DSN: %v, want ErrOverprivileged", err)
	}
	conn, err := pgx.Connect(t.Context(), s.l.DSNs[postgres.RoleLedger])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{
		"update ledger.entry set kind = 1", "delete from ledger.entry", "truncate ledger.entry_0", "delete from ledger.event_key",
		"insert into ledger.quarantine (partition, kafka_offset, reason, operator) values (0, 0, 'r', 'o')",
		"delete from ledger.quarantine", "update ledger.batch set next_offset = 0", "delete from ledger.batch", "delete from ledger.control",
	} {
		if _, err := conn.Exec(t.Context(), sql); postgres.SQLState(err) != "42501" {
			t.Errorf("%s: %v, want SQLSTATE 42501", sql, err)
		}
	}
}

func TestQuarantine(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	b := m.Batch(2, "acme")
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	m.Done(b)
	decide := func(d pgstore.Decision) error { return pgstore.Quarantine(t.Context(), s.l.AdminDSN, d) }
	good := pgstore.Decision{Partition: 0, Offset: m.State.NextOffset, Reason: "a trigger refuses it", Operator: "alice"}
	for _, c := range []struct {
		change func(*pgstore.Decision)
		want   error
	}{
		{func(d *pgstore.Decision) { d.Offset-- }, pgstore.ErrElsewhere},
		{func(d *pgstore.Decision) { d.Offset++ }, pgstore.ErrElsewhere},
		{func(d *pgstore.Decision) { d.Partition = 3 }, pgstore.ErrElsewhere},
		{func(d *pgstore.Decision) { d.Reason = "" }, pgstore.ErrDecision},
		{func(d *pgstore.Decision) { d.Operator = strings.Repeat("x", 201) }, pgstore.ErrDecision},
		{func(*pgstore.Decision) {}, nil},
		{func(*pgstore.Decision) {}, pgstore.ErrDecided},
	} {
		d := good
		c.change(&d)
		if err := decide(d); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", d, err, c.want)
		}
	}
	// A writer that does not know of the decision cannot pass the record.
	if err := s.Commit(t.Context(), m.Batch(1, "acme")); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("a writer from before the decision: %v, want ErrFenced", err)
	}
	if st := storetest.NewMaker(t, s, 0).State; len(st.Quarantined) != 1 || st.Quarantined[0] != good.Offset {
		t.Errorf("assigned with quarantined offsets %v, want [%d]", st.Quarantined, good.Offset)
	}
	// The decision is kept for ever, even from the owner.
	conn, err := pgx.Connect(t.Context(), s.l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{"delete from ledger.quarantine", "update ledger.quarantine set reason = 'x'", "truncate ledger.quarantine"} {
		if _, err := conn.Exec(t.Context(), sql); postgres.SQLState(err) != "42501" {
			t.Errorf("%s as the owner: %v, want SQLSTATE 42501", sql, err)
		}
	}
	var operator, reason string
	var timed bool
	if err := conn.QueryRow(t.Context(), `select operator, reason, quarantined_at > now() - interval '1 hour' and db_user <> '' from ledger.quarantine`).
		Scan(&operator, &reason, &timed); err != nil || operator != "alice" || reason != good.Reason || !timed {
		t.Errorf("audit row: %q %q %v, %v", operator, reason, timed, err)
	}
}

// An error of data halts; one of the connection or of the server's state does not.
func TestErrorsOfDataHalt(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	s.admin(t, `create function public.refuse() returns trigger language plpgsql as $$ begin
		if new.canonical = 'entry acme 2'::bytea then raise exception 'no' using errcode = '22000'; end if; return new; end $$`)
	s.admin(t, `create trigger refuse before insert on ledger.entry_0 for each row execute function public.refuse()`)
	if err := s.Commit(t.Context(), m.Batch(2, "acme")); !errors.Is(err, ledger.ErrRefused) || !ledger.Halts(err) {
		t.Errorf("a row that a trigger refuses: %v, want ErrRefused, which halts", err)
	}
	b := m.Batch(1, "acme")
	if err := s.Commit(t.Context(), b); err != nil {
		t.Errorf("the batch without that row: %v", err)
	}
	m.Done(b)
	s.admin(t, `create or replace function public.refuse() returns trigger language plpgsql as $$ begin
		raise exception 'disk full' using errcode = '53100'; end $$`)
	if err := s.Commit(t.Context(), m.Batch(1, "acme")); err == nil || ledger.Halts(err) || errors.Is(err, ledger.ErrFenced) {
		t.Errorf("a full disk: %v, want an error that is retried", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Commit(ctx, m.Batch(1, "acme")); err == nil || ledger.Halts(err) {
		t.Errorf("a cancelled commit: %v", err)
	}
}

// A writer that was stopped in the middle of its commit holds the partition's
// row; the next owner waits for a while, ends it and goes on.
func TestAssignTakesOverFromAStoppedOwner(t *testing.T) {
	s := open(t)
	m := storetest.NewMaker(t, s, 0)
	stopped, err := pgx.Connect(t.Context(), s.l.DSNs[postgres.RoleLedger])
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close(context.Background())
	tx, err := stopped.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "update ledger.partition set next_offset = 999 where partition = 0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	st, err := s.Assign(ctx, storetest.Topic, 0)
	if err != nil || st.NextOffset != 0 || st.Epoch != m.State.Epoch+1 {
		t.Fatalf("assigned %+v, %v; want offset 0 and the next epoch", st, err)
	}
	if err := tx.Commit(t.Context()); err == nil {
		t.Error("the stopped owner committed after it was taken over from")
	}
}
