package pricing

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/tallystick/tallystick/internal/tokens"
)

// modelsDevRates are the rates of a cost object, in USD per million tokens.
var modelsDevRates = map[string]tokens.Class{
	"input": tokens.Input, "cache_read": tokens.CacheRead, "cache_write": tokens.CacheWrite5m, "output": tokens.Output,
	"reasoning": tokens.Reasoning, "input_audio": tokens.AudioInput, "output_audio": tokens.AudioOutput,
}

// modelsDevModel is what an entry says that prices depend on.
type modelsDevModel struct {
	Cost       map[string]json.RawMessage `json:"cost"`
	Modalities struct {
		Input []string `json:"input"`
	} `json:"modalities"`
}

// ImportModelsDev reads a price list in the form of models.dev's api.json, plain or
// compressed with zstd: providers by id, each with its models by id, and per model a cost
// object in USD per million tokens. Context tiers come from "tiers"; the older
// "context_over_200k" counts only where there are none, because it repeats them. A class
// that a tier leaves out has no price there. Zeros are read as "not stated" (the list gives
// subscriptions and free trials so) unless the provider is in o.Free. Errors: ErrImport for
// what is not such a list; an entry that cannot be taken is refused in the report.
func ImportModelsDev(r io.Reader, o ImportOptions) (*Book, Report, error) {
	c, err := newCollector(o, "models.dev")
	if err != nil {
		return nil, Report{}, err
	}
	plain, err := readPlain(r)
	if err != nil {
		return nil, Report{}, err
	}
	var list map[string]struct {
		Doc    string                     `json:"doc"`
		Models map[string]json.RawMessage `json:"models"`
	}
	if err := json.Unmarshal(plain, &list); err != nil || list == nil {
		return nil, Report{}, fmt.Errorf("%w: not an object of providers: %w", ErrImport, err)
	}
	for _, provider := range slices.Sorted(maps.Keys(list)) {
		models := list[provider].Models
		for _, model := range slices.Sorted(maps.Keys(models)) {
			c.report.Entries++
			entry := provider + "/" + model
			if reason := c.modelsDev(entry, provider, model, plainText(list[provider].Doc), models[model]); reason != "" {
				c.refuse(entry, reason)
			}
		}
	}
	return c.book()
}

// modelsDev takes one model, or returns the reason why not.
func (c *collector) modelsDev(entry, provider, model, source string, raw json.RawMessage) string {
	var m modelsDevModel
	if json.Unmarshal(raw, &m) != nil {
		return RefusedBadField
	}
	key, _, reason := entryKey(model, provider)
	if reason != "" {
		return reason
	}
	d := costCard{c: c, provider: key.provider}
	sheets, reason := d.sheets(m.Cost)
	if reason == "" {
		reason = refusalOf(sheets, d.zeros, slices.Contains(c.options.Free, key.provider))
	}
	if reason != "" {
		return reason
	}
	row := Row{
		Provider: key.provider, Model: key.model, Region: key.region, Source: source,
		ValidFrom: c.options.ValidFrom, KnownFrom: c.options.KnownFrom, Sheets: sheets,
	}
	row.Derive(Hints{Vision: slices.Contains(m.Modalities.Input, "image"), AudioInput: slices.Contains(m.Modalities.Input, "audio")})
	c.keep(entry, []Row{row})
	return ""
}

// costCard reads the cost objects of one model.
type costCard struct {
	c        *collector
	provider string
	zeros    int
}

// sheets reads a cost object with its tiers.
func (d *costCard) sheets(cost map[string]json.RawMessage) ([]Sheet, string) {
	const tiers, over200k = "tiers", "context_over_200k"
	base, reason := d.rates(cost, tiers, over200k)
	if reason != "" {
		return nil, reason
	}
	var sheets []Sheet
	if base != NoRates() {
		sheets = append(sheets, Sheet{Rates: base})
	}
	if value, ok := cost[tiers]; ok {
		above, reason := d.tiers(value)
		return append(sheets, above...), reason
	}
	if value, ok := cost[over200k]; ok {
		var card map[string]json.RawMessage
		if json.Unmarshal(value, &card) != nil {
			return nil, RefusedBadField
		}
		rates, reason := d.rates(card)
		if reason != "" {
			return nil, reason
		}
		sheets = append(sheets, Sheet{Above: 200_000, Rates: rates})
	}
	return sheets, ""
}

// tiers reads a list of cost objects, each with the context length above which it holds.
func (d *costCard) tiers(value json.RawMessage) ([]Sheet, string) {
	var cards []map[string]json.RawMessage
	if json.Unmarshal(value, &cards) != nil {
		return nil, RefusedBadField
	}
	var sheets []Sheet
	for _, card := range cards {
		var tier struct {
			Type string          `json:"type"`
			Size json.RawMessage `json:"size"`
		}
		if json.Unmarshal(card["tier"], &tier) != nil || (tier.Type != "context" && tier.Type != "") {
			return nil, RefusedBadField
		}
		above, ok := wholeNumber(tier.Size)
		if !ok || slices.ContainsFunc(sheets, func(s Sheet) bool { return s.Above == above }) || above == 0 {
			return nil, RefusedBadField
		}
		rates, reason := d.rates(card, "tier")
		if reason != "" {
			return nil, reason
		}
		sheets = append(sheets, Sheet{Above: above, Rates: rates})
	}
	return sheets, ""
}

// rates reads the rates of one cost object; fields named beside are read elsewhere.
func (d *costCard) rates(card map[string]json.RawMessage, beside ...string) (Rates, string) {
	rates := NoRates()
	for _, name := range slices.Sorted(maps.Keys(card)) {
		class, ok := modelsDevRates[name]
		switch {
		case slices.Contains(beside, name):
			continue
		case !ok:
			d.c.report.Unknown["cost."+name]++
			continue
		}
		rate, reason := readMtok(card[name])
		if reason != "" {
			return rates, reason
		}
		if !d.c.believed(rate, d.provider) {
			d.zeros++
			d.c.report.Zeros[name]++
			continue
		}
		rates[class] = rate
		d.c.report.Used[name]++
	}
	return rates, ""
}
