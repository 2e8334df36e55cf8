package pricing_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/internal/pricing"
)

// TestImportFindsTheForm: what a file holds says how it is written.
func TestImportFindsTheForm(t *testing.T) {
	lite := `{"sample_spec":{},"gpt-4o":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":0.0000025}}`
	o := pricing.ImportOptions{AsOf: day("2026-08-01")}
	book, _, err := pricing.ImportLiteLLM(strings.NewReader(lite), o)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(lite)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"list.json":     {lite, "litellm-2026-08-01"},
		"list.json.zst": {packed.String(), "litellm-2026-08-01"},
		"a book":        {string(book.Marshal()), "litellm-2026-08-01"},
		"api.json":      {`{"openai":{"id":"openai","models":{"gpt-4o":{"id":"gpt-4o","cost":{"input":2.5,"output":10}}}}}`, "models.dev-2026-08-01"},
		"data.json":     {` [{"id":"openai","name":"OpenAI","api_pattern":"x","models":[{"id":"gpt-4o","match":{"equals":"gpt-4o"},"prices":{"input_mtok":2.5}}]}]`, "genai-prices-2026-08-01"},
		"own.csv":       {"provider,model,input_per_mtok\nopenai,gpt-4o,2.5\n", "csv-2026-08-01"},
		"own.yaml":      {"prices:\n  - provider: openai\n    model: gpt-4o\n    sheets: [{usd_per_mtok: {input: 2.5}}]\n", "yaml-2026-08-01"},
	} {
		b, _, err := pricing.Import("", name, strings.NewReader(c.text), o)
		if err != nil || b.Version() != c.want {
			t.Errorf("%s: %v, %v, want %s", name, b, err, c.want)
		}
	}
	for name, text := range map[string]string{"empty": "", "x.json": "{}", "y.json": `{"a":{"b":1}}`, "z": "not a list"} {
		if _, _, err := pricing.Import("", name, strings.NewReader(text), o); !errors.Is(err, pricing.ErrImport) {
			t.Errorf("%s: %v, want ErrImport", name, err)
		}
	}
	if f, err := pricing.ParseForm("xml"); err == nil {
		t.Errorf("xml is %q", f)
	}
}
