package main

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/checkpoint/witness"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"
	"github.com/tallystick/tallystick/processors/plan"
)

// What the original ledger of the tamper tests holds. Three waves are under
// checkpoints; the fourth came after the last one.
const (
	tamperWave    = 110 // events of a tenant in a wave
	tamperCovered = 3   // waves under checkpoints
	tamperWaves   = 4
	tamperName    = "tamper.example"
)

var tamperTenants = []string{"acme", "umbrella"}

// stores are the places that an attacker reaches: the database, and the
// directory of checkpoints on the same disk.
type stores struct {
	adminDSN string
	dir      string
}

// tamperWorld is an installation that ran, on real engines, and was stopped.
// Nothing writes to the original any more: each attempt gets a copy.
type tamperWorld struct {
	t        *testing.T
	ring     *keyring.Ring
	kafka    kafka.Config
	topic    ledger.Topic
	logins   map[postgres.Role]string // of the original; good for copies too
	signer   *postgres.Signer
	reader   *clickhouse.DB
	chWriter *clickhouse.DB
	now      stores
	earlier  stores // after the second wave
	trusted  verify.VerifierKeys
	witness  *httptest.Server
	cosigner checkpoint.Witness
	kept     map[string][]byte // the newest signed note of each tenant, as an auditor keeps it
}

func newTamperWorld(t *testing.T) *tamperWorld {
	t.Helper()
	w := &tamperWorld{t: t, kept: make(map[string][]byte)}
	broker := testenv.Kafka(t)
	w.now = stores{testenv.Postgres(t), filepath.Join(t.TempDir(), "checkpoints")}
	cfg, err := config.Load(config.Sources{Environ: append(config.FreePorts(),
		"TALLYSTICK_DATA_DIR="+t.TempDir(), "TALLYSTICK_NAME="+tamperName, "TALLYSTICK_CHECKPOINTS_DIR="+w.now.dir,
		"TALLYSTICK_CHECKPOINTS_INTERVAL_SECONDS=3600",
	)})
	if err != nil {
		t.Fatal(err)
	}
	// The listeners are those of the embedded mode, the engines this package's own.
	cfg.Postgres.DSN, cfg.ClickHouse.DSN = config.Secret(w.now.adminDSN), config.Secret(testenv.ClickHouse(t))
	cfg.Kafka.Brokers, cfg.Kafka.TopicPrefix, cfg.Kafka.Partitions, cfg.Kafka.Replication = broker.Seeds, broker.TopicPrefix, 2, 1
	cfg.Kafka.AllowPlaintext = broker.External
	cfg.Kafka.SASL.Mechanism, cfg.Kafka.SASL.Username, cfg.Kafka.SASL.Password = broker.SASLMechanism, broker.SASLUser, config.Secret(broker.SASLPassword)
	w.run(cfg, 0, tamperCovered-1)
	// A backup, taken while the program rests.
	w.earlier = stores{dir: filepath.Join(t.TempDir(), "checkpoints")}
	copyFolder(t, w.earlier.dir, w.now.dir)
	w.earlier.adminDSN, _ = testenv.PostgresCopy(t, w.now.adminDSN)
	w.run(cfg, tamperCovered-1, tamperWaves)
	w.take(cfg)
	w.pin()
	w.startWitness()
	return w
}

// run lets the program ledger some waves.
func (w *tamperWorld) run(cfg *config.Config, from, to int) {
	t := w.t
	t.Helper()
	a := newApp(cfg, discardLog())
	if err := a.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	token, err := authn.LoadToken(a.tokenPath())
	if err != nil {
		t.Fatal(err)
	}
	api := &tamperAPI{t: t, url: "http://" + a.httpAddr, token: token}
	if from == 0 {
		api.post("/v1/tenants:batchCreate", map[string]any{"tenant_ids": tamperTenants}, http.StatusOK)
		for _, id := range tamperTenants {
			api.confidential(id, "case")
		}
	}
	for wave := from; wave < to; wave++ {
		for _, id := range tamperTenants {
			api.wave(id, wave)
		}
		api.drained(wave)
		if wave+1 == tamperCovered {
			// The signing parts end here, and sign as they do: what follows is under no
			// checkpoint.
			for _, p := range a.parts {
				if strings.HasPrefix(p.name, "checkpoints") {
					p.cancel()
					<-p.done
				}
			}
		}
	}
	w.topic, w.kafka = a.topic, a.kafkaCfg
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// take opens what is needed to look at the stores.
func (w *tamperWorld) take(cfg *config.Config) {
	t := w.t
	var err error
	if w.ring, err = keyring.Open(filepath.Join(cfg.DataDir, "keys"), discardLog()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ring.Close() })
	if w.logins, w.signer, err = provision(t.Context(), w.now.adminDSN, w.ring); err != nil {
		t.Fatal(err)
	}
	for role, db := range map[clickhouse.Role]**clickhouse.DB{clickhouse.Reader: &w.reader, clickhouse.Writer: &w.chWriter} {
		if *db, err = clickhouse.Open(t.Context(), cfg.ClickHouse.DSN.Reveal(), role); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*db).Close() })
	}
}

// pin keeps what an auditor has from better days: the public keys, and the
// newest checkpoints.
func (w *tamperWorld) pin() {
	var text bytes.Buffer
	dir := w.openDir(w.now)
	for _, id := range tamperTenants {
		fmt.Fprintln(&text, w.vkey(id))
		_, signed, ok, err := dir.Newest(checkpoint.LedgerLog, tenant.ID(id))
		if err != nil || !ok {
			w.t.Fatalf("tenant %s has no checkpoint: %v", id, err)
		}
		w.kept[id] = []byte(signed)
	}
	var err error
	if w.trusted, err = verify.ParseKeys(text.Bytes()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *tamperWorld) vkey(id string) string {
	key, err := w.ring.SigningKey(tenant.ID(id), w.ring.Epoch(tenant.ID(id), keyring.Checkpoint))
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := note.NewEd25519VerifierKey(checkpoint.Origin(tamperName, checkpoint.LedgerLog, tenant.ID(id)), key.Public().(ed25519.PublicKey))
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// startWitness starts a witness and shows it the newest checkpoints.
func (w *tamperWorld) startWitness() {
	t := w.t
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var logs []note.Verifier
	for _, id := range tamperTenants {
		v, err := note.NewVerifier(w.vkey(id))
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, v)
	}
	server, err := witness.New(witness.Options{Name: "witness.example", Key: key, Logs: logs, StateDir: t.TempDir()}, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	w.witness = httptest.NewServer(server.Handler())
	t.Cleanup(func() {
		w.witness.Close()
		server.Close()
	})
	if w.cosigner, err = checkpoint.ParseWitness(server.VKey() + " " + w.witness.URL); err != nil {
		t.Fatal(err)
	}
	for _, id := range tamperTenants {
		if status, body := w.submit(w.kept[id], 0); status != http.StatusOK {
			t.Fatalf("the witness answers %d to the first checkpoint: %s", status, body)
		}
	}
}

// submit shows the witness a checkpoint that claims to continue the one of size
// old, without a proof: good enough for the first, and for what it must refuse.
func (w *tamperWorld) submit(signed []byte, old int64) (int, string) {
	w.t.Helper()
	resp, err := http.Post(w.witness.URL+"/add-checkpoint", "text/plain", bytes.NewReader(checkpoint.AppendRequest(nil, old, nil, string(signed))))
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// tamperAPI speaks to the running program as its users do.
type tamperAPI struct {
	t          *testing.T
	url, token string
}

func (a *tamperAPI) do(method, path string, body any, want int) []byte {
	a.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		a.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, bytes.NewReader(b))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if resp.StatusCode != want {
		a.t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, answer)
	}
	return answer
}

func (a *tamperAPI) post(path string, body any, want int) {
	a.t.Helper()
	a.do(http.MethodPost, path, body, want)
}

// confidential has a tenant keep a tag confidential.
func (a *tamperAPI) confidential(id, key string) {
	a.t.Helper()
	a.post("/v1/confidential-tags", map[string]any{"tenant_id": id, "tag_keys": []string{key}}, http.StatusOK)
}

// wave sends a tenant's events: priced and unpriced, with persons and with a tag
// that is kept confidential, and corrections of the wave before.
func (a *tamperAPI) wave(id string, wave int) {
	a.t.Helper()
	at := time.Now().UTC().Truncate(time.Hour).Add(-time.Duration(2*(tamperWaves-wave)) * time.Hour)
	var events []map[string]any
	for n := range tamperWave {
		e := map[string]any{
			"event_id": fmt.Sprintf("%s-%d-%d", id, wave, n), "tenant_id": id, "occurred_at": at.Add(time.Duration(n) * time.Minute).Format(time.RFC3339),
			"producer_id": "proxy-1", "producer_epoch": "1", "producer_seq": fmt.Sprint(wave*tamperWave + n + 1),
			"provider": "openai", "model": "gpt-4o", "status": "ok", "team": "search", "user": fmt.Sprintf("person-%d@%s.example", n%3, id),
			"tags":   map[string]string{"case": fmt.Sprintf("secret-%d", n), "app": "web"},
			"tokens": map[string]string{"input": fmt.Sprint(1000 + n), "output": fmt.Sprint(200 + wave)},
		}
		switch n % 10 {
		case 3:
			e["model"] = "no-such-model"
		case 7:
			if wave > 0 {
				e["corrects"], e["correction_reason"] = fmt.Sprintf("%s-%d-%d", id, wave-1, n-1), "provider restated"
			}
		}
		events = append(events, e)
	}
	a.post("/v1/events:batch", map[string]any{"events": events}, http.StatusAccepted)
}

// drained waits until every event so far can be seen in the reports.
func (a *tamperAPI) drained(wave int) {
	a.t.Helper()
	c := client.New(a.url, a.token)
	defer c.Close()
	deadline := time.Now().Add(time.Minute)
	for {
		done := true
		for _, id := range tamperTenants {
			h, err := c.Head(a.t.Context(), id)
			if client.StatusOf(err) == http.StatusNotFound {
				done = false // nothing of the tenant is ledgered yet
				continue
			}
			if err != nil {
				a.t.Fatal(err)
			}
			sum, err := c.Summary(a.t.Context(), client.Query{TenantID: id, Window: client.Window{Name: "7d"}})
			if err != nil {
				a.t.Fatal(err)
			}
			if h.Seq < client.Int((wave+1)*tamperWave) || sum.Coverage.ToSeq < h.Seq {
				done = false
			}
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatal("the waves do not drain")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// victim is a copy of the stores that is tampered with and then looked at.
type victim struct {
	*tamperWorld
	stores
	admin *sql.DB
	drop0 func() // of the database
}

// drop takes the copy away.
func (v *victim) drop() {
	v.drop0()
	os.RemoveAll(v.dir)
}

// victim copies both stores.
func (w *tamperWorld) victim(from stores) *victim {
	w.t.Helper()
	dsn, drop := testenv.PostgresCopy(w.t, from.adminDSN)
	v := &victim{tamperWorld: w, stores: stores{dsn, filepath.Join(w.t.TempDir(), "checkpoints")}}
	copyFolder(w.t, v.dir, from.dir)
	admin, err := sql.Open("pgx", dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	v.admin, v.drop0 = admin, func() {
		admin.Close()
		drop()
	}
	return v
}

func copyFolder(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// exec changes something as superuser.
func (v *victim) exec(statement string, args ...any) {
	v.t.Helper()
	res, err := v.admin.Exec(statement, args...)
	if err != nil {
		v.t.Fatalf("%s: %v", statement, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 && !strings.HasPrefix(statement, "alter") {
		v.t.Fatalf("%s changed nothing: %v", statement, err)
	}
}

// as opens the copy as a role of the program.
func (v *victim) as(role postgres.Role) *postgres.DB {
	v.t.Helper()
	u, err := url.Parse(v.logins[role])
	if err != nil {
		v.t.Fatal(err)
	}
	copied, err := url.Parse(v.adminDSN)
	if err != nil {
		v.t.Fatal(err)
	}
	u.Path = copied.Path
	db, err := postgres.Open(v.t.Context(), u.String(), v.signer, postgres.Options{MaxConns: 6})
	if err != nil {
		v.t.Fatal(err)
	}
	return db
}

func (w *tamperWorld) openDir(s stores) *checkpoint.Dir {
	w.t.Helper()
	dir, err := checkpoint.OpenDir(s.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// caught is what a detector found.
type caught struct {
	Detector string
	Tenant   string
	Seq      int64
	Message  string
}

// inspect runs every detector there is over the copy, in the order in which an
// auditor would.
func (v *victim) inspect() (found []caught) {
	v.t.Helper()
	app, many := v.as(postgres.RoleApp), v.as(postgres.RoleLedger)
	defer app.Close()
	defer many.Close()
	for _, id := range tamperTenants {
		found = append(found, v.verify(app, id)...)
	}
	found = append(found, v.signers(app, many)...)
	found = append(found, v.witnessed()...)
	found = append(found, v.positions(many)...)
	b := v.beside(app)
	for _, id := range tamperTenants {
		faults, err := b.check(v.t.Context(), tenant.ID(id))
		if err != nil && len(found) == 0 {
			v.t.Fatal(err)
		}
		for _, f := range faults {
			found = append(found, caught{f.Detector, id, f.Seq, f.Message})
		}
	}
	return found
}

// verify is what the server does for `tallystick ledger verify`, and once more
// with the checkpoint that an auditor kept elsewhere.
func (v *victim) verify(app *postgres.DB, id string) (found []caught) {
	v.t.Helper()
	ctx := v.t.Context()
	o, err := ledgerVerifier{app, v.ring, &publishedNotes{app, v.ring, tamperName, v.dir}}.options(ctx, tenant.ID(id))
	if err != nil {
		v.t.Fatal(err)
	}
	o.Workers = 2
	run := func(word func(*verify.Report) string) bool {
		r, err := verify.Verify(ctx, pgread.New(app, tenant.ID(id)), o)
		if err != nil {
			v.t.Fatal(err)
		}
		if r.Verdict != verify.Intact {
			found = append(found, caught{word(&r), id, r.FirstBad, string(r.Reason) + ": " + r.Message})
		}
		return r.Verdict == verify.Intact
	}
	if !run(func(r *verify.Report) string { return cmp.Or(string(r.Detector), string(r.Verdict)) }) {
		return found
	}
	kept, err := verify.OpenCheckpoint(v.kept[id], v.trusted, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	o.Published, o.Checkpoints = nil, []verify.Checkpoint{kept}
	run(func(*verify.Report) string { return "kept checkpoint" })
	return found
}

func sizeOfNote(path string) (n int64) {
	_, _ = fmt.Sscanf(strings.TrimLeft(filepath.Base(path), "0"), "%d", &n)
	return n
}

// signers is what the signing part notices when it next works, and what the
// writer notices when it next takes a head over.
func (v *victim) signers(app, many *postgres.DB) (found []caught) {
	v.t.Helper()
	ids := make([]tenant.ID, len(tamperTenants))
	for i, id := range tamperTenants {
		ids[i] = tenant.ID(id)
	}
	c := checkpoint.New(pglog.NewLedger(many, app), pgstore.NewCheckpoints(many), v.openDir(v.stores), signingKeys{v.ring},
		checkpoint.Options{Installation: tamperName, Tenants: func() []tenant.ID { return ids }}, discardLog())
	if err := c.Round(v.t.Context()); err != nil {
		found = append(found, caught{"checkpoints", "", 0, err.Error()})
	}
	for _, f := range c.Status().Faults {
		found = append(found, caught{"checkpoints", string(f.Tenant), f.Seq, f.Reason + ": " + f.Detail})
	}
	return found
}

// witnessed shows the witness the newest checkpoint of the directory, which it
// has seen, unless somebody rolled it back or forked it.
func (v *victim) witnessed() (found []caught) {
	v.t.Helper()
	dir := v.openDir(v.stores)
	for _, id := range tamperTenants {
		kept, err := verify.OpenCheckpoint(v.kept[id], v.trusted, nil)
		if err != nil {
			v.t.Fatal(err)
		}
		signed, err := dir.Read(checkpoint.LedgerLog, tenant.ID(id), kept.Size)
		if errors.Is(err, os.ErrNotExist) {
			found = append(found, caught{"witness", id, kept.Size, "the checkpoint that the witness has is not in the directory"})
			continue
		}
		if err != nil {
			v.t.Fatal(err)
		}
		if status, body := v.submit([]byte(signed), kept.Size); status != http.StatusOK {
			found = append(found, caught{"witness", id, kept.Size, fmt.Sprintf("%d %s", status, strings.TrimSpace(body))})
		}
	}
	return found
}

// positions is what the writer notices when it takes the partitions over.
func (v *victim) positions(many *postgres.DB) (found []caught) {
	v.t.Helper()
	store := pgstore.New(many)
	for p := range v.topic.Partitions {
		if _, err := store.Assign(v.t.Context(), v.topic, p); err != nil {
			if !errors.Is(err, ledger.ErrPosition) {
				v.t.Fatal(err)
			}
			found = append(found, caught{"offset", fmt.Sprint("partition ", p), 0, err.Error()})
		}
	}
	return found
}

func (v *victim) beside(app *postgres.DB) *beside {
	v.t.Helper()
	admin, err := kafka.NewAdmin(v.kafka)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(admin.Close)
	return &beside{
		app: app, ring: v.ring, kafka: v.kafka,
		offsets: admin,
		reports: analytics.NewReporter(v.reader, plan.NewCoverage(app), time.Now),
	}
}
