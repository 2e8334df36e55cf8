package pricing_test

import (
	"errors"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]pricing.Rate{
		"0": 0, "0.0": 0, "-0": -2, "0e5": 0, "1e-18": 1, "2.5e-06": 2_500_000_000_000, "0.0000025": 2_500_000_000_000,
		"2.5E-6": 2_500_000_000_000, "25e-7": 2_500_000_000_000, "1": 1e18, "9.223372036854775807": 1<<63 - 1,
		"1.000000000000000000000": 1e18, "0.000000000000000000000": 0, "100e-18": 100, "1e+0": 1e18,
		"9.223372036854775808": -2, "10": -2, "1e-19": -2, "1.5e-18": -2, "3.0001999999999996E-7": -2, "-1e-6": -2,
		"": -2, ".5": -2, "5.": -2, "5.e3": -2, "e5": -2, "1e": -2, "1e999999": -2, "1.2.3": -2, "0x10": -2, "NaN": -2,
		"1 ": -2, "1_0": -2, "123456789012345678901234567890": -2,
	} {
		got, err := pricing.ParseRate(in)
		if want == -2 {
			if !errors.Is(err, pricing.ErrRate) || got != pricing.NoRate {
				t.Errorf("ParseRate(%q) = %d, %v; want ErrRate", in, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

// Whatever is accepted is exact, and whatever is a whole number of 1e-18 and fits is accepted.
func TestParseRateIsExact(t *testing.T) {
	atto := new(big.Rat).SetInt64(1_000_000_000_000_000_000)
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.StringMatching(`(0|[1-9][0-9]{0,3})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?`).Draw(t, "literal")
		exact, ok := new(big.Rat).SetString(in)
		if !ok {
			t.Fatalf("math/big does not read %q", in)
		}
		exact.Mul(exact, atto)
		fits := exact.IsInt() && exact.Num().IsInt64()
		got, err := pricing.ParseRate(in)
		if (err == nil) != fits || (fits && exact.Num().Int64() != int64(got)) {
			t.Fatalf("ParseRate(%q) = %d, %v; exactly %v", in, got, err, exact)
		}
	})
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"2.5e-06", "0.00000", "1e-18", "5.", "00012"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := pricing.ParseRate(in)
		if err != nil {
			return
		}
		exact, ok := new(big.Rat).SetString(in)
		if !ok || strings.ContainsAny(in, "_/xXpP") {
			t.Fatalf("accepted %q", in)
		}
		if exact.Mul(exact, new(big.Rat).SetInt64(1e18)).Cmp(new(big.Rat).SetInt64(int64(got))) != 0 {
			t.Fatalf("%q = %d", in, got)
		}
	})
}
