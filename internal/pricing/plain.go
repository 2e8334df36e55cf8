package pricing

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tallystick/tallystick/internal/tokens"
)

// maxPlainBytes bounds a list written by hand.
const maxPlainBytes = 8 << 20

// plainSheet is one line of a CSV list, or one sheet of a YAML list.
type plainSheet struct {
	row      Row // without sheets
	service  Service
	above    int64
	rates    Rates
	position string // for errors
}

// plainColumns are the columns of a CSV list beside those of rates.
var plainColumns = []string{"provider", "model", "region", "service", "above", "valid_from", "valid_to", "known_from", "known_to", "source"}

// The endings of rate columns: "output_per_mtok" is USD per million output tokens.
const perMtok, perToken = "_per_mtok", "_per_token"

// ImportCSV reads a price list written by hand, plain or compressed with zstd. Its first
// line names the columns: provider and model, and any of region, service, above (context
// tokens), valid_from, valid_to, known_from, known_to (dates or RFC 3339 times) and source;
// and per token class CLASS_per_mtok or CLASS_per_token, in USD. Each line is one sheet; lines
// that agree in provider, model, region and times are one row. An empty cell is no price, 0
// is a price. A list that breaks a rule is ErrImport with the line: nothing of it is taken,
// for a person can mend it.
func ImportCSV(r io.Reader, o ImportOptions) (*Book, Report, error) {
	c, err := newCollector(o, "csv")
	if err != nil {
		return nil, Report{}, err
	}
	data, err := readSmall(r)
	if err != nil {
		return nil, Report{}, err
	}
	lines := csv.NewReader(bytes.NewReader(data))
	lines.TrimLeadingSpace = true
	header, err := lines.Read()
	if err != nil {
		return nil, Report{}, fmt.Errorf("%w: %w", ErrImport, err)
	}
	columns, err := readColumns(header)
	if err != nil {
		return nil, Report{}, err
	}
	var sheets []plainSheet
	for {
		cells, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return c.plain(sheets, nil)
		}
		if err != nil {
			return nil, Report{}, fmt.Errorf("%w: %w", ErrImport, err)
		}
		at, _ := lines.FieldPos(0)
		sheet, err := c.readCells(columns, cells)
		if err != nil {
			return nil, Report{}, fmt.Errorf("%w: line %d: %w", ErrImport, at, err)
		}
		sheet.position = "line " + strconv.Itoa(at)
		sheets = append(sheets, sheet)
	}
}

func readSmall(r io.Reader) ([]byte, error) {
	data, err := readPlain(r)
	if err == nil && len(data) > maxPlainBytes {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrImport, maxPlainBytes)
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), err // spreadsheets begin so
}

// plainColumn is what a column holds: a field of plainColumns, or the rate of a class.
type plainColumn struct {
	field    string
	class    tokens.Class
	exponent int
}

func readColumns(header []string) ([]plainColumn, error) {
	var columns []plainColumn
	for i, name := range header {
		if slices.Contains(header[:i], name) {
			return nil, fmt.Errorf("%w: column %.40q twice", ErrImport, name)
		}
		column := plainColumn{field: name}
		if !slices.Contains(plainColumns, name) {
			class, exponent, ok := rateName(name)
			if !ok {
				return nil, fmt.Errorf("%w: unknown column %.40q", ErrImport, name)
			}
			column = plainColumn{class: class, exponent: exponent}
		}
		columns = append(columns, column)
	}
	return columns, nil
}

// rateName reads "output_per_mtok" or "output_per_token".
func rateName(name string) (tokens.Class, int, bool) {
	exponent := 0
	base, ok := strings.CutSuffix(name, perToken)
	if !ok {
		exponent = mtok
		if base, ok = strings.CutSuffix(name, perMtok); !ok {
			return 0, 0, false
		}
	}
	class, ok := tokens.ParseClass(base)
	return class, exponent, ok
}

func (c *collector) readCells(columns []plainColumn, cells []string) (plainSheet, error) {
	s := plainSheet{row: Row{ValidFrom: c.options.ValidFrom, KnownFrom: c.options.KnownFrom}, rates: NoRates()}
	for i, cell := range cells {
		cell = strings.TrimSpace(cell)
		if cell == "" {
			continue
		}
		column := columns[i] // csv.Reader refuses lines of another length
		var err error
		if column.field != "" {
			err = s.set(column.field, cell)
		} else {
			err = s.rate(column.class, cell, column.exponent)
		}
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// set reads one field that is not a rate.
func (s *plainSheet) set(field, text string) (err error) {
	switch field {
	case "provider":
		s.row.Provider = canonicalProvider(text)
	case "model":
		s.row.Model = strings.ToLower(text)
	case "region":
		s.row.Region = strings.ToLower(text)
	case "source":
		s.row.Source = text
	case "service":
		var ok bool
		if s.service, ok = ParseService(text); !ok {
			err = fmt.Errorf("unknown service tier %.40q", text)
		}
	case "above":
		if s.above, err = strconv.ParseInt(text, 10, 64); err != nil || s.above < 0 {
			err = fmt.Errorf("above: %.40q is not a number of tokens", text)
		}
	default:
		err = s.setTime(field, text)
	}
	return err
}

func (s *plainSheet) setTime(field, text string) error {
	t, err := parseWhen(text)
	if err != nil {
		return fmt.Errorf("%s: %.40q is neither a date nor an RFC 3339 time", field, text)
	}
	switch field {
	case "valid_from":
		s.row.ValidFrom = t
	case "valid_to":
		s.row.ValidTo = t
	case "known_from":
		s.row.KnownFrom = t
	case "known_to":
		s.row.KnownTo = t
	default:
		return fmt.Errorf("unknown field %.40q", field)
	}
	return nil
}

func (s *plainSheet) rate(class tokens.Class, text string, exponent int) (err error) {
	if s.rates[class] != NoRate {
		return fmt.Errorf("two rates for %s", class)
	}
	s.rates[class], err = parseRateScaled(text, exponent)
	return err
}

// plainKey is what the lines of one row agree in.
type plainKey struct {
	rowKey
	validFrom, validTo, knownFrom, knownTo int64
}

// plain makes the book of sheets.
func (c *collector) plain(sheets []plainSheet, aliases []Alias) (*Book, Report, error) {
	rows := map[plainKey]*Row{}
	var order []plainKey
	for _, s := range sheets {
		c.report.Entries++
		r := &s.row
		if s.rates == NoRates() {
			return nil, Report{}, fmt.Errorf("%w: %s: no rate", ErrImport, s.position)
		}
		if !validTime(r.ValidFrom) || !validTime(r.KnownFrom) {
			return nil, Report{}, fmt.Errorf("%w: %s: a time is not in whole seconds of 1970 to 2261", ErrImport, s.position)
		}
		key := plainKey{r.key(), r.ValidFrom.Unix(), r.ValidTo.Unix(), r.KnownFrom.Unix(), r.KnownTo.Unix()}
		if rows[key] == nil {
			rows[key] = r
			order = append(order, key)
		}
		rows[key].Sheets = append(rows[key].Sheets, Sheet{Service: s.service, Above: s.above, Rates: s.rates})
	}
	for _, key := range order {
		r := rows[key]
		r.Derive(Hints{})
		if _, ok := c.byKey[key.rowKey]; !ok {
			c.order = append(c.order, key.rowKey)
		}
		c.byKey[key.rowKey] = append(c.byKey[key.rowKey], *r)
	}
	c.aliases = aliases
	c.report.Priced = c.report.Entries
	b, report, err := c.book()
	if err != nil {
		return nil, Report{}, fmt.Errorf("%w: %w", ErrImport, err)
	}
	return b, report, nil
}

// yamlText is a YAML scalar as it is written, so that 0.1 stays 0.1.
type yamlText string

// UnmarshalYAML keeps the digits of a number.
func (t *yamlText) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: not a plain value", n.Line)
	}
	if n.Tag != "!!null" {
		*t = yamlText(n.Value)
	}
	return nil
}

// yamlRow is a row of a YAML list.
type yamlRow struct {
	Provider  yamlText    `yaml:"provider"`
	Model     yamlText    `yaml:"model"`
	Region    yamlText    `yaml:"region"`
	ValidFrom yamlText    `yaml:"valid_from"`
	ValidTo   yamlText    `yaml:"valid_to"`
	KnownFrom yamlText    `yaml:"known_from"`
	KnownTo   yamlText    `yaml:"known_to"`
	Source    yamlText    `yaml:"source"`
	Sheets    []yamlSheet `yaml:"sheets"`
}

type yamlSheet struct {
	Service yamlText            `yaml:"service"`
	Above   yamlText            `yaml:"above"`
	PerMtok map[string]yamlText `yaml:"usd_per_mtok"`
}

type yamlList struct {
	Prices  []yamlRow `yaml:"prices"`
	Aliases []struct {
		Name     yamlText `yaml:"name"`
		Provider yamlText `yaml:"provider"`
		Model    yamlText `yaml:"model"`
	} `yaml:"aliases"`
}

// ImportYAML reads a price list written by hand, plain or compressed with zstd: "prices", a
// list of rows with the fields of ImportCSV and their "sheets" (service, above, and
// usd_per_mtok by token class), and "aliases" (name, provider, model). Errors are those of
// ImportCSV.
func ImportYAML(r io.Reader, o ImportOptions) (*Book, Report, error) {
	c, err := newCollector(o, "yaml")
	if err != nil {
		return nil, Report{}, err
	}
	data, err := readSmall(r)
	if err != nil {
		return nil, Report{}, err
	}
	var list yamlList
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&list); err != nil {
		return nil, Report{}, fmt.Errorf("%w: %w", ErrImport, err)
	}
	var sheets []plainSheet
	for i := range list.Prices {
		if sheets, err = c.yamlSheets(sheets, &list.Prices[i], "price "+strconv.Itoa(i+1)); err != nil {
			return nil, Report{}, err
		}
	}
	var aliases []Alias
	for _, a := range list.Aliases {
		aliases = append(aliases, Alias{strings.ToLower(string(a.Name)), canonicalProvider(string(a.Provider)), strings.ToLower(string(a.Model))})
	}
	return c.plain(sheets, aliases)
}

// yamlSheets appends the sheets of one row.
func (c *collector) yamlSheets(to []plainSheet, r *yamlRow, position string) ([]plainSheet, error) {
	fail := func(err error) ([]plainSheet, error) { return nil, fmt.Errorf("%w: %s: %w", ErrImport, position, err) }
	if len(r.Sheets) == 0 {
		return fail(errors.New("no sheets"))
	}
	base := plainSheet{row: Row{ValidFrom: c.options.ValidFrom, KnownFrom: c.options.KnownFrom}, rates: NoRates(), position: position}
	values := []yamlText{r.Provider, r.Model, r.Region, "", "", r.ValidFrom, r.ValidTo, r.KnownFrom, r.KnownTo, r.Source}
	for i, field := range plainColumns {
		if values[i] == "" {
			continue
		}
		if err := base.set(field, string(values[i])); err != nil {
			return fail(err)
		}
	}
	for _, y := range r.Sheets {
		s := base
		if err := s.readYAML(y); err != nil {
			return fail(err)
		}
		to = append(to, s)
	}
	return to, nil
}

func (s *plainSheet) readYAML(y yamlSheet) error {
	for field, text := range map[string]yamlText{"service": y.Service, "above": y.Above} {
		if text == "" {
			continue
		}
		if err := s.set(field, string(text)); err != nil {
			return err
		}
	}
	for name, text := range y.PerMtok {
		class, ok := tokens.ParseClass(name)
		if !ok {
			return fmt.Errorf("unknown token class %.40q", name)
		}
		if err := s.rate(class, string(text), mtok); err != nil {
			return err
		}
	}
	return nil
}
