package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/client"
)

func newLedgerHeadCommand(f *ledgerFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "head",
		Short: "Print the end of each tenant's chain",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.heads(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "of this tenant only")
	cmd.Flags().StringVarP(&f.output, "output", "o", "table", "table or jsonl")
	return cmd
}

// chosen is the tenant of --tenant, or every one that the token reaches.
func (f *ledgerFlags) chosen(ctx context.Context, api *ledgerAPI) ([]string, error) {
	if f.tenant != "" {
		return []string{f.tenant}, nil
	}
	return api.tenants(ctx)
}

func (f *ledgerFlags) heads(ctx context.Context, w io.Writer) error {
	if f.output != "table" && f.output != "jsonl" {
		return usageError("--output: table or jsonl")
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	ids, err := f.chosen(ctx, api)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if f.output == "table" {
		fmt.Fprintln(t, "TENANT\tSEQ\tKEY EPOCH\tCHAIN HASH")
	}
	for _, id := range ids {
		h, err := api.Head(ctx, id)
		if f.tenant == "" && client.StatusOf(err) == http.StatusNotFound {
			continue // made, and never written for
		}
		if err != nil {
			return answered(err)
		}
		if f.output == "table" {
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", h.TenantID, h.Seq, h.KeyEpoch, h.ChainHash)
		} else if err := json.NewEncoder(w).Encode(h); err != nil {
			return err
		}
	}
	return t.Flush()
}

func newLedgerEntriesCommand(f *ledgerFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "entries",
		Short: "Print entries of a tenant's ledger",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.entries(cmd.Context(), cmd.OutOrStdout())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.tenant, "tenant", "", "the tenant; may be left out when the token is of one")
	fs.IntVar(&f.limit, "limit", 20, "at most so many; 0 is all")
	fs.BoolVar(&f.descending, "descending", false, "newest first")
	fs.StringVarP(&f.output, "output", "o", "table", "table or jsonl")
	return cmd
}

func (f *ledgerFlags) entries(ctx context.Context, w io.Writer) error {
	if f.output != "table" && f.output != "jsonl" {
		return usageError("--output: table or jsonl")
	}
	if f.limit < 0 {
		return usageError("--limit: must not be negative")
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if f.output == "table" { // shown with the first entry, or when there is none
		fmt.Fprintln(t, "SEQ\tKIND\tOCCURRED AT\tPROVIDER\tMODEL\tCOST USD\tEVENT ID")
	}
	shown := 0
	left, size := f.limit, 1000
	if left > 0 {
		size = min(left, size)
	}
	q := client.EntryQuery{TenantID: f.tenant, PageSize: size, Descending: f.descending}
	err = api.entries(ctx, q, func(e *client.Entry) (bool, error) {
		if f.output == "table" {
			printEntry(t, e)
		} else if _, err := fmt.Fprintln(w, string(e.JSON)); err != nil {
			return false, err
		}
		left--
		shown++
		return left != 0, nil
	})
	if err != nil && shown == 0 {
		return err // and no header of a table that there is not
	}
	return errors.Join(err, t.Flush())
}

func printEntry(w io.Writer, e *client.Entry) {
	occurred, cost := "", "-"
	if e.OccurredAt != nil {
		occurred = e.OccurredAt.UTC().Format(time.RFC3339Nano)
	}
	if e.CostUSD != nil {
		cost = *e.CostUSD
	}
	fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%q\n", e.Seq, e.Kind, occurred, e.Provider, e.Model, cost, e.EventID)
}
