package pricing_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

// oracle re-prices from a book's serialisation alone: generic JSON, linear search, rational
// numbers. It shares with the package the format's documentation and nothing else.
type oracle struct{ rows []map[string]any }

func newOracle(t rapid.TB, book []byte) *oracle {
	t.Helper()
	o := &oracle{}
	for i, line := range bytes.Split(bytes.TrimSuffix(book, []byte("\n")), []byte("\n")) {
		var object map[string]any
		if err := json.Unmarshal(line, &object); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		if _, isRow := object["sheets"]; isRow {
			o.rows = append(o.rows, object)
		}
	}
	return o
}

// price returns the components in units of 1e-12 USD, or ok = false. It expects canonical
// provider and model names.
func (o *oracle) price(u pricing.Usage) (parts [tokens.NumClasses]*big.Int, total *big.Int, ok bool) {
	row := o.row(u, u.Region)
	if row == nil && u.Region != "" {
		row = o.row(u, "")
	}
	if row == nil {
		return parts, nil, false
	}
	rates := ratesFor(row, u)
	total = new(big.Int)
	for c := range parts {
		parts[c] = new(big.Int)
		if u.Tokens[c] == 0 {
			continue
		}
		text, has := rates[tokens.Class(c).String()].(string)
		if !has {
			return parts, nil, false
		}
		rate, _ := new(big.Rat).SetString(text + "e-18")
		usd := rate.Mul(rate, new(big.Rat).SetInt64(u.Tokens[c]))
		parts[c] = nearestEven(usd.Mul(usd, new(big.Rat).SetInt64(1_000_000_000_000)))
		total.Add(total, parts[c])
	}
	return parts, total, total.IsInt64()
}

func (o *oracle) row(u pricing.Usage, region string) map[string]any {
	for _, r := range o.rows {
		rowRegion, _ := r["region"].(string)
		if r["provider"] == u.Provider && r["model"] == u.Model && rowRegion == region &&
			within(r, "valid", u.At, false) && within(r, "known", u.KnownAt, u.KnownAt == pricing.Latest) {
			return r
		}
	}
	return nil
}

func within(row map[string]any, which string, at int64, latest bool) bool {
	to, ends := row[which+"_to"].(string)
	if latest {
		return !ends
	}
	from, _ := row[which+"_from"].(string)
	return at >= unixNano(from) && (!ends || at < unixNano(to))
}

func unixNano(s string) int64 {
	t, err := time.Parse("2006-01-02T15:04:05Z", s)
	if err != nil {
		return 1 << 62
	}
	return t.UnixNano()
}

// ratesFor picks the context tier of the whole row first and then the service tier in it.
func ratesFor(row map[string]any, u pricing.Usage) map[string]any {
	length := u.ContextTokens
	if length <= 0 {
		length = u.Tokens[tokens.Input] + u.Tokens[tokens.CacheRead] + u.Tokens[tokens.CacheWrite5m] +
			u.Tokens[tokens.CacheWrite1h] + u.Tokens[tokens.AudioInput] + u.Tokens[tokens.ImageInput]
	}
	best := int64(-1)
	sheets, _ := row["sheets"].([]any)
	for _, s := range sheets {
		if above := int64(s.(map[string]any)["above"].(float64)); (above == 0 || above < length) && above > best {
			best = above
		}
	}
	service := strings.ToLower(u.ServiceTier)
	if service == "" {
		service = "standard"
	}
	at := slices.IndexFunc(sheets, func(s any) bool {
		sheet := s.(map[string]any)
		return sheet["service"] == service && int64(sheet["above"].(float64)) == best
	})
	if at < 0 {
		return nil
	}
	rates, _ := sheets[at].(map[string]any)["usd_e18"].(map[string]any)
	return rates
}

// nearestEven rounds by comparing distances.
func nearestEven(r *big.Rat) *big.Int {
	floor := new(big.Int).Div(r.Num(), r.Denom())
	above := new(big.Rat).Sub(r, new(big.Rat).SetInt(floor))
	switch above.Cmp(big.NewRat(1, 2)) {
	case -1:
		return floor
	case 1:
		return floor.Add(floor, big.NewInt(1))
	}
	return floor.Add(floor, new(big.Int).And(floor, big.NewInt(1)))
}

// compare prices u both ways. A usage without tokens has no class to lack a rate for, and
// a model without the tier is unpriced in both.
func compare(t rapid.TB, b *pricing.Book, o *oracle, u pricing.Usage) pricing.Result {
	t.Helper()
	got := b.Price(&u)
	parts, total, ok := o.price(u)
	if u.Tokens == (tokens.Vector{}) {
		return got
	}
	if got.Priced != ok {
		t.Fatalf("%+v: priced %v (%s), the oracle says %v", u, got.Priced, got.Reason, ok)
	}
	if !ok {
		if got.Cost != 0 || got.Components != (pricing.Result{}).Components || got.Reason == (pricing.Reason{}) {
			t.Fatalf("%+v: an unpriced answer with money or without a reason: %+v", u, got)
		}
		return got
	}
	for c, want := range parts {
		if big.NewInt(int64(got.Components[c])).Cmp(want) != 0 {
			t.Fatalf("%+v: %v costs %v, the oracle says %v e-12", u, tokens.Class(c), got.Components[c], want)
		}
	}
	if big.NewInt(int64(got.Cost)).Cmp(total) != 0 || got.Row == "" {
		t.Fatalf("%+v: %v by %q, the oracle says %v e-12", u, got.Cost, got.Row, total)
	}
	return got
}
