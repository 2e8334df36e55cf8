package pricing_test

import (
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

func TestCompare(t *testing.T) {
	a := mustBook(t, []pricing.Row{flat("p", "same", "1e-6"), flat("p", "up", "2e-6"), flat("p", "gone", "3e-6")})
	b := mustBook(t, []pricing.Row{flat("p", "same", "1e-6"), flat("p", "up", "2.5e-6"), flat("p", "new", "4e-6")}, pricing.Alias{Name: "q", Provider: "p"})
	d := pricing.Compare(a, b, day("2026-01-01"))
	if len(d.Removed) != 2 || len(d.Added) != 2 || len(d.AddedAliases) != 1 || len(d.Changes) != 3 {
		t.Fatalf("%+v", d)
	}
	for i, want := range []struct {
		model, percent string
		whole          bool
		from, to       pricing.Rate
	}{
		{"gone", "", true, 3e12, pricing.NoRate},
		{"new", "", true, pricing.NoRate, 4e12},
		{"up", "+25.00%", false, 2e12, 25e11},
	} {
		c := d.Changes[i]
		if c.Model != want.model || c.Percent() != want.percent || c.WholeModel != want.whole || c.From != want.from || c.To != want.to || c.Class != tokens.Input {
			t.Errorf("%+v %s, want %+v", c, c.Percent(), want)
		}
	}
	if _, err := b.Apply(d); !errors.Is(err, pricing.ErrDiff) {
		t.Errorf("applied to another book: %v", err)
	}
	// Before the rows are valid nothing is in force, but the books differ all the same.
	if d := pricing.Compare(a, b, day("2024-01-01")); len(d.Changes) != 0 || d.Empty() {
		t.Errorf("%+v", d)
	}
}

// The difference of a book with itself is empty, and what a difference is applied to becomes
// the other book, history, aliases and all.
func TestDiffProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawList(t, "a")
		rev := pricing.Revision{
			Header:    pricing.Header{Version: "revised"},
			ValidFrom: day("2026-02-01"), KnownFrom: day("2026-03-01"),
		}
		b, _, err := a.Revise(drawList(t, "b"), rev)
		if err != nil {
			t.Fatal(err)
		}
		at := day("2026-04-01")
		for _, pair := range [][2]*pricing.Book{{a, b}, {b, a}, {a, a}, {b, b}} {
			d := pricing.Compare(pair[0], pair[1], at)
			got, err := pair[0].Apply(d)
			if err != nil || got.Hash() != pair[1].Hash() {
				t.Fatalf("applied: %v", err)
			}
			if pair[0] == pair[1] && (!d.Empty() || len(d.Changes) != 0) {
				t.Fatalf("a book differs from itself: %+v", d)
			}
		}
		forth, back := pricing.Compare(a, b, at), pricing.Compare(b, a, at)
		for i, c := range forth.Changes {
			if o := back.Changes[i]; o.RateKey != c.RateKey || o.From != c.To || o.To != c.From {
				t.Fatalf("%+v against %+v", c, o)
			}
		}
	})
}

// Percentages by big rationals say the same.
func TestPercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Int64Range(1, 1<<62).Draw(t, "from")
		to := rapid.Int64Range(0, 1<<62).Draw(t, "to")
		got := pricing.RateChange{From: pricing.Rate(from), To: pricing.Rate(to)}.Percent()
		r := big.NewRat(to-from, from)
		cents := nearestEven(new(big.Rat).Abs(r.Mul(r, big.NewRat(10_000, 1))))
		sign := "+"
		if to < from {
			sign = "-"
		}
		if want := sign + new(big.Rat).SetFrac(cents, big.NewInt(100)).FloatString(2) + "%"; got != want {
			t.Fatalf("%d to %d: %s, want %s", from, to, got, want)
		}
	})
}

func TestDisagreements(t *testing.T) {
	a := mustBook(t, []pricing.Row{flat("p", "m", "1e-6"), flat("p", "n", "1e-6"), flat("p", "x", "0")})
	b := mustBook(t, []pricing.Row{flat("p", "m", "1e-6"), flat("p", "n", "3e-6"), flat("p", "x", "1e-6")})
	c := mustBook(t, []pricing.Row{flat("p", "n", "2e-6"), flat("p", "alone", "2e-6")})
	found, compared := pricing.Disagreements(day("2026-01-01"), a, b, c)
	if compared != 3 || len(found) != 2 || found[0].Model != "n" || found[0].Spread() != "+200.00%" || found[1].Model != "x" || found[1].Spread() != "" {
		t.Fatalf("%d compared, %+v", compared, found)
	}
	if r := found[1].Rates; r[0] != 0 || r[1] != 1e12 || r[2] != pricing.NoRate {
		t.Errorf("%v", r)
	}
}

// The two sources at hand, the list and the built-in book of it, agree.
func TestTheBuiltinAgreesWithItsSource(t *testing.T) {
	list, _ := liteLLM()
	found, compared := pricing.Disagreements(day("2026-09-01"), list, pricing.Builtin())
	if compared < 300 || len(found) != 0 {
		t.Errorf("%d compared, %+v", compared, found)
	}
}
