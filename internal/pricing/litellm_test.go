package pricing_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

func importText(t *testing.T, list string, free ...string) (*pricing.Book, pricing.Report) {
	t.Helper()
	b, r, err := pricing.ImportLiteLLM(strings.NewReader(list), pricing.ImportOptions{AsOf: day("2026-08-01"), Free: free})
	if err != nil {
		t.Fatal(err)
	}
	return b, r
}

// The figures of the real list. A newer list may change them; none may become unknown.
func TestImportTheRealList(t *testing.T) {
	b, r := liteLLM()
	if r.Entries != 2985 || r.Priced < 2375 || r.Priced+len(r.Refused) < r.Entries || b.Len() != r.Rows {
		t.Errorf("%d entries, %d priced, %d rows (book %d), %d refused", r.Entries, r.Priced, r.Rows, b.Len(), len(r.Refused))
	}
	if len(r.Unknown) != 0 {
		t.Errorf("price fields that nobody looked at: %v", r.Unknown)
	}
	for field, atLeast := range map[string]int{
		"input_cost_per_token": 2300, "cache_read_input_token_cost": 650, "input_cost_per_token_above_200k_tokens": 45,
		"cache_creation_input_token_cost_above_1hr": 120, "output_cost_per_token_batches": 100,
		"input_cost_per_token_above_272k_tokens_priority": 14, "tiered_pricing.input_cost_per_token": 50,
		"regional_processing_uplift_multiplier_eu": 18,
	} {
		if r.Used[field] < atLeast {
			t.Errorf("%s: used %d times, expected %d or more", field, r.Used[field], atLeast)
		}
	}
	for field, n := range r.Ignored {
		if r.Used[field] != 0 || n <= 0 {
			t.Errorf("%s is both used and ignored", field)
		}
	}
	if r.Ignored["output_cost_per_image"] != 138 || r.Metadata["supports_vision"] == 0 || r.Zeros["input_cost_per_token"] == 0 {
		t.Errorf("ignored %v, zeros %v", r.Ignored, r.Zeros)
	}
	for _, refusal := range r.Refused {
		if strings.HasPrefix(refusal.Model, "databricks/") && refusal.Reason != pricing.RefusedInexact && refusal.Reason != pricing.RefusedNoTokenRates {
			t.Errorf("%+v", refusal)
		}
	}
}

func TestImportIsDeterministic(t *testing.T) {
	b, _ := liteLLM()
	for range 3 {
		f, err := os.Open(listFile)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := pricing.ImportLiteLLM(f, pricing.ImportOptions{AsOf: day("2026-08-01"), Source: "test"})
		f.Close()
		if err != nil || again.Hash() != b.Hash() {
			t.Fatalf("another import gives another book: %v", err)
		}
	}
}

func TestImportEntries(t *testing.T) {
	for name, c := range map[string]struct {
		entry  string // the fields of model "p/m" of provider p
		sheets string // the book's sheets, or
		refuse string // the reason
	}{
		"plain": {
			`"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"2500000000000","output":"10000000000000","reasoning":"10000000000000"},"derived":["reasoning"]}]`, "",
		},
		"own reasoning rate": {
			`"output_cost_per_token": 1e-6, "output_cost_per_reasoning_token": 3e-6, "output_cost_per_token_above_128k_tokens": 2e-6`,
			`[{"service":"standard","above":0,"usd_e18":{"output":"1000000000000","reasoning":"3000000000000"}},` +
				`{"service":"standard","above":128000,"usd_e18":{"output":"2000000000000"}}]`, "",
		},
		"tiers of both kinds": {
			`"input_cost_per_token": 1e-6, "input_cost_per_token_batches": 5e-7, "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 4e-6, "input_cost_per_token_above_272k_tokens_priority": 7e-6`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"1000000000000"}},` +
				`{"service":"standard","above":200000,"usd_e18":{"cache_write_1h":"4000000000000"}},` +
				`{"service":"batch","above":0,"usd_e18":{"input":"500000000000"}},` +
				`{"service":"priority","above":272000,"usd_e18":{"input":"7000000000000"}}]`, "",
		},
		"tiered_pricing": {
			`"tiered_pricing": [{"range":[0, 32000.0],"input_cost_per_token":1e-6},{"range":[32000.0,1e6],"input_cost_per_token":2e-6}]`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"1000000000000"}},{"service":"standard","above":32000,"usd_e18":{"input":"2000000000000"}}]`, "",
		},
		"a zero is not a price": {
			`"input_cost_per_token": 1e-6, "output_cost_per_token": 0.0, "cache_creation_input_token_cost": 0`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"1000000000000"}}]`, "",
		},
		"a zero tier keeps the lower one away": {
			`"input_cost_per_token": 1e-6, "input_cost_per_token_above_128k_tokens": 0`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"1000000000000"}},{"service":"standard","above":128000,"usd_e18":{}}]`, "",
		},
		"embeddings have no output": {
			`"mode": "embedding", "input_cost_per_token": 1e-7, "output_cost_per_token": 0.0`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"100000000000","output":"0","reasoning":"0"},"derived":["reasoning"]}]`, "",
		},
		"all zero":           {`"input_cost_per_token": 0, "output_cost_per_token": 0.0`, "", pricing.RefusedAllZero},
		"billed by query":    {`"mode": "rerank", "output_cost_per_token": 0, "input_cost_per_query": 0.002`, "", pricing.RefusedAllZero},
		"billed by image":    {`"output_cost_per_image": 0.04`, "", pricing.RefusedNoTokenRates},
		"no prices":          {`"max_tokens": 5`, "", pricing.RefusedNoTokenRates},
		"inexact":            {`"input_cost_per_token": 3.0001999999999996E-7, "output_cost_per_token": 1e-6`, "", pricing.RefusedInexact},
		"negative":           {`"input_cost_per_token": -1e-6`, "", pricing.RefusedInexact},
		"a string":           {`"input_cost_per_token": "1e-6"`, "", pricing.RefusedBadField},
		"null":               {`"input_cost_per_token": null, "output_cost_per_token": 1e-6`, "", pricing.RefusedBadField},
		"two spellings":      {`"cache_read_input_token_cost": 1e-6, "input_cost_per_token_cache_hit": 2e-6`, "", pricing.RefusedTwoRates},
		"tier not a list":    {`"tiered_pricing": 5, "input_cost_per_token": 1e-6`, "", pricing.RefusedBadField},
		"tier from a string": {`"tiered_pricing": [{"range":["a",5],"input_cost_per_token":1e-6}]`, "", pricing.RefusedBadField},
		"bad uplift":         {`"input_cost_per_token": 1e-6, "regional_processing_uplift_multiplier_eu": "x"`, "", pricing.RefusedBadField},
	} {
		b, r := importText(t, `{"p/m": {"litellm_provider": "p", `+c.entry+`}}`)
		if c.refuse != "" {
			if b.Len() != 0 || len(r.Refused) != 1 || r.Refused[0] != (pricing.Refusal{Model: "p/m", Reason: c.refuse}) || r.Priced != 0 || len(r.Used) != 0 {
				t.Errorf("%s: %+v, want %q", name, r, c.refuse)
			}
			continue
		}
		if got := string(b.Marshal()); !strings.Contains(got, `"model":"m","valid_from":"2026-08-01T00:00:00Z"`) || !strings.Contains(got, `"sheets":`+c.sheets+"}\n") {
			t.Errorf("%s:\n%swant %s", name, got, c.sheets)
		}
	}
}

func TestImportNamesAndConflicts(t *testing.T) {
	rate := func(provider, usd string) string {
		return `{"litellm_provider":"` + provider + `","input_cost_per_token":` + usd + `}`
	}
	b, r := importText(t, `{
		"sample_spec": {"litellm_provider": "one of the providers", "input_cost_per_token": 0.0},
		"deepseek-chat": `+rate("deepseek", "1e-6")+`,
		"deepseek/deepseek-chat": `+rate("deepseek", "2e-6")+`,
		"gemini-x": `+rate("vertex_ai-language-models", "1e-6")+`,
		"vertex_ai/Gemini-X": `+rate("vertex_ai", "1e-6")+`,
		"azure/eu/gpt-x": `+rate("azure", "3e-6")+`,
		"bedrock/us-gov-west-1/a.b-v1:0": `+rate("bedrock", "4e-6")+`,
		"us.a.b-v1:0": `+rate("bedrock_converse", "5e-6")+`,
		"amazon-nova/micro": `+rate("amazon_nova", "6e-6")+`,
		"openai/y": `+rate("openai", "1e-6")+`,
		"y": `+rate("openai", "2e-6")+`,
		"twice": `+rate("openai", "1e-6")+`,
		"twice": `+rate("openai", "3e-6")+`,
		"no provider": {"input_cost_per_token": 1e-6},
		"a name": `+rate("openai", "1e-6")+`,
		"strange": {"litellm_provider":"openai","input_cost_per_token":1e-6,"input_cost_per_thought":1,"surge_pricing":2}
	}`)
	var got []string
	for _, row := range b.Rows() {
		name := row.Provider + "/" + row.Model + "[" + row.Region + "]"
		got = append(got, name+"="+strings.TrimRight(strings.TrimSuffix(rateText(row.Sheets[0].Rates[tokens.Input]), "000000000000"), " "))
	}
	want := "amazon_nova/micro[]=6 azure/gpt-x[eu]=3 bedrock/a.b-v1:0[us-gov-west-1]=4 bedrock/us.a.b-v1:0[]=5 deepseek/deepseek-chat[]=2 " +
		"openai/strange[]=1 openai/twice[]=1 openai/y[]=1 vertex_ai/gemini-x[]=1"
	if strings.Join(got, " ") != want {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, " "), want)
	}
	reasons := map[string]string{}
	for _, refusal := range r.Refused {
		reasons[refusal.Model] = refusal.Reason
	}
	if len(reasons) != 5 || reasons["deepseek-chat"] != pricing.RefusedConflict || reasons["y"] != pricing.RefusedConflict ||
		reasons["twice"] != pricing.RefusedDuplicate || reasons["no provider"] != pricing.RefusedNoProvider || reasons["a name"] != pricing.RefusedName {
		t.Errorf("refused %v", reasons)
	}
	if r.Unknown["input_cost_per_thought"] != 1 || r.Unknown["surge_pricing"] != 1 || r.Merged != 1 || r.Entries != 15 || r.Priced != 10 || r.Rows != 9 {
		t.Errorf("report %+v", r)
	}
}

func rateText(r pricing.Rate) string {
	var digits []byte
	for ; r > 0; r /= 10 {
		digits = append([]byte{byte('0' + r%10)}, digits...)
	}
	return string(digits)
}

func TestImportUplift(t *testing.T) {
	b, r := importText(t, `{"m": {"litellm_provider":"openai","input_cost_per_token":1e-17,"regional_processing_uplift_multiplier_eu":1.1,"regional_processing_uplift_multiplier_us":1.05}}`)
	price := func(region string) string {
		res := b.Price(&pricing.Usage{Provider: "openai", Model: "m", Region: region, Tokens: vector(input, 1_000_000), At: at})
		if !res.Priced {
			return res.Reason.String()
		}
		return res.Cost.String()
	}
	if price("") != "0.000000000010" || price("eu") != "0.000000000011" {
		t.Errorf("%s, %s", price(""), price("eu"))
	}
	// 1.05e-17 is no whole number of 1e-18: unpriced there, never the cheaper general price.
	if price("us") != "no_rate:input" || len(r.Refused) != 1 || r.Refused[0].Reason != pricing.RefusedInexact {
		t.Errorf("%s, %+v", price("us"), r.Refused)
	}
}

func TestImportFreeProvider(t *testing.T) {
	list := `{"ollama/llama": {"litellm_provider":"ollama","input_cost_per_token":0.0,"output_cost_per_token":0.0}}`
	if b, _ := importText(t, list); b.Len() != 0 {
		t.Error("a zero was believed unasked")
	}
	b, _ := importText(t, list, "ollama")
	if r := b.Price(&pricing.Usage{Provider: "ollama", Model: "llama", Tokens: vector(input, 5), At: at}); !r.Priced || r.Cost != 0 {
		t.Errorf("%+v", r)
	}
}

func TestImportRefusesOtherThings(t *testing.T) {
	bomb := compressed(t, io.LimitReader(zeros{}, 200<<20))
	for name, list := range map[string]string{
		"empty": "", "not JSON": "model,price\n", "a list": `[1]`, "cut": `{"m": {"litellm_provider":"openai"`,
		"an entry that is no object": `{"m": 5}`, "not closed": `{"m": {}`, "bad zstd": "\x28\xb5\x2f\xfdxxxxxxxx", "a bomb": bomb,
	} {
		if _, _, err := pricing.ImportLiteLLM(strings.NewReader(list), pricing.ImportOptions{AsOf: day("2026-08-01")}); !errors.Is(err, pricing.ErrImport) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := pricing.ImportLiteLLM(strings.NewReader("{}"), pricing.ImportOptions{}); !errors.Is(err, pricing.ErrImport) {
		t.Errorf("no date: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func compressed(t *testing.T, r io.Reader) string {
	t.Helper()
	var out strings.Builder
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, r); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestDerive(t *testing.T) {
	rates := pricing.NoRates()
	rates[tokens.Input], rates[tokens.Output] = 5, 7
	for _, c := range []struct {
		provider string
		hints    pricing.Hints
		want     [3]pricing.Rate // reasoning, image input, audio input
	}{
		{"openai", pricing.Hints{}, [3]pricing.Rate{7, -1, -1}},
		{"openai", pricing.Hints{Vision: true, AudioInput: true}, [3]pricing.Rate{7, 5, -1}},
		{"gemini", pricing.Hints{Vision: true, AudioInput: true}, [3]pricing.Rate{7, 5, 5}},
		{"together_ai", pricing.Hints{Vision: true, AudioInput: true}, [3]pricing.Rate{7, -1, -1}},
	} {
		row := pricing.Row{Provider: c.provider, Sheets: []pricing.Sheet{{Rates: rates}}}
		row.Derive(c.hints)
		s := row.Sheets[0]
		got := [3]pricing.Rate{s.Rates[tokens.Reasoning], s.Rates[tokens.ImageInput], s.Rates[tokens.AudioInput]}
		if got != c.want {
			t.Errorf("%s %+v: %v, want %v", c.provider, c.hints, got, c.want)
		}
		for class, derived := range s.Derived {
			if derived != (rates[class] == pricing.NoRate && s.Rates[class] != pricing.NoRate) {
				t.Errorf("%s: %v is marked wrongly", c.provider, tokens.Class(class))
			}
		}
		for _, never := range []tokens.Class{tokens.CacheRead, tokens.CacheWrite5m, tokens.CacheWrite1h, tokens.AudioOutput, tokens.ImageOutput} {
			if s.Rates[never] != pricing.NoRate {
				t.Errorf("%s: %v was derived", c.provider, never)
			}
		}
	}
}

func FuzzImportLiteLLM(f *testing.F) {
	f.Add([]byte(`{"gpt-x": {"litellm_provider":"openai","input_cost_per_token":2.5e-06,"output_cost_per_token_above_200k_tokens_batches":1,"supports_vision":true}}`))
	f.Add([]byte(`{"q": {"litellm_provider":"dashscope","tiered_pricing":[{"range":[0,256000.0],"input_cost_per_token":5e-08}]}}`))
	f.Add([]byte(`{"a/eu/b": {"litellm_provider":"azure","cache_creation_input_token_cost_above_1hr":1e-18,"regional_processing_uplift_multiplier_eu":1.1}}`))
	f.Add([]byte("\x28\xb5\x2f\xfd\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, r, err := pricing.ImportLiteLLM(strings.NewReader(string(data)), pricing.ImportOptions{AsOf: day("2026-08-01")})
		if err != nil {
			return
		}
		if b.Len() != r.Rows || r.Priced > r.Entries {
			t.Fatalf("%d rows, report %+v", b.Len(), r)
		}
		back, err := pricing.ParseBook(b.Marshal())
		if err != nil || back.Hash() != b.Hash() {
			t.Fatalf("the imported book does not round-trip: %v", err)
		}
	})
}
