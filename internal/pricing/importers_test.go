package pricing_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

// importer is one of the functions that make a book of a list.
type importer func(io.Reader, pricing.ImportOptions) (*pricing.Book, pricing.Report, error)

// imported imports a text of 2026-08-01.
func imported(t testing.TB, from importer, list string, free ...string) (*pricing.Book, pricing.Report) {
	t.Helper()
	b, r, err := from(strings.NewReader(list), pricing.ImportOptions{AsOf: day("2026-08-01"), Free: free})
	if err != nil {
		t.Fatal(err)
	}
	return b, r
}

// sheetsOf are the lines of the book from "sheets" on, one row a line.
func sheetsOf(b *pricing.Book) string {
	var out strings.Builder
	for line := range strings.Lines(string(b.Marshal())) {
		if _, sheets, ok := strings.Cut(line, `"sheets":`); ok {
			out.WriteString(strings.TrimSuffix(sheets, "}\n") + "\n")
		}
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func TestImportModelsDev(t *testing.T) {
	for name, c := range map[string]struct{ model, sheets, refuse string }{
		"plain": {
			`{"cost":{"input":3,"output":15,"cache_read":0.3,"cache_write":3.75}}`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"3000000000000","cache_read":"300000000000","cache_write_5m":"3750000000000",` +
				`"output":"15000000000000","reasoning":"15000000000000"},"derived":["reasoning"]}]`, "",
		},
		"over 200k": {
			`{"cost":{"input":2,"output":10,"reasoning":12,"context_over_200k":{"input":4,"output":15}}}`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"2000000000000","output":"10000000000000","reasoning":"12000000000000"}},` +
				`{"service":"standard","above":200000,"usd_e18":{"input":"4000000000000","output":"15000000000000"}}]`, "",
		},
		"tiers come before what repeats them": {
			`{"cost":{"input":2,"output":10,"reasoning":12,"tiers":[{"input":4,"output":15,"tier":{"type":"context","size":272000}}],"context_over_200k":{"input":4,"output":15}}}`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"2000000000000","output":"10000000000000","reasoning":"12000000000000"}},` +
				`{"service":"standard","above":272000,"usd_e18":{"input":"4000000000000","output":"15000000000000"}}]`, "",
		},
		"a zero is not a price": {
			`{"cost":{"input":2,"output":0}}`, `[{"service":"standard","above":0,"usd_e18":{"input":"2000000000000"}}]`, "",
		},
		"a subscription":       {`{"cost":{"input":0,"output":0}}`, "", pricing.RefusedAllZero},
		"no cost":              {`{}`, "", pricing.RefusedNoTokenRates},
		"a string":             {`{"cost":{"input":"2","output":1}}`, "", pricing.RefusedBadField},
		"negative":             {`{"cost":{"input":-2,"output":1}}`, "", pricing.RefusedInexact},
		"finer than a rate":    {`{"cost":{"input":0.0000000000001,"output":1}}`, "", pricing.RefusedInexact},
		"not a model":          {`7`, "", pricing.RefusedBadField},
		"another kind of tier": {`{"cost":{"input":2,"output":1,"tiers":[{"input":1,"output":1,"tier":{"type":"day","size":5}}]}}`, "", pricing.RefusedBadField},
		"a tier twice": {
			`{"cost":{"input":2,"output":1,"tiers":[{"input":1,"output":1,"tier":{"size":5}},{"input":1,"output":1,"tier":{"size":5}}]}}`, "", pricing.RefusedBadField,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, r := imported(t, pricing.ImportModelsDev, `{"p":{"id":"p","doc":"https://p.example","models":{"m":`+c.model+`}}}`)
			checkEntry(t, b, r, "p/m", c.sheets, c.refuse)
		})
	}
}

// checkEntry compares the only entry of a list with what was expected of it.
func checkEntry(t *testing.T, b *pricing.Book, r pricing.Report, entry, sheets, refuse string) {
	t.Helper()
	if refuse != "" {
		if b.Len() != 0 || r.Priced != 0 || len(r.Refused) != 1 || r.Refused[0] != (pricing.Refusal{Model: entry, Reason: refuse}) {
			t.Errorf("%d rows, %+v, want refused: %s", b.Len(), r, refuse)
		}
		return
	}
	if got := sheetsOf(b); got != sheets || r.Entries != 1 || r.Priced != 1 || len(r.Refused) != 0 {
		t.Errorf("got\n%s\nwant\n%s\n%+v", got, sheets, r)
	}
}

func TestImportModelsDevNames(t *testing.T) {
	b, r := imported(t, pricing.ImportModelsDev, `{
		"amazon-bedrock":{"models":{"anthropic.claude-x":{"cost":{"input":3,"output":15}}}},
		"google":{"models":{"gemini-x":{"modalities":{"input":["text","image","audio"]},"cost":{"input":1,"output":2,"magic":3}}}},
		"own":{"models":{"Free":{"cost":{"input":0,"output":0}}}}}`, "own")
	if r.Priced != 3 || r.Unknown["cost.magic"] != 1 {
		t.Errorf("%+v", r)
	}
	for _, u := range []pricing.Usage{
		{Provider: "aws.bedrock", Model: "anthropic.claude-x", Tokens: vector(input, 1_000_000)},
		{Provider: "gemini", Model: "gemini-x", Tokens: vector(imageIn, 1_000_000, audioIn, 2_000_000)},
		{Provider: "own", Model: "free", Tokens: vector(output, 7)},
	} {
		u.At = at
		want := map[string]string{"aws.bedrock": "3.000000000000", "gemini": "3.000000000000", "own": "0.000000000000"}[u.Provider]
		if res := b.Price(&u); !res.Priced || res.Cost.String() != want {
			t.Errorf("%+v: %+v, want %s", u, res, want)
		}
	}
}

func TestImportGenAIPrices(t *testing.T) {
	for name, c := range map[string]struct{ prices, sheets, refuse string }{
		"plain": {
			`{"input_mtok":0.8,"cache_write_mtok":1,"cache_read_mtok":0.08,"output_mtok":4,"requests_kcount":10}`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"800000000000","cache_read":"80000000000","cache_write_5m":"1000000000000",` +
				`"output":"4000000000000","reasoning":"4000000000000"},"derived":["reasoning"]}]`, "",
		},
		"a class without tiers keeps its price above them": {
			`{"input_mtok":{"base":1.25,"tiers":[{"start":200000,"price":2.5}]},"cache_read_mtok":0.3}`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"1250000000000","cache_read":"300000000000"}},` +
				`{"service":"standard","above":200000,"usd_e18":{"input":"2500000000000","cache_read":"300000000000"}}]`, "",
		},
		"dated": {
			`[{"prices":{"input_mtok":10}},{"constraint":{"start_date":"2026-09-01"},"prices":{"input_mtok":2}}]`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"10000000000000"}}]` + "\n" + `[{"service":"standard","above":0,"usd_e18":{"input":"2000000000000"}}]`, "",
		},
		"dated in the past": {
			`[{"prices":{"input_mtok":10}},{"constraint":{"start_date":"2025-06-10"},"prices":{"input_mtok":2}}]`,
			`[{"service":"standard","above":0,"usd_e18":{"input":"2000000000000"}}]`, "",
		},
		"by the hour": {
			`[{"prices":{"input_mtok":10}},{"constraint":{"start_time":"00:30:00Z","end_time":"16:30:00Z"},"prices":{"input_mtok":2}}]`, "", pricing.RefusedTimeOfDay,
		},
		"dates in disorder": {
			`[{"prices":{"input_mtok":1}},{"constraint":{"start_date":"2025-06-10"},"prices":{"input_mtok":2}},{"constraint":{"start_date":"2025-01-01"},"prices":{"input_mtok":2}}]`,
			"", pricing.RefusedDates,
		},
		"no first":          {`[{"constraint":{"start_date":"2025-06-10"},"prices":{"input_mtok":2}}]`, "", pricing.RefusedDates},
		"no date":           {`[{"prices":{"input_mtok":1}},{"constraint":{"start_date":"soon"},"prices":{"input_mtok":2}}]`, "", pricing.RefusedBadField},
		"by the request":    {`{"requests_kcount":10}`, "", pricing.RefusedNoTokenRates},
		"free":              {`{"input_mtok":0,"output_mtok":0}`, "", pricing.RefusedAllZero},
		"tiers in disorder": {`{"input_mtok":{"base":1,"tiers":[{"start":5,"price":2},{"start":5,"price":3}]}}`, "", pricing.RefusedBadField},
		"a list":            {`[]`, "", pricing.RefusedBadField},
		"a string":          {`{"input_mtok":"1"}`, "", pricing.RefusedBadField},
		"inexact":           {`{"input_mtok":1e-13}`, "", pricing.RefusedInexact},
	} {
		t.Run(name, func(t *testing.T) {
			b, r := imported(t, pricing.ImportGenAIPrices, `[{"id":"p","models":[{"id":"m","match":{"equals":"m"},"prices":`+c.prices+`}]}]`)
			checkEntry(t, b, r, "p/m", c.sheets, c.refuse)
		})
	}
}

// A dated price holds from its date, and names that the list spells out are aliases.
func TestImportGenAIPricesOverTime(t *testing.T) {
	b, r := imported(t, pricing.ImportGenAIPrices, `[{"id":"aws","pricing_urls":["https://aws.example/prices"],"models":[
		{"id":"m","match":{"or":[{"equals":"M-Latest"},{"starts_with":"m-2"},{"equals":"n"}]},
		 "prices":[{"prices":{"input_mtok":10}},{"constraint":{"start_date":"2026-09-15"},"prices":{"input_mtok":2,"new_mtok":1}}]},
		{"id":"n","match":{"equals":"n"},"prices":{"input_mtok":5}},
		{"id":"n","match":{"equals":"n"},"prices":{"input_mtok":6}}]}]`)
	if r.Unknown["new_mtok"] != 1 || r.Rows != 3 || len(r.Refused) != 1 || r.Refused[0].Reason != pricing.RefusedConflict {
		t.Errorf("%+v", r)
	}
	for _, c := range []struct{ model, day, want string }{
		{"m", "2026-09-14", "0.000010000000"},
		{"m-latest", "2026-09-15", "0.000002000000"},
		{"n", "2026-09-15", "0.000005000000"},
		{"m", "2026-07-31", "no_price_at_time"},
		{"m-2", "2026-09-15", "unknown_model"},
	} {
		res := b.Price(&pricing.Usage{Provider: "bedrock", Model: c.model, At: day(c.day).UnixNano(), Tokens: vector(input, 1)})
		if got := res.Reason.String(); got != c.want && res.Cost.String() != c.want {
			t.Errorf("%+v: %+v", c, res)
		}
	}
}

const plainCSV = `provider,model,region,service,above,valid_from,known_from,source,input_per_mtok,output_per_mtok,cache_read_per_token
acme,Big,,,,2026-01-01,2025-12-15,contract 7,1.10,2.20,
acme,big,,batch,,2026-01-01,2025-12-15,,0.55,1.1,
acme,big,,,200000,2026-01-01,2025-12-15,,2,4,0.0000002
acme,big,eu,,,,,,1.3,,
acme,gift,,,,,,,0,0,
`

const plainYAML = `
aliases:
  - {name: huge, provider: acme, model: big}
prices:
  - provider: acme
    model: Big
    valid_from: 2026-01-01
    known_from: 2025-12-15
    source: contract 7
    sheets:
      - usd_per_mtok: {input: 1.10, output: 2.20}
      - {service: batch, usd_per_mtok: {input: 0.55, output: 1.1}}
      - {above: 200000, usd_per_mtok: {input: 2, output: 4, cache_read: 0.2}}
  - {provider: acme, model: big, region: eu, sheets: [{usd_per_mtok: {input: 1.3}}]}
  - {provider: acme, model: gift, sheets: [{usd_per_mtok: {input: 0, output: 0}}]}
`

// One list in both forms is one book, but for its aliases.
func TestImportPlainLists(t *testing.T) {
	fromCSV, r := imported(t, pricing.ImportCSV, plainCSV)
	fromYAML, _ := imported(t, pricing.ImportYAML, plainYAML)
	if r.Entries != 5 || r.Priced != 5 || r.Rows != 3 {
		t.Errorf("%+v", r)
	}
	d := pricing.Compare(fromCSV, fromYAML, day("2026-09-01"))
	if len(d.Removed)+len(d.Added)+len(d.Changes) != 0 || len(d.AddedAliases) != 1 {
		t.Errorf("%+v", d)
	}
	for _, c := range []struct {
		usage pricing.Usage
		want  string
	}{
		{pricing.Usage{Model: "big", Tokens: vector(input, 1, output, 1, reasoning, 1)}, "0.000005500000"},
		{pricing.Usage{Model: "huge", ServiceTier: "batch", Tokens: vector(input, 1)}, "0.000000550000"},
		{pricing.Usage{Model: "big", Tokens: vector(input, 200_000, cacheRead, 1)}, "0.400000200000"},
		{pricing.Usage{Model: "big", Region: "EU", Tokens: vector(input, 1)}, "0.000001300000"},
		{pricing.Usage{Model: "gift", Tokens: vector(output, 9)}, "0.000000000000"},
	} {
		c.usage.Provider, c.usage.At = "acme", at
		if res := fromYAML.Price(&c.usage); !res.Priced || res.Cost.String() != c.want {
			t.Errorf("%+v: %+v, want %s", c.usage, res, c.want)
		}
	}
}

func TestImportPlainRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		from importer
		list string
		want string
	}{
		"unknown column":    {pricing.ImportCSV, "provider,model,colour\n", "colour"},
		"a column twice":    {pricing.ImportCSV, "provider,model,model\n", "twice"},
		"a price as a word": {pricing.ImportCSV, "provider,model,input_per_mtok\np,m,1\np,n,cheap\n", "line 3"},
		"a comma as point":  {pricing.ImportCSV, "provider,model,input_per_mtok\np,m,\"1,5\"\n", "line 2"},
		"too fine":          {pricing.ImportCSV, "provider,model,input_per_token\np,m,1e-19\n", "line 2"},
		"no rate":           {pricing.ImportCSV, "provider,model,input_per_mtok\np,m,\n", "line 2: no rate"},
		"two units":         {pricing.ImportCSV, "provider,model,input_per_mtok,input_per_token\np,m,1,1\n", "two rates"},
		"a sheet twice":     {pricing.ImportCSV, "provider,model,input_per_mtok\np,m,1\np,m,2\n", "two sheets"},
		"overlap":           {pricing.ImportCSV, "provider,model,input_per_mtok,valid_to\np,m,1,\np,m,2,2027-01-01\n", "overlapping"},
		"no provider":       {pricing.ImportCSV, "model,input_per_mtok\nm,1\n", "provider"},
		"service":           {pricing.ImportCSV, "provider,model,service,input_per_mtok\np,m,auto,1\n", "service tier"},
		"above":             {pricing.ImportCSV, "provider,model,above,input_per_mtok\np,m,-1,1\n", "above"},
		"time":              {pricing.ImportCSV, "provider,model,valid_from,input_per_mtok\np,m,1.1.26,1\n", "valid_from"},
		"short line":        {pricing.ImportCSV, "provider,model,input_per_mtok\np,m\n", "fields"},
		"empty":             {pricing.ImportCSV, "", "EOF"},
		"yaml field":        {pricing.ImportYAML, "prices: [{provider: p, modell: m}]", "modell"},
		"yaml class":        {pricing.ImportYAML, "prices: [{provider: p, model: m, sheets: [{usd_per_mtok: {in: 1}}]}]", "in"},
		"yaml not a value":  {pricing.ImportYAML, "prices: [{provider: [p]}]", "plain value"},
		"yaml no sheets":    {pricing.ImportYAML, "prices: [{provider: p, model: m}]", "sheets"},
		"yaml rate":         {pricing.ImportYAML, "prices: [{provider: p, model: m, sheets: [{usd_per_mtok: {input: .inf}}]}]", "price 1"},
		"yaml alias":        {pricing.ImportYAML, "aliases: [{name: x, provider: p, model: m}]", "alias"},
		"models.dev":        {pricing.ImportModelsDev, "[]", "providers"},
		"genai-prices":      {pricing.ImportGenAIPrices, "{}", "providers"},
		"genai-prices null": {pricing.ImportGenAIPrices, "null", "providers"},
	} {
		b, _, err := c.from(strings.NewReader(c.list), pricing.ImportOptions{AsOf: day("2026-08-01")})
		if b != nil || !errors.Is(err, pricing.ErrImport) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if _, _, err := c.from(strings.NewReader(c.list), pricing.ImportOptions{}); !errors.Is(err, pricing.ErrImport) {
			t.Errorf("%s: without a date: %v", name, err)
		}
	}
}

// importers are all of them, with a small list each.
var importers = map[string]struct {
	from importer
	list string
}{
	"litellm":      {pricing.ImportLiteLLM, `{"p/m":{"litellm_provider":"p","input_cost_per_token":1e-6}}`},
	"models.dev":   {pricing.ImportModelsDev, `{"p":{"models":{"m":{"cost":{"input":1,"output":2,"tiers":[{"input":1,"output":2,"tier":{"size":9}}]}}}}}`},
	"genai-prices": {pricing.ImportGenAIPrices, `[{"id":"p","models":[{"id":"m","match":{"equals":"n"},"prices":[{"prices":{"input_mtok":{"base":1,"tiers":[{"start":3,"price":2}]}}},{"constraint":{"start_date":"2027-01-01"},"prices":{"input_mtok":1}}]}]}]`},
	"csv":          {pricing.ImportCSV, plainCSV},
	"yaml":         {pricing.ImportYAML, plainYAML},
}

// The real list through the importer of its form, and through those of other forms.
func TestImportersOnTheRealList(t *testing.T) {
	for name, from := range importers {
		f, err := os.Open(testenv.Data(t, "prices/litellm_model_prices_2026-08-01.json.zst"))
		if err != nil {
			t.Fatal(err)
		}
		b, r, err := from.from(f, pricing.ImportOptions{AsOf: day("2026-08-01"), Source: "test"})
		f.Close()
		switch name {
		case "litellm":
			own, _ := liteLLM()
			if err != nil || b.Hash() != own.Hash() {
				t.Errorf("the shared list is not the one of the tests: %v", err)
			}
		case "models.dev": // an object of objects too, but without models
			if err != nil || b.Len() != 0 || r.Entries != 0 {
				t.Errorf("%s: %d rows, %v", name, b.Len(), err)
			}
		default:
			if !errors.Is(err, pricing.ErrImport) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func FuzzImportModelsDev(f *testing.F)   { fuzzImporter(f, "models.dev") }
func FuzzImportGenAIPrices(f *testing.F) { fuzzImporter(f, "genai-prices") }
func FuzzImportCSV(f *testing.F)         { fuzzImporter(f, "csv") }
func FuzzImportYAML(f *testing.F)        { fuzzImporter(f, "yaml") }

// fuzzImporter feeds an importer anything: it answers with an error of this package or with a
// book that is read back, the same one each time.
func fuzzImporter(f *testing.F, name string) {
	from := importers[name].from
	f.Add([]byte(importers[name].list))
	f.Fuzz(func(t *testing.T, list []byte) {
		o := pricing.ImportOptions{AsOf: day("2026-08-01"), Free: []string{"p"}}
		b, r, err := from(strings.NewReader(string(list)), o)
		if err != nil {
			if !errors.Is(err, pricing.ErrImport) && !errors.Is(err, pricing.ErrRow) && !errors.Is(err, pricing.ErrOverlap) && !errors.Is(err, pricing.ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		back, err := pricing.ParseBook(b.Marshal())
		if err != nil || back.Hash() != b.Hash() || b.Len() != r.Rows {
			t.Fatalf("%d rows of %d: %v", b.Len(), r.Rows, err)
		}
		again, _, err := from(strings.NewReader(string(list)), o)
		if err != nil || again.Hash() != b.Hash() {
			t.Fatalf("another import gives another book: %v", err)
		}
	})
}

// A rate that is written into a list of each form is in the book to the last digit.
func TestImportersAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		digits := rapid.StringMatching(`[1-9][0-9]{0,3}\.[0-9]{0,10}[1-9]`).Draw(t, "usd per mtok")
		want, err := pricing.ParseRate(digits + "e-6")
		if err != nil {
			t.Fatal(err)
		}
		for name, list := range map[string]string{
			"models.dev":   `{"p":{"models":{"m":{"cost":{"input":` + digits + `}}}}}`,
			"genai-prices": `[{"id":"p","models":[{"id":"m","prices":{"input_mtok":` + digits + `}}]}]`,
			"csv":          "provider,model,input_per_mtok\np,m," + digits + "\n",
			"yaml":         "prices: [{provider: p, model: m, sheets: [{usd_per_mtok: {input: " + digits + "}}]}]",
			"litellm":      `{"m":{"litellm_provider":"p","input_cost_per_token":` + digits + `e-6}}`,
		} {
			b, _, err := importers[name].from(strings.NewReader(list), pricing.ImportOptions{AsOf: day("2026-08-01")})
			if err != nil || b.Len() != 1 || b.Rows()[0].Sheets[0].Rates[tokens.Input] != want {
				t.Fatalf("%s: %s became %v, %v", name, digits, b, err)
			}
		}
	})
}
