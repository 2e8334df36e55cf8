package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/client"
)

const ledgerCompareLong = `Hold ledgers against everything beside them that has a copy of a part of them:
the stored price books that entries name, what corrections say of their
originals, the topic entries as far as it still reaches, sealed identities and
tags, and the reports' sums hour by hour.

A ledger that somebody rewrote with stolen keys behind its newest checkpoint is
intact in itself, and differs from these.

Exit codes: 0 all agree, 3 something differs, 4 authentication, 5 not found,
7 unavailable.`

func newLedgerCompareCommand(f *ledgerFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Compare ledgers with price books, topic, sealed values and reports",
		Long:  ledgerCompareLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.compare(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "this tenant's ledger only")
	cmd.Flags().StringVarP(&f.output, "output", "o", "table", "table or json")
	return cmd
}

// difference is a line of the answer.
type difference struct {
	Tenant string `json:"tenant_id"`
	client.Difference
}

func (f *ledgerFlags) compare(ctx context.Context, w io.Writer) error {
	if f.output != "table" && f.output != "json" {
		return usageError("--output: table or json")
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	ids, err := f.chosen(ctx, api)
	if err != nil {
		return err
	}
	found := []difference{}
	for _, id := range ids {
		list, err := api.Compare(ctx, id)
		if err != nil {
			return answered(err)
		}
		for _, d := range list {
			found = append(found, difference{id, d})
		}
	}
	if err := f.printCompared(w, len(ids), found); err != nil || len(found) == 0 {
		return err
	}
	return &exitError{exitIntegrity, fmt.Errorf("the ledger of %s and its %s differ: %s", found[0].Tenant, found[0].Detector, found[0].Message)}
}

func (f *ledgerFlags) printCompared(w io.Writer, ledgers int, found []difference) error {
	if f.output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(found)
	}
	if len(found) == 0 {
		_, err := fmt.Fprintf(w, "%d ledgers agree with price books, topic, sealed values and reports\n", ledgers)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "TENANT\tDIFFERS FROM\tENTRY\tHOW")
	for _, d := range found {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", d.Tenant, d.Detector, d.Seq, d.Message)
	}
	return t.Flush()
}
