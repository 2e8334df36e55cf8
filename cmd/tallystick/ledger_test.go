package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"
)

// ledgerWorld is a database with ledgers, a keyring, and a server over both.
type ledgerWorld struct {
	t       *testing.T
	dir     string
	ring    *keyring.Ring
	admin   *sql.DB
	url     string
	dsnFile string

	app, ledgerDB *postgres.DB
	batches       int64
	heads         map[string]ledger.Head
}

const ledgerTestToken = "tsk_a-token-of-the-ledger-tests"

func newLedgerWorld(t *testing.T) *ledgerWorld {
	t.Helper()
	l := testenv.MigratedPostgres(t)
	w := &ledgerWorld{t: t, dir: t.TempDir()}
	var err error
	if w.ring, err = keyring.Open(filepath.Join(w.dir, "keys"), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ring.Close() })
	signer := postgres.NewSigner(1, w.ring.ContextSecret())
	dsns, err := postgres.Provision(t.Context(), l.AdminDSN, signer, [32]byte{4})
	if err != nil {
		t.Fatal(err)
	}
	w.dsnFile = w.file("dsn", dsns[postgres.RoleApp])
	w.file("token", ledgerTestToken)
	open := func(role postgres.Role) *postgres.DB {
		db, err := postgres.Open(t.Context(), dsns[role], signer, postgres.Options{MaxConns: 6})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(db.Close)
		return db
	}
	app := open(postgres.RoleApp)
	w.app, w.ledgerDB, w.heads = app, open(postgres.RoleLedger), map[string]ledger.Head{}
	if _, err := w.ring.Create("acme"); err != nil {
		t.Fatal(err)
	}
	w.fillMore("acme", 1, 30)
	if w.admin, err = sql.Open("pgx", l.AdminDSN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.admin.Close() })
	server, err := api.New(api.Deps{
		Auth: authn.NewStatic(ledgerTestToken, authn.Principal{AllTenants: true, Scopes: authn.AllScopes}), Audit: noAudit{}, Ledger: api.NewPostgresLedger(app),
		Verifier: ledgerVerifier{app, w.ring, &publishedNotes{app, w.ring, "tallystick.local", ""}}, Evidence: evidenceMaker{app}, LedgerExporter: ledgerExporter{app}, Tenants: ringTenants{w.ring}, Checkpoints: newProofs(app),
	}, api.Options{})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server.HTTPHandler())
	t.Cleanup(web.Close)
	w.url = web.URL
	t.Setenv("TALLYSTICK_TOKEN", ledgerTestToken)
	t.Setenv("TALLYSTICK_URL", w.url)
	return w
}

// noAudit is the audit log of a server that only reads.
type noAudit struct{}

func (noAudit) Record(context.Context, audit.Event) error { return nil }
func (noAudit) Denied(context.Context, audit.Event)       {}

// ringTenants lists the tenants of a ring.
type ringTenants struct{ ring *keyring.Ring }

func (r ringTenants) Create(context.Context, []tenant.ID) ([]tenant.ID, error) { return nil, nil }

func (r ringTenants) List(_ context.Context, after tenant.ID, _ int) (list []api.TenantInfo, err error) {
	for _, id := range r.ring.Tenants() {
		if id > after {
			list = append(list, api.TenantInfo{ID: id})
		}
	}
	return list, nil
}

func (w *ledgerWorld) file(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// fillMore writes the entries from..to of a tenant through the writer's store.
func (w *ledgerWorld) fillMore(id string, from, to int64) {
	w.t.Helper()
	store := pgstore.New(w.ledgerDB)
	st, err := store.Assign(w.t.Context(), ledger.Topic{ID: [16]byte{7}, Partitions: 1}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	secret, err := w.ring.Derive(tenant.ID(id), keyring.MAC, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	key, h := chain.NewMACKey(secret, 1), chain.NewHasher()
	head := ledger.Head{Tenant: id, Chain: chain.Genesis(id), KeyEpoch: 1}
	if from > 1 {
		head = w.heads[id]
	}
	w.batches++
	b := &ledger.Batch{Epoch: st.Epoch, Number: w.batches, FirstOffset: from - 1, NextOffset: to}
	g := ledger.Group{Before: head, New: from == 1, Count: int(to - from + 1)}
	for seq := from; seq <= to; seq++ {
		e := chain.Entry{Kind: chain.Usage, Seq: seq, Key: event.Key{byte(seq)}, Priced: true, PricingVersion: 1}
		e.Event.OccurredAt = seq
		if seq == 1 {
			e = chain.Entry{Kind: chain.Control, Seq: 1, ControlKind: event.ControlKeyEpoch, ControlVersion: "1"}
		}
		e.Event.Tenant, e.Event.ReceivedAt = id, seq
		canonical := e.Append(nil)
		leaf := h.Leaf(canonical)
		head.Seq, head.Chain = seq, h.Next(&head.Chain, &leaf)
		b.Rows = append(b.Rows, ledger.Row{
			Sealed: chain.Sealed{Canonical: canonical, Chain: head.Chain, MAC: key.MAC(seq, &head.Chain), Epoch: 1},
			Seq:    seq, Kind: e.Kind, Priced: e.Priced, Key: e.Key, OccurredAt: e.Event.OccurredAt,
		})
	}
	g.After, w.heads[id] = head, head
	b.Groups = []ledger.Group{g}
	if err := store.Commit(w.t.Context(), b); err != nil {
		w.t.Fatal(err)
	}
}

// tallystick runs a command line and returns its exit code and output.
func (w *ledgerWorld) tallystick(args ...string) (code int, stdout string) {
	w.t.Helper()
	var out, errOut bytes.Buffer
	root := newRootCommand()
	root.SetArgs(append([]string{"ledger"}, args...))
	root.SetOut(&out)
	root.SetErr(&errOut)
	if err := root.ExecuteContext(w.t.Context()); err != nil {
		return exitCode(err), out.String()
	}
	return exitOK, out.String()
}

func (w *ledgerWorld) want(code int, args ...string) string {
	w.t.Helper()
	got, out := w.tallystick(args...)
	if got != code {
		w.t.Errorf("tallystick ledger %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

func TestLedgerCommands(t *testing.T) {
	w := newLedgerWorld(t)
	keys := filepath.Join(w.dir, "keys")
	direct := []string{"--postgres-dsn-file", w.dsnFile, "--keys-dir", keys}

	for _, with := range [][]string{nil, direct} {
		for _, args := range [][]string{{}, {"--tenant", "acme"}, {"--tenant", "acme", "--from", "7", "--to", "9"}, {"--all", "-o", "json"}} {
			if out := w.want(exitOK, append(append([]string{"verify"}, args...), with...)...); !strings.Contains(out, "intact") {
				t.Errorf("%v %v: %s", args, with, out)
			}
		}
		w.want(exitUsage, append([]string{"verify", "--tenant", "acme", "--from", "31"}, with...)...)
		w.want(exitNotFound, append([]string{"verify", "--tenant", "nobody"}, with...)...)
		export := filepath.Join(w.dir, "acme.export")
		w.want(exitOK, append([]string{"export", "--tenant", "acme", "-o", export, "--yes"}, with...)...)
		w.want(exitConflict, append([]string{"export", "--tenant", "acme", "-o", export}, with...)...)
		w.want(exitOK, "verify", "--file", export)
		w.want(exitOK, "verify", "--file", export, "--keys-dir", keys, "--tenant", "acme")
		w.want(exitUsage, "verify", "--file", export, "--tenant", "bravo")
		w.want(exitUnknown, "verify", "--file", export, "--keys-dir", t.TempDir())
		w.want(exitNotFound, append([]string{"export", "--tenant", "acme", "--from", "40", "-o", filepath.Join(w.dir, "none")}, with...)...)
	}
	if out := w.want(exitOK, "head"); !strings.Contains(out, "acme") || !strings.Contains(out, "30") {
		t.Errorf("head: %s", out)
	}
	if out := w.want(exitOK, "entries", "--tenant", "acme", "--limit", "3", "--descending", "-o", "jsonl"); strings.Count(out, "\n") != 3 || !strings.Contains(out, `"seq":"30"`) {
		t.Errorf("entries: %s", strings.ReplaceAll(out, " ", ""))
	}
	if out := w.want(exitOK, "entries", "--tenant", "acme", "--limit", "0"); strings.Count(out, "\n") != 31 {
		t.Errorf("all entries: %s", out)
	}
	for _, args := range [][]string{
		{"verify", "--from", "2"}, {"verify", "--workers", "0"}, {"verify", "-o", "xml"}, {"verify", "--tenant", "acme", "--all"},
		{"verify", "--file", w.dsnFile}, {"verify", "--file", "x", "--from", "1"}, {"head", "-o", "x"}, {"entries", "--limit", "-1"},
		{"export", "--tenant", "acme"}, {"verify", "--no-such-flag"}, {"verify", "--postgres-dsn-file", "nowhere", "--keys-dir", keys},
	} {
		w.want(exitUsage, args...)
	}
	w.want(exitNotFound, "verify", "--file", filepath.Join(w.dir, "nowhere"))
	w.want(exitUnavailable, "verify", "--url", "http://127.0.0.1:1")
	if out := w.want(exitNotFound, "entries", "--tenant", "nobody"); strings.Contains(out, "SEQ") {
		t.Errorf("the header of a table that there is not: %s", out)
	}
	w.want(exitNotFound, "export", "--tenant", "acme", "--from", "1000", "-o", filepath.Join(w.dir, "none"))
	t.Setenv("TALLYSTICK_TOKEN", "wrong")
	w.want(exitAuth, "verify")
	w.want(exitOK, "verify", "--token-file", filepath.Join(w.dir, "token"))
	w.want(exitUsage, "verify", "--token-file", filepath.Join(w.dir, "nowhere"))
}

func TestLedgerVerifyFindsTampering(t *testing.T) {
	w := newLedgerWorld(t)
	export := filepath.Join(w.dir, "acme.export")
	w.want(exitOK, "export", "--tenant", "acme", "-o", export)
	if _, err := w.admin.Exec(`update ledger.entry set cost_usd = 1 where tenant_id = 'acme' and seq = 17`); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", "-o", "json"}, {"verify", "-o", "json", "--postgres-dsn-file", w.dsnFile, "--keys-dir", filepath.Join(w.dir, "keys")}} {
		var reports []jsonReport
		if err := json.Unmarshal([]byte(w.want(exitIntegrity, args...)), &reports); err != nil || len(reports) != 1 {
			t.Fatalf("%v, %v", reports, err)
		}
		if r := reports[0]; r.Verdict != "broken" || r.FirstBad != 17 || r.Reason != "projected column differs" || r.Entries != 16 {
			t.Errorf("%v: %+v", args, r)
		}
	}
	w.want(exitOK, "verify", "--tenant", "acme", "--to", "16")
	w.want(exitIntegrity, "verify", "--tenant", "acme", "--from", "17", "--to", "17")

	b, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	w.want(exitIntegrity, "verify", "--file", w.file("changed", string(b)))
	w.want(exitIntegrity, "verify", "--file", w.file("cut", string(b[:len(b)/3])))
}

// TestVerifyWhileTheLedgerGrows has entries come between the question for the head
// and the verification: the tree that comes back is that of more entries.
func TestVerifyWhileTheLedgerGrows(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/v1/ledger/head" {
			fmt.Fprint(w, `{"tenant_id":"acme","seq":"31"}`)
			return
		}
		fmt.Fprintf(w, `{"verdict":"intact","entries":"33","from_seq":"1","to_seq":"33","tree":[%q,%q]}`, strings.Repeat("01", 32), strings.Repeat("02", 32))
	}))
	defer srv.Close()
	api := &ledgerAPI{client.New(srv.URL, "token")}
	defer api.Close()
	r, err := api.verify(t.Context(), verify.Options{Tenant: "acme"})
	if err != nil || r.Verdict != verify.Intact || r.To != 33 || r.Entries != 33 {
		t.Errorf("%+v, %v", r, err)
	}
}
