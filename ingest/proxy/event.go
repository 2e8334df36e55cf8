package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/usage"
)

// usageTag is the tag that says why a count is not the provider's own word.
const usageTag = "usage"

// tierTag keeps a service tier that the event has no word for.
const tierTag = "provider_tier"

// fill sets what the event says of every call.
func (x *exchange) fill(ev *event.Event) {
	c := &x.call
	*ev = event.Event{
		ID: x.id, Tenant: string(c.Tenant), OccurredAt: x.started.UnixNano(),
		ProducerID: x.p.opts.ProducerID, ProducerEpoch: x.p.opts.ProducerEpoch,
		Provider: c.Provider, Model: c.Model, RequestedModel: c.Model, Operation: c.Operation, Region: x.region(),
		LatencyMicros: time.Since(x.started).Microseconds(), TTFTMicros: x.ttft.Microseconds(),
		Team: c.Team, Service: c.Service, Feature: c.Feature, Agent: c.Agent, User: x.user,
		EndCustomer: c.EndCustomer, Environment: c.Environment, Tags: x.tags,
	}
	if ev.Model == "" {
		ev.Model = "unknown"
	}
}

// region is the region that the path names, else the one that is configured; of Azure
// the path names a resource.
func (x *exchange) region() string {
	if x.to.up.Auth == APIKey {
		return ""
	}
	return cmp.Or(x.to.place, x.to.up.Region)
}

// settle makes the event of an answered call, keeps it, and settles its budget.
// readErr is how the reading of the response ended; nil and io.EOF are its end.
func (x *exchange) settle(resp *http.Response, readErr error) error {
	if x.decode != nil {
		x.decode.close()
		x.decode = nil
	}
	if x.results != nil {
		return x.results.settle(readErr)
	}
	res := x.meter.Close()
	x.dropPrompt()
	if x.setAside(&res) {
		return nil
	}
	ev := &x.events[0]
	x.fill(ev)
	ev.HTTPStatus, ev.Tokens, ev.ErrorType = int64(resp.StatusCode), res.Tokens, clipTo(res.ErrorType, 64)
	ev.Streamed, ev.ProviderRequestID = x.stream, clip(first(res.RequestID, res.ID))
	if res.Model != "" {
		ev.Model = clip(res.Model)
	}
	ev.Estimated = res.Flags&usage.Estimated != 0
	tier, other := serviceTier(res.Tier)
	ev.ServiceTier = tier
	if other != "" {
		ev.Tags = setTag(ev.Tags, tierTag, other)
	}
	broken := readErr != nil && !errors.Is(readErr, io.EOF)
	switch {
	case resp.StatusCode >= 400:
		ev.Status = event.StatusError
	case broken && !x.over(res) || res.Flags&usage.Truncated != 0:
		ev.Status = event.StatusTruncated
		x.p.truncated.Add(1)
	case res.Reasons.Has(usage.StreamError):
		ev.Status = event.StatusError
	}
	if why := res.Reasons &^ (1 << usage.Refused); why != 0 {
		ev.Tags = setTag(ev.Tags, usageTag, why.String())
	}
	x.same(ev, &res)
	x.tags = ev.Tags[:0] // the memory, where it grew
	if x.to.call.Dialect != usage.None {
		x.price(ev, tier) // else nobody knows what it cost
	}
	if m := x.p.parts.Metered; m != nil {
		m.Note(ev, res.RequestID, res.ID)
	}
	return x.keep(ev)
}

// over reports that the provider said that the response was whole before the
// connection broke.
func (x *exchange) over(res usage.Result) bool {
	return res.Flags&usage.Truncated == 0 && x.meter.Final()
}

// price asks what the call cost, where somebody wants to know.
func (x *exchange) price(ev *event.Event, tier string) {
	if x.p.parts.Pricer != nil && (x.held != nil || x.wants) {
		x.cost, x.priced = x.p.parts.Pricer.Price(ev.Provider, ev.Model, ev.Region, tier, x.started, &ev.Tokens)
	}
}

// keep gives the event to the sink and settles the budget. An error means that the
// event is not kept; it is tried again by Run.
func (x *exchange) keep(ev *event.Event) error {
	x.kept = true
	x.p.done.Add(1)
	if ev.ProducerID != "" {
		ev.ProducerSeq = x.p.seq.Add(1)
	}
	if x.held != nil {
		x.held.Settle(ev.Tokens.Total(), x.cost, x.priced || ev.Tokens.Total() == 0)
	}
	err := x.p.submit(x.ctx, x.who, x.events[:])
	if err != nil {
		x.p.gaps.add(x.who, ev, false)
		return fmt.Errorf("%w: %w", errKept, err)
	}
	return nil
}

// serviceTier is the event's word for a tier, and the provider's own where there is
// none.
func serviceTier(tier string) (known, other string) {
	switch lower := strings.ToLower(tier); lower {
	case "", "default", "standard", "auto", "on_demand", "traffic_type_unspecified":
		return "", ""
	case "batch", "flex", "priority":
		return lower, ""
	}
	return "", clip(tier)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// clip bounds a text to what a field takes.
func clip(s string) string { return clipTo(s, event.MaxValueBytes) }

func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
