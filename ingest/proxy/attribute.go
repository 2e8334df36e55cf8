package proxy

import (
	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
)

// ownTags is how many tags the proxy may add to those of the client.
const ownTags = 2 + 1 + len(prefixes)

// attribute reads whom the call is for.
func (x *exchange) attribute() {
	a, used := attribution.FromHeaders(x.r.Header)
	x.dropped = used
	c, v := &x.call, &a.Values
	c.Team, c.Service, c.Feature, c.Agent = v[attribution.Team], v[attribution.Service], v[attribution.Feature], v[attribution.Agent]
	c.EndCustomer, c.Environment, x.user = v[attribution.EndCustomer], v[attribution.Environment], v[attribution.User]
	x.tags = append(x.tags, a.Tags[:min(len(a.Tags), event.MaxTags-ownTags)]...)
}

// judge finds out whom the call is for as its entry will say, so that nobody steps
// over a team's switch or cap by leaving a header out, or by naming another team
// where the tenant's rules bind the credential to one.
func (x *exchange) judge() error {
	x.judged = x.call
	if x.p.parts.Rules == nil {
		return nil
	}
	ev := &x.events[0]
	x.fill(ev)
	if err := x.p.parts.Rules.Attribute(ev, x.who.Subject); err != nil {
		return err
	}
	c := &x.judged
	c.Team, c.Service, c.Feature, c.Agent = ev.Team, ev.Service, ev.Feature, ev.Agent
	c.EndCustomer, c.Environment = ev.EndCustomer, ev.Environment
	return nil
}

// setTag adds a tag of ours; it wins over a client's of the same key.
func setTag(tags []event.Tag, key, value string) []event.Tag {
	for i := range tags {
		if tags[i].Key == key {
			tags[i].Value = value
			return tags
		}
	}
	return append(tags, event.Tag{Key: key, Value: value})
}
