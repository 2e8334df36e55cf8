package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// explainFlags are the flags of `prices explain`.
type explainFlags struct {
	ledgerFlags
	file string
	json bool
}

func newPricesExplainCommand() *cobra.Command {
	f := &explainFlags{}
	cmd := &cobra.Command{
		Use:   "explain ENTRY [--tenant T] [--book FILE]",
		Short: "Say how an entry came by its price: book, row, and tokens times rate",
		Long: `Work the price of an entry out once more, here, from the entry's signed bytes and
the price book that it names, and compare it with the ledger's to 1e-12 USD.

Of a correction it is what the usage costs from there on, beside what it cost before
and the difference, and the entry that it corrects is held against it; whether the
corrections in between lead from one to the other, ` + "`tallystick ledger compare`" + ` says.
Where the provider stated a cost of its own, the difference is printed.

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
			return f.explain(cmd.Context(), cmd.OutOrStdout(), seq)
		},
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	outputFlag(cmd, &f.json)
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (default: the only one of the token)")
	fs.StringVar(&f.file, "book", "", "price book `FILE` (default: the built-in book, or the server's)")
	return cmd
}

// explain fetches what the explanation needs, and prints it.
func (f *explainFlags) explain(ctx context.Context, w io.Writer, seq int64) error {
	book, err := openBook(f.file)
	if err != nil {
		return err
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	e, err := f.entry(ctx, api, seq)
	if err != nil {
		return err
	}
	if e.Kind != chain.Usage && e.Kind != chain.Correction {
		return usageError("entry %d is a %s entry and has no price", e.Seq, e.Kind)
	}
	var original *chain.Entry
	if e.Kind == chain.Correction {
		if original, err = f.entry(ctx, api, e.Corrected.Seq); err != nil {
			return fmt.Errorf("the entry that it corrects: %w", err)
		}
	}
	if book, err = bookOfEntry(ctx, api, e, book, f.file == ""); err != nil {
		return err
	}
	x, err := explainEntry(e, original, book)
	if err != nil {
		return err
	}
	if f.json {
		return printIndented(w, x.forJSON())
	}
	return x.print(w)
}

// entry fetches an entry of the tenant by its number.
func (f *explainFlags) entry(ctx context.Context, api *ledgerAPI, seq int64) (*chain.Entry, error) {
	var answer pb.Entry
	path := "/v1/ledger/entries/" + strconv.FormatInt(seq, 10) + "?" + url.Values{"tenant_id": {f.tenant}}.Encode()
	if err := api.call(ctx, path, nil, &answer); err != nil {
		return nil, err
	}
	e := &chain.Entry{}
	if err := e.Decode(answer.Canonical); err != nil {
		return nil, fmt.Errorf("the bytes of entry %d cannot be read: %w", seq, err)
	}
	return e, nil
}

// bookOfEntry is the book that an entry names: the given one or, where that may be asked,
// the server's; nil where none was in force.
func bookOfEntry(ctx context.Context, api *ledgerAPI, e *chain.Entry, book *pricing.Book, ask bool) (*pricing.Book, error) {
	if e.PriceBook == (chain.Hash{}) {
		return nil, nil
	}
	if ask && chain.Hash(book.Hash()) != e.PriceBook {
		if found, err := api.priceBook(ctx, hex.EncodeToString(e.PriceBook[:])); err == nil {
			book = found // an error leaves the one that is not the entry's, below
		}
	}
	if chain.Hash(book.Hash()) != e.PriceBook {
		return nil, &exitError{exitNotFound, fmt.Errorf("the entry was priced by the book with SHA-256 %s, this is %x: give that one with --book",
			hex.EncodeToString(e.PriceBook[:]), book.Hash())}
	}
	return book, nil
}
