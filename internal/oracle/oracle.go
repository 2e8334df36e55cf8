// Package oracle says what a load must come to: how many events of each kind,
// how many tokens, and how much money, per tenant and per hour.
//
// It is a second opinion. It has its own price table, typed from the published
// price list as exact rationals, its own rounding and its own sums, and shares
// no code with the price book or the ledger that it checks: it never imports
// them (an architecture test says so), because an oracle that shares a mistake
// with its subject finds nothing.
//
// It promises exact arithmetic of any size (math/big; small products take a
// checked integer path that a property test holds equal to it), and that an
// event counts once, with the body that was acknowledged first. It never uses
// a float and never reads a clock.
package oracle

import (
	"errors"
	"fmt"
	"math/big"
	"math/bits"

	"github.com/tallystick/tallystick/internal/tokens"
)

// ErrTable says that a price table's text cannot be read.
var ErrTable = errors.New("oracle: bad price table")

// picoPerUSD is the unit of money here and everywhere: 1e-12 USD.
var picoPerUSD = new(big.Int).Exp(big.NewInt(10), big.NewInt(12), nil)

// Table is a set of prices. It may be read by any number of goroutines.
type Table struct {
	models map[modelKey]*Model
}

type modelKey struct{ provider, model, serviceTier string }

// Model is the price of one model in one service tier.
type Model struct {
	steps []step // ascending by above; the first is 0
}

// step holds the rates of calls with more than `above` prompt tokens.
type step struct {
	above int64
	rates [tokens.NumClasses]rate
}

// rate is USD × 1e12 per token, exactly. A class without a price has no exact.
type rate struct {
	exact *big.Rat
	// whole is the rate when it is a whole number of 1e-12 USD that fits, else -1.
	whole int64
}

// Lookup finds the price of a model in a service tier ("" is standard). nil
// means that the table has none: the call must come out as unpriced.
func (t *Table) Lookup(provider, model, serviceTier string) *Model {
	if serviceTier == "" {
		serviceTier = tierStandard
	}
	return t.models[modelKey{provider, model, serviceTier}]
}

// Cost is what the tokens cost, in 1e-12 USD: each class's tokens × rate is
// rounded half-even to a whole number of 1e-12 USD, and the cost is their sum.
// contextTokens, when positive, decides the context tier, else the prompt's
// length does. priced is false when the model is nil (unknown), when a class
// with tokens has no rate, and when the cost does not fit an int64.
func (m *Model) Cost(v *tokens.Vector, contextTokens int64) (pico int64, priced bool) {
	if m == nil {
		return 0, false
	}
	s := m.step(v, contextTokens)
	for c, n := range v {
		if n == 0 {
			continue
		}
		part, ok := s.rates[c].times(n)
		if !ok {
			return 0, false
		}
		if pico += part; pico < 0 {
			return 0, false
		}
	}
	return pico, true
}

func (m *Model) step(v *tokens.Vector, contextTokens int64) *step {
	if len(m.steps) > 1 && contextTokens <= 0 {
		contextTokens = v.Prompt()
	}
	s := &m.steps[0]
	for i := range m.steps[1:] {
		if contextTokens > m.steps[i+1].above {
			s = &m.steps[i+1]
		}
	}
	return s
}

// times is n × rate in 1e-12 USD; ok is false without a rate or beyond int64.
func (r *rate) times(n int64) (pico int64, ok bool) {
	if r.exact == nil || n < 0 {
		return 0, false
	}
	if r.whole >= 0 {
		hi, lo := bits.Mul64(uint64(n), uint64(r.whole))
		return int64(lo), hi == 0 && lo < 1<<63
	}
	p := new(big.Rat).SetInt64(n)
	x := roundHalfEven(p.Mul(p, r.exact))
	return x.Int64(), x.IsInt64()
}

// roundHalfEven rounds x >= 0 to a whole number, ties to the even one.
func roundHalfEven(x *big.Rat) *big.Int {
	q, rest := new(big.Int).QuoRem(x.Num(), x.Denom(), new(big.Int))
	switch rest.Lsh(rest, 1).Cmp(x.Denom()) {
	case 1:
		q.Add(q, big.NewInt(1))
	case 0:
		if q.Bit(0) == 1 {
			q.Add(q, big.NewInt(1))
		}
	}
	return q
}

// parseRate reads a decimal number of USD per token ("2.8e-07").
func parseRate(text string) (rate, error) {
	usd, ok := new(big.Rat).SetString(text)
	if !ok || usd.Sign() < 0 {
		return rate{}, fmt.Errorf("%w: %q is not a rate", ErrTable, text)
	}
	exact := usd.Mul(usd, new(big.Rat).SetInt(picoPerUSD))
	r := rate{exact: exact, whole: -1}
	if exact.IsInt() && exact.Num().IsInt64() {
		r.whole = exact.Num().Int64()
	}
	return r, nil
}
