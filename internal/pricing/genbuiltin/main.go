// Command genbuiltin writes the built-in price book from LiteLLM's price list.
//
// It selects the models of models.go, keeps every regional row of them, turns dated names
// with the very same prices into aliases and those with other prices into rows, and writes
// the canonical form. It never edits a rate. Run it by go generate in internal/pricing.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/pricing"
)

const (
	source = "BerriAI/litellm model_prices_and_context_window.json (MIT), copy in Prajwalsrinvas/token-tariff @ dc2baf9d"
	notes  = "A selection of well-known models. Rates are those of source_date and were not edited; " +
		"valid_from and known_from are set early on purpose, so that demo traces of 2023 to 2026 are priced: " +
		"usage before source_date is priced as if it happened then."
)

var (
	asOf      = time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	validFrom = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)
)

func main() {
	list := flag.String("list", "", "the price list, JSON or JSON in zstd")
	out := flag.String("out", "", "the book to write")
	flag.Parse()
	if err := run(*list, *out); err != nil {
		fmt.Fprintln(os.Stderr, "genbuiltin:", err)
		os.Exit(1)
	}
}

func run(list, out string) error {
	f, err := os.Open(list)
	if err != nil {
		return err
	}
	defer f.Close()
	full, _, err := pricing.ImportLiteLLM(f, pricing.ImportOptions{AsOf: asOf, ValidFrom: validFrom, KnownFrom: validFrom})
	if err != nil {
		return err
	}
	book, err := selection(full)
	if err != nil {
		return err
	}
	return os.WriteFile(out, book.Marshal(), 0o644)
}

// selection returns the book of the chosen models.
func selection(full *pricing.Book) (*pricing.Book, error) {
	byModel := map[string][]pricing.Row{}
	for _, r := range full.Rows() {
		name := r.Provider + "/" + r.Model
		byModel[name] = append(byModel[name], r)
	}
	var rows []pricing.Row
	var aliases []pricing.Alias
	chosen := map[string]bool{}
	for _, name := range models {
		if len(byModel[name]) == 0 || chosen[name] {
			return nil, fmt.Errorf("%s is not in the list, or chosen twice", name)
		}
		chosen[name] = true
		rows = append(rows, byModel[name]...)
	}
	for name, dated := range byModel {
		base := undated(name)
		if base == name || chosen[name] || !chosen[base] {
			continue
		}
		if samePrices(byModel[base], dated) {
			aliases = append(aliases, pricing.Alias{Name: dated[0].Model, Provider: dated[0].Provider, Model: byModel[base][0].Model})
		} else {
			rows = append(rows, dated...)
		}
	}
	aliases = append(aliases, providerAliases(full, rows)...)
	return pricing.NewBook(pricing.Header{
		Version: "builtin-" + asOf.Format(time.DateOnly), Source: source,
		SourceDate: asOf.Format(time.DateOnly), Notes: notes,
	}, rows, aliases)
}

var datePart = regexp.MustCompile(`[-@](\d{4}-\d{2}-\d{2}|20\d{6})`)

// undated removes a date from a model name.
func undated(name string) string { return datePart.ReplaceAllString(name, "") }

// samePrices compares two models region by region.
func samePrices(a, b []pricing.Row) bool {
	return slices.EqualFunc(a, b, func(x, y pricing.Row) bool {
		return x.Region == y.Region && slices.Equal(x.Sheets, y.Sheets)
	})
}

// providerAliases keeps the full book's provider aliases for the providers in use.
func providerAliases(full *pricing.Book, rows []pricing.Row) []pricing.Alias {
	used := map[string]bool{}
	for _, r := range rows {
		used[r.Provider] = true
	}
	return slices.DeleteFunc(full.Aliases(), func(a pricing.Alias) bool {
		return a.Model != "" || !used[a.Provider] || strings.Contains(a.Name, "/")
	})
}
