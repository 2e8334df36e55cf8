package main

import (
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

// What the proxy says that a call costs, and holds against spend caps, is what the ledger
// will price it at, in each region and tier.
func TestProxyPricesAsTheLedger(t *testing.T) {
	const list = `provider,model,region,service,valid_from,known_from,input_per_mtok
bedrock,big,,standard,2026-01-01,2026-01-01,1
bedrock,big,eu-west-1,standard,2026-01-01,2026-01-01,1.1
bedrock,big,eu-west-1,flex,2026-01-01,2026-01-01,0.55
bedrock,far,ap-east-1,standard,2026-01-01,2026-01-01,7
`
	book, _, err := pricing.ImportCSV(strings.NewReader(list), pricing.ImportOptions{AsOf: time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	p := &bookPricer{}
	p.book.Store(book)
	at := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		model, region, tier, want string
	}{
		{"big", "", "", "1.000000000000"}, {"big", "us-east-1", "", "1.000000000000"}, {"big", "eu-west-1", "", "1.100000000000"},
		{"big", "eu-west-1", "flex", "0.550000000000"}, {"big", "us-east-1", "flex", ""}, {"far", "ap-east-1", "", "7.000000000000"}, {"far", "", "", ""},
	} {
		ev := event.Event{
			Provider: "bedrock", Model: c.model, Region: c.region, ServiceTier: c.tier, OccurredAt: at.UnixNano(), ReceivedAt: at.UnixNano(),
			Tokens: tokens.Vector{tokens.Input: 1_000_000},
		}
		u := usageOf(&ev)
		ledger := book.Price(&u)
		cost, ok := p.Price(ev.Provider, ev.Model, ev.Region, ev.ServiceTier, at, &ev.Tokens)
		if cost != ledger.Cost || ok != ledger.Priced || ok != (c.want != "") || ok && cost.String() != c.want {
			t.Errorf("%+v: %s, %v by the proxy, %s, %v by the ledger", c, cost, ok, ledger.Cost, ledger.Priced)
		}
	}
}
