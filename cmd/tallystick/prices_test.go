package main

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

var updateExplained = flag.Bool("update-prices-golden", false, "write testdata/prices_explain*.txt anew")

// pricesCommand runs `tallystick prices`.
func pricesCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newPricesCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.Execute()
	return out.String(), err
}

// mustPrices is pricesCommand, which succeeds and says what was wanted.
func mustPrices(t *testing.T, want string, args ...string) string {
	t.Helper()
	out, err := pricesCommand(t, args...)
	if err != nil || !strings.Contains(out, want) {
		t.Fatalf("prices %q: %v\n%s\nwant %q", args, err, out, want)
	}
	return out
}

// A list becomes a candidate, which is shown, compared and kept from being overwritten.
func TestPricesImportShowDiff(t *testing.T) {
	dir := t.TempDir()
	path := func(name, text string) string {
		p := filepath.Join(dir, name)
		if text != "" {
			if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	csv := "provider,model,valid_from,known_from,input_per_mtok,output_per_mtok\nacme,big,2026-01-01,2026-01-01,1.10,"
	list, dearer := path("a.csv", csv+"2\n"), path("b.csv", csv+"2.5\nacme,new,2026-01-01,2026-01-01,1,\n")
	a, b, own := path("a.jsonl", ""), path("b.jsonl", ""), path("own.jsonl", "")
	mustPrices(t, "1 in the list, 1 priced, 0 refused", "import", "--from", "csv", "--as-of", "2026-08-01", list, "-o", a)
	mustPrices(t, "rows     2", "import", "--from", "csv", "--as-of", "2026-08-02", dearer, "-o", b)
	if _, err := pricesCommand(t, "import", "--from", "csv", list, "-o", a); exitCodeOf(err) != exitConflict {
		t.Errorf("a book was overwritten: %v", err)
	}
	mustPrices(t, "acme/big  -       standard  0      2026-01-01  input 1.1, output 2, reasoning 2*", "show", "--book", a, "BIG")
	mustPrices(t, "openai/gpt-4o ", "show", "--book", "builtin", "gpt-4o", "--at", "2026-09-01")
	if _, err := pricesCommand(t, "show", "--book", a, "--at", "2025-12-31"); exitCodeOf(err) != exitNotFound {
		t.Errorf("a price before its time: %v", err)
	}
	out := mustPrices(t, "rates at 2026-09-01T00:00:00Z: 1 added, 0 removed, 2 changed; rows with their history: 1 only in csv-2026-08-01, 2 only in csv-2026-08-02",
		"diff", a, b, "--at", "2026-09-01")
	for _, want := range []string{
		"changed    acme/big  standard  output     2     2.5  +25.00%", "new model  acme/new  standard  input      -     1    -",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %q", out, want)
		}
	}
	mustPrices(t, "say the same", "diff", a, a)
	mustPrices(t, "3 rates are stated by two sources or more, and 2 not alike", "diff", "--sources", a, b, "builtin")
	discounts := path("d.csv", "provider,valid_from,percent_off\nacme,2026-06-01,10\n")
	mustPrices(t, "csv-2026-08-01-negotiated", "import", "--from", "csv", "--as-of", "2026-08-01", list, "--discounts", discounts, "-o", own)
	mustPrices(t, "input 0.99, output 1.8", "show", "--book", own, "--at", "2026-06-01")
	mustPrices(t, "2985 in the list", "import", "--from", "litellm", testenv.Data(t, "prices/litellm_model_prices_2026-08-01.json.zst"))
	for _, args := range [][]string{
		{"import", "--from", "excel", list}, {"import", "--from", "models.dev", list}, {"show", "--book", list}, {"diff", a, b, a}, {"show", "--book", "builtin", "--at", "soon"},
	} {
		if _, err := pricesCommand(t, args...); exitCodeOf(err) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// pricedEntry is a usage entry that the built-in book has priced.
func pricedEntry(t *testing.T, model string) chain.Entry {
	t.Helper()
	at := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC).UnixNano()
	e := chain.Entry{Kind: chain.Usage, Seq: 3, Event: event.Event{
		ID: "e-3", Tenant: "acme", Provider: "openai", Model: model, OccurredAt: at, ReceivedAt: at,
		Tokens: tokens.Vector{tokens.Input: 1_234, tokens.CacheRead: 801, tokens.Output: 57, tokens.Reasoning: 7},
	}}
	priceEntry(&e, pricing.Builtin())
	return e
}

// priceEntry sets the entry's money as the ledger's writer does.
func priceEntry(e *chain.Entry, book *pricing.Book) {
	u := usageOf(&e.Event)
	res := book.Price(&u)
	e.Priced, e.Cost, e.PriceRow, e.UnpricedReason, e.PriceBook = res.Priced, res.Cost, string(res.Row), res.Reason.String(), chain.Hash(book.Hash())
	e.PricingVersion = pricing.RuleVersion
}

// explained runs `prices explain` for the first entry against a server that has them all.
func explained(t *testing.T, entries ...chain.Entry) (string, error) {
	t.Helper()
	return pricesCommand(t, "explain", fmt.Sprint(entries[0].Seq), "--tenant", "acme", "--url", entryServer(t, entries))
}

// entryServer serves entries of the tenant acme, and no price books.
func entryServer(t *testing.T, entries []chain.Entry) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/prices/books/") { // of operators only, as for a tenant's token
			http.Error(w, "{}", http.StatusForbidden)
			return
		}
		i := slices.IndexFunc(entries, func(e chain.Entry) bool {
			return r.URL.String() == fmt.Sprintf("/v1/ledger/entries/%d?tenant_id=acme", e.Seq)
		})
		if i < 0 {
			t.Errorf("asked %s", r.URL)
			i = 0
		}
		answer, err := protojson.Marshal(&pb.Entry{TenantId: "acme", Seq: entries[i].Seq, Canonical: entries[i].Append(nil)})
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}))
	t.Cleanup(server.Close)
	t.Setenv("TALLYSTICK_TOKEN", "tok")
	return server.URL
}

func TestPricesExplain(t *testing.T) {
	out, err := explained(t, pricedEntry(t, "gpt-4o"))
	if err != nil {
		t.Fatal(err)
	}
	checkExplained(t, out, "testdata/prices_explain.txt")
	out, err = explained(t, pricedEntry(t, "gpt-nobody-knows"))
	if err != nil || !strings.Contains(out, "unpriced  unknown_model") {
		t.Errorf("%v\n%s", err, out)
	}
	early := pricedEntry(t, "gpt-4o")
	early.Priced, early.Cost, early.PriceRow, early.PriceBook, early.UnpricedReason = false, 0, "", chain.Hash{}, noPriceBook
	out, err = explained(t, early)
	if err != nil || !strings.Contains(out, "unpriced  no_price_book") {
		t.Errorf("before the first book: %v\n%s", err, out)
	}
}

// checkExplained compares an explanation with a golden file. The book's hash is left
// out: a new built-in book is no new explanation.
func checkExplained(t *testing.T, out, golden string) {
	t.Helper()
	hash := pricing.Builtin().Hash()
	out = strings.ReplaceAll(out, hex.EncodeToString(hash[:]), "HASH")
	if *updateExplained {
		if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || out != string(want) {
		t.Errorf("%s: %v\n%s\nwant\n%s", golden, err, out, want)
	}
}

// An entry whose price does not follow from its book is not explained away.
func TestPricesExplainRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*chain.Entry)
		code   int
		want   string
	}{
		"a cost of another sum": {func(e *chain.Entry) { e.Cost++ }, exitFailure, "does not follow"},
		"another row":           {func(e *chain.Entry) { e.PriceRow = "openai/gpt-4o@2024-01-01/standard" }, exitFailure, "does not follow"},
		"other tokens":          {func(e *chain.Entry) { e.Event.Tokens[tokens.Output]++ }, exitFailure, "does not follow"},
		"another book":          {func(e *chain.Entry) { e.PriceBook[0]++ }, exitNotFound, "--book"},
		"a rejection": {func(e *chain.Entry) {
			*e = chain.Entry{Kind: chain.Rejected, Seq: 3, RejectReason: "invalid"}
			e.Event.Tenant = "acme"
		}, exitUsage, "has no price"},
	} {
		e := pricedEntry(t, "gpt-4o")
		c.change(&e)
		if out, err := explained(t, e); err == nil || exitCodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
