package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

// showFlags are the flags of `prices show`.
type showFlags struct {
	ledgerFlags
	at, bookName string
	json         bool
}

func newPricesShowCommand() *cobra.Command {
	f := &showFlags{}
	cmd := &cobra.Command{
		Use:   "show [NAME] [--at TIME] [--book BOOK]",
		Short: "Print the prices in force, of models and of GPU instances",
		Long: `Print the prices that are in force at a time: of models in USD per million tokens, and
of instances with GPUs in USD per hour of the whole instance.

NAME is any part of PROVIDER/MODEL or PROVIDER/INSTANCE. A rate with * follows from
another class by the provider's own billing. The book is the one by which the server
prices now, which a token of an operator may read; or with --book a file, or the one
that travels with the program ("builtin"), and no server is asked.`,
		Example: "  tallystick prices show gpt-4o\n  tallystick prices show --book candidate.jsonl --at 2026-10-01 anthropic/\n  tallystick prices show --book builtin",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, strings.ToLower(strings.Join(args, "")))
		},
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.at, "at", "", "`TIME` of the usage (default: now)")
	outputFlag(cmd, &f.json)
	fs.StringVar(&f.bookName, "book", inForceBook, "price `BOOK`: a file, builtin or in-force")
	return cmd
}

func (f *showFlags) run(cmd *cobra.Command, part string) error {
	when, err := momentFlag("at", f.at)
	if err != nil {
		return err
	}
	book, err := f.book(cmd.Context(), f.bookName)
	if err != nil {
		return err
	}
	found := pricesOf(book, when, part)
	if len(found.rows)+len(found.gpus) == 0 {
		return &exitError{exitNotFound, fmt.Errorf("book %s has no price in force for %q", book.Version(), part)}
	}
	if f.json {
		return printIndented(cmd.OutOrStdout(), found.forJSON())
	}
	return found.print(cmd.OutOrStdout())
}

// shownPrices are prices of a book.
type shownPrices struct {
	book *pricing.Book
	at   time.Time
	rows []pricing.Row
	gpus []pricing.GPURow
}

// pricesOf are the prices in force whose name has the part.
func pricesOf(book *pricing.Book, at time.Time, part string) shownPrices {
	p := shownPrices{book: book, at: at}
	for _, r := range book.InForce(at) {
		if strings.Contains(r.Provider+"/"+r.Model, part) {
			p.rows = append(p.rows, r)
		}
	}
	for _, r := range book.GPUsInForce(at) {
		if strings.Contains(r.Provider+"/"+r.Instance, part) {
			p.gpus = append(p.gpus, r)
		}
	}
	return p
}

func (p *shownPrices) print(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "book %s, SHA-256 %x\n", p.book.Version(), p.book.Hash()); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(p.rows) > 0 {
		fmt.Fprintln(t, "MODEL\tREGION\tSERVICE\tABOVE\tVALID FROM\tRATES")
	}
	for _, r := range p.rows {
		for _, s := range r.Sheets {
			fmt.Fprintf(t, "%s/%s\t%s\t%s\t%d\t%s\t%s\n", r.Provider, r.Model, orDash(r.Region), s.Service, s.Above, r.ValidFrom.Format(time.DateOnly), sheetRates(&s))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(p.gpus) > 0 {
		fmt.Fprintln(t, "INSTANCE\tREGION\tPURCHASE\tGPU\tDEVICES\tVALID FROM\tPER HOUR")
	}
	for _, r := range p.gpus {
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\t%d\t%s\t%s\n", r.Provider, r.Instance, orDash(r.Region), r.Purchase, orDash(r.GPU), r.Devices,
			r.ValidFrom.Format(time.DateOnly), shortUSD(r.PerHour))
	}
	return t.Flush()
}

// jsonPrices are prices of a book for programs: of models in USD per million tokens.
type jsonPrices struct {
	Book jsonBook         `json:"book"`
	At   *string          `json:"at"`
	Rows []jsonSheet      `json:"prices"`
	GPUs []jsonGPUInForce `json:"gpu_prices"`
}

type jsonSheet struct {
	jsonModel
	jsonSpan
	Rates   map[string]string `json:"usd_per_million_tokens"`
	Derived []string          `json:"derived"`
}

type jsonGPUInForce struct {
	jsonInstance
	GPU string `json:"gpu"`
	*jsonHour
	jsonSpan
}

// jsonSpan is when a price holds and where it is from.
type jsonSpan struct {
	ValidFrom *string `json:"valid_from"`
	ValidTo   *string `json:"valid_to"`
	Source    string  `json:"source"`
}

func (p *shownPrices) forJSON() *jsonPrices {
	j := &jsonPrices{Book: bookForJSON(p.book), At: timeForJSON(p.at), Rows: []jsonSheet{}, GPUs: []jsonGPUInForce{}}
	for _, r := range p.rows {
		span := jsonSpan{timeForJSON(r.ValidFrom), timeForJSON(r.ValidTo), r.Source}
		for i := range r.Sheets {
			s := &r.Sheets[i]
			rates, derived := ratesForJSON(s)
			j.Rows = append(j.Rows, jsonSheet{jsonModel{r.Provider, r.Model, r.Region, s.Service.String(), s.Above}, span, rates, derived})
		}
	}
	for i := range p.gpus {
		r := &p.gpus[i]
		j.GPUs = append(j.GPUs, jsonGPUInForce{instanceForJSON(r.Key()), r.GPU, hourForJSON(r), jsonSpan{timeForJSON(r.ValidFrom), timeForJSON(r.ValidTo), r.Source}})
	}
	return j
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// sheetRates are the rates of a sheet in one line.
func sheetRates(s *pricing.Sheet) string {
	var rates []string
	for c, rate := range s.Rates {
		if rate == pricing.NoRate {
			continue
		}
		mark := ""
		if s.Derived[c] {
			mark = "*"
		}
		rates = append(rates, tokens.Class(c).String()+" "+perMillion(rate)+mark)
	}
	if rates == nil {
		return "none"
	}
	return strings.Join(rates, ", ")
}
