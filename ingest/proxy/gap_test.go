package proxy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// got is what a sink got, and by whose credential.
type got struct {
	ev      event.Event
	subject string
}

// brokenSink takes nothing while it is down.
type brokenSink struct {
	mu   sync.Mutex // protects what follows
	down bool
	got  []got
}

func (s *brokenSink) Submit(_ context.Context, who authn.Principal, events []event.Event) (ingest.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return ingest.Outcome{}, ingest.ErrUnavailable
	}
	for i := range events {
		ev := events[i]
		ev.Tags = slices.SortedFunc(slices.Values(ev.Tags), func(a, b event.Tag) int { return cmp.Compare(a.Key, b.Key) })
		if err := ev.Validate(false); err != nil {
			return ingest.Outcome{Refusals: []ingest.Refusal{{Field: "event", Rule: err.Error()}}}, nil
		}
		s.got = append(s.got, got{ev, who.Subject})
	}
	return ingest.Outcome{Accepted: len(events)}, nil
}

// gapWorld is a proxy whose sink takes nothing, with as many events waiting as may.
func gapWorld(t *testing.T) (*Proxy, *brokenSink) {
	t.Helper()
	sink := &brokenSink{down: true}
	p, err := New(Parts{Auth: authn.NewStatic("t", authn.Principal{}), Sink: sink, Keys: noKeys{}}, Options{ProducerID: "proxy-test", FailOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	for n := range maxWaiting {
		call := gapCall(n)
		p.gaps.add(authn.Principal{Subject: "early"}, &call, false)
	}
	return p, sink
}

type noKeys struct{}

func (noKeys) ProviderKey(context.Context, tenant.ID, string) (ProviderKey, error) {
	return ProviderKey{}, ErrNoProviderKey
}

// gapTime begins an hour, so that the calls of a test are of one.
var gapTime = time.Date(2026, 8, 20, 10, 0, 0, 0, time.UTC).UnixNano()

func gapCall(n int) event.Event {
	return event.Event{
		ID: fmt.Sprint("call-", n), Tenant: "acme", OccurredAt: gapTime + int64(n), ProducerID: "proxy-test", ProducerSeq: int64(n + 1),
		Provider: "openai", Model: "gpt-5.5", RequestedModel: "gpt", Operation: "chat", Status: event.StatusOK, HTTPStatus: 200,
		Tokens: tokens.Vector{tokens.Input: 1000, tokens.Output: 10}, LatencyMicros: 5, ProviderRequestID: fmt.Sprint("req-", n),
	}
}

// flushed is what the sink gets once it is up again, of that what is no single call.
func flushed(t *testing.T, p *Proxy, sink *brokenSink) (sums []got) {
	t.Helper()
	p.flushGaps(t.Context()) // in vain: what is taken out comes back
	sink.down = false
	p.flushGaps(t.Context())
	if left := p.gaps.waiting(); left != 0 {
		t.Errorf("%d calls wait", left)
	}
	for _, g := range sink.got {
		if g.ev.Estimated {
			sums = append(sums, g)
		}
	}
	if single := len(sink.got) - len(sums); single != maxWaiting {
		t.Errorf("%d calls came by themselves, want %d", single, maxWaiting)
	}
	return sums
}

func callsOf(t *testing.T, ev *event.Event) int {
	t.Helper()
	for _, tag := range ev.Tags {
		if tag.Key == "gap_calls" {
			n, err := strconv.Atoi(tag.Value)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no gap_calls: %+v", ev)
	return 0
}

// Calls are summed only with those that cost and are attributed alike, so that each
// team's money is what it was.
func TestSumsKeepWhomAndWhatPrices(t *testing.T) {
	book := pricing.Builtin()
	price := func(ev *event.Event) money.Pico {
		r := book.Price(&pricing.Usage{
			Provider: ev.Provider, Model: ev.Model, Region: ev.Region, ServiceTier: ev.ServiceTier, Tokens: ev.Tokens, ContextTokens: ev.ContextTokens, At: ev.OccurredAt,
		})
		if !r.Priced {
			t.Fatalf("no price: %+v: %s", ev, r.Reason)
		}
		return r.Cost
	}
	p, sink := gapWorld(t)
	type whom struct{ team, user, customer, credential, tag string }
	whomOf := func(ev *event.Event, credential string) whom {
		w := whom{ev.Team, ev.User, ev.EndCustomer, credential, ""}
		for _, tag := range ev.Tags {
			if tag.Key == "env" {
				w.tag = tag.Value
			}
		}
		return w
	}
	want, calls := map[whom]money.Pico{}, 0
	for n := range 2400 {
		ev := gapCall(n)
		ev.Team, ev.User, ev.EndCustomer = fmt.Sprint("team-", n%3), fmt.Sprint("user-", n%2), fmt.Sprint("customer-", n/600)
		ev.Tokens[tokens.Input] = []int64{150_000, 350_000}[n/2%2] // one price below 272,000, another above
		ev.ServiceTier = []string{"", "batch"}[n/4%2]
		if ev.ServiceTier == "batch" {
			ev.Tokens[tokens.Input] = 9
		}
		ev.Tags = []event.Tag{{Key: "env", Value: fmt.Sprint(n / 1200)}, {Key: "prompt_digest", Value: fmt.Sprint(n)}}
		who := authn.Principal{Subject: fmt.Sprint("tok-", n%5)}
		want[whomOf(&ev, who.Subject)] += price(&ev)
		p.gaps.add(who, &ev, false)
		calls++
	}
	got := map[whom]money.Pico{}
	sums := flushed(t, p, sink)
	for i := range sums {
		ev := &sums[i].ev
		if ev.ErrorType != "spool_gap" || ev.Status != event.StatusError || ev.ProviderRequestID != "" || ev.RequestedModel != "" || ev.LatencyMicros != 0 {
			t.Fatalf("a sum: %+v", ev)
		}
		got[whomOf(ev, sums[i].subject)] += price(ev)
		calls -= callsOf(t, ev)
	}
	if calls != 0 || len(sums) != 360 {
		t.Errorf("%d sums; %d calls are missing in what they say", len(sums), calls)
	}
	for k, cost := range want {
		if got[k] != cost {
			t.Errorf("%+v: %s, the calls cost %s", k, got[k], cost)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d attributions, want %d", len(got), len(want))
	}
}

// Where there are too many sums, whom they are for goes first, and then what prices
// them; how many calls there were, and their tokens, never.
func TestSumsAreBounded(t *testing.T) {
	p, sink := gapWorld(t)
	const more = 500
	for n := range maxSums + more { // each of a user of its own
		ev := gapCall(n)
		ev.User, ev.Team = fmt.Sprint("user-", n), "search"
		p.gaps.add(authn.Principal{Subject: "tok_1"}, &ev, false)
	}
	for n := range 2 * maxSums { // each of a model of its own
		ev := gapCall(n)
		ev.Model, ev.Team = fmt.Sprint("model-", n), "search"
		p.gaps.add(authn.Principal{Subject: "tok_1"}, &ev, false)
	}
	read := gapCall(0)
	for range 7 { // lines of batches that are read again
		p.gaps.add(authn.Principal{Subject: "tok_1"}, &read, true)
	}
	if n := p.gaps.waiting(); n != maxWaiting+maxSums+more+2*maxSums+7 {
		t.Errorf("%d calls wait", n)
	}
	kinds := map[string]int{}
	for _, g := range flushed(t, p, sink) {
		ev, n := &g.ev, callsOf(t, &g.ev)
		kind := fmt.Sprintf("%s %s", ev.ErrorType, ev.Team)
		if ev.Model == "unknown" {
			kind = fmt.Sprintf("%s %s %d tokens", ev.ErrorType, ev.Provider, ev.Tokens.Total())
		}
		kinds[kind] += n
		if ev.Team == "" && (ev.User != "" || g.subject != "") {
			t.Fatalf("whom it is for is half there: %+v of %q", ev, g.subject)
		}
		if len(ev.Tags) != 3 {
			t.Errorf("tags %v", ev.Tags)
		}
	}
	lost := 2*maxSums - (maxSums - 1)
	want := map[string]int{
		"spool_gap search": maxSums, "spool_gap ": more + maxSums - 1,
		fmt.Sprintf("spool_lost unknown %d tokens", lost*1010): lost, "spool_lost unknown 0 tokens": 7,
	}
	if fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", kinds, want)
	}
}

// What a sink may have taken is tried again as it was: under its id it is one entry.
func TestSumsDoNotChangeOnceTried(t *testing.T) {
	p, sink := gapWorld(t)
	sink.down = false
	for n := range 2 {
		ev := gapCall(n)
		p.gaps.add(authn.Principal{}, &ev, false)
	}
	for len(p.gaps.events) > 0 {
		p.gaps.take()
	}
	tried := p.gaps.take()
	if len(tried) != 1 || tried[0].calls != 2 {
		t.Fatalf("%+v", tried)
	}
	ev := gapCall(2)
	p.gaps.add(authn.Principal{}, &ev, false)
	p.gaps.putBack(&tried[0])
	if n := p.gaps.waiting(); n != 3 {
		t.Errorf("%d calls wait", n)
	}
	p.flushGaps(t.Context())
	if len(sink.got) != 2 || sink.got[1].ev.ID != tried[0].ev.ID || callsOf(t, &sink.got[1].ev) != 2 {
		t.Errorf("%+v", sink.got)
	}
}

// A price that begins above a length holds from the next token on.
func TestBands(t *testing.T) {
	for _, step := range steps {
		if band(step) != band(step-1) || band(step) == band(step+1) {
			t.Errorf("%d: bands %d %d %d", step, band(step-1), band(step), band(step+1))
		}
	}
	for _, s := range pricing.Builtin().Rows() {
		for _, sheet := range s.Sheets {
			if sheet.Above > 0 && !slices.Contains(steps[:], sheet.Above) {
				t.Errorf("%s/%s has a price above %d tokens, which is no step", s.Provider, s.Model, sheet.Above)
			}
		}
	}
}
