package oracle

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

// priceFile reads the published price list with its numbers as text.
func priceFile(t *testing.T) map[string]map[string]any {
	t.Helper()
	f, err := os.Open(testenv.Data(t, "prices/litellm_model_prices_2026-08-01.json.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dec := json.NewDecoder(z)
	dec.UseNumber()
	var all map[string]map[string]any
	if err := dec.Decode(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

// fileKey is the name of a model in the price list.
func fileKey(provider, model string) string {
	switch provider {
	case "openai", "anthropic":
		return model
	default:
		return provider + "/" + model
	}
}

// Every figure of the table must be the price list's, and every figure that the
// list has for a class we sell must be in the table.
func TestTableAgreesWithThePublishedList(t *testing.T) {
	list := priceFile(t)
	fields := map[tokens.Class]string{
		tokens.Input: "input_cost_per_token", tokens.CacheRead: "cache_read_input_token_cost",
		tokens.CacheWrite5m: "cache_creation_input_token_cost", tokens.CacheWrite1h: "cache_creation_input_token_cost_above_1hr",
		tokens.Output: "output_cost_per_token",
	}
	checked := 0
	for _, r := range published {
		entry := list[fileKey(r.provider, r.model)]
		if entry == nil {
			t.Errorf("%s/%s is not in the list", r.provider, r.model)
			continue
		}
		suffix := map[string]string{tierStandard: "", tierBatch: "_batches"}[r.serviceTier]
		if r.above == 200_000 {
			suffix = "_above_200k_tokens"
		}
		for class, field := range fields {
			want, listed := entry[field+suffix].(json.Number)
			got, have := r.rates[class]
			if class == tokens.CacheWrite5m && r.provider == "deepseek" && listed && want == "0.0" {
				continue // a placeholder of the list: DeepSeek bills no cache writes
			}
			if !have && !listed {
				continue
			}
			if !have || !listed || ratOf(t, got).Cmp(ratOf(t, want.String())) != 0 {
				t.Errorf("%s/%s %s above %d: %s is %q here and %q in the list", r.provider, r.model, r.serviceTier, r.above, field, got, want)
			}
			checked++
		}
		if v, ok := entry["output_cost_per_reasoning_token"]; ok {
			t.Errorf("%s/%s has a reasoning price of its own: %v", r.provider, r.model, v)
		}
	}
	if checked < 40 {
		t.Errorf("only %d figures were compared", checked)
	}
}

func ratOf(t *testing.T, s string) *big.Rat {
	t.Helper()
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		t.Fatalf("%q is not a number", s)
	}
	return r
}

// Costs computed by hand from the providers' price pages.
func TestCostByHand(t *testing.T) {
	table := Published()
	for _, c := range []struct {
		name            string
		provider, model string
		tier            string
		v               tokens.Vector
		context         int64
		usd             string // "" is unpriced
	}{
		// 1000 × 2.8e-7 + 300 × 4.2e-7 + 700 × 4.2e-7
		{"reasoning is billed as output", "deepseek", "deepseek-reasoner", "", tokens.Vector{tokens.Input: 1000, tokens.Output: 300, tokens.Reasoning: 700}, 0, "0.000700000000"},
		// 100 × 2.5e-6 + 900 × 1.25e-6 + 50 × 1e-5
		{"cached at half price", "openai", "gpt-4o", "standard", tokens.Vector{tokens.Input: 100, tokens.CacheRead: 900, tokens.Output: 50}, 0, "0.001875000000"},
		{"batch at half price", "openai", "gpt-4o", "batch", tokens.Vector{tokens.Input: 100, tokens.Output: 50}, 0, "0.000375000000"},
		{"no batch price for cached tokens", "openai", "gpt-4o", "batch", tokens.Vector{tokens.CacheRead: 1}, 0, ""},
		{"exactly 200,000 is the lower tier", "anthropic", "claude-sonnet-4-5", "", tokens.Vector{tokens.Input: 200_000, tokens.Output: 10}, 0, "0.600150000000"},
		// 200,001 × 6e-6 + 10 × 2.25e-5: all classes rise together
		{"one more is the upper tier", "anthropic", "claude-sonnet-4-5", "", tokens.Vector{tokens.Input: 200_001, tokens.Output: 10}, 0, "1.200231000000"},
		{"cached tokens count for the tier", "anthropic", "claude-sonnet-4-5", "", tokens.Vector{tokens.Input: 1, tokens.CacheRead: 200_000}, 0, "0.120006000000"},
		{"a stated context length decides", "anthropic", "claude-sonnet-4-5", "", tokens.Vector{tokens.Input: 1}, 200_001, "0.000006000000"},
		{"cache writes of both lifetimes", "anthropic", "claude-haiku-4-5", "", tokens.Vector{tokens.CacheWrite5m: 1000, tokens.CacheWrite1h: 1000}, 0, "0.003250000000"},
		{"no tokens cost nothing", "azure", "gpt-4", "", tokens.Vector{}, 0, "0.000000000000"},
		{"unknown model", "openai", "gpt-internal-finetune-7", "", tokens.Vector{tokens.Input: 1}, 0, ""},
		{"no such tier", "azure", "gpt-4", "flex", tokens.Vector{tokens.Input: 1}, 0, ""},
		{"no price for audio", "azure", "gpt-4", "", tokens.Vector{tokens.AudioInput: 1}, 0, ""},
		{"negative", "azure", "gpt-4", "", tokens.Vector{tokens.Input: -1}, 0, ""},
		{"beyond an int64", "azure", "gpt-4", "", tokens.Vector{tokens.Input: math.MaxInt64}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			pico, priced := table.Lookup(c.provider, c.model, c.tier).Cost(&c.v, c.context)
			var a Amount
			a.Add(pico)
			if priced != (c.usd != "") || priced && a.String() != c.usd {
				t.Errorf("cost %s, priced %v; want %q", a.String(), priced, c.usd)
			}
		})
	}
}

// Rates finer than 1e-12 USD are where rounding shows: half-even per component.
func TestRoundingIsHalfEvenPerComponent(t *testing.T) {
	table, err := newTable([]row{{"p", "m", tierStandard, 0, rates("5e-13", "5e-13", "", "", "2.5e-12")}})
	if err != nil {
		t.Fatal(err)
	}
	m := table.Lookup("p", "m", "")
	for _, c := range []struct {
		v    tokens.Vector
		want int64
	}{
		{tokens.Vector{tokens.Input: 1}, 0},                      // 0.5 → 0
		{tokens.Vector{tokens.Input: 3}, 2},                      // 1.5 → 2
		{tokens.Vector{tokens.Input: 5}, 2},                      // 2.5 → 2
		{tokens.Vector{tokens.Input: 7}, 4},                      // 3.5 → 4
		{tokens.Vector{tokens.Input: 1, tokens.CacheRead: 1}, 0}, // each 0.5 → 0, not 1
		{tokens.Vector{tokens.Output: 3}, 8},                     // 7.5 → 8
		{tokens.Vector{tokens.Output: 1}, 2},                     // 2.5 → 2
	} {
		if got, ok := m.Cost(&c.v, 0); !ok || got != c.want {
			t.Errorf("%v costs %d, %v; want %d", c.v, got, ok, c.want)
		}
	}
}

// The integer path must give what the rational gives.
func TestFastPathEqualsRationals(t *testing.T) {
	table := Published()
	rapid.Check(t, func(t *rapid.T) {
		r := rapid.SampledFrom(published).Draw(t, "row")
		c := tokens.Class(rapid.IntRange(0, int(tokens.NumClasses)-1).Draw(t, "class"))
		n := rapid.Int64Range(0, 1<<50).Draw(t, "tokens")
		m := table.Lookup(r.provider, r.model, r.serviceTier)
		for i := range m.steps {
			x := &m.steps[i].rates[c]
			if x.exact == nil {
				continue
			}
			fast, okFast := x.times(n)
			slow, okSlow := (&rate{exact: x.exact, whole: -1}).times(n)
			if okFast != okSlow || okFast && fast != slow {
				t.Fatalf("%d × %s: %d, %v against %d, %v", n, x.exact, fast, okFast, slow, okSlow)
			}
		}
	})
}

func TestAmount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a Amount
		want := new(big.Int)
		for _, v := range rapid.SliceOf(rapid.Int64Range(0, math.MaxInt64)).Draw(t, "parts") {
			a.Add(v)
			want.Add(want, big.NewInt(v))
		}
		if a.Pico().Cmp(want) != 0 {
			t.Fatalf("sum %s, want %s", a.Pico(), want)
		}
		text, _ := a.MarshalText()
		var b Amount
		if err := b.UnmarshalText(text); err != nil || b.Cmp(&a) != 0 {
			t.Fatalf("%s read back as %s: %v", text, b.String(), err)
		}
	})
	var a Amount
	for _, bad := range []string{"", "1", "1.5", "-1.000000000000", "1.0000000000000", "x.000000000000", "1.00000000000e"} {
		if err := a.UnmarshalText([]byte(bad)); !errors.Is(err, ErrExpectation) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTableRefuses(t *testing.T) {
	for _, r := range []row{
		{"p", "m", tierStandard, 0, rates("-1", "", "", "", "")},
		{"p", "m", tierStandard, 0, rates("cheap", "", "", "", "")},
		{"p", "m", tierStandard, 200_000, rates("1e-6", "", "", "", "")},
	} {
		if _, err := newTable([]row{r}); !errors.Is(err, ErrTable) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
