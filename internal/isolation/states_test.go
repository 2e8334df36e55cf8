package isolation

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// state is a context that a transaction may be in when it tries to reach the
// rows of a tenant that is not its own.
type state struct {
	name string
	// lawful says that it is a context of ours, of other tenants: then a
	// statement may succeed and show nothing. In any other state it must be
	// refused with 42501, and never show zero rows.
	lawful bool
	enter  func(ctx context.Context, s *session, wants string) error
}

// session is one connection of a role, in a transaction.
type session struct {
	conn    *pgx.Conn
	now     bound // its transaction
	earlier bound // an earlier one of the same backend
	other   bound // one that is open in another backend
}

// ask is the statement that names a transaction.
const ask = "select pg_backend_pid(), timestamptz_send(transaction_timestamp())"

// begin begins a transaction.
func (s *session) begin(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, "begin"); err != nil {
		return err
	}
	return s.conn.QueryRow(ctx, ask).Scan(&s.now.pid, &s.now.start)
}

func (s *session) rollback(ctx context.Context) error {
	_, err := s.conn.Exec(ctx, "rollback")
	return err
}

// sign enters a token by the front door.
func (s *session) sign(ctx context.Context, token string) error {
	_, err := s.conn.Exec(ctx, "select sec.enter($1)", token)
	return err
}

// set sets what sec.enter would, past it.
func (s *session) set(ctx context.Context, token string) error {
	_, err := s.conn.Exec(ctx, "select set_config('tallystick.context', $1, true)", token)
	return err
}

// all runs statements one after the other.
func (s *session) all(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := s.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// states are all contexts that are tried. The rightful one is no state: it is
// every attempt's control.
var states = []state{
	{name: "none", enter: func(context.Context, *session, string) error { return nil }},
	{name: "empty", enter: func(ctx context.Context, s *session, _ string) error { return s.set(ctx, "") }},
	{name: "the well-known setting alone", enter: func(ctx context.Context, s *session, wants string) error {
		_, err := s.conn.Exec(ctx, "select set_config('app.tenant_id', $1, true), set_config('app.current_tenant', $1, true)", wants)
		return err
	}},
	{name: "the bare name", enter: func(ctx context.Context, s *session, wants string) error { return s.set(ctx, wants) }},
	{name: "forged with another key", enter: func(ctx context.Context, s *session, wants string) error {
		token := genuine(s.now, wants)
		token.key = [32]byte{7}
		return s.sign(ctx, token.String())
	}},
	{name: "forged with no key", enter: func(ctx context.Context, s *session, wants string) error {
		token := genuine(s.now, wants)
		token.key = [32]byte{}
		return s.set(ctx, token.String())
	}},
	{name: "an unknown key", enter: func(ctx context.Context, s *session, wants string) error {
		token := genuine(s.now, wants)
		token.kid = 99
		return s.sign(ctx, token.String())
	}},
	{name: "tampered: the tenant", enter: func(ctx context.Context, s *session, wants string) error {
		return s.sign(ctx, genuine(s.now, intruder).tampered(wants))
	}},
	{name: "tampered: one more", enter: func(ctx context.Context, s *session, wants string) error {
		return s.set(ctx, genuine(s.now, intruder).tampered(intruder+","+wants))
	}},
	{name: "expired", enter: func(ctx context.Context, s *session, wants string) error {
		token := genuine(s.now, wants)
		token.expires = time.Now().Add(-time.Minute)
		return s.sign(ctx, token.String())
	}},
	{name: "replayed from an earlier transaction", enter: func(ctx context.Context, s *session, wants string) error {
		return s.sign(ctx, genuine(s.earlier, wants).String())
	}},
	{name: "replayed from an earlier transaction, as a setting", enter: func(ctx context.Context, s *session, wants string) error {
		return s.set(ctx, genuine(s.earlier, wants).String())
	}},
	{name: "taken from another backend", enter: func(ctx context.Context, s *session, wants string) error {
		return s.sign(ctx, genuine(s.other, wants).String())
	}},
	{name: "taken from another backend, as a setting", enter: func(ctx context.Context, s *session, wants string) error {
		return s.set(ctx, genuine(s.other, wants).String())
	}},
	{name: "entered in a savepoint that was rolled back", enter: func(ctx context.Context, s *session, wants string) error {
		if err := s.all(ctx, "savepoint a"); err != nil {
			return err
		}
		if err := s.sign(ctx, genuine(s.now, wants).String()); err != nil {
			return err
		}
		return s.all(ctx, "rollback to savepoint a")
	}},
	{name: "entered before commit and chain", enter: func(ctx context.Context, s *session, wants string) error {
		if err := s.sign(ctx, genuine(s.now, wants).String()); err != nil {
			return err
		}
		return s.all(ctx, "commit and chain")
	}},
	{name: "of the older version", enter: func(ctx context.Context, s *session, wants string) error {
		token := genuine(s.now, wants)
		token.version = "v1|1"
		return s.set(ctx, token.String())
	}},
	{name: "no tenant", enter: func(ctx context.Context, s *session, _ string) error { return s.sign(ctx, genuine(s.now, "").String()) }},
	{name: "another tenant", lawful: true, enter: func(ctx context.Context, s *session, _ string) error {
		return s.sign(ctx, genuine(s.now, intruder).String())
	}},
	{name: "a set of other tenants", lawful: true, enter: func(ctx context.Context, s *session, _ string) error {
		return s.sign(ctx, genuine(s.now, intruder+","+bystander).String())
	}},
	{name: "another tenant, with the well-known setting", lawful: true, enter: func(ctx context.Context, s *session, wants string) error {
		if err := s.sign(ctx, genuine(s.now, intruder).String()); err != nil {
			return err
		}
		_, err := s.conn.Exec(ctx, "select set_config('app.tenant_id', $1, true)", wants)
		return err
	}},
	{name: "another tenant, row_security off", lawful: true, enter: func(ctx context.Context, s *session, _ string) error {
		if err := s.sign(ctx, genuine(s.now, intruder).String()); err != nil {
			return err
		}
		return s.all(ctx, "set local row_security = off")
	}},
	{name: "another tenant, a search_path of its own", lawful: true, enter: func(ctx context.Context, s *session, wants string) error {
		if err := s.sign(ctx, genuine(s.now, intruder).String()); err != nil {
			return err
		}
		return s.all(ctx, "create function pg_temp.tenant() returns text language sql as $$ select '"+wants+"'::text $$",
			"create function pg_temp.unnest(text[]) returns setof text language sql as $$ select '"+wants+"'::text $$", "set local search_path = pg_temp, sec, pg_catalog")
	}},
	{name: "another tenant, then a token that was taken", enter: func(ctx context.Context, s *session, wants string) error {
		if err := s.sign(ctx, genuine(s.now, intruder).String()); err != nil {
			return err
		}
		return s.sign(ctx, genuine(s.other, wants).String())
	}},
	{name: "a name that is like the tenant's", lawful: true, enter: func(ctx context.Context, s *session, wants string) error {
		return s.sign(ctx, genuine(s.now, strings.ToUpper(wants)+" ").String())
	}},
}

// openSession connects as a login of the role, and remembers an earlier
// transaction of the same backend and one that stays open in another.
func openSession(t testing.TB, dsn string) *session {
	t.Helper()
	ctx := t.Context()
	s, holder := &session{conn: connect(t, dsn)}, &session{conn: connect(t, dsn)}
	for _, step := range []func() error{
		func() error { return s.begin(ctx) },
		func() error { return s.sign(ctx, genuine(s.now, victim).String()) },
		func() error { return s.rollback(ctx) },
		func() error { return holder.begin(ctx) },
		func() error { return holder.sign(ctx, genuine(holder.now, victim).String()) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	s.earlier, s.other = s.now, holder.now
	return s
}
