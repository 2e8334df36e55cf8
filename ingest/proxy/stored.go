package proxy

import (
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/usage"
)

// Background responses (OpenAI's Responses with "background": true) are made whether
// their client waits or not. The request that begins one is answered at once, without
// usage, and makes no event; each later reading (GET, its stream, the answer to
// cancelling it) states what the response used, once it is over. So all readings make
// the same event: its id and every field come of the response alone, but for whom the
// call is for, which the reading says. Clients send the same headers and token with
// every request; where two readings name different owners the first one stands, and
// the ledger rejects the other as a conflict.
//
// A background response that nobody reads through the proxy is not metered. Budgets
// are not settled by readings.

// repeats reports a call that reads a response which another call made.
func (x *exchange) repeats() bool { return x.to.call.Repeated }

// setAside reports a response that makes no event now: one that is read again, or a
// background response that is not over.
func (x *exchange) setAside(res *usage.Result) bool {
	if res.Due() || !res.Background() && !x.repeats() || res.Status >= 400 && !x.repeats() {
		return false
	}
	x.kept = true
	if x.held != nil {
		x.held.Settle(0, 0, true)
	}
	return true
}

// same makes the event of a background response that of every reading of it.
func (x *exchange) same(ev *event.Event, res *usage.Result) {
	if !res.Due() {
		return
	}
	began := time.Unix(res.Reported[usage.Created], 0)
	used := ev.Tokens
	if ev.Estimated {
		clear(used[:]) // an estimate may be another in another reading
	}
	ev.ID = event.DerivedID(ev.Tenant, ev.Provider+"/background", res.ID, began.UnixNano(), ev.Model, &used, 0)
	if began.Unix() > 0 {
		ev.OccurredAt = began.UnixNano()
	}
	ev.ProducerID, ev.ProducerEpoch = "", 0
	ev.LatencyMicros, ev.TTFTMicros, ev.Streamed = 0, 0, false
	ev.RequestedModel, ev.ProviderRequestID = "", clip(res.ID)
	kept := ev.Tags[:0]
	for _, t := range ev.Tags {
		if !strings.HasPrefix(t.Key, "prompt_digest") { // only the first request has the prompt
			kept = append(kept, t)
		}
	}
	ev.Tags = kept
}
