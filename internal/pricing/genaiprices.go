package pricing

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// genaiRates are the prices per million tokens of the list.
var genaiRates = map[string]tokens.Class{
	"input_mtok": tokens.Input, "cache_read_mtok": tokens.CacheRead, "cache_write_mtok": tokens.CacheWrite5m, "output_mtok": tokens.Output,
	"input_audio_mtok": tokens.AudioInput, "output_audio_mtok": tokens.AudioOutput,
}

// genaiIgnored are known prices that are none per token of a class.
var genaiIgnored = []string{"cache_audio_read_mtok", "requests_kcount", "tool_use_kcount"}

// genaiProviders are provider ids of the list that mean something narrower here.
var genaiProviders = map[string]string{"aws": "bedrock"}

// Reasons for refusing an entry of genai-prices.
const (
	RefusedTimeOfDay = "its price depends on the time of day"
	RefusedDates     = "its dated prices are not one without a date and then later and later ones"
)

type genaiProvider struct {
	ID          string       `json:"id"`
	PricingURLs []string     `json:"pricing_urls"`
	Models      []genaiModel `json:"models"`
}

type genaiModel struct {
	ID     string          `json:"id"`
	Match  genaiMatch      `json:"match"`
	Prices json.RawMessage `json:"prices"`
}

// genaiMatch is the rule by which names mean a model. Only names that it spells out become
// aliases: a prefix or a pattern would be a guess at models that nobody has priced.
type genaiMatch struct {
	Equals string       `json:"equals"`
	Or     []genaiMatch `json:"or"`
}

// genaiPrice is the price from a date on.
type genaiPrice struct {
	from   time.Time // zero: since always
	sheets []Sheet
}

// ImportGenAIPrices reads a price list in the form of genai-prices' data.json (or
// data_slim.json), plain or compressed with zstd: a list of providers with their models,
// prices in USD per million tokens. Where a class has tiers of its own, each threshold
// becomes a sheet that holds every class's price there, for "crossing a tier applies that
// rate to all tokens of this type". A dated price is valid from its date, the one without a
// date from o.ValidFrom, where a dated one does not hold already. Errors: ErrImport for what
// is not such a list; an entry that cannot be taken is refused in the report.
func ImportGenAIPrices(r io.Reader, o ImportOptions) (*Book, Report, error) {
	c, err := newCollector(o, "genai-prices")
	if err != nil {
		return nil, Report{}, err
	}
	plain, err := readPlain(r)
	if err != nil {
		return nil, Report{}, err
	}
	var list []genaiProvider
	if err := json.Unmarshal(plain, &list); err != nil || list == nil {
		return nil, Report{}, fmt.Errorf("%w: not a list of providers: %w", ErrImport, err)
	}
	for i := range list {
		for _, m := range list[i].Models {
			c.report.Entries++
			entry := list[i].ID + "/" + m.ID
			if reason := c.genai(entry, &list[i], &m); reason != "" {
				c.refuse(entry, reason)
			}
		}
	}
	return c.book()
}

// genai takes one model, or returns the reason why not.
func (c *collector) genai(entry string, p *genaiProvider, m *genaiModel) string {
	provider := p.ID
	if own, ok := genaiProviders[provider]; ok {
		provider = own
	}
	key, _, reason := entryKey(m.ID, provider)
	if reason != "" {
		return reason
	}
	prices, reason := c.genaiPrices(m.Prices, key.provider)
	if reason != "" {
		return reason
	}
	rows := c.genaiRows(key, prices)
	for i := range rows {
		if len(p.PricingURLs) > 0 {
			rows[i].Source = plainText(p.PricingURLs[0])
		}
		rows[i].Derive(Hints{})
	}
	if c.keep(entry, rows) {
		for _, name := range m.Match.names(nil) {
			if name = strings.ToLower(name); name != key.model {
				c.aliases = append(c.aliases, Alias{Name: name, Provider: key.provider, Model: key.model})
			}
		}
	}
	return ""
}

// names appends the names that a rule spells out.
func (m genaiMatch) names(to []string) []string {
	if m.Equals != "" {
		to = append(to, m.Equals)
	}
	for _, or := range m.Or {
		to = or.names(to)
	}
	return to
}

// genaiRows spreads prices over valid time.
func (c *collector) genaiRows(key rowKey, prices []genaiPrice) []Row {
	var rows []Row
	for i, p := range prices {
		row := Row{
			Provider: key.provider, Model: key.model, Region: key.region,
			ValidFrom: p.from, KnownFrom: c.options.KnownFrom, Sheets: p.sheets,
		}
		if p.from.IsZero() {
			row.ValidFrom = c.options.ValidFrom
		}
		if i+1 < len(prices) {
			if row.ValidTo = prices[i+1].from; !row.ValidTo.After(row.ValidFrom) {
				continue // only the first, whose beginning the list does not say
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// genaiPrices reads the one price of a model, or its dated ones in order.
func (c *collector) genaiPrices(value json.RawMessage, provider string) ([]genaiPrice, string) {
	var dated []struct {
		Constraint map[string]string          `json:"constraint"`
		Prices     map[string]json.RawMessage `json:"prices"`
	}
	if len(value) == 0 || value[0] != '[' {
		var plain map[string]json.RawMessage
		if json.Unmarshal(value, &plain) != nil {
			return nil, RefusedBadField
		}
		sheets, reason := c.genaiSheets(plain, provider)
		return []genaiPrice{{sheets: sheets}}, reason
	}
	if json.Unmarshal(value, &dated) != nil || len(dated) == 0 {
		return nil, RefusedBadField
	}
	var prices []genaiPrice
	for i, d := range dated {
		from, reason := genaiStart(d.Constraint)
		if reason != "" {
			return nil, reason
		}
		if (i == 0) != from.IsZero() || (i > 0 && !from.After(prices[i-1].from)) {
			return nil, RefusedDates
		}
		sheets, reason := c.genaiSheets(d.Prices, provider)
		if reason != "" {
			return nil, reason
		}
		prices = append(prices, genaiPrice{from, sheets})
	}
	return prices, ""
}

// genaiStart reads when a price begins; zero without a constraint.
func genaiStart(constraint map[string]string) (time.Time, string) {
	if len(constraint) == 0 {
		return time.Time{}, ""
	}
	if _, ok := constraint["start_time"]; ok {
		return time.Time{}, RefusedTimeOfDay
	}
	text, ok := constraint["start_date"]
	if !ok {
		text = constraint["start"] // the name until 2025-07
	}
	from, err := parseWhen(text)
	if err != nil || !validTime(from) {
		return time.Time{}, RefusedBadField
	}
	return from, ""
}

// parseWhen reads a date or an RFC 3339 time, in UTC.
func parseWhen(text string) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		t, err = time.Parse(time.RFC3339, text)
	}
	return t.UTC(), err
}

// genaiSteps is the price of one class: rates[i] above aboves[i] context tokens.
type genaiSteps struct {
	aboves []int64
	rates  []Rate
}

// at is the class's rate in the sheet above a threshold.
func (s *genaiSteps) at(above int64) Rate {
	rate := NoRate
	for i := range s.aboves {
		if s.aboves[i] <= above {
			rate = s.rates[i]
		}
	}
	return rate
}

// genaiSheets reads one set of prices.
func (c *collector) genaiSheets(prices map[string]json.RawMessage, provider string) ([]Sheet, string) {
	steps := map[tokens.Class]*genaiSteps{}
	var thresholds []int64
	zeros := 0
	for _, name := range slices.Sorted(maps.Keys(prices)) {
		class, ok := genaiRates[name]
		switch {
		case slices.Contains(genaiIgnored, name):
			c.report.Ignored[name]++
			continue
		case !ok && priceWord(name):
			c.report.Unknown[name]++
			continue
		case !ok:
			c.report.Metadata[name]++
			continue
		}
		s, reason := readSteps(prices[name])
		if reason != "" {
			return nil, reason
		}
		if slices.ContainsFunc(s.rates, func(r Rate) bool { return !c.believed(r, provider) }) {
			zeros++
			c.report.Zeros[name]++
			continue
		}
		steps[class] = s
		thresholds = append(thresholds, s.aboves...)
		c.report.Used[name]++
	}
	slices.Sort(thresholds)
	var sheets []Sheet
	for _, above := range slices.Compact(thresholds) {
		sheet := Sheet{Above: above, Rates: NoRates()}
		for class, s := range steps {
			sheet.Rates[class] = s.at(above)
		}
		sheets = append(sheets, sheet)
	}
	return sheets, refusalOf(sheets, zeros, slices.Contains(c.options.Free, provider))
}

// readSteps reads a number, or {"base": …, "tiers": [{"start": …, "price": …}]}.
func readSteps(value json.RawMessage) (*genaiSteps, string) {
	if len(value) == 0 || value[0] != '{' {
		rate, reason := readMtok(value)
		return &genaiSteps{[]int64{0}, []Rate{rate}}, reason
	}
	var tiered struct {
		Base  json.RawMessage `json:"base"`
		Tiers []struct {
			Start json.RawMessage `json:"start"`
			Price json.RawMessage `json:"price"`
		} `json:"tiers"`
	}
	if json.Unmarshal(value, &tiered) != nil {
		return nil, RefusedBadField
	}
	base, reason := readMtok(tiered.Base)
	if reason != "" {
		return nil, reason
	}
	s := &genaiSteps{[]int64{0}, []Rate{base}}
	for i, t := range tiered.Tiers {
		start, ok := wholeNumber(t.Start)
		rate, reason := readMtok(t.Price)
		if reason != "" || !ok || start <= s.aboves[i] {
			return nil, RefusedBadField
		}
		s.aboves, s.rates = append(s.aboves, start), append(s.rates, rate)
	}
	return s, ""
}
