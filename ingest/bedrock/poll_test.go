package bedrock

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var admin = authn.Principal{Subject: "tok_admin", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}

// topic is a Log in memory.
type topic struct {
	mu     sync.Mutex // protects what follows
	events []event.Event
	raw    bytes.Buffer
	before func() error // asked before each batch
}

func (l *topic) ProduceBatch(_ context.Context, recs []kafka.Record, results []kafka.Result) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.before != nil {
		if err := l.before(); err != nil {
			for i := range results {
				results[i].Err = err
			}
			return err
		}
	}
	for _, r := range recs {
		l.raw.Write(r.Value)
		rec, err := event.SplitRecord(bytes.Clone(r.Value))
		if err != nil {
			return err
		}
		if rec.Kind != event.UsageRecord {
			continue
		}
		var e event.Event
		if err := e.DecodeProto(rec.Body, event.Log); err != nil {
			return err
		}
		l.events = append(l.events, e)
	}
	return nil
}

// ids counts the events by id.
func (l *topic) ids() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for i := range l.events {
		n[l.events[i].ID]++
	}
	return n
}

// world is an edge over a log in memory, and connections in Postgres.
type world struct {
	log   *topic
	edge  *ingest.Edge
	ring  *keyring.Ring
	store *connections.Store
	dir   string
	said  bytes.Buffer // our own log
	asked Calls
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{log: &topic{}, dir: t.TempDir()}
	ring := testenv.Ring(t, "acme", "umbrella")
	w.ring = ring
	var err error
	w.store = connections.NewStore(testenv.MigratedPostgres(t).Open(t, postgres.RoleApp), ring)
	w.edge, err = ingest.New(w.log, ring, authn.NewStatic("token", admin), ingest.Options{
		Topic: "events", EdgeID: "test", MaxAge: 10 * 365 * 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// poller is one process.
func (w *world) poller() *Poller {
	p := &Poller{
		Store: w.store, Sink: w.edge, Keys: w.ring, Settings: w.store, Calls: w.asked, Tenants: func() []tenant.ID { return []tenant.ID{"acme"} },
		Open: func(_ context.Context, c *connections.Bedrock) (Source, error) {
			return OpenDirectory(w.dir, c.Place.Prefix)
		},
		Interval: time.Nanosecond, Log: slog.New(slog.NewTextHandler(&w.said, nil)), lease: 200 * time.Millisecond,
	}
	p.begin()
	return p
}

func (w *world) connect(t *testing.T) connections.Bedrock {
	t.Helper()
	c, err := w.store.Create(t.Context(), admin, connections.New{Tenant: "acme", Name: "logs", Place: connections.Place{Source: connections.Directory, Prefix: "logs"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(w.dir, "logs", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) write(t *testing.T, name string, content []byte) {
	t.Helper()
	if strings.HasSuffix(name, ".gz") {
		var z bytes.Buffer
		g := gzip.NewWriter(&z)
		if _, err := g.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		content = z.Bytes()
	}
	path := filepath.Join(w.dir, "logs", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (w *world) state(t *testing.T) connections.Bedrock {
	t.Helper()
	list, err := w.store.List(t.Context(), "acme", "", 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d connections, %v", len(list), err)
	}
	return list[0]
}

// once does what Run does once. The interval is nothing, so it goes on until the
// caller says that it is enough.
func once(t *testing.T, p *Poller) error {
	t.Helper()
	l, ok, err := p.Store.Lease(t.Context(), "acme", p.owner, p.lease)
	if err != nil || !ok {
		t.Fatalf("no lease: %v", err)
	}
	err = p.pass(t.Context(), &l)
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if err := p.Store.Finish(t.Context(), &l, failure, 0); err != nil {
		t.Fatal(err)
	}
	return err
}

// records are n records with request ids of their own.
func records(prefix string, n int) []byte {
	var b bytes.Buffer
	for i := range n {
		b.Write(line(func(r map[string]any) { r["requestId"] = fmt.Sprintf("%s-%d", prefix, i) }))
	}
	return b.Bytes()
}

func TestConnectionIsReadOnceAndGoesOn(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	w.write(t, "a.jsonl", records("a", 3))
	w.write(t, "sub/b.json.gz", append(records("b", 600), "no record\n"...))
	w.write(t, ".hidden", records("hidden", 1))
	w.write(t, "sub/data/c_output.json", []byte(`{"usage":{}}`))
	p := w.poller()
	if err := once(t, p); err != nil {
		t.Fatal(err)
	}
	if err := once(t, p); err != nil {
		t.Fatal(err)
	}
	check := func(events, objects, malformed int64) {
		t.Helper()
		s := w.state(t).State
		if n := int64(len(w.log.events)); n != events || s.Accepted != events || s.Records != events || s.Objects != objects || s.Malformed != malformed || s.Failure != "" || s.SucceededAt.IsZero() {
			t.Errorf("%d events, state %+v; want %d of %d objects, %d malformed", n, s, events, objects, malformed)
		}
	}
	check(603, 2, 1)
	w.write(t, "c.jsonl", records("c", 2))
	cut := records("d", 2)
	w.write(t, "d.gz", cut)
	whole, err := os.ReadFile(filepath.Join(w.dir, "logs", "d.gz"))
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "d.bin", whole[:len(whole)/2]) // its name says nothing, its bytes do
	if err := os.Remove(filepath.Join(w.dir, "logs", "d.gz")); err != nil {
		t.Fatal(err)
	}
	if err := once(t, w.poller()); err != nil {
		t.Fatal(err)
	}
	s := w.state(t).State
	if s.Damaged != 1 || s.Accepted < 605 {
		t.Errorf("a damaged object: %+v", s)
	}
	for id, n := range w.log.ids() {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
	for _, e := range w.log.events {
		if e.User != "" || len(e.UserPseudonym) != 32 {
			t.Fatalf("the caller is not hidden: %q %q", e.User, e.UserPseudonym)
		}
	}
	for _, text := range []string{prose, "plum cake", "i-0abc", base64.StdEncoding.EncodeToString([]byte(prose))} {
		if bytes.Contains(w.log.raw.Bytes(), []byte(text)) || strings.Contains(w.said.String(), text) {
			t.Errorf("%q left the decoder", text)
		}
	}
}

// A process that is gone in the middle of an object leaves a lease behind. When it
// is over another one reads that object again, and the ids are the same.
func TestAnotherProcessGoesOn(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	for i := range 4 {
		w.write(t, fmt.Sprintf("%d.jsonl", i), records(fmt.Sprint("r", i), batchEvents+10))
	}
	ctx, cancel := context.WithCancel(t.Context())
	batches := 0
	w.log.before = func() error {
		if batches++; batches == 4 { // of the second object
			cancel()
			return kafka.ErrClosed
		}
		return nil
	}
	dead := w.poller()
	if err := dead.tenant(ctx, "acme"); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first process: %v", err)
	}
	w.log.before = nil
	next := w.poller()
	if _, ok, err := w.store.Lease(t.Context(), "acme", next.owner, next.lease); err != nil || ok {
		t.Fatalf("a lease was given twice: %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for ; w.state(t).State.Objects < 4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not read: %+v", w.state(t).State)
		}
		l, ok, err := w.store.Lease(t.Context(), "acme", next.owner, next.lease)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			if err := next.pass(t.Context(), &l); err != nil {
				t.Fatal(err)
			}
		}
	}
	ids := w.log.ids()
	twice := 0
	for _, n := range ids {
		if n > 2 {
			t.Errorf("sent %d times", n)
		}
		twice += n - 1
	}
	if len(ids) != 4*(batchEvents+10) || twice > batchEvents {
		t.Errorf("%d ids, %d sent twice; want %d and no more than of one object", len(ids), twice, 4*(batchEvents+10))
	}
	// The one that was gone comes back, and may not move the cursor any more.
	stale := connections.Lease{Bedrock: w.state(t), Owner: dead.owner}
	if err := w.store.Done(t.Context(), &stale, time.Second, connections.Progress{}); !errors.Is(err, connections.ErrLost) {
		t.Errorf("the old holder: %v", err)
	}
}

// Two processes share the connections, and read nothing twice.
func TestTwoProcesses(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	for i := range 20 {
		w.write(t, fmt.Sprintf("%d.jsonl", i), records(fmt.Sprint("r", i), 5))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var both sync.WaitGroup
	for range 2 {
		p := w.poller()
		p.lease = time.Minute
		both.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(30 * time.Second); w.state(t).State.Objects < 20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("not read")
			break
		}
	}
	cancel()
	both.Wait()
	for id, n := range w.log.ids() {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
}

// While the log is away nothing is skipped; the cursor stands where it stood.
func TestNothingIsSkippedWhileTheLogIsAway(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	w.write(t, "a.jsonl", records("a", 3))
	away := errors.New("the broker is away")
	w.log.before = func() error { return away }
	p := w.poller()
	job := func() error {
		l, ok, err := w.store.Lease(t.Context(), "acme", p.owner, p.lease)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		src, err := p.Open(t.Context(), &l.Bedrock)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		j, err := NewJob(t.Context(), w.ring, w.store, "acme", authn.Principal{Subject: "c", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest})
		if err != nil {
			t.Fatal(err)
		}
		err = src.Objects(t.Context(), cursors{w.store, &l}, func(o Object) error { return p.object(t.Context(), &l, src, &j, o) })
		if err := w.store.Finish(t.Context(), &l, fmt.Sprint(err), 0); err != nil {
			t.Fatal(err)
		}
		return err
	}
	if err := job(); !errors.Is(err, ingest.ErrUnavailable) {
		t.Fatalf("%v, want %v", err, ingest.ErrUnavailable)
	}
	if s := w.state(t).State; s.Objects != 0 || s.Failures != 1 || s.Failure == "" {
		t.Errorf("state %+v", s)
	}
	w.log.before = nil
	if err := job(); err != nil {
		t.Fatal(err)
	}
	if n := len(w.log.ids()); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

// The tenant's switch turns metadata off, and attribution by model and cost stays.
func TestMetadataSwitch(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	w.write(t, "a.jsonl", records("a", 1))
	if err := w.store.SetRequestMetadata(t.Context(), admin, "acme", false); err != nil {
		t.Fatal(err)
	}
	if err := once(t, w.poller()); err != nil {
		t.Fatal(err)
	}
	e := w.log.events[0]
	if e.Team+e.Service+e.UserPseudonym != "" || len(e.Tags) != 0 || e.Tokens.Total() != 14 || e.LatencyMicros == 0 || e.Model == "" {
		t.Errorf("%+v", e)
	}
	if bytes.Contains(w.log.raw.Bytes(), []byte("checkout")) || bytes.Contains(w.log.raw.Bytes(), []byte("111122223333")) {
		t.Error("metadata is in the log")
	}
}

// A large answer is followed for its usage where the record states none, and
// nothing outside the folder is ever opened.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	large := func(ref string, counts bool) []byte {
		return line(func(r map[string]any) {
			out := map[string]any{"outputBodyS3Path": ref}
			if counts {
				out["outputTokenCount"] = 77
			} else {
				delete(r["input"].(map[string]any), "inputTokenCount")
			}
			r["output"], r["requestId"] = out, ref
		})
	}
	w.write(t, "data/x_output.json.gz", []byte(`{"usage":{"inputTokens":1000,"outputTokens":200,"totalTokens":1200},"metrics":{"latencyMs":5000},"output":"`+strings.Repeat("cake ", 10_000)+`"}`))
	w.write(t, "a.jsonl", slices.Concat(large("s3://b/p/data/x_output.json.gz", false), large("s3://b/p/data/gone.json.gz", false),
		large("s3://b/p/data/x_output.json.gz?", true), large("s3://b/../../../etc/passwd", false)))
	if err := once(t, w.poller()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range w.log.events {
		got = append(got, fmt.Sprintf("%d %t %d %s", e.Tokens.Total(), e.Estimated, e.LatencyMicros, doubt(&e)))
	}
	want := []string{"1200 false 5000000 -", "15 true 0 no_usage", "86 false 0 -", "15 true 0 no_usage"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// A directory is never left, whatever its links say.
func TestDirectoryIsNeverLeft(t *testing.T) {
	w := newWorld(t)
	w.connect(t)
	outside := filepath.Join(t.TempDir(), "outside.jsonl")
	if err := os.WriteFile(outside, records("x", 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(w.dir, "logs", "link.jsonl")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(w.dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := once(t, w.poller()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.log.ids()); n != 0 {
		t.Errorf("%d events from outside", n)
	}
	for _, name := range []string{"..", "elsewhere", "../logs"} {
		if d, err := OpenDirectory(w.dir, name); err == nil {
			_ = d.Close()
			t.Errorf("%s was opened", name)
		}
	}
	d, err := OpenDirectory(w.dir, "logs")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if f, err := d.Open(t.Context(), Object{Name: "link.jsonl"}); err == nil {
		_ = f.Close()
		t.Error("a link out of the folder was opened")
	}
}
