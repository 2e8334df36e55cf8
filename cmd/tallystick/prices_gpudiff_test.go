package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// gpuBooks are a book with hourly prices of GPUs, and the one that a dearer list makes of it:
// one price changed, one added, one of the first left out, and no model touched.
func gpuBooks(t *testing.T) (base, next *pricing.Book) {
	t.Helper()
	day := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	row := func(instance string, purchase pricing.Purchase, milli money.Pico) pricing.GPURow {
		return pricing.GPURow{
			Provider: "aws", Instance: instance, Region: "us-east-1", Purchase: purchase, GPU: "H100",
			PerHour: milli * money.USD / 1000, Devices: 8, ValidFrom: day, KnownFrom: day,
		}
	}
	book := func(version string, rows ...pricing.GPURow) *pricing.Book {
		b, err := pricing.Builtin().WithGPUs(pricing.Header{Version: version}, rows)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	base = book("gpus-1", row("p5.48xlarge", pricing.OnDemand, 55_040), row("p5.48xlarge", pricing.Spot, 20_000))
	list := book("gpus-2", row("p5.48xlarge", pricing.OnDemand, 60_544), row("p6.48xlarge", pricing.Reserved, 80_000))
	next, _, err := base.Revise(list, pricing.Revision{Header: list.Header(), ValidFrom: farOff, KnownFrom: day.AddDate(0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return base, next
}

// farOff is when the second book's prices begin: what is to be approved is shown
// as of when it holds, not as of today.
var farOff = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// priceServer serves books and one candidate made of the first for the last.
func priceServer(t *testing.T, books ...*pricing.Book) (url string) {
	t.Helper()
	hash := func(b *pricing.Book) string { return fmt.Sprintf("%x", b.Hash()) }
	base, next := books[0], books[len(books)-1]
	candidate := &pb.PriceCandidate{
		CandidateId: "c-1", State: "proposed", Version: next.Version(), Hash: hash(next), BaseHash: hash(base), ProposedBy: "ann", ProposedAt: timestamppb.Now(),
	}
	mux := http.NewServeMux()
	answer := func(pattern string, m proto.Message) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			b, err := protojson.Marshal(m)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(b)
		})
	}
	for i, b := range books {
		packed, err := packBook(b)
		if err != nil {
			t.Fatal(err)
		}
		m := &pb.PriceBook{Version: b.Version(), Hash: hash(b), ContentGzip: packed}
		answer("GET /v1/prices/books/"+hash(b), m)
		if i == 0 {
			answer("GET /v1/prices/book", m)
		}
	}
	answer("GET /v1/prices/candidates/c-1", candidate)
	answer("POST /v1/prices/candidates", &pb.ProposePricesResponse{Candidate: candidate, Added: 1, Changed: 1})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Setenv("TALLYSTICK_TOKEN", "tok")
	return server.URL
}

// Whoever approves a candidate of GPU prices alone sees each of them, where it
// is proposed, where it is looked at, and where two files are compared.
func TestPricesShowGPUChanges(t *testing.T) {
	base, next := gpuBooks(t)
	dir := t.TempDir()
	file := func(name string, b *pricing.Book) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b.Marshal(), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b := file("a.jsonl", base), file("b.jsonl", next)
	url := priceServer(t, base, next)
	for _, args := range [][]string{
		{"diff", a, b, "--at", "2030-01-01"}, {"candidates", "c-1", "--url", url}, {"propose", b, "--url", url},
	} {
		out := mustPrices(t, "rates at 2030-01-01T00:00:00Z: 0 added, 0 removed, 0 changed;", args...)
		for _, want := range []string{
			"CHANGE   INSTANCE         REGION     PURCHASE   DEVICES  FROM PER HOUR  TO PER HOUR  PERCENT",
			"changed  aws/p5.48xlarge  us-east-1  on_demand  8        55.04          60.544       +10.00%",
			"added    aws/p6.48xlarge  us-east-1  reserved   8        -              80           -",
			"GPU prices at 2030-01-01T00:00:00Z: 1 added, 0 removed, 1 changed; rows with their history: 1 only in gpus-1, 4 only in gpus-2",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("prices %q:\n%s\nlacks %q", args, out, want)
			}
		}
		if strings.Contains(out, "spot") {
			t.Errorf("prices %q tell of a price that stays:\n%s", args, out)
		}
	}
	mustPrices(t, "removed  aws/p5.48xlarge  us-east-1  spot       8        20             -            -", "diff", a, "builtin")
}

// A long list is cut where it is proposed, and counted all the same.
func TestPricesDiffIsBounded(t *testing.T) {
	var out strings.Builder
	row := &pricing.GPURow{PerHour: 1, Devices: 1}
	d := pricing.Diff{AddedGPUs: make([]pricing.GPURow, 3), Changes: make([]pricing.RateChange, 5)}
	for range 3 {
		d.GPUChanges = append(d.GPUChanges, pricing.GPUChange{To: row})
	}
	if err := printDiff(&out, &d, 2); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"… and 3 more", "… and 1 more", "5 changed;", "3 added,"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s\nlacks %q", out.String(), want)
		}
	}
}
