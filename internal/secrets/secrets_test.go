package secrets_test

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
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is a store over a fresh database, and its clock.
type world struct {
	*secrets.Store
	pg   *testenv.Ledger
	db   *postgres.DB
	log  *audit.Log
	now  time.Time
	used []audit.Event
}

// Allowed implements secrets.Recorder.
func (w *world) Allowed(ev audit.Event) { w.used = append(w.used, ev) }

func newWorld(t *testing.T) *world {
	t.Helper()
	ring := testenv.Ring(t, "acme", "umbrella")
	w := &world{pg: testenv.MigratedPostgres(t), now: time.Now()}
	w.db = w.pg.Open(t, postgres.RoleApp)
	w.Store, w.log = secrets.NewStore(w.db, ring), audit.NewLog(w.db, ring)
	w.SetClock(func() time.Time { return w.now })
	return w
}

func (w *world) admin(t *testing.T, sql string) {
	t.Helper()
	w.pg.Exec(t, sql)
}

// stored is every byte of the tables, as a superuser sees them.
func (w *world) stored(t *testing.T) []byte {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.pg.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // a test's
	var out []byte
	for _, sql := range []string{
		"select coalesce(string_agg(to_jsonb(t)::text, ' '), '')::bytea from access.secret t",
		"select coalesce(string_agg((to_jsonb(t) - 'sealed')::text, ' '), '')::bytea from access.secret_version t",
		"select coalesce(string_agg(sealed, ''), '') from access.secret_version",
		"select coalesce(string_agg(canonical, ''), '') from audit.event",
	} {
		var b []byte
		if err := conn.QueryRow(t.Context(), sql).Scan(&b); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		out = append(out, b...)
	}
	return out
}

// actions are what the audit log says was done.
func (w *world) actions(t *testing.T) (list []string) {
	t.Helper()
	rows, err := w.log.Rows(t.Context(), "acme", 1, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		ev, _, err := audit.Decode(rows[i].Canonical)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, ev.Action)
	}
	return list
}

const (
	first  = "sk-live-FIRSTfirstFIRSTfirstFIRST-0001"
	second = "sk-live-SECONDsecondSECONDsecond-0002"
	third  = "sk-live-THIRDthirdTHIRDthirdTHIRD-0003"
)

var (
	admin = authn.Principal{Subject: "tok_admin", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}
	openA = secrets.New{Tenant: "acme", Kind: "provider_key", Name: "openai", Value: first}
)

func (w *world) add(t *testing.T, n secrets.New) secrets.Secret {
	t.Helper()
	s, err := w.Add(t.Context(), admin, n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// live is what a caller of the tenant's provider is served with.
func (w *world) live(t *testing.T) []string {
	t.Helper()
	values, err := w.Live(t.Context(), w, "proxy", "acme", "provider_key", "openai")
	if err != nil && !errors.Is(err, secrets.ErrNotFound) {
		t.Fatal(err)
	}
	return values
}

// A secret's whole life: kept, rotated twice, shown and revoked. Its values are
// in no table and no audit row, and each step is audited.
func TestLife(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, openA)
	if s.Masked != "sk-l…0001" || s.Version != 1 || !s.PreviousUntil.IsZero() || !s.RotateBy.Equal(s.CreatedAt.Add(secrets.Cadence)) {
		t.Errorf("Add = %+v", s)
	}
	if got := w.live(t); !slices.Equal(got, []string{first}) {
		t.Errorf("live: %q", got)
	}
	w.now = w.now.Add(time.Hour)
	r, err := w.Rotate(t.Context(), admin, "acme", s.ID, second)
	if err != nil || r.Version != 2 || r.Masked != "sk-l…0002" || !r.PreviousUntil.Equal(r.RotatedAt.Add(secrets.Overlap)) {
		t.Fatalf("Rotate = %+v, %v", r, err)
	}
	if got := w.live(t); !slices.Equal(got, []string{second, first}) {
		t.Errorf("after a rotation: %q", got)
	}
	w.now = w.now.Add(time.Hour)
	if _, err := w.Rotate(t.Context(), admin, "acme", s.ID, third); err != nil {
		t.Fatal(err)
	}
	if got := w.live(t); !slices.Equal(got, []string{third, second}) {
		t.Errorf("after two rotations: %q", got)
	}
	value, version, err := w.Reveal(t.Context(), admin, "acme", s.ID, "ticket 7")
	if err != nil || value != third || version != 3 {
		t.Errorf("Reveal = %q, %d, %v", value, version, err)
	}
	stored := w.stored(t)
	for _, v := range []string{first, second, third, first[8:24]} {
		if bytes.Contains(stored, []byte(v)) {
			t.Errorf("%q is in a table", v)
		}
	}
	w.now = w.now.Add(secrets.Overlap)
	if got := w.live(t); !slices.Equal(got, []string{third}) {
		t.Errorf("after the overlap: %q", got)
	}
	if err := w.Revoke(t.Context(), admin, "acme", s.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.live(t); len(got) != 0 {
		t.Errorf("after it is revoked: %q", got)
	}
	if _, _, err := w.Reveal(t.Context(), admin, "acme", s.ID, "ticket 8"); !errors.Is(err, secrets.ErrNotFound) {
		t.Errorf("Reveal of a revoked secret: %v", err)
	}
	want := []string{"secret.create", "secret.rotate", "secret.rotate", "secret.reveal", "secret.revoke"}
	if got := w.actions(t); !slices.Equal(got, want) {
		t.Errorf("audited: %q", got)
	}
	if len(w.used) == 0 || w.used[0].Actor != "proxy" || w.used[0].Resource != "secret/"+s.ID || w.used[0].Action != "secret.use" {
		t.Errorf("use is told as %+v", w.used)
	}
}

// Without its audit row no value is shown, and nothing is changed.
func TestUnauditedMeansNotDone(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, openA)
	w.admin(t, "revoke insert on audit.event from tallystick_app")
	if v, _, err := w.Reveal(t.Context(), admin, "acme", s.ID, "ticket 7"); !errors.Is(err, audit.ErrUnwritten) || v != "" {
		t.Errorf("Reveal = %q, %v", v, err)
	}
	n := openA
	n.Name = "other"
	if _, err := w.Add(t.Context(), admin, n); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("Add: %v", err)
	}
	if _, err := w.Rotate(t.Context(), admin, "acme", s.ID, second); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("Rotate: %v", err)
	}
	if err := w.Revoke(t.Context(), admin, "acme", s.ID); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("Revoke: %v", err)
	}
	list, err := w.List(t.Context(), "acme", "", 10)
	if err != nil || len(list) != 1 || list[0].Version != 1 || !list[0].RevokedAt.IsZero() {
		t.Errorf("List = %+v, %v", list, err)
	}
}

// A sealed value opens in its own row only: whoever can write to the table
// cannot show one in the place of another.
func TestValuesDoNotMove(t *testing.T) {
	w := newWorld(t)
	a := w.add(t, openA)
	n := openA
	n.Name, n.Value = "other", second
	b := w.add(t, n)
	w.admin(t, "update access.secret_version v set sealed = (select sealed from access.secret_version o where o.secret_id <> v.secret_id limit 1)")
	for _, id := range []string{a.ID, b.ID} {
		if v, _, err := w.Reveal(t.Context(), admin, "acme", id, "why"); !errors.Is(err, keyring.ErrSealed) || v != "" {
			t.Errorf("a value of another row: %q, %v", v, err)
		}
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, openA)
	for name, tc := range map[string]struct {
		change func(*secrets.New)
		want   error
	}{
		"the same name again": {func(*secrets.New) {}, secrets.ErrExists},
		"no kind":             {func(n *secrets.New) { n.Kind = "password" }, secrets.ErrInvalid},
		"no name":             {func(n *secrets.New) { n.Name = "" }, secrets.ErrInvalid},
		"no value":            {func(n *secrets.New) { n.Name, n.Value = "x", "" }, secrets.ErrInvalid},
		"too long":            {func(n *secrets.New) { n.Name, n.Value = "x", strings.Repeat("v", secrets.MaxValueBytes+1) }, secrets.ErrInvalid},
		"no text":             {func(n *secrets.New) { n.Name, n.Value = "x", first+"\xff" }, secrets.ErrInvalid},
	} {
		n := openA
		tc.change(&n)
		_, err := w.Add(t.Context(), admin, n)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), first) || strings.Contains(err.Error(), "vvvv")) {
			t.Errorf("%s: the error repeats the value", name)
		}
	}
	for name, err := range map[string]error{
		"rotate nothing": func() error { _, err := w.Rotate(t.Context(), admin, "acme", "sec_x", second); return err }(),
		"of another":     func() error { _, err := w.Rotate(t.Context(), admin, "umbrella", s.ID, second); return err }(),
		"revoke nothing": w.Revoke(t.Context(), admin, "umbrella", s.ID),
		"reveal nothing": func() error { _, _, err := w.Reveal(t.Context(), admin, "umbrella", s.ID, "why"); return err }(),
	} {
		if !errors.Is(err, secrets.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := w.Reveal(t.Context(), admin, "acme", s.ID, ""); !errors.Is(err, secrets.ErrInvalid) {
		t.Errorf("without a reason: %v", err)
	}
	if err := w.Revoke(t.Context(), admin, "acme", s.ID); err != nil {
		t.Fatal(err)
	}
	w.add(t, openA) // the name is free again
}

// Of a short value nothing is shown.
func TestMask(t *testing.T) {
	w := newWorld(t)
	for i, tc := range []struct{ value, masked string }{
		{"short-value-of-23-chars", "…"}, {strings.Repeat("é", 20), "…"}, {"https://hooks.example/T0/B1/XyZ9", "http…XyZ9"}, {"-----BEGIN KEY\nabcdefghijk\n", "…"},
	} {
		n := openA
		n.Name, n.Value = string(rune('a'+i)), tc.value
		if got := w.add(t, n).Masked; got != tc.masked {
			t.Errorf("%q is shown as %q, want %q", tc.value, got, tc.masked)
		}
	}
}

// What is not live any more is taken out of the table.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	s := w.add(t, openA)
	if _, err := w.Rotate(t.Context(), admin, "acme", s.ID, second); err != nil {
		t.Fatal(err)
	}
	all := []tenant.ID{"acme", "umbrella"}
	if n, err := w.Sweep(t.Context(), all); n != 0 || err != nil {
		t.Errorf("within the overlap: %d, %v", n, err)
	}
	w.now = w.now.Add(secrets.Overlap)
	if n, err := w.Sweep(t.Context(), all); n != 1 || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}
	if got := w.live(t); !slices.Equal(got, []string{second}) {
		t.Errorf("live: %q", got)
	}
}
