package money_test

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
)

// picos draws amounts with the ends of the range well represented.
var picos = rapid.Custom(func(t *rapid.T) money.Pico {
	return money.Pico(rapid.OneOf(
		rapid.Int64(),
		rapid.Int64Range(-3e12, 3e12),
		rapid.SampledFrom([]int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MaxInt64 - 1}),
	).Draw(t, "pico"))
})

// sums draws totals over the whole range of Decimal(38,12).
var sums = rapid.Custom(func(t *rapid.T) money.Sum {
	limit := new(big.Int).Sub(tenTo(38), big.NewInt(1))
	b := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 15).Draw(t, "magnitude"))
	if rapid.IntRange(0, 9).Draw(t, "near the limit") == 0 {
		b.Sub(limit, big.NewInt(rapid.Int64Range(0, 3).Draw(t, "below")))
	}
	if rapid.Bool().Draw(t, "negative") {
		b.Neg(b)
	}
	s, err := money.SumFromBig(b)
	if err != nil {
		t.Fatalf("SumFromBig(%v): %v", b, err)
	}
	return s
})

func tenTo(n int64) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(n), nil) }

func bigOf(p money.Pico) *big.Int { return big.NewInt(int64(p)) }

// text writes b, in units of 1e-12, the slow and obvious way.
func text(b *big.Int) string {
	q, r := new(big.Int).QuoRem(new(big.Int).Abs(b), tenTo(12), new(big.Int))
	digits := r.String()
	out := q.String() + "." + strings.Repeat("0", 12-len(digits)) + digits
	if b.Sign() < 0 {
		out = "-" + out
	}
	return out
}

// check compares an answer with the exact one: equal when it fits, ErrOverflow when not.
func check(t *rapid.T, got money.Pico, err error, want *big.Int) {
	t.Helper()
	switch {
	case !want.IsInt64() && !errors.Is(err, money.ErrOverflow):
		t.Fatalf("%v does not fit, got %v, %v", want, got, err)
	case want.IsInt64() && (err != nil || int64(got) != want.Int64()):
		t.Fatalf("want %v, got %d, %v", want, got, err)
	}
}

func TestPicoArithmeticIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, q := picos.Draw(t, "p"), picos.Draw(t, "q")
		n := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-10, 10)).Draw(t, "n")
		add, err := p.Add(q)
		check(t, add, err, new(big.Int).Add(bigOf(p), bigOf(q)))
		sub, err := p.Sub(q)
		check(t, sub, err, new(big.Int).Sub(bigOf(p), bigOf(q)))
		neg, err := p.Neg()
		check(t, neg, err, new(big.Int).Neg(bigOf(p)))
		mul, err := p.Mul(n)
		check(t, mul, err, new(big.Int).Mul(bigOf(p), big.NewInt(n)))
	})
}

func TestPicoEdges(t *testing.T) {
	for _, p := range []money.Pico{money.Min, -1, 0, 1, money.Max} {
		for _, q := range []money.Pico{money.Min, -1, 0, 1, money.Max} {
			want := new(big.Int).Mul(bigOf(p), bigOf(q))
			got, err := p.Mul(int64(q))
			if want.IsInt64() != (err == nil) || (err == nil && bigOf(got).Cmp(want) != 0) {
				t.Errorf("%d × %d = %d, %v; want %v", p, q, got, err, want)
			}
		}
	}
}

func TestTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := picos.Draw(t, "p")
		if p.String() != text(bigOf(p)) {
			t.Fatalf("String() = %q, want %q", p.String(), text(bigOf(p)))
		}
		if back, err := money.Parse(p.String()); back != p || err != nil {
			t.Fatalf("Parse(%q) = %d, %v", p.String(), back, err)
		}
		s := sums.Draw(t, "s")
		if s.String() != text(s.Big()) {
			t.Fatalf("Sum.String() = %q, want %q", s.String(), text(s.Big()))
		}
		if back, err := money.ParseSum(s.String()); back != s || err != nil {
			t.Fatalf("ParseSum(%q) = %v, %v", s.String(), back, err)
		}
	})
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want money.Pico
		err  error
	}{
		{in: "0", want: 0},
		{in: "-0.000", want: 0},
		{in: "12", want: 12 * money.USD},
		{in: "0.00000123", want: 1_230_000},
		{in: "0.000001230000", want: 1_230_000},
		{in: "-1.5", want: -money.USD * 3 / 2},
		{in: "007.10", want: 7_100_000_000_000},
		{in: "0.000000000001000000", want: 1},
		{in: "9223372.036854775807", want: money.Max},
		{in: "-9223372.036854775808", want: money.Min},
		{in: "9223372.036854775808", err: money.ErrOverflow},
		{in: "-9223372.036854775809", err: money.ErrOverflow},
		{in: strings.Repeat("9", 60), err: money.ErrOverflow},
		{in: "0.0000000000001", err: money.ErrPrecision},
		{in: "", err: money.ErrSyntax},
		{in: "-", err: money.ErrSyntax},
		{in: ".5", err: money.ErrSyntax},
		{in: "5.", err: money.ErrSyntax},
		{in: ".", err: money.ErrSyntax},
		{in: "1.2.3", err: money.ErrSyntax},
		{in: "+1", err: money.ErrSyntax},
		{in: "--1", err: money.ErrSyntax},
		{in: " 1", err: money.ErrSyntax},
		{in: "1e3", err: money.ErrSyntax},
		{in: "1,5", err: money.ErrSyntax},
		{in: "NaN", err: money.ErrSyntax},
		{in: "٣", err: money.ErrSyntax},
		{in: "0." + strings.Repeat("0", 1000), err: money.ErrSyntax},
	} {
		got, err := money.Parse(c.in)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Parse(%.30q) = %d, %v; want %d, %v", c.in, got, err, c.want, c.err)
		}
	}
}

func TestJSONIsAString(t *testing.T) {
	type row struct {
		Cost  money.Pico `json:"cost"`
		Total money.Sum  `json:"total"`
	}
	in := row{Cost: 1_230_000, Total: money.SumOf(-5)}
	b, err := json.Marshal(in)
	if want := `{"cost":"0.000001230000","total":"-0.000000000005"}`; err != nil || string(b) != want {
		t.Fatalf("Marshal = %s, %v", b, err)
	}
	var out row
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Fatalf("Unmarshal = %+v, %v", out, err)
	}
	for _, bad := range []string{`{"cost":1.5}`, `{"total":1}`, `{"cost":"1e-3"}`, `{"total":""}`} {
		if err := json.Unmarshal([]byte(bad), &out); err == nil {
			t.Errorf("Unmarshal(%s) accepted", bad)
		}
	}
	if out != in {
		t.Errorf("a refused value changed the target: %+v", out)
	}
}

func TestRoundHalfEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		den := rapid.OneOf(rapid.Uint64Min(1), rapid.Uint64Range(1, 10)).Draw(t, "den")
		hi := rapid.OneOf(rapid.Just[uint64](0), rapid.Uint64Range(0, den), rapid.Uint64()).Draw(t, "hi")
		lo := rapid.Uint64().Draw(t, "lo")
		num := new(big.Int).SetUint64(hi)
		num.Lsh(num, 64).Add(num, new(big.Int).SetUint64(lo))
		got, err := money.RoundHalfEven(hi, lo, den)
		check(t, got, err, halfEven(num, new(big.Int).SetUint64(den)))
	})
	if _, err := money.RoundHalfEven(0, 1, 0); !errors.Is(err, money.ErrDivideByZero) {
		t.Errorf("denominator 0: %v", err)
	}
	for lo, want := range map[uint64]money.Pico{5: 0, 6: 1, 15: 2, 25: 2, 26: 3, 35: 4} {
		if got, err := money.RoundHalfEven(0, lo, 10); got != want || err != nil {
			t.Errorf("%d/10 = %d, %v; want %d", lo, got, err, want)
		}
	}
	if _, err := money.RoundHalfEven(1, math.MaxUint64, 2); !errors.Is(err, money.ErrOverflow) {
		t.Errorf("a quotient of 2⁶⁴ after rounding: %v", err)
	}
}

// halfEven rounds by the definition: the nearest integer, the even one of two equally near.
func halfEven(num, den *big.Int) *big.Int {
	floor, rem := new(big.Int).QuoRem(num, den, new(big.Int))
	up := new(big.Int).Add(floor, big.NewInt(1))
	switch new(big.Int).Lsh(rem, 1).Cmp(den) {
	case -1:
		return floor
	case 1:
		return up
	}
	if floor.Bit(0) == 0 {
		return floor
	}
	return up
}

func TestMulAtto(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		quantity := rapid.OneOf(rapid.Int64Min(0), rapid.Int64Range(0, 1e6)).Draw(t, "quantity")
		rate := rapid.OneOf(rapid.Int64Min(0), rapid.Int64Range(0, 1e15), rapid.SampledFrom([]int64{500_000, 1_500_000})).Draw(t, "rate")
		got, err := money.MulAtto(quantity, rate)
		check(t, got, err, halfEven(new(big.Int).Mul(big.NewInt(quantity), big.NewInt(rate)), big.NewInt(1e6)))
	})
	for _, c := range [][2]int64{{-1, 1}, {1, -1}} {
		if _, err := money.MulAtto(c[0], c[1]); !errors.Is(err, money.ErrNegative) {
			t.Errorf("MulAtto(%d, %d): %v", c[0], c[1], err)
		}
	}
}
