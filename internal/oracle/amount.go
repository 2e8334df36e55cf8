package oracle

import (
	"fmt"
	"math/big"
	"strings"
)

// Amount is a sum of money of any size in 1e-12 USD. Its text, also in JSON, is
// a decimal number of USD with all twelve places. The zero Amount is 0 USD.
type Amount struct {
	big big.Int
	// small collects additions until they would leave the safe range.
	small int64
}

// safeSum is beyond what small may be: below it, one more addition of any cost
// that is at most this stays below 2^63.
const safeSum = 1 << 62

// Add adds pico × 1e-12 USD, pico >= 0.
func (a *Amount) Add(pico int64) {
	if a.small >= safeSum || pico > safeSum {
		a.settle()
		if pico > safeSum {
			a.big.Add(&a.big, big.NewInt(pico))
			return
		}
	}
	a.small += pico
}

// AddAmount adds another amount.
func (a *Amount) AddAmount(b *Amount) { a.big.Add(&a.big, b.Pico()); a.settle() }

func (a *Amount) settle() {
	a.big.Add(&a.big, big.NewInt(a.small))
	a.small = 0
}

// Pico is the amount in 1e-12 USD.
func (a *Amount) Pico() *big.Int { return new(big.Int).Add(&a.big, big.NewInt(a.small)) }

// Cmp compares two amounts as big.Int.Cmp does.
func (a *Amount) Cmp(b *Amount) int { return a.Pico().Cmp(b.Pico()) }

// String is the amount in USD with twelve decimal places.
func (a *Amount) String() string {
	whole, rest := new(big.Int).QuoRem(a.Pico(), picoPerUSD, new(big.Int))
	return fmt.Sprintf("%d.%012d", whole, rest)
}

// MarshalText writes the form of String.
func (a *Amount) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the form of String, and no other.
func (a *Amount) UnmarshalText(text []byte) error {
	whole, rest, ok := strings.Cut(string(text), ".")
	pico, isInt := new(big.Int).SetString(whole+rest, 10)
	if !ok || !isInt || len(rest) != 12 || pico.Sign() < 0 {
		return fmt.Errorf("%w: an amount needs twelve decimal places", ErrExpectation)
	}
	a.big.Set(pico)
	a.small = 0
	return nil
}
