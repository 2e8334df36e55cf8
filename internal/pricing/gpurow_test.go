package pricing_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/testenv"
)

var gpuDay = time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)

// gpuBook is the built-in book with these prices of GPUs.
func gpuBook(t testing.TB, rows ...pricing.GPURow) *pricing.Book {
	t.Helper()
	b, err := pricing.Builtin().WithGPUs(pricing.Header{Version: "with-gpus"}, rows)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gpuRow(change func(*pricing.GPURow)) pricing.GPURow {
	r := pricing.GPURow{
		Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Purchase: pricing.OnDemand, GPU: "h100",
		PerHour: 55_040_000_000_000, Devices: 8, ValidFrom: gpuDay, KnownFrom: gpuDay,
	}
	if change != nil {
		change(&r)
	}
	return r
}

func TestPriceGPU(t *testing.T) {
	book := gpuBook(t,
		gpuRow(nil),
		gpuRow(func(r *pricing.GPURow) { r.Purchase, r.PerHour = pricing.Spot, 20_000_000_000_000 }),
		gpuRow(func(r *pricing.GPURow) { r.Region, r.PerHour = "", 60_000_000_000_000 }),
		gpuRow(func(r *pricing.GPURow) { r.Instance, r.Devices, r.PerHour = "six", 6, 10_000_000_000_000 }),
		gpuRow(func(r *pricing.GPURow) { r.Instance, r.PerHour = "dear", money.Max }),
	)
	at := gpuDay.Add(time.Hour).UnixNano()
	for _, tc := range []struct {
		name               string
		usage              pricing.GPUUsage
		cost, row, because string
	}{
		{"an hour of one of eight", pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Micros: 3_600_000_000}, "6.880000000000", "aws/p5.48xlarge[us-east-1]@2026-08-01/on_demand", ""},
		{"names in capitals", pricing.GPUUsage{Provider: "AWS", Instance: "P5.48xlarge", Region: "US-East-1", Purchase: "on_demand", Micros: 3_600_000_000}, "6.880000000000", "aws/p5.48xlarge[us-east-1]@2026-08-01/on_demand", ""},
		{"spot", pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Purchase: "spot", Micros: 3_600_000_000}, "2.500000000000", "aws/p5.48xlarge[us-east-1]@2026-08-01/spot", ""},
		{"every other region", pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "eu-west-1", Micros: 3_600_000_000}, "7.500000000000", "aws/p5.48xlarge@2026-08-01/on_demand", ""},
		{"half to even, down", pricing.GPUUsage{Provider: "aws", Instance: "six", Region: "us-east-1", Micros: 1}, "0.000000000463", "aws/six[us-east-1]@2026-08-01/on_demand", ""},
		{"no time", pricing.GPUUsage{Provider: "aws", Instance: "six", Region: "us-east-1"}, "0.000000000000", "aws/six[us-east-1]@2026-08-01/on_demand", ""},
		{"spot has no price elsewhere", pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "eu-west-1", Purchase: "spot", Micros: 1}, "", "", "no_price_in_region"},
		{"reserved has no price", pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Purchase: "reserved", Micros: 1}, "", "", "no_price_for_purchase_option"},
		{"another way of buying", pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Purchase: "stolen", Micros: 1}, "", "", "no_price_for_purchase_option"},
		{"unknown instance", pricing.GPUUsage{Provider: "aws", Instance: "p9", Region: "us-east-1", Micros: 1}, "", "", "unknown_model"},
		{"unknown cloud", pricing.GPUUsage{Provider: "", Instance: "p5.48xlarge", Micros: 1}, "", "", "unknown_model"},
		{"before it was valid", pricing.GPUUsage{Provider: "aws", Instance: "six", Region: "us-east-1", Micros: 1, At: gpuDay.UnixNano() - 1}, "", "", "no_price_at_time"},
		{"before it was known", pricing.GPUUsage{Provider: "aws", Instance: "six", Region: "us-east-1", Micros: 1, KnownAt: gpuDay.UnixNano() - 1}, "", "", "price_not_yet_known"},
		{"beyond any amount", pricing.GPUUsage{Provider: "aws", Instance: "dear", Region: "us-east-1", Micros: 1_000_000_000_000_000}, "", "aws/dear[us-east-1]@2026-08-01/on_demand", "cost_overflow:input"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := tc.usage
			if u.At == 0 {
				u.At = at
			}
			// The ledger asks by the way of Price.
			got := book.Price(&pricing.Usage{
				GPU: true, Provider: u.Provider, Model: u.Instance, Region: u.Region, Purchase: u.Purchase, GPUMicros: u.Micros, At: u.At, KnownAt: u.KnownAt,
			})
			if got.Priced != (tc.because == "") || got.Priced && got.Cost.String() != tc.cost || string(got.Row) != tc.row || got.Reason.String() != tc.because {
				t.Errorf("%+v (%s, %s), want %s by %q, %s", got, got.Cost, got.Reason, tc.cost, tc.row, tc.because)
			}
			if tc.row != "" {
				if _, ok := book.GPURow(got.Row); !ok {
					t.Errorf("the book does not know its own row %q", got.Row)
				}
			}
		})
	}
}

// The price is the exact rational, rounded half to even once: held against big
// numbers.
func TestPriceGPUIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		row := gpuRow(func(r *pricing.GPURow) {
			r.PerHour = money.Pico(rapid.Int64Range(0, 1<<50).Draw(t, "per hour"))
			r.Devices = rapid.Int64Range(1, 64).Draw(t, "devices")
		})
		book, err := pricing.Builtin().WithGPUs(pricing.Header{Version: "x"}, []pricing.GPURow{row})
		if err != nil {
			t.Fatal(err)
		}
		micros := rapid.Int64Range(0, 1<<45).Draw(t, "micros")
		got := book.PriceGPU(&pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Micros: micros, At: gpuDay.UnixNano()})
		num := new(big.Int).Mul(big.NewInt(micros), big.NewInt(int64(row.PerHour)))
		den := new(big.Int).Mul(big.NewInt(row.Devices), big.NewInt(3_600_000_000))
		q, rem := num.QuoRem(num, den, new(big.Int))
		if c := rem.Lsh(rem, 1).Cmp(den); c > 0 || c == 0 && q.Bit(0) == 1 {
			q.Add(q, big.NewInt(1))
		}
		if !q.IsInt64() {
			if got.Priced || got.Reason.Code != pricing.ReasonOverflow {
				t.Fatalf("%+v, and %s is no amount", got, q)
			}
			return
		}
		if !got.Priced || int64(got.Cost) != q.Int64() {
			t.Fatalf("%+v, want %s", got, q)
		}
	})
}

func TestGPUBookFormat(t *testing.T) {
	plain := pricing.Builtin()
	book := gpuBook(t, gpuRow(nil), gpuRow(func(r *pricing.GPURow) { r.Purchase, r.Source = pricing.Reserved, "contract" }))
	again, err := pricing.ParseBook(book.Marshal())
	if err != nil || again.Hash() != book.Hash() || len(again.GPURows()) != 2 {
		t.Fatalf("%v: %+v", err, again)
	}
	if !bytes.HasPrefix(plain.Marshal(), []byte(`{"format":"tallystick.price-book/1",`)) || !bytes.HasPrefix(book.Marshal(), []byte(`{"format":"tallystick.price-book/2",`)) {
		t.Error("a book has another format than that it needs")
	}
	back, err := book.WithGPUs(plain.Header(), nil)
	if err != nil || back.Hash() != plain.Hash() {
		t.Errorf("without GPUs it is not the book that it was: %v", err)
	}
	for name, row := range map[string]pricing.GPURow{
		"no devices":   gpuRow(func(r *pricing.GPURow) { r.Devices = 0 }),
		"negative":     gpuRow(func(r *pricing.GPURow) { r.PerHour = -1 }),
		"no instance":  gpuRow(func(r *pricing.GPURow) { r.Instance = "" }),
		"a capital":    gpuRow(func(r *pricing.GPURow) { r.Region = "EU" }),
		"no purchase":  gpuRow(func(r *pricing.GPURow) { r.Purchase = 0 }),
		"no time":      gpuRow(func(r *pricing.GPURow) { r.ValidTo = r.ValidFrom }),
		"not its text": gpuRow(func(r *pricing.GPURow) { r.GPU = "a\"b" }),
	} {
		if _, err := plain.WithGPUs(pricing.Header{Version: "x"}, []pricing.GPURow{row}); !errors.Is(err, pricing.ErrRow) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := plain.WithGPUs(pricing.Header{Version: "x"}, []pricing.GPURow{gpuRow(nil), gpuRow(nil)}); !errors.Is(err, pricing.ErrOverlap) {
		t.Errorf("two prices at one time: %v", err)
	}
	if _, err := plain.WithGPUs(plain.Header(), []pricing.GPURow{gpuRow(nil)}); !errors.Is(err, pricing.ErrFormat) {
		t.Errorf("one version, two books: %v", err)
	}
}

// A revision keeps the history of GPU prices, and a difference carries them.
func TestGPUPricesAreRevised(t *testing.T) {
	later := gpuDay.AddDate(0, 1, 0)
	other := gpuRow(func(r *pricing.GPURow) { r.Instance = "z9" })
	old := gpuBook(t, gpuRow(nil), gpuRow(func(r *pricing.GPURow) { r.Purchase = pricing.Spot }), gpuRow(func(r *pricing.GPURow) { r.Instance = "a1" }))
	list, err := pricing.Builtin().WithGPUs(pricing.Header{Version: "list"}, []pricing.GPURow{
		gpuRow(func(r *pricing.GPURow) { r.PerHour = 1_000_000_000_000 }), gpuRow(func(r *pricing.GPURow) { r.Purchase = pricing.Spot }), other,
	})
	if err != nil {
		t.Fatal(err)
	}
	fresh, changes, err := old.Revise(list, pricing.Revision{Header: pricing.Header{Version: "revised"}, ValidFrom: later, KnownFrom: later})
	if err != nil {
		t.Fatal(err)
	}
	if changes.Added != 1 || changes.Changed != 1 || changes.Missing != 1 {
		t.Errorf("%+v", changes)
	}
	cost := func(b *pricing.Book, at, known time.Time) string {
		return b.PriceGPU(&pricing.GPUUsage{Provider: "aws", Instance: "p5.48xlarge", Region: "us-east-1", Micros: 3_600_000_000, At: at.UnixNano(), KnownAt: known.UnixNano()}).Cost.String()
	}
	for _, tc := range []struct {
		at, known time.Time
		want      string
	}{
		{gpuDay, gpuDay, "6.880000000000"}, {gpuDay, later, "6.880000000000"}, {later, later, "0.125000000000"}, {later, gpuDay, "6.880000000000"},
	} {
		if got := cost(fresh, tc.at, tc.known); got != tc.want {
			t.Errorf("used %s, known %s: %s, want %s", tc.at, tc.known, got, tc.want)
		}
	}
	d := pricing.Compare(old, fresh, later)
	applied, err := old.Apply(d)
	if err != nil || applied.Hash() != fresh.Hash() {
		t.Errorf("the difference gives another book: %v", err)
	}
	models, _, err := old.Revise(pricing.Builtin(), pricing.Revision{Header: pricing.Header{Version: "models"}, ValidFrom: later, KnownFrom: later})
	if err != nil || len(models.GPURows()) != 3 {
		t.Errorf("a list of models takes away GPU prices: %v", err)
	}
}

// The published list gives a book; what of it cannot be priced is counted.
func TestTheRealGPUPricesMakeABook(t *testing.T) {
	f, err := os.Open(testenv.Data(t, "prices/gpu_instance_hourly_prices.csv.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	prices, err := pricing.ReadGPUPrices(f)
	if err != nil {
		t.Fatal(err)
	}
	rows, left := pricing.GPURowsOf(prices, gpuDay, "list")
	book := gpuBook(t, rows...)
	if len(rows)+left != len(prices) || len(rows) < 1500 {
		t.Errorf("%d rows and %d left of %d", len(rows), left, len(prices))
	}
	for i := range prices {
		p := &prices[i]
		if p.Currency != "USD" {
			continue
		}
		r := book.PriceGPU(&pricing.GPUUsage{Provider: p.Cloud, Instance: p.Instance, Region: p.Region, Purchase: p.Kind, Micros: 3_600_000_000, At: gpuDay.UnixNano()})
		if !r.Priced && p.GPUs != "0" {
			t.Errorf("%+v: %s", p, r.Reason)
		}
	}
}

// Prices of instances that differ are told by instance, region and way of buying, as of a time.
func TestCompareGPUs(t *testing.T) {
	spot := gpuRow(func(r *pricing.GPURow) { r.Purchase, r.PerHour = pricing.Spot, 20_000_000_000_000 })
	west := func(change func(*pricing.GPURow)) pricing.GPURow {
		return gpuRow(func(r *pricing.GPURow) { r.Region = "us-west-2"; change(r) })
	}
	a := gpuBook(t, gpuRow(nil), spot, west(func(r *pricing.GPURow) { r.PerHour = 1 }))
	b := gpuBook(t,
		gpuRow(func(r *pricing.GPURow) { r.PerHour = 61_919_999_999_999 }), spot,
		gpuRow(func(r *pricing.GPURow) { r.Instance, r.Devices = "new", 4 }),
		gpuRow(func(r *pricing.GPURow) { r.Instance, r.ValidFrom = "later", gpuDay.AddDate(0, 1, 0) }),
	)
	d := pricing.Compare(a, b, gpuDay)
	if len(d.Changes) != 0 || len(d.RemovedGPUs) != 2 || len(d.AddedGPUs) != 3 {
		t.Fatalf("%+v", d)
	}
	var told []string
	for _, c := range d.GPUChanges {
		told = append(told, fmt.Sprintf("%s/%s[%s] %s %s %s %s", c.Provider, c.Instance, c.Region, c.Purchase, hourOf(c.From), hourOf(c.To), c.Percent()))
	}
	want := []string{
		"aws/new[us-east-1] on_demand - 55.040000000000/4 ",
		"aws/p5.48xlarge[us-east-1] on_demand 55.040000000000/8 61.919999999999/8 +12.50%", // half a hundredth less, to even
		"aws/p5.48xlarge[us-west-2] on_demand 0.000000000001/8 - ",
	}
	if !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
	if rows := b.GPUsInForce(gpuDay); len(rows) != 3 {
		t.Errorf("in force: %+v", rows)
	}
}

// An instance that shows half as many devices for its price is twice as dear.
func TestGPUChangePercent(t *testing.T) {
	row := func(price money.Pico, devices int64) *pricing.GPURow {
		return &pricing.GPURow{PerHour: price, Devices: devices}
	}
	for _, tc := range []struct {
		from, to *pricing.GPURow
		want     string
	}{
		{row(8, 8), row(8, 4), "+100.00%"}, {row(8, 8), row(4, 4), "+0.00%"}, {row(money.Max, 65536), row(money.Max, 1), "+6553500.00%"},
		{row(0, 1), row(1, 1), ""}, {nil, row(1, 1), ""}, {row(1, 1), nil, ""}, {row(4, 1), row(3, 1), "-25.00%"},
	} {
		if got := (pricing.GPUChange{From: tc.from, To: tc.to}).Percent(); got != tc.want {
			t.Errorf("%+v to %+v: %q, want %q", tc.from, tc.to, got, tc.want)
		}
	}
}

func hourOf(r *pricing.GPURow) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%s/%d", r.PerHour, r.Devices)
}
