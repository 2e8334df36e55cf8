package pricing

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Revision describes a new price list on top of a book.
type Revision struct {
	// Header of the new book; its Version must differ from the old one.
	Header Header
	// ValidFrom is when the new prices begin, KnownFrom when we learned of them; whole
	// seconds, UTC.
	ValidFrom, KnownFrom time.Time
}

// Changes counts what a revision did.
type Changes struct {
	// Added models or regions, Changed prices, Unchanged ones, and rows of the old book that
	// the list lacks: those are kept, for a list that forgets a model does not make it free.
	Added, Changed, Unchanged, Missing int
}

// Revise returns the next version of the book: list's rows (their times are ignored) hold from
// ValidFrom on, as known from KnownFrom on. History stays: with a KnownAt before KnownFrom
// the new book answers exactly as the old one, and with a later one it does so for usage
// before ValidFrom. Row ids of unchanged prices stay as they are. Aliases are list's and,
// where those leave a name free, the old book's. Errors: ErrRow when the times contradict
// what the book already knows, else those of NewBook.
func (b *Book) Revise(list *Book, rev Revision) (*Book, Changes, error) {
	if rev.Header.Version == b.header.Version {
		return nil, Changes{}, fmt.Errorf("%w: a revision needs its own version", ErrFormat)
	}
	next := make(map[rowKey]*Row, len(list.rows))
	for i := range list.rows {
		next[list.rows[i].key()] = &list.rows[i]
	}
	var changes Changes
	var rows []Row
	for _, group := range groups(b.rows) {
		revised, err := reviseGroup(group, next[group[0].key()], rev, &changes)
		if err != nil {
			return nil, Changes{}, err
		}
		rows = append(rows, revised...)
		delete(next, group[0].key())
	}
	for _, r := range next {
		changes.Added++
		rows = append(rows, rev.begin(r))
	}
	gpus, err := reviseGPUs(b.gpus, list.gpus, rev, &changes)
	if err != nil {
		return nil, Changes{}, err
	}
	book, err := newBook(rev.Header, rows, mergeAliases(b, list, rows), gpus)
	return book, changes, err
}

func (r *Row) key() rowKey { return rowKey{r.Provider, r.Model, r.Region} }

// groups splits rows in canonical order by key.
func groups(rows []Row) [][]Row {
	var out [][]Row
	for start := 0; start < len(rows); {
		end := start + 1
		for end < len(rows) && sameKey(&rows[start], &rows[end]) {
			end++
		}
		out = append(out, rows[start:end])
		start = end
	}
	return out
}

// begin returns r as the price from the revision on.
func (rev *Revision) begin(r *Row) Row {
	fresh := *r
	fresh.ValidFrom, fresh.ValidTo = rev.ValidFrom, time.Time{}
	fresh.KnownFrom, fresh.KnownTo = rev.KnownFrom, time.Time{}
	return fresh
}

// reviseGroup returns the rows of one key after the revision; to is nil when the list lacks it.
func reviseGroup(rows []Row, to *Row, rev Revision, changes *Changes) ([]Row, error) {
	if to == nil {
		changes.Missing++
		return rows, nil
	}
	if holds(rows, to, rev.ValidFrom) {
		changes.Unchanged++
		return rows, nil
	}
	changes.Changed++
	closed, err := endRows(rows, rev, (*Row).times)
	return append(closed, rev.begin(to)), err
}

// times point at when a row holds and when that was known. what names the row in errors.
type times struct {
	validFrom, validTo, knownFrom, knownTo *time.Time
	what                                   string
}

func (r *Row) times() times {
	return times{&r.ValidFrom, &r.ValidTo, &r.KnownFrom, &r.KnownTo, fmt.Sprintf("%q/%q", r.Provider, r.Model)}
}

func (r *GPURow) times() times {
	return times{&r.ValidFrom, &r.ValidTo, &r.KnownFrom, &r.KnownTo, fmt.Sprintf("%q/%q", r.Provider, r.Instance)}
}

// endRows ends what the rows of one key say of the time from the revision on.
func endRows[R any](rows []R, rev Revision, of func(*R) times) (out []R, err error) {
	for _, r := range rows {
		t := of(&r)
		known := t.knownTo.IsZero()
		if !known && t.knownTo.After(rev.KnownFrom) {
			return nil, fmt.Errorf("%w: %s: the book knows of a later revision", ErrRow, t.what)
		}
		if !known || !t.validTo.IsZero() && !t.validTo.After(rev.ValidFrom) {
			out = append(out, r)
			continue
		}
		if !t.knownFrom.Before(rev.KnownFrom) {
			return nil, fmt.Errorf("%w: %s: known from %s, revised as of %s", ErrRow, t.what,
				t.knownFrom.Format(time.DateOnly), rev.KnownFrom.Format(time.DateOnly))
		}
		if t.validFrom.Before(rev.ValidFrom) { // what we still believe of the time before
			past := r
			p := of(&past)
			*p.validTo, *p.knownFrom = rev.ValidFrom, rev.KnownFrom
			out = append(out, past)
		}
		*t.knownTo = rev.KnownFrom
		out = append(out, r)
	}
	return out, nil
}

// holds reports that one row, as known now, already says the same from the time on, for ever.
func holds(rows []Row, to *Row, from time.Time) bool {
	return slices.ContainsFunc(rows, func(r Row) bool {
		return r.KnownTo.IsZero() && r.ValidTo.IsZero() && !r.ValidFrom.After(from) && slices.Equal(r.Sheets, to.Sheets)
	})
}

// mergeAliases keeps the list's aliases and those old ones that still fit.
func mergeAliases(old, list *Book, rows []Row) []Alias {
	taken := map[rowKey]bool{} // region "" throughout; model "" for providers
	for i := range rows {
		taken[rowKey{rows[i].Provider, rows[i].Model, ""}] = true
		taken[rowKey{rows[i].Provider, "", ""}] = true
	}
	var aliases []Alias
	for _, a := range slices.Concat(list.aliases, old.aliases) {
		name := rowKey{a.Provider, a.Name, ""}
		if a.Model == "" {
			name = rowKey{a.Name, "", ""}
		}
		if !taken[name] {
			taken[name] = true
			aliases = append(aliases, a)
		}
	}
	slices.SortFunc(aliases, func(a, b Alias) int { return strings.Compare(a.Name, b.Name) })
	return aliases
}

// reviseGPUs is reviseGroup for the prices of GPU instances. A list without any leaves them as
// they are and counts none as missing: it is a list of models.
func reviseGPUs(old, list []GPURow, rev Revision, changes *Changes) ([]GPURow, error) {
	if len(list) == 0 {
		return old, nil
	}
	begin := func(r GPURow) GPURow {
		r.ValidFrom, r.ValidTo, r.KnownFrom, r.KnownTo = rev.ValidFrom, time.Time{}, rev.KnownFrom, time.Time{}
		return r
	}
	var out []GPURow
	taken := 0 // rows of old that are done
	for i := range list {
		to := &list[i]
		for taken < len(old) && old[taken].Key().compare(to.Key()) < 0 {
			out, taken = append(out, old[taken]), taken+1
			changes.Missing++
		}
		end := taken
		for end < len(old) && sameGPU(&old[end], to) {
			end++
		}
		group := old[taken:end]
		taken = end
		same := func(r GPURow) bool {
			return r.KnownTo.IsZero() && r.ValidTo.IsZero() && !r.ValidFrom.After(rev.ValidFrom) && r.PerHour == to.PerHour && r.Devices == to.Devices
		}
		switch {
		case len(group) == 0:
			changes.Added++
			out = append(out, begin(*to))
		case slices.ContainsFunc(group, same):
			changes.Unchanged++
			out = append(out, group...)
		default:
			changes.Changed++
			closed, err := endRows(group, rev, (*GPURow).times)
			if err != nil {
				return nil, err
			}
			out = append(append(out, closed...), begin(*to))
		}
	}
	changes.Missing += len(old) - taken
	return append(out, old[taken:]...), nil
}
