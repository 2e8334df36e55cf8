package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
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

func (f *ledgerFlags) heads(ctx context.Context, w io.Writer) error {
	if f.output != "table" && f.output != "jsonl" {
		return usageError("--output: table or jsonl")
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	ids := []string{f.tenant}
	if f.tenant == "" {
		if ids, err = api.tenants(ctx); err != nil {
			return err
		}
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if f.output == "table" {
		fmt.Fprintln(t, "TENANT\tSEQ\tKEY EPOCH\tCHAIN HASH")
	}
	for _, id := range ids {
		h, err := api.head(ctx, id)
		var e *exitError
		if f.tenant == "" && errors.As(err, &e) && e.code == exitNotFound {
			continue // made, and never written for
		}
		if err != nil {
			return err
		}
		if f.output == "table" {
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", h.TenantId, h.Seq, h.KeyEpoch, h.ChainHash)
		} else if err := printJSONLine(w, h); err != nil {
			return err
		}
	}
	return t.Flush()
}

func printJSONLine(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
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
	if f.output == "table" {
		fmt.Fprintln(t, "SEQ\tKIND\tOCCURRED AT\tPROVIDER\tMODEL\tCOST USD\tEVENT ID")
	}
	left, size := f.limit, 1000
	if left > 0 {
		size = min(left, size)
	}
	err = api.entries(ctx, f.tenant, size, f.descending, func(page []*pb.Entry) (bool, error) {
		for _, e := range page {
			if f.output == "table" {
				printEntry(t, e)
			} else if err := printJSONLine(w, e); err != nil {
				return false, err
			}
			if left--; left == 0 {
				return false, nil
			}
		}
		return true, nil
	})
	return errors.Join(err, t.Flush())
}

func printEntry(w io.Writer, e *pb.Entry) {
	occurred, cost := "", "-"
	if e.OccurredAt != nil {
		occurred = e.OccurredAt.AsTime().Format(time.RFC3339Nano)
	}
	if e.CostUsd != nil {
		cost = *e.CostUsd
	}
	fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%q\n", e.Seq, e.Kind, occurred, e.Provider, e.Model, cost, e.EventId)
}

func newLedgerExportCommand(f *ledgerFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write a tenant's ledger to a file that can be verified anywhere",
		Long:  "Write a tenant's ledger to a file (docs/ledger-format.md) that `ledger verify --file` and docs/verify.py check without the server.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.export(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (required)")
	fs.Int64Var(&f.from, "from", 0, "first entry (0: the first there is)")
	fs.Int64Var(&f.to, "to", 0, "last entry (0: the last there is)")
	fs.StringVarP(&f.outFile, "output", "o", "", "write to `FILE` (required)")
	fs.BoolVar(&f.yes, "yes", false, "replace a file that is there")
	return cmd
}

// export writes beside the file and renames: a file under the name asked for is
// always whole.
func (f *ledgerFlags) export(ctx context.Context, stderr io.Writer) error {
	if f.tenant == "" || f.outFile == "" {
		return usageError("--tenant and --output are needed")
	}
	if _, err := os.Lstat(f.outFile); !errors.Is(err, fs.ErrNotExist) && !f.yes {
		return &exitError{exitConflict, fmt.Errorf("%s is there already; --yes replaces it", f.outFile)}
	}
	src, done, err := f.source(ctx)
	if err != nil {
		return err
	}
	defer done()
	out, err := os.CreateTemp(filepath.Dir(f.outFile), ".export-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	p := &verifyProgress{w: stderr, tenant: f.tenant}
	h, err := evidence.Export(ctx, src, f.tenant, f.from, f.to, out, p.update)
	p.finish()
	if errors.Is(err, evidence.ErrRange) {
		err = &exitError{exitNotFound, fmt.Errorf("there are no such entries of %s", f.tenant)}
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(out.Name(), f.outFile); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: entries %d to %d of %s; head %d %s\n", f.outFile, h.From, h.To, h.Tenant, h.HeadSeq, h.HeadChain)
	return nil
}

// source is where an export is read from.
func (f *ledgerFlags) source(ctx context.Context) (verify.Source, func(), error) {
	if f.dsnFile != "" {
		f.workers = 1
		d, err := f.direct(ctx)
		if err != nil {
			return nil, nil, err
		}
		return d.source(f.tenant), func() { d.close() }, nil
	}
	api, err := f.api()
	return apiSource{api, f.tenant}, func() {}, err
}
