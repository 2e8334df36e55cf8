package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fixture is a migrated database with a keyring.
type fixture struct {
	pg   *testenv.Ledger
	ring *keyring.Ring
	db   *postgres.DB
	log  *audit.Log
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{pg: testenv.MigratedPostgres(t)}
	ring := testenv.Ring(t, "acme", "umbrella", audit.Installation)
	f.ring, f.db = ring, f.pg.Open(t, postgres.RoleApp)
	f.log = audit.NewLog(f.db, ring)
	return f
}

// admin runs a statement as superuser, to damage what no role may.
func (f *fixture) admin(t *testing.T, sql string, args ...any) {
	t.Helper()
	f.pg.Exec(t, sql, args...)
}

var example = audit.Event{
	Tenant: "acme", Actor: "admin-token", Action: "token.create", Resource: "token/tok_1", Outcome: audit.OK,
	Addr: "192.0.2.7", Client: "curl/8.5", RequestID: "r-1",
}

func TestRecordIsReadBackAndVerifies(t *testing.T) {
	f := newFixture(t)
	want := example
	want.At = time.Unix(0, 1_760_000_000_123_456_789).UTC()
	for range 3 {
		if err := f.log.Record(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := f.log.Rows(t.Context(), "acme", 0, 10, true)
	if err != nil || len(rows) != 3 || rows[0].Seq != 3 {
		t.Fatalf("Rows = %+v, %v", rows, err)
	}
	got, seq, err := audit.Decode(rows[2].Canonical)
	want.Count = 1
	if err != nil || seq != 1 || got != want {
		t.Errorf("Decode = %+v, %d, %v; want %+v", got, seq, err, want)
	}
	if n, err := f.log.Verify(t.Context(), "acme"); n != 3 || err != nil {
		t.Errorf("Verify = %d, %v", n, err)
	}
	if n, err := f.log.Verify(t.Context(), "umbrella"); n != 0 || err != nil {
		t.Errorf("Verify of an empty log = %d, %v", n, err)
	}
}

// A chain has no gap and no fork, however many append to it at once.
func TestConcurrentAppendsMakeOneChain(t *testing.T) {
	f := newFixture(t)
	const writers, each = 8, 20
	g, ctx := errgroup.WithContext(t.Context())
	for w := range writers {
		g.Go(func() error {
			for i := range each {
				ev := example
				ev.Resource = fmt.Sprintf("token/%d-%d", w, i)
				if err := f.log.Record(ctx, ev); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n, err := f.log.Verify(t.Context(), "acme"); n != writers*each || err != nil {
		t.Fatalf("Verify = %d, %v", n, err)
	}
}

// The row is part of the transaction: what is rolled back leaves none, and the
// next event takes its number.
func TestAppendIsPartOfTheTransaction(t *testing.T) {
	f := newFixture(t)
	giveUp := errors.New("changed my mind")
	err := f.db.InTenantsWrite(t.Context(), []string{"acme"}, func(tx postgres.Tx) error {
		if err := audit.Append(t.Context(), tx, f.ring, example); err != nil {
			return err
		}
		return giveUp
	})
	if !errors.Is(err, giveUp) {
		t.Fatal(err)
	}
	if err := f.log.Record(t.Context(), example); err != nil {
		t.Fatal(err)
	}
	if n, err := f.log.Verify(t.Context(), "acme"); n != 1 || err != nil {
		t.Errorf("Verify = %d, %v", n, err)
	}
}

// Whatever keeps the row from being written fails the whole transaction.
func TestUnwritableLogFailsTheCaller(t *testing.T) {
	for name, sql := range map[string]string{
		"no right to insert": "revoke insert on audit.event from tallystick_app",
		"no right to number": "revoke update on audit.head from tallystick_app",
		"the table is gone":  "alter table audit.event rename to event_gone",
		"a constraint":       "alter table audit.event add constraint never check (seq < 0) not valid",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.admin(t, sql)
			err := f.db.InTenantsWrite(t.Context(), []string{"acme"}, func(tx postgres.Tx) error {
				return audit.Append(t.Context(), tx, f.ring, example)
			})
			if !errors.Is(err, audit.ErrUnwritten) {
				t.Errorf("Append = %v", err)
			}
			if err := f.log.Record(t.Context(), example); !errors.Is(err, audit.ErrUnwritten) {
				t.Errorf("Record = %v", err)
			}
		})
	}
	f := newFixture(t)
	ev := example
	ev.Tenant = "nobody"
	if err := f.log.Record(t.Context(), ev); !errors.Is(err, audit.ErrUnwritten) || !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("a tenant without keys: %v", err)
	}
}

// A transaction writes into the chain of the tenant that it is of, and no other.
func TestForeignChainIsRefused(t *testing.T) {
	f := newFixture(t)
	for _, foreign := range []tenant.ID{"umbrella", audit.Installation} {
		ev := example
		ev.Tenant = foreign
		err := f.db.InTenantsWrite(t.Context(), []string{"acme"}, func(tx postgres.Tx) error {
			return audit.Append(t.Context(), tx, f.ring, ev)
		})
		if !errors.Is(err, audit.ErrUnwritten) || postgres.SQLState(err) != "42501" {
			t.Errorf("into the chain of %s: %v", foreign, err)
		}
	}
	err := f.db.Tx(t.Context(), func(tx postgres.Tx) error { return audit.Append(t.Context(), tx, f.ring, example) })
	if !errors.Is(err, audit.ErrUnwritten) || postgres.SQLState(err) != "42501" {
		t.Errorf("without a tenant: %v", err)
	}
	if err := f.log.Record(t.Context(), example); err != nil {
		t.Errorf("the rightful tenant: %v", err) // the positive control
	}
}

// No role may change or delete a row; the triggers hold the owner too.
func TestRowsAreForEver(t *testing.T) {
	f := newFixture(t)
	if err := f.log.Record(t.Context(), example); err != nil {
		t.Fatal(err)
	}
	statements := []string{
		"update audit.event set canonical = canonical", "delete from audit.event", "truncate audit.event",
	}
	for _, role := range []postgres.Role{postgres.RoleApp, postgres.RoleLedger, postgres.RoleProcessors} {
		db := f.pg.Open(t, role)
		for _, sql := range statements {
			err := db.InTenantsWrite(t.Context(), []string{"acme"}, func(tx postgres.Tx) error {
				_, err := tx.Exec(t.Context(), sql)
				return err
			})
			if postgres.SQLState(err) != "42501" {
				t.Errorf("%s as %s: %v", sql, role, err)
			}
		}
	}
	conn, err := pgx.Connect(t.Context(), f.pg.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // a test's
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); postgres.SQLState(err) != "42501" {
			t.Errorf("%s as the owner: %v", sql, err)
		}
	}
}

// What a superuser does with triggers disabled is found.
func TestTamperingIsFound(t *testing.T) {
	for name, tc := range map[string]struct {
		sql    string
		seq    int64
		reason string
	}{
		"a changed byte":  {"update audit.event set canonical = set_byte(canonical, length(canonical) - 1, 90) where seq = 2", 2, "hash"},
		"a deleted row":   {"delete from audit.event where seq = 2", 2, "gap"},
		"a deleted tail":  {"delete from audit.event where seq = 4", 4, "truncated"},
		"a deleted head":  {"delete from audit.event where seq = 1", 1, "gap"},
		"a foreign MAC":   {"update audit.event set mac = (select mac from audit.event where seq = 1) where seq = 3", 3, "MAC"},
		"two swapped":     {"update audit.event set seq = case seq when 2 then 102 else 103 end where seq in (2, 3)", 2, "gap"},
		"another tenant":  {"update audit.event set tenant_id = 'umbrella' where seq = 4", 4, "truncated"},
		"the head's hash": {"update audit.head set chain = sha256('x')", 4, "hash"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			for range 4 {
				if err := f.log.Record(t.Context(), example); err != nil {
					t.Fatal(err)
				}
			}
			f.admin(t, "alter table audit.event disable trigger all")
			f.admin(t, tc.sql)
			_, err := f.log.Verify(t.Context(), "acme")
			var b *audit.BrokenError
			if !errors.As(err, &b) || b.Seq != tc.seq || b.Reason != tc.reason || !audit.IsBroken(err) {
				t.Errorf("Verify = %v, want %s at %d", err, tc.reason, tc.seq)
			}
		})
	}
}

// A token that somebody puts where it does not belong is not kept.
func TestTokensAreNotKept(t *testing.T) {
	f := newFixture(t)
	const secret = "s3cr3tS3cr3tS3cr3tS3cr3tS3cr3tS3cr3tS3cr3tX"
	ev := example
	for _, p := range []*string{&ev.Actor, &ev.Action, &ev.Resource, &ev.Reason, &ev.Addr, &ev.Client, &ev.RequestID} {
		*p = "x tsk_acme." + secret + " and tsk_" + secret + "\n"
	}
	if err := f.log.Record(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	rows, err := f.log.Rows(t.Context(), "acme", 0, 1, true)
	if err != nil || bytes.Contains(rows[0].Canonical, []byte(secret)) {
		t.Errorf("a row holds a token, or %v", err)
	}
	got, _, err := audit.Decode(rows[0].Canonical)
	if err != nil || !strings.HasPrefix(got.Client, "x tsk_*** and tsk_***") {
		t.Errorf("Decode = %+v, %v", got, err)
	}
}

// Stepping over tenants' isolation leaves a row, in the tenant's chain or in
// that of the installation, and does not happen without.
func TestBypassIsAudited(t *testing.T) {
	f := newFixture(t)
	appender := audit.BypassAppender{Keys: f.ring, Actor: "a test"}
	b, err := postgres.OpenBypass(t.Context(), f.pg.DSNs[postgres.RoleBypass], f.pg.Signer, appender)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	ran := 0
	count := func(postgres.Tx) error { ran++; return nil }
	for _, id := range []tenant.ID{"acme", ""} {
		if err := b.RunAsBypass(t.Context(), id, "counting for a test", count); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []tenant.ID{"acme", audit.Installation} {
		rows, err := f.log.Rows(t.Context(), id, 1, 10, false)
		if err != nil || len(rows) != 1 {
			t.Fatalf("rows of %s: %+v, %v", id, rows, err)
		}
		ev, _, err := audit.Decode(rows[0].Canonical)
		if err != nil || ev.Action != audit.TenantBypass || ev.Actor != "a test" || ev.Reason != "counting for a test" {
			t.Errorf("%+v, %v", ev, err)
		}
		if _, err := f.log.Verify(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	f.admin(t, "revoke insert on audit.event from tallystick_bypass")
	err = b.RunAsBypass(t.Context(), "acme", "counting for a test", count)
	if !errors.Is(err, audit.ErrUnwritten) || ran != 2 {
		t.Errorf("without a row: %v, ran %d times", err, ran)
	}
}
