package pricing_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

// flat is a row with one rate for input tokens, in USD per token.
func flat(provider, model, usd string) pricing.Row {
	rates := pricing.NoRates()
	rate, err := pricing.ParseRate(usd)
	if err != nil {
		panic(err)
	}
	rates[tokens.Input] = rate
	return pricing.Row{
		Provider: provider, Model: model, ValidFrom: day("2025-01-01"), KnownFrom: day("2025-01-01"),
		Sheets: []pricing.Sheet{{Rates: rates}},
	}
}

var header = pricing.Header{Version: "test-1", Source: "a test", SourceDate: "2025-01-01"}

func mustBook(t rapid.TB, rows []pricing.Row, aliases ...pricing.Alias) *pricing.Book {
	t.Helper()
	b, err := pricing.NewBook(header, rows, aliases)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The price was 1, fell to 2 in June, and in July we learned that it had been 3 from June on.
func bitemporalRows() []pricing.Row {
	first := flat("p", "m", "1e-6")
	first.ValidTo = day("2025-06-01")
	wrong := flat("p", "m", "2e-6")
	wrong.ValidFrom, wrong.KnownFrom, wrong.KnownTo = day("2025-06-01"), day("2025-05-15"), day("2025-07-10")
	right := flat("p", "m", "3e-6")
	right.ValidFrom, right.KnownFrom = day("2025-06-01"), day("2025-07-10")
	return []pricing.Row{right, first, wrong}
}

func TestBitemporalLookUp(t *testing.T) {
	b := mustBook(t, bitemporalRows())
	second := time.Second
	for _, c := range []struct {
		at, known time.Time
		cost, row string
	}{
		{day("2025-01-01"), day("2025-01-01"), "0.000001000000", "p/m@2025-01-01/standard"},
		{day("2025-06-01").Add(-1), day("2025-08-01"), "0.000001000000", "p/m@2025-01-01/standard"},
		{day("2025-06-01"), day("2025-06-01"), "0.000002000000", "p/m@2025-06-01~2025-05-15/standard"},
		{day("2025-06-20"), day("2025-07-10").Add(-1), "0.000002000000", "p/m@2025-06-01~2025-05-15/standard"},
		{day("2025-06-20"), day("2025-07-10"), "0.000003000000", "p/m@2025-06-01~2025-07-10/standard"},
		{day("2025-06-20"), time.Unix(0, 0), "0.000003000000", "p/m@2025-06-01~2025-07-10/standard"}, // Latest
		{day("2025-01-01").Add(-second), day("2025-08-01"), "no_price_at_time", ""},
		{day("2025-06-01"), day("2025-05-15").Add(-second), "price_not_yet_known", ""},
		{day("2025-03-01"), day("2024-12-31"), "price_not_yet_known", ""},
	} {
		r := b.Price(&pricing.Usage{Provider: "p", Model: "m", Tokens: vector(input, 1), At: c.at.UnixNano(), KnownAt: c.known.UnixNano()})
		got := r.Cost.String()
		if !r.Priced {
			got = r.Reason.String()
		}
		if got != c.cost || string(r.Row) != c.row {
			t.Errorf("at %v, known %v: %s by %q, want %s by %q", c.at, c.known, got, r.Row, c.cost, c.row)
		}
	}
}

func TestRegionalRows(t *testing.T) {
	general, eu, gov := flat("p", "m", "1e-6"), flat("p", "m", "2e-6"), flat("p", "only-gov", "5e-6")
	eu.Region, eu.ValidTo, gov.Region = "eu", day("2025-07-01"), "us-gov-west-1"
	b := mustBook(t, []pricing.Row{general, eu, gov})
	for _, c := range []struct{ model, region, at, want string }{
		{"m", "", "2025-06-01", "0.000001000000"},
		{"m", "eu", "2025-06-01", "0.000002000000"},
		{"m", "EU", "2025-06-01", "0.000002000000"},
		{"m", "us", "2025-06-01", "0.000001000000"},
		{"m", "eu", "2025-07-01", "0.000001000000"}, // the regional row has ended
		{"only-gov", "us-gov-west-1", "2025-06-01", "0.000005000000"},
		{"only-gov", "us-east-1", "2025-06-01", "no_price_in_region"},
		{"only-gov", "", "2025-06-01", "no_price_in_region"},
	} {
		r := b.Price(&pricing.Usage{Provider: "p", Model: c.model, Region: c.region, Tokens: vector(input, 1), At: day(c.at).UnixNano()})
		got := r.Cost.String()
		if !r.Priced {
			got = r.Reason.String()
		}
		if got != c.want {
			t.Errorf("%s in %q at %s: %s, want %s", c.model, c.region, c.at, got, c.want)
		}
	}
}

func TestHalfEvenPerComponent(t *testing.T) {
	row := flat("p", "m", "0.5e-12")
	row.Sheets[0].Rates[tokens.Output] = row.Sheets[0].Rates[tokens.Input]
	b := mustBook(t, []pricing.Row{row})
	for n, want := range map[int64]string{1: "0.000000000000", 3: "0.000000000004", 5: "0.000000000004", 7: "0.000000000008"} {
		r := b.Price(&pricing.Usage{Provider: "p", Model: "m", Tokens: vector(input, n, output, n), At: at})
		if r.Cost.String() != want {
			t.Errorf("2 × %d × 0.5e-12 = %v, want %s: each component is rounded by itself", n, r.Cost, want)
		}
	}
}

func TestNewBookRefuses(t *testing.T) {
	change := func(f func(r *pricing.Row)) []pricing.Row {
		r := flat("p", "m", "1e-6")
		f(&r)
		return []pricing.Row{r}
	}
	for name, c := range map[string]struct {
		header  pricing.Header
		rows    []pricing.Row
		aliases []pricing.Alias
		err     error
	}{
		"the same twice":    {header, slices.Repeat([]pricing.Row{flat("p", "m", "1e-6")}, 2), nil, pricing.ErrOverlap},
		"overlap":           {header, append(bitemporalRows(), change(func(r *pricing.Row) { r.ValidFrom = day("2025-05-01") })...), nil, pricing.ErrOverlap},
		"capitals":          {header, change(func(r *pricing.Row) { r.Model = "M" }), nil, pricing.ErrRow},
		"blank":             {header, change(func(r *pricing.Row) { r.Model = "a b" }), nil, pricing.ErrRow},
		"quote":             {header, change(func(r *pricing.Row) { r.Region = `a"b` }), nil, pricing.ErrRow},
		"not ASCII":         {header, change(func(r *pricing.Row) { r.Provider = "ä" }), nil, pricing.ErrRow},
		"slash":             {header, change(func(r *pricing.Row) { r.Provider = "a/b" }), nil, pricing.ErrRow},
		"no name":           {header, change(func(r *pricing.Row) { r.Model = "" }), nil, pricing.ErrRow},
		"long provider":     {header, change(func(r *pricing.Row) { r.Provider = strings.Repeat("p", 65) }), nil, pricing.ErrRow},
		"long name":         {header, change(func(r *pricing.Row) { r.Model = strings.Repeat("m", 257) }), nil, pricing.ErrRow},
		"control in source": {header, change(func(r *pricing.Row) { r.Source = "a\nb" }), nil, pricing.ErrRow},
		"no valid time":     {header, change(func(r *pricing.Row) { r.ValidFrom = time.Time{} }), nil, pricing.ErrRow},
		"empty valid time":  {header, change(func(r *pricing.Row) { r.ValidTo = r.ValidFrom }), nil, pricing.ErrRow},
		"empty known time":  {header, change(func(r *pricing.Row) { r.KnownTo = r.KnownFrom }), nil, pricing.ErrRow},
		"part of a second":  {header, change(func(r *pricing.Row) { r.KnownFrom = r.KnownFrom.Add(1) }), nil, pricing.ErrRow},
		"too late":          {header, change(func(r *pricing.Row) { r.ValidTo = day("2262-01-02") }), nil, pricing.ErrRow},
		"no sheet":          {header, change(func(r *pricing.Row) { r.Sheets = nil }), nil, pricing.ErrRow},
		"two sheets":        {header, change(func(r *pricing.Row) { r.Sheets = append(r.Sheets, r.Sheets[0]) }), nil, pricing.ErrRow},
		"negative rate":     {header, change(func(r *pricing.Row) { r.Sheets[0].Rates[0] = -2 }), nil, pricing.ErrRow},
		"negative tier":     {header, change(func(r *pricing.Row) { r.Sheets[0].Above = -1 }), nil, pricing.ErrRow},
		"unknown service":   {header, change(func(r *pricing.Row) { r.Sheets[0].Service = 9 }), nil, pricing.ErrRow},
		"derived nothing":   {header, change(func(r *pricing.Row) { r.Sheets[0].Derived[tokens.Output] = true }), nil, pricing.ErrRow},
		"ids that collide":  {header, append(change(func(r *pricing.Row) { r.Model, r.Region = "m", "eu" }), change(func(r *pricing.Row) { r.Model = "m[eu]" })...), nil, pricing.ErrRow},
		"alias of nothing":  {header, change(func(*pricing.Row) {}), []pricing.Alias{{"x", "p", "other"}}, pricing.ErrRow},
		"alias that hides":  {header, change(func(*pricing.Row) {}), []pricing.Alias{{"m", "p", "m"}}, pricing.ErrRow},
		"alias twice":       {header, change(func(*pricing.Row) {}), []pricing.Alias{{"x", "p", "m"}, {"x", "p", "m"}}, pricing.ErrRow},
		"provider alias":    {header, change(func(*pricing.Row) {}), []pricing.Alias{{"p", "p", ""}}, pricing.ErrRow},
		"alias of alias":    {header, change(func(*pricing.Row) {}), []pricing.Alias{{"q", "p", ""}, {"r", "q", ""}}, pricing.ErrRow},
		"no version":        {pricing.Header{}, change(func(*pricing.Row) {}), nil, pricing.ErrFormat},
		"bad date":          {pricing.Header{Version: "v", SourceDate: "1.2.2025"}, change(func(*pricing.Row) {}), nil, pricing.ErrFormat},
		"bad notes":         {pricing.Header{Version: "v", Notes: "a\tb"}, change(func(*pricing.Row) {}), nil, pricing.ErrFormat},
	} {
		if _, err := pricing.NewBook(c.header, c.rows, c.aliases); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
}

// The serialisation is what auditors read; this is its documented form, byte for byte.
func TestMarshalForm(t *testing.T) {
	row := flat("p", "m", "0.0000025")
	row.Region, row.Source, row.ValidTo = "eu", "page 7", day("2026-01-01")
	high := pricing.Sheet{Service: pricing.Batch, Above: 200_000, Rates: row.Sheets[0].Rates}
	high.Rates[tokens.Output] = 7
	high.Rates[tokens.Reasoning] = 7
	high.Derived[tokens.Reasoning] = true
	row.Sheets = append([]pricing.Sheet{high}, row.Sheets...)
	b := mustBook(t, []pricing.Row{row}, pricing.Alias{"m-1", "p", "m"}, pricing.Alias{"q", "p", ""})
	want := `{"format":"tallystick.price-book/1","version":"test-1","source":"a test","source_date":"2025-01-01","notes":"","aliases":2,"rows":1}
{"alias":"m-1","provider":"p","model":"m"}
{"alias":"q","provider":"p"}
{"provider":"p","model":"m","region":"eu","valid_from":"2025-01-01T00:00:00Z","valid_to":"2026-01-01T00:00:00Z","known_from":"2025-01-01T00:00:00Z","source":"page 7","sheets":[` +
		`{"service":"standard","above":0,"usd_e18":{"input":"2500000000000"}},` +
		`{"service":"batch","above":200000,"usd_e18":{"input":"2500000000000","output":"7","reasoning":"7"},"derived":["reasoning"]}]}
`
	if got := string(b.Marshal()); got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
	if b.Hash() != sha256.Sum256([]byte(want)) || b.Version() != "test-1" {
		t.Fatal("the hash is not the SHA-256 of the serialisation")
	}
}

func TestRoundTrip(t *testing.T) {
	full, _ := liteLLM()
	for name, b := range map[string]*pricing.Book{"list": full, "builtin": pricing.Builtin(), "bitemporal": mustBook(t, bitemporalRows())} {
		back, err := pricing.ParseBook(b.Marshal())
		if err != nil || back.Hash() != b.Hash() || back.Header() != b.Header() || back.Len() != b.Len() {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := pricing.NewBook(b.Header(), b.Rows(), b.Aliases())
		if err != nil || again.Hash() != b.Hash() {
			t.Fatalf("%s: a book of its own rows: %v", name, err)
		}
	}
}

func TestOrderOfRowsDoesNotMatter(t *testing.T) {
	full, _ := liteLLM()
	rows := full.Rows()
	slices.Reverse(rows)
	for i := range rows {
		slices.Reverse(rows[i].Sheets)
	}
	aliases := full.Aliases()
	slices.Reverse(aliases)
	b, err := pricing.NewBook(full.Header(), rows, aliases)
	if err != nil || b.Hash() != full.Hash() {
		t.Fatalf("the hash depends on the order: %v", err)
	}
}

func TestBookIsImmutable(t *testing.T) {
	rows := bitemporalRows()
	b := mustBook(t, rows)
	before := b.Price(&pricing.Usage{Provider: "p", Model: "m", Tokens: vector(input, 1), At: at})
	rows[0].Sheets[0].Rates[tokens.Input] = 99
	b.Rows()[0].Sheets[0].Rates[tokens.Input] = 99
	b.Marshal()[0] = 'x'
	after := b.Price(&pricing.Usage{Provider: "p", Model: "m", Tokens: vector(input, 1), At: at})
	if before != after || !bytes.HasPrefix(b.Marshal(), []byte("{")) || b.Rows()[0].Sheets[0].Rates[tokens.Input] == 99 {
		t.Fatal("a caller changed the book")
	}
}

func TestParseBookRefuses(t *testing.T) {
	good := string(mustBook(t, bitemporalRows(), pricing.Alias{"q", "p", ""}).Marshal())
	replace := func(from, to string) string {
		s := strings.Replace(good, from, to, 1)
		if s == good {
			t.Fatalf("%q does not occur", from)
		}
		return s
	}
	lines := strings.SplitAfter(good, "\n")
	for name, c := range map[string]struct {
		book string
		err  error
	}{
		"empty":             {"", pricing.ErrFormat},
		"not JSON":          {"price book", pricing.ErrFormat},
		"another format":    {replace("price-book/1", "price-book/2"), pricing.ErrFormat},
		"no final newline":  {strings.TrimSuffix(good, "\n"), pricing.ErrFormat},
		"a blank line":      {good + "\n", pricing.ErrFormat},
		"blanks":            {replace(`,"model"`, `, "model"`), pricing.ErrFormat},
		"trailing bytes":    {replace("}\n", "} {}\n"), pricing.ErrFormat},
		"unknown key":       {replace(`"sheets"`, `"extra":1,"sheets"`), pricing.ErrFormat},
		"unknown class":     {replace(`"input"`, `"inputs"`), pricing.ErrFormat},
		"unknown service":   {replace(`"standard"`, `"cheap"`), pricing.ErrFormat},
		"rate as a number":  {replace(`"1000000000000"`, `1000000000000`), pricing.ErrFormat},
		"rate with a point": {replace(`"1000000000000"`, `"1.5"`), pricing.ErrFormat},
		"rate with zeros":   {replace(`"1000000000000"`, `"01000000000000"`), pricing.ErrFormat},
		"negative rate":     {replace(`"1000000000000"`, `"-1"`), pricing.ErrFormat},
		"another time zone": {replace(`T00:00:00Z`, `T02:00:00+02:00`), pricing.ErrFormat},
		"wrong count":       {replace(`"rows":3`, `"rows":2`), pricing.ErrFormat},
		"negative count":    {replace(`"aliases":1,"rows":3`, `"aliases":-1,"rows":5`), pricing.ErrFormat},
		"rows out of order": {lines[0] + lines[1] + lines[3] + lines[2] + lines[4], pricing.ErrFormat},
		"a row twice":       {strings.Replace(lines[0], `"rows":3`, `"rows":4`, 1) + lines[1] + lines[2] + lines[2] + lines[3] + lines[4], pricing.ErrOverlap},
		"capitals":          {replace(`"model":"m"`, `"model":"M"`), pricing.ErrRow},
		"too long":          {good + strings.Repeat("x", pricing.MaxBookBytes), pricing.ErrFormat},
	} {
		if _, err := pricing.ParseBook([]byte(c.book)); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
}

// randomBook draws a small bitemporal book with regions, tiers and missing rates.
var randomBook = rapid.Custom(func(t *rapid.T) *pricing.Book {
	var rows []pricing.Row
	for range rapid.IntRange(1, 12).Draw(t, "rows") {
		row := pricing.Row{
			Provider: "p", Model: rapid.SampledFrom([]string{"m", "n"}).Draw(t, "model"),
			Region: rapid.SampledFrom([]string{"", "", "eu"}).Draw(t, "region"),
		}
		row.ValidFrom, row.ValidTo = drawSpan(t)
		row.KnownFrom, row.KnownTo = drawSpan(t)
		for _, service := range []pricing.Service{pricing.Standard, pricing.Batch} {
			for _, above := range []int64{0, 100, 200} {
				if rapid.IntRange(0, 2).Draw(t, "present") > 0 {
					row.Sheets = append(row.Sheets, pricing.Sheet{Service: service, Above: above, Rates: drawRates(t)})
				}
			}
		}
		if b, err := pricing.NewBook(header, append(rows, row), nil); err == nil && b != nil {
			rows = append(rows, row)
		}
	}
	return mustBook(t, rows)
})

var epoch = day("2025-01-01")

func drawSpan(t *rapid.T) (from, to time.Time) {
	start := rapid.IntRange(0, 5).Draw(t, "from")
	from = epoch.AddDate(0, 0, start)
	if length := rapid.IntRange(0, 5).Draw(t, "length"); length > 0 {
		to = from.AddDate(0, 0, length)
	}
	return from, to
}

func drawRates(t *rapid.T) pricing.Rates {
	rates := pricing.NoRates()
	for c := range rates {
		if rapid.IntRange(0, 3).Draw(t, "has rate") > 0 {
			rates[c] = pricing.Rate(rapid.OneOf(rapid.Int64Range(0, 5_000_000), rapid.Int64Range(0, 1e15)).Draw(t, "rate"))
		}
	}
	return rates
}

func TestRule14OnRandomBooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := randomBook.Draw(t, "book")
		o := newOracle(t, b.Marshal())
		for range 20 {
			u := pricing.Usage{
				Provider: "p", Model: rapid.SampledFrom([]string{"m", "n", "o"}).Draw(t, "model"),
				Region:      rapid.SampledFrom([]string{"", "eu", "us"}).Draw(t, "region"),
				ServiceTier: rapid.SampledFrom([]string{"", "batch", "flex"}).Draw(t, "service"),
				At:          drawMoment(t), KnownAt: drawMoment(t),
			}
			if rapid.IntRange(0, 3).Draw(t, "latest") == 0 {
				u.KnownAt = pricing.Latest
			}
			for range rapid.IntRange(1, 3).Draw(t, "classes") {
				u.Tokens[rapid.IntRange(0, int(tokens.NumClasses)-1).Draw(t, "class")] = rapid.Int64Range(0, 150).Draw(t, "count")
			}
			compare(t, b, o, u)
		}
		back, err := pricing.ParseBook(b.Marshal())
		if err != nil || back.Hash() != b.Hash() {
			t.Fatalf("round trip: %v", err)
		}
	})
}

// drawMoment draws a time on or beside a day of the random books.
func drawMoment(t *rapid.T) int64 {
	hours := rapid.IntRange(-1, 12*24).Draw(t, "hours")
	return epoch.Add(time.Duration(hours)*time.Hour).UnixNano() + rapid.Int64Range(-1, 1).Draw(t, "ns")
}

func TestReasonsAreStable(t *testing.T) {
	seen := map[string]bool{}
	for code := pricing.ReasonNone; code <= pricing.ReasonOverflow; code++ {
		r := pricing.Reason{Code: code}
		back, ok := pricing.ParseReason(r.String())
		if !ok || back != r || seen[r.String()] {
			t.Errorf("reason %d: %q reads back as %+v, %v", code, r, back, ok)
		}
		seen[r.String()] = true
	}
	if _, ok := pricing.ParseReason("nothing"); ok {
		t.Error("an unknown reason was read")
	}
	if s := (pricing.Reason{Code: 200, Class: 200}).String(); s == "" {
		t.Error("an invalid reason looks like a price")
	}
}

func FuzzParseBook(f *testing.F) {
	b, err := pricing.NewBook(header, append(bitemporalRows(), flat("q", "m", "2")), []pricing.Alias{{"x", "p", "m"}, {"y", "p", ""}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.Marshal())
	f.Add([]byte(`{"format":"tallystick.price-book/1","version":"v","source":"","source_date":"","notes":"","aliases":0,"rows":0}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := pricing.ParseBook(data)
		if err != nil {
			return
		}
		if !bytes.Equal(b.Marshal(), data) || b.Hash() != sha256.Sum256(data) {
			t.Fatal("accepted bytes are not canonical")
		}
		for _, r := range b.Rows() {
			u := pricing.Usage{Provider: r.Provider, Model: r.Model, Region: r.Region, At: r.ValidFrom.UnixNano(), Tokens: vector(input, 1)}
			compare(t, b, newOracle(t, data), u)
		}
	})
}

func TestBuiltinCovers(t *testing.T) {
	b := pricing.Builtin()
	for _, name := range []string{
		"deepseek/deepseek-reasoner", "azure/gpt-4", "openai/gpt-4o", "openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5",
		"anthropic/claude-haiku-4-5", "anthropic/claude-opus-4-1", "gemini/gemini-2.5-pro", "gemini/gemini-2.5-flash",
		"openai/o3", "openai/o4-mini", "mistral/mistral-large-latest", "moonshot/kimi-latest", "moonshot/kimi-k2-0905-preview",
		"xai/grok-4", "amazon_nova/nova-pro-v1", "cohere/command-r-plus", "bedrock/meta.llama3-3-70b-instruct-v1:0",
	} {
		provider, model, _ := strings.Cut(name, "/")
		for _, when := range []string{"2023-01-01", "2024-05-13", "2026-11-22"} {
			r := b.Price(&pricing.Usage{Provider: provider, Model: model, Tokens: vector(input, 1000, output, 1000, reasoning, 10), At: day(when).UnixNano(), KnownAt: day(when).UnixNano()})
			if !r.Priced || r.Cost <= 0 {
				t.Errorf("%s at %s: %+v", name, when, r)
			}
		}
	}
	if h := b.Header(); h.SourceDate != "2026-08-01" || !strings.Contains(h.Source, "dc2baf9d") || !strings.Contains(h.Notes, "valid_from") {
		t.Errorf("the header does not tell where the prices are from: %+v", h)
	}
}

func TestBuiltinFileIsPlainJSONLines(t *testing.T) {
	data, err := os.ReadFile("builtin.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range bytes.Split(bytes.TrimSpace(data), []byte("\n")) {
		if !json.Valid(line) {
			t.Errorf("line %d is not JSON", i+1)
		}
	}
}
