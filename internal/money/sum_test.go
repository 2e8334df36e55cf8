package money_test

import (
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
)

// checkSum compares s after an operation with the exact result; on overflow s must still
// be what it was.
func checkSum(t *rapid.T, s, before money.Sum, err error, want *big.Int) {
	t.Helper()
	if new(big.Int).Abs(want).Cmp(tenTo(38)) >= 0 {
		if !errors.Is(err, money.ErrOverflow) || s != before {
			t.Fatalf("%v does not fit, got %v, %v", want, s, err)
		}
		return
	}
	if err != nil || s.Big().Cmp(want) != 0 {
		t.Fatalf("want %v, got %v, %v", want, s, err)
	}
}

func TestSumArithmeticIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, p := sums.Draw(t, "a"), sums.Draw(t, "b"), picos.Draw(t, "p")
		s := a
		err := s.Add(b)
		checkSum(t, s, a, err, new(big.Int).Add(a.Big(), b.Big()))
		s = a
		err = s.Sub(b)
		checkSum(t, s, a, err, new(big.Int).Sub(a.Big(), b.Big()))
		s = a
		err = s.AddPico(p)
		checkSum(t, s, a, err, new(big.Int).Add(a.Big(), bigOf(p)))
		if a.Cmp(b) != a.Big().Cmp(b.Big()) || a.Sign() != a.Big().Sign() {
			t.Fatalf("Cmp(%v, %v) = %d, Sign %d", a, b, a.Cmp(b), a.Sign())
		}
		if a.Neg().Big().Cmp(new(big.Int).Neg(a.Big())) != 0 {
			t.Fatalf("-(%v) = %v", a, a.Neg())
		}
	})
}

func TestSumConversions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := sums.Draw(t, "s"), picos.Draw(t, "p")
		hi, lo := s.Words()
		if back, err := money.SumFromWords(hi, lo); back != s || err != nil {
			t.Fatalf("words of %v: %v, %v", s, back, err)
		}
		got, err := s.Pico()
		check(t, got, err, s.Big())
		if back, err := money.SumOf(p).Pico(); back != p || err != nil {
			t.Fatalf("SumOf(%v).Pico() = %v, %v", p, back, err)
		}
		if s.IsZero() != (s.Big().Sign() == 0) {
			t.Fatalf("IsZero(%v)", s)
		}
	})
}

func TestSumRange(t *testing.T) {
	limit := tenTo(38)
	for _, b := range []*big.Int{limit, new(big.Int).Neg(limit), new(big.Int).Lsh(limit, 70)} {
		if s, err := money.SumFromBig(b); !errors.Is(err, money.ErrOverflow) {
			t.Errorf("SumFromBig(%v) = %v, %v", b, s, err)
		}
	}
	for _, w := range [][2]uint64{{1 << 63, 0}, {0x7fffffffffffffff, 0}, {0x4b3b4ca85a86c47a, 0x98a224000000000}} {
		if s, err := money.SumFromWords(w[0], w[1]); !errors.Is(err, money.ErrOverflow) {
			t.Errorf("SumFromWords(%x) = %v, %v", w, s, err)
		}
	}
	if s, err := money.ParseSum("99999999999999999999999999.999999999999"); err != nil || s.String() != "99999999999999999999999999.999999999999" {
		t.Errorf("the largest sum: %v, %v", s, err)
	}
	if _, err := money.ParseSum("100000000000000000000000000"); !errors.Is(err, money.ErrOverflow) {
		t.Errorf("one more: %v", err)
	}
}
