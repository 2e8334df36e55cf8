package oracle

import (
	"fmt"
	"sort"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Service tiers of the table.
const (
	tierStandard = "standard"
	tierBatch    = "batch"
)

// row is one line of the published table, as text in USD per token.
type row struct {
	provider, model, serviceTier string
	above                        int64 // prompt tokens above which the line holds
	rates                        map[tokens.Class]string
}

// published are the prices of the models that `tallystick emit` uses, typed
// from the LiteLLM price file of 2026-08-01 (MIT licence; a test compares every
// figure with that file). Reasoning tokens are billed as output by all of these
// providers; a cache write without a stated lifetime is the five-minute one.
var published = []row{
	{"openai", "gpt-4o", tierStandard, 0, rates("2.5e-06", "1.25e-06", "", "", "1e-05")},
	{"openai", "gpt-4o", tierBatch, 0, rates("1.25e-06", "", "", "", "5e-06")},
	{"openai", "gpt-4o-mini", tierStandard, 0, rates("1.5e-07", "7.5e-08", "", "", "6e-07")},
	{"openai", "gpt-4o-mini", tierBatch, 0, rates("7.5e-08", "", "", "", "3e-07")},
	{"openai", "gpt-5", tierStandard, 0, rates("1.25e-06", "1.25e-07", "", "", "1e-05")},
	{"openai", "o4-mini", tierStandard, 0, rates("1.1e-06", "2.75e-07", "", "", "4.4e-06")},
	{"azure", "gpt-4", tierStandard, 0, rates("3e-05", "", "", "", "6e-05")},
	{"anthropic", "claude-sonnet-4-5", tierStandard, 0, rates("3e-06", "3e-07", "3.75e-06", "6e-06", "1.5e-05")},
	{"anthropic", "claude-sonnet-4-5", tierStandard, 200_000, rates("6e-06", "6e-07", "7.5e-06", "1.2e-05", "2.25e-05")},
	{"anthropic", "claude-haiku-4-5", tierStandard, 0, rates("1e-06", "1e-07", "1.25e-06", "2e-06", "5e-06")},
	{"gemini", "gemini-2.5-pro", tierStandard, 0, rates("1.25e-06", "1.25e-07", "", "", "1e-05")},
	{"gemini", "gemini-2.5-pro", tierStandard, 200_000, rates("2.5e-06", "2.5e-07", "", "", "1.5e-05")},
	{"deepseek", "deepseek-reasoner", tierStandard, 0, rates("2.8e-07", "2.8e-08", "", "", "4.2e-07")},
	{"deepseek", "deepseek-chat", tierStandard, 0, rates("2.8e-07", "2.8e-08", "", "", "4.2e-07")},
	{"moonshot", "kimi-k2-0905-preview", tierStandard, 0, rates("6e-07", "1.5e-07", "", "", "2.5e-06")},
}

func rates(input, cacheRead, cacheWrite5m, cacheWrite1h, output string) map[tokens.Class]string {
	m := map[tokens.Class]string{}
	for c, text := range map[tokens.Class]string{
		tokens.Input: input, tokens.CacheRead: cacheRead, tokens.CacheWrite5m: cacheWrite5m,
		tokens.CacheWrite1h: cacheWrite1h, tokens.Output: output, tokens.Reasoning: output,
	} {
		if text != "" {
			m[c] = text
		}
	}
	return m
}

// Published is the table of the models that `tallystick emit` uses.
func Published() *Table {
	t, err := newTable(published)
	if err != nil { // a typing error in this file; a test would have found it
		panic(err)
	}
	return t
}

func newTable(rows []row) (*Table, error) {
	t := &Table{models: map[modelKey]*Model{}}
	for _, r := range rows {
		s := step{above: r.above}
		for c, text := range r.rates {
			var err error
			if s.rates[c], err = parseRate(text); err != nil {
				return nil, fmt.Errorf("%s/%s: %w", r.provider, r.model, err)
			}
		}
		k := modelKey{r.provider, r.model, r.serviceTier}
		if t.models[k] == nil {
			t.models[k] = &Model{}
		}
		m := t.models[k]
		m.steps = append(m.steps, s)
		sort.Slice(m.steps, func(i, j int) bool { return m.steps[i].above < m.steps[j].above })
	}
	for k, m := range t.models {
		if m.steps[0].above != 0 {
			return nil, fmt.Errorf("%w: %s/%s has no rates for short prompts", ErrTable, k.provider, k.model)
		}
	}
	return t, nil
}
