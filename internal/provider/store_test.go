package provider_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/egress"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/provider"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	first  = "sk-live-FIRSTfirstFIRSTfirstFIRST-0001"
	second = "sk-live-SECONDsecondSECONDsecond-0002"
)

var admin = authn.Principal{Subject: "tok_admin", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}

// world is a store over a fresh database, and gates over the same.
type world struct {
	*provider.Store
	db      *postgres.DB
	ring    *keyring.Ring
	secrets *secrets.Store
	log     *audit.Log
	used    []audit.Event
	changed []tenant.ID
}

// Allowed implements provider.Recorder.
func (w *world) Allowed(ev audit.Event) { w.used = append(w.used, ev) }

func newWorld(t *testing.T) *world {
	t.Helper()
	ring := testenv.Ring(t, "acme", "umbrella")
	w := &world{db: testenv.MigratedPostgres(t).Open(t, postgres.RoleApp), ring: ring}
	w.secrets, w.log = secrets.NewStore(w.db, ring), audit.NewLog(w.db, ring)
	w.Store = provider.NewStore(w.db, ring, w.secrets, provider.Options{Changed: func(id tenant.ID) { w.changed = append(w.changed, id) }})
	return w
}

func (w *world) gate() *provider.Gate { return provider.NewGate(w.db, w.ring, w, nil) }

func (w *world) add(t *testing.T, name, prov, base, value string) provider.Key {
	t.Helper()
	k, err := w.AddKey(t.Context(), admin, provider.NewKey{Tenant: "acme", Provider: prov, Name: name, BaseURL: base, Value: value})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// actions are what the audit log says was done.
func (w *world) actions(t *testing.T) string {
	t.Helper()
	rows, err := w.log.Rows(t.Context(), "acme", 1, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for i := range rows {
		ev, _, err := audit.Decode(rows[i].Canonical)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(ev.Reason+ev.Resource, "sk-live") {
			t.Errorf("the audit log holds a key: %+v", ev)
		}
		list = append(list, ev.Action)
	}
	return strings.Join(list, " ")
}

func TestTheLifeOfAKey(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	k := w.add(t, "", "openai", "", first)
	if k.Name != "openai" || k.Masked != "sk-l…0001" || k.BaseURL != "" {
		t.Errorf("%+v", k)
	}
	own := w.add(t, "own", "openai", "https://LLM.example.com/base/", second)
	if own.BaseURL != "https://llm.example.com/base" {
		t.Errorf("%+v", own)
	}
	open := func(want, base string) {
		t.Helper()
		got, err := w.gate().Key(ctx, "acme", "openai")
		if err != nil || got.Secret != want || got.Base != base {
			t.Errorf("%+v, %v", got, err)
		}
	}
	open(first, "")
	if k, err := w.RotateKey(ctx, admin, "acme", k.ID, second+"x"); err != nil || k.Version != 2 || k.PreviousUntil.IsZero() {
		t.Errorf("%+v, %v", k, err)
	}
	open(second+"x", "")
	if err := w.RevokeKey(ctx, admin, "acme", k.ID); err != nil {
		t.Fatal(err)
	}
	open(second, "https://llm.example.com/base")
	list, err := w.Keys(ctx, "acme", "", 10)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, l := range list {
		if l.Provider != "openai" || l.RevokedAt.IsZero() != (l.ID == own.ID) || strings.Contains(fmt.Sprintf("%+v", l), "FIRST") {
			t.Errorf("%+v", l)
		}
	}
	if page, err := w.Keys(ctx, "acme", list[0].ID, 10); err != nil || len(page) != 1 || page[0].ID != list[1].ID {
		t.Errorf("%+v, %v", page, err)
	}
	if err := w.RevokeKey(ctx, admin, "acme", own.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.gate().Key(ctx, "acme", "openai"); !errors.Is(err, provider.ErrNoKey) {
		t.Error(err)
	}
	if got, want := w.actions(t), "provider_key.create secret.create provider_key.create secret.create secret.rotate secret.revoke secret.revoke"; got != want {
		t.Errorf("audited %q, want %q", got, want)
	}
	if len(w.used) != 3 || w.used[0].Action != "secret.use" || w.used[0].Resource != "secret/"+k.ID {
		t.Errorf("uses %+v", w.used)
	}
	if len(w.changed) != 5 {
		t.Errorf("told of %d changes", len(w.changed))
	}
}

func TestWhatIsRefused(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for name, x := range map[string]struct {
		n    provider.NewKey
		want error
	}{
		"metadata":                      {provider.NewKey{Provider: "openai", BaseURL: "http://169.254.169.254/", Value: first}, egress.ErrURL},
		"loopback":                      {provider.NewKey{Provider: "openai", BaseURL: "https://127.0.0.1/", Value: first}, egress.ErrURL},
		"a password":                    {provider.NewKey{Provider: "openai", BaseURL: "https://me:pw@x.com/", Value: first}, egress.ErrURL},
		"a name":                        {provider.NewKey{Provider: "Open AI", Value: first}, provider.ErrInvalid},
		"no name":                       {provider.NewKey{Value: first}, provider.ErrInvalid},
		"two lines":                     {provider.NewKey{Provider: "openai", Value: first + "\r\nHost: x"}, provider.ErrInvalid},
		"half of an AWS credential":     {provider.NewKey{Provider: "bedrock", Value: awsID + ":"}, provider.ErrInvalid},
		"an AWS credential, cut":        {provider.NewKey{Provider: "bedrock", Value: `{"AccessKeyId":"` + awsID + `","SecretAccessKey":"FIRST`}, provider.ErrInvalid},
		"a temporary one without token": {provider.NewKey{Provider: "bedrock", Value: "ASIA" + awsID[4:] + ":" + awsSecret}, provider.ErrInvalid},
		"no value":                      {provider.NewKey{Provider: "openai"}, secrets.ErrInvalid},
		"a long name":                   {provider.NewKey{Provider: "openai", Name: strings.Repeat("n", 201), Value: first}, secrets.ErrInvalid},
	} {
		x.n.Tenant = "acme"
		if _, err := w.AddKey(ctx, admin, x.n); !errors.Is(err, x.want) || strings.Contains(err.Error(), "FIRST") {
			t.Errorf("%s: %v", name, err)
		}
	}
	k := w.add(t, "", "openai", "", first)
	if _, err := w.AddKey(ctx, admin, provider.NewKey{Tenant: "acme", Provider: "openai", Value: second}); !errors.Is(err, secrets.ErrExists) {
		t.Error(err)
	}
	other, err := w.secrets.Add(ctx, admin, secrets.New{Tenant: "acme", Kind: "webhook_url", Name: "x", Value: "https://x.com"})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"sec_none", other.ID} {
		if _, err := w.RotateKey(ctx, admin, "acme", id, second); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("%s: %v", id, err)
		}
		if err := w.RevokeKey(ctx, admin, "acme", id); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := w.RevokeKey(ctx, admin, "umbrella", k.ID); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("another tenant: %v", err)
	}
}

const (
	awsID     = "AKIATHETENANTSKEY001"
	awsSecret = "TheFIRSTSecretAccessKeyOfTheTest+/00cAnR"
)

// An AWS credential is kept in one form, however it is given, and shown as others are.
func TestAWSCredential(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	k := w.add(t, "", "bedrock", "", fmt.Sprintf("{\n  \"AccessKey\": {\n    \"AccessKeyId\": %q,\n    \"SecretAccessKey\": %q\n  }\n}\n", awsID, awsSecret))
	if k.Masked != "AKIA…cAnR" {
		t.Errorf("shown as %s", k.Masked)
	}
	open := func(want string) {
		t.Helper()
		if got, err := w.gate().Key(ctx, "acme", "bedrock"); err != nil || got.Secret != want {
			t.Errorf("%v, the key is another", err)
		}
	}
	open(awsID + ":" + awsSecret)
	const session = "TheSessionToken+/=="
	temporary := fmt.Sprintf(`{"Version":1,"AccessKeyId":"ASIA%s","SecretAccessKey":%q,"SessionToken":%q}`, awsID[4:], awsSecret, session)
	if _, err := w.RotateKey(ctx, admin, "acme", k.ID, temporary); err != nil {
		t.Fatal(err)
	}
	open("ASIA" + awsID[4:] + ":" + awsSecret + ":" + session)
	if _, err := w.RotateKey(ctx, admin, "acme", k.ID, awsID+":short"); !errors.Is(err, provider.ErrInvalid) || strings.Contains(err.Error(), awsID) {
		t.Errorf("half of one: %v", err)
	}
}

// TestADestroyedRootEndsItsKeys opens nothing of what a gate still remembers.
func TestADestroyedRootEndsItsKeys(t *testing.T) {
	w := newWorld(t)
	w.add(t, "", "openai", "", first)
	g := w.gate()
	if _, err := g.Key(t.Context(), "acme", "openai"); err != nil {
		t.Fatal(err)
	}
	if err := w.ring.Destroy("acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Key(t.Context(), "acme", "openai"); !errors.Is(err, provider.ErrNoKey) {
		t.Error(err)
	}
}

func TestSwitches(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	g := w.gate()
	call := provider.Call{Tenant: "acme", Credential: "tok_a", Team: "search", Provider: "openai", Model: "gpt-4o"}
	if _, yes, err := g.Stopped(ctx, &call); yes || err != nil {
		t.Fatal(yes, err)
	}
	for name, err := range map[string]error{
		"no reason": second2(w.Kill(ctx, admin, "acme", "team", "search", "")),
		"a scope":   second2(w.Kill(ctx, admin, "acme", "user", "x", "r")),
		"a subject": second2(w.Kill(ctx, admin, "acme", "tenant", "x", "r")),
		"none":      second2(w.Kill(ctx, admin, "acme", "team", "", "r")),
	} {
		if !errors.Is(err, provider.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := w.Kill(ctx, admin, "acme", "team", "search", "a runaway loop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Kill(ctx, admin, "acme", "team", "search", "again"); !errors.Is(err, provider.ErrExists) {
		t.Error(err)
	}
	g.Forget("acme")
	if got, yes, err := g.Stopped(ctx, &call); !yes || err != nil || got.ID != s.ID || got.Reason != "a runaway loop" {
		t.Error(got, yes, err)
	}
	elsewhere := call
	elsewhere.Tenant = "umbrella"
	if _, yes, err := g.Stopped(ctx, &elsewhere); yes || err != nil {
		t.Errorf("another tenant's calls: %v, %v", yes, err)
	}
	if err := w.Lift(ctx, admin, "umbrella", s.ID); !errors.Is(err, provider.ErrNotFound) {
		t.Error(err)
	}
	if err := w.Lift(ctx, admin, "acme", s.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Lift(ctx, admin, "acme", s.ID); !errors.Is(err, provider.ErrNotFound) {
		t.Error(err)
	}
	g.Forget("acme")
	if _, yes, err := g.Stopped(ctx, &call); yes || err != nil {
		t.Error(yes, err)
	}
	if list, err := w.Switches(ctx, "acme", "", 10); err != nil || len(list) != 1 || list[0].LiftedBy != "tok_admin" {
		t.Errorf("%+v, %v", list, err)
	}
	if got := w.actions(t); got != "kill_switch.throw kill_switch.lift" {
		t.Errorf("audited %q", got)
	}
}

func second2[T any](_ T, err error) error { return err }

func TestLimits(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for _, l := range []provider.Limit{{KeyID: "x", RequestsPerMinute: 1}, {KeyID: "tok_a", RequestsPerMinute: -1}, {KeyID: "tok_a", TokensPerMinute: provider.MaxPerMinute + 1}} {
		l.Tenant = "acme"
		if _, err := w.SetLimit(ctx, admin, l); !errors.Is(err, provider.ErrInvalid) {
			t.Errorf("%+v: %v", l, err)
		}
	}
	set := func(requests, tokens int64) {
		t.Helper()
		if _, err := w.SetLimit(ctx, admin, provider.Limit{Tenant: "acme", KeyID: "tok_a", RequestsPerMinute: requests, TokensPerMinute: tokens}); err != nil {
			t.Fatal(err)
		}
	}
	set(5, 0)
	set(1, 100)
	list, err := w.Limits(ctx, "acme", "", 10)
	if err != nil || len(list) != 1 || list[0].RequestsPerMinute != 1 || list[0].TokensPerMinute != 100 {
		t.Errorf("%+v, %v", list, err)
	}
	g := w.gate()
	call := provider.Call{Tenant: "acme", Credential: "tok_a", Provider: "openai"}
	for i, want := range []bool{true, false} {
		wait, rule, err := g.Take(ctx, &call)
		if (wait == 0) != want || err != nil {
			t.Errorf("call %d: %s %s %v", i, wait, rule, err)
		}
	}
	set(0, 0)
	if list, err := w.Limits(ctx, "acme", "", 10); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	g.Forget("acme")
	if wait, _, err := g.Take(ctx, &call); wait != 0 || err != nil {
		t.Error(wait, err)
	}
}

// TestCapsAreKeptByAllProxies settles calls in two processes, and restarts one.
func TestCapsAreKeptByAllProxies(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	dollars := func(n int64) money.Pico { return money.Pico(n * 1_000_000_000_000) }
	set := func(usd *money.Sum) {
		t.Helper()
		if err := w.SetCap(ctx, admin, "acme", "team", "search", usd); err != nil {
			t.Fatal(err)
		}
	}
	ten := money.SumOf(dollars(10))
	set(&ten)
	negative := money.SumOf(-1)
	if err := w.SetCap(ctx, admin, "acme", "team", "search", &negative); !errors.Is(err, provider.ErrInvalid) {
		t.Error(err)
	}
	huge, err := money.ParseSum("99999999999999999999999999")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetCap(ctx, admin, "acme", "team", "huge", &huge); err != nil {
		t.Errorf("the largest sum there is: %v", err)
	}
	call := provider.Call{Tenant: "acme", Team: "search"}
	spend := func(g *provider.Gate, n int64) error {
		g.Forget("acme")
		r, err := g.Reserve(ctx, &call, dollars(n))
		if err == nil {
			r.Settle(0, dollars(n)-1, true)
			g.Flush(ctx)
			g.Flush(ctx)
		}
		return err
	}
	one, two := w.gate(), w.gate()
	for i, x := range []struct {
		g    *provider.Gate
		n    int64
		want error
	}{{one, 3, nil}, {two, 3, nil}, {one, 3, nil}, {two, 3, provider.ErrBudget}, {w.gate(), 2, provider.ErrBudget}, {w.gate(), 1, nil}} {
		if err := spend(x.g, x.n); !errors.Is(err, x.want) {
			t.Errorf("call %d: %v, want %v", i, err, x.want)
		}
	}
	list, err := w.Caps(ctx, "acme")
	if err != nil || len(list) != 2 || list[1].Spent != money.SumOf(dollars(10)-4) || list[1].USD != ten {
		t.Errorf("%+v, %v", list, err)
	}
	set(nil)
	if err := spend(one, 100); err != nil {
		t.Error(err)
	}
	set(&ten)
	if err := spend(one, 1); !errors.Is(err, provider.ErrBudget) {
		t.Errorf("a cap that is set again has forgotten: %v", err)
	}
}

// TestRunWritesAtItsEnd settles a call just before the process ends.
func TestRunWritesAtItsEnd(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	ten := money.SumOf(10_000_000_000_000)
	if err := w.SetCap(ctx, admin, "acme", "tenant", "", &ten); err != nil {
		t.Fatal(err)
	}
	g := w.gate()
	r, err := g.Reserve(ctx, &provider.Call{Tenant: "acme"}, 5)
	if err != nil {
		t.Fatal(err)
	}
	r.Settle(0, 7, true)
	done := make(chan struct{})
	stop, cancel := context.WithCancel(ctx)
	go func() { defer close(done); _ = g.Run(stop) }()
	cancel()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Run does not end")
	}
	if list, err := w.Caps(ctx, "acme"); err != nil || len(list) != 1 || list[0].Spent != money.SumOf(7) {
		t.Errorf("%+v, %v", list, err)
	}
}
