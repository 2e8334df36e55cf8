package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/ledger"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// startRerates works on re-rate jobs beside the ledger's writer.
func (a *app) startRerates() {
	r := ledger.NewRerater(a.store, a.stageLog, a.kafkaCfg.Topics(), a.topic, uuid.NewString(), a.ring.Tenants, a.log)
	a.start("rerate", r.Run)
}

// rerateFlags are the flags of `prices` commands.
type rerateFlags struct {
	ledgerFlags
	from, to, job  string
	dryRun, detach bool
}

// newPricesCommand is `tallystick prices`.
func newPricesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "prices", Short: "Price books: show, import, compare, approve, simulate, explain; price usage anew", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPricesShowCommand(), newPricesImportCommand(), newPricesGPUsCommand(), newPricesDiffCommand(), newPricesExplainCommand(),
		newPricesProposeCommand(), newPricesCandidatesCommand(), newPricesDecideCommand(true), newPricesDecideCommand(false),
		newPricesSimulateCommand(), newPricesHistoryCommand(),
		newRerateCommand(), newRerateStatusCommand())
	return cmd
}

func newRerateCommand() *cobra.Command {
	f := &rerateFlags{}
	cmd := &cobra.Command{
		Use:   "rerate --tenant T --from TIME --to TIME",
		Short: "Correct the entries whose price differs under the price book in force",
		Long: `Price a tenant's usage of a time range anew under the price book in force.

Where the price differs, or is known at last, the ledger gets a correction that
names the entry; no entry is changed, and reports net the two. The server does
the work: a job that is interrupted by anything goes on by itself, and nothing is
corrected twice. This command follows it; running it again while the job runs
follows it again.

TIME is RFC 3339 or a date in UTC; a date as --to means the whole day.`,
		Example: `  tallystick prices rerate --tenant acme --from 2026-10-01 --to 2026-10-31 --dry-run
  tallystick prices rerate --tenant acme --from 2026-10-01 --to 2026-10-31`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.rerate(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (default: the only one of the token)")
	fs.StringVar(&f.from, "from", "", "first `TIME` of the usage")
	fs.StringVar(&f.to, "to", "", "`TIME` before which the usage occurred, or its last day")
	fs.BoolVar(&f.dryRun, "dry-run", false, "count the entries and add up the difference, and correct nothing")
	fs.BoolVar(&f.detach, "detach", false, "start the job and do not follow it")
	fs.StringVarP(&f.output, "output", "o", "table", "table or json")
	for _, name := range []string{"from", "to"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag stands a few lines above
		}
	}
	return cmd
}

func newRerateStatusCommand() *cobra.Command {
	f := &rerateFlags{}
	cmd := &cobra.Command{
		Use: "rerate-status", Short: "Say how far a re-rate job is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.status(cmd.Context(), cmd.OutOrStdout())
		},
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (default: the only one of the token)")
	fs.StringVar(&f.job, "job", "", "the job (default: the tenant's newest)")
	fs.StringVarP(&f.output, "output", "o", "table", "table or json")
	return cmd
}

func (f *rerateFlags) rerate(ctx context.Context, stdout, stderr io.Writer) error {
	if f.output != "table" && f.output != "json" {
		return usageError("--output: table or json")
	}
	from, err := parseMoment(f.from, false)
	if err != nil {
		return usageError("--from: %w", err)
	}
	to, err := parseMoment(f.to, true)
	if err != nil {
		return usageError("--to: %w", err)
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	var res pb.StartRerateResponse
	err = api.call(ctx, "/v1/prices:rerate", &pb.StartRerateRequest{
		TenantId: f.tenant, From: timestamppb.New(from), To: timestamppb.New(to), DryRun: f.dryRun,
	}, &res)
	if err != nil {
		return err
	}
	job := res.Job
	if !res.Started {
		if !job.From.AsTime().Equal(from) || !job.To.AsTime().Equal(to) || job.DryRun != f.dryRun {
			return &exitError{exitConflict, fmt.Errorf("another job of the tenant is running: %s, %s to %s", job.JobId,
				job.From.AsTime().Format(time.RFC3339), job.To.AsTime().Format(time.RFC3339))}
		}
		fmt.Fprintf(stderr, "the job is running already: %s\n", job.JobId)
	}
	if !f.detach {
		if job, err = follow(ctx, api, job, stderr); err != nil {
			return err
		}
	}
	return f.show(stdout, job)
}

// rerateAsk is how often a job is asked about while it is followed.
const rerateAsk = 500 * time.Millisecond

// follow shows a job's progress until it has ended.
func follow(ctx context.Context, api *ledgerAPI, job *pb.RerateJob, stderr io.Writer) (*pb.RerateJob, error) {
	var bar *emitProgress
	defer func() {
		if bar != nil {
			bar.finish()
		}
	}()
	for job.State == "running" {
		select {
		case <-time.After(rerateAsk):
		case <-ctx.Done():
			return nil, fmt.Errorf("the job %s goes on without us: %w", job.JobId, ctx.Err())
		}
		next, err := rerateJob(ctx, api, job.TenantId, job.JobId)
		if err != nil {
			return nil, err
		}
		job = next
		if bar == nil && job.LastSeq > 0 {
			bar = newEmitProgress(stderr, job.TenantId, job.LastSeq)
		}
		if bar != nil {
			bar.update(0, job.CursorSeq)
		}
	}
	return job, nil
}

func rerateJob(ctx context.Context, api *ledgerAPI, tenantID, jobID string) (*pb.RerateJob, error) {
	job, path := &pb.RerateJob{}, "/v1/prices/rerates"
	if jobID != "" {
		path += "/" + url.PathEscape(jobID)
	}
	return job, api.call(ctx, path+"?"+url.Values{"tenant_id": {tenantID}}.Encode(), nil, job)
}

func (f *rerateFlags) status(ctx context.Context, stdout io.Writer) error {
	if f.output != "table" && f.output != "json" {
		return usageError("--output: table or json")
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	job, err := rerateJob(ctx, api, f.tenant, f.job)
	if err != nil {
		return err
	}
	return f.show(stdout, job)
}

// show prints the job; one that failed ends the program so.
func (f *rerateFlags) show(w io.Writer, job *pb.RerateJob) error {
	var failed error
	if job.State == "failed" {
		failed = fmt.Errorf("the job failed: %s", job.Failure)
	}
	if f.output == "json" {
		if err := printJSONLine(w, job); err != nil {
			return err
		}
		return failed
	}
	what := "corrected"
	if job.DryRun {
		what = "would be corrected"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "job\t%s\nstate\t%s\n", job.JobId, job.State)
	fmt.Fprintf(t, "usage\t%s to %s\n", job.From.AsTime().Format(time.RFC3339), job.To.AsTime().Format(time.RFC3339))
	fmt.Fprintf(t, "entries\t%d looked at, %d %s\n", job.LookedAt, job.Changed, what)
	fmt.Fprintf(t, "difference\t%s USD\n", job.DifferenceUsd)
	if job.State == "running" {
		fmt.Fprintf(t, "progress\tentry %d of %d\n", job.CursorSeq, job.LastSeq)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return failed
}

// parseMoment reads a time, or a date in UTC: its beginning, or its end.
func parseMoment(s string, end bool) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		if end {
			t = t.AddDate(0, 0, 1)
		}
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q is neither a date nor an RFC 3339 time", s)
	}
	return t.UTC(), nil
}
