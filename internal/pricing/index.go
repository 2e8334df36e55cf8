package pricing

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// index is what Price looks things up in. It is built once and never written again.
type index struct {
	models    map[modelKey]*model
	providers map[string]string // every provider name and alias → canonical provider
	// Prices of GPU instances, and which there are at all.
	gpus         map[gpuKey][]*GPURow
	gpuInstances map[[2]string]bool
}

type modelKey struct{ provider, model string }

// model is the rows of one provider and model, in canonical order.
type model struct{ rows []compiledRow }

// compiledRow is a Row as Price reads it: times in Unix nanoseconds, open ends as maxInt64.
type compiledRow struct {
	validFrom, validTo, knownFrom, knownTo int64
	region                                 string
	above                                  []int64 // all thresholds of the row, ascending
	sheets                                 [numServices][]*sheet
}

// sheet is a Sheet with its id; sheets[service][i] holds for above[i], nil where absent.
type sheet struct {
	id    RowID
	rates Rates
}

func (b *Book) buildIndex() error {
	b.index = index{models: make(map[modelKey]*model), providers: make(map[string]string)}
	ids := make(map[RowID]bool, len(b.rows))
	for i := range b.rows {
		r := &b.rows[i]
		key := modelKey{r.Provider, r.Model}
		m := b.index.models[key]
		if m == nil {
			m = &model{}
			b.index.models[key] = m
		}
		row := compile(r)
		if err := claimIDs(ids, &row); err != nil {
			return err
		}
		m.rows = append(m.rows, row)
		b.index.providers[r.Provider] = r.Provider
	}
	return b.index.addAliases(b.aliases)
}

// claimIDs refuses a second sheet with a taken id, which odd names could bring about.
func claimIDs(taken map[RowID]bool, row *compiledRow) error {
	for _, sheets := range row.sheets {
		for _, s := range sheets {
			if s == nil {
				continue
			}
			if taken[s.id] {
				return fmt.Errorf("%w: the id %q is taken twice", ErrRow, s.id)
			}
			taken[s.id] = true
		}
	}
	return nil
}

// addAliases adds provider aliases first, because model aliases may not hide one. An
// alias must lead to something and may not take a name that is in use.
func (x *index) addAliases(aliases []Alias) error {
	for _, a := range aliases {
		if a.Model != "" {
			continue
		}
		_, taken := x.providers[a.Name]
		if !validProvider(a.Name) || taken || x.providers[a.Provider] != a.Provider {
			return fmt.Errorf("%w: %w %q of provider %q", ErrRow, errAlias, a.Name, a.Provider)
		}
		x.providers[a.Name] = a.Provider
	}
	added := make(map[modelKey]*model)
	for _, a := range aliases {
		if a.Model == "" {
			continue
		}
		key, target := modelKey{a.Provider, a.Name}, x.models[modelKey{a.Provider, a.Model}]
		if !validName(a.Name) || target == nil || x.models[key] != nil || added[key] != nil {
			return fmt.Errorf("%w: %w %q of model %q/%q", ErrRow, errAlias, a.Name, a.Provider, a.Model)
		}
		added[key] = target
	}
	for key, target := range added {
		x.models[key] = target
	}
	return nil
}

func compile(r *Row) compiledRow {
	row := compiledRow{
		validFrom: r.ValidFrom.UnixNano(), validTo: endNano(r.ValidTo),
		knownFrom: r.KnownFrom.UnixNano(), knownTo: endNano(r.KnownTo),
		region: r.Region,
	}
	for i := range r.Sheets {
		row.above = append(row.above, r.Sheets[i].Above)
	}
	slices.Sort(row.above)
	row.above = slices.Compact(row.above)
	for i := range r.Sheets {
		s := &r.Sheets[i]
		if row.sheets[s.Service] == nil {
			row.sheets[s.Service] = make([]*sheet, len(row.above))
		}
		at, _ := slices.BinarySearch(row.above, s.Above)
		row.sheets[s.Service][at] = &sheet{id: sheetID(r, s), rates: s.Rates}
	}
	return row
}

func endNano(t time.Time) int64 {
	if t.IsZero() {
		return maxInt64
	}
	return t.UnixNano()
}

// sheetID writes the RowID of one sheet.
func sheetID(r *Row, s *Sheet) RowID {
	id := rowPrefix(r) + "/" + s.Service.String()
	if s.Above > 0 {
		id += fmt.Sprintf(">%d", s.Above)
	}
	return RowID(id)
}

// rowPrefix is what the ids of a row's sheets begin with.
func rowPrefix(r *Row) string {
	var id strings.Builder
	id.WriteString(r.Provider + "/" + r.Model)
	if r.Region != "" {
		id.WriteString("[" + r.Region + "]")
	}
	id.WriteString("@" + shortTime(r.ValidFrom))
	if !r.KnownFrom.Equal(r.ValidFrom) {
		id.WriteString("~" + shortTime(r.KnownFrom))
	}
	return id.String()
}

// shortTime is the date alone at midnight UTC, else the RFC 3339 time.
func shortTime(t time.Time) string {
	t = t.UTC()
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.RFC3339)
}

// find returns the row that prices u, or nil and the reason.
func (b *Book) find(u *Usage) (*compiledRow, ReasonCode) {
	m := b.index.lookup(u.Provider, u.Model)
	if m == nil {
		return nil, ReasonUnknownModel
	}
	knownAt := u.KnownAt
	if knownAt == Latest {
		knownAt = maxInt64 - 1
	}
	reason := ReasonRegion
	if u.Region != "" {
		if row := m.at(u.Region, u.At, knownAt, &reason); row != nil {
			return row, ReasonNone
		}
	}
	row := m.at("", u.At, knownAt, &reason)
	return row, reason
}

// at returns the row of exactly that region at the two times. It raises reason to the one
// that came closest: a row elsewhere in time beats none in the region.
func (m *model) at(region string, at, knownAt int64, reason *ReasonCode) *compiledRow {
	for i := range m.rows {
		r := &m.rows[i]
		switch {
		case !equalASCIIFold(r.region, region):
		case at < r.validFrom || at >= r.validTo:
			*reason = max(*reason, ReasonNotValid)
		case knownAt < r.knownFrom || knownAt >= r.knownTo:
			*reason = max(*reason, ReasonNotKnown)
		default:
			return r
		}
	}
	return nil
}

// sheet returns the rates of a service tier at a context length, or nil and the reason.
func (r *compiledRow) sheet(service Service, length int64) (*sheet, ReasonCode) {
	sheets := r.sheets[service]
	if sheets == nil {
		return nil, ReasonServiceTier
	}
	at := len(r.above) - 1
	for at > 0 && length <= r.above[at] {
		at--
	}
	// A row whose lowest threshold is above 0 says nothing of shorter calls.
	if sheets[at] == nil || (r.above[at] > 0 && length <= r.above[at]) {
		return nil, ReasonContextTier
	}
	return sheets[at], ReasonNone
}

// Sheet returns the row and the sheet that an id names; ok is false when the book has none.
func (b *Book) Sheet(id RowID) (row Row, sheet Sheet, ok bool) {
	for i := range b.rows {
		r := &b.rows[i]
		for j := range r.Sheets {
			if sheetID(r, &r.Sheets[j]) == id {
				row := *r
				row.Sheets = slices.Clone(r.Sheets)
				return row, row.Sheets[j], true
			}
		}
	}
	return Row{}, Sheet{}, false
}
