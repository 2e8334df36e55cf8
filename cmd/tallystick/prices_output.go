package main

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

// outputFlag gives a command -o: a table for people, or JSON for programs. Another
// word is refused before the command does anything.
func outputFlag(cmd *cobra.Command, asJSON *bool) {
	output := cmd.Flags().StringP("output", "o", "table", "table or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		switch *output {
		case "table":
		case "json":
			*asJSON = true
		default:
			return usageError("--output: table or json")
		}
		return nil
	}
}

// printIndented prints a value as JSON.
func printIndented(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // ids of rows have a ">"
	return enc.Encode(v)
}

// jsonBook names a book.
type jsonBook struct {
	Version string `json:"version"`
	Hash    string `json:"hash,omitempty"` // SHA-256
}

func bookForJSON(b *pricing.Book) jsonBook {
	hash := b.Hash()
	return jsonBook{b.Version(), hex.EncodeToString(hash[:])}
}

// jsonModel says which price of a model is meant.
type jsonModel struct {
	Provider string `json:"provider"`
	Model    string `json:"model"`
	Region   string `json:"region"`
	Service  string `json:"service"`
	Above    int64  `json:"above,string"`
}

// jsonInstance says which price of an instance with GPUs is meant.
type jsonInstance struct {
	Provider string `json:"provider"`
	Instance string `json:"instance"`
	Region   string `json:"region"`
	Purchase string `json:"purchase"`
}

func instanceForJSON(k pricing.GPUKey) jsonInstance {
	return jsonInstance{k.Provider, k.Instance, k.Region, k.Purchase.String()}
}

// jsonHour is what an hour of an instance costs, and how many devices it shows.
type jsonHour struct {
	PerHour string `json:"usd_per_hour"`
	Devices int64  `json:"devices,string"`
}

func hourForJSON(r *pricing.GPURow) *jsonHour {
	if r == nil {
		return nil
	}
	return &jsonHour{shortUSD(r.PerHour), r.Devices}
}

// rateForJSON is a rate in USD per million tokens, nil where there is none.
func rateForJSON(r pricing.Rate) *string {
	if r == pricing.NoRate {
		return nil
	}
	text := perMillion(r)
	return &text
}

// percentForJSON is a percentage as a number without its sign of percent, nil for "".
func percentForJSON(text string) *string {
	if text == "" {
		return nil
	}
	text = strings.TrimSuffix(strings.TrimPrefix(text, "+"), "%")
	return &text
}

// timeForJSON is nil for a time that is open.
func timeForJSON(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	text := t.UTC().Format(time.RFC3339)
	return &text
}

// ratesForJSON are the rates of a sheet by class, and the classes whose rates follow from others.
func ratesForJSON(s *pricing.Sheet) (rates map[string]string, derived []string) {
	rates, derived = map[string]string{}, []string{}
	for c, rate := range s.Rates {
		if rate == pricing.NoRate {
			continue
		}
		name := tokens.Class(c).String()
		rates[name] = perMillion(rate)
		if s.Derived[c] {
			derived = append(derived, name)
		}
	}
	return rates, derived
}
