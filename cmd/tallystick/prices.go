package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/pricing"
)

// Books that are no file.
const (
	// builtinBook travels with the program.
	builtinBook = "builtin"
	// inForceBook is the one by which the server prices now.
	inForceBook = "in-force"
)

// maxBookFile bounds what is read as a price book.
const maxBookFile = pricing.MaxBookBytes

// book reads the price book in a file, the built-in one, or the server's that is in force.
func (f *ledgerFlags) book(ctx context.Context, name string) (*pricing.Book, error) {
	if name != inForceBook {
		return openBook(name)
	}
	api, err := f.api()
	if err != nil {
		return nil, err
	}
	book, err := api.priceBook(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("the book in force: %w", err)
	}
	return book, nil
}

// openBook reads the price book in a file, or the built-in one.
func openBook(path string) (*pricing.Book, error) {
	if path == "" || path == builtinBook {
		return pricing.Builtin(), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &exitError{exitNotFound, err}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBookFile+1))
	if err != nil {
		return nil, err
	}
	book, err := pricing.ParseBook(data)
	if err != nil {
		return nil, usageError("%s: %w (a price list becomes a book by `tallystick prices import`)", path, err)
	}
	return book, nil
}

// perMillion writes a rate in USD per million tokens, without trailing zeros.
func perMillion(r pricing.Rate) string {
	const digits = 12 // of 1e-18 USD per token in a USD per million tokens
	if r == pricing.NoRate {
		return "-"
	}
	text := fmt.Sprintf("%0*d", digits+1, int64(r))
	text = text[:len(text)-digits] + "." + text[len(text)-digits:]
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// momentFlag reads a time flag; empty is now.
func momentFlag(name, value string) (time.Time, error) {
	if value == "" {
		return time.Now(), nil
	}
	t, err := parseMoment(value, false)
	if err != nil {
		return t, usageError("--%s: %w", name, err)
	}
	return t, nil
}

// priceImportFlags are the flags of `prices import`.
type priceImportFlags struct {
	from, out, asOf, validFrom, version, discounts string
	free                                           []string
	json                                           bool
}

func newPricesImportCommand() *cobra.Command {
	f := &priceImportFlags{}
	cmd := &cobra.Command{
		Use:   "import [--from FORM] FILE [-o BOOK]",
		Short: "Make a candidate price book of a published price list",
		Long: `Make a price book of a price list in the form of LiteLLM, genai-prices (data.json)
or models.dev (api.json), or of one of your own in CSV or YAML.

Nothing is priced by the book: ` + "`tallystick prices diff`" + ` compares it with others, and
` + "`tallystick prices propose`" + ` makes a candidate of it that somebody can approve. What the list says and the book
cannot is refused and printed with the reason, never guessed.`,
		Example: "  tallystick prices import --from litellm --as-of 2026-08-01 model_prices_and_context_window.json -o candidate.jsonl",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.OutOrStdout(), args[0])
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.from, "from", "", "litellm, genai-prices, models.dev, csv or yaml (default: found out)")
	fs.StringVarP(&f.out, "out", "o", "", "write the book to `BOOK`, which must not exist")
	fs.StringVar(&f.asOf, "as-of", "", "`DATE` of the list (default: the file's)")
	fs.StringVar(&f.validFrom, "valid-from", "", "`TIME` from which prices without one of their own hold (default: the list's date)")
	fs.StringVar(&f.version, "version", "", "name of the book (default: form and date)")
	fs.StringVar(&f.discounts, "discounts", "", "negotiated prices in a CSV `FILE`")
	fs.BoolVar(&f.json, "json", false, "print JSON, with all that is refused")
	fs.StringSliceVar(&f.free, "free", nil, "providers whose zero rates are meant, such as your own servers")
	return cmd
}

func (f *priceImportFlags) run(w io.Writer, path string) error {
	form, err := pricing.ParseForm(f.from)
	if err != nil || form == pricing.FormBook {
		return usageError("--from: litellm, genai-prices, models.dev, csv or yaml")
	}
	list, err := os.Open(path)
	if err != nil {
		return &exitError{exitNotFound, err}
	}
	defer list.Close()
	o, err := f.options(list)
	if err != nil {
		return err
	}
	book, report, err := pricing.Import(form, path, list, o)
	if err != nil {
		return usageError("%s: %w", path, err)
	}
	if f.discounts != "" {
		if book, err = f.discounted(book, o); err != nil {
			return err
		}
	}
	if f.json {
		err = printIndented(w, importForJSON(book, &report))
	} else {
		printImport(w, book, &report)
	}
	if f.out == "" || err != nil {
		return err
	}
	return writeNew(f.out, book.Marshal())
}

func (f *priceImportFlags) options(list *os.File) (o pricing.ImportOptions, err error) {
	info, err := list.Stat()
	if err != nil {
		return o, err
	}
	o = pricing.ImportOptions{AsOf: info.ModTime().UTC().Truncate(24 * time.Hour), Version: f.version, Source: filepath.Base(list.Name()), Free: f.free}
	if f.asOf != "" {
		if o.AsOf, err = momentFlag("as-of", f.asOf); err != nil {
			return o, err
		}
	}
	if f.validFrom != "" {
		o.ValidFrom, err = momentFlag("valid-from", f.validFrom)
	}
	return o, err
}

// discounted puts negotiated prices into the book.
func (f *priceImportFlags) discounted(book *pricing.Book, o pricing.ImportOptions) (*pricing.Book, error) {
	file, err := os.Open(f.discounts)
	if err != nil {
		return nil, &exitError{exitNotFound, err}
	}
	defer file.Close()
	discounts, err := pricing.ReadDiscounts(file)
	if err != nil {
		return nil, usageError("--discounts: %w", err)
	}
	h := book.Header()
	h.Version += "-negotiated"
	if book, err = book.Discounted(h, o.AsOf, discounts); err != nil {
		return nil, usageError("--discounts: %w", err)
	}
	return book, nil
}

// maxRefused is how many refused entries are printed.
const maxRefused = 20

func printImport(w io.Writer, book *pricing.Book, r *pricing.Report) {
	fmt.Fprintf(w, "book     %s\nhash     %x\n", book.Version(), book.Hash())
	fmt.Fprintf(w, "entries  %d in the list, %d priced, %d refused, %d the same as another\n", r.Entries, r.Priced, len(r.Refused), r.Merged)
	fmt.Fprintf(w, "rows     %d\n", book.Len())
	for _, field := range slices.Sorted(maps.Keys(r.Unknown)) {
		fmt.Fprintf(w, "unknown  %q, a price field that is not imported: %d times\n", field, r.Unknown[field])
	}
	for i, refused := range r.Refused {
		if i == maxRefused {
			fmt.Fprintf(w, "refused  … and %d more\n", len(r.Refused)-i)
			break
		}
		fmt.Fprintf(w, "refused  %q: %s\n", refused.Model, refused.Reason)
	}
}

// jsonImport is what an import made, for programs.
type jsonImport struct {
	jsonBook
	Entries int            `json:"entries"`
	Priced  int            `json:"priced"`
	Merged  int            `json:"merged"`
	Rows    int            `json:"rows"`
	Unknown map[string]int `json:"unknown_fields"`
	Refused []jsonRefusal  `json:"refused"`
}

type jsonRefusal struct {
	Model  string `json:"model"`
	Reason string `json:"reason"`
}

func importForJSON(book *pricing.Book, r *pricing.Report) *jsonImport {
	j := &jsonImport{bookForJSON(book), r.Entries, r.Priced, r.Merged, book.Len(), r.Unknown, []jsonRefusal{}}
	for _, refused := range r.Refused {
		j.Refused = append(j.Refused, jsonRefusal(refused))
	}
	return j
}

// writeNew writes a file that must not exist yet; one that could not be written is taken away.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return &exitError{exitConflict, err}
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		_ = os.Remove(path) // the error says what happened
	}
	return err
}
