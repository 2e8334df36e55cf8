package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is in force is the server's book, and the prices of its GPUs are shown
// beside those of its models. A file and the built-in book need no server.
func TestPricesShowInForce(t *testing.T) {
	base, _ := gpuBooks(t)
	url := priceServer(t, base)
	out := mustPrices(t, "book gpus-1, SHA-256 ", "show", "--url", url, "p5", "--at", "2026-09-01")
	for _, want := range []string{
		"INSTANCE         REGION     PURCHASE   GPU   DEVICES  VALID FROM  PER HOUR",
		"aws/p5.48xlarge  us-east-1  on_demand  H100  8        2026-08-01  55.04",
		"aws/p5.48xlarge  us-east-1  spot       H100  8        2026-08-01  20",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %q", out, want)
		}
	}
	if strings.Contains(out, "MODEL") {
		t.Errorf("models, where none was asked for: %s", out)
	}
	mustPrices(t, "openai/gpt-4o ", "show", "--url", url, "gpt-4o", "--at", "2026-09-01")
	mustPrices(t, "2 only in gpus-1", "diff", "in-force", "builtin", "--url", url)
	if out, err := pricesCommand(t, "show", "--url", url, "p5", "--at", "2026-07-31"); exitCodeOf(err) != exitNotFound {
		t.Errorf("before the prices began: %v, %s", err, out)
	}

	const nowhere = "http://127.0.0.1:1"
	mustPrices(t, "book builtin", "show", "--book", "builtin", "--url", nowhere, "gpt-4o")
	path := filepath.Join(t.TempDir(), "book.jsonl")
	if err := os.WriteFile(path, base.Marshal(), 0o600); err != nil {
		t.Fatal(err)
	}
	mustPrices(t, "book gpus-1", "show", "--book", path, "--url", nowhere, "p5")
	if _, err := pricesCommand(t, "show", "--url", nowhere, "gpt-4o"); exitCodeOf(err) != exitUnavailable {
		t.Errorf("the server is away: %v", err)
	}
}
