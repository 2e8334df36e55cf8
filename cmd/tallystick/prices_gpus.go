package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/pricing"
)

// priceGPUFlags are the flags of `tallystick prices gpus`.
type priceGPUFlags struct {
	ledgerFlags
	bookName, out, known, version string
}

func newPricesGPUsCommand() *cobra.Command {
	f := &priceGPUFlags{}
	cmd := &cobra.Command{
		Use:   "gpus LIST -o BOOK [--book BOOK]",
		Short: "Put hourly prices of GPU instances into a price book",
		Long: `Make a price book of another one and a list of hourly prices of GPU instances: a CSV
file, plain or zstd, with the columns cloud, region, instance_type, gpu_name,
gpu_count, price_kind (on_demand, spot or reserved), usd_per_hour, currency and
generated_at. An hour of one device costs the instance's hour by its devices; an
instance with a part of a device shows one.

Lines in another currency than USD, or that leave the number of devices open, are
counted and left out: nothing is converted or guessed. The book takes effect when it
is proposed and approved: begin with the server's own (--book in-force), or the models
in it are proposed at the prices of the built-in book.`,
		Example: "  tallystick prices gpus gpu_prices.csv --book in-force -o candidate.jsonl\n  tallystick prices propose candidate.jsonl --from book --note 'GPU prices'",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.bookName, "book", builtinBook, "price `BOOK` to begin with: a file, builtin or in-force")
	fs.StringVarP(&f.out, "out", "o", "", "write the book to `BOOK`, which must not exist")
	fs.StringVar(&f.known, "known-from", "", "`TIME` from which the prices were known (default: now)")
	fs.StringVar(&f.version, "version", "", "name of the book (default: that of the first book, and the list's)")
	return cmd
}

func (f *priceGPUFlags) run(cmd *cobra.Command, path string) error {
	base, err := f.book(cmd.Context(), f.bookName)
	if err != nil {
		return err
	}
	known, err := momentFlag("known-from", f.known)
	if err != nil {
		return err
	}
	list, err := os.Open(path)
	if err != nil {
		return &exitError{exitNotFound, err}
	}
	defer list.Close()
	prices, err := pricing.ReadGPUPrices(list)
	if err != nil {
		return usageError("%s: %w", path, err)
	}
	rows, left := pricing.GPURowsOf(prices, known.UTC().Truncate(time.Second), filepath.Base(path))
	h := base.Header()
	if h.Version = f.version; f.version == "" {
		h.Version = base.Version() + "+gpus-" + known.UTC().Format(time.DateOnly)
	}
	book, err := base.WithGPUs(h, rows)
	if err != nil {
		return usageError("%s: %w", path, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "book     %s\nhash     %x\nGPUs     %d prices in the list, %d in the book, %d left out\n", book.Version(), book.Hash(), len(prices), len(rows), left)
	if f.out == "" {
		return nil
	}
	return writeNew(f.out, book.Marshal())
}
