package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/ledger/chain"
)

// pricesJSON runs `tallystick prices … -o json`.
func pricesJSON(t *testing.T, args ...string) any {
	t.Helper()
	out, err := pricesCommand(t, append(args, "-o", "json")...)
	var v any
	if err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	if err != nil {
		t.Fatalf("prices %q: %v\n%s", args, err, out)
	}
	return v
}

// holds compares members of a JSON value, named by their way such as "gpu_prices.0.region", with
// texts; null is "null".
func holds(t *testing.T, v any, want map[string]string) {
	t.Helper()
	for way, text := range want {
		at, got := v, ""
		for _, step := range strings.Split(way, ".") {
			switch in := at.(type) {
			case map[string]any:
				found, ok := in[step]
				if at = found; !ok {
					at = "no such member"
				}
			case []any:
				i := 0
				if _, err := fmt.Sscan(step, &i); err != nil || i >= len(in) {
					at = "no such element"
				} else {
					at = in[i]
				}
			}
		}
		if b, err := json.Marshal(at); err == nil {
			got = strings.Trim(string(b), `"`)
		}
		if got != text {
			t.Errorf("%s is %s, want %s", way, got, text)
		}
	}
}

// What the commands print for people they print for programs: amounts as decimal
// strings, and null where there is none.
func TestPricesJSON(t *testing.T) {
	base, next := gpuBooks(t)
	url := priceServer(t, base, next)
	holds(t, pricesJSON(t, "show", "openai/gpt-4o-mini", "--url", url, "--at", "2026-09-01"), map[string]string{
		"book.version": "gpus-1", "at": "2026-09-01T00:00:00Z", "gpu_prices": "[]", "prices.0.provider": "openai", "prices.0.model": "gpt-4o-mini", "prices.0.service": "standard",
		"prices.0.above": "0", "prices.0.usd_per_million_tokens.input": "0.15", "prices.0.derived.0": "reasoning", "prices.0.valid_to": "null",
	})
	holds(t, pricesJSON(t, "show", "p5", "--url", url, "--at", "2026-09-01"), map[string]string{
		"prices": "[]", "gpu_prices.1.instance": "p5.48xlarge", "gpu_prices.1.purchase": "spot", "gpu_prices.1.usd_per_hour": "20", "gpu_prices.1.devices": "8",
	})
	changes := map[string]string{
		"rates": "[]", "gpu_prices.0.change": "changed", "gpu_prices.0.from.usd_per_hour": "55.04", "gpu_prices.0.to.usd_per_hour": "60.544", "gpu_prices.0.percent": "10.00",
		"gpu_prices.1.instance": "p6.48xlarge", "gpu_prices.1.from": "null", "gpu_prices.1.percent": "null", "gpu_rows_with_history.only_in_to": "4", "to.version": "gpus-2",
	}
	holds(t, pricesJSON(t, "candidates", "c-1", "--url", url).(map[string]any)["changes"], changes)
	holds(t, pricesJSON(t, "candidates", "c-1", "--url", url), map[string]string{"candidate_id": "c-1", "state": "proposed"})

	dir := t.TempDir()
	write := func(name, rate string) string {
		list, book := filepath.Join(dir, name+".csv"), filepath.Join(dir, name+".jsonl")
		if err := os.WriteFile(list, []byte("provider,model,valid_from,known_from,input_per_mtok\nacme,big,2026-01-01,2026-01-01,"+rate+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustPrices(t, "1 priced", "import", list, "-o", book, "--as-of", "2026-08-01", "--version", name)
		return book
	}
	a, b := write("a", "2"), write("b", "2.5")
	out := mustPrices(t, "", "import", "--json", filepath.Join(dir, "a.csv"), "--as-of", "2026-08-01")
	var made any
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	holds(t, made, map[string]string{"version": "csv-2026-08-01", "priced": "1", "rows": "1", "refused": "[]"})
	holds(t, pricesJSON(t, "diff", a, b), map[string]string{
		"rates.0.change": "changed", "rates.0.class": "input", "rates.0.from_usd_per_million_tokens": "2", "rates.0.to_usd_per_million_tokens": "2.5", "rates.0.percent": "25.00",
		"from.version": "a", "rows_with_history.only_in_from": "1", "gpu_prices": "[]",
	})
	holds(t, pricesJSON(t, "diff", a, a), map[string]string{"rates": "[]", "rows_with_history.only_in_to": "0"})
	holds(t, pricesJSON(t, "diff", "--sources", a, b, "builtin"), map[string]string{
		"compared": "1", "disagreements.0.model": "big", "disagreements.0.usd_per_million_tokens": `["2","2.5",null]`, "disagreements.0.spread_percent": "25.00",
	})
}

// An explanation for programs says all that the one for people says.
func TestPricesExplainJSON(t *testing.T) {
	explain := func(entries ...chain.Entry) any {
		return pricesJSON(t, "explain", fmt.Sprint(entries[0].Seq), "--tenant", "acme", "--url", entryServer(t, entries))
	}
	first := pricedEntry(t, "gpt-4o")
	first.Event.ProviderCost = "0.005"
	holds(t, explain(first), map[string]string{
		"tenant_id": "acme", "seq": "3", "kind": "usage", "event_id": "e-3", "cost_usd": "0.004726250000", "net_cost_usd": "0.004726250000", "price_book.version": pricing.Builtin().Version(),
		"price_row": "openai/gpt-4o@2023-01-01/standard", "tokens.0.class": "input", "tokens.0.tokens": "1234", "tokens.0.usd_per_million_tokens": "2.5", "tokens.0.cost_usd": "0.003085000000",
		"tokens.3.derived": "true", "correction": "null", "gpu": "null", "provider_cost.cost_usd": "0.005000000000", "provider_cost.over_ledger_usd": "0.000273750000",
	})
	holds(t, explain(corrected(t, 5, &first, pricing.Builtin(), moreOutput), first), map[string]string{
		"kind": "correction", "cost_usd": "0.009415000000", "net_cost_usd": "0.014141250000", "correction.seq": "3", "correction.event_id": "e-3", "correction.reason": "invoice",
		"correction.before_usd": "0.004726250000", "correction.before_is_original": "true", "correction.token_deltas": `{"input":"-234","output":"1000"}`, "provider_cost": "null",
	})
	unknown := pricedEntry(t, "unheard-of")
	unknown.Event.ProviderCost = "0.005"
	holds(t, explain(unknown), map[string]string{
		"cost_usd": "null", "net_cost_usd": "null", "unpriced_reason": "unknown_model", "tokens": "[]", "provider_cost.over_ledger_usd": "null",
	})
}

// A form that there is not is refused before anything is asked or done.
func TestPricesOutputIsChecked(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked %s", r.URL) }))
	t.Cleanup(server.Close)
	t.Setenv("TALLYSTICK_TOKEN", "tok")
	for _, args := range [][]string{
		{"show"}, {"diff", "in-force", "builtin"}, {"explain", "3"}, {"candidates"}, {"approve", "c-1", "--yes"}, {"reject", "c-1"}, {"history"},
	} {
		if _, err := pricesCommand(t, append(args, "--url", server.URL, "-o", "xml")...); exitCodeOf(err) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}
