package main

import (
	"errors"
	"fmt"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

// errUnexplained says that a price book gives another price than the ledger has.
var errUnexplained = errors.New("the entry's price does not follow from its book")

// noPriceBook is the ledger's reason where no book was in force.
const noPriceBook = "no_price_book"

// explanation is how an entry came by its price: worked out here, and found to be what
// the ledger says.
type explanation struct {
	entry *chain.Entry
	book  *pricing.Book // nil where none was in force
	// net is what the usage comes to by the entry: of a usage entry itself, of a correction
	// its original from there on.
	net    chain.Net
	result pricing.Result
	source string // of the price
	// Of tokens, sheet and parts; of the time of a GPU, gpu.
	parts []pricedClass
	gpu   *pricing.GPURow
	// before is what the usage came to until the correction; nil of a usage entry.
	before *chain.Net
	// direct says that before is what the corrected entry says itself, with no correction between.
	direct bool
	// provider is what the provider says that this usage costs; nil where it says nothing.
	provider *providerCost
}

// providerCost is a provider's own word on what usage costs.
type providerCost struct {
	cost money.Pico
	seq  int64 // of the entry that says it
	// over is what it is above the ledger's cost; meant where that has a price.
	over money.Pico
}

// pricedClass is what the tokens of one class cost.
type pricedClass struct {
	class   tokens.Class
	tokens  int64
	rate    pricing.Rate
	derived bool
	cost    money.Pico
}

// usageOf is what pricing asks of an event, as the ledger asked it.
func usageOf(ev *event.Event) pricing.Usage {
	return pricing.Usage{
		Provider: ev.Provider, Model: ev.Model, Region: ev.Region, ServiceTier: ev.ServiceTier,
		Tokens: ev.Tokens, ContextTokens: ev.ContextTokens, At: ev.OccurredAt, KnownAt: ev.ReceivedAt,
		GPU: ev.IsGPU(), GPUMicros: ev.GPUMicros, Purchase: ev.PurchaseOption,
	}
}

// explainEntry prices an entry anew under its book, nil for none, and fails with
// errUnexplained when the ledger has another result. original is the entry that a
// correction names.
func explainEntry(e, original *chain.Entry, book *pricing.Book) (*explanation, error) {
	x := &explanation{entry: e, book: book}
	x.net, _ = e.Net()
	if err := x.price(); err != nil {
		return nil, err
	}
	if original == nil {
		return x, x.compare(e)
	}
	if err := x.correct(original); err != nil {
		return nil, err
	}
	if e.Event.ProviderCost == "" && original.Event.Tokens == e.Event.Tokens && original.Event.GPUMicros == e.Event.GPUMicros {
		return x, x.compare(original) // it speaks of the same usage
	}
	return x, x.compare(e)
}

// compare holds what the provider says in an entry of this usage beside what it comes to.
func (x *explanation) compare(e *chain.Entry) error {
	cost, ok := e.Event.ProviderCostPico()
	if !ok {
		return nil
	}
	over, err := cost.Sub(x.net.Cost)
	x.provider = &providerCost{cost, e.Seq, over}
	return err
}

// price works the price out and holds it against the ledger's.
func (x *explanation) price() error {
	e, because := x.entry, noPriceBook
	if x.book != nil {
		u := usageOf(&e.Event)
		x.result = x.book.Price(&u)
		because = x.result.Reason.String()
	}
	r := &x.result
	if r.Priced != x.net.Priced || r.Cost != x.net.Cost || string(r.Row) != e.PriceRow || because != e.UnpricedReason {
		return fmt.Errorf("%w: row %q and %s USD %s here, row %q and %s USD %s in the ledger", errUnexplained,
			r.Row, r.Cost, because, e.PriceRow, x.net.Cost, e.UnpricedReason)
	}
	switch {
	case !r.Priced:
		return nil
	case e.Event.IsGPU():
		return x.gpuRow()
	}
	return x.classes()
}

// gpuRow finds the price of the time of a GPU.
func (x *explanation) gpuRow() error {
	row, ok := x.book.GPURow(x.result.Row)
	if !ok {
		return x.noRow()
	}
	x.gpu, x.source = &row, row.Source
	return nil
}

// classes finds the rate of each class of tokens, and holds their sum against the ledger.
func (x *explanation) classes() error {
	row, sheet, ok := x.book.Sheet(x.result.Row)
	if !ok {
		return x.noRow()
	}
	x.source = row.Source
	var sum money.Pico
	for c, n := range x.entry.Event.Tokens {
		if n == 0 {
			continue
		}
		part, err := money.MulAtto(n, int64(sheet.Rates[c]))
		if err == nil {
			sum, err = sum.Add(part)
		}
		if err != nil {
			return err
		}
		x.parts = append(x.parts, pricedClass{tokens.Class(c), n, sheet.Rates[c], sheet.Derived[c], part})
	}
	if sum != x.net.Cost {
		return fmt.Errorf("%w: the components come to %s USD", errUnexplained, sum)
	}
	return nil
}

func (x *explanation) noRow() error {
	return fmt.Errorf("%w: the book has no row %q", errUnexplained, x.result.Row)
}

// correct works out what the usage came to before, and holds the correction against the
// entry that it names.
func (x *explanation) correct(original *chain.Entry) error {
	e, d := x.entry, &x.entry.Corrected
	was, err := x.net.Cost.Sub(e.Cost)
	if err != nil || was < 0 {
		return fmt.Errorf("%w: it adds %s USD to come to %s USD", errUnexplained, e.Cost, x.net.Cost)
	}
	x.before = &chain.Net{
		Seq: d.Seq, GPUMicros: e.Event.GPUMicros - d.GPUMicros, Priced: d.Unpriced > 0 || d.Unpriced == 0 && d.Priced, Cost: was,
	}
	for c, n := range e.Event.Tokens {
		x.before.Tokens[c] = n - d.Tokens[c]
	}
	if !x.before.Priced && was != 0 {
		return fmt.Errorf("%w: it adds %s USD to usage without a price, to come to %s USD", errUnexplained, e.Cost, x.net.Cost)
	}
	if original.Kind != chain.Usage || original.Event.ID != e.Event.Corrects || !sameCall(&original.Event, &e.Event) {
		return fmt.Errorf("%w: it corrects %q, and entry %d is not of that usage", errUnexplained, e.Event.Corrects, d.Seq)
	}
	first, _ := original.Net()
	x.direct = first.Priced == x.before.Priced && first.Cost == was && first.Tokens == x.before.Tokens && first.GPUMicros == x.before.GPUMicros
	return nil
}

// sameCall reports that two events are of one call as far as a price depends on it: all
// but how much was used, and when that was told.
func sameCall(a, b *event.Event) bool {
	x, y := usageOf(a), usageOf(b)
	x.Tokens, x.ContextTokens, x.GPUMicros, x.KnownAt = y.Tokens, y.ContextTokens, y.GPUMicros, y.KnownAt
	return x == y
}
