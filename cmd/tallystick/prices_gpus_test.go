package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/testenv"
)

// The published list becomes a book that prices GPUs, beside the models of the
// built-in one; what cannot be priced is counted.
func TestPricesGPUs(t *testing.T) {
	list, out := testenv.Data(t, "prices/gpu_instance_hourly_prices.csv.zst"), filepath.Join(t.TempDir(), "book.jsonl")
	var text bytes.Buffer
	cmd := newPricesGPUsCommand()
	cmd.SetOut(&text)
	cmd.SetArgs([]string{list, "-o", out, "--known-from", "2026-08-01", "--version", "gpus"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "1638 prices in the list") {
		t.Errorf("it says %s", text.String())
	}
	book, err := openBook(out)
	if err != nil {
		t.Fatal(err)
	}
	if book.Len() != pricing.Builtin().Len() || len(book.GPURows()) < 1500 {
		t.Errorf("%d rows and %d of GPUs", book.Len(), len(book.GPURows()))
	}
	at := book.GPURows()[0].KnownFrom.UnixNano()
	r := book.PriceGPU(&pricing.GPUUsage{Provider: "aws", Instance: "g4ad.2xlarge", Region: "us-east-1", Micros: 3_600_000_000, At: at})
	if !r.Priced || r.Cost.String() != "0.541170000000" {
		t.Errorf("an hour of g4ad.2xlarge: %+v", r)
	}
}
