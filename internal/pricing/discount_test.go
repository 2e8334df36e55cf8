package pricing_test

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

// discountsOf reads a list of discounts.
func discountsOf(t testing.TB, list string) []pricing.Discount {
	t.Helper()
	d, err := pricing.ReadDiscounts(strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDiscounted(t *testing.T) {
	b, _ := imported(t, pricing.ImportCSV, plainCSV)
	discounts := discountsOf(t, "provider,model,valid_from,valid_to,percent_off,output_per_mtok\n"+
		"acme,big,2026-03-01,2026-06-01,12.5,\nacme,big,2026-06-01,,,1.5\n")
	own, err := b.Discounted(pricing.Header{Version: "negotiated"}, day("2026-02-01"), discounts[:1])
	if err != nil {
		t.Fatal(err)
	}
	usage := func(at, known string) pricing.Usage {
		return pricing.Usage{Provider: "acme", Model: "big", At: day(at).UnixNano(), KnownAt: day(known).UnixNano(), Tokens: vector(input, 1_000_000)}
	}
	for _, c := range []struct{ at, known, want string }{
		{"2026-02-28", "2026-09-01", "2.000000000000"},
		{"2026-03-01", "2026-09-01", "1.750000000000"},
		{"2026-05-31", "2026-09-01", "1.750000000000"},
		{"2026-06-01", "2026-09-01", "2.000000000000"},
		{"2026-03-01", "2026-01-31", "2.000000000000"}, // as we knew it then
	} {
		u := usage(c.at, c.known)
		if res := own.Price(&u); !res.Priced || res.Cost.String() != c.want {
			t.Errorf("%+v: %+v", c, res)
		}
	}
	// Fixed rates: reasoning follows output, from which it is derived; input and the sheets
	// that the contract does not name keep theirs.
	own, err = own.Discounted(pricing.Header{Version: "negotiated-2"}, day("2026-08-02"), discounts[1:])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tier   string
		tokens tokens.Vector
		want   string
	}{
		{"", vector(output, 1_000, reasoning, 1_000), "0.003000000000"},
		{"", vector(input, 1_000), "0.001100000000"},
		{"batch", vector(output, 1_000), "0.001100000000"},
		{"", vector(input, 200_001, output, 1), "0.400006000000"},
	} {
		res := own.Price(&pricing.Usage{Provider: "acme", Model: "big", ServiceTier: c.tier, At: at, Tokens: c.tokens})
		if !res.Priced || res.Cost.String() != c.want {
			t.Errorf("%+v: %+v", c, res)
		}
	}
}

func TestDiscountsRefused(t *testing.T) {
	b, _ := imported(t, pricing.ImportCSV, plainCSV)
	for name, c := range map[string]struct {
		list string
		want error
	}{
		"on nothing":    {"provider,model,valid_from,percent_off\nacme,small,2026-01-01,5\n", pricing.ErrDiscount},
		"two at a time": {"provider,model,valid_from,percent_off\nacme,big,2026-01-01,5\nacme,,2026-02-01,6\n", pricing.ErrDiscount},
		"no such tier":  {"provider,model,valid_from,service,input_per_mtok\nacme,big,2026-01-01,flex,1\n", pricing.ErrDiscount},
		"inexact":       {"provider,model,valid_from,percent_off\nacme,big,2026-01-01,0.123456789\n", pricing.ErrRate},
	} {
		if _, err := b.Discounted(pricing.Header{Version: "x"}, day("2026-09-01"), discountsOf(t, c.list)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := b.Discounted(b.Header(), day("2026-09-01"), nil); !errors.Is(err, pricing.ErrFormat) {
		t.Errorf("the version again: %v", err)
	}
	for _, list := range []string{
		"", "provider,colour\n", "provider,provider\n", "provider,valid_from,percent_off\np,2026-01-01,0\n", "provider,valid_from,percent_off\np,2026-01-01,100.1\n",
		"provider,valid_from,percent_off\np,2026-01-01,\n", "provider,valid_from,percent_off,input_per_mtok\np,2026-01-01,5,5\n", "provider,valid_from,percent_off\n,2026-01-01,5\n",
		"provider,valid_from,valid_to,percent_off\np,2026-01-01,2026-01-01,5\n", "provider,valid_from,percent_off\np,2026-01-01,-5\n", "provider,valid_from,percent_off\np,2026-01-01,1e-10\n",
	} {
		if _, err := pricing.ReadDiscounts(strings.NewReader(list)); !errors.Is(err, pricing.ErrDiscount) {
			t.Errorf("%q: %v", list, err)
		}
	}
}

// A percentage off is off every rate to the last digit, inside its time and nowhere else.
func TestDiscountProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawList(t, "list")
		if b.Len() == 0 {
			return
		}
		off := rapid.Int64Range(1, 1000).Draw(t, "off") // tenths of a percent
		text := strconv.FormatInt(off/10, 10) + "." + strconv.FormatInt(off%10, 10)
		from := b.Rows()[0].ValidFrom.AddDate(0, 1, 0)
		d := pricing.Discount{Provider: b.Rows()[0].Provider, ValidFrom: from, ValidTo: from.AddDate(0, 1, 0), Off: text, Fixed: pricing.NoRates()}
		own, err := b.Discounted(pricing.Header{Version: "own"}, from, []pricing.Discount{d})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Time{from.Add(-time.Second), from, d.ValidTo.Add(-time.Second), d.ValidTo} {
			inside := !at.Before(from) && at.Before(d.ValidTo)
			list, mine := b.InForce(at), own.InForce(at)
			if len(list) != len(mine) {
				t.Fatalf("%d rows became %d", len(list), len(mine))
			}
			for i := range list {
				for s := range list[i].Sheets {
					for c, rate := range list[i].Sheets[s].Rates {
						want := int64(rate)
						if inside && list[i].Provider == d.Provider && rate != pricing.NoRate {
							want = want / 1000 * (1000 - off)
						}
						if got := int64(mine[i].Sheets[s].Rates[c]); got != want {
							t.Fatalf("%s off %d became %d, want %d", text, rate, got, want)
						}
					}
				}
			}
		}
	})
}

// The first instances of the real list and its two currencies, as they stand there.
func TestReadTheRealGPUPrices(t *testing.T) {
	f, err := os.Open(testenv.Data(t, "prices/gpu_instance_hourly_prices.csv.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	prices, err := pricing.ReadGPUPrices(f)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, p := range prices {
		kinds[p.Kind+" "+p.Currency]++
		if p.Instance == "g4ad.2xlarge" && p.Region == "us-east-1" && (p.PerHour.String() != "0.541170000000" || p.GPUs != "1" || p.GPU != "radeon-pro-v520" || p.Cloud != "aws") {
			t.Errorf("%+v", p)
		}
	}
	if len(prices) != 1638 || kinds["on_demand CNY"] != 18 || kinds["on_demand USD"] != 1340 || kinds["spot USD"] != 280 {
		t.Errorf("%d prices, %v", len(prices), kinds)
	}
}

const gpuHeader = "cloud,region,instance_type,gpu_name,gpu_count,price_kind,usd_per_hour,currency,generated_at\n"

func TestGPUPricesRefused(t *testing.T) {
	good := gpuHeader + "aws,us,g,l4,1,spot,0.5,USD,2026-07-20T13:44:30Z\n"
	if p, err := pricing.ReadGPUPrices(strings.NewReader(good)); err != nil || len(p) != 1 {
		t.Fatalf("%v, %v", p, err)
	}
	for _, list := range []string{
		"", "cloud,region\n", strings.Replace(good, "0.5", "0", 1), strings.Replace(good, "0.5", "0.5e1", 1), strings.Replace(good, "0.5", "-1", 1),
		strings.Replace(good, ",1,", ",-1,", 1), strings.Replace(good, "l4", "", 1), strings.Replace(good, "2026-07-20T", "x", 1), good + "aws\n",
	} {
		if _, err := pricing.ReadGPUPrices(strings.NewReader(list)); !errors.Is(err, pricing.ErrGPUPrices) {
			t.Errorf("%q: %v", list, err)
		}
	}
}

func FuzzReadDiscountsAndGPUPrices(f *testing.F) {
	f.Add([]byte(gpuHeader + "aws,us,g,l4,1,spot,0.5,USD,2026-07-20T13:44:30Z\n"))
	f.Add([]byte("provider,model,valid_from,percent_off,input_per_mtok\nacme,big,2026-01-01,5,\n"))
	f.Fuzz(func(t *testing.T, list []byte) {
		prices, err := pricing.ReadGPUPrices(strings.NewReader(string(list)))
		for _, p := range prices {
			if err != nil || p.PerHour <= 0 || p.GPUs == "" {
				t.Fatalf("%+v, %v", p, err)
			}
		}
		discounts, err := pricing.ReadDiscounts(strings.NewReader(string(list)))
		for _, d := range discounts {
			if err != nil || d.Provider == "" || (d.Off == "") == (d.Fixed == pricing.NoRates()) {
				t.Fatalf("%+v, %v", d, err)
			}
		}
	})
}
