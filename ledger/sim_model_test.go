package ledger

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// simTopic has two partitions, of which the simulation writes simPartition.
var simTopic = Topic{ID: [16]byte{7, 7}, Partitions: 2}

const simPartition = 1

// simKeys derives MAC keys from names.
type simKeys struct{}

func (simKeys) MACKey(id tenant.ID, epoch uint32) ([32]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s/%d", id, epoch)), nil
}

// simModel is what the ledger must come to, kept one record at a time by the
// program that makes the log. It shares no code with the core.
type simModel struct {
	log    *simLog
	rng    *rand.Rand
	system string
	names  []string // tenants of the partition
	away   string   // a tenant of the other partition

	want        map[string][]string // entries per tenant: kind and what is told of it
	epoch       map[string]int
	named       map[string]string // newest book of the tenant's chain
	book        string
	bookAt      int64
	ids         map[[2]string][32]byte // content MAC by tenant and id
	idList      map[string][]string
	nets        map[[2]string]*simNet         // by tenant and id of the usage entry
	sent        map[string]map[string]simSent // a correction per tenant, by its id
	counts      map[[2]string]CounterRow
	persons     map[[2]string]bool // who was ledgered, by tenant and pseudonym
	quarantined []int64
	events      int
}

func newSimModel(rng *rand.Rand) *simModel {
	m := &simModel{
		log: &simLog{}, rng: rng, system: string(tenant.System(simPartition)), want: map[string][]string{},
		epoch: map[string]int{}, named: map[string]string{}, ids: map[[2]string][32]byte{},
		idList: map[string][]string{}, nets: map[[2]string]*simNet{}, sent: map[string]map[string]simSent{}, counts: map[[2]string]CounterRow{},
		persons: map[[2]string]bool{},
	}
	for n := 0; len(m.names) < 5 || m.away == ""; n++ {
		id := fmt.Sprintf("tenant-%d", n)
		if tenant.ID(id).Partition(simTopic.Partitions) != simPartition {
			m.away = id
		} else if len(m.names) < 5 {
			m.names = append(m.names, id)
		}
	}
	return m
}

func (m *simModel) pick() string { return m.names[m.rng.IntN(len(m.names))] }

// owner is whose chain a record with this key goes to.
func (m *simModel) owner(key string) string {
	if m.epoch[key] > 0 {
		return key
	}
	return m.system
}

func (m *simModel) add(key string, value []byte) int64 { return m.log.add(key, value) }

func (m *simModel) entry(tenant, format string, args ...any) {
	m.want[tenant] = append(m.want[tenant], fmt.Sprintf(format, args...))
}

func (m *simModel) rejected(tenant, reason string, offset int64) {
	m.entry(tenant, "rejected %s @%d", reason, offset)
	c := m.counts[[2]string{tenant, ""}]
	c.Rejected++
	m.counts[[2]string{tenant, ""}] = c
}

// fill makes a log of n records.
func (m *simModel) fill(n int) {
	for range n {
		switch p := m.rng.IntN(100); {
		case p < 58:
			m.fresh()
		case p < 68:
			m.again()
		case p < 74:
			m.keyEpoch()
		case p < 77:
			m.priceBook()
		case p < 80:
			m.chosenID()
		case p < 90:
			m.correction()
		default:
			m.bad()
		}
	}
}

func (m *simModel) usage(tenant, id string, tokensIn int64, producer string) (value []byte, mac [32]byte) {
	e := event.Event{
		ID: id, Tenant: tenant, OccurredAt: 1_760_000_000_000_000_000 + int64(m.events), ReceivedAt: 1_760_000_001_000_000_000,
		ProducerID: producer, ProducerEpoch: 1, ProducerSeq: 7, Provider: "openai", Model: "m", Status: "ok",
		ServiceTier: "standard", HasContentMAC: true,
	}
	e.Tokens[tokens.Input] = tokensIn
	e.ContentMAC = sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d/%s", tenant, id, tokensIn, producer))
	var sealed []byte
	if e.UserPseudonym = personOf(id); e.UserPseudonym != "" {
		sealed = []byte("sealed " + tenant + " " + e.UserPseudonym)
	}
	fields, span := e.AppendProducerMarked(nil)
	return event.AppendUsageRecordOf(nil, &e, fields, span, sealed), e.ContentMAC
}

// personOf is who calls: the same person of each id, and nobody of every third.
func personOf(id string) string {
	h := sha256.Sum256([]byte(id))
	if n := int(h[0]) % 12; n < 8 {
		return fmt.Sprintf("%032x", n)
	}
	return ""
}

// put writes a usage record and says what must come of it.
func (m *simModel) put(key, id string, tokensIn int64, producer string) {
	value, mac := m.usage(key, id, tokensIn, producer)
	offset := m.add(key, value)
	if m.owner(key) == m.system {
		m.rejected(m.system, "invalid", offset)
		return
	}
	have, known := m.ids[[2]string{key, id}]
	c := m.counts[[2]string{key, producer}]
	switch {
	case known && have == mac:
		c.Duplicates++
	case known:
		c.Conflicts++
		m.entry(key, "rejected conflict @%d", offset)
	default:
		m.ids[[2]string{key, id}] = mac
		if p := personOf(id); p != "" {
			m.persons[[2]string{key, p}] = true
		}
		m.idList[key] = append(m.idList[key], id)
		m.nameBook(key)
		cost := "unpriced"
		net := &simNet{seq: len(m.want[key]) + 1, tokens: tokensIn}
		if n, priced := m.price(tokensIn); priced {
			net.cost, net.priced, cost = n, true, fmt.Sprint(n)
		}
		m.nets[[2]string{key, id}] = net
		m.entry(key, "usage %s %s @%d", id, cost, offset)
		return
	}
	m.counts[[2]string{key, producer}] = c
}

func (m *simModel) fresh() {
	m.events++
	key := m.pick()
	if m.rng.IntN(3) == 0 {
		key = m.names[0] // a hot tenant
	}
	id := fmt.Sprintf("e-%d", m.events)
	if m.rng.IntN(2) == 0 {
		id = fmt.Sprintf("0193a1b2-c3d4-7e5f-8a9b-%012x", m.events)
	}
	m.put(key, id, int64(m.rng.IntN(1000)), fmt.Sprintf("p%d", m.rng.IntN(3)))
}

// again sends an id once more: near or far, with the same body or another.
func (m *simModel) again() {
	key := m.pick()
	list := m.idList[key]
	if len(list) == 0 {
		m.fresh()
		return
	}
	i := m.rng.IntN(len(list))
	if m.rng.IntN(2) == 0 {
		i = max(0, len(list)-1-m.rng.IntN(3))
	}
	for range 1 + m.rng.IntN(3) {
		want := m.ids[[2]string{key, list[i]}]
		if m.rng.IntN(3) > 0 { // find the body that has this MAC
		search:
			for n := range int64(1000) {
				for p := range 3 {
					if sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d/p%d", key, list[i], n, p)) == want {
						m.put(key, list[i], n, fmt.Sprintf("p%d", p))
						break search
					}
				}
			}
			continue
		}
		m.put(key, list[i], 5000+int64(m.rng.IntN(3)), "p0")
	}
}

// chosenID is an id that somebody computed to be that of a rejection to come.
func (m *simModel) chosenID() {
	m.events++
	pos := chain.Position{TopicID: simTopic.ID, Partition: simPartition, Offset: int64(len(m.log.recs)) + int64(m.rng.IntN(4))}
	k := chain.RejectionKey(&pos)
	m.put(m.pick(), fmt.Sprintf("%x-%x-%x-%x-%x", k[:4], k[4:6], k[6:8], k[8:10], k[10:]), 1, "p1")
}

func (m *simModel) control(key string, c *event.Control) int64 {
	c.IssuedAt = 1_750_000_000_000_000_000 + int64(len(m.log.recs))
	return m.add(key, event.AppendControlRecord(nil, c))
}

// keyEpoch makes a tenant, raises its epoch, repeats it, or skips one.
func (m *simModel) keyEpoch() {
	key := m.pick()
	epoch := m.epoch[key] + m.rng.IntN(4) - 1
	offset := m.control(key, &event.Control{Kind: event.ControlKeyEpoch, Tenant: key, Version: strconv.Itoa(epoch)})
	switch {
	case epoch <= 0:
		m.rejected(m.system, "invalid", offset)
	case epoch == m.epoch[key]+1:
		m.epoch[key] = epoch
		m.entry(key, "control key_epoch %d @%d", epoch, offset)
	case epoch > m.epoch[key]:
		m.rejected(m.system, "invalid", offset)
	}
}

func (m *simModel) priceBook() {
	rate := m.rng.IntN(4)
	offset := m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: fmt.Sprintf("b%d", rate), Content: simBook(rate).Marshal()})
	if name := fmt.Sprintf("b%d", rate); name != m.book {
		m.book = name
	}
	m.bookAt = offset
}

// simBook asks rate e-12 USD for an input token; at rate 0 it does not know the
// model.
func simBook(rate int) *pricing.Book {
	model := "m"
	if rate == 0 {
		model = "unknown"
	}
	rates := pricing.NoRates()
	rates[tokens.Input] = pricing.Rate(rate) * 1_000_000
	long := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	b, err := pricing.NewBook(pricing.Header{Version: fmt.Sprintf("b%d", rate)}, []pricing.Row{{
		Provider: "openai", Model: model, ValidFrom: long, KnownFrom: long, Sheets: []pricing.Sheet{{Rates: rates}},
	}}, nil)
	if err != nil {
		panic(err)
	}
	return b
}

// bad writes something that must become one rejection, or none, and hurt nobody.
func (m *simModel) bad() {
	key := m.pick()
	counters := func(c event.Counters) []byte { return event.AppendCountersRecord(nil, &c) }
	switch m.rng.IntN(12) {
	case 0:
		m.rejected(m.owner(key), "undecodable", m.add(key, []byte("garbage")))
	case 1:
		m.rejected(m.owner(key), "undecodable", m.add(key, nil))
	case 2: // the payload names another tenant
		v, _ := m.usage(m.away, "x", 1, "p0")
		reason := "wrong_tenant"
		if m.owner(key) == m.system {
			reason = "invalid"
		}
		m.rejected(m.owner(key), reason, m.add(key, v))
	case 3: // a tenant that hashes elsewhere
		v, _ := m.usage(m.away, "x", 1, "p0")
		m.rejected(m.system, "invalid", m.add(m.away, v))
	case 4: // a key that is no tenant
		v, _ := m.usage(key, "x", 1, "p0")
		m.rejected(m.system, "invalid", m.add("Not A Tenant", v))
	case 5: // a key epoch for another tenant than the key's
		m.rejected(m.system, "invalid", m.control(m.pick2(key), &event.Control{Kind: event.ControlKeyEpoch, Tenant: key, Version: "1"}))
	case 6: // a control kind that nobody knows
		m.rejected(m.system, "invalid", m.control(m.system, &event.Control{Kind: "pause", Version: "1"}))
	case 7: // a price book that is none
		m.rejected(m.system, "invalid", m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: "b9", Content: []byte("{}")}))
	case 8: // a version that is no text
		m.rejected(m.system, "invalid", m.control(m.system, &event.Control{Kind: event.ControlPriceBook, Version: "b\xff", Content: simBook(2).Marshal()}))
	case 9: // the same reason twice
		m.rejectedCounters(key, counters(event.Counters{Tenant: key, ProducerID: "p0", EdgeID: "e", CountedAt: 5e17,
			Reasons: []event.ReasonCount{{Reason: "late", N: 1}, {Reason: "late", N: 2}}}), "invalid")
	case 10:
		offset := m.add(key, counters(event.Counters{Tenant: key, ProducerID: "p0", EdgeID: "e", Accepted: 3, CountedAt: 5e17}))
		if m.owner(key) == m.system {
			m.rejected(m.system, "wrong_tenant", offset)
		} else {
			m.entry(key, "counters @%d", offset)
		}
	case 11: // an operator ruled it out before the writer came by
		v, _ := m.usage(key, fmt.Sprintf("q-%d", len(m.log.recs)), 1, "p0")
		offset := m.add(key, v)
		m.quarantined = append(m.quarantined, offset)
		m.rejected(m.owner(key), "quarantined", offset)
	}
}

func (m *simModel) rejectedCounters(key string, value []byte, reason string) {
	offset := m.add(key, value)
	if m.owner(key) == m.system {
		reason = "wrong_tenant"
	}
	m.rejected(m.owner(key), reason, offset)
}

// pick2 is a tenant other than the given one.
func (m *simModel) pick2(other string) string {
	for {
		if id := m.pick(); id != other {
			return id
		}
	}
}

// told is what the model tells of an entry.
func told(e *chain.Entry) string {
	switch at := e.Position.Offset; e.Kind {
	case chain.Usage:
		cost := "unpriced"
		if e.Priced {
			cost = fmt.Sprint(int64(e.Cost))
		}
		return fmt.Sprintf("usage %s %s @%d", e.Event.ID, cost, at)
	case chain.Correction:
		return toldCorrection(e)
	case chain.Rejected:
		return fmt.Sprintf("rejected %s @%d", e.RejectReason, at)
	case chain.Control:
		return fmt.Sprintf("control %s %s @%d", e.ControlKind, e.ControlVersion, at)
	default:
		return fmt.Sprintf("%s @%d", e.Kind, at)
	}
}
