package postgres_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

// signed signs tenants for one transaction.
type signed func(s *postgres.Signer, tenants ...string) string

// begin begins a transaction, and returns what signs for it.
func begin(t *testing.T, conn *pgx.Conn) (pgx.Tx, signed) {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	var start []byte
	if err := tx.QueryRow(t.Context(), postgres.AskTransaction).Scan(&pid, &start); err != nil {
		t.Fatal(err)
	}
	return tx, func(s *postgres.Signer, tenants ...string) string { return postgres.Token(s, pid, start, tenants) }
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	return conn
}

// A token is good in the one transaction that it was signed for. The same
// token, and every other text, is refused anywhere else: by sec.enter, and as a
// setting that SQL text sets by itself. This is what injected SQL could try.
func TestContextIsOfOneTransaction(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	ctx := t.Context()
	conn, other := connect(t, l.DSNs[postgres.RoleApp]), connect(t, l.DSNs[postgres.RoleApp])
	forger := postgres.NewSigner(1, [32]byte{9})
	unknown := postgres.NewSigner(2, [32]byte{1, 2, 3})
	late := postgres.SignerAt(l.Signer, func() time.Time { return time.Now().Add(-time.Hour) })
	// The other backend holds a context of its own all the while.
	otherTx, otherSigned := begin(t, other)
	defer otherTx.Rollback(ctx)
	if _, err := otherTx.Exec(ctx, "select sec.enter($1)", otherSigned(l.Signer, "bravo")); err != nil {
		t.Fatal(err)
	}
	earlier, earlierSigned := begin(t, conn)
	if _, err := earlier.Exec(ctx, "select sec.enter($1)", earlierSigned(l.Signer, "acme")); err != nil {
		t.Fatal(err)
	}
	if err := earlier.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]func(sign signed, good string) string{
		"good":            func(_ signed, good string) string { return good },
		"none":            func(_ signed, _ string) string { return "" },
		"other tenant":    func(_ signed, good string) string { return strings.Replace(good, "acme", "bravo", 1) },
		"one more tenant": func(_ signed, good string) string { return strings.Replace(good, "acme", "acme,bravo", 1) },
		"later expiry": func(_ signed, good string) string {
			return "v2|1|7fffffffffffffff" + good[len("v2|1|7fffffffffffffff"):]
		},
		"cut short":              func(_ signed, good string) string { return good[:len(good)-1] },
		"no MAC":                 func(_ signed, good string) string { return good[:len(good)-64] },
		"no bar":                 func(_ signed, good string) string { return good[:len(good)-65] },
		"capital MAC":            func(_ signed, good string) string { return good[:len(good)-64] + strings.ToUpper(good[len(good)-64:]) },
		"older version":          func(_ signed, good string) string { return "v1" + good[2:] },
		"part too many":          func(_ signed, good string) string { return good + "|" },
		"another key":            func(sign signed, _ string) string { return sign(forger, "acme") },
		"unknown key number":     func(sign signed, _ string) string { return sign(unknown, "acme") },
		"no tenant":              func(sign signed, _ string) string { return sign(l.Signer) },
		"several tenants":        func(sign signed, _ string) string { return sign(l.Signer, "acme", "bravo") },
		"expired":                func(sign signed, _ string) string { return sign(late, "acme") },
		"of an earlier one here": func(_ signed, _ string) string { return earlierSigned(l.Signer, "acme") },
		"of the other backend's": func(_ signed, _ string) string { return otherSigned(l.Signer, "bravo") },
		"of no transaction":      func(_ signed, _ string) string { return postgres.Token(l.Signer, 0, nil, []string{"acme"}) },
	} {
		for _, how := range []string{"select sec.enter($1)", "select set_config('tallystick.context', $1, true)", "select set_config('app.tenant_id', $1, true)"} {
			tx, sign := begin(t, conn)
			value := token(sign, sign(l.Signer, "acme"))
			_, err := tx.Exec(ctx, how, value)
			var rows int
			if err == nil {
				err = tx.QueryRow(ctx, "select count(*) from ledger.head").Scan(&rows)
			}
			good := name == "good" && !strings.Contains(how, "app.tenant_id")
			if good && (err != nil || rows != 1) {
				t.Errorf("%s by %s: %d rows, %v", name, how, rows, err)
			}
			if !good {
				wantDenied(t, name+" by "+how, err)
			}
			if err := tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A context ends with its transaction, whatever the connection does next.
func TestContextEndsWithItsTransaction(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	seed(t, l)
	ctx := t.Context()
	conn := connect(t, l.DSNs[postgres.RoleApp])
	for _, end := range []string{"commit", "rollback", "commit and chain", "rollback and chain"} {
		tx, sign := begin(t, conn)
		if _, err := tx.Exec(ctx, "select sec.enter($1)", sign(l.Signer, "acme")); err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{end, "select count(*) from ledger.head"} {
			if _, err := conn.Exec(ctx, sql); sql != end {
				wantDenied(t, "after "+end, err)
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := conn.Exec(ctx, "rollback"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExpiredTokenIsTransient(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	tx, sign := begin(t, connect(t, l.DSNs[postgres.RoleApp]))
	defer tx.Rollback(t.Context())
	late := postgres.SignerAt(l.Signer, func() time.Time { return time.Now().Add(-time.Hour) })
	if _, err := tx.Exec(t.Context(), "select sec.enter($1)", sign(late, "acme")); err != nil {
		t.Fatal(err)
	}
	_, err := tx.Exec(t.Context(), "select from ledger.head")
	wantDenied(t, "expired token", err)
	if postgres.Permanent(err) {
		t.Error("an expired token must be retried with a new one, not halt a partition")
	}
}
