package ledger

import (
	"fmt"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ledger/chain"
)

// Original is a usage entry that a correction is about, as the ledger has it.
type Original struct {
	KeyRef
	// Newest is the canonical bytes of the newest entry that says what the
	// original comes to: its newest correction, else the original itself.
	Newest []byte
}

// corrections is what the core knows of the originals that the batch being
// built corrects. It is empty, and costs nothing, in a batch without
// corrections.
type corrections struct {
	// wanted are the originals of the batch's records, asked of the store.
	wanted []KeyRef
	// states is the newest entry of each original: what the store answered, the
	// usage entries of this batch that were looked at, and what it corrected.
	states map[recentKey][]byte
	// cur are the originals that this batch corrects, prev those of the batch
	// that may still be committing: of these the store's answer may be old.
	cur, prev map[recentKey]struct{}
	state     chain.Entry // scratch
}

func newCorrections() corrections {
	return corrections{
		states: make(map[recentKey][]byte), cur: make(map[recentKey]struct{}), prev: make(map[recentKey]struct{}),
	}
}

// begin starts the next batch.
func (x *corrections) begin() {
	x.cur, x.prev = x.prev, x.cur
	clear(x.cur)
	clear(x.states)
	x.wanted = x.wanted[:0]
}

// wantOriginal notes the original of a correction or re-rate record.
func (c *core) wantOriginal(t *tenantState, rec *event.Record) {
	id := ""
	if rec.Kind == event.RerateRecord {
		if r, err := event.DecodeRerate(rec.Body); err == nil {
			id = r.Corrects
		}
	} else if c.event.DecodeProto(rec.Body, event.Log) == nil {
		id = c.event.Corrects
	}
	if id != "" {
		c.corrections.wanted = append(c.corrections.wanted, KeyRef{t.id, event.KeyOf(id)})
	}
}

// originals are those that must be read from the store before the batch is
// built. afterCommit says that the batch before must be committed first, because
// it made or corrected one of them.
func (c *core) originals() (refs []KeyRef, afterCommit bool) {
	for _, ref := range c.corrections.wanted {
		k := recentKey{c.tenants[ref.Tenant].number, ref.Key}
		_, made := c.prev[k]
		_, corrected := c.corrections.prev[k]
		afterCommit = afterCommit || made || corrected
	}
	return c.corrections.wanted, afterCommit
}

// learnOriginals takes over what the store answered to originals.
func (c *core) learnOriginals(found []Original) {
	for i := range found {
		c.corrections.states[recentKey{c.tenants[found[i].Tenant].number, found[i].Key}] = found[i].Newest
	}
}

// netOf reads what the tenant's usage entry with the key comes to at this point
// of the log into c.corrections.state. It is false when there is no such entry.
func (c *core) netOf(b *builder, t *tenantState, k recentKey) (net chain.Net, ok bool, err error) {
	x := &c.corrections
	canonical, ok := x.states[k]
	if !ok {
		c.indexRows(b, t)
		if canonical, ok = x.states[k]; !ok {
			return net, false, nil
		}
	}
	if err := x.state.Decode(canonical); err != nil {
		return net, false, fmt.Errorf("%w: stored entry of tenant %s: %w", ErrRefused, t.id, err)
	}
	net, ok = x.state.Net()
	return net, ok, nil
}

// indexRows finds the usage entries that this batch has made of the tenant.
func (c *core) indexRows(b *builder, t *tenantState) {
	if t.touched != c.number {
		return
	}
	for _, i := range t.rows[t.indexed:] {
		if row := &b.rows[i]; row.Kind == chain.Usage {
			c.corrections.states[recentKey{t.number, row.Key}] = row.Canonical
		}
	}
	t.indexed = len(t.rows)
}

// correct appends the correction in c.event, whose own id is new, to the
// tenant's chain: a provider's, which replaces the counts of its original.
func (c *core) correct(b *builder, t *tenantState, r *record, key event.Key, content Content) error {
	original := recentKey{t.number, event.KeyOf(c.event.Corrects)}
	net, ok, err := c.netOf(b, t, original)
	if err != nil {
		return err
	}
	state := &c.corrections.state.Event
	if !ok || state.Provider != c.event.Provider || state.Model != c.event.Model || state.GPUState != c.event.GPUState {
		return c.reject(b, t, r, chain.RejectInvalid, "corrects: "+event.RuleOriginal)
	}
	ev := event.Event{
		ID: c.event.ID, Tenant: t.id, ProducerID: c.event.ProducerID, ProducerEpoch: c.event.ProducerEpoch, ProducerSeq: c.event.ProducerSeq,
		Tokens: c.event.Tokens, ContextTokens: c.event.ContextTokens, Estimated: c.event.Estimated, GPUMicros: c.event.GPUMicros,
		ProviderRequestID: c.event.ProviderRequestID, ProviderCost: c.event.ProviderCost,
		Corrects: c.event.Corrects, CorrectionReason: c.event.CorrectionReason, DerivedFrom: c.event.DerivedFrom,
		ReceivedAt: c.event.ReceivedAt, ContentMAC: c.event.ContentMAC, HasContentMAC: true,
	}
	return c.ledgerCorrection(b, t, original, &ev, &net, key, content)
}

// rerateRecord prices an entry anew.
func (c *core) rerateRecord(b *builder, r *record, body []byte) error {
	t := c.ownerOf(r.key)
	rr, err := event.DecodeRerate(body)
	if err != nil {
		return c.rejectField(b, t, r, err)
	}
	c.event.Reset()
	c.event.ID, c.event.Tenant, c.event.ReceivedAt = rr.ID, rr.Tenant, rr.AskedAt
	key, fresh, err := c.admit(b, t, r, Content{})
	if err != nil || !fresh {
		return err
	}
	original := recentKey{t.number, event.KeyOf(rr.Corrects)}
	net, ok, err := c.netOf(b, t, original)
	if err != nil {
		return err
	}
	if !ok {
		return c.reject(b, t, r, chain.RejectInvalid, "corrects: "+event.RuleOriginal)
	}
	ev := event.Event{
		ID: rr.ID, Tenant: t.id, ReceivedAt: rr.AskedAt, Corrects: rr.Corrects, CorrectionReason: chain.RerateReason,
		Tokens: net.Tokens, ContextTokens: net.ContextTokens, Estimated: net.Estimated, GPUMicros: net.GPUMicros,
	}
	return c.ledgerCorrection(b, t, original, &ev, &net, key, Content{})
}

// ledgerCorrection appends the correction of an original, which comes to net
// until now and whose newest entry is in c.corrections.state.
func (c *core) ledgerCorrection(b *builder, t *tenantState, original recentKey, ev *event.Event, net *chain.Net, key event.Key, content Content) error {
	if err := c.nameBook(b, t); err != nil {
		return err
	}
	e := &c.entry
	e.Reset()
	e.Kind, e.Position, e.Key = chain.Correction, c.position, key
	ev.Tags = e.Event.Tags
	e.Event = *ev
	chain.Attribute(&e.Event, &c.corrections.state.Event)
	c.price(e)
	if err := e.Correct(net); err != nil {
		return fmt.Errorf("%w: correction of entry %d of tenant %s: %w", ErrRefused, net.Seq, t.id, err)
	}
	if err := c.seal(b, t, e, content); err != nil {
		return err
	}
	c.corrections.states[original] = b.rows[len(b.rows)-1].Canonical
	c.corrections.cur[original] = struct{}{}
	c.stats.Corrections++
	return nil
}
