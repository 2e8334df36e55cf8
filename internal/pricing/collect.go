package pricing

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// mtok is the exponent of a rate per million tokens.
const mtok = -6

// parseRateScaled reads a decimal literal × 10^exponent in USD per token, exactly.
func parseRateScaled(literal string, exponent int) (Rate, error) {
	mantissa, e, err := parseDecimal(literal)
	if err != nil {
		return NoRate, err
	}
	v, ok := scaleUp(mantissa, e+exponent+rateScale)
	if !ok {
		return NoRate, fmt.Errorf("%w: %.40q", ErrRate, literal)
	}
	return Rate(v), nil
}

// readMtok reads a JSON number in USD per million tokens.
func readMtok(value json.RawMessage) (Rate, string) {
	if len(value) == 0 || (value[0] != '-' && (value[0] < '0' || value[0] > '9')) {
		return NoRate, RefusedBadField
	}
	rate, err := parseRateScaled(string(value), mtok)
	if err != nil {
		return NoRate, RefusedInexact
	}
	return rate, ""
}

// collector gathers the rows of a list whose entries may have several, one after the other
// in valid time.
type collector struct {
	options ImportOptions
	report  Report
	byKey   map[rowKey][]Row
	order   []rowKey
	aliases []Alias
}

func newCollector(o ImportOptions, source string) (*collector, error) {
	if o.AsOf.IsZero() {
		return nil, fmt.Errorf("%w: no date", ErrImport)
	}
	o.AsOf = o.AsOf.UTC().Truncate(time.Second)
	if o.ValidFrom.IsZero() {
		o.ValidFrom = o.AsOf
	}
	if o.KnownFrom.IsZero() {
		o.KnownFrom = o.AsOf
	}
	if o.Version == "" {
		o.Version = source + "-" + o.AsOf.Format(time.DateOnly)
	}
	return &collector{
		options: o,
		report: Report{
			Used: map[string]int{}, Ignored: map[string]int{}, Unknown: map[string]int{},
			Zeros: map[string]int{}, Metadata: map[string]int{},
		},
		byKey: map[rowKey][]Row{},
	}, nil
}

func (c *collector) refuse(entry, reason string) {
	c.report.Refused = append(c.report.Refused, Refusal{entry, reason})
}

// keep adds the rows of one entry, which share a key, unless another entry has it: then
// equal prices merge, and others are refused. It reports whether the entry is priced.
func (c *collector) keep(entry string, rows []Row) bool {
	key := rows[0].key()
	old, taken := c.byKey[key]
	switch {
	case !taken:
		c.byKey[key] = rows
		c.order = append(c.order, key)
	case slices.EqualFunc(old, rows, samePrice):
		c.report.Merged++
	default:
		c.refuse(entry, RefusedConflict)
		return false
	}
	c.report.Priced++
	return true
}

// samePrice compares what two rows of one key charge, and when.
func samePrice(a, b Row) bool {
	return a.ValidFrom.Equal(b.ValidFrom) && a.ValidTo.Equal(b.ValidTo) && slices.Equal(a.Sheets, b.Sheets)
}

// book makes the book of what was kept.
func (c *collector) book() (*Book, Report, error) {
	var rows []Row
	providers, models := map[string]bool{}, map[rowKey]bool{}
	for _, key := range c.order {
		rows = append(rows, c.byKey[key]...)
		providers[key.provider] = true
		models[rowKey{key.provider, key.model, ""}] = true
	}
	c.report.Rows = len(rows)
	aliases := providerAliases(providers)
	for _, a := range c.aliases { // the first of a name wins, and no model loses its own
		name := rowKey{a.Provider, a.Name, ""}
		if validName(a.Name) && !models[name] {
			models[name] = true
			aliases = append(aliases, a)
		}
	}
	b, err := NewBook(Header{
		Version: c.options.Version, Source: c.options.Source, SourceDate: c.options.AsOf.Format(time.DateOnly), Notes: c.options.Notes,
	}, rows, aliases)
	if err != nil {
		return nil, Report{}, err
	}
	return b, c.report, nil
}

// priceWord reports a field that is about money; see priceWords.
func priceWord(name string) bool {
	return slices.ContainsFunc(append(priceWords, "mtok", "kcount"), func(w string) bool { return strings.Contains(name, w) })
}

// believed says whether a zero rate of the provider is a price.
func (c *collector) believed(rate Rate, provider string) bool {
	return rate != 0 || slices.Contains(c.options.Free, provider)
}

// refusalOf returns why an entry with these sheets has no price, or "".
func refusalOf(sheets []Sheet, zeros int, free bool) string {
	priced := slices.ContainsFunc(sheets, func(s Sheet) bool {
		return slices.ContainsFunc(s.Rates[:], func(r Rate) bool { return r > 0 || (r == 0 && free) })
	})
	switch {
	case priced && len(sheets) > maxSheets:
		return RefusedTooManyTiers
	case priced:
		return ""
	case zeros > 0:
		return RefusedAllZero
	}
	return RefusedNoTokenRates
}
