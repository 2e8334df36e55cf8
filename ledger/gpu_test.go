package ledger

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// gpuEvent is a minute of half a device, unless change says otherwise.
func gpuEvent(id string, change func(*event.Event)) record {
	e := event.Event{
		ID: id, Tenant: "acme", OccurredAt: 1_760_000_000_000_000_000, ReceivedAt: 1_760_000_100_000_000_000, ProducerID: "gputime",
		Provider: "aws", Model: "p5.48xlarge", Region: "us-east-1", Operation: "gpu_time", ServiceTier: "standard", Status: "ok",
		GPUMicros: 30_000_000, GPUState: event.GPUUsed, Team: "search", DerivedFrom: "gpu_time/1 00", HasContentMAC: true,
	}
	if change != nil {
		change(&e)
	}
	e.ContentMAC = sha256.Sum256(e.AppendProducer(nil))
	return record{key: []byte("acme"), value: event.AppendUsageRecord(nil, &e)}
}

// Time of a GPU is priced, netted by corrections and priced anew like tokens are;
// what is corrected stays what it was; and entries of tokens keep version 1.
func TestGPUTimeIsLedgered(t *testing.T) {
	day := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	bookOf := func(version string, perHour money.Pico) event.Control {
		b, err := pricing.Builtin().WithGPUs(pricing.Header{Version: version}, []pricing.GPURow{{
			Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Purchase: pricing.OnDemand, PerHour: perHour, Devices: 8, ValidFrom: day, KnownFrom: day,
		}})
		if err != nil {
			t.Fatal(err)
		}
		return event.Control{Kind: event.ControlPriceBook, Version: version, Content: b.Marshal(), IssuedAt: 1e18}
	}
	first, second := bookOf("gpus", 55_040_000_000_000), bookOf("gpus-dearer", 110_080_000_000_000)
	token := event.Event{
		ID: "call", Tenant: "acme", OccurredAt: 1_760_000_000_000_000_000, ReceivedAt: 1_760_000_100_000_000_000, Provider: "openai", Model: "gpt-4o",
		ServiceTier: "standard", Status: "ok", HasContentMAC: true,
	}
	token.Tokens[tokens.Input] = 1
	correct := func(of string, micros int64, more func(*event.Event)) func(*event.Event) {
		return func(e *event.Event) {
			e.Corrects, e.GPUMicros, e.Team, e.DerivedFrom = of, micros, "not the original's", "gpu_time/1 11"
			if more != nil {
				more(e)
			}
		}
	}
	recs := []record{
		{key: []byte("system/0"), value: event.AppendControlRecord(nil, &first)},
		{key: []byte("acme"), value: event.AppendControlRecord(nil, &event.Control{Kind: event.ControlKeyEpoch, Tenant: "acme", Version: "1", IssuedAt: 1e18})},
		gpuEvent("g", nil),
		{key: []byte("acme"), value: event.AppendUsageRecord(nil, &token)},
		gpuEvent("spot", func(e *event.Event) { e.PurchaseOption = event.Spot }),
		gpuEvent("g-1", correct("g", 45_000_000, nil)),
		gpuEvent("g-2", correct("g", 0, nil)),
		gpuEvent("g-3", correct("g", 1, func(e *event.Event) { e.GPUState = event.GPUIdle })),
		gpuEvent("g-4", correct("g", 0, func(e *event.Event) { e.GPUState, e.Tokens[tokens.Output] = "", 5 })),
		gpuEvent("g-5", correct("g", 60_000_000, nil)),
		gpuEvent("c-1", correct("call", 1, func(e *event.Event) { e.Provider, e.Model = "openai", "gpt-4o" })),
		{key: []byte("system/0"), value: event.AppendControlRecord(nil, &second)},
		{key: []byte("acme"), value: event.AppendRerateRecord(nil, &event.Rerate{ID: "again", Tenant: "acme", Corrects: "g", AskedAt: 1_760_000_200_000_000_000})},
	}
	c, err := newCore(Topic{ID: [16]byte{1}, Partitions: 1}, 0, benchKeys{}, State{})
	if err != nil {
		t.Fatal(err)
	}
	var bld builder
	c.begin()
	c.needs(recs)
	var got []string
	for i := range recs {
		recs[i].offset = int64(i)
		if err := c.build(&bld, &recs[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range bld.rows {
		var e chain.Entry
		if err := e.Decode(bld.rows[i].Canonical); err != nil || !bytes.Equal(e.Append(nil), bld.rows[i].Canonical) {
			t.Fatalf("entry %d: %v", i, err)
		}
		ev := &e.Event
		v := bld.rows[i].Canonical[0]
		switch e.Kind {
		case chain.Usage:
			got = append(got, fmt.Sprintf("v%d %s %d µs %s %s %s rules %d%s", v, ev.ID, ev.GPUMicros, ev.GPUState, ev.Team, e.Cost, e.PricingVersion, e.UnpricedReason))
		case chain.Correction:
			got = append(got, fmt.Sprintf("v%d %s of %d: %+d to %d µs %s %s, %s to %s from %s", v, ev.ID, e.Corrected.Seq, e.Corrected.GPUMicros, ev.GPUMicros, ev.GPUState, ev.Team, e.Cost, e.Corrected.NetCost, ev.DerivedFrom))
		case chain.Rejected:
			got = append(got, "rejected "+e.RejectField)
		}
	}
	want := []string{
		"v2 g 30000000 µs used search 0.057333333333 rules 2",
		"v1 call 0 µs   0.000002500000 rules 1",
		"v2 spot 30000000 µs used search 0.000000000000 rules 2no_price_for_purchase_option",
		"v2 g-1 of 3: +15000000 to 45000000 µs used search, 0.028666666667 to 0.086000000000 from gpu_time/1 11",
		"v2 g-2 of 3: -45000000 to 0 µs used search, -0.086000000000 to 0.000000000000 from gpu_time/1 11",
		"rejected corrects: original", "rejected corrects: original",
		"v2 g-5 of 3: +60000000 to 60000000 µs used search, 0.114666666667 to 0.114666666667 from gpu_time/1 11",
		"rejected corrects: original",
		"v2 again of 3: +0 to 60000000 µs used search, 0.114666666666 to 0.229333333333 from ",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}
