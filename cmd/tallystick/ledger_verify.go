package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/verify"
)

const ledgerVerifyExample = `  # every tenant of the running server
  tallystick ledger verify

  # a range, read from the database by this program
  tallystick ledger verify --tenant acme --from 1000 --to 2000 --postgres-dsn-file dsn

  # an export, on another machine; MACs are checked when the keys are at hand
  tallystick ledger verify --file acme.tsx`

func newLedgerVerifyCommand(f *ledgerFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "verify",
		Short:   "Recompute hashes, chain, MACs and projected columns",
		Long:    ledgerLong,
		Example: ledgerVerifyExample,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.verify(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.tenant, "tenant", "", "verify this tenant's ledger")
	fs.BoolVar(&f.all, "all", false, "verify every tenant's ledger (the default)")
	fs.Int64Var(&f.from, "from", 0, "first entry (0: the first there is)")
	fs.Int64Var(&f.to, "to", 0, "last entry (0: the last there is, and the head)")
	fs.IntVar(&f.workers, "workers", runtime.GOMAXPROCS(0), "parts that are checked at once (the server chooses its own)")
	fs.StringVar(&f.file, "file", "", "verify the export in `FILE`")
	fs.StringVarP(&f.output, "output", "o", "table", "table or json")
	f.kept.bind(fs)
	return cmd
}

func (f *ledgerFlags) verify(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case f.output != "table" && f.output != "json":
		return usageError("--output: table or json")
	case f.workers < 1 || f.workers > 256:
		return usageError("--workers: 1 to 256")
	case f.from < 0 || f.to < 0 || f.to > 0 && f.to < f.from:
		return usageError("--from and --to: not a range")
	case f.all && f.tenant != "", f.file != "" && (f.all || f.from+f.to > 0 || f.dsnFile != ""):
		return usageError("--all and --tenant exclude each other, and --file goes with --tenant, --workers and --keys-dir only")
	case f.tenant == "" && f.from+f.to > 0:
		return usageError("--from and --to need --tenant")
	}
	reports, err := f.reports(ctx, stderr)
	if errors.Is(err, verify.ErrRange) {
		err = usageError("%w", err)
	}
	if err != nil {
		return err
	}
	if err := f.print(stdout, reports); err != nil {
		return err
	}
	return verdictError(reports)
}

// verdictError is the exit code of all reports: a broken ledger before one of
// which nothing can be said.
func verdictError(reports []verify.Report) error {
	var unknown error
	for _, r := range reports {
		switch r.Verdict {
		case verify.Broken:
			return &exitError{exitIntegrity, fmt.Errorf("the ledger of %s is broken at entry %d: %s: %s", r.Tenant, r.FirstBad, r.Reason, r.Message)}
		case verify.Unknown:
			unknown = &exitError{exitUnknown, fmt.Errorf("the ledger of %s: cannot tell: %s", r.Tenant, r.Message)}
		}
	}
	return unknown
}

func (f *ledgerFlags) reports(ctx context.Context, stderr io.Writer) ([]verify.Report, error) {
	switch {
	case f.file != "":
		r, err := f.verifyFile(ctx, stderr)
		return []verify.Report{r}, err
	case f.dsnFile != "":
		d, err := f.direct(ctx)
		if err != nil {
			return nil, err
		}
		defer d.close()
		v, err := d.verifier(f.kept.dir)
		if err != nil {
			return nil, err
		}
		return f.each(stderr, d.tenants, func(given verify.Options) (verify.Report, error) {
			return f.verifyDirect(ctx, d, v, given)
		})
	}
	api, err := f.api()
	if err != nil {
		return nil, err
	}
	ring, err := f.ring()
	if err != nil {
		return nil, err
	}
	if ring != nil {
		defer ring.Close()
	}
	var failed error
	list := func() (ids []string) {
		ids, failed = api.tenants(ctx)
		return ids
	}
	reports, err := f.each(stderr, list, func(o verify.Options) (verify.Report, error) {
		if o.Checkpoints, err = f.kept.of(tenant.ID(o.Tenant), ring); err != nil {
			return verify.Report{}, err
		}
		return api.verify(ctx, o)
	})
	return reports, errors.Join(failed, err)
}

// verifyDirect verifies one tenant's ledger out of the database.
func (f *ledgerFlags) verifyDirect(ctx context.Context, d *direct, v ledgerVerifier, given verify.Options) (verify.Report, error) {
	id := tenant.ID(given.Tenant)
	kept, err := f.kept.of(id, d.ring)
	if err != nil {
		return verify.Report{}, err
	}
	o, err := v.options(ctx, id)
	if err != nil {
		return verify.Report{Tenant: given.Tenant, Verdict: verify.Unknown, Message: err.Error()}, ctx.Err()
	}
	o.From, o.To, o.Progress, o.Workers, o.Checkpoints = given.From, given.To, given.Progress, f.workers, kept
	return verify.Verify(ctx, d.source(given.Tenant), o)
}

// each verifies the tenant of --tenant, or every one of all.
func (f *ledgerFlags) each(stderr io.Writer, all func() []string, check func(verify.Options) (verify.Report, error)) ([]verify.Report, error) {
	ids := []string{f.tenant}
	if f.tenant == "" {
		ids = all()
	}
	var reports []verify.Report
	for _, id := range ids {
		p := &verifyProgress{w: stderr, tenant: id}
		r, err := check(verify.Options{Tenant: id, From: f.from, To: f.to, Progress: p.update})
		p.finish()
		if err != nil {
			return reports, err
		}
		if r.Verdict == verify.Unknown && r.NoTenant {
			// A tenant that was made and never used has keys and no ledger yet.
			if f.tenant == "" {
				continue
			}
			return reports, &exitError{exitNotFound, fmt.Errorf("%s: %s", id, r.Message)}
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func (f *ledgerFlags) verifyFile(ctx context.Context, stderr io.Writer) (verify.Report, error) {
	in, err := os.Open(f.file)
	if err != nil {
		return verify.Report{}, &exitError{exitNotFound, err}
	}
	defer in.Close()
	h, err := verify.ReadExportHeader(in)
	if err != nil {
		return verify.Report{}, &exitError{exitUsage, fmt.Errorf("%s: %w", f.file, err)}
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return verify.Report{}, err
	}
	p := &verifyProgress{w: stderr, tenant: h.Tenant}
	defer p.finish()
	o := verify.Options{Tenant: f.tenant, Workers: f.workers, Progress: p.update}
	ring, err := f.ring()
	if err != nil {
		return verify.Report{}, err
	}
	if ring != nil {
		defer ring.Close()
		o.Keys = ringKeys(ring, tenant.ID(h.Tenant))
	}
	if o.Checkpoints, err = f.kept.of(tenant.ID(h.Tenant), ring); err != nil {
		return verify.Report{}, err
	}
	r, err := verify.File(ctx, in, o)
	if errors.Is(err, verify.ErrNotExport) {
		err = &exitError{exitUsage, err}
	}
	return r, err
}

// verifyProgress shows a bar on a terminal, from the first report of progress
// on: a short ledger needs none.
type verifyProgress struct {
	w      io.Writer
	tenant string
	bar    *emitProgress
}

func (p *verifyProgress) update(done, total int64) {
	if p.bar == nil && done < total {
		p.bar = newEmitProgress(p.w, p.tenant, total)
	}
	if p.bar != nil {
		p.bar.update(0, done)
	}
}

func (p *verifyProgress) finish() {
	if p.bar != nil {
		p.bar.finish()
	}
}

// jsonReport is a report for programs.
type jsonReport struct {
	Tenant      string `json:"tenant_id"`
	Verdict     string `json:"verdict"`
	Entries     int64  `json:"entries,string"`
	From        int64  `json:"from_seq,string"`
	To          int64  `json:"to_seq,string"`
	HeadHash    string `json:"head_hash"`
	MACsChecked bool   `json:"macs_checked"`
	Covered     int64  `json:"checkpoint_size,string"`
	FirstBad    int64  `json:"first_bad_seq,string"`
	Reason      string `json:"reason"`
	Detector    string `json:"detector"`
	Message     string `json:"message"`
}

func (f *ledgerFlags) print(w io.Writer, reports []verify.Report) error {
	if f.output == "json" {
		list := make([]jsonReport, 0, len(reports))
		for _, r := range reports {
			list = append(list, jsonReport{
				r.Tenant, string(r.Verdict), r.Entries, r.From, r.To, hex.EncodeToString(r.HeadHash[:]), r.MACsChecked, r.Covered,
				r.FirstBad, string(r.Reason), string(r.Detector), r.Message,
			})
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "TENANT\tVERDICT\tENTRIES\tRANGE\tMACS\tCHECKPOINT\tHEAD\tFIRST BAD")
	for _, r := range reports {
		macs, covered, bad := "not checked", "-", "-"
		if r.MACsChecked {
			macs = "checked"
		}
		if r.Covered > 0 {
			covered = strconv.FormatInt(r.Covered, 10)
		}
		if r.Verdict == verify.Broken {
			bad = fmt.Sprintf("%d: %s", r.FirstBad, r.Reason)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d-%d\t%s\t%s\t%x…\t%s\n", r.Tenant, r.Verdict, r.Entries, r.From, r.To, macs, covered, r.HeadHash[:6], bad)
	}
	return t.Flush()
}
