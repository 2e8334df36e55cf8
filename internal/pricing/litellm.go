package pricing

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// ImportOptions says how an imported price list becomes a book.
type ImportOptions struct {
	// AsOf is the day of the list; required.
	AsOf time.Time
	// ValidFrom and KnownFrom are those of every row; AsOf when zero.
	ValidFrom, KnownFrom time.Time
	// Version names the book; "litellm-" and the day of AsOf when empty.
	Version string
	// Source and Notes go into the book's header.
	Source, Notes string
	// Free lists providers whose zero rates are believed, such as one's own inference
	// servers. Everywhere else a zero in the list is read as "not stated".
	Free []string
}

// Report says what an import took and what it left.
type Report struct {
	// Entries is the number of models in the list, Priced of those with a row in the book.
	Entries, Priced int
	// Rows is the number of rows, which counts regional rows of one entry separately, and
	// Merged that of entries that repeat another one's prices exactly.
	Rows, Merged int
	// Used counts fields whose rates are in the book.
	Used map[string]int
	// Ignored counts known price fields that are no price per token class (images, seconds,
	// searches …) or have no class here.
	Ignored map[string]int
	// Unknown counts price fields that the importer has never heard of. They are not
	// guessed at: a release of the list that has some needs a look.
	Unknown map[string]int
	// Zeros counts zero rates that were not believed.
	Zeros map[string]int
	// Metadata counts fields that are not about prices.
	Metadata map[string]int
	// Refused lists the entries without a row, in the order of the list.
	Refused []Refusal
}

// Refusal is one entry that was not imported, and why.
type Refusal struct{ Model, Reason string }

// The reasons for refusing an entry.
const (
	RefusedNoTokenRates = "no rate per token"
	RefusedAllZero      = "every rate per token is zero"
	RefusedInexact      = "a rate is not a whole number of 1e-18 USD"
	RefusedBadField     = "a price field is not a number"
	RefusedName         = "provider, model or region is not a plain name"
	RefusedNoProvider   = "no provider"
	RefusedConflict     = "another entry names other prices for the same model"
	RefusedTwoRates     = "two fields name different rates for one class"
	RefusedDuplicate    = "the name occurs twice in the list"
	RefusedTooManyTiers = "more tiers than a row can hold"
)

// maxListBytes bounds a price list after decompression.
const maxListBytes = 64 << 20

// ImportLiteLLM reads a price list in the form of LiteLLM's
// model_prices_and_context_window.json, plain or compressed with zstd. Rates are taken from
// the digits of the JSON literals, exactly. Errors: ErrImport for what is not such a list;
// an entry that cannot be taken is refused in the report and stops nothing.
func ImportLiteLLM(r io.Reader, o ImportOptions) (*Book, Report, error) {
	if o.AsOf.IsZero() {
		return nil, Report{}, fmt.Errorf("%w: no date", ErrImport)
	}
	plain, err := readPlain(r)
	if err != nil {
		return nil, Report{}, err
	}
	im := newLiteLLM(o)
	if err := im.read(bytes.NewReader(plain)); err != nil {
		return nil, Report{}, err
	}
	book, err := im.book()
	if err != nil {
		return nil, Report{}, err
	}
	return book, im.report, nil
}

// readPlain reads all of r, undoing zstd, which it recognises by its magic number. It reads
// into memory before anything is parsed, because json.Decoder scans a long run of blanks
// anew with every short read: a small hostile file would keep it busy for half a minute.
func readPlain(r io.Reader) ([]byte, error) {
	buffered := bufio.NewReader(r)
	var plain io.Reader = buffered
	magic, _ := buffered.Peek(4) // a shorter list fails as JSON
	if bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		d, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxListBytes))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrImport, err)
		}
		defer d.Close()
		plain = d
	}
	data, err := io.ReadAll(io.LimitReader(plain, maxListBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrImport, err)
	case len(data) > maxListBytes:
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrImport, maxListBytes)
	}
	return data, nil
}

// liteLLM collects rows while the list is read.
type liteLLM struct {
	options ImportOptions
	report  Report
	seen    map[string]bool
	byKey   map[rowKey]*imported
	order   []rowKey
}

type rowKey struct{ provider, model, region string }

// imported is a row and the entry that it came from.
type imported struct {
	row      Row
	entry    string
	prefixed bool // the entry's name spells the provider out
}

func newLiteLLM(o ImportOptions) *liteLLM {
	o.AsOf = o.AsOf.UTC().Truncate(time.Second)
	if o.ValidFrom.IsZero() {
		o.ValidFrom = o.AsOf
	}
	if o.KnownFrom.IsZero() {
		o.KnownFrom = o.AsOf
	}
	if o.Version == "" {
		o.Version = "litellm-" + o.AsOf.Format(time.DateOnly)
	}
	return &liteLLM{
		options: o,
		report: Report{
			Used: map[string]int{}, Ignored: map[string]int{}, Unknown: map[string]int{},
			Zeros: map[string]int{}, Metadata: map[string]int{},
		},
		seen:  map[string]bool{},
		byKey: map[rowKey]*imported{},
	}
}

// read walks the one object that the list is, an entry at a time.
func (im *liteLLM) read(r io.Reader) error {
	d := json.NewDecoder(r)
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%w: not a JSON object", ErrImport)
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrImport, err)
		}
		name, _ := t.(string) // inside an object a key is a string
		var fields map[string]json.RawMessage
		if err := d.Decode(&fields); err != nil {
			return fmt.Errorf("%w: entry %.80q: %w", ErrImport, name, err)
		}
		if name != "sample_spec" { // the list's own documentation
			im.entry(name, fields)
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrImport, err)
	}
	return nil
}

func (im *liteLLM) refuse(entry, reason string) {
	im.report.Refused = append(im.report.Refused, Refusal{entry, reason})
}

// entry takes one model of the list.
func (im *liteLLM) entry(name string, fields map[string]json.RawMessage) {
	im.report.Entries++
	if im.seen[name] {
		im.refuse(name, RefusedDuplicate)
		return
	}
	im.seen[name] = true
	key, prefixed, reason := entryKey(name, stringField(fields, "litellm_provider"))
	if reason != "" {
		im.refuse(name, reason)
		return
	}
	rates := newEntryRates(slices.Contains(im.options.Free, key.provider), stringField(fields, "mode"))
	rates.read(fields)
	im.countLeft(rates)
	row := Row{
		Provider: key.provider, Model: key.model, Region: key.region,
		ValidFrom: im.options.ValidFrom, KnownFrom: im.options.KnownFrom,
		Source: plainText(stringField(fields, "source")), Sheets: rates.sheets(),
	}
	if reason := rates.refusal(row.Sheets); reason != "" {
		im.refuse(name, reason)
		return
	}
	row.Derive(Hints{Vision: boolField(fields, "supports_vision"), AudioInput: boolField(fields, "supports_audio_input")})
	if im.keep(imported{row, name, prefixed}) {
		im.report.Priced++
		count(im.report.Used, rates.used)
		im.uplift(&row, name, rates.uplifts)
	}
}

// countLeft adds to the report what an entry, kept or not, says beside the rates in use.
func (im *liteLLM) countLeft(e *entryRates) {
	count(im.report.Ignored, e.ignored)
	count(im.report.Unknown, e.unknown)
	count(im.report.Zeros, e.zeros)
	count(im.report.Metadata, e.metadata)
}

func count(into map[string]int, fields []string) {
	for _, f := range fields {
		into[f]++
	}
}

// keep adds a row unless its key is taken. Of two entries with different prices the one
// that spells the provider out wins ("deepseek/deepseek-chat" over "deepseek-chat"), else
// the first; the other is refused. It reports whether the entry has a row now.
func (im *liteLLM) keep(n imported) bool {
	key := rowKey{n.row.Provider, n.row.Model, n.row.Region}
	old := im.byKey[key]
	switch {
	case old == nil:
		im.byKey[key] = &n
		im.order = append(im.order, key)
		return true
	case slices.Equal(old.row.Sheets, n.row.Sheets):
		im.report.Merged++
		old.prefixed = old.prefixed || n.prefixed
		return true
	case n.prefixed && !old.prefixed:
		im.refuse(old.entry, RefusedConflict)
		im.report.Priced--
		*old = n
		return true
	}
	im.refuse(n.entry, RefusedConflict)
	return false
}

// uplift adds regional rows whose rates are the row's times a stated multiplier. Where a
// product is not exact the regional row is empty instead: calls there are then unpriced
// rather than undercharged by the row without region.
func (im *liteLLM) uplift(row *Row, entry string, uplifts []uplift) {
	for _, u := range uplifts {
		regional := *row
		regional.Region = u.region
		var exact bool
		if regional.Sheets, exact = u.raise(row.Sheets); !exact {
			im.refuse(entry+" ["+u.region+"]", RefusedInexact)
			regional.Sheets = []Sheet{{Rates: NoRates()}}
		}
		im.keep(imported{row: regional, entry: entry + " [" + u.region + "]"})
	}
}

// book makes the book of what was kept.
func (im *liteLLM) book() (*Book, error) {
	rows := make([]Row, 0, len(im.order))
	providers := map[string]bool{}
	for _, key := range im.order {
		rows = append(rows, im.byKey[key].row)
		providers[key.provider] = true
	}
	im.report.Rows = len(rows)
	return NewBook(Header{
		Version:    im.options.Version,
		Source:     im.options.Source,
		SourceDate: im.options.AsOf.Format(time.DateOnly),
		Notes:      im.options.Notes,
	}, rows, providerAliases(providers))
}

func stringField(fields map[string]json.RawMessage, name string) string {
	var s string
	if json.Unmarshal(fields[name], &s) != nil {
		return ""
	}
	return s
}

func boolField(fields map[string]json.RawMessage, name string) bool {
	return string(fields[name]) == "true"
}

// plainText drops a source that the book's form cannot hold; it is only a courtesy.
func plainText(s string) string {
	if s = strings.TrimSpace(s); validText(s) {
		return s
	}
	return ""
}
