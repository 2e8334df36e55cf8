package pricing

import (
	"cmp"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Diff is what makes one book of another.
type Diff struct {
	// From and To describe the two books.
	From, To Header
	// Removed and Added are rows, history included; a row that changed is in both.
	Removed, Added []Row
	// RemovedGPUs and AddedGPUs are prices of GPU instances, in the same way.
	RemovedGPUs, AddedGPUs []GPURow
	// RemovedAliases and AddedAliases are names.
	RemovedAliases, AddedAliases []Alias
	// Changes and GPUChanges are the prices in force at At that differ, in canonical order.
	At         time.Time
	Changes    []RateChange
	GPUChanges []GPUChange
}

// RateKey says what one rate is the price of.
type RateKey struct {
	Provider, Model, Region string
	Service                 Service
	Above                   int64
	Class                   tokens.Class
}

// RateChange is one rate in force in two books; NoRate in From is a price that was added,
// and in To one that was removed.
type RateChange struct {
	RateKey
	From, To Rate
	// WholeModel says that the other book has no row in force for this provider, model and
	// region at all.
	WholeModel bool
}

// Compare returns what makes b of a, and the prices that differ at a moment.
func Compare(a, b *Book, at time.Time) Diff {
	d := Diff{From: a.header, To: b.header, At: at}
	d.Removed, d.Added = rowsOnlyIn(a.rows, b.rows), rowsOnlyIn(b.rows, a.rows)
	d.RemovedGPUs, d.AddedGPUs = gpusOnlyIn(a.gpus, b.gpus), gpusOnlyIn(b.gpus, a.gpus)
	d.RemovedAliases, d.AddedAliases = aliasesOnlyIn(a.aliases, b.aliases), aliasesOnlyIn(b.aliases, a.aliases)
	old, fresh := a.ratesAt(at), b.ratesAt(at)
	for key, from := range old.rates {
		to, ok := fresh.rates[key]
		if !ok {
			to = NoRate
		}
		if from != to {
			d.Changes = append(d.Changes, RateChange{key, from, to, !fresh.models[key.row()]})
		}
	}
	for key, to := range fresh.rates {
		if _, ok := old.rates[key]; !ok {
			d.Changes = append(d.Changes, RateChange{key, NoRate, to, !old.models[key.row()]})
		}
	}
	slices.SortFunc(d.Changes, func(a, b RateChange) int { return a.compare(b.RateKey) })
	d.GPUChanges = gpuChanges(a, b, at)
	return d
}

// Empty reports that the two books say the same; their headers may differ.
func (d *Diff) Empty() bool {
	return len(d.Removed)+len(d.Added)+len(d.RemovedGPUs)+len(d.AddedGPUs)+len(d.RemovedAliases)+len(d.AddedAliases) == 0
}

// Apply returns the book that the difference was made to. Errors: ErrDiff when b lacks what
// the difference takes away, else those of NewBook.
func (b *Book) Apply(d Diff) (*Book, error) {
	drop := rowSet(d.Removed)
	var rows []Row
	for i := range b.rows {
		if text := rowText(&b.rows[i]); drop[text] {
			delete(drop, text)
		} else {
			rows = append(rows, b.rows[i])
		}
	}
	if len(drop) > 0 || len(aliasesOnlyIn(d.RemovedAliases, b.aliases)) > 0 || len(gpusOnlyIn(d.RemovedGPUs, b.gpus)) > 0 {
		return nil, fmt.Errorf("%w: %q", ErrDiff, b.header.Version)
	}
	aliases := append(aliasesOnlyIn(b.aliases, d.RemovedAliases), d.AddedAliases...)
	gpus := append(gpusOnlyIn(b.gpus, d.RemovedGPUs), d.AddedGPUs...)
	return newBook(d.To, append(rows, d.Added...), aliases, gpus)
}

// Percent is the change from From to To in percent, half-even to two digits, such as
// "+25.00%"; "" where a price was added or removed or there is no proportion to zero.
func (c RateChange) Percent() string {
	if c.From <= 0 || c.To == NoRate {
		return ""
	}
	return percent(big.NewInt(int64(c.From)), big.NewInt(int64(c.To)))
}

// percent is (to − from) / from, from > 0.
func percent(from, to *big.Int) string {
	n := new(big.Int).Sub(to, from)
	n.Mul(n, big.NewInt(20_000)) // twice the hundredths
	sign := "+"
	if n.Sign() < 0 {
		sign, n = "-", n.Neg(n)
	}
	q, rem := n.QuoRem(n, new(big.Int).Lsh(from, 1), new(big.Int))
	if half := rem.Cmp(from); half > 0 || (half == 0 && q.Bit(0) == 1) {
		q.Add(q, big.NewInt(1))
	}
	text := fmt.Sprintf("%03s", q.String())
	return sign + text[:len(text)-2] + "." + text[len(text)-2:] + "%"
}

func (k *RateKey) row() rowKey { return rowKey{k.Provider, k.Model, k.Region} }

func (k *RateKey) compare(o RateKey) int {
	return cmp.Or(
		strings.Compare(k.Provider, o.Provider), strings.Compare(k.Model, o.Model), strings.Compare(k.Region, o.Region),
		cmp.Compare(k.Service, o.Service), cmp.Compare(k.Above, o.Above), cmp.Compare(k.Class, o.Class),
	)
}

// InForce returns the rows that are valid at a moment as far as the book knows today.
func (b *Book) InForce(at time.Time) []Row {
	var rows []Row
	for _, r := range b.rows {
		if inForce(r.ValidFrom, r.ValidTo, r.KnownTo, at) {
			rows = append(rows, r)
		}
	}
	return cloneRows(rows)
}

// inForce reports that a row holds at a moment and that nothing newer took its place.
func inForce(validFrom, validTo, knownTo, at time.Time) bool {
	return knownTo.IsZero() && !validFrom.After(at) && (validTo.IsZero() || validTo.After(at))
}

// rateSet is the rates in force of a book.
type rateSet struct {
	rates  map[RateKey]Rate
	models map[rowKey]bool
}

func (b *Book) ratesAt(at time.Time) rateSet {
	set := rateSet{map[RateKey]Rate{}, map[rowKey]bool{}}
	for _, r := range b.InForce(at) {
		set.models[r.key()] = true
		for _, s := range r.Sheets {
			for c, rate := range s.Rates {
				if rate != NoRate {
					set.rates[RateKey{r.Provider, r.Model, r.Region, s.Service, s.Above, tokens.Class(c)}] = rate
				}
			}
		}
	}
	return set
}

// rowText is a row's line in the book, which says everything about it.
func rowText(r *Row) string { return string(appendRow(nil, r)) }

func rowSet(rows []Row) map[string]bool {
	set := make(map[string]bool, len(rows))
	for i := range rows {
		set[rowText(&rows[i])] = true
	}
	return set
}

func rowsOnlyIn(these, others []Row) []Row {
	set := rowSet(others)
	var only []Row
	for i := range these {
		if !set[rowText(&these[i])] {
			only = append(only, these[i])
		}
	}
	return cloneRows(only)
}

func gpusOnlyIn(these, others []GPURow) []GPURow {
	set := make(map[string]bool, len(others))
	for i := range others {
		set[string(appendGPURow(nil, &others[i]))] = true
	}
	var only []GPURow
	for i := range these {
		if !set[string(appendGPURow(nil, &these[i]))] {
			only = append(only, these[i])
		}
	}
	return only
}

func aliasesOnlyIn(these, others []Alias) []Alias {
	var only []Alias
	for _, a := range these {
		if !slices.Contains(others, a) {
			only = append(only, a)
		}
	}
	return only
}

// Disagreement is one rate that sources state differently.
type Disagreement struct {
	RateKey
	// Rates are the sources' in the order in which they were given; NoRate where one does
	// not state it.
	Rates []Rate
}

// Spread is how far the highest rate is above the lowest, such as "+25.00%"; "" when the
// lowest is zero.
func (d Disagreement) Spread() string {
	low, high := NoRate, NoRate
	for _, r := range d.Rates {
		if r != NoRate && (low == NoRate || r < low) {
			low = r
		}
		high = max(high, r)
	}
	if low <= 0 {
		return ""
	}
	return percent(big.NewInt(int64(low)), big.NewInt(int64(high)))
}

// Disagreements returns the rates in force at a moment that two or more books state, and not
// alike, in canonical order, and the number of rates that two or more state at all. Which
// source is right is for a person to say.
func Disagreements(at time.Time, books ...*Book) (found []Disagreement, compared int) {
	all := map[RateKey][]Rate{}
	for i, b := range books {
		for key, rate := range b.ratesAt(at).rates {
			if all[key] == nil {
				all[key] = slices.Repeat([]Rate{NoRate}, len(books))
			}
			all[key][i] = rate
		}
	}
	for key, rates := range all {
		stated := slices.DeleteFunc(slices.Clone(rates), func(r Rate) bool { return r == NoRate })
		if len(stated) < 2 {
			continue
		}
		compared++
		if slices.Min(stated) != slices.Max(stated) {
			found = append(found, Disagreement{key, rates})
		}
	}
	slices.SortFunc(found, func(a, b Disagreement) int { return a.compare(b.RateKey) })
	return found, compared
}
