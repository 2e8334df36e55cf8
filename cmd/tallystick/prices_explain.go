package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// errUnexplained says that a price book gives another price than the ledger has.
var errUnexplained = errors.New("the entry's price does not follow from its book")

func newPricesExplainCommand() *cobra.Command {
	f := &ledgerFlags{}
	var file string
	cmd := &cobra.Command{
		Use:   "explain ENTRY [--tenant T] [--book FILE]",
		Short: "Say how an entry came by its price: book, row, and tokens times rate",
		Long: `Work the price of a usage entry out once more, here, from the entry's signed bytes and
the price book that it names, and compare it with the ledger's to 1e-12 USD.

ENTRY is the entry's number. The book must be the one that the entry names by its
SHA-256; without --book it is the built-in book, or else the server's of that hash,
which a token of an operator may read.`,
		Example: "  tallystick prices explain 3 --tenant acme",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || seq < 1 {
				return usageError("%.40q is not an entry's number", args[0])
			}
			book, err := openBook(file)
			if err != nil {
				return err
			}
			return f.explain(cmd.Context(), cmd.OutOrStdout(), seq, book, file == "")
		},
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (default: the only one of the token)")
	fs.StringVar(&file, "book", "", "price book `FILE` (default: the built-in book, or the server's)")
	return cmd
}

// explain asks the server for the book that the entry names, where the given one
// is another and may be.
func (f *ledgerFlags) explain(ctx context.Context, w io.Writer, seq int64, book *pricing.Book, ask bool) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var answer pb.Entry
	path := "/v1/ledger/entries/" + strconv.FormatInt(seq, 10) + "?" + url.Values{"tenant_id": {f.tenant}}.Encode()
	if err := api.call(ctx, path, nil, &answer); err != nil {
		return err
	}
	var e chain.Entry
	if err := e.Decode(answer.Canonical); err != nil {
		return fmt.Errorf("the entry's bytes cannot be read: %w", err)
	}
	switch {
	case e.Kind == chain.Correction:
		return usageError("entry %d corrects entry %d: ask for that one", e.Seq, e.Corrected.Seq)
	case e.Kind != chain.Usage:
		return usageError("entry %d is a %s entry and has no price", e.Seq, e.Kind)
	}
	if ask && chain.Hash(book.Hash()) != e.PriceBook {
		if found, err := api.priceBook(ctx, hex.EncodeToString(e.PriceBook[:])); err == nil {
			book = found // an error leaves the one that is not the entry's, below
		}
	}
	if chain.Hash(book.Hash()) != e.PriceBook {
		return &exitError{exitNotFound, fmt.Errorf("the entry was priced by the book with SHA-256 %s, this is %x: give that one with --book",
			hex.EncodeToString(e.PriceBook[:]), book.Hash())}
	}
	return explainEntry(w, &e, book)
}

// usageOf is what pricing asks of an event, as the ledger asked it.
func usageOf(ev *event.Event) pricing.Usage {
	return pricing.Usage{
		Provider: ev.Provider, Model: ev.Model, Region: ev.Region, ServiceTier: ev.ServiceTier,
		Tokens: ev.Tokens, ContextTokens: ev.ContextTokens, At: ev.OccurredAt, KnownAt: ev.ReceivedAt,
		GPU: ev.IsGPU(), GPUMicros: ev.GPUMicros, Purchase: ev.PurchaseOption,
	}
}

// explainEntry prints the calculation, and fails when the ledger has another result.
func explainEntry(w io.Writer, e *chain.Entry, book *pricing.Book) error {
	u := usageOf(&e.Event)
	res := book.Price(&u)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "entry\t%d of %s\n", e.Seq, e.Event.Tenant)
	fmt.Fprintf(t, "usage\t%q of %q at %s, received %s\n", u.Model, u.Provider, nanoTime(u.At), nanoTime(u.KnownAt))
	fmt.Fprintf(t, "book\t%s, SHA-256 %x\n", book.Version(), book.Hash())
	if res.Priced != e.Priced || res.Cost != e.Cost || string(res.Row) != e.PriceRow || res.Reason.String() != e.UnpricedReason {
		_ = t.Flush() // the error says more
		return fmt.Errorf("%w: row %q and %s USD %s here, row %q and %s USD %s in the ledger", errUnexplained,
			res.Row, res.Cost, res.Reason, e.PriceRow, e.Cost, e.UnpricedReason)
	}
	if !res.Priced {
		fmt.Fprintf(t, "unpriced\t%s\n", res.Reason)
		return t.Flush()
	}
	if u.GPU {
		return explainGPU(t, e, book, res.Row)
	}
	row, sheet, ok := book.Sheet(res.Row)
	if !ok {
		return fmt.Errorf("%w: the book has no row %q", errUnexplained, res.Row)
	}
	fmt.Fprintf(t, "row\t%s\n", res.Row)
	if row.Source != "" {
		fmt.Fprintf(t, "source\t%s\n", row.Source)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return explainSum(w, e, &sheet)
}

// explainSum prints each component and holds their sum against the ledger.
func explainSum(w io.Writer, e *chain.Entry, sheet *pricing.Sheet) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLASS\tTOKENS\tUSD PER 1,000,000\tUSD")
	var sum money.Pico
	for c, n := range e.Event.Tokens {
		if n == 0 {
			continue
		}
		part, err := money.MulAtto(n, int64(sheet.Rates[c]))
		if err == nil {
			sum, err = sum.Add(part)
		}
		if err != nil {
			return err
		}
		mark := ""
		if sheet.Derived[c] {
			mark = " (derived)"
		}
		fmt.Fprintf(t, "%s\t%d\t%s%s\t%s\n", tokens.Class(c), n, perMillion(sheet.Rates[c]), mark, part)
	}
	fmt.Fprintf(t, "sum\t\t\t%s\nledger\t\t\t%s\n", sum, e.Cost)
	if err := t.Flush(); err != nil {
		return err
	}
	if sum != e.Cost {
		return fmt.Errorf("%w: the components come to %s USD", errUnexplained, sum)
	}
	return nil
}

func nanoTime(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
