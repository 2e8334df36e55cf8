package analytics

import (
	"encoding/binary"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

const (
	entryTable     = "entry"
	rollupTable    = "rollup_hour"
	announcedTable = "announced"

	kindType    = "Enum8('usage' = 1, 'rejected' = 2, 'correction' = 3, 'control' = 4, 'counters' = 5, 'declared_loss' = 6)"
	decimalType = "Decimal(38, 12)"
	timeType    = "DateTime64(6, 'UTC')"

	nanosPerMicro = 1000
)

// entryBlock holds the rows of one block of table entry in columns that keep
// their memory from block to block.
type entryBlock struct {
	tenant                                                     *lowColumn
	seq                                                        proto.ColUInt64
	kind                                                       proto.ColInt8
	partition                                                  proto.ColInt32
	commit                                                     proto.ColInt64
	occurred, received                                         proto.ColInt64
	key                                                        proto.ColFixedStr16
	content                                                    proto.ColUInt64
	producer, provider, model, operation, region, tier, status *lowColumn
	team, service, feature, agent, environment                 *lowColumn
	user, customer, request                                    proto.ColStr
	tags                                                       *tagColumn
	costNull                                                   proto.ColUInt8
	cost                                                       proto.ColDecimal128
	unpricedReason, priceRow                                   *lowColumn
	latency, ttft                                              proto.ColUInt64
	streamed, estimated                                        proto.ColBool
	tokens                                                     [tokens.NumClasses]proto.ColInt64
	unpricedDelta, estimatedDelta                              proto.ColInt8
	rejectReason, edge, gpuState, purchase                     *lowColumn
	gpuMicros                                                  proto.ColInt64
	edgeEpoch, accepted, refused                               proto.ColInt64

	block clickhouse.Block
	heads []announcement // by place in the tenant column's dictionary
}

// announcement is the greatest that a plan holds of one tenant.
type announcement struct {
	tenant    string
	partition int32
	commit    int64
	seq       int64
}

func newEntryBlock() *entryBlock {
	b := &entryBlock{
		tenant: newLowColumn(), producer: newLowColumn(), provider: newLowColumn(), model: newLowColumn(), operation: newLowColumn(),
		region: newLowColumn(), tier: newLowColumn(), status: newLowColumn(), team: newLowColumn(), service: newLowColumn(),
		feature: newLowColumn(), agent: newLowColumn(), environment: newLowColumn(), tags: newTagColumn(),
		unpricedReason: newLowColumn(), priceRow: newLowColumn(), rejectReason: newLowColumn(), edge: newLowColumn(),
		gpuState: newLowColumn(), purchase: newLowColumn(),
	}
	b.block = clickhouse.Block{
		{Name: "tenant_id", Data: b.tenant}, {Name: "seq", Data: &b.seq}, {Name: "kind", Data: typed(&b.kind, kindType)},
		{Name: "ledger_partition", Data: &b.partition}, {Name: "ledger_commit", Data: &b.commit},
		{Name: "occurred_at", Data: typed(&b.occurred, timeType)}, {Name: "received_at", Data: typed(&b.received, timeType)},
		{Name: "event_key", Data: &b.key}, {Name: "content", Data: &b.content}, {Name: "producer_id", Data: b.producer},
		{Name: "provider", Data: b.provider}, {Name: "model", Data: b.model}, {Name: "operation", Data: b.operation},
		{Name: "region", Data: b.region}, {Name: "service_tier", Data: b.tier}, {Name: "status", Data: b.status},
		{Name: "team", Data: b.team}, {Name: "service", Data: b.service}, {Name: "feature", Data: b.feature},
		{Name: "agent", Data: b.agent}, {Name: "environment", Data: b.environment}, {Name: "user_pseudonym", Data: &b.user},
		{Name: "end_customer", Data: &b.customer}, {Name: "tags", Data: b.tags},
		{Name: "cost", Data: &nullableColumn{&b.costNull, typed(&b.cost, decimalType)}},
		{Name: "unpriced_reason", Data: b.unpricedReason}, {Name: "price_row", Data: b.priceRow},
		{Name: "latency_us", Data: &b.latency}, {Name: "ttft_us", Data: &b.ttft},
		{Name: "streamed", Data: &b.streamed}, {Name: "estimated", Data: &b.estimated},
		{Name: "reject_reason", Data: b.rejectReason}, {Name: "edge_id", Data: b.edge}, {Name: "edge_epoch", Data: &b.edgeEpoch},
		{Name: "accepted", Data: &b.accepted}, {Name: "refused", Data: &b.refused},
		{Name: "unpriced_delta", Data: &b.unpricedDelta}, {Name: "estimated_delta", Data: &b.estimatedDelta},
		{Name: "gpu_us", Data: &b.gpuMicros}, {Name: "gpu_state", Data: b.gpuState}, {Name: "purchase_option", Data: b.purchase},
		{Name: "provider_request_id", Data: &b.request},
	}
	for c := range tokens.NumClasses {
		b.block = append(b.block, proto.InputColumn{Name: c.String(), Data: &b.tokens[c]})
	}
	return b
}

func (b *entryBlock) reset() {
	b.block.Reset()
	b.heads = b.heads[:0]
}

func (b *entryBlock) rows() int { return b.tenant.Rows() }

func (b *entryBlock) append(e *chain.Entry, commit int64) {
	ev := &e.Event
	b.announce(b.tenant.Append(ev.Tenant), e, commit)
	b.seq = append(b.seq, uint64(e.Seq))
	b.kind = append(b.kind, int8(e.Kind))
	b.partition = append(b.partition, e.Position.Partition)
	b.commit = append(b.commit, commit)
	occurred := ev.OccurredAt
	if occurred == 0 {
		occurred = ev.ReceivedAt
	}
	b.occurred = append(b.occurred, occurred/nanosPerMicro)
	b.received = append(b.received, ev.ReceivedAt/nanosPerMicro)
	b.appendIdentity(e)
	b.appendAttribution(ev)
	b.appendMoney(e)
	b.latency = append(b.latency, uint64(ev.LatencyMicros))
	b.ttft = append(b.ttft, uint64(ev.TTFTMicros))
	b.streamed = append(b.streamed, ev.Streamed)
	b.appendCounts(e)
	b.rejectReason.Append(e.RejectReason)
	b.edge.Append(e.EdgeID)
	b.edgeEpoch = append(b.edgeEpoch, e.EdgeEpoch)
	b.accepted = append(b.accepted, e.Accepted)
	b.refused = append(b.refused, e.Refused)
}

// announce notes how far the block goes for the tenant.
func (b *entryBlock) announce(tenant uint32, e *chain.Entry, commit int64) {
	if int(tenant) == len(b.heads) {
		b.heads = append(b.heads, announcement{tenant: b.tenant.Value(tenant), partition: e.Position.Partition})
	}
	h := &b.heads[tenant]
	h.commit, h.seq = max(h.commit, commit), max(h.seq, e.Seq)
}

// appendIdentity adds the key of the event id. A rejection's own key is made of
// its position, so that of the id it names is computed here.
func (b *entryBlock) appendIdentity(e *chain.Entry) {
	key, content := [event.KeySize]byte{}, uint64(0)
	switch {
	case e.Kind == chain.Usage || e.Kind == chain.Correction:
		key = e.Key
	case e.Event.ID != "":
		key = event.KeyOf(e.Event.ID)
	}
	if e.Kind == chain.Rejected && e.Event.HasContentMAC {
		content = binary.BigEndian.Uint64(e.Event.ContentMAC[:])
	}
	b.key = append(b.key, key)
	b.content = append(b.content, content)
	b.producer.Append(e.Event.ProducerID)
	b.request.Append(loggedRequest(e))
}

func (b *entryBlock) appendAttribution(ev *event.Event) {
	b.provider.Append(ev.Provider)
	b.model.Append(ev.Model)
	b.operation.Append(ev.Operation)
	b.region.Append(ev.Region)
	b.tier.Append(ev.ServiceTier)
	b.status.Append(ev.Status)
	b.team.Append(ev.Team)
	b.service.Append(ev.Service)
	b.feature.Append(ev.Feature)
	b.agent.Append(ev.Agent)
	b.environment.Append(ev.Environment)
	b.user.Append(ev.UserPseudonym)
	b.customer.Append(ev.EndCustomer)
	b.tags.Append(ev.Tags)
	b.gpuState.Append(ev.GPUState)
	b.purchase.Append(ev.PurchaseOption)
}

// appendCounts adds what a usage entry counts, and what a correction changes of
// that: its tokens were counted with its original, so here are the differences.
func (b *entryBlock) appendCounts(e *chain.Entry) {
	var counts tokens.Vector
	var gpu int64
	estimated, deltas := false, chain.Corrected{}
	unpriced := e.AddsUnpriced()
	switch e.Kind {
	case chain.Usage:
		counts, estimated, gpu = e.Event.Tokens, e.Event.Estimated, e.Event.GPUMicros
		if !e.Priced {
			unpriced-- // reports count a null cost; this takes it back where it is none
		}
	case chain.Correction:
		deltas, counts, gpu = e.Corrected, e.Corrected.Tokens, e.Corrected.GPUMicros
	}
	b.gpuMicros = append(b.gpuMicros, gpu)
	b.estimated = append(b.estimated, estimated)
	b.unpricedDelta = append(b.unpricedDelta, int8(unpriced))
	b.estimatedDelta = append(b.estimatedDelta, int8(deltas.Estimated))
	for c := range b.tokens {
		b.tokens[c] = append(b.tokens[c], counts[c])
	}
}

func (b *entryBlock) appendMoney(e *chain.Entry) {
	null, cost := uint8(1), money.Sum{}
	if e.Priced {
		null, cost = 0, money.SumOf(e.Cost)
	}
	b.costNull = append(b.costNull, null)
	b.cost = append(b.cost, decimalOf(cost))
	b.unpricedReason.Append(e.UnpricedReason)
	b.priceRow.Append(e.PriceRow)
}

// decimalOf is the value of a Decimal(38, 12).
func decimalOf(s money.Sum) proto.Decimal128 {
	hi, lo := s.Words()
	return proto.Decimal128{Low: lo, High: hi}
}

// typedColumn is a column whose bytes stand for another type than ch-go's.
type typedColumn struct {
	proto.ColInput
	name proto.ColumnType
}

func typed(c proto.ColInput, name proto.ColumnType) *typedColumn { return &typedColumn{c, name} }

// Type is the column's type in ClickHouse.
func (c *typedColumn) Type() proto.ColumnType { return c.name }

// Reset begins the next block.
func (c *typedColumn) Reset() { c.ColInput.(proto.Resettable).Reset() }

// nullableColumn is a Nullable column; null holds 1 where there is no value.
type nullableColumn struct {
	null   *proto.ColUInt8
	values *typedColumn
}

// Type is the column's type in ClickHouse.
func (c *nullableColumn) Type() proto.ColumnType { return proto.ColumnTypeNullable.Sub(c.values.name) }

// Rows is the number of rows.
func (c *nullableColumn) Rows() int { return c.null.Rows() }

// Reset begins the next block.
func (c *nullableColumn) Reset() {
	c.null.Reset()
	c.values.Reset()
}

// EncodeColumn writes the column's data.
func (c *nullableColumn) EncodeColumn(b *proto.Buffer) {
	c.null.EncodeColumn(b)
	c.values.EncodeColumn(b)
}

// WriteColumn is EncodeColumn for a stream.
func (c *nullableColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
