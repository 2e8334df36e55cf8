// Package pricing turns counted tokens into money by an immutable, hashed price book.
//
// What it is: a Book is one published version of prices. Its rows are bitemporal — the time
// a price is valid and the time it was known — and hold, per service tier and context tier,
// an exact integer rate per token class. Book.Price picks one row and one rate sheet of it
// and multiplies. Importers make books from published price lists; Builtin is a small one
// that travels with the program.
//
// What it promises:
//   - Price is a pure function of the Book and the Usage: no clock, no map order, no state.
//     The same bytes give the same cost on every machine and in every later version that
//     supports RuleVersion.
//   - Each component is tokens × rate, an exact 128-bit product rounded half-even once to
//     1e-12 USD; the cost is the checked sum of the components.
//   - What is not known is unpriced, with a reason that names what is missing. No answer is
//     silently 0 USD.
//   - Marshal is canonical: ParseBook accepts exactly the bytes that Marshal gives, and Hash
//     is their SHA-256, so an auditor re-prices from the control record with any JSON reader.
//   - A Book may be used by any number of goroutines, and Price does not allocate.
//
// What it never does: use a float, guess a rate, convert a currency, retain the strings of
// a Usage, or fetch anything.
//
// # How a sheet is chosen (RuleVersion 1)
//
//  1. Names: see normalise. Provider and model are compared without ASCII case.
//  2. Region: rows of the usage's region that apply come before rows without region; rows
//     without region hold for every other region.
//  3. Time: valid_from ≤ At < valid_to and known_from ≤ KnownAt < known_to; an end that is
//     absent is open. At most one row can satisfy this, which NewBook checks.
//  4. Context tier: the largest threshold of the row that is *below* the context length,
//     that is ContextTokens when positive and else the prompt tokens of all classes
//     (tokens.Vector.Prompt). The tier's rates then hold for *all* classes of the call, output
//     included. Sources: Anthropic, "Long context pricing" (a request above 200K input
//     tokens, cache reads and writes counted, is charged at the premium rates, all its
//     tokens); Google, "Gemini API pricing" (input, output and caching, "prompts > 200k
//     tokens"); OpenAI, GPT-5.4 model page (prompts above 272K: 2× input, 1.5× output "for
//     the full session").
//  5. Service tier: the sheet of that tier at that threshold, and no other: a batch call above
//     200K tokens is unpriced when the row has only the standard tier's rates there.
//  6. Each class with tokens needs a rate in that sheet. Rates that follow from another class
//     by the provider's own billing (see Derive) are written into the book when it is made;
//     Price itself has no fall-back.
package pricing

import (
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// RuleVersion numbers the rules above. A ledger that was written under one version is
// replayed under it; a change of any rule is a new number beside the old code.
const RuleVersion = 1

// Usage is what Price needs to know of one call. The strings are only read during the call.
type Usage struct {
	// Provider and Model as the producer named them; see normalise.
	Provider, Model string
	// Region of the provider's endpoint or of its data residency, "" when not known.
	Region string
	// ServiceTier as the provider reported it, "" is standard; see ParseService.
	ServiceTier string
	// Tokens per class; none may be negative.
	Tokens tokens.Vector
	// ContextTokens, when positive, is the declared length that chooses the context tier.
	ContextTokens int64
	// At is when the usage happened, in Unix nanoseconds.
	At int64
	// KnownAt is the knowledge time, in Unix nanoseconds: only rows known by then count.
	// Latest (or 0) means all that this book knows.
	KnownAt int64
	// GPU says that the usage is time of a GPU: Provider is then the cloud and Model the
	// instance type, and there are no tokens; see PriceGPU.
	GPU       bool
	GPUMicros int64
	Purchase  string
}

// Latest as Usage.KnownAt asks for the newest knowledge in the book.
const Latest int64 = 0

// RowID names one rate sheet of one row, for people and for the ledger:
// "provider/model[region]@valid-from~known-from/service>threshold", without the parts that
// are empty, equal or zero ("openai/gpt-4o@2023-01-01/standard"). It is unique in its book.
type RowID string

// Result is the answer of Price.
type Result struct {
	// Cost is the sum of Components; 0 when not Priced.
	Cost money.Pico
	// Priced says whether Cost is meant. When false, Reason says why, and the entry is
	// recorded as unpriced, never as free.
	Priced bool
	// Row is the sheet that priced the usage, or the sheet that lacks a rate; "" when none
	// was found.
	Row RowID
	// Reason is the zero Reason when Priced.
	Reason Reason
	// Components is the cost per token class; all 0 when not Priced.
	Components [tokens.NumClasses]money.Pico
}

// Price returns what u costs by this book. It does not allocate for tokens.
func (b *Book) Price(u *Usage) Result {
	if u.GPU {
		return b.PriceGPU(&GPUUsage{
			Provider: u.Provider, Instance: u.Model, Region: u.Region, Purchase: u.Purchase, Micros: u.GPUMicros, At: u.At, KnownAt: u.KnownAt,
		})
	}
	var r Result
	for c := range u.Tokens {
		if u.Tokens[c] < 0 {
			return unpriced(ReasonNegativeTokens, tokens.Class(c))
		}
	}
	service, ok := ParseService(u.ServiceTier)
	if !ok {
		return unpriced(ReasonServiceTier, 0)
	}
	found, reason := b.find(u)
	if found == nil {
		return unpriced(reason, 0)
	}
	sheet, reason := found.sheet(service, contextLength(u))
	if sheet == nil {
		return unpriced(reason, 0)
	}
	r.Row = sheet.id
	sheet.apply(&u.Tokens, &r)
	return r
}

func unpriced(code ReasonCode, class tokens.Class) Result {
	return Result{Reason: Reason{Code: code, Class: class}}
}

// contextLength is the length that chooses the context tier.
func contextLength(u *Usage) int64 {
	if u.ContextTokens > 0 {
		return u.ContextTokens
	}
	var n int64
	for c := tokens.Class(0); c < tokens.NumClasses; c++ {
		if c.IsPrompt() {
			if n += u.Tokens[c]; n < 0 { // beyond int64, and so above every threshold
				return maxInt64
			}
		}
	}
	return n
}

// apply multiplies v with the sheet's rates into r.
func (s *sheet) apply(v *tokens.Vector, r *Result) {
	for c, n := range v {
		if n == 0 {
			continue
		}
		if s.rates[c] == NoRate {
			s.fail(r, ReasonNoRate, c)
			return
		}
		part, err := money.MulAtto(n, int64(s.rates[c]))
		if err == nil {
			r.Components[c] = part
			r.Cost, err = r.Cost.Add(part)
		}
		if err != nil {
			s.fail(r, ReasonOverflow, c)
			return
		}
	}
	r.Priced = true
}

// fail makes r an unpriced answer that still names the sheet.
func (s *sheet) fail(r *Result, code ReasonCode, class int) {
	*r = Result{Row: s.id, Reason: Reason{Code: code, Class: tokens.Class(class)}}
}
