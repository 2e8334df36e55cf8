package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/money"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// simulateFlags are those of `prices simulate`.
type simulateFlags struct {
	rerateFlags
	candidate, at string
	asOfUsage     bool
}

func newPricesSimulateCommand() *cobra.Command {
	f := &simulateFlags{}
	cmd := &cobra.Command{
		Use:   "simulate --candidate ID --tenant T [--from TIME --to TIME]",
		Short: "Say what a tenant's usage would have cost under a candidate",
		Long: `Price a tenant's usage of a time range, by default of last month, under a candidate,
out of the ledger's entries and to 1e-12 USD. Nothing is changed.

Usage is priced as of --at (when all of the candidate's prices are in force), as if
they had held all the while; with --as-of-usage, as of its own time, as a re-rate under the candidate would.
A price that the candidate lacks stays what it is.`,
		Example: "  tallystick prices simulate --candidate ID --tenant acme",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.simulate(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	f.serverFlags(fs)
	fs.StringVar(&f.candidate, "candidate", "", "the candidate's `ID` (required)")
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (required)")
	fs.StringVar(&f.from, "from", "", "first `TIME` of the usage (default: the first of last month, UTC)")
	fs.StringVar(&f.to, "to", "", "`TIME` before which the usage occurred, or its last day (default: the last of last month)")
	fs.StringVar(&f.at, "at", "", "price as of this `TIME` (default: when all prices of the candidate are in force)")
	fs.BoolVar(&f.asOfUsage, "as-of-usage", false, "price as of the time of each usage")
	fs.StringVarP(&f.output, "output", "o", "table", "table or json")
	return cmd
}

// request is what the server is asked for.
func (f *simulateFlags) request(now time.Time) (*pb.StartRerateRequest, error) {
	switch {
	case f.candidate == "" || f.tenant == "":
		return nil, usageError("--candidate and --tenant are needed")
	case f.output != "table" && f.output != "json":
		return nil, usageError("--output: table or json")
	case f.at != "" && f.asOfUsage:
		return nil, usageError("--at or --as-of-usage, not both")
	}
	to := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	from, at := to.AddDate(0, -1, 0), time.Time{}
	for _, m := range []struct {
		name, text string
		end        bool
		into       *time.Time
	}{{"from", f.from, false, &from}, {"to", f.to, true, &to}, {"at", f.at, false, &at}} {
		if m.text == "" {
			continue
		}
		var err error
		if *m.into, err = parseMoment(m.text, m.end); err != nil {
			return nil, usageError("--%s: %w", m.name, err)
		}
	}
	req := &pb.StartRerateRequest{
		TenantId: f.tenant, From: timestamppb.New(from), To: timestamppb.New(to), DryRun: true, CandidateId: f.candidate,
	}
	if !at.IsZero() {
		req.PriceAt = timestamppb.New(at)
	}
	return req, nil
}

func (f *simulateFlags) simulate(ctx context.Context, stdout, stderr io.Writer) error {
	req, err := f.request(time.Now().UTC())
	if err != nil {
		return err
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	if req.PriceAt == nil && !f.asOfUsage {
		at, err := candidateInForce(ctx, api, f.candidate)
		if err != nil {
			return err
		}
		req.PriceAt = timestamppb.New(at)
	}
	var res pb.StartRerateResponse
	if err := api.call(ctx, "/v1/prices:rerate", req, &res); err != nil {
		return err
	}
	if !res.Started {
		return &exitError{exitConflict, fmt.Errorf("another job of the tenant is running: %s", res.Job.JobId)}
	}
	job, err := follow(ctx, api, res.Job, stderr)
	if err != nil {
		return err
	}
	if job.State == "failed" {
		return fmt.Errorf("the simulation failed: %s", job.Failure)
	}
	return f.printSimulation(stdout, job)
}

// candidateInForce is when all prices of a candidate are in force.
func candidateInForce(ctx context.Context, api *ledgerAPI, id string) (time.Time, error) {
	var c pb.PriceCandidate
	if err := api.call(ctx, "/v1/prices/candidates/"+url.PathEscape(id), nil, &c); err != nil {
		return time.Time{}, err
	}
	book, err := api.priceBook(ctx, c.Hash)
	if err != nil {
		return time.Time{}, err
	}
	return inForceBy(book, time.Now()), nil
}

func (f *simulateFlags) printSimulation(w io.Writer, job *pb.RerateJob) error {
	if f.output == "json" {
		return printJSONLine(w, job)
	}
	before, err := money.ParseSum(job.CostBeforeUsd)
	if err != nil {
		return err
	}
	after := before
	difference, err := money.ParseSum(job.DifferenceUsd)
	if err != nil {
		return err
	}
	if err := after.Add(difference); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "usage\t%s to %s\n", job.From.AsTime().Format(time.RFC3339), job.To.AsTime().Format(time.RFC3339))
	fmt.Fprintf(t, "entries\t%d, of which %d would cost another price\n", job.LookedAt, job.Changed)
	fmt.Fprintf(t, "cost\t%s USD\nwould be\t%s USD\ndifference\t%s USD\n", before.String(), after.String(), job.DifferenceUsd)
	return t.Flush()
}
