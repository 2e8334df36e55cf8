package checkpoint_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/witness"
)

// host is a witness on another host.
type host struct {
	*witness.Witness
	srv      *httptest.Server
	requests atomic.Int64
	away     atomic.Bool
}

func newHost(t *testing.T, w *world, ids ...tenant.ID) *host {
	t.Helper()
	h := &host{}
	var logs []note.Verifier
	for _, id := range ids {
		v, err := note.NewVerifier(w.vkey(id, 1))
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, v)
	}
	seed := sha256.Sum256([]byte("witness"))
	var err error
	h.Witness, err = witness.New(witness.Options{Name: "witness.example/w1", Key: ed25519.NewKeyFromSeed(seed[:]), Logs: logs, StateDir: t.TempDir()}, discard())
	if err != nil {
		t.Fatal(err)
	}
	h.srv = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		if h.away.Load() {
			http.Error(rw, "away", http.StatusServiceUnavailable)
			return
		}
		h.Handler().ServeHTTP(rw, r)
	}))
	t.Cleanup(func() { h.srv.Close(); h.Close() })
	return h
}

func (h *host) config(t *testing.T) checkpoint.Witness {
	t.Helper()
	c, err := checkpoint.ParseWitness(h.VKey() + " " + h.srv.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// until runs the checkpointer until the condition holds.
func (w *world) until(what string, c *checkpoint.Checkpointer, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) { // polling a server
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %+v", what, c.Status())
		}
	}
}

func TestWitnessesCosign(t *testing.T) {
	w := newWorld(t)
	h := newHost(t, w, "acme")
	w.options.Witnesses = []checkpoint.Witness{h.config(t)}
	w.options.Interval = 20 * time.Millisecond
	for _, n := range []int{300, 400, 1} {
		w.append("acme", n)
		c := w.signer()
		w.until("no cosignature", c, func() bool {
			p := w.newest("acme")
			return p.Size == w.heads["acme"].Seq && len(p.Cosignatures) == 1
		})
		w.clean(c)
		p := w.newest("acme")
		v, _ := note.NewVerifier(w.vkey("acme", 1))
		n, err := note.Open([]byte(p.Note+p.Cosignatures[0]), note.VerifierList(v, h.config(t).Key))
		if err != nil || len(n.Sigs) != 2 {
			t.Fatalf("%+v, %v", n, err)
		}
		if files, err := filepath.Glob(filepath.Join(w.dir.Path(), "ledger", "acme", "*.????????")); err != nil || len(files) == 0 {
			t.Fatalf("no cosignature in the directory: %v", err)
		}
	}
}

// TestWitnessRefuses: a rollback of store and directory together, which nothing
// here can see, raises an alarm that names the sizes.
func TestWitnessRefuses(t *testing.T) {
	w := newWorld(t)
	h := newHost(t, w, "acme")
	w.options.Witnesses = []checkpoint.Witness{h.config(t)}
	w.options.Interval = 20 * time.Millisecond
	w.append("acme", 300)
	w.append("globex", 5) // not known to the witness
	w.until("no cosignature", w.signer(), func() bool { return len(w.newest("acme").Cosignatures) == 1 })

	w.dir, _ = checkpoint.OpenDir(t.TempDir())
	w.exec(`delete from ledger.cosignature`)
	w.exec(`delete from ledger.checkpoint`)
	w.exec(`delete from ledger.tree_tile`)
	w.exec(`delete from ledger.entry_0 where tenant_id = 'acme' and seq > 100`)
	w.exec(`update ledger.head set seq = 100, chain = (select chain from ledger.entry_0 where tenant_id = 'acme' and seq = 100) where tenant_id = 'acme'`)
	c := w.signer()
	w.until("no alarm", c, func() bool { return len(c.Status().Alarms) == 2 })
	alarms := strings.Join(c.Status().Alarms, "\n")
	for _, want := range []string{"witness witness.example/w1: tenant acme", "has seen size 300, ours is 100", "tenant globex: it refuses (404)"} {
		if !strings.Contains(alarms, want) {
			t.Errorf("alarms do not say %q:\n%s", want, alarms)
		}
	}
}

// TestWitnessAway: a witness that is away is asked again with the next checkpoint,
// and the alarm ends when it answers.
func TestWitnessAway(t *testing.T) {
	w := newWorld(t)
	h := newHost(t, w, "acme")
	h.away.Store(true)
	w.options.Witnesses = []checkpoint.Witness{h.config(t)}
	w.options.Interval = 20 * time.Millisecond
	w.append("acme", 10)
	c := w.signer()
	w.until("no alarm", c, func() bool { return len(c.Status().Alarms) == 1 })
	if w.newest("acme").Size != 10 {
		t.Error("a witness that is away keeps us from signing")
	}
	h.away.Store(false)
	w.append("acme", 10)
	w.until("no cosignature", c, func() bool { return len(w.newest("acme").Cosignatures) == 1 && len(c.Status().Alarms) == 0 })
}

// lines counts log records by their message.
type lines struct {
	slog.Handler
	mu sync.Mutex // protects n
	n  map[string]int
}

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n[r.Message]++
	return nil
}
func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }

// TestWitnessIsLoggedOnce: a witness that stays away is one line of the log and
// not one a checkpoint; so is its return.
func TestWitnessIsLoggedOnce(t *testing.T) {
	w := newWorld(t)
	h := newHost(t, w, "acme")
	h.away.Store(true)
	w.options.Witnesses = []checkpoint.Witness{h.config(t)}
	w.options.Interval = 20 * time.Millisecond
	w.append("acme", 10)
	log := &lines{n: make(map[string]int)}
	c := checkpoint.New(w.source(), w.store(), w.dir, w.keys, w.options, slog.New(log))
	for round := range int64(3) {
		before := h.requests.Load()
		w.until("not asked", c, func() bool { return h.requests.Load() > before && len(c.Status().Alarms) == 1 })
		if got := log.n["a witness does not cosign"]; got != 1 {
			t.Errorf("%d lines after round %d", got, round)
		}
		w.append("acme", 10)
	}
	h.away.Store(false)
	w.until("no cosignature", c, func() bool { return len(c.Status().Alarms) == 0 })
	if log.n["a witness does not cosign"] != 1 || log.n["a witness cosigns again"] != 1 {
		t.Errorf("lines: %v", log.n)
	}
}

// TestAwayWitnessIsAskedOnce: one that gives no answer is asked for one tenant
// and not for all that wait.
func TestAwayWitnessIsAskedOnce(t *testing.T) {
	w := newWorld(t)
	h := newHost(t, w, "acme")
	h.srv.Close()
	w.options.Witnesses = []checkpoint.Witness{h.config(t)}
	w.options.Interval = 20 * time.Millisecond
	for _, id := range []string{"acme", "globex", "initech"} {
		w.append(id, 5)
	}
	c := w.signer()
	w.until("no alarm", c, func() bool { return len(c.Status().Alarms) > 0 && w.newest("initech").Size == 5 })
	if alarms := c.Status().Alarms; len(alarms) != 1 || !strings.Contains(alarms[0], "does not answer") {
		t.Errorf("alarms: %q", alarms)
	}
}

func TestParseWitness(t *testing.T) {
	const key = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
	if w, err := checkpoint.ParseWitness(key + " https://witness.example/prefix/"); err != nil || w.URL != "https://witness.example/prefix" {
		t.Errorf("%+v, %v", w, err)
	}
	for _, bad := range []string{"", key, key + " witness.example", key + " ftp://x", "nokey https://x"} {
		if _, err := checkpoint.ParseWitness(bad); !errors.Is(err, checkpoint.ErrCosigner) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
