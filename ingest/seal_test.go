package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

// fakeConfidential is the tenants' settings in memory.
type fakeConfidential struct {
	mu      sync.Mutex
	version int64
	tags    map[tenant.ID][]string
	err     error
	asked   int // questions of either kind
}

func (c *fakeConfidential) Version(context.Context) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return c.version, c.err
}

func (c *fakeConfidential) TagKeys(_ context.Context, id tenant.ID) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return c.tags[id], c.err
}

func (c *fakeConfidential) set(id tenant.ID, keys ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.tags = map[tenant.ID][]string{id: keys}
}

func (c *fakeConfidential) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *fakeConfidential) questions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// sealing is an edge with settings and a clock of its own.
type sealing struct {
	*ingest.Edge
	log  *fakeLog
	conf *fakeConfidential

	mu  sync.Mutex
	now time.Time
}

func newSealing(t testing.TB) *sealing {
	s := &sealing{log: &fakeLog{}, conf: &fakeConfidential{version: 1}, now: noon}
	s.Edge = newEdge(t, s.log, func(o *ingest.Options) {
		o.Confidential = s.conf
		o.Now = func() time.Time {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.now
		}
	})
	return s
}

func (s *sealing) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// send posts one event and gives its record and the event in it; nil when it
// was not accepted as of the status.
func (s *sealing) send(t testing.TB, status int, fields string) (*kafka.Record, *event.Event) {
	t.Helper()
	body := fmt.Sprintf(`{"event_id":"e1","tenant_id":"acme","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"%s}`, fields)
	w := post(s.Edge, body)
	if w.Code != status {
		t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	recs := s.log.take()
	if status != http.StatusAccepted {
		if len(recs) != 0 {
			t.Fatalf("a refused event made %d records", len(recs))
		}
		return nil, nil
	}
	rec, err := event.SplitRecord(recs[0].Value)
	if err != nil {
		t.Fatal(err)
	}
	e := &event.Event{}
	if err := e.DecodeProto(rec.Body, event.Log); err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(true); err != nil {
		t.Fatal(err)
	}
	return &recs[0], e
}

// flip is what the fake's Seal does to plaintext.
func flip(b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

// The person travels sealed beside the event, under the pseudonym's name, and
// no byte of the record holds it in plaintext.
func TestThePersonIsSealedBesideTheEvent(t *testing.T) {
	s := newSealing(t)
	for range 3 { // the second and third come out of the edge's memory
		rec, e := s.send(t, http.StatusAccepted, `,"user":"jane@example.com","tags":{"team":"a"}`)
		parts, err := event.SplitRecord(rec.Value)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Appendf(nil, "acme/seal-subject/ledger.subject/identity/%s:%s", e.UserPseudonym, flip([]byte("jane@example.com")))
		if !bytes.Equal(parts.Subject, want) {
			t.Errorf("subject %q, want %q", parts.Subject, want)
		}
		if bytes.Contains(rec.Value, []byte("jane")) {
			t.Errorf("the record holds the person: %q", rec.Value)
		}
	}
	if rec, _ := s.send(t, http.StatusAccepted, ``); bytes.Contains(rec.Value, []byte("ledger.subject")) {
		t.Error("an event without a person carries one")
	}
	if rec, e := s.send(t, http.StatusAccepted, `,"user":"john@example.com"`); !bytes.Contains(rec.Value, []byte(e.UserPseudonym+":"+string(flip([]byte("john"))))) {
		t.Error("the next person is not sealed")
	}
}

// Confidential tags leave the event's tags, and only those.
func TestConfidentialTagsAreSealed(t *testing.T) {
	s := newSealing(t)
	s.conf.set("acme", "case", "patient")
	rec, e := s.send(t, http.StatusAccepted, `,"user":"u","tags":{"patient":"p-4711","team":"a","case":"c-1","zone":"z"}`)
	if want := []event.Tag{{Key: "team", Value: "a"}, {Key: "zone", Value: "z"}}; !slices.Equal(e.Tags, want) {
		t.Errorf("tags %v, want %v", e.Tags, want)
	}
	prefix := []byte("acme/seal-tags/ledger.entry/sealed_tags/e1:")
	pairs, err := event.DecodeTagPairs(flip(bytes.TrimPrefix(e.SealedTags, prefix)))
	if want := []event.Tag{{Key: "case", Value: "c-1"}, {Key: "patient", Value: "p-4711"}}; err != nil || !bytes.HasPrefix(e.SealedTags, prefix) || !slices.Equal(pairs, want) {
		t.Errorf("sealed %v, %v, want %v behind %s", pairs, err, want, prefix)
	}
	for _, s := range []string{"p-4711", "c-1", "patient", "case"} {
		if bytes.Contains(rec.Value, []byte(s)) {
			t.Errorf("the record holds %q", s)
		}
	}
	if _, e := s.send(t, http.StatusAccepted, `,"tags":{"team":"a"}`); len(e.SealedTags) != 0 || len(e.Tags) != 1 {
		t.Errorf("an event without confidential tags: %v sealed %q", e.Tags, e.SealedTags)
	}
}

// What is sealed is no part of the content MAC: an event that comes again is the
// same, whether or not the setting has changed in between.
func TestSealingLeavesTheContentMAC(t *testing.T) {
	s := newSealing(t)
	const fields = `,"user":"u","tags":{"patient":"p-4711","team":"a"}`
	_, open := s.send(t, http.StatusAccepted, fields)
	s.conf.set("acme", "patient")
	s.pass(ingest.ConfidentialMaxAge)
	_, sealed := s.send(t, http.StatusAccepted, fields)
	if len(open.SealedTags) != 0 || len(sealed.SealedTags) == 0 {
		t.Fatal("the setting does not count")
	}
	if open.ContentMAC != sealed.ContentMAC {
		t.Error("sealing changed the content MAC")
	}
	if _, other := s.send(t, http.StatusAccepted, strings.Replace(fields, "4711", "4712", 1)); other.ContentMAC == sealed.ContentMAC {
		t.Error("another confidential value has the same content MAC")
	}
}

// A setting counts at the latest ConfidentialMaxAge after it was made, and until
// then the store is not asked for each event.
func TestSettingsAreKeptForAMoment(t *testing.T) {
	s := newSealing(t)
	const fields = `,"tags":{"patient":"p"}`
	s.send(t, http.StatusAccepted, fields)
	asked := s.conf.questions()
	for range 50 {
		s.send(t, http.StatusAccepted, fields)
	}
	if n := s.conf.questions(); n != asked {
		t.Errorf("50 events asked %d times", n-asked)
	}
	s.conf.set("acme", "patient")
	s.pass(ingest.ConfidentialMaxAge)
	if _, e := s.send(t, http.StatusAccepted, fields); len(e.SealedTags) == 0 {
		t.Error("the new setting does not count")
	}
	s.conf.set("acme")
	s.pass(ingest.ConfidentialMaxAge)
	if _, e := s.send(t, http.StatusAccepted, fields); len(e.SealedTags) != 0 {
		t.Error("the setting that was taken back still counts")
	}
}

// Run renews what is known, so that no request has to wait for it.
func TestRunRenewsSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSealing(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(ingest.ConfidentialMaxAge / 2) // of the bubble's clock
		synctest.Wait()
		if s.conf.questions() < 2 {
			t.Error("Run does not ask")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// An edge that does not know what is confidential takes no event with tags; and
// it takes those without. Nothing of it is stored.
func TestAnUnknownSettingFailsClosed(t *testing.T) {
	s := newSealing(t)
	s.conf.set("acme", "patient")
	const tagged, plain = `,"tags":{"patient":"p"}`, `,"team":"a"`
	away := errors.New("postgres is away")
	s.conf.fail(away)
	s.send(t, http.StatusServiceUnavailable, tagged)
	s.send(t, http.StatusAccepted, plain)
	asked := s.conf.questions()
	s.send(t, http.StatusServiceUnavailable, tagged)
	if s.conf.questions() != asked {
		t.Error("an event waits for a store that has just failed")
	}
	s.conf.fail(nil)
	s.pass(2 * time.Second)
	s.send(t, http.StatusAccepted, tagged)
	s.conf.fail(away) // known for a while
	s.pass(ingest.ConfidentialMaxAge - time.Second)
	if _, e := s.send(t, http.StatusAccepted, tagged); len(e.SealedTags) == 0 {
		t.Error("not sealed")
	}
	s.pass(2 * time.Second)
	s.send(t, http.StatusServiceUnavailable, tagged)
	s.send(t, http.StatusAccepted, plain)
}

// A tenant whose sealing root is destroyed sends nothing any more, whether the
// edge knew it before or not.
func TestDestroyedTenantSendsNothing(t *testing.T) {
	s := newSealing(t)
	for _, fields := range []string{``, `,"user":"jane"`} {
		w := post(s.Edge, fmt.Sprintf(`{"event_id":"e1","tenant_id":"erased","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"%s}`, fields))
		if !strings.Contains(w.Body.String(), `"rule":"tenant"`) {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
		if recs := s.log.take(); len(recs) != 0 {
			t.Errorf("%d records", len(recs))
		}
	}
}

// Without a key that seals, what would have to be sealed is refused.
func TestNoSealingKeyIsUnavailable(t *testing.T) {
	s := newSealing(t)
	s.conf.set("erasing", "patient")
	send := func(status int, fields string) {
		t.Helper()
		body := fmt.Sprintf(`{"event_id":"e1","tenant_id":"erasing","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"%s}`, fields)
		w := post(s.Edge, body)
		if w.Code != status || strings.Contains(w.Body.String(), "jane") || strings.Contains(w.Body.String(), "p-4711") {
			t.Errorf("status %d, want %d: %s", w.Code, status, w.Body)
		}
		if recs := s.log.take(); (len(recs) == 0) != (status != http.StatusAccepted) {
			t.Errorf("%d records", len(recs))
		}
	}
	send(http.StatusServiceUnavailable, `,"user":"jane"`)
	send(http.StatusServiceUnavailable, `,"tags":{"patient":"p-4711"}`)
	send(http.StatusAccepted, `,"tags":{"team":"a"}`)
	send(http.StatusAccepted, ``)
}

// An event without a person and without confidential tags costs no allocation
// for being one.
func TestSealingCostsNothingWhereThereIsNothing(t *testing.T) {
	s := newSealing(t)
	s.log.become(func(context.Context, []kafka.Record, []kafka.Result) error { return nil })
	s.conf.set("acme", "patient")
	body := func(n int) []byte {
		var events []string
		for i := range n {
			events = append(events, fmt.Sprintf(`{"event_id":"e%d","tenant_id":"acme","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5","tags":{"team":"a","zone":"b"}}`, i))
		}
		return []byte("[" + strings.Join(events, ",") + "]")
	}
	few, many := body(10), body(900)
	count := func(b []byte) float64 {
		return testing.AllocsPerRun(20, func() {
			if w := post(s.Edge, string(b)); w.Code != http.StatusAccepted {
				t.Fatal(w.Body)
			}
			s.log.take()
		})
	}
	// The log of this test copies each record: one allocation an event, and the
	// growth of its list.
	if perEvent := (count(many) - count(few)) / 890; perEvent > 1.1 {
		t.Errorf("%.2f allocations an event, want the log's one", perEvent)
	}
}
