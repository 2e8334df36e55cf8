package main

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// planted is what one call tells of itself: who calls and a case number, which
// must stand nowhere in plaintext, and a zone, which must.
type planted struct{ id, user, secret, zone string }

const plantedTenant = "acme"

// plantedCalls are values that no compression can shorten: what a store writes
// of them for the first time stands in its files as it is, and the zones show
// that it does.
func plantedCalls(n int) []planted {
	rng := rand.New(rand.NewPCG(7, 7))
	word := func(prefix string) string {
		const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
		b := []byte(prefix)
		for range 28 {
			b = append(b, letters[rng.IntN(len(letters))])
		}
		return string(b)
	}
	calls := make([]planted, n)
	for i := range calls {
		calls[i] = planted{fmt.Sprintf("call-%d", i), word("u") + "@example.com", word("s"), word("z")}
	}
	return calls
}

// hidden are the values that may stand nowhere.
func hidden(calls []planted) (list []string) {
	for _, c := range calls {
		list = append(list, c.user, c.secret)
	}
	return list
}

func zones(calls []planted) (list []string) {
	for _, c := range calls {
		list = append(list, c.zone)
	}
	return list
}

// plantedWorld is a whole server on embedded engines, with its files.
type plantedWorld struct {
	*faultServer
	t     *testing.T
	api   *ledgerAPI
	calls []planted
}

// TestPlantedPersonsAndTagsStandNowhere sends persons and confidential tags
// through the whole path, and searches every file of every store, the records of
// every topic, the export, the answers and the log for them: before persons are
// erased, after it, and after the tenant's sealing root is destroyed.
func TestPlantedPersonsAndTagsStandNowhere(t *testing.T) {
	w := &plantedWorld{t: t, calls: plantedCalls(24)}
	w.faultServer = startFaultServer(t, func(s *smokeServer) { s.args = append(s.args, "--checkpoints-interval-seconds", "1") })
	w.api = &ledgerAPI{client.New(w.url(), w.token)}
	t.Cleanup(w.api.Close)
	t.Setenv("TALLYSTICK_URL", w.url())
	t.Setenv("TALLYSTICK_TOKEN", w.token)
	w.post("/v1/tenants:batchCreate", `{"tenant_ids":["`+plantedTenant+`"]}`, http.StatusOK)
	if out := w.cli(exitOK, "subject", "tags", "--tenant", plantedTenant, "--set", "case"); !strings.Contains(out, "case") {
		t.Fatalf("tags: %s", out)
	}
	w.send()
	w.drain(int64(len(w.calls)))
	w.export("before")
	pseudonyms := w.showAll()
	sealed := w.searchStopped("before erasing")
	if len(sealed.subjects) < len(w.calls) || len(sealed.tags) < len(w.calls) {
		t.Fatalf("the log holds %d sealed persons and %d sealed tags of %d calls", len(sealed.subjects), len(sealed.tags), len(w.calls))
	}

	w.mustStart(t)
	for _, p := range pseudonyms {
		w.cli(exitOK, "subject", "erase", p, "--tenant", plantedTenant, "--reason", "test", "--yes")
		if out := w.cli(exitOK, "subject", "show", p, "--tenant", plantedTenant); !strings.Contains(out, "erased") || strings.Contains(out, "identity") {
			t.Errorf("after erasing: %s", out)
		}
	}
	// Who was erased calls again: the identity does not come back.
	again := w.calls[0]
	again.id = "call-again"
	w.sendOne(again, http.StatusAccepted)
	w.drain(int64(len(w.calls)) + 1)
	if out := w.cli(exitOK, "subject", "show", pseudonyms[0], "--tenant", plantedTenant); !strings.Contains(out, "erased") || strings.Contains(out, again.user) {
		t.Errorf("an erased person who calls again: %s", out)
	}
	w.searchStopped("after erasing")

	w.mustStart(t)
	again.id = "call-last" // the edge knows the tenant when its root is destroyed
	w.sendOne(again, http.StatusAccepted)
	w.destroy(sealed)
	again.id = "call-late"
	w.sendOne(again, http.StatusServiceUnavailable)
	w.cli(exitOK, "ledger", "verify", "--tenant", plantedTenant)
	w.cli(exitNotFound, "subject", "entry", "3", "--tenant", plantedTenant)
	w.export("after")
	w.searchStopped("after destroying the root")
}

// export writes both forms of an export below the server's folder. A package ends
// at a signed checkpoint: it is asked for until one covers the newest entry.
func (w *plantedWorld) export(name string) {
	w.t.Helper()
	w.cli(exitOK, "ledger", "export", "--tenant", plantedTenant, "-o", filepath.Join(w.dir, name+".tsx"))
	var head pb.Head
	if err := w.api.call(w.t.Context(), "/v1/ledger/head?tenant_id="+plantedTenant, nil, &head); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		out, err := w.try("ledger", "export", "--evidence", "--tenant", plantedTenant, "--to", fmt.Sprint(head.Seq), "-o", filepath.Join(w.dir, name+".zip"))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no evidence package: %v\n%s", err, out)
		}
	}
}

// try runs a command of the program and gives what it printed.
func (w *plantedWorld) try(args ...string) (string, error) {
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(io.Discard)
	err := root.ExecuteContext(w.t.Context())
	return out.String(), err
}

// cli is try for a command whose exit code is known.
func (w *plantedWorld) cli(code int, args ...string) string {
	w.t.Helper()
	out, err := w.try(args...)
	got := exitOK
	if err != nil {
		got = exitCode(err)
	}
	if got != code {
		w.t.Fatalf("tallystick %s: exit code %d, want %d: %v\n%s", strings.Join(args, " "), got, code, err, out)
	}
	return out
}

func (w *plantedWorld) post(path, body string, want int) string {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.url()+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		w.t.Fatalf("%s: %d, want %d: %s (%v)", path, res.StatusCode, want, answer, err)
	}
	for _, s := range hidden(w.calls) {
		if bytes.Contains(answer, []byte(s)) {
			w.t.Errorf("%s answers with %q", path, s)
		}
	}
	return string(answer)
}

func (w *plantedWorld) json(c planted, more string) string {
	return fmt.Sprintf(`{"event_id":%q,"tenant_id":%q,"occurred_at":%q,"provider":"openai","model":"gpt-5","tokens":{"input":5},"user":%q,"tags":{"case":%q,"zone":%q}%s}`,
		c.id, plantedTenant, time.Now().UTC().Format(time.RFC3339), c.user, c.secret, c.zone, more)
}

func (w *plantedWorld) sendOne(c planted, want int) {
	w.t.Helper()
	w.post("/v1/events:batch", w.json(c, ""), want)
}

// send sends the calls; some of them twice, some with another body under the
// same id, and some that break a rule, whose refusal may not repeat them.
func (w *plantedWorld) send() {
	w.t.Helper()
	for i, c := range w.calls {
		w.sendOne(c, http.StatusAccepted)
		switch i % 8 {
		case 1: // another body: the rejection in the ledger tells no person
			other := c
			other.zone += "-other"
			w.sendOne(other, http.StatusAccepted)
		case 2:
			w.post("/v1/events:batch", w.json(c, `,"nonsense":1`), http.StatusBadRequest)
		case 3:
			c.user = strings.Repeat(c.user, 20)
			w.post("/v1/events:batch", w.json(c, ""), http.StatusBadRequest)
		}
	}
}

// drain waits until so many usage entries are in ClickHouse.
func (w *plantedWorld) drain(want int64) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var s pb.SummaryResponse
		err := w.api.call(w.t.Context(), "/v1/reports/summary:query", &pb.SummaryRequest{TenantId: plantedTenant, Window: &pb.Window{Name: "7d"}}, &s)
		if err == nil && s.GetTotals().GetRequests() >= want {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("ClickHouse has %v, want %d: %v", s.GetTotals(), want, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// showAll looks each person up by name and shows each again by pseudonym: what
// is nowhere in plaintext is still there for those who may see it.
func (w *plantedWorld) showAll() (pseudonyms []string) {
	w.t.Helper()
	for _, c := range w.calls {
		var s pb.Subject
		if err := w.api.call(w.t.Context(), "/v1/subjects:find", &pb.FindSubjectRequest{TenantId: plantedTenant, Identity: c.user}, &s); err != nil || s.State != "known" {
			w.t.Fatalf("find: %v, %v", &s, err)
		}
		if out := w.cli(exitOK, "subject", "show", s.Pseudonym, "--tenant", plantedTenant); !strings.Contains(out, c.user) {
			w.t.Fatalf("show: %s", out)
		}
		pseudonyms = append(pseudonyms, s.Pseudonym)
	}
	if out := w.cli(exitOK, "subject", "entry", "3", "--tenant", plantedTenant); !strings.Contains(out, "case = "+w.calls[0].secret) {
		w.t.Fatalf("entry: %s", out)
	}
	return pseudonyms
}

// sealedValues are the sealed forms that the log holds.
type sealedValues struct {
	subjects map[string][]byte // by pseudonym
	tags     map[string][]byte // by event id
}

// destroy destroys the sealing root beside the running server, and shows that no
// sealed form of what the log ever held opens any more.
func (w *plantedWorld) destroy(sealed *sealedValues) {
	w.t.Helper()
	ring, err := keyring.Open(filepath.Join(w.dataDir(), "keys"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer ring.Close()
	open := func(p keyring.Purpose, at keyring.Place, b []byte) error {
		_, err := ring.Open(nil, plantedTenant, p, at, b)
		return err
	}
	each := func(want error) {
		w.t.Helper()
		for pseudonym, b := range sealed.subjects {
			if err := open(keyring.SealSubject, keyring.Place{Table: "ledger.subject", Column: "identity", Row: pseudonym}, b); !errors.Is(err, want) {
				w.t.Errorf("person %s: %v, want %v", pseudonym, err, want)
			}
		}
		for id, b := range sealed.tags {
			if err := open(keyring.SealTags, keyring.Place{Table: "ledger.entry", Column: "sealed_tags", Row: id}, b); !errors.Is(err, want) {
				w.t.Errorf("tags of %s: %v, want %v", id, err, want)
			}
		}
	}
	each(nil)
	if err := ring.Destroy(plantedTenant); err != nil {
		w.t.Fatal(err)
	}
	each(keyring.ErrDestroyed)
}

// searchStopped stops the server, searches everything that it left behind and
// returns what the log holds sealed.
func (w *plantedWorld) searchStopped(when string) *sealedValues {
	w.t.Helper()
	if _, err := w.stop(time.Minute); err != nil {
		w.t.Fatal(err)
	}
	found := map[string]map[string]bool{} // place: value
	note := func(place, value string) {
		if found[place] == nil {
			found[place] = map[string]bool{}
		}
		found[place][value] = true
	}
	files, bytesRead := w.searchFiles(note)
	records, sealed := w.searchRecords(note)
	w.t.Logf("%s: searched %d files, %d bytes, and %d records", when, files, bytesRead, records)
	for _, s := range hidden(w.calls) {
		for place := range found {
			if found[place][s] {
				w.t.Errorf("%s: %s holds %q", when, place, s)
			}
		}
	}
	// The search would have found them: it finds what is not confidential.
	for _, place := range []string{"kafka", "postgres", "clickhouse", "before.tsx", "before.zip", "topic events", "topic entries"} {
		n := 0
		for _, z := range zones(w.calls) {
			if found[place][z] {
				n++
			}
		}
		if n < len(w.calls)*9/10 {
			w.t.Errorf("%s: %s holds %d of %d values that were not confidential: the search finds too little to mean anything", when, place, n, len(w.calls))
		}
	}
	return sealed
}

// searchFiles reads every file below the server's folder, its log and the
// exports among them, for all values in three forms. A place is the store that
// the file belongs to, or the file.
func (w *plantedWorld) searchFiles(note func(place, value string)) (files int, size int64) {
	w.t.Helper()
	forms := map[string][]string{}
	for _, s := range slices.Concat(hidden(w.calls), zones(w.calls)) {
		b := base64.StdEncoding.EncodeToString([]byte(s))
		forms[s] = []string{s, hex.EncodeToString([]byte(s)), strings.ToUpper(hex.EncodeToString([]byte(s))), b[:len(b)-4]}
	}
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := readPlain(path)
		if err != nil {
			return err
		}
		files, size = files+1, size+int64(len(b))
		place := d.Name()
		if rel, err := filepath.Rel(w.dataDir(), path); err == nil && !strings.HasPrefix(rel, "..") && strings.Contains(rel, string(filepath.Separator)) {
			place, _, _ = strings.Cut(rel, string(filepath.Separator))
		}
		for s, list := range forms {
			if slices.ContainsFunc(list, func(f string) bool { return bytes.Contains(b, []byte(f)) }) {
				note(place, s)
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return files, size
}

// readPlain reads a file, and of a package what is in it.
func readPlain(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil || filepath.Ext(path) != ".zip" {
		return b, err
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		plain, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		b = append(append(b, f.Name...), plain...)
	}
	return b, nil
}

// searchRecords looks at every record of every topic, decompressed.
func (w *plantedWorld) searchRecords(note func(place, value string)) (records int, sealed *sealedValues) {
	w.t.Helper()
	sealed = &sealedValues{map[string][]byte{}, map[string][]byte{}}
	eachRecord(w.t, w.dataDir(), func(topic string, _ int, r *kafka.Record) {
		records++
		for _, s := range slices.Concat(hidden(w.calls), zones(w.calls)) {
			if bytes.Contains(r.Value, []byte(s)) || bytes.Contains(r.Key, []byte(s)) {
				note(topic, s)
			}
		}
		if topic == "topic events" {
			sealed.add(w.t, r.Value)
		}
	})
	return records, sealed
}

// eachRecord opens the broker's files as a broker does and calls fn with every
// record of every topic and its partition.
func eachRecord(t *testing.T, dataDir string, fn func(topic string, partition int, r *kafka.Record)) {
	t.Helper()
	broker, err := embedded.StartKafka(t.Context(), embedded.KafkaOptions{DataDir: filepath.Join(dataDir, "kafka"), Authenticate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	own := broker.Credentials()
	cfg := kafka.Config{Brokers: broker.Brokers(), SASL: kafka.SASL{Mechanism: own.Mechanism, Username: own.User, Password: own.Password}}
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	topics := cfg.Topics()
	for name, topic := range map[string]string{
		"topic events": topics.Events, "topic entries": topics.Entries, "topic deadletter": topics.DeadLetter, "topic telemetry": topics.Telemetry,
	} {
		ends, err := admin.EndOffsets(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		for p, end := range ends {
			err := kafka.ReadRange(t.Context(), cfg, topic, int32(p), kafka.Position{}, end, func(recs []kafka.Record) error {
				for i := range recs {
					fn(name, p, &recs[i])
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// add keeps what a record holds sealed.
func (s *sealedValues) add(t *testing.T, value []byte) {
	t.Helper()
	rec, err := event.SplitRecord(value)
	if err != nil {
		t.Fatal(err)
	}
	var e event.Event
	if rec.Kind != event.UsageRecord || e.DecodeProto(bytes.Clone(rec.Body), event.Log) != nil {
		return
	}
	if e.User != "" || len(rec.Subject) == 0 || len(e.SealedTags) == 0 {
		b, _ := json.Marshal(e.Tags)
		t.Errorf("event %s: %d sealed bytes of a person, %d of tags, tags %s", e.ID, len(rec.Subject), len(e.SealedTags), b)
	}
	s.subjects[e.UserPseudonym] = bytes.Clone(rec.Subject)
	s.tags[e.ID] = bytes.Clone(e.SealedTags)
}
