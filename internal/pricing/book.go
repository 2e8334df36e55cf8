package pricing

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Limits of a book. They bound what a hostile control record can cost.
const (
	// MaxBookBytes is the longest serialisation that ParseBook reads.
	MaxBookBytes = 16 << 20
	// MaxName is the longest provider, model, region or alias name in bytes.
	MaxName = 256
	// MaxText is the longest source or note in bytes.
	MaxText = 1024
	// maxSheets bounds the service × context tiers of one row.
	maxSheets = 64
)

// Header describes a book as a whole.
type Header struct {
	// Version names the book; a new version is a new name.
	Version string
	// Source says where the prices come from, SourceDate (YYYY-MM-DD) as of when.
	Source, SourceDate string
	// Notes tells readers what they should know, for example about the valid times.
	Notes string
}

// Row is the price of one model, in one region or everywhere, over one span of time.
type Row struct {
	// Provider and Model are lower case; Region is "" for every region without its own row.
	Provider, Model, Region string
	// ValidFrom and ValidTo (exclusive; zero is open) bound the usage times it prices.
	ValidFrom, ValidTo time.Time
	// KnownFrom and KnownTo (exclusive; zero is open) bound the knowledge times: a row that a
	// later one corrected keeps its valid time and gets a KnownTo.
	KnownFrom, KnownTo time.Time
	// Source is the provider's own page, where known.
	Source string
	// Sheets are the rates per service tier and context tier.
	Sheets []Sheet
}

// Sheet is the rates of one service tier for calls with more than Above context tokens, up
// to the next threshold of the row. A sheet may be empty: it says that the source has no
// believable price there, and keeps a lower tier's or another region's from being used.
type Sheet struct {
	Service Service
	Above   int64
	Rates   Rates
	// Derived marks rates that the source did not state; see Derive.
	Derived [tokens.NumClasses]bool
}

// Rates is a rate per token class; NoRate where there is none.
type Rates [tokens.NumClasses]Rate

// NoRates returns Rates without any rate.
func NoRates() Rates {
	var r Rates
	for c := range r {
		r[c] = NoRate
	}
	return r
}

// Alias is another name: of a provider when Model is "", else of a model of the provider.
type Alias struct {
	Name, Provider, Model string
}

// Book is one published, immutable version of prices. Make one with NewBook, ParseBook, an
// importer or Builtin; the zero Book prices nothing.
type Book struct {
	header  Header
	rows    []Row
	aliases []Alias
	gpus    []GPURow
	bytes   []byte
	hash    [sha256.Size]byte
	index   index
}

// NewBook checks and orders rows and aliases and returns the book of them. It keeps no
// reference to its arguments' slices. Errors: ErrRow, ErrOverlap, or ErrFormat for a header
// or a size that cannot be written.
func NewBook(h Header, rows []Row, aliases []Alias) (*Book, error) {
	return newBook(h, rows, aliases, nil)
}

func newBook(h Header, rows []Row, aliases []Alias, gpus []GPURow) (*Book, error) {
	b := &Book{header: h, rows: cloneRows(rows), aliases: slices.Clone(aliases), gpus: slices.Clone(gpus)}
	if err := checkHeader(h); err != nil {
		return nil, err
	}
	for i := range b.rows {
		if err := b.rows[i].check(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(b.rows, compareRows)
	slices.SortFunc(b.aliases, compareAliases)
	if err := checkOverlaps(b.rows); err != nil {
		return nil, err
	}
	if err := b.buildIndex(); err != nil {
		return nil, err
	}
	if err := b.buildGPUs(); err != nil {
		return nil, err
	}
	b.bytes = b.encode()
	if len(b.bytes) > MaxBookBytes {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrFormat, MaxBookBytes)
	}
	b.hash = sha256.Sum256(b.bytes)
	return b, nil
}

// Version is the book's name.
func (b *Book) Version() string { return b.header.Version }

// Header returns the book's description.
func (b *Book) Header() Header { return b.header }

// Hash is the SHA-256 of Marshal; entries name the book by it.
func (b *Book) Hash() [sha256.Size]byte { return b.hash }

// Rows returns a copy of the rows in canonical order.
func (b *Book) Rows() []Row { return cloneRows(b.rows) }

// Aliases returns a copy of the aliases in canonical order.
func (b *Book) Aliases() []Alias { return slices.Clone(b.aliases) }

// Len is the number of rows.
func (b *Book) Len() int { return len(b.rows) }

func cloneRows(rows []Row) []Row {
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i].Sheets = slices.Clone(rows[i].Sheets)
	}
	return rows
}

// check tests one row and puts its sheets in order.
func (r *Row) check() error {
	fail := func(rule string) error { return fmt.Errorf("%w: %q/%q: %s", ErrRow, r.Provider, r.Model, rule) }
	switch {
	case !validProvider(r.Provider):
		return fail("provider is not a name")
	case !validName(r.Model):
		return fail("model is not a name")
	case r.Region != "" && !validName(r.Region):
		return fail("region is not a name")
	case !validText(r.Source):
		return fail("source is not plain text")
	case !validSpan(r.ValidFrom, r.ValidTo):
		return fail("valid time is empty or not in whole seconds of 1970–2261")
	case !validSpan(r.KnownFrom, r.KnownTo):
		return fail("known time is empty or not in whole seconds of 1970–2261")
	case len(r.Sheets) == 0 || len(r.Sheets) > maxSheets:
		return fail("it needs between 1 and 64 sheets")
	}
	slices.SortFunc(r.Sheets, compareSheets)
	for i := range r.Sheets {
		if i > 0 && compareSheets(r.Sheets[i-1], r.Sheets[i]) == 0 {
			return fail("two sheets for one tier")
		}
		if rule := r.Sheets[i].check(); rule != "" {
			return fail(rule)
		}
	}
	return nil
}

// check returns the rule that the sheet breaks, or "".
func (s *Sheet) check() string {
	if s.Service >= numServices || s.Above < 0 {
		return "unknown service tier or negative threshold"
	}
	for c, rate := range s.Rates {
		if rate < NoRate {
			return "negative rate"
		}
		if rate == NoRate && s.Derived[c] {
			return "a derived rate is missing"
		}
	}
	return ""
}

// maxTime keeps every time of a row inside int64 nanoseconds.
var maxTime = time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)

func validSpan(from, to time.Time) bool {
	return validTime(from) && (to.IsZero() || (validTime(to) && to.After(from)))
}

func validTime(t time.Time) bool {
	return t.Nanosecond() == 0 && t.Unix() >= 0 && t.Before(maxTime)
}

// validName accepts 1 to MaxName printable ASCII characters without blanks, capitals and
// the two characters that JSON would escape, so a name has one spelling everywhere.
func validName(s string) bool {
	if len(s) == 0 || len(s) > MaxName {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' || (c >= 'A' && c <= 'Z') {
			return false
		}
	}
	return true
}

// validProvider is validName for providers, which are short and have no slash.
func validProvider(s string) bool {
	return validName(s) && len(s) <= maxProvider && !strings.Contains(s, "/")
}

// validText accepts printable ASCII that JSON writes as it is.
func validText(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return len(s) <= MaxText
}

func checkHeader(h Header) error {
	switch {
	case !validName(h.Version):
		return fmt.Errorf("%w: version is not a name", ErrFormat)
	case !validText(h.Source) || !validText(h.Notes):
		return fmt.Errorf("%w: source or notes are not plain text", ErrFormat)
	}
	if _, err := time.Parse(time.DateOnly, h.SourceDate); err != nil && h.SourceDate != "" {
		return fmt.Errorf("%w: source date is not YYYY-MM-DD", ErrFormat)
	}
	return nil
}

func compareRows(a, b Row) int {
	return cmp.Or(
		strings.Compare(a.Provider, b.Provider), strings.Compare(a.Model, b.Model),
		strings.Compare(a.Region, b.Region), a.ValidFrom.Compare(b.ValidFrom), a.KnownFrom.Compare(b.KnownFrom),
	)
}

func compareSheets(a, b Sheet) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Above, b.Above))
}

func compareAliases(a, b Alias) int {
	return cmp.Or(
		strings.Compare(a.Provider, b.Provider), strings.Compare(a.Name, b.Name), strings.Compare(a.Model, b.Model),
	)
}

// checkOverlaps refuses two rows of one provider, model and region that share a moment in
// both times: such a book would need a rule that nobody wrote down.
func checkOverlaps(sorted []Row) error {
	for start := 0; start < len(sorted); {
		end := start + 1
		for end < len(sorted) && sameKey(&sorted[start], &sorted[end]) {
			end++
		}
		if err := checkGroup(sorted[start:end]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

func sameKey(a, b *Row) bool {
	return a.Provider == b.Provider && a.Model == b.Model && a.Region == b.Region
}

// maxVersions bounds the rows of one key, whose pairs are compared.
const maxVersions = 256

func checkGroup(rows []Row) error {
	if len(rows) > maxVersions {
		return fmt.Errorf("%w: %q/%q: more than %d rows", ErrRow, rows[0].Provider, rows[0].Model, maxVersions)
	}
	for i := range rows {
		for j := range i {
			a, b := &rows[i], &rows[j]
			if spansMeet(a.ValidFrom, a.ValidTo, b.ValidFrom, b.ValidTo) &&
				spansMeet(a.KnownFrom, a.KnownTo, b.KnownFrom, b.KnownTo) {
				return fmt.Errorf("%w: %q/%q from %s and %s", ErrOverlap, a.Provider, a.Model,
					a.ValidFrom.Format(time.DateOnly), b.ValidFrom.Format(time.DateOnly))
			}
		}
	}
	return nil
}

func spansMeet(from, to, otherFrom, otherTo time.Time) bool {
	return (to.IsZero() || to.After(otherFrom)) && (otherTo.IsZero() || otherTo.After(from))
}

// errAlias is wrapped into ErrRow by buildIndex.
var errAlias = errors.New("alias")
