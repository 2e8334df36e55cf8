package pricing

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// bookFormat names the serialisation:
//
// UTF-8 lines, each one JSON object without blanks, each ended by "\n". No string contains a
// character that JSON escapes. Keys stand in the order shown and are left out where marked.
//
//	{"format":…,"version":…,"source":…,"source_date":…,"notes":…,"aliases":A,"rows":R}
//	A × {"alias":…,"provider":…,"model":…}            model left out for a provider alias;
//	                                                  ordered by provider, alias
//	R × {"provider":…,"model":…,"region":…,           region left out when ""
//	     "valid_from":…,"valid_to":…,                 RFC 3339, UTC, whole seconds;
//	     "known_from":…,"known_to":…,                 _to left out when open
//	     "source":…,                                  left out when ""
//	     "sheets":[{"service":…,"above":N,            service tier; context tokens, 0 = all
//	                "usd_e18":{class:"integer",…},    per token; classes in stored order
//	                "derived":[class,…]}]}            left out when empty
//	                                                  ordered by provider, model, region,
//	                                                  valid_from, known_from; sheets by
//	                                                  service (standard, batch, flex,
//	                                                  priority) and above
//
// Integers in usd_e18 are strings because some JSON readers keep only 53 bits.
const bookFormat = "tallystick.price-book/1"

// gpuBookFormat names the serialisation of a book with prices of GPU instances; one without
// has bookFormat, and its bytes are those of programs that knew no other. The header
// ends with "gpus":G, and after the rows come
//
//	G × {"provider":…,"instance":…,"region":…,        region left out when ""
//	     "purchase":…,"gpu":…,                        on_demand, spot, reserved; gpu left out when ""
//	     "valid_from":…,"valid_to":…,"known_from":…,"known_to":…,"source":…,   as above
//	     "devices":N,"usd_e12_per_hour":"integer"}    of the whole instance; ordered by provider,
//	                                                  instance, region, purchase, valid_from, known_from
const gpuBookFormat = "tallystick.price-book/2"

// Marshal returns a copy of the canonical serialisation.
func (b *Book) Marshal() []byte { return slices.Clone(b.bytes) }

func (b *Book) encode() []byte {
	h := b.header
	format := bookFormat
	if len(b.gpus) > 0 {
		format = gpuBookFormat
	}
	dst := appendString([]byte(`{"format":`), format)
	dst = appendField(dst, "version", h.Version)
	dst = appendField(dst, "source", h.Source)
	dst = appendField(dst, "source_date", h.SourceDate)
	dst = appendField(dst, "notes", h.Notes)
	dst = strconv.AppendInt(append(dst, `,"aliases":`...), int64(len(b.aliases)), 10)
	dst = strconv.AppendInt(append(dst, `,"rows":`...), int64(len(b.rows)), 10)
	if len(b.gpus) > 0 {
		dst = strconv.AppendInt(append(dst, `,"gpus":`...), int64(len(b.gpus)), 10)
	}
	dst = append(dst, "}\n"...)
	for _, a := range b.aliases {
		dst = appendString(append(dst, `{"alias":`...), a.Name)
		dst = appendField(dst, "provider", a.Provider)
		dst = appendOptional(dst, "model", a.Model)
		dst = append(dst, "}\n"...)
	}
	for i := range b.rows {
		dst = appendRow(dst, &b.rows[i])
	}
	for i := range b.gpus {
		dst = appendGPURow(dst, &b.gpus[i])
	}
	return dst
}

func appendRow(dst []byte, r *Row) []byte {
	dst = appendString(append(dst, `{"provider":`...), r.Provider)
	dst = appendField(dst, "model", r.Model)
	dst = appendOptional(dst, "region", r.Region)
	dst = appendTime(dst, "valid_from", r.ValidFrom)
	dst = appendTime(dst, "valid_to", r.ValidTo)
	dst = appendTime(dst, "known_from", r.KnownFrom)
	dst = appendTime(dst, "known_to", r.KnownTo)
	dst = appendOptional(dst, "source", r.Source)
	dst = append(dst, `,"sheets":[`...)
	for i := range r.Sheets {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendSheet(dst, &r.Sheets[i])
	}
	return append(dst, "]}\n"...)
}

func appendSheet(dst []byte, s *Sheet) []byte {
	dst = appendString(append(dst, `{"service":`...), s.Service.String())
	dst = strconv.AppendInt(append(dst, `,"above":`...), s.Above, 10)
	dst = append(dst, `,"usd_e18":{`...)
	separator := ""
	for c, rate := range s.Rates {
		if rate == NoRate {
			continue
		}
		dst = appendString(append(dst, separator...), tokens.Class(c).String())
		dst = strconv.AppendInt(append(dst, `:"`...), int64(rate), 10)
		dst = append(dst, '"')
		separator = ","
	}
	dst = append(dst, '}')
	separator = `,"derived":[`
	for c, derived := range s.Derived {
		if derived {
			dst = appendString(append(dst, separator...), tokens.Class(c).String())
			separator = ","
		}
	}
	if separator == "," {
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

func appendField(dst []byte, key, value string) []byte {
	dst = appendString(append(dst, ','), key)
	return appendString(append(dst, ':'), value)
}

func appendOptional(dst []byte, key, value string) []byte {
	if value == "" {
		return dst
	}
	return appendField(dst, key, value)
}

func appendTime(dst []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	return appendField(dst, key, t.UTC().Format(time.RFC3339))
}

// The lines as encoding/json reads them.
type (
	headerLine struct {
		Format     string `json:"format"`
		Version    string `json:"version"`
		Source     string `json:"source"`
		SourceDate string `json:"source_date"`
		Notes      string `json:"notes"`
		Aliases    int    `json:"aliases"`
		Rows       int    `json:"rows"`
		GPUs       int    `json:"gpus"`
	}
	aliasLine struct {
		Name     string `json:"alias"`
		Provider string `json:"provider"`
		Model    string `json:"model"`
	}
	rowLine struct {
		Provider  string      `json:"provider"`
		Model     string      `json:"model"`
		Region    string      `json:"region"`
		ValidFrom time.Time   `json:"valid_from"`
		ValidTo   time.Time   `json:"valid_to"`
		KnownFrom time.Time   `json:"known_from"`
		KnownTo   time.Time   `json:"known_to"`
		Source    string      `json:"source"`
		Sheets    []sheetLine `json:"sheets"`
	}
	sheetLine struct {
		Service string            `json:"service"`
		Above   int64             `json:"above"`
		Rates   map[string]string `json:"usd_e18"`
		Derived []string          `json:"derived"`
	}
)

// ParseBook is the inverse of Marshal. It accepts only canonical bytes, so the hash of what
// was read is the hash of what arrived. Errors: ErrFormat, ErrRow, ErrOverlap.
func ParseBook(data []byte) (*Book, error) {
	if len(data) > MaxBookBytes {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrFormat, MaxBookBytes)
	}
	lines := bytes.Split(data, []byte("\n"))
	if last := len(lines) - 1; len(lines[last]) == 0 {
		lines = lines[:last]
	}
	var h headerLine
	if len(lines) == 0 || readLine(lines[0], &h) != nil || h.Format != bookFormat && h.Format != gpuBookFormat {
		return nil, fmt.Errorf("%w: first line is not the header of a price book", ErrFormat)
	}
	lines = lines[1:]
	if h.Aliases < 0 || h.Rows < 0 || h.GPUs < 0 || h.Aliases > len(lines) || h.Rows > len(lines) || h.GPUs != len(lines)-h.Aliases-h.Rows {
		return nil, fmt.Errorf("%w: the header's counts differ from the lines", ErrFormat)
	}
	aliases, err := parseAliases(lines[:h.Aliases])
	if err != nil {
		return nil, err
	}
	rows, err := parseRows(lines[h.Aliases : h.Aliases+h.Rows])
	if err != nil {
		return nil, err
	}
	gpus, err := parseGPURows(lines[h.Aliases+h.Rows:])
	if err != nil {
		return nil, err
	}
	b, err := newBook(Header{h.Version, h.Source, h.SourceDate, h.Notes}, rows, aliases, gpus)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(b.bytes, data) {
		return nil, fmt.Errorf("%w: order or spelling", ErrFormat)
	}
	return b, nil
}

func parseAliases(lines [][]byte) ([]Alias, error) {
	aliases := make([]Alias, 0, len(lines))
	for i, line := range lines {
		var a aliasLine
		if err := readLine(line, &a); err != nil {
			return nil, fmt.Errorf("%w: alias %d: %w", ErrFormat, i+1, err)
		}
		aliases = append(aliases, Alias(a))
	}
	return aliases, nil
}

func parseRows(lines [][]byte) ([]Row, error) {
	rows := make([]Row, 0, len(lines))
	for i, line := range lines {
		var l rowLine
		err := readLine(line, &l)
		if err != nil {
			return nil, fmt.Errorf("%w: row %d: %w", ErrFormat, i+1, err)
		}
		row := Row{
			Provider: l.Provider, Model: l.Model, Region: l.Region,
			ValidFrom: l.ValidFrom, ValidTo: l.ValidTo, KnownFrom: l.KnownFrom, KnownTo: l.KnownTo,
			Source: l.Source,
		}
		if row.Sheets, err = parseSheets(l.Sheets); err != nil {
			return nil, fmt.Errorf("%w: row %d: %w", ErrFormat, i+1, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func parseSheets(lines []sheetLine) ([]Sheet, error) {
	sheets := make([]Sheet, 0, len(lines))
	for _, l := range lines {
		s := Sheet{Above: l.Above, Rates: NoRates()}
		if s.Service = Service(slices.Index(serviceNames[:], l.Service)); s.Service >= numServices {
			return nil, fmt.Errorf("unknown service tier %.40q", l.Service)
		}
		for name, text := range l.Rates {
			class, ok := tokens.ParseClass(name)
			v, err := strconv.ParseInt(text, 10, 64)
			if !ok || err != nil || v < 0 {
				return nil, fmt.Errorf("bad rate %.40q of class %.40q", text, name)
			}
			s.Rates[class] = Rate(v)
		}
		for _, name := range l.Derived {
			class, ok := tokens.ParseClass(name)
			if !ok {
				return nil, fmt.Errorf("unknown class %.40q", name)
			}
			s.Derived[class] = true
		}
		sheets = append(sheets, s)
	}
	return sheets, nil
}

// readLine decodes one line that is one JSON object with known keys.
func readLine(line []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
