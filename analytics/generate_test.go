package analytics_test

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// traffic makes ledger entries of some tenants, the same for the same seed.
type traffic struct {
	random  *rand.Rand
	tenants []string
	from    time.Time // of occurred_at
	span    time.Duration
	seq     map[string]int64
	states  map[string][]*chain.Entry // some usage entries, each as it was last corrected
	serial  int
}

func newTraffic(seed uint64, tenants int, from time.Time, span time.Duration) *traffic {
	g := &traffic{random: rand.New(rand.NewPCG(seed, 1)), from: from, span: span, seq: map[string]int64{}, states: map[string][]*chain.Entry{}}
	for i := range tenants {
		g.tenants = append(g.tenants, fmt.Sprintf("tenant-%d", i))
	}
	return g
}

func pick(r *rand.Rand, prefix string, n int) string {
	// Skewed, and sometimes untagged.
	k := min(r.IntN(n+1), r.IntN(n+1))
	if k == n {
		return ""
	}
	return fmt.Sprintf("%s-%d", prefix, k)
}

// next fills e with an entry of a random kind: most are usage.
func (g *traffic) next(e *chain.Entry) {
	e.Reset()
	g.serial++
	r := g.random
	tenant := g.tenants[min(r.IntN(len(g.tenants)), r.IntN(len(g.tenants)))]
	g.seq[tenant]++
	e.Seq = g.seq[tenant]
	e.Position = chain.Position{Partition: int32(len(tenant) % 3), Offset: int64(g.serial)}
	ev := &e.Event
	ev.Tenant = tenant
	ev.OccurredAt = g.from.UnixNano() + r.Int64N(int64(g.span))
	ev.ReceivedAt = ev.OccurredAt + r.Int64N(int64(time.Hour))
	switch k := r.IntN(100); {
	case k < 88 || k < 95 && len(g.states[tenant]) == 0:
		e.Kind = chain.Usage
		g.usage(e)
		g.states[tenant] = append(g.states[tenant], clone(e))
	case k < 95:
		g.correction(e, tenant)
	case k < 98:
		g.conflict(e)
	default:
		e.Kind = chain.Counters
		ev.OccurredAt = 0
		ev.ProducerID, e.EdgeID, e.EdgeEpoch, e.Accepted, e.Refused = "producer-1", "edge-1", 7, int64(g.serial), 3
		e.Key = chain.CountersKey(&e.Position)
	}
}

// correction nets an earlier entry, perhaps for the second time: other tokens,
// another price, a price at last or none any more.
func (g *traffic) correction(e *chain.Entry, tenant string) {
	states := g.states[tenant]
	at := g.random.IntN(len(states))
	was, _ := states[at].Net()
	received := e.Event.ReceivedAt
	g.usage(e)
	e.Event.Tags = nil
	chain.Attribute(&e.Event, &states[at].Event)
	e.Event.ReceivedAt = received
	if g.random.IntN(2) == 0 { // the price alone
		e.Event.Tokens, e.Event.Estimated, e.Event.GPUMicros = was.Tokens, was.Estimated, was.GPUMicros
	}
	if err := e.Correct(&was); err != nil {
		panic(err)
	}
	states[at] = clone(e)
}

// conflict rejects one of a few ids with one of a few contents.
func (g *traffic) conflict(e *chain.Entry) {
	e.Kind, e.RejectReason, e.RejectField = chain.Rejected, chain.RejectConflict, "event_id: duplicate"
	e.Key = chain.RejectionKey(&e.Position)
	e.Event.ID = fmt.Sprintf("event-%d", g.random.IntN(5))
	e.Event.ContentMAC, e.Event.HasContentMAC = [32]byte{byte(1 + g.random.IntN(3))}, true
}

func (g *traffic) usage(e *chain.Entry) {
	r, ev := g.random, &e.Event
	ev.ID = fmt.Sprintf("event-%d", g.serial)
	e.Key = event.KeyOf(ev.ID)
	ev.Provider, ev.Model = fmt.Sprintf("provider-%d", r.IntN(3)), fmt.Sprintf("model-%d", r.IntN(8))
	ev.Operation, ev.Region = pick(r, "operation", 3), pick(r, "region", 3)
	ev.ServiceTier, ev.Status = []string{"standard", "batch", "flex"}[r.IntN(3)], event.StatusOK
	if r.IntN(10) == 0 {
		ev.Status = []string{event.StatusError, event.StatusBlocked, event.StatusTruncated}[r.IntN(3)]
	}
	ev.Team, ev.Service, ev.Feature = pick(r, "team", 4), pick(r, "service", 4), pick(r, "feature", 4)
	ev.Agent, ev.EndCustomer, ev.Environment = pick(r, "agent", 6), pick(r, "customer", 9), pick(r, "env", 2)
	if r.IntN(3) > 0 {
		ev.UserPseudonym = fmt.Sprintf("%032x", r.IntN(20))
	}
	for _, key := range []string{"cost-centre", "it's \\ odd", "ß"} {
		if r.IntN(2) == 0 {
			ev.Tags = append(ev.Tags, event.Tag{Key: key, Value: pick(r, "value", 3)})
		}
	}
	for c := range ev.Tokens {
		if r.IntN(2) == 0 {
			ev.Tokens[c] = r.Int64N(1000)
		}
	}
	if r.IntN(6) == 0 { // time of a GPU
		ev.Tokens, ev.GPUMicros = tokens.Vector{}, r.Int64N(3e8)
		ev.GPUState, ev.PurchaseOption = []string{event.GPUUsed, event.GPUIdle, event.GPUUnallocated}[r.IntN(3)], []string{"", event.Spot}[r.IntN(2)]
	}
	stopped := ev.Status == event.StatusBlocked && r.IntN(2) == 0
	if stopped { // before it was sent
		ev.Tokens, ev.GPUMicros, ev.GPUState, ev.PurchaseOption = tokens.Vector{}, 0, "", ""
	}
	ev.LatencyMicros, ev.TTFTMicros = r.Int64N(1e6), r.Int64N(1e5)
	ev.Streamed, ev.Estimated = r.IntN(2) == 0, r.IntN(20) == 0
	ev.ProducerID = "producer-1"
	if r.IntN(12) == 0 || stopped && r.IntN(2) == 0 {
		e.UnpricedReason = "unknown_model"
		return
	}
	e.Priced, e.Cost, e.PriceRow = true, money.Pico(r.Int64N(3e12)), "row-1"
}

// entries makes n entries that live on their own.
func (g *traffic) entries(n int) []*chain.Entry {
	all := make([]*chain.Entry, n)
	for i := range all {
		all[i] = &chain.Entry{}
		g.next(all[i])
	}
	return all
}

// workload makes usage as applications do: each tenant has some services that
// call a model or two, events come in order of time but for a few, and every
// id is new.
type workload struct {
	random   *rand.Rand
	profiles []event.Event
	seq      map[string]int64
	at       int64
	gap      int64 // mean nanoseconds between events
	serial   int
}

func newWorkload(seed uint64, tenants int, from time.Time, perSecond int) *workload {
	w := &workload{random: rand.New(rand.NewPCG(seed, 2)), seq: map[string]int64{}, at: from.UnixNano(), gap: int64(time.Second) / int64(perSecond)}
	for t := range tenants {
		for p := range 10 {
			k := w.random.IntN(12)
			w.profiles = append(w.profiles, event.Event{
				Tenant: fmt.Sprintf("tenant-%d", t), ProducerID: fmt.Sprintf("proxy-%d", p%2), Provider: fmt.Sprintf("provider-%d", k/4),
				Model: fmt.Sprintf("model-%d", k), Operation: "chat", Region: fmt.Sprintf("eu-%d", k%2), ServiceTier: "standard",
				Team: fmt.Sprintf("team-%d", p/2), Service: fmt.Sprintf("service-%d", p), Feature: fmt.Sprintf("feature-%d", p%4), Environment: "production",
				Tags: []event.Tag{{Key: "cost-centre", Value: fmt.Sprintf("cc-%d", p)}, {Key: "release", Value: "2026.3"}},
			})
		}
	}
	return w
}

func (w *workload) next(e *chain.Entry) {
	e.Reset()
	w.serial++
	r := w.random
	w.at += r.Int64N(2 * w.gap)
	e.Kind, e.Event = chain.Usage, w.profiles[min(r.IntN(len(w.profiles)), r.IntN(len(w.profiles)))]
	ev := &e.Event
	w.seq[ev.Tenant]++
	e.Seq, e.Position = w.seq[ev.Tenant], chain.Position{Offset: int64(w.serial)}
	ev.OccurredAt, ev.ReceivedAt, ev.Status = w.at, w.at+r.Int64N(1e9), event.StatusOK
	if r.IntN(50) == 0 {
		ev.Status = event.StatusError
	}
	if r.IntN(50) == 0 {
		ev.OccurredAt -= r.Int64N(int64(6 * time.Hour))
	}
	ev.ID = fmt.Sprintf("018f3c1e-%04x-7%03x-9f00-%012x", w.serial>>12&0xffff, w.serial&0xfff, r.Int64N(1<<48))
	e.Key = event.KeyOf(ev.ID)
	ev.UserPseudonym, ev.EndCustomer = fmt.Sprintf("%032x", r.IntN(2000)*7919), fmt.Sprintf("customer-%d", r.IntN(300))
	ev.Tokens[0], ev.Tokens[1], ev.Tokens[4] = r.Int64N(8000), r.Int64N(4000), r.Int64N(1500)
	ev.LatencyMicros, ev.TTFTMicros, ev.Streamed = r.Int64N(9e6), r.Int64N(9e5), true
	e.Priced, e.Cost, e.PriceRow = true, money.Pico(r.Int64N(3e10)), "builtin/"+ev.Model
	if r.IntN(200) == 0 {
		e.Priced, e.Cost, e.PriceRow, e.UnpricedReason = false, 0, "", "unknown_model"
	}
}

func (w *workload) entries(n int) []*chain.Entry {
	all := make([]*chain.Entry, n)
	for i := range all {
		all[i] = &chain.Entry{}
		w.next(all[i])
	}
	return all
}
