package main

import (
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// corrected is the correction of what an entry says, with other counts or another book.
func corrected(t *testing.T, seq int64, of *chain.Entry, book *pricing.Book, change func(*event.Event)) chain.Entry {
	t.Helper()
	was, _ := of.Net()
	e := chain.Entry{Kind: chain.Correction, Seq: seq, Event: event.Event{
		ID: "fix", Tenant: of.Event.Tenant, ReceivedAt: of.Event.ReceivedAt + int64(time.Hour), Corrects: "e-3", CorrectionReason: "invoice",
		Tokens: of.Event.Tokens, GPUMicros: of.Event.GPUMicros,
	}}
	chain.Attribute(&e.Event, &of.Event)
	if change != nil {
		change(&e.Event)
	}
	priceEntry(&e, book)
	if err := e.Correct(&was); err != nil {
		t.Fatal(err)
	}
	return e
}

// moreOutput is a provider's later word: fewer prompt tokens, and a longer answer.
func moreOutput(ev *event.Event) { ev.Tokens[tokens.Input], ev.Tokens[tokens.Output] = 1_000, 1_057 }

// A correction explains what the usage costs from there on, and what it cost before.
func TestPricesExplainCorrection(t *testing.T) {
	book, first := pricing.Builtin(), pricedEntry(t, "gpt-4o")
	fix := corrected(t, 5, &first, book, moreOutput)
	out, err := explained(t, fix, first)
	if err != nil {
		t.Fatal(err)
	}
	checkExplained(t, out, "testdata/prices_explain_correction.txt")

	again := corrected(t, 6, &fix, book, func(ev *event.Event) { ev.CorrectionReason = "" })
	out, err = explained(t, again, first)
	for _, want := range []string{`corrects  3, event "e-3"` + "\n", "by an earlier correction", "delta                                  +0.000000000000"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("a second one: %v\n%s\nlacks %q", err, out, want)
		}
	}

	// A price that came at last, and one that is gone.
	unknown := first
	unknown.Priced, unknown.Cost, unknown.PriceRow, unknown.PriceBook, unknown.UnpricedReason = false, 0, "", chain.Hash{}, noPriceBook
	out, err = explained(t, corrected(t, 5, &unknown, book, nil), unknown)
	if err != nil || !strings.Contains(out, "unpriced, by entry 3") || !strings.Contains(out, "+"+first.Cost.String()) {
		t.Errorf("a price at last: %v\n%s", err, out)
	}
	negative := corrected(t, 5, &first, book, nil)
	negative.Corrected.Priced, negative.Corrected.NetCost, negative.Corrected.Unpriced = false, 0, 1
	negative.Cost, negative.PriceRow, negative.PriceBook, negative.UnpricedReason = -first.Cost, "", chain.Hash{}, noPriceBook
	out, err = explained(t, negative, first)
	if err != nil || !strings.Contains(out, "unpriced  no_price_book") || !strings.Contains(out, "delta     -"+first.Cost.String()) {
		t.Errorf("a price that is gone: %v\n%s", err, out)
	}
}

// The correction of the time of a GPU, to the 1e-12 USD.
func TestPricesExplainGPUCorrection(t *testing.T) {
	base, _ := gpuBooks(t)
	at := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC).UnixNano()
	first := chain.Entry{Kind: chain.Usage, Seq: 3, Event: event.Event{
		ID: "e-3", Tenant: "acme", Provider: "aws", Model: "p5.48xlarge", Region: "us-east-1", OccurredAt: at, ReceivedAt: at,
		GPUMicros: 3_600_000_000, GPUState: "used", DerivedFrom: "gpu_time/1 00",
	}}
	priceEntry(&first, base)
	fix := corrected(t, 5, &first, base, func(ev *event.Event) { ev.GPUMicros -= 1_800_000_000 })
	x, err := explainEntry(&fix, &first, base)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := x.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"sum          1800000000 µs × 55.040000000000 USD / (3,600,000,000 µs × 8) = 3.440000000000 USD",
		"before       6.880000000000, by entry 3", "now          3.440000000000", "delta        -3.440000000000", "usage delta  -1800000000 µs",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s\nlacks %q", out.String(), want)
		}
	}
}

// A correction that does not follow is not explained away: neither its price, nor
// what it says of before, nor what it corrects.
func TestPricesExplainRefusesCorrections(t *testing.T) {
	for name, change := range map[string]func(fix, first *chain.Entry){
		"another price":                 func(fix, _ *chain.Entry) { fix.Corrected.NetCost++ },
		"another row":                   func(fix, _ *chain.Entry) { fix.PriceRow = "openai/gpt-4o@2024-01-01/standard" },
		"more than it comes to":         func(fix, _ *chain.Entry) { fix.Cost = fix.Corrected.NetCost + 1 },
		"a cost before without a price": func(fix, _ *chain.Entry) { fix.Corrected.Unpriced = -1 },
		"another call's time":           func(_, first *chain.Entry) { first.Event.OccurredAt++ },
		"another model":                 func(_, first *chain.Entry) { first.Event.Model = "gpt-4o-mini" },
		"another event":                 func(_, first *chain.Entry) { first.Event.ID = "e-4" },
		"no usage":                      func(_, first *chain.Entry) { first.Kind = chain.Rejected },
	} {
		first := pricedEntry(t, "gpt-4o")
		fix := corrected(t, 5, &first, pricing.Builtin(), moreOutput)
		if fix.Cost != money.Pico(9_415_000_000) {
			t.Fatalf("1,000 tokens more at 10 USD a million, 234 fewer at 2.5: %s", fix.Cost)
		}
		change(&fix, &first)
		if out, err := explained(t, fix, first); err == nil || exitCodeOf(err) != exitFailure || !strings.Contains(err.Error(), "does not follow") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// What the provider says that a call costs stands beside what the ledger says.
func TestPricesExplainProvidersCost(t *testing.T) {
	for name, c := range map[string]struct {
		says, want string
		change     func(*chain.Entry)
	}{
		"nothing":         {"", "", nil},
		"the same":        {"0.00472625", "provider                               0.004726250000, the same\n", nil},
		"more":            {"0.005", "provider                               0.005000000000, 0.000273750000 more than the ledger\n", nil},
		"less":            {"0", "provider                               0.000000000000, 0.004726250000 less than the ledger\n", nil},
		"without a price": {"0.005", "provider  0.005000000000, which the ledger has no price to compare with\n", func(e *chain.Entry) { e.Event.Model = "unheard-of" }},
	} {
		e := pricedEntry(t, "gpt-4o")
		e.Event.ProviderCost = c.says
		if c.change != nil {
			c.change(&e)
			priceEntry(&e, pricing.Builtin())
		}
		out, err := explained(t, e)
		if err != nil || !strings.Contains(out, c.want) || c.want == "" && strings.Contains(out, "provider ") {
			t.Errorf("%s: %v\n%s\nlacks %q", name, err, out, c.want)
		}
	}
	// A re-rate has no word of the provider of its own: that on the same usage counts.
	first := pricedEntry(t, "gpt-4o")
	first.Event.ProviderCost = "0.005"
	out, err := explained(t, corrected(t, 5, &first, pricing.Builtin(), nil), first)
	if err != nil || !strings.Contains(out, "0.000273750000 more than the ledger (entry 3)") {
		t.Errorf("a re-rate: %v\n%s", err, out)
	}
	out, err = explained(t, corrected(t, 5, &first, pricing.Builtin(), moreOutput), first)
	if err != nil || strings.Contains(out, "provider ") {
		t.Errorf("a correction of the counts: %v\n%s", err, out)
	}
	out, err = explained(t, corrected(t, 5, &first, pricing.Builtin(), func(ev *event.Event) { moreOutput(ev); ev.ProviderCost = "0.02" }), first)
	if err != nil || !strings.Contains(out, "0.005858750000 more than the ledger\n") {
		t.Errorf("a correction that states a cost: %v\n%s", err, out)
	}
}
