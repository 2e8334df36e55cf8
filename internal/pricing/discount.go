package pricing

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Discount is a negotiated price: a percentage off the list price, or fixed rates.
type Discount struct {
	// Provider is a provider's own name, Model "" means each of its models. Both hold in
	// every region.
	Provider, Model string
	// ValidFrom and ValidTo (exclusive; zero is open) bound the usage times.
	ValidFrom, ValidTo time.Time
	// Off is the percentage off every rate, a decimal above 0 and up to 100 such as "12.5";
	// "" for fixed rates.
	Off string
	// Fixed are rates in the place of those of the sheet of Service above Above; classes with
	// NoRate keep theirs, and derived rates follow the class that they come from. Other
	// sheets keep their rates: a contract that names no long-context price has none.
	Fixed   Rates
	Service Service
	Above   int64
}

// Discounted returns the book with negotiated prices, known from a time on. Rows are split
// where a discount begins and ends; what was known before stays in the book. Each price is
// exact: a percentage that does not give whole 1e-18 USD is ErrRate. Two discounts on one
// price at one time, and one on nothing, are ErrDiscount. Prices of GPU instances stay: a
// negotiated one is a row of its own.
func (b *Book) Discounted(h Header, known time.Time, discounts []Discount) (*Book, error) {
	if h.Version == b.header.Version {
		return nil, fmt.Errorf("%w: a book with discounts needs its own version", ErrFormat)
	}
	used := make([]bool, len(discounts))
	var rows []Row
	for i := range b.rows {
		r := &b.rows[i]
		if !r.KnownTo.IsZero() {
			rows = append(rows, *r)
			continue
		}
		parts, err := r.discounted(known, discounts, used)
		if err != nil {
			return nil, err
		}
		rows = append(rows, parts...)
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("%w: no price of %q/%q at its time", ErrDiscount, discounts[i].Provider, discounts[i].Model)
	}
	return newBook(h, rows, b.aliases, b.gpus)
}

// discounted splits a row that is known now by the discounts on it.
func (r *Row) discounted(known time.Time, discounts []Discount, used []bool) ([]Row, error) {
	var mine []Discount
	for i, d := range discounts {
		if d.Provider == r.Provider && (d.Model == "" || d.Model == r.Model) && spansMeet(d.ValidFrom, d.ValidTo, r.ValidFrom, r.ValidTo) {
			mine = append(mine, d)
			used[i] = true
		}
	}
	if len(mine) == 0 {
		return []Row{*r}, nil
	}
	slices.SortStableFunc(mine, func(a, b Discount) int { return a.ValidFrom.Compare(b.ValidFrom) })
	for i := 1; i < len(mine); i++ {
		if spansMeet(mine[i].ValidFrom, mine[i].ValidTo, mine[i-1].ValidFrom, mine[i-1].ValidTo) {
			return nil, fmt.Errorf("%w: two for %q/%q from %s", ErrDiscount, r.Provider, r.Model, mine[i].ValidFrom.Format(time.DateOnly))
		}
	}
	if r.KnownFrom.After(known) {
		return nil, fmt.Errorf("%w: %q/%q is known only from %s", ErrDiscount, r.Provider, r.Model, r.KnownFrom.Format(time.DateOnly))
	}
	return r.split(known, mine)
}

// split gives each discount, in order of time, its part of the row.
func (r *Row) split(known time.Time, mine []Discount) ([]Row, error) {
	var rows []Row
	if r.KnownFrom.Before(known) {
		past := *r
		past.KnownTo = known
		rows = append(rows, past)
	}
	rest := *r
	rest.KnownFrom = known
	for i := range mine {
		d := &mine[i]
		if d.ValidFrom.After(rest.ValidFrom) {
			before := rest
			before.ValidTo, rest.ValidFrom = d.ValidFrom, d.ValidFrom
			rows = append(rows, before)
		}
		own, err := d.apply(rest)
		if err != nil {
			return nil, err
		}
		ends := !d.ValidTo.IsZero() && (r.ValidTo.IsZero() || d.ValidTo.Before(r.ValidTo))
		if !ends {
			return append(rows, own), nil
		}
		own.ValidTo, rest.ValidFrom = d.ValidTo, d.ValidTo
		rows = append(rows, own)
	}
	return append(rows, rest), nil
}

// apply returns the row at the negotiated price.
func (d *Discount) apply(r Row) (Row, error) {
	r.Sheets = slices.Clone(r.Sheets)
	if d.Off == "" {
		return d.fix(r)
	}
	mantissa, exponent, err := remaining(d.Off)
	if err != nil {
		return r, err
	}
	for i := range r.Sheets {
		for c, rate := range r.Sheets[i].Rates {
			if rate == NoRate {
				continue
			}
			if r.Sheets[i].Rates[c], err = rate.times(mantissa, exponent); err != nil {
				return r, fmt.Errorf("%w: %s%% off %q/%q", ErrRate, d.Off, r.Provider, r.Model)
			}
		}
	}
	return r, nil
}

// fix puts the fixed rates into their sheet.
func (d *Discount) fix(r Row) (Row, error) {
	at := slices.IndexFunc(r.Sheets, func(s Sheet) bool { return s.Service == d.Service && s.Above == d.Above })
	if at < 0 || d.Fixed == NoRates() {
		return r, fmt.Errorf("%w: %q/%q has no %s price above %d tokens to replace, or no rate is given", ErrDiscount, r.Provider, r.Model, d.Service, d.Above)
	}
	s := &r.Sheets[at]
	for _, from := range derivations {
		if s.Derived[from.class] && d.Fixed[from.from] != NoRate {
			s.Rates[from.class] = d.Fixed[from.from]
		}
	}
	for c, rate := range d.Fixed {
		if rate != NoRate {
			s.Rates[c], s.Derived[c] = rate, false
		}
	}
	return r, nil
}

// remaining is (100 − off) / 100 as mantissa × 10^exponent.
func remaining(off string) (uint64, int, error) {
	const most = 9 // decimals of a percentage
	v, exponent, err := parseDecimal(off)
	hundred := uint64(100)
	for e := 0; err == nil && e > exponent && e > -most; e-- {
		hundred *= 10
	}
	scaled, ok := scaleUp(v, max(exponent, 0))
	if err != nil || !ok || exponent < -most || scaled == 0 || uint64(scaled) > hundred {
		return 0, 0, fmt.Errorf("%w: %.40q is not a percentage above 0 and up to 100", ErrDiscount, off)
	}
	return hundred - uint64(scaled), min(exponent, 0) - 2, nil
}

// discountColumns are the columns of a list of discounts beside those of rates.
var discountColumns = []string{"provider", "model", "valid_from", "valid_to", "percent_off", "service", "above"}

// ReadDiscounts reads negotiated prices from CSV: provider, valid_from and percent_off or
// CLASS_per_mtok or CLASS_per_token columns, and any of model, valid_to, service and above.
// Errors: ErrDiscount with the line.
func ReadDiscounts(r io.Reader) ([]Discount, error) {
	data, err := readSmall(r)
	if err != nil {
		return nil, err
	}
	lines := csv.NewReader(bytes.NewReader(data))
	lines.TrimLeadingSpace = true
	header, err := lines.Read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDiscount, err)
	}
	for i, name := range header {
		if _, _, ok := rateName(name); slices.Contains(header[:i], name) || (!ok && !slices.Contains(discountColumns, name)) {
			return nil, fmt.Errorf("%w: unknown or second column %.40q", ErrDiscount, name)
		}
	}
	var discounts []Discount
	for {
		cells, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return discounts, nil
		}
		var d Discount
		if err == nil {
			d, err = readDiscount(header, cells)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrDiscount, len(discounts)+1, err)
		}
		discounts = append(discounts, d)
	}
}

func readDiscount(header, cells []string) (Discount, error) {
	s := plainSheet{rates: NoRates()}
	off := ""
	for i, cell := range cells {
		cell = strings.TrimSpace(cell)
		if cell == "" {
			continue
		}
		var err error
		if class, exponent, ok := rateName(header[i]); ok {
			err = s.rate(class, cell, exponent)
		} else if header[i] == "percent_off" {
			off = cell
			_, _, err = remaining(cell)
		} else {
			err = s.set(header[i], cell)
		}
		if err != nil {
			return Discount{}, err
		}
	}
	switch {
	case s.row.Provider == "" || !validSpan(s.row.ValidFrom, s.row.ValidTo):
		return Discount{}, errors.New("it needs a provider, and a valid_from before its valid_to")
	case (off == "") == (s.rates == NoRates()):
		return Discount{}, errors.New("it needs either percent_off or rates")
	}
	return Discount{
		Provider: s.row.Provider, Model: s.row.Model, ValidFrom: s.row.ValidFrom, ValidTo: s.row.ValidTo,
		Off: off, Fixed: s.rates, Service: s.service, Above: s.above,
	}, nil
}
