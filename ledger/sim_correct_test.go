package ledger

import (
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// simNet is what the model knows of a usage entry with its corrections.
type simNet struct {
	seq    int // of the usage entry
	tokens int64
	priced bool
	cost   int64
}

// simSent is a correction that was ledgered, to be sent again.
type simSent struct {
	value    []byte
	producer string
}

// price is what the tokens cost by the book in force.
func (m *simModel) price(tokens int64) (cost int64, priced bool) {
	if m.book == "" {
		return 0, false
	}
	// A book named "b<n>" asks n e-12 USD a token; "b0" has another model only.
	rate, err := strconv.ParseInt(m.book[1:], 10, 64)
	return tokens * rate, err == nil && rate > 0
}

// nameBook is the control entry before the first entry that uses the book.
func (m *simModel) nameBook(key string) {
	if m.book != "" && m.named[key] != m.book {
		m.named[key] = m.book
		m.entry(key, "control price_book %s @%d", m.book, m.bookAt)
	}
}

// correction is a provider's correction event; its content MAC is made of what
// tells corrections apart.
func correctionEvent(tenant, id, corrects, model string, tokensIn int64, producer string) []byte {
	e := event.Event{
		ID: id, Tenant: tenant, OccurredAt: 1_760_000_000_500_000_000, ReceivedAt: 1_760_000_002_000_000_000, ProducerID: producer,
		Provider: "openai", Model: model, Status: "error", ServiceTier: "batch", Team: "not the original's", HasContentMAC: true,
		Corrects: corrects, CorrectionReason: "invoice",
	}
	e.Tokens[tokens.Input] = tokensIn
	e.ContentMAC = sha256.Sum256(fmt.Appendf(nil, "%s/%s/%s/%s/%d/%s", tenant, id, corrects, model, tokensIn, producer))
	return event.AppendUsageRecord(nil, &e)
}

// correction writes one record that corrects something, or tries to.
func (m *simModel) correction() {
	m.events++
	key := m.pick()
	if m.rng.IntN(3) == 0 {
		key = m.names[0]
	}
	id, producer, tokensIn := fmt.Sprintf("c-%d", m.events), fmt.Sprintf("p%d", m.rng.IntN(2)), int64(m.rng.IntN(1000))
	list := m.idList[key]
	if len(list) == 0 {
		m.refusedCorrection(key, correctionEvent(key, id, "nobody", "m", 1, producer))
		return
	}
	of := list[m.rng.IntN(len(list))]
	if m.rng.IntN(2) == 0 { // the newest ones: in the same batch or the one before
		of = list[max(0, len(list)-1-m.rng.IntN(3))]
	}
	switch p := m.rng.IntN(20); {
	case p < 9:
		m.putCorrection(key, id, of, tokensIn, correctionEvent(key, id, of, "m", tokensIn, producer), producer)
	case p < 15:
		value := event.AppendRerateRecord(nil, &event.Rerate{ID: id, Tenant: key, Corrects: of, AskedAt: 1_760_000_003_000_000_000})
		m.putCorrection(key, id, of, -1, value, "")
	case p == 15:
		m.refusedCorrection(key, correctionEvent(key, id, id+" is nobody", "m", 1, producer))
	case p == 16:
		m.refusedCorrection(key, correctionEvent(key, id, of, "another model", 1, producer))
	case p == 17: // a kind of record that is not the event's
		value := correctionEvent(key, id, of, "m", 1, producer)
		value[0] = byte(event.UsageRecord)<<3 | 2
		m.refusedCorrection(key, value)
	default:
		m.againOrChained(key, id, producer)
	}
}

// againOrChained sends a correction a second time, uses its id for another
// body, or corrects the correction itself.
func (m *simModel) againOrChained(key, id, producer string) {
	for of, sent := range m.sent[key] {
		switch m.rng.IntN(3) {
		case 0:
			m.refusedCorrection(key, correctionEvent(key, id, of, "m", 1, producer))
		case 1:
			m.add(key, sent.value)
			c := m.counts[[2]string{key, sent.producer}]
			c.Duplicates++
			m.counts[[2]string{key, sent.producer}] = c
		case 2:
			offset := m.add(key, correctionEvent(key, of, "anything", "m", 7, producer))
			c := m.counts[[2]string{key, producer}]
			c.Conflicts++
			m.counts[[2]string{key, producer}] = c
			m.entry(key, "rejected conflict @%d", offset)
		}
		return
	}
}

// refusedCorrection writes a correction that must become a rejection.
func (m *simModel) refusedCorrection(key string, value []byte) {
	offset := m.add(key, value)
	m.rejected(m.owner(key), "invalid", offset)
}

// putCorrection writes a correction of a ledgered usage entry. Tokens below 0
// ask for the price alone.
func (m *simModel) putCorrection(key, id, of string, tokensIn int64, value []byte, producer string) {
	offset := m.add(key, value)
	net := m.nets[[2]string{key, of}]
	m.nameBook(key)
	now := simNet{seq: net.seq, tokens: net.tokens}
	if tokensIn >= 0 {
		now.tokens = tokensIn
	}
	now.cost, now.priced = m.price(now.tokens)
	if !now.priced {
		now.cost = 0
	}
	m.entry(key, "correction %s of %d: %d tokens %+d, cost %+d to %d, priced %v @%d", id, net.seq, now.tokens, now.tokens-net.tokens,
		now.cost-net.cost, now.cost, now.priced, offset)
	*net = now
	if m.sent[key] == nil {
		m.sent[key] = map[string]simSent{}
	}
	clear(m.sent[key]) // one is enough, and which one is no chance
	m.sent[key][id] = simSent{value, producer}
}

// toldCorrection is what the model tells of a correction entry, and "" when the
// entry contradicts itself or its original's attribution.
func toldCorrection(e *chain.Entry) string {
	d := &e.Corrected
	other := e.Event.Tokens
	other[tokens.Input] = 0
	if other != (tokens.Vector{}) || !e.Priced || e.Event.Team != "" || e.Event.Status != "ok" || e.Event.Model != "m" ||
		e.Event.OccurredAt == 1_760_000_000_500_000_000 || (e.UnpricedReason == "") != d.Priced || (d.Unpriced != 0) && (d.Unpriced > 0) == d.Priced {
		return ""
	}
	return fmt.Sprintf("correction %s of %d: %d tokens %+d, cost %+d to %d, priced %v @%d", e.Event.ID, d.Seq, e.Event.Tokens[tokens.Input],
		d.Tokens[tokens.Input], int64(e.Cost), int64(d.NetCost), d.Priced, e.Position.Offset)
}
