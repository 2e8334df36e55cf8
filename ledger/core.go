package ledger

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/invariant"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/chain"
)

// record is a Kafka record as the core needs it.
type record struct {
	offset int64
	key    []byte
	value  []byte
}

// core turns the records of one partition into batches. It holds the heads as
// they will be when everything it has built is committed; it does no I/O and
// reads no clock. When a commit fails, the core is thrown away.
type core struct {
	topic     Topic
	partition int32
	keys      Keys

	tenants map[string]*tenantState
	numbers uint32 // of the next tenantState
	system  string // the chain of what belongs to nobody

	book        *pricing.Book
	bookControl ControlRow // where the book in force stands

	quarantined map[int64]struct{} // offsets that an operator has ruled out

	filter   *filter
	subjects subjects
	// cur are the keys of the batch being built, prev those of the batch that
	// may still be committing: what a look-up in the store cannot see.
	cur, prev map[recentKey]Content
	known     map[recentKey]Content // answers of the store for this batch

	corrections corrections

	hasher   *chain.Hasher
	entry    chain.Entry
	event    event.Event
	usage    pricing.Usage
	position chain.Position
	counts   map[countKey]*CounterRow
	number   int64 // of the batch being built
	touched  []*tenantState
	stats    BatchStats
}

// recentKey is a key of the tenant with the given number.
type recentKey struct {
	tenant uint32
	key    event.Key
}

type countKey struct {
	tenant   *tenantState
	producer string
}

// tenantState is a tenant's head as it will be after what is built.
type tenantState struct {
	id     string
	number uint32
	head   Head
	exists bool
	// loaded: the filter knows all of the tenant's keys, so that "definitely
	// new" needs no look-up.
	loaded bool
	mac    *chain.MACKey

	stored  bool  // the head is in the store, or in a batch on its way there
	touched int64 // the batch that last touched the tenant
	fresh   bool  // that batch makes the head
	before  Head  // at the start of that batch
	rows    []int // of that batch, as indices of build order
	indexed int   // how many of rows are in corrections.states
}

// BatchStats counts what a batch decided.
type BatchStats struct {
	Records     int
	Usage       int
	Unpriced    int
	Corrections int
	Duplicates  int
	Rejected    int
	Conflicts   int
	Lookups     int
}

func newCore(topic Topic, partition int32, keys Keys, st State) (*core, error) {
	c := &core{
		topic: topic, partition: partition, keys: keys,
		tenants: make(map[string]*tenantState),
		system:  string(tenant.System(partition)),
		filter:  newFilter(),
		cur:     make(map[recentKey]Content), prev: make(map[recentKey]Content),
		known:       make(map[recentKey]Content),
		corrections: newCorrections(),
		hasher:      chain.NewHasher(),
		counts:      make(map[countKey]*CounterRow),
		number:      st.LastBatch,
		quarantined: make(map[int64]struct{}, len(st.Quarantined)),
	}
	for _, offset := range st.Quarantined {
		c.quarantined[offset] = struct{}{}
	}
	for i := range st.Controls {
		if err := c.apply(&st.Controls[i]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// apply puts a global control record in force.
func (c *core) apply(row *ControlRow) error {
	switch row.Kind {
	case event.ControlPriceBook:
		book, err := pricing.ParseBook(row.Content)
		if err != nil {
			return fmt.Errorf("price book at offset %d: %w", row.Offset, err)
		}
		c.book, c.bookControl = book, *row
	case event.ControlRuleVersion:
		if row.Version != strconv.Itoa(pricing.RuleVersion) {
			return fmt.Errorf("%w: offset %d, pricing rules %q", ErrRuleVersion, row.Offset, row.Version)
		}
	}
	return nil
}

// tenantOf finds the tenant that a record's Kafka key names, or nil when the
// key is no tenant id or belongs to another partition.
func (c *core) tenantOf(key []byte) *tenantState {
	if t, ok := c.tenants[string(key)]; ok {
		return t
	}
	id := tenant.ID(key)
	if !tenant.ValidID(string(key)) && id != tenant.System(c.partition) || id.Partition(c.topic.Partitions) != c.partition {
		return nil
	}
	return c.addTenant(string(key))
}

func (c *core) addTenant(id string) *tenantState {
	t := &tenantState{id: id, number: c.numbers}
	c.numbers++
	c.tenants[id] = t
	return t
}

// systemTenant is the chain for what belongs to nobody. It exists without a
// control record, so that no record can come too early for it.
func (c *core) systemTenant() *tenantState {
	t, ok := c.tenants[c.system]
	if !ok {
		t = c.addTenant(c.system)
	}
	if !t.exists {
		t.exists = true
		t.head = Head{Tenant: c.system, Chain: chain.Genesis(c.system), KeyEpoch: 1}
	}
	return t
}

// needs says what must be read before the records can be built: tenants whose
// heads are not known yet, and keys that may be known to the ledger. One pass
// over the records that decodes no more than the event id.
func (c *core) needs(recs []record) (heads []string, refs []KeyRef) {
	clear(c.known)
	if _, ok := c.tenants[c.system]; !ok {
		c.addTenant(c.system)
		heads = append(heads, c.system)
	}
	for i := range recs {
		before := c.numbers
		t := c.tenantOf(recs[i].key)
		if t == nil {
			continue
		}
		if c.numbers > before {
			heads = append(heads, t.id)
		}
		rec, id, ok := peekEventID(recs[i].value)
		if !ok {
			continue
		}
		if rec.Kind != event.UsageRecord {
			c.wantOriginal(t, &rec)
		}
		k := recentKey{t.number, event.KeyOf(id)}
		if t.loaded && !c.filter.maybe(k.tenant, &k.key) {
			continue
		}
		// A key of the batch that is committing is in prev, and one that stands
		// twice in these records is asked for once.
		if _, ok := c.lookup(k); !ok {
			c.known[k] = Content{}
			refs = append(refs, KeyRef{t.id, k.key})
		}
	}
	clear(c.known)
	c.stats.Lookups += len(refs)
	return heads, refs
}

// peekEventID reads the event id of a usage, correction or re-rate record: field
// 1 of its body, which AppendUsageRecord puts first. A record that another
// program wrote in another order is decoded whole.
func peekEventID(value []byte) (event.Record, string, bool) {
	rec, err := event.SplitRecord(value)
	if err != nil || rec.Kind == event.ControlRecord || rec.Kind == event.CountersRecord {
		return rec, "", false
	}
	id, ok := event.PeekID(rec.Body)
	return rec, id, ok
}

// learn takes over what the store answered to needs.
func (c *core) learn(heads []Head, known []KnownKey) {
	for _, h := range heads {
		t := c.tenants[h.Tenant]
		invariant.Check(t != nil, "store answers only for what it was asked", "head of tenant %s", h.Tenant)
		t.head, t.exists, t.stored = h, true, true
	}
	for i := range known {
		t := c.tenants[known[i].Tenant]
		c.known[recentKey{t.number, known[i].Key}] = known[i].Content
	}
}

// begin starts the next batch; the one before may be committing.
func (c *core) begin() {
	c.prev, c.cur = c.cur, c.prev
	clear(c.cur)
	clear(c.counts)
	c.corrections.begin()
	c.touched = c.touched[:0]
	c.stats = BatchStats{}
	c.number++
}

// lookup says whether the ledger has the key, counting what is on its way there.
func (c *core) lookup(k recentKey) (Content, bool) {
	if v, ok := c.cur[k]; ok {
		return v, true
	}
	if v, ok := c.prev[k]; ok {
		return v, true
	}
	v, ok := c.known[k]
	return v, ok
}

// build adds one record to the batch.
func (c *core) build(b *builder, r *record) error {
	c.stats.Records++
	c.position = chain.Position{TopicID: c.topic.ID, Partition: c.partition, Offset: r.offset}
	if len(c.quarantined) > 0 {
		if _, ok := c.quarantined[r.offset]; ok {
			return c.reject(b, c.ownerOf(r.key), r, chain.RejectQuarantined, "")
		}
	}
	rec, err := event.SplitRecord(r.value)
	if err != nil {
		return c.reject(b, c.ownerOf(r.key), r, chain.RejectUndecodable, "")
	}
	switch rec.Kind {
	case event.ControlRecord:
		return c.control(b, r, rec.Body)
	case event.CountersRecord:
		return c.counters(b, r, rec.Body)
	case event.RerateRecord:
		return c.rerateRecord(b, r, rec.Body)
	default:
		return c.usageRecord(b, r, &rec)
	}
}

// ownerOf is the chain that a record belongs to (rule 9).
func (c *core) ownerOf(key []byte) *tenantState {
	if t := c.tenantOf(key); t != nil && t.exists {
		return t
	}
	return c.systemTenant()
}

// usageRecord takes a usage event or a correction of one.
func (c *core) usageRecord(b *builder, r *record, rec *event.Record) error {
	t := c.ownerOf(r.key)
	ev := &c.event
	if err := ev.DecodeProto(rec.Body, event.Log); err != nil {
		return c.rejectField(b, t, r, err)
	}
	if err := ev.Validate(true); err != nil {
		return c.rejectField(b, t, r, err)
	}
	if (rec.Kind == event.CorrectionRecord) != (ev.Corrects != "") {
		return c.reject(b, t, r, chain.RejectInvalid, "corrects: "+event.RuleMalformed)
	}
	content := Content(ev.ContentMAC[:len(Content{})])
	key, fresh, err := c.admit(b, t, r, content)
	switch {
	case err != nil || !fresh:
		return err
	case ev.Corrects != "":
		return c.correct(b, t, r, key, content)
	}
	if err := c.ledgerUsage(b, t, key, content); err != nil {
		return err
	}
	c.subjects.note(b, t, ev, rec.Subject)
	return nil
}

// admit decides whose event the one in c.event is and whether its id is new
// (rule 2). When it is not fresh, all that is to be done about it is done.
func (c *core) admit(b *builder, t *tenantState, r *record, content Content) (key event.Key, fresh bool, err error) {
	ev := &c.event
	if t.id != ev.Tenant {
		if t.id == c.system {
			return key, false, c.reject(b, t, r, chain.RejectInvalid, "tenant_id: "+event.RuleTenant)
		}
		return key, false, c.reject(b, t, r, chain.RejectWrongTenant, "tenant_id: "+event.RuleTenant)
	}
	k := recentKey{t.number, event.KeyOf(ev.ID)}
	have, known := c.lookup(k)
	switch {
	case !known:
		return k.key, true, nil
	case have == content:
		c.stats.Duplicates++
		c.count(t, ev.ProducerID).Duplicates++
		return k.key, false, nil
	default:
		c.stats.Conflicts++
		c.count(t, ev.ProducerID).Conflicts++
		return k.key, false, c.reject(b, t, r, chain.RejectConflict, "event_id: "+event.RuleDuplicate)
	}
}

// ledgerUsage appends the usage event in c.event to the tenant's chain.
func (c *core) ledgerUsage(b *builder, t *tenantState, key event.Key, content Content) error {
	if err := c.nameBook(b, t); err != nil {
		return err
	}
	e := &c.entry
	e.Reset()
	e.Kind, e.Position, e.Key, e.Event = chain.Usage, c.position, key, c.event
	c.price(e)
	if err := c.seal(b, t, e, content); err != nil {
		return err
	}
	c.stats.Usage++
	if !e.Priced {
		c.stats.Unpriced++
	}
	return nil
}

// price sets the entry's money. Only what the log holds decides: the book in
// force at the record's position, the time of use and the time of receipt.
func (c *core) price(e *chain.Entry) {
	e.PricingVersion = pricing.RuleVersion
	if e.Event.IsGPU() {
		e.PricingVersion = pricing.GPURuleVersion
	}
	if c.book == nil {
		e.UnpricedReason = "no_price_book"
		return
	}
	c.usage = usageOf(&e.Event)
	r := c.book.Price(&c.usage)
	e.PriceBook = chain.Hash(c.book.Hash())
	e.PriceRow = string(r.Row)
	e.Priced, e.Cost = r.Priced, r.Cost
	if !r.Priced {
		e.UnpricedReason = r.Reason.String()
	}
}

// nameBook inserts the control entry of the book in force into the tenant's
// chain, just before the first entry that uses it (rule 5).
func (c *core) nameBook(b *builder, t *tenantState) error {
	row := &c.bookControl
	if c.book == nil || t.head.PriceBook == row.Hash {
		return nil
	}
	pos := chain.Position{TopicID: c.topic.ID, Partition: c.partition, Offset: row.Offset}
	c.touch(t)
	t.head.PriceBook = row.Hash
	return c.sealControl(b, t, &pos, event.ControlPriceBook, row.Version, row.Hash, row.IssuedAt)
}

func (c *core) sealControl(b *builder, t *tenantState, pos *chain.Position, kind, version string, hash chain.Hash, issuedAt int64) error {
	e := &c.entry
	e.Reset()
	e.Kind, e.Position, e.Key = chain.Control, *pos, chain.ControlKey(pos, t.id)
	e.Event.Tenant, e.Event.ReceivedAt = t.id, issuedAt
	e.ControlKind, e.ControlVersion, e.ControlHash = kind, version, hash
	return c.seal(b, t, e, Content{})
}

// control applies a control record. One that cannot be understood is rejected
// in the system chain and changes nothing.
func (c *core) control(b *builder, r *record, body []byte) error {
	ctl, err := event.DecodeControl(body)
	if err != nil {
		return c.rejectField(b, c.systemTenant(), r, err)
	}
	if !event.ValidText(ctl.Version, event.MaxValueBytes) {
		return c.reject(b, c.systemTenant(), r, chain.RejectInvalid, "version: "+event.RuleMalformed)
	}
	hash := chain.Hash(sha256.Sum256(ctl.Content))
	if ctl.Tenant != "" {
		return c.tenantControl(b, r, &ctl, hash)
	}
	row := ControlRow{
		Offset: r.offset, Kind: string([]byte(ctl.Kind)), Version: string([]byte(ctl.Version)),
		Hash: hash, Content: bytes.Clone(ctl.Content), IssuedAt: ctl.IssuedAt,
	}
	if ctl.Kind != event.ControlPriceBook && ctl.Kind != event.ControlRuleVersion {
		return c.reject(b, c.systemTenant(), r, chain.RejectInvalid, "kind: "+event.RuleOneOf)
	}
	if err := c.apply(&row); err != nil {
		if errors.Is(err, ErrRuleVersion) {
			return err // halts: guessing at rules would make another ledger
		}
		return c.reject(b, c.systemTenant(), r, chain.RejectInvalid, "content: "+event.RuleMalformed)
	}
	b.batch.Controls = append(b.batch.Controls, row)
	return nil
}

// mappingRules puts a version of a tenant's mapping rules into its chain: its number
// and the hash of its text. The rules ran at the edge; hop 3 does nothing by them.
func (c *core) mappingRules(b *builder, r *record, ctl *event.Control, hash chain.Hash) error {
	t := c.tenantOf(r.key)
	version, err := strconv.ParseUint(ctl.Version, 10, 31)
	if t == nil || !t.exists || t.id != ctl.Tenant || err != nil || version == 0 {
		return c.reject(b, c.systemTenant(), r, chain.RejectInvalid, "control: "+event.RuleMalformed)
	}
	c.touch(t)
	return c.sealControl(b, t, &c.position, event.ControlMappingRules, string([]byte(ctl.Version)), hash, ctl.IssuedAt)
}

// tenantControl applies a key epoch, which is also how a tenant comes to be.
func (c *core) tenantControl(b *builder, r *record, ctl *event.Control, hash chain.Hash) error {
	if ctl.Kind == event.ControlMappingRules {
		return c.mappingRules(b, r, ctl, hash)
	}
	// By the record's key: needs has asked for that tenant's head. A tenant that
	// only the payload names may have one that was never read.
	t := c.tenantOf(r.key)
	epoch, err := strconv.ParseUint(ctl.Version, 10, 31)
	if ctl.Kind != event.ControlKeyEpoch || t == nil || t.id != ctl.Tenant || err != nil || epoch == 0 {
		return c.reject(b, c.systemTenant(), r, chain.RejectInvalid, "control: "+event.RuleMalformed)
	}
	if t.exists && uint64(t.head.KeyEpoch) >= epoch {
		return nil // said twice: the epoch is in force already
	}
	if !t.exists && epoch != 1 || t.exists && epoch != uint64(t.head.KeyEpoch)+1 {
		return c.reject(b, c.systemTenant(), r, chain.RejectInvalid, "version: "+event.RuleRange)
	}
	if !t.exists {
		t.exists, t.loaded = true, true
		t.head = Head{Tenant: t.id, Chain: chain.Genesis(t.id)}
	}
	c.touch(t)
	t.head.KeyEpoch, t.mac = uint32(epoch), nil
	return c.sealControl(b, t, &c.position, event.ControlKeyEpoch, string([]byte(ctl.Version)), hash, ctl.IssuedAt)
}

func (c *core) counters(b *builder, r *record, body []byte) error {
	t := c.ownerOf(r.key)
	n, err := event.DecodeCounters(body)
	if err != nil {
		return c.rejectField(b, t, r, err)
	}
	if n.Tenant != t.id {
		return c.reject(b, t, r, chain.RejectWrongTenant, "tenant_id: "+event.RuleTenant)
	}
	for i := 1; i < len(n.Reasons); i++ {
		// They are sorted; the canonical form has each reason once.
		if n.Reasons[i].Reason == n.Reasons[i-1].Reason {
			return c.reject(b, t, r, chain.RejectInvalid, "reasons: "+event.RuleDuplicate)
		}
	}
	e := &c.entry
	e.Reset()
	e.Kind, e.Position, e.Key = chain.Counters, c.position, chain.CountersKey(&c.position)
	e.Event.Tenant, e.Event.ProducerID, e.Event.ReceivedAt = t.id, n.ProducerID, n.CountedAt
	e.EdgeID, e.EdgeEpoch, e.Accepted, e.Refused = n.EdgeID, n.EdgeEpoch, n.Accepted, n.Refused
	e.Reasons = append(e.Reasons[:0], n.Reasons...)
	return c.seal(b, t, e, Content{})
}

// rejectField rejects for the field and rule that an error of package event names.
func (c *core) rejectField(b *builder, t *tenantState, r *record, err error) error {
	var fe *event.FieldError
	if !errors.As(err, &fe) {
		return c.reject(b, t, r, chain.RejectUndecodable, "")
	}
	reason := chain.RejectInvalid
	if fe.Rule == event.RuleMalformed {
		reason = chain.RejectUndecodable
	}
	return c.reject(b, t, r, reason, fe.Field+": "+fe.Rule)
}

// reject appends a rejection to the tenant's chain: the hash and size of the
// record's body, where it stands and why, and never the body.
func (c *core) reject(b *builder, t *tenantState, r *record, reason, field string) error {
	e := &c.entry
	e.Reset()
	e.Kind, e.Position, e.Key = chain.Rejected, c.position, chain.RejectionKey(&c.position)
	e.Event.Tenant = t.id
	e.RejectReason, e.RejectField = reason, field
	e.BodyHash, e.BodySize = sha256.Sum256(r.value), int64(len(r.value))
	content := Content{}
	if reason == chain.RejectConflict {
		e.Event.ID, e.Event.ProducerID, e.Event.ReceivedAt = c.event.ID, c.event.ProducerID, c.event.ReceivedAt
		e.Event.OccurredAt = c.event.OccurredAt
		e.Event.ContentMAC, e.Event.HasContentMAC = c.event.ContentMAC, c.event.HasContentMAC
		content = Content(c.event.ContentMAC[:len(content)])
	} else {
		c.count(t, "").Rejected++
	}
	c.stats.Rejected++
	return c.seal(b, t, e, content)
}

// count is the counter row of a tenant's producer in this batch.
func (c *core) count(t *tenantState, producer string) *CounterRow {
	if row, ok := c.counts[countKey{t, producer}]; ok {
		return row
	}
	producer = string([]byte(producer)) // the record's memory is reused
	row := &CounterRow{Tenant: t.id, ProducerID: producer}
	c.counts[countKey{t, producer}] = row
	c.touch(t)
	return row
}

// touch makes the tenant one of the batch's and notes its head. It comes before
// anything that moves the head.
func (c *core) touch(t *tenantState) {
	if t.touched == c.number {
		return
	}
	t.touched, t.before, t.fresh, t.stored, t.indexed = c.number, t.head, !t.stored, true, 0
	c.touched = append(c.touched, t)
}
