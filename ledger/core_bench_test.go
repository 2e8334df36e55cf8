package ledger

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

type benchKeys struct{}

func (benchKeys) MACKey(id tenant.ID, epoch uint32) ([32]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s/%d", id, epoch)), nil
}

// BenchmarkCore is hop 3 without I/O: decode, dedupe by the filter, price,
// encode, chain and MAC; per record.
func BenchmarkCore(b *testing.B) {
	c, err := newCore(Topic{ID: [16]byte{1}, Partitions: 1}, 0, benchKeys{}, State{})
	if err != nil {
		b.Fatal(err)
	}
	book := pricing.Builtin()
	recs := []record{{key: []byte("system/0"), value: event.AppendControlRecord(nil, &event.Control{
		Kind: event.ControlPriceBook, Version: book.Version(), Content: book.Marshal(), IssuedAt: 1e18})}}
	for t := range 20 {
		id := fmt.Sprintf("tenant-%d", t)
		recs = append(recs, record{key: []byte(id), value: event.AppendControlRecord(nil, &event.Control{
			Kind: event.ControlKeyEpoch, Tenant: id, Version: "1", IssuedAt: 1e18})})
	}
	var bld builder
	offset, n := int64(0), 0
	for b.Loop() {
		if n == len(recs) {
			b.StopTimer()
			recs, n = benchRecords(recs[:0], offset), 0
			bld.reset()
			c.begin()
			c.needs(recs)
			b.StartTimer()
		}
		recs[n].offset = offset
		if err := c.build(&bld, &recs[n]); err != nil {
			b.Fatal(err)
		}
		offset++
		if n++; n == len(recs) {
			c.finish(&bld)
			c.remember()
		}
	}
}

// benchRecords makes a batch of usage records with ids that were never used.
func benchRecords(recs []record, from int64) []record {
	for i := range 10_000 {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d", from+int64(i)))
		e := event.Event{
			ID: fmt.Sprintf("%x-%x-7%03x-8%03x-%x", sum[:4], sum[4:6], i&0xfff, i&0xfff, sum[6:12]), Tenant: fmt.Sprintf("tenant-%d", i%20),
			OccurredAt: 1_760_000_000_000_000_000 + int64(i), ReceivedAt: 1_760_000_000_000_000_001 + int64(i), ProducerID: "bench", ProducerEpoch: 1, ProducerSeq: int64(i),
			Provider: "openai", Model: "gpt-4o", Operation: "chat", Region: "us-east-1", ServiceTier: "standard", Status: "ok", HTTPStatus: 200,
			LatencyMicros: 812_345, TTFTMicros: 210_000, Team: "search", Service: "ranking-api", Environment: "production", HasContentMAC: true, ContentMAC: sum,
		}
		e.Tokens[tokens.Input], e.Tokens[tokens.Output] = int64(100+i), int64(i%700)
		recs = append(recs, record{key: []byte(e.Tenant), value: event.AppendUsageRecord(nil, &e)})
	}
	return recs
}
