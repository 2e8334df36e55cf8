package pricing_test

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

const listFile = "testdata/litellm_model_prices_2026-08-01.json.zst"

func day(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return t
}

// liteLLM is the whole list, imported once.
var liteLLM = sync.OnceValues(func() (*pricing.Book, pricing.Report) {
	f, err := os.Open(listFile)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	b, r, err := pricing.ImportLiteLLM(f, pricing.ImportOptions{AsOf: day("2026-08-01"), Source: "test"})
	if err != nil {
		panic(err)
	}
	return b, r
})

// at is a time at which the built-in book and the imported list are both valid and known.
var at = day("2026-09-01").UnixNano()

// vector makes a token vector from class and count pairs.
func vector(pairs ...int64) (v tokens.Vector) {
	for i := 0; i < len(pairs); i += 2 {
		v[pairs[i]] = pairs[i+1]
	}
	return v
}

const (
	input, cacheRead, write5m, write1h = int64(tokens.Input), int64(tokens.CacheRead), int64(tokens.CacheWrite5m), int64(tokens.CacheWrite1h)
	output, reasoning                  = int64(tokens.Output), int64(tokens.Reasoning)
	audioIn, audioOut, imageIn         = int64(tokens.AudioInput), int64(tokens.AudioOutput), int64(tokens.ImageInput)
)

// Costs worked out by hand from the providers' price pages.
func TestPrices(t *testing.T) {
	for name, c := range map[string]struct {
		usage pricing.Usage
		want  string
		row   pricing.RowID
	}{
		"gpt-4o": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 1000, output, 500)},
			"0.007500000000", "openai/gpt-4o@2023-01-01/standard",
		},
		"cached tokens at their own rate, once": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 200, cacheRead, 800, output, 500)},
			"0.006500000000", "openai/gpt-4o@2023-01-01/standard",
		},
		"batch": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", ServiceTier: "batch", Tokens: vector(input, 1000, output, 500)},
			"0.003750000000", "openai/gpt-4o@2023-01-01/batch",
		},
		"priority": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", ServiceTier: "Priority", Tokens: vector(input, 1000, cacheRead, 1000)},
			"0.006375000000", "openai/gpt-4o@2023-01-01/priority",
		},
		"flex": {
			pricing.Usage{Provider: "openai", Model: "o3", ServiceTier: "flex", Tokens: vector(input, 1_000_000, output, 1_000_000)},
			"5.000000000000", "openai/o3@2023-01-01/flex",
		},
		"the provider's word for standard": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o-mini", ServiceTier: "default", Tokens: vector(input, 1)},
			"0.000000150000", "openai/gpt-4o-mini@2023-01-01/standard",
		},
		"reasoning as output": {
			pricing.Usage{Provider: "openai", Model: "o4-mini", Tokens: vector(output, 100, reasoning, 900)},
			"0.004400000000", "openai/o4-mini@2023-01-01/standard",
		},
		"cache writes of 5 minutes and 1 hour": {
			pricing.Usage{Provider: "anthropic", Model: "claude-opus-4-1", Tokens: vector(write5m, 1000, write1h, 1000, cacheRead, 1000)},
			"0.050250000000", "anthropic/claude-opus-4-1@2023-01-01/standard",
		},
		"audio": {
			pricing.Usage{Provider: "gemini", Model: "gemini-2.5-flash", Tokens: vector(input, 1000, audioIn, 1000, output, 1000)},
			"0.003800000000", "gemini/gemini-2.5-flash@2023-01-01/standard",
		},
		"images as prompt": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(imageIn, 1105)},
			"0.002762500000", "openai/gpt-4o@2023-01-01/standard",
		},
		"residency uplift of 10 %": {
			pricing.Usage{Provider: "openai", Model: "gpt-5.4", Region: "EU", Tokens: vector(input, 1000, output, 1000)},
			"0.019250000000", "openai/gpt-5.4[eu]@2023-01-01/standard",
		},
		"Azure": {
			pricing.Usage{Provider: "azure", Model: "gpt-4", Tokens: vector(input, 1000, output, 1000)},
			"0.090000000000", "azure/gpt-4@2023-01-01/standard",
		},
		"DeepSeek": {
			pricing.Usage{Provider: "deepseek", Model: "deepseek-reasoner", Tokens: vector(input, 1_000_000, output, 1000, reasoning, 999_000)},
			"0.700000000000", "deepseek/deepseek-reasoner@2023-01-01/standard",
		},
		"no tokens": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o"},
			"0.000000000000", "openai/gpt-4o@2023-01-01/standard",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.usage.At, c.usage.KnownAt = at, at
			r := pricing.Builtin().Price(&c.usage)
			if !r.Priced || r.Cost.String() != c.want || r.Row != c.row || r.Reason != (pricing.Reason{}) {
				t.Fatalf("%v by %q (priced %v, %q), want %s by %q", r.Cost, r.Row, r.Priced, r.Reason, c.want, c.row)
			}
		})
	}
}

func TestUnpriced(t *testing.T) {
	for name, c := range map[string]struct {
		usage  pricing.Usage
		reason string
		row    pricing.RowID
	}{
		"unknown model":    {pricing.Usage{Provider: "openai", Model: "gpt-99", Tokens: vector(input, 1)}, "unknown_model", ""},
		"unknown provider": {pricing.Usage{Provider: "nobody", Model: "gpt-4o", Tokens: vector(input, 1)}, "unknown_model", ""},
		"no names":         {pricing.Usage{Tokens: vector(input, 1)}, "unknown_model", ""},
		"unknown without tokens": {
			pricing.Usage{Provider: "openai", Model: "gpt-99"}, "unknown_model", "",
		},
		"class without a rate": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 10, write1h, 1)},
			"no_rate:cache_write_1h", "openai/gpt-4o@2023-01-01/standard",
		},
		"audio output": {
			pricing.Usage{Provider: "gemini", Model: "gemini-2.5-pro", Tokens: vector(audioOut, 1)},
			"no_rate:audio_output", "gemini/gemini-2.5-pro@2023-01-01/standard",
		},
		"class missing in one tier": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", ServiceTier: "batch", Tokens: vector(cacheRead, 1)},
			"no_rate:cache_read", "openai/gpt-4o@2023-01-01/batch",
		},
		"no batch rates":      {pricing.Usage{Provider: "deepseek", Model: "deepseek-chat", ServiceTier: "batch", Tokens: vector(input, 1)}, "no_price_for_service_tier", ""},
		"tier of no meaning":  {pricing.Usage{Provider: "openai", Model: "gpt-4o", ServiceTier: "auto", Tokens: vector(input, 1)}, "no_price_for_service_tier", ""},
		"long batch":          {pricing.Usage{Provider: "openai", Model: "gpt-5.4", ServiceTier: "batch", Tokens: vector(input, 272_001)}, "no_price_for_context_tier", ""},
		"negative":            {pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 5, output, -1)}, "negative_tokens:output", ""},
		"before all prices":   {pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 1), At: day("2022-12-31").UnixNano()}, "no_price_at_time", ""},
		"before it was known": {pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 1), KnownAt: day("2022-12-31").UnixNano()}, "price_not_yet_known", ""},
		"too dear": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 1<<62)},
			"cost_overflow:input", "openai/gpt-4o@2023-01-01/standard",
		},
		"too dear in sum": {
			pricing.Usage{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 3_000_000_000_000, output, 900_000_000_000)},
			"cost_overflow:output", "openai/gpt-4o@2023-01-01/standard",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if c.usage.At == 0 {
				c.usage.At = at
			}
			r := pricing.Builtin().Price(&c.usage)
			want := pricing.Result{Row: c.row, Reason: r.Reason}
			if r != want || r.Reason.String() != c.reason {
				t.Fatalf("%+v (%s), want %s by %q", r, r.Reason, c.reason, c.row)
			}
			if back, ok := pricing.ParseReason(c.reason); !ok || back.Code != r.Reason.Code || back.Class != r.Reason.Class {
				t.Fatalf("ParseReason(%q) = %+v, %v", c.reason, back, ok)
			}
		})
	}
}

func TestContextTierEdges(t *testing.T) {
	gemini := func(v tokens.Vector, declared int64) money.Pico {
		r := pricing.Builtin().Price(&pricing.Usage{Provider: "gemini", Model: "gemini-2.5-pro", Tokens: v, ContextTokens: declared, At: at})
		if !r.Priced {
			t.Fatalf("%v: %s", v, r.Reason)
		}
		return r.Cost
	}
	for name, c := range map[string]struct {
		tokens   tokens.Vector
		declared int64
		want     string
	}{
		"at the threshold":               {vector(input, 200_000, output, 1000), 0, "0.260000000000"},
		"one above":                      {vector(input, 200_001, output, 1000), 0, "0.515002500000"},
		"cache reads count":              {vector(input, 1, cacheRead, 200_000, output, 1000), 0, "0.065002500000"},
		"audio and images count":         {vector(input, 100_000, audioIn, 100_000, imageIn, 1), 0, "0.500002500000"},
		"output does not":                {vector(input, 200_000, output, 100_000), 0, "1.250000000000"},
		"a declared length decides":      {vector(input, 1000), 200_001, "0.002500000000"},
		"also when the prompt is longer": {vector(input, 200_001), 1000, "0.250001250000"},
	} {
		if got := gemini(c.tokens, c.declared); got.String() != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
	r := pricing.Builtin().Price(&pricing.Usage{Provider: "gemini", Model: "gemini-2.5-pro", Tokens: vector(input, 200_001), At: at})
	if r.Row != "gemini/gemini-2.5-pro@2023-01-01/standard>200000" {
		t.Errorf("row %q", r.Row)
	}
}

func TestNames(t *testing.T) {
	full, _ := liteLLM()
	for _, c := range []struct{ provider, model, row string }{
		{"openai", "gpt-4o", "openai/gpt-4o"},
		{"OpenAI", "GPT-4o", "openai/gpt-4o"},
		{"openai", "openai/gpt-4o", "openai/gpt-4o"},
		{"", "openai/gpt-4o", "openai/gpt-4o"},
		{"", "OpenAI/GPT-4o", "openai/gpt-4o"},
		{"google", "gemini-2.5-pro", "gemini/gemini-2.5-pro"},
		{"google", "models/gemini-2.5-pro", "gemini/gemini-2.5-pro"},
		{"gcp.vertex_ai", "gemini-2.5-pro", "vertex_ai/gemini-2.5-pro"},
		{"", "google/gemini-2.5-pro", "gemini/gemini-2.5-pro"},
		{"aws.bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0"},
		{"bedrock", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0"},
		{"bedrock", "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", "bedrock/amazon.nova-pro-v1:0"},
		{"openai", "ft:gpt-4o-mini-2024-07-18:acme::abc", "openai/ft:gpt-4o-mini-2024-07-18"},
		{"vercel_ai_gateway", "openai/gpt-4o", "vercel_ai_gateway/openai/gpt-4o"},
		{"x_ai", "grok-4", "xai/grok-4"},
		{"openai", "gpt-4o-2024-08-06", "openai/gpt-4o-2024-08-06"},
		// No nearest match, ever.
		{"openai", "gpt-4o-2031-01-01", ""},
		{"openai", "gpt-4", "openai/gpt-4"},
		{"openai", "gpt-4-o", ""},
		{"anthropic", "openai/gpt-4o", ""},
		{"", "gpt-4o", ""},
		{"bedrock", "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abcdef", ""},
		{"openai", strings.Repeat("x", 5000), ""},
		{strings.Repeat("x", 5000), "gpt-4o", ""},
	} {
		r := full.Price(&pricing.Usage{Provider: c.provider, Model: c.model, Tokens: vector(input, 1), At: at})
		got, _, _ := strings.Cut(string(r.Row), "@")
		if got != c.row || r.Priced != (c.row != "") {
			t.Errorf("%.40q %.80q: %q (%s), want %q", c.provider, c.model, r.Row, r.Reason, c.row)
		}
	}
}

func TestBuiltinAliases(t *testing.T) {
	for _, name := range []string{"claude-sonnet-4-5", "claude-sonnet-4-5-20250929"} {
		r := pricing.Builtin().Price(&pricing.Usage{Provider: "anthropic", Model: name, Tokens: vector(output, 1000), At: at})
		if r.Row != "anthropic/claude-sonnet-4-5@2023-01-01/standard" || r.Cost.String() != "0.015000000000" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// Every model of the list that somebody may well send, by rule 14 and by the oracle.
func TestRule14OnTheWholeList(t *testing.T) {
	full, _ := liteLLM()
	rows, o := full.Rows(), newOracle(t, full.Marshal())
	counts := rapid.OneOf(rapid.Just[int64](0), rapid.Int64Range(0, 300_000), rapid.Int64Range(0, 1<<62))
	rapid.Check(t, func(t *rapid.T) {
		row := rapid.SampledFrom(rows).Draw(t, "row")
		u := pricing.Usage{
			Provider: row.Provider, Model: row.Model,
			Region:      rapid.SampledFrom([]string{row.Region, "", "eu"}).Draw(t, "region"),
			ServiceTier: rapid.SampledFrom([]string{"", "standard", "batch", "flex", "priority"}).Draw(t, "service"),
			At:          at, KnownAt: rapid.SampledFrom([]int64{at, pricing.Latest}).Draw(t, "known"),
		}
		for range rapid.IntRange(1, 4).Draw(t, "classes") {
			u.Tokens[rapid.IntRange(0, int(tokens.NumClasses)-1).Draw(t, "class")] = counts.Draw(t, "count")
		}
		if rapid.Bool().Draw(t, "declared") {
			u.ContextTokens = rapid.Int64Range(1, 400_000).Draw(t, "context")
		}
		if u.Tokens.Prompt() < 0 {
			return // beyond what the oracle adds up in int64
		}
		compare(t, full, o, u)
	})
}

// Every priced model costs what its list entry says, checked one by one.
func TestEveryModelIsPriced(t *testing.T) {
	full, _ := liteLLM()
	o := newOracle(t, full.Marshal())
	for _, row := range full.Rows() {
		for _, s := range row.Sheets {
			u := pricing.Usage{Provider: row.Provider, Model: row.Model, Region: row.Region, ServiceTier: s.Service.String(), At: at, ContextTokens: s.Above + 1}
			for c, rate := range s.Rates {
				if rate != pricing.NoRate {
					u.Tokens[c] = 1_000_003
				}
			}
			if r := compare(t, full, o, u); u.Tokens.Total() > 0 && (!r.Priced || r.Cost == 0) {
				t.Fatalf("%+v: %+v", u, r)
			}
		}
	}
}

func TestPriceDoesNotAllocate(t *testing.T) {
	full, _ := liteLLM()
	model := []byte("GPT-4o")
	usages := []pricing.Usage{
		{Provider: "openai", Model: "gpt-4o", Tokens: vector(input, 1000, cacheRead, 5, output, 500), At: at, KnownAt: at},
		{Provider: "OpenAI", Model: string(model), Tokens: vector(input, 1000), At: at},
		{Model: "google/gemini-2.5-pro", Tokens: vector(input, 300_000), At: at},
		{Provider: "openai", Model: "gpt-4o", ServiceTier: "PRIORITY", Region: "EU", Tokens: vector(write1h, 1), At: at},
		{Provider: "nobody", Model: "nothing", At: at},
	}
	if n := testing.AllocsPerRun(200, func() {
		for i := range usages {
			r := full.Price(&usages[i])
			_ = r.Reason.String()
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkPrice(b *testing.B) {
	full, _ := liteLLM()
	for name, u := range map[string]pricing.Usage{
		"exact":      {Provider: "anthropic", Model: "claude-sonnet-4-5", Tokens: vector(input, 1000, cacheRead, 20_000, write5m, 300, output, 500), At: at, KnownAt: at},
		"normalised": {Provider: "OpenAI", Model: "GPT-4o", Tokens: vector(input, 1000, output, 500), At: at, KnownAt: at},
		"unknown":    {Provider: "openai", Model: "gpt-99", Tokens: vector(input, 1000), At: at, KnownAt: at},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = full.Price(&u)
			}
		})
	}
}
