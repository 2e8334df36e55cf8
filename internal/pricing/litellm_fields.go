package pricing

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tallystick/tallystick/internal/tokens"
)

// tokenFields are the base names of the list's rates per token. Each may carry
// "_above_<n>k_tokens" and then "_batches", "_flex" or "_priority".
var tokenFields = map[string]tokens.Class{
	"input_cost_per_token":                      tokens.Input,
	"cache_read_input_token_cost":               tokens.CacheRead,
	"input_cost_per_token_cache_hit":            tokens.CacheRead, // DeepSeek's second spelling
	"cache_creation_input_token_cost":           tokens.CacheWrite5m,
	"cache_creation_input_token_cost_above_1hr": tokens.CacheWrite1h,
	"output_cost_per_token":                     tokens.Output,
	"output_cost_per_reasoning_token":           tokens.Reasoning,
	"input_cost_per_audio_token":                tokens.AudioInput,
	"output_cost_per_audio_token":               tokens.AudioOutput,
	"input_cost_per_image_token":                tokens.ImageInput,
	"output_cost_per_image_token":               tokens.ImageOutput,
}

var serviceSuffixes = map[string]Service{"_batches": Batch, "_flex": Flex, "_priority": Priority}

// ignoredFields are price fields that are known and left out: they price something else
// than a token of a class (a search, an image, a second of audio, a page, storage, another
// currency), or a class that usage does not have.
var ignoredFields = []string{
	"annotation_cost_per_page", "cache_creation_input_audio_token_cost", "cache_read_input_audio_token_cost",
	"citation_cost_per_token", "code_interpreter_cost_per_session", "computer_use_input_cost_per_1k_tokens",
	"computer_use_output_cost_per_1k_tokens", "file_search_cost_per_1k_calls", "file_search_cost_per_gb_per_day",
	"input_cost_per_audio_per_second", "input_cost_per_audio_per_second_above_128k_tokens",
	"input_cost_per_character", "input_cost_per_character_above_128k_tokens", "input_cost_per_image",
	"input_cost_per_image_above_128k_tokens", "input_cost_per_pixel", "input_cost_per_query",
	"input_cost_per_request", "input_cost_per_second", "input_cost_per_video_per_second",
	"input_cost_per_video_per_second_above_128k_tokens", "input_cost_per_video_per_second_above_15s_interval",
	"input_cost_per_video_per_second_above_8s_interval", "input_dbu_cost_per_token", "ocr_cost_per_credit",
	"ocr_cost_per_page", "output_cost_per_character", "output_cost_per_character_above_128k_tokens",
	"output_cost_per_image", "output_cost_per_pixel", "output_cost_per_second", "output_cost_per_second_1080p",
	"output_cost_per_video_per_second", "output_cost_per_video_token", "output_dbu_cost_per_token",
	"provider_specific_entry", "search_context_cost_per_query", "vector_store_cost_per_gb_per_day",
}

// priceWords mark a field that is about money; one with such a word and no entry above is
// reported as unknown.
var priceWords = []string{"cost", "price", "pricing", "uplift", "multiplier", "discount", "fee", "usd"}

const upliftPrefix = "regional_processing_uplift_multiplier_"

// uplift is a factor, mantissa × 10^exponent, on all rates in one region.
type uplift struct {
	region   string
	mantissa uint64
	exponent int
}

type sheetKey struct {
	service Service
	above   int64
}

// entryRates is what the price fields of one entry say.
type entryRates struct {
	believeZero bool
	noOutput    bool // a mode that produces no tokens, where a zero output rate is a fact
	bySheet     map[sheetKey]*Rates
	uplifts     []uplift
	problem     string

	used, ignored, unknown, zeros, metadata []string
}

func newEntryRates(free bool, mode string) *entryRates {
	return &entryRates{
		believeZero: free,
		noOutput:    mode == "embedding" || mode == "rerank" || mode == "moderation",
		bySheet:     map[sheetKey]*Rates{},
	}
}

// read takes every field, in the order of their names.
func (e *entryRates) read(fields map[string]json.RawMessage) {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		e.field(name, fields[name])
	}
}

func (e *entryRates) field(name string, value json.RawMessage) {
	class, key, ok := parseField(name)
	switch {
	case ok:
		e.rate(name, class, key, value)
	case name == "tiered_pricing":
		e.tiers(name, value)
	case strings.HasPrefix(name, upliftPrefix):
		e.uplift(name, value)
	case slices.Contains(ignoredFields, name):
		e.ignored = append(e.ignored, name)
	case slices.ContainsFunc(priceWords, func(w string) bool { return strings.Contains(name, w) }):
		e.unknown = append(e.unknown, name)
	default:
		e.metadata = append(e.metadata, name)
	}
}

// parseField splits a field name into class, context tier and service tier.
func parseField(name string) (tokens.Class, sheetKey, bool) {
	var key sheetKey
	for suffix, service := range serviceSuffixes {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			name, key.service = base, service
			break
		}
	}
	const above, unit = "_above_", "k_tokens"
	if base, ok := strings.CutSuffix(name, unit); ok {
		if at := strings.LastIndex(base, above); at > 0 {
			thousands, err := strconv.ParseUint(base[at+len(above):], 10, 32)
			if err != nil || thousands == 0 {
				return 0, key, false
			}
			name, key.above = base[:at], int64(thousands)*1000
		}
	}
	class, ok := tokenFields[name]
	return class, key, ok
}

// rate stores one rate, or notes why it cannot.
func (e *entryRates) rate(name string, class tokens.Class, key sheetKey, value json.RawMessage) {
	rate, reason := readRate(value)
	if reason != "" {
		e.problem = reason
		return
	}
	rates := e.bySheet[key]
	if rates == nil {
		fresh := NoRates()
		rates = &fresh
		e.bySheet[key] = rates
	}
	if rate == 0 && !e.believeZero && !(e.noOutput && class == tokens.Output) {
		e.zeros = append(e.zeros, name)
		return
	}
	if rates[class] != NoRate && rates[class] != rate {
		e.problem = RefusedTwoRates
		return
	}
	rates[class] = rate
	e.used = append(e.used, name)
}

// readRate reads a JSON number as a rate; a string or anything else is refused.
func readRate(value json.RawMessage) (Rate, string) {
	if len(value) == 0 || (value[0] != '-' && (value[0] < '0' || value[0] > '9')) {
		return NoRate, RefusedBadField
	}
	rate, err := ParseRate(string(value))
	if err != nil {
		return NoRate, RefusedInexact
	}
	return rate, ""
}

// tiers reads tiered_pricing: a list of objects with the plain fields and a range of
// context tokens, [from, to] with from exclusive and 0 for the first.
func (e *entryRates) tiers(name string, value json.RawMessage) {
	var tiers []map[string]json.RawMessage
	if json.Unmarshal(value, &tiers) != nil {
		e.problem = RefusedBadField
		return
	}
	for _, tier := range tiers {
		var span []json.RawMessage
		if json.Unmarshal(tier["range"], &span) != nil || len(span) != 2 {
			e.ignored = append(e.ignored, name) // tiers of something else, such as results
			return
		}
		above, ok := wholeNumber(span[0])
		if !ok {
			e.problem = RefusedBadField
			return
		}
		e.tier(name, tier, above)
	}
}

func (e *entryRates) tier(name string, tier map[string]json.RawMessage, above int64) {
	for _, field := range slices.Sorted(maps.Keys(tier)) {
		class, ok := tokenFields[field]
		switch {
		case ok:
			e.rate(name+"."+field, class, sheetKey{Standard, above}, tier[field])
		case field != "range":
			e.unknown = append(e.unknown, name+"."+field)
		}
	}
}

// wholeNumber reads a JSON number such as 256000.0 as a count.
func wholeNumber(value json.RawMessage) (int64, bool) {
	mantissa, exponent, err := parseDecimal(string(value))
	if err != nil {
		return 0, false
	}
	return scaleUp(mantissa, exponent)
}

func (e *entryRates) uplift(name string, value json.RawMessage) {
	mantissa, exponent, err := parseDecimal(string(value))
	region := strings.ToLower(strings.TrimPrefix(name, upliftPrefix))
	if err != nil || mantissa == 0 || !validName(region) {
		e.problem = RefusedBadField
		return
	}
	e.used = append(e.used, name)
	e.uplifts = append(e.uplifts, uplift{region, mantissa, exponent})
}

// sheets returns the sheets that hold a rate, and the empty ones above a threshold, which
// keep a call there from being priced by the tier below.
func (e *entryRates) sheets() []Sheet {
	var sheets []Sheet
	for key, rates := range e.bySheet {
		if *rates != NoRates() || key.above > 0 {
			sheets = append(sheets, Sheet{Service: key.service, Above: key.above, Rates: *rates})
		}
	}
	slices.SortFunc(sheets, compareSheets)
	return sheets
}

// pricesSomething reports a rate above zero, or any where zero is believed: a re-ranker that
// only says "0 per output token" is billed by the query, and must not become free.
func (e *entryRates) pricesSomething(r *Rates) bool {
	return slices.ContainsFunc(r[:], func(rate Rate) bool { return rate > 0 || (rate == 0 && e.believeZero) })
}

// refusal returns why an entry with these sheets cannot be taken, or "".
func (e *entryRates) refusal(sheets []Sheet) string {
	priced := slices.ContainsFunc(sheets, func(s Sheet) bool { return e.pricesSomething(&s.Rates) })
	switch {
	case e.problem != "":
		return e.problem
	case !priced && (len(e.zeros) > 0 || len(sheets) > 0):
		return RefusedAllZero
	case !priced:
		return RefusedNoTokenRates
	case len(sheets) > maxSheets:
		return RefusedTooManyTiers
	}
	return ""
}

// raise returns the sheets with every rate multiplied, and whether all products are exact.
func (u uplift) raise(sheets []Sheet) ([]Sheet, bool) {
	sheets = slices.Clone(sheets)
	for i := range sheets {
		for c, rate := range sheets[i].Rates {
			if rate == NoRate {
				continue
			}
			product, err := rate.times(u.mantissa, u.exponent)
			if err != nil {
				return nil, false
			}
			sheets[i].Rates[c] = product
		}
	}
	return sheets, true
}
