package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

// startPrices puts a price book into every partition: the newest one that
// somebody approved, else that of the configuration. Once prices were approved
// only an approval changes them; a file does not by being there.
func (a *app) startPrices(ctx context.Context) error {
	configured, err := a.priceBook()
	if err != nil {
		return err
	}
	content, err := pgstore.NewBooks(a.store, a.ring).Approved(ctx)
	if err != nil {
		return err
	}
	book := configured
	if content != nil {
		if book, err = pricing.ParseBook(content); err != nil {
			return fmt.Errorf("the approved price book: %w", err)
		}
	}
	books, err := a.store.Books(ctx)
	if err != nil {
		return err
	}
	if a.cfg.Prices.File != "" && content != nil && !knownBook(books, configured) {
		a.log.LogAttrs(ctx, slog.LevelWarn, "prices.file is not in force: an approved price book is; `tallystick prices propose` makes a candidate of the file",
			slog.String("file", a.cfg.Prices.File), slog.String("approved", book.Version()))
	}
	return a.registrar.PublishBook(ctx, book, books)
}

func knownBook(books map[int32]chain.Hash, book *pricing.Book) bool {
	for _, hash := range books {
		if hash == chain.Hash(book.Hash()) {
			return true
		}
	}
	return false
}

// priceBook is the configured book, or the built-in one.
func (a *app) priceBook() (*pricing.Book, error) {
	if a.cfg.Prices.File == "" {
		return pricing.Builtin(), nil
	}
	form, err := pricing.ParseForm(a.cfg.Prices.Form)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("prices.form: %w", err)}
	}
	book, report, err := readPrices(form, a.cfg.Prices.File, pricing.ImportOptions{})
	if err != nil {
		return nil, fmt.Errorf("prices.file: %w", err)
	}
	a.log.Info("price book imported", "file", a.cfg.Prices.File, "version", book.Version(), "priced", report.Priced, "refused", len(report.Refused))
	return book, nil
}

// readPrices reads a file of prices in any form. What the options leave out is
// the file's own: its date makes the same file the same book at every start.
func readPrices(form pricing.Form, path string, o pricing.ImportOptions) (*pricing.Book, pricing.Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, pricing.Report{}, &exitError{exitNotFound, err}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, pricing.Report{}, err
	}
	if o.AsOf.IsZero() {
		o.AsOf = info.ModTime().UTC().Truncate(24 * time.Hour)
	}
	o.Source = filepath.Base(path)
	return pricing.Import(form, path, f, o)
}

// startBooks publishes the price books that are approved, beside the writer.
func (a *app) startBooks() {
	p := ledger.NewBookPublisher(a.registrar, pgstore.NewBooks(a.store, a.ring), a.log)
	a.start("price books", p.Run)
}
