package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

var (
	acmeProducer = authn.Principal{Subject: "p", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest}
	anyProducer  = authn.Principal{Subject: "a", AllTenants: true, Scopes: authn.Ingest}
)

func usageEvent(id string) event.Event {
	return event.Event{ID: id, OccurredAt: noon.UnixNano(), Provider: "openai", Model: "gpt-4o", Tokens: tokens.Vector{tokens.Input: 7}}
}

// What is submitted must be in the log byte for byte as if it had come by HTTP.
func TestSubmitTakesTheSameWay(t *testing.T) {
	var byHTTP, bySubmit fakeLog
	body := `{"event_id":"e1","tenant_id":"acme","occurred_at":"2026-11-22T12:00:00Z","provider":"openai","model":"gpt-4o",
		"tokens":{"input":"7"},"user":"jo@example.com","tags":{"a":"1","b":"2"}}`
	w := post(newEdge(t, &byHTTP), body)
	if w.Code != 202 {
		t.Fatalf("HTTP: %d %s", w.Code, w.Body)
	}
	ev := usageEvent("e1")
	ev.User, ev.Tags = "jo@example.com", []event.Tag{{Key: "b", Value: "2"}, {Key: "a", Value: "1"}}
	ev.MappingVersion, ev.UserPseudonym, ev.SealedTags = 9, strings.Repeat("0", 32), []byte("mine")
	given := ev
	given.Tags = slices.Clone(ev.Tags)
	out, err := newEdge(t, &bySubmit).Submit(context.Background(), acmeProducer, []event.Event{ev})
	if err != nil || out.Accepted != 1 || len(out.Refusals) != 0 {
		t.Fatalf("Submit = %+v, %v", out, err)
	}
	if diff := cmp.Diff(byHTTP.take(), bySubmit.take()); diff != "" {
		t.Errorf("records differ (-HTTP +Submit):\n%s", diff)
	}
	if diff := cmp.Diff(given, ev); diff != "" {
		t.Errorf("the given event was changed:\n%s", diff)
	}
}

func TestSubmitRefusesEventByEvent(t *testing.T) {
	var log fakeLog
	e := newEdge(t, &log)
	foreign, twice, early := usageEvent("foreign"), usageEvent("twice"), usageEvent("early")
	foreign.Tenant, early.OccurredAt = "umbrella", noon.Add(time.Hour).UnixNano()
	twice.Tags = []event.Tag{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}}
	out, err := e.Submit(context.Background(), acmeProducer, []event.Event{foreign, usageEvent("good"), twice, {}, early})
	if err != nil || out.Accepted != 1 {
		t.Fatalf("Submit = %+v, %v", out, err)
	}
	var got []string
	for _, r := range out.Refusals {
		got = append(got, fmt.Sprintf("%d %q %s %s", r.Index, r.EventID, r.Field, r.Rule))
	}
	want := []string{`0 "foreign" tenant_id tenant`, `2 "twice" tags duplicate`, `3 "" event_id required`, `4 "early" occurred_at future`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	e.FlushCounters(context.Background())
	lines := describe(t, log.take())
	if len(lines) != 2 || !strings.Contains(lines[0], "accepted=1 refused=4") {
		t.Errorf("log holds %q", lines)
	}
}

// More events than a request may hold are several frames, and the refusals keep
// the caller's numbers.
func TestSubmitManyEvents(t *testing.T) {
	var log fakeLog
	events := make([]event.Event, 2*ingest.MaxEvents+5)
	for i := range events {
		events[i] = usageEvent(fmt.Sprint("e", i))
		events[i].Tenant = "acme"
	}
	events[2*ingest.MaxEvents+1].Model = ""
	out, err := newEdge(t, &log).Submit(context.Background(), anyProducer, events)
	if err != nil || out.Accepted != len(events)-1 || len(out.Refusals) != 1 || out.Refusals[0].Index != 2*ingest.MaxEvents+1 {
		t.Fatalf("Submit: %d accepted, %+v, %v", out.Accepted, out.Refusals, err)
	}
	if n := len(log.take()); n != out.Accepted {
		t.Errorf("%d records", n)
	}
	if out, err := newEdge(t, &log).Submit(context.Background(), anyProducer, nil); err != nil || out.Accepted != 0 {
		t.Errorf("no events: %+v, %v", out, err)
	}
}

func TestSubmitNeedsTheScope(t *testing.T) {
	var log fakeLog
	var denied []string
	e := newEdge(t, &log, func(o *ingest.Options) {
		o.Denied = func(p authn.Principal, _ authn.Peer, reason string) { denied = append(denied, p.Subject) }
	})
	reader := authn.Principal{Subject: "r", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes &^ authn.Ingest}
	if out, err := e.Submit(context.Background(), reader, []event.Event{usageEvent("e")}); !errors.Is(err, ingest.ErrNotAllowed) || out.Accepted != 0 {
		t.Fatalf("Submit = %+v, %v", out, err)
	}
	if len(log.take()) != 0 || !slices.Equal(denied, []string{"r"}) {
		t.Errorf("sent something, or denied %v", denied)
	}
}

func TestSubmitSaysWhatIsNotDurable(t *testing.T) {
	var log fakeLog
	log.become(func(_ context.Context, _ []kafka.Record, results []kafka.Result) error {
		results[1] = kafka.Result{Offset: -1, Err: kafka.ErrFull}
		return kafka.ErrFull
	})
	out, err := newEdge(t, &log).Submit(context.Background(), acmeProducer, []event.Event{usageEvent("a"), {}, usageEvent("b")})
	if !errors.Is(err, ingest.ErrUnavailable) || !errors.Is(err, kafka.ErrFull) {
		t.Fatalf("err = %v", err)
	}
	if out.Accepted != 1 || len(out.Refusals) != 2 || out.Refusals[1].EventID != "b" || out.Refusals[1].Rule != ingest.RuleUnavailable {
		t.Errorf("Submit = %+v", out)
	}
}

// A caller that has left is metered all the same, and one that gets no place is told
// which events to send again.
func TestSubmitOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log fakeLog
		hold := make(chan struct{})
		log.become(func(context.Context, []kafka.Record, []kafka.Result) error { <-hold; return nil })
		e := newEdge(t, &log, func(o *ingest.Options) { o.MaxInFlight = 1 })
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		first := make(chan ingest.Outcome, 1)
		go func() {
			out, _ := e.Submit(gone, acmeProducer, []event.Event{usageEvent("a")})
			first <- out
		}()
		synctest.Wait()
		out, err := e.Submit(context.Background(), acmeProducer, []event.Event{{}, usageEvent("b")})
		if !errors.Is(err, ingest.ErrUnavailable) || out.Accepted != 0 || len(out.Refusals) != 2 ||
			out.Refusals[0].Field != "event_id" || out.Refusals[1].EventID != "b" {
			t.Errorf("without a place: %+v, %v", out, err)
		}
		close(hold)
		if out := <-first; out.Accepted != 1 {
			t.Errorf("the one who left: %+v", out)
		}
	})
}

func BenchmarkSubmitOne(b *testing.B) {
	log := dropLog{}
	e := newEdge(b, log)
	events := []event.Event{usageEvent("01890a5d-ac96-774b-bcce-b302099a8057")}
	b.ReportAllocs()
	for b.Loop() {
		if out, err := e.Submit(context.Background(), acmeProducer, events); err != nil || out.Accepted != 1 {
			b.Fatal(out, err)
		}
	}
}

// dropLog acknowledges everything and keeps nothing.
type dropLog struct{}

func (dropLog) ProduceBatch(context.Context, []kafka.Record, []kafka.Result) error { return nil }
