package proxy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
)

// A grain is how much a sum tells of its calls. Those for which there is no room at one
// grain are summed up at the next, so no call goes without a word in the ledger.
type grain uint8

const (
	// wholly: all that prices a call, and all that says whom it is for.
	wholly grain = iota
	// priced: all that prices a call. Whom it is for is nobody: rather untagged than
	// another's.
	priced
	// counted: the tenant, how many calls, and their tokens, at no price that is known.
	// There is one such sum of a tenant, however many tenants there are.
	counted
)

// What an event of a sum says of itself in error_type and, of a counted one, instead of
// a provider and a model.
const (
	gapError  = "spool_gap"
	lostError = "spool_lost"
	unnamed   = "unknown"
)

// steps are lengths of a context above which published prices are others. Calls on both
// sides of one are not summed together.
var steps = [...]int64{32_000, 64_000, 128_000, 200_000, 252_000, 256_000, 272_000, 512_000, 1_000_000}

// band is between which of the steps a context is.
func band(context int64) int {
	n, _ := slices.BinarySearch(steps[:], context) // a price's threshold belongs to what is below
	return n
}

// sumKey is what calls of one sum have in common.
type sumKey struct {
	grain  grain
	tenant string
	read   bool // lines of batches, which their next reading makes again

	provider, model, operation, region, tier string
	band                                     int
	hour                                     int64 // prices begin and end with one

	credential, team, service, feature, agent, user, customer, environment string

	tags string
}

// keyOf is the finest key of an event.
func keyOf(who authn.Principal, ev *event.Event) sumKey {
	return sumKey{
		grain: wholly, tenant: ev.Tenant,
		provider: ev.Provider, model: ev.Model, operation: ev.Operation, region: ev.Region, tier: ev.ServiceTier,
		band: band(contextOf(ev)), hour: ev.OccurredAt / int64(time.Hour),
		credential: who.Subject, team: ev.Team, service: ev.Service, feature: ev.Feature, agent: ev.Agent,
		user: ev.User, customer: ev.EndCustomer, environment: ev.Environment, tags: tagsKey(ev.Tags),
	}
}

// at is the key at a coarser grain.
func (k sumKey) at(g grain) sumKey {
	out := sumKey{grain: g, tenant: k.tenant, read: k.read}
	switch g {
	case wholly:
		return k
	case priced:
		out.provider, out.model, out.operation, out.region, out.tier, out.band, out.hour = k.provider, k.model, k.operation, k.region, k.tier, k.band, k.hour
	}
	return out
}

// contextOf is the length that chooses the price of a call.
func contextOf(ev *event.Event) int64 {
	if ev.ContextTokens > 0 {
		return ev.ContextTokens
	}
	return ev.Tokens.Prompt()
}

// ofOne reports a tag that hardly two calls share, and that no rule can be about.
func ofOne(t event.Tag) bool { return strings.HasPrefix(t.Key, "prompt_digest") }

// tagsKey is one text for the tags that a sum keeps.
func tagsKey(tags []event.Tag) string {
	var b strings.Builder
	for _, t := range tags {
		if !ofOne(t) {
			b.WriteString(t.Key + "\x00" + t.Value + "\x00") // neither holds a control character
		}
	}
	return b.String()
}

// sum is what calls of one key come to.
type sum struct {
	who         authn.Principal
	ev          event.Event // of all of them
	calls       int64
	first, last int64
}

// newSum begins the sum of a key with nothing in it.
func newSum(k sumKey, who authn.Principal, ev *event.Event) *sum {
	s := &sum{who: who, first: ev.OccurredAt, last: ev.OccurredAt}
	s.ev = event.Event{
		ID: newID(time.Unix(0, ev.OccurredAt)), Tenant: k.tenant,
		ProducerID: ev.ProducerID, ProducerEpoch: ev.ProducerEpoch, ProducerSeq: ev.ProducerSeq,
		Provider: k.provider, Model: k.model, Operation: k.operation, Region: k.region, ServiceTier: k.tier,
		Team: k.team, Service: k.service, Feature: k.feature, Agent: k.agent, User: k.user, EndCustomer: k.customer, Environment: k.environment,
		Status: event.StatusError, ErrorType: gapError, Estimated: true,
	}
	if k.grain != wholly {
		s.who.Subject = "" // nor is it for whom the credential is bound to
	}
	if k.grain == counted {
		s.ev.Provider, s.ev.Model, s.ev.ErrorType = unnamed, unnamed, lostError
	}
	if k.grain == wholly {
		s.ev.Tags = slices.DeleteFunc(slices.Clone(ev.Tags), ofOne)
	}
	return s
}

// add adds a call. The longest context stands for all: each of them has the same price
// but in books with other steps. Of a line that the next reading makes again only its
// number is kept: with its tokens it would be billed twice.
func (s *sum) add(ev *event.Event, read bool) {
	s.calls++
	s.first, s.last = min(s.first, ev.OccurredAt), max(s.last, ev.OccurredAt)
	if read {
		return
	}
	for c, n := range ev.Tokens {
		s.ev.Tokens[c] = min(s.ev.Tokens[c]+n, event.MaxTokens)
	}
	s.ev.ContextTokens = max(s.ev.ContextTokens, contextOf(ev))
}

// event is the sum as one event, which says that it is a gap.
func (s *sum) event() event.Event {
	ev := s.ev
	ev.OccurredAt = s.last
	ev.Tags = slices.Clone(ev.Tags)
	ev.Tags = setTag(ev.Tags, "gap_calls", strconv.FormatInt(s.calls, 10))
	ev.Tags = setTag(ev.Tags, "gap_from", time.Unix(0, s.first).UTC().Format(time.RFC3339Nano))
	ev.Tags = setTag(ev.Tags, "gap_to", time.Unix(0, s.last).UTC().Format(time.RFC3339Nano))
	return ev
}

// sums are the sums of the calls beyond maxWaiting.
type sums struct {
	byKey map[sumKey]*sum
	of    [counted + 1]int // how many there are of each grain
}

// add sums an event up, at the finest grain that has room.
func (s *sums) add(who authn.Principal, ev *event.Event, read bool) {
	if s.byKey == nil {
		s.byKey = map[sumKey]*sum{}
	}
	k := keyOf(who, ev)
	if k.read = read; read {
		k = k.at(counted)
	}
	for k.grain < counted && s.byKey[k] == nil && s.of[k.grain] >= maxSums {
		k = k.at(k.grain + 1)
	}
	if s.byKey[k] == nil {
		s.byKey[k] = newSum(k, who, ev)
		s.of[k.grain]++
	}
	s.byKey[k].add(ev, read)
}

// calls is how many are summed up.
func (s *sums) calls() (n int64) {
	for _, v := range s.byKey {
		n += v.calls
	}
	return n
}

// take takes all sums out. They are as they are from then on, under their ids: of what
// the sink did not take for certain it must not be told anything else.
func (s *sums) take() (out []waiting) {
	for _, v := range s.byKey {
		out = append(out, waiting{v.who, v.event(), v.calls})
	}
	clear(s.byKey)
	s.of = [counted + 1]int{}
	return out
}
