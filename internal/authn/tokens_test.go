package authn_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// store is a Tokens over a fresh database.
type store struct {
	*authn.Tokens
	log *audit.Log
	pg  *testenv.Ledger
}

func newStore(t *testing.T) *store {
	t.Helper()
	ring := testenv.Ring(t, "acme", "umbrella", audit.Installation)
	pg := testenv.MigratedPostgres(t)
	db := pg.Open(t, postgres.RoleApp)
	return &store{authn.NewTokens(db, ring), audit.NewLog(db, ring), pg}
}

func (s *store) admin(t *testing.T, sql string, args ...any) {
	t.Helper()
	s.pg.Exec(t, sql, args...)
}

// dump is every byte of the tables that tokens touch.
func (s *store) dump(t *testing.T) []byte {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.pg.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // a test's
	var out []byte
	for _, sql := range []string{
		"select coalesce(string_agg(t::text, ' '), '') from access.token t",
		"select coalesce(string_agg(convert_from(canonical, 'UTF8'), ' '), '') from (select substr(canonical, 3) as canonical from audit.event) e",
	} {
		var text string
		if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil && !strings.Contains(err.Error(), "invalid byte sequence") {
			t.Fatal(err)
		}
		out = append(out, text...)
	}
	return out
}

var (
	root  = authn.Principal{Subject: "admin-token", AllTenants: true, Scopes: authn.AllScopes}
	owner = authn.Principal{Subject: "tok_owner", Tenants: []tenant.ID{"acme"}, Scopes: authn.Admin | authn.Read}
)

func newToken() authn.NewAPIToken {
	return authn.NewAPIToken{Tenant: "acme", Name: "proxy", Scopes: authn.Read | authn.Ingest}
}

func TestTokenLivesAndIsRevoked(t *testing.T) {
	s := newStore(t)
	ctx := authn.WithPeer(t.Context(), authn.Peer{Addr: "192.0.2.1", Client: "curl/8", RequestID: "r-7"})
	tok, secret, err := s.Create(ctx, root, newToken())
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Authenticate(ctx, secret)
	if err != nil || p.Subject != tok.ID || !p.May("acme") || p.May("umbrella") || p.AllTenants ||
		!p.Can(authn.Ingest|authn.Read) || p.Can(authn.Admin) || p.Can(authn.Decrypt) {
		t.Fatalf("Authenticate = %+v, %v", p, err)
	}
	if bytes.Contains(s.dump(t), []byte(secret[len(secret)-43:])) {
		t.Error("the token stands in a table")
	}
	list, err := s.List(ctx, "acme", "", 10)
	if err != nil || len(list) != 1 || list[0] != tok {
		t.Errorf("List = %+v, %v; want %+v", list, err, tok)
	}
	if err := s.Revoke(ctx, root, "acme", tok.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authenticate(ctx, secret); !errors.Is(err, authn.ErrUnauthenticated) {
		t.Errorf("a revoked token: %v", err)
	}
	for _, id := range []string{tok.ID, "tok_other"} {
		if err := s.Revoke(ctx, root, "acme", id); !errors.Is(err, authn.ErrNoToken) {
			t.Errorf("revoke %s: %v", id, err)
		}
	}
	rows, err := s.log.Rows(ctx, "acme", 1, 10, false)
	if err != nil || len(rows) != 2 {
		t.Fatalf("audit rows %+v, %v", rows, err)
	}
	for i, action := range []string{"token.create", "token.revoke"} {
		ev, _, err := audit.Decode(rows[i].Canonical)
		if err != nil || ev.Action != action || ev.Actor != "admin-token" || ev.Resource != "token/"+tok.ID || ev.Addr != "192.0.2.1" || ev.RequestID != "r-7" {
			t.Errorf("audit row %+v, %v", ev, err)
		}
	}
}

// Whatever is wrong with a token, the answer is the same.
func TestWrongTokensAreAllUnknown(t *testing.T) {
	s := newStore(t)
	_, secret, err := s.Create(t.Context(), root, newToken())
	if err != nil {
		t.Fatal(err)
	}
	_, old, err := s.Create(t.Context(), root, newToken())
	if err != nil {
		t.Fatal(err)
	}
	s.admin(t, "update access.token set expires_at = clock_timestamp(), created_at = clock_timestamp() - interval '1 hour' where token_id = (select max(token_id) from access.token where digest = sha256($1))", []byte(old))
	for name, token := range map[string]string{
		"empty": "", "no token": "hunter2", "cut": secret[:len(secret)-1], "longer": secret + "A", "of another tenant": strings.Replace(secret, "acme", "umbrella", 1),
		"of no tenant": strings.Replace(secret, "acme", "nobody", 1), "of a system chain": strings.Replace(secret, "acme", "system/0", 1),
		"expired": old, "SQL": "tsk_acme.' or true --", "huge": "tsk_acme." + strings.Repeat("x", 1<<20), "two tenants": strings.Replace(secret, "acme", "acme,umbrella", 1),
	} {
		p, err := s.Authenticate(t.Context(), token)
		if !errors.Is(err, authn.ErrUnauthenticated) || err.Error() != authn.ErrUnauthenticated.Error() || p.Subject != "" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := s.Authenticate(t.Context(), secret); err != nil {
		t.Errorf("the right one: %v", err) // the positive control
	}
}

// Nobody makes a token that may do more than they may themselves.
func TestTokensDoNotEscalate(t *testing.T) {
	s := newStore(t)
	for name, tc := range map[string]struct {
		change func(*authn.NewAPIToken)
		want   error
	}{
		"a scope of its own":    {func(n *authn.NewAPIToken) { n.Scopes = authn.Read }, nil},
		"a scope it has not":    {func(n *authn.NewAPIToken) { n.Scopes = authn.Read | authn.Decrypt }, authn.ErrScope},
		"no scope":              {func(n *authn.NewAPIToken) { n.Scopes = 0 }, authn.ErrScope},
		"a scope there is not":  {func(n *authn.NewAPIToken) { n.Scopes = 1 << 15 }, authn.ErrScope},
		"another tenant":        {func(n *authn.NewAPIToken) { n.Tenant = "umbrella" }, authn.ErrToken},
		"the installation":      {func(n *authn.NewAPIToken) { n.Tenant = audit.Installation }, authn.ErrToken},
		"no name":               {func(n *authn.NewAPIToken) { n.Name = "" }, authn.ErrToken},
		"a name of other bytes": {func(n *authn.NewAPIToken) { n.Name = "\xff" }, authn.ErrToken},
		"over already":          {func(n *authn.NewAPIToken) { n.ExpiresAt = time.Now().Add(-time.Second) }, authn.ErrToken},
		"for ever":              {func(n *authn.NewAPIToken) { n.ExpiresAt = time.Now().Add(10 * authn.MaxTokenLife) }, authn.ErrToken},
	} {
		n := newToken()
		n.Scopes = authn.Read
		tc.change(&n)
		if _, secret, err := s.Create(t.Context(), owner, n); !errors.Is(err, tc.want) || (err == nil) != (secret != "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token that could not be audited is not made, and one that could not is not
// revoked.
func TestUnauditedChangeDoesNotHappen(t *testing.T) {
	s := newStore(t)
	tok, secret, err := s.Create(t.Context(), root, newToken())
	if err != nil {
		t.Fatal(err)
	}
	s.admin(t, "revoke insert on audit.event from tallystick_app")
	if _, secret, err := s.Create(t.Context(), root, newToken()); !errors.Is(err, audit.ErrUnwritten) || secret != "" {
		t.Errorf("Create = %v", err)
	}
	if err := s.Revoke(t.Context(), root, "acme", tok.ID); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("Revoke = %v", err)
	}
	if list, err := s.List(t.Context(), "acme", "", 10); err != nil || len(list) != 1 || !list[0].RevokedAt.IsZero() {
		t.Errorf("List = %+v, %v", list, err)
	}
	if _, err := s.Authenticate(t.Context(), secret); err != nil {
		t.Errorf("the token that could not be revoked: %v", err)
	}
}

// Injected SQL of the application's role cannot bring a token back or change
// what it may do.
func TestRevokedIsForEver(t *testing.T) {
	s := newStore(t)
	tok, _, err := s.Create(t.Context(), root, newToken())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(t.Context(), root, "acme", tok.ID); err != nil {
		t.Fatal(err)
	}
	db := s.pg.Open(t, postgres.RoleApp)
	for _, sql := range []string{
		"update access.token set revoked_at = null, revoked_by = null", "update access.token set scopes = '{admin}'",
		"update access.token set digest = digest", "update access.token set expires_at = 'infinity'", "delete from access.token",
	} {
		err := db.InTenantsWrite(t.Context(), []string{"acme"}, func(tx postgres.Tx) error {
			_, err := tx.Exec(t.Context(), sql)
			return err
		})
		if postgres.SQLState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestScopes(t *testing.T) {
	all, err := authn.ParseScopes(authn.ScopeNames())
	if err != nil || all != authn.AllScopes || all.String() != "read,ingest,export,audit,admin,decrypt" {
		t.Errorf("all scopes: %v (%s), %v", all, all, err)
	}
	for _, bad := range [][]string{nil, {}, {"root"}, {"read", ""}, {"READ"}} {
		if s, err := authn.ParseScopes(bad); !errors.Is(err, authn.ErrScope) || s != 0 {
			t.Errorf("ParseScopes(%q) = %v, %v", bad, s, err)
		}
	}
	if s, err := authn.ParseScopes([]string{"decrypt", "read"}); err != nil || !slices.Equal(s.Names(), []string{"read", "decrypt"}) {
		t.Errorf("%v, %v", s, err)
	}
	if (authn.Principal{}).Can(authn.Read) || (authn.Principal{AllTenants: true}).Can(authn.Ingest) {
		t.Error("a principal without scopes may do something")
	}
}
