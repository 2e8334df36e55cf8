package ingest_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/tenant"
)

// fakeMapping is tenants' rules in memory.
type fakeMapping struct {
	mu      sync.Mutex // protects what follows
	version int64
	rules   map[tenant.ID]*mapping.Rules
	err     error
	asked   int
}

func (m *fakeMapping) MappingVersion(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version, m.err
}

func (m *fakeMapping) MappingRules(_ context.Context, id tenant.ID) (*mapping.Rules, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if r := m.rules[id]; r != nil {
		return r, m.err
	}
	return &mapping.Rules{Tenant: id}, m.err
}

func (m *fakeMapping) put(t *testing.T, version int64, text string) {
	t.Helper()
	r, err := mapping.New("acme", version, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	m.rules = map[tenant.ID]*mapping.Rules{"acme": r}
}

func (m *fakeMapping) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func decodeUsage(t *testing.T, recs []kafka.Record) (events []event.Event) {
	t.Helper()
	for _, r := range recs {
		rec, err := event.SplitRecord(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Kind != event.UsageRecord {
			continue
		}
		var e event.Event
		if err := e.DecodeProto(rec.Body, event.Log); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// Rules change whom an event is for and not what it is: the MAC is that of what the
// producer said, so an event that comes again under other rules is a duplicate.
func TestMappingRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log fakeLog
		src := &fakeMapping{}
		src.put(t, 4, `{"rules":[{"when":{"credential":"p"},"set":{"team":"search"}},{"when":{"tag.repo":"web"},"set":{"feature":"web"}}]}`)
		e := newEdge(t, &log, func(o *ingest.Options) { o.Mapping, o.Now = src, time.Now })
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = e.Run(ctx) }()
		send := func(ids ...string) []event.Event {
			t.Helper()
			var events []event.Event
			for _, id := range ids {
				ev := usageEvent(id)
				ev.OccurredAt, ev.User = time.Unix(946_684_800, 0).UnixNano(), "jo" // synctest's epoch
				ev.Tags = []event.Tag{{Key: "repo", Value: "web"}}
				events = append(events, ev)
			}
			if out, err := e.Submit(ctx, acmeProducer, events); err != nil || out.Accepted != len(ids) {
				t.Fatalf("%+v, %v", out, err)
			}
			return decodeUsage(t, log.take())
		}
		first := send("a", "b")
		for _, ev := range first {
			if ev.Team != "search" || ev.Feature != "web" || ev.MappingVersion != 4 || ev.UserPseudonym == "" || ev.User != "" {
				t.Errorf("mapped: %+v", ev)
			}
		}
		src.put(t, 5, `{"rules":[{"set":{"team":"finance"}}]}`)
		time.Sleep(6 * time.Second) // the edge asks every five
		again := send("a")
		if again[0].Team != "finance" || again[0].MappingVersion != 5 || again[0].ContentMAC != first[0].ContentMAC {
			t.Errorf("under new rules: %+v", again[0])
		}
		src.fail(errors.New("away"))
		time.Sleep(time.Hour)
		if late := send("c"); late[0].Team != "finance" {
			t.Errorf("the source is away: %+v", late[0])
		}
		if src.asked > 3 {
			t.Errorf("asked %d times for a tenant's rules", src.asked)
		}
		cancel()
		<-done
	})
}

// An edge that never knew a tenant's rules takes nothing of it.
func TestMappingNeverKnown(t *testing.T) {
	var log fakeLog
	src := &fakeMapping{err: errors.New("away")}
	e := newEdge(t, &log, func(o *ingest.Options) { o.Mapping = src })
	out, err := e.Submit(context.Background(), acmeProducer, []event.Event{usageEvent("a")})
	if !errors.Is(err, ingest.ErrUnavailable) || out.Accepted != 0 || len(log.take()) != 0 {
		t.Errorf("%+v, %v", out, err)
	}
}

// A front door that asks whom an event is for is told what the event's record says.
func TestAttributeIsWhatTheRecordSays(t *testing.T) {
	for _, rules := range []string{
		`{"rules":[]}`,
		`{"rules":[{"when":{"credential":"p"},"set":{"team":"search"}}]}`,
		`{"rules":[{"when":{"credential":"p"},"set":{"team":"search","environment":"prod"},"override":true}]}`,
		`{"rules":[{"when":{"credential":"other"},"set":{"team":"search"},"override":true}]}`,
		`{"rules":[{"when":{"tag.repo":"w*"},"set":{"team":"web"}},{"when":{"team":"web","model":"gpt-*"},"set":{"feature":"f"}}]}`,
		`{"rules":[{"when":{"team":"forged"},"set":{"team":"search"},"override":true},{"when":{"team":"search"},"set":{"service":"s","agent":"a","end_customer":"c"}}]}`,
	} {
		var log fakeLog
		src := &fakeMapping{}
		src.put(t, 1, rules)
		e := newEdge(t, &log, func(o *ingest.Options) { o.Mapping = src })
		for _, team := range []string{"", "search", "forged"} {
			ev := usageEvent("a" + team)
			ev.Tenant, ev.Team, ev.Tags = "acme", team, []event.Tag{{Key: "repo", Value: "web"}}
			asked := ev
			if err := e.Attribute(&asked, acmeProducer.Subject); err != nil {
				t.Fatal(err)
			}
			if out, err := e.Submit(t.Context(), acmeProducer, []event.Event{ev}); err != nil || out.Accepted != 1 {
				t.Fatalf("%+v, %v", out, err)
			}
			said := decodeUsage(t, log.take())[0]
			want := [...]string{said.Team, said.Service, said.Feature, said.Agent, said.EndCustomer, said.Environment}
			if got := [...]string{asked.Team, asked.Service, asked.Feature, asked.Agent, asked.EndCustomer, asked.Environment}; got != want {
				t.Errorf("%s, team %q: attributed %q, the record says %q", rules, team, got, want)
			}
		}
	}
	away := newEdge(t, &fakeLog{}, func(o *ingest.Options) { o.Mapping = &fakeMapping{err: errors.New("away")} })
	ev := usageEvent("a")
	ev.Tenant = "acme"
	if err := away.Attribute(&ev, "p"); !errors.Is(err, ingest.ErrUnavailable) {
		t.Errorf("rules that were never known: %v", err)
	}
}
