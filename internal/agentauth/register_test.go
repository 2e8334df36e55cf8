package agentauth_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var admin = authn.Principal{Subject: "test", AllTenants: true, Scopes: authn.AllScopes}

// world is a register over a fresh database.
type world struct {
	*agentauth.Issuer
	db  *postgres.DB
	log *audit.Log
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ring := testenv.Ring(t, "acme", "umbrella")
	db := testenv.MigratedPostgres(t).Open(t, postgres.RoleApp)
	r := agentauth.NewRegister(db, ring)
	p, err := agentauth.LoadPeppers(t.Context(), agentauth.PepperText(agentauth.NewPepper()), r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &world{agentauth.NewIssuer(r, p), db, audit.NewLog(db, ring)}
}

func (w *world) create(t *testing.T, id tenant.ID) agentauth.Credential {
	t.Helper()
	_, c, err := w.Create(t.Context(), admin, id, "rack 1")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) standing(t *testing.T, id tenant.ID, asks ...agentauth.Ask) []agentauth.Standing {
	t.Helper()
	s, err := w.Standings(t.Context(), id, asks)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLifeOfAnAgent(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	c, other := w.create(t, "acme"), w.create(t, "acme")
	if c.Agent == other.Agent || c.Secret == other.Secret {
		t.Fatal("two agents are the same")
	}
	ask := agentauth.Ask{Agent: c.Agent, Epoch: 1}
	if got := w.standing(t, "acme", agentauth.Ask{Agent: "agt_none", Epoch: 1}, ask); got[0].Live || !got[1].Live {
		t.Errorf("standings %+v", got)
	}
	if got := w.standing(t, "umbrella", ask); got[0].Live {
		t.Error("an agent stands for another tenant")
	}
	if again, err := w.Issue(ctx, admin, c.Key); err != nil || again != c {
		t.Errorf("issued under the same pepper: %v", err)
	}
	before, err := w.Revocations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Revoke(ctx, admin, c.Key); err != nil {
		t.Fatal(err)
	}
	if after, err := w.Revocations(ctx); err != nil || after == before {
		t.Errorf("the number of revocations stays %d (%v)", before, err)
	}
	if w.standing(t, "acme", ask)[0].Live {
		t.Error("a revoked agent is live")
	}
	revoked, err := w.Revoked(ctx, "acme", []string{c.Agent, other.Agent, "agt_none"})
	slices.Sort(revoked)
	if want := []string{c.Agent, "agt_none"}; err != nil || !slices.Equal(revoked, slices.Sorted(slices.Values(want))) {
		t.Errorf("revoked: %q, %v", revoked, err)
	}
	for name, err := range map[string]error{
		"revoke again":  w.Revoke(ctx, admin, c.Key),
		"revoke nobody": w.Revoke(ctx, admin, agentauth.Key{Tenant: "umbrella", Agent: other.Agent}),
		"issue":         second(w.Issue(ctx, admin, c.Key)),
	} {
		if !errors.Is(err, agentauth.ErrNoAgent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	list, err := w.List(ctx, "acme", "", 10)
	if err != nil || len(list) != 2 || list[0].Agent > list[1].Agent || list[0].RevokedAt.IsZero() == list[1].RevokedAt.IsZero() {
		t.Errorf("list %+v, %v", list, err)
	}
	if rest, err := w.List(ctx, "acme", list[0].Agent, 10); err != nil || len(rest) != 1 || !reflect.DeepEqual(rest[0], list[1]) {
		t.Errorf("the rest %+v, %v", rest, err)
	}
	w.checkAudit(t, c)
}

func second(_ agentauth.Credential, err error) error { return err }

// checkAudit: each change is a row, and no row holds a secret.
func (w *world) checkAudit(t *testing.T, c agentauth.Credential) {
	t.Helper()
	events, err := w.log.Rows(t.Context(), "acme", 1, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for i := range events {
		e, _, err := audit.Decode(events[i].Canonical)
		if err != nil {
			t.Fatal(err)
		}
		actions = append(actions, e.Action)
		if strings.Contains(e.Reason+e.Resource, c.Text()[len(c.Text())-43:]) {
			t.Errorf("row %+v holds the secret", e)
		}
	}
	slices.Sort(actions)
	if want := []string{"agent.create", "agent.create", "agent.issue", "agent.revoke"}; !slices.Equal(actions, want) {
		t.Errorf("audited %q, want %q", actions, want)
	}
}

func TestRefusedAgents(t *testing.T) {
	w := newWorld(t)
	mine := authn.Principal{Subject: "tok_1", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}
	for name, err := range map[string]error{
		"another's tenant": third(w.Create(t.Context(), mine, "umbrella", "x")),
		"no name":          third(w.Create(t.Context(), mine, "acme", "")),
		"a long name":      third(w.Create(t.Context(), mine, "acme", strings.Repeat("x", 201))),
	} {
		if !errors.Is(err, agentauth.ErrAgent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func third(_ agentauth.Agent, _ agentauth.Credential, err error) error { return err }

// TestNonceIsUsedOnce: of many requests at once with one nonce, one passes.
func TestNonceIsUsedOnce(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	c := w.create(t, "acme")
	nonce := []byte("0123456789abcdef")
	var wg sync.WaitGroup
	passed := make(chan error, 20)
	for range cap(passed) {
		wg.Go(func() {
			_, err := w.UseNonce(ctx, c.Key, 1, nonce)
			passed <- err
		})
	}
	wg.Wait()
	close(passed)
	n := 0
	for err := range passed {
		switch {
		case err == nil:
			n++
		case !errors.Is(err, agentauth.ErrRefused):
			t.Error(err)
		}
	}
	if n != 1 {
		t.Errorf("a nonce passed %d times", n)
	}
	other := w.create(t, "acme")
	if _, err := w.UseNonce(ctx, other.Key, 1, nonce); err != nil {
		t.Errorf("another agent's nonce: %v", err)
	}
	if err := w.Revoke(ctx, admin, c.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := w.UseNonce(ctx, c.Key, 1, []byte("another nonce 16")); !errors.Is(err, agentauth.ErrRefused) {
		t.Errorf("a revoked agent: %v", err)
	}
	if n, err := w.SweepNonces(ctx, "acme"); err != nil || n != 0 {
		t.Errorf("young nonces were forgotten: %d, %v", n, err)
	}
}

func TestReportsOnlyGrow(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	c := w.create(t, "acme")
	now := time.Now().UTC().Truncate(time.Microsecond)
	run := agentauth.Run{Gateway: "gw-1", Epoch: 1}
	report := agentauth.Report{
		Agent: c.Agent, Epoch: 5, AckedSeq: 10, AcceptedFrames: 10, AcceptedSamples: 100,
		RefusedSamples: map[string]int64{"range": 1},
		Heartbeat:      &agentauth.Heartbeat{EmittedSamples: 120, AckedSamples: 100, LostSamples: map[string]int64{"spool_full": 2}, SentAt: now, ReceivedAt: now},
		Inventory:      &agentauth.Inventory{Content: []byte{1}, TakenAt: now, ReceivedAt: now},
	}
	older := report
	older.AckedSeq = 4
	older.Heartbeat = &agentauth.Heartbeat{EmittedSamples: 50, AckedSamples: 40, SentAt: now, ReceivedAt: now.Add(-time.Second)}
	for _, r := range []agentauth.Report{report, older, report} {
		if err := w.Save(ctx, "acme", run, []agentauth.Report{r}); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.standing(t, "acme", agentauth.Ask{Agent: c.Agent, Epoch: 5}, agentauth.Ask{Agent: c.Agent, Epoch: 6}); got[0].AckedSeq != 10 || got[1].AckedSeq != 0 {
		t.Errorf("standings %+v", got)
	}
	var emitted, lost int64
	err := w.db.InTenant(ctx, "acme", func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select emitted_samples, (lost_samples->>'spool_full')::bigint from agent.producer where tenant_id = $1`, "acme").Scan(&emitted, &lost)
	})
	if err != nil || emitted != 120 || lost != 2 {
		t.Errorf("the producer's row: %d emitted, %d lost, %v", emitted, lost, err)
	}
	list, err := w.List(ctx, "acme", "", 1)
	if err != nil || len(list) != 1 || !list[0].ReportedAt.Equal(now) {
		t.Errorf("reported at %v, %v", list, err)
	}
	// Counts are summed over epochs and over the runs of gateways.
	report.Epoch, report.RefusedSamples = 6, map[string]int64{"range": 2, "end_us: time": 4}
	for _, run := range []agentauth.Run{run, {Gateway: "gw-1", Epoch: 2}} {
		if err := w.Save(ctx, "acme", run, []agentauth.Report{report}); err != nil {
			t.Fatal(err)
		}
	}
	list, err = w.List(ctx, "acme", "", 1)
	want := agentauth.SampleCounts{Refused: map[string]int64{"range": 5, "end_us: time": 8}, Lost: map[string]int64{"spool_full": 4}}
	if err != nil || !reflect.DeepEqual(list[0].Samples, want) {
		t.Errorf("samples %+v, %v, want %+v", list, err, want)
	}
	if err := w.Save(ctx, "umbrella", run, []agentauth.Report{report}); err == nil {
		t.Error("a report about another tenant's agent was taken")
	}
}

// TestPepperState: the day of the one before counts from when the new one was
// first seen, by the database.
func TestPepperState(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	if seen, err := w.AnySeen(ctx); err != nil || !seen {
		t.Errorf("any seen: %v, %v", seen, err)
	}
	first, _, err := w.FirstSeen(ctx, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	again, age, err := w.FirstSeen(context.WithoutCancel(ctx), make([]byte, 16))
	if err != nil || !again.Equal(first) || age < 0 {
		t.Errorf("%v then %v, age %v, %v", first, again, age, err)
	}
}
