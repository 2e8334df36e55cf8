package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/money"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const costLong = `What usage cost, by groups, greatest first; beyond --top they are one, "other".

Usage that carries no value of a dimension is untagged and a group of its own,
unless --allocate says whose it is shown as: "default_owner" shows it as that of the
dimension's default owner at the time (tallystick mapping owners), "proportional"
divides its cost among the groups as they cost themselves. Neither changes the
total: what is allocated stands in a column of its own. Where time of GPUs is in the
window, it stands beside its cost, in hours of whole devices.

Exit codes: 2 usage, 4 authentication, 5 not found, 7 unavailable.`

// costFlags are the flags of `tallystick cost`.
type costFlags struct {
	tenantFlags
	by               []string
	window, from, to string
	zone, allocate   string
	top              int32
}

// newCostCommand is `tallystick cost`.
func newCostCommand() *cobra.Command {
	f := &costFlags{}
	cmd := f.command("cost", "What usage cost, by team or other dimensions", cobra.NoArgs, f.run)
	cmd.Long = costLong
	flags := cmd.Flags()
	flags.StringSliceVar(&f.by, "by", []string{"team"}, "at most three `DIMENSIONS`, separated by commas")
	flags.StringVar(&f.window, "window", "", "24h, 7d, 30d, today, mtd, last_month or all (default mtd)")
	flags.StringVar(&f.from, "from", "", "a `TIME`, or a date in UTC, in place of --window")
	flags.StringVar(&f.to, "to", "", "a `TIME`, or the last date in UTC")
	flags.StringVar(&f.zone, "time-zone", "", "the `ZONE` that --window is read in (default UTC)")
	flags.StringVar(&f.allocate, "allocate", "", "whose untagged usage is shown as: `default_owner` or proportional")
	flags.Int32Var(&f.top, "top", report.DefaultTop, "how many groups are shown, 1 to 50")
	return cmd
}

func (f *costFlags) run(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	window, err := f.readWindow()
	if err != nil {
		return err
	}
	req := &pb.GroupsRequest{TenantId: f.tenant, Window: window, GroupBy: f.by, Top: f.top, Allocate: f.allocate}
	var res pb.GroupsResponse
	if err := api.call(ctx, "/v1/reports/groups:query", req, &res); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &res)
	}
	return f.print(c.OutOrStdout(), &res)
}

func (f *costFlags) readWindow() (*pb.Window, error) {
	if f.from == "" && f.to == "" {
		if f.window == "" {
			f.window = report.MonthToDate
		}
		return &pb.Window{Name: f.window, TimeZone: f.zone}, nil
	}
	if f.window != "" || f.from == "" || f.to == "" {
		return nil, usageError("either --window, or --from and --to")
	}
	from, err := parseMoment(f.from, false)
	if err != nil {
		return nil, usageError("--from: %v", err)
	}
	to, err := parseMoment(f.to, true)
	if err != nil {
		return nil, usageError("--to: %v", err)
	}
	return &pb.Window{Start: timestamppb.New(from), End: timestamppb.New(to), TimeZone: f.zone}, nil
}

// print shows the groups, and with an allocation what their cost consists of.
func (f *costFlags) print(w io.Writer, res *pb.GroupsResponse) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	gpus := res.Totals.GetGpuUs() != 0
	row := func(name, direct, allocated, total, requests, hours string) {
		cells := []string{name, direct, allocated, total, requests}
		if gpus {
			cells = append(cells, hours)
		}
		if res.Allocation == nil {
			cells = slices.Delete(cells, 1, 3)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	row(strings.ToUpper(strings.Join(f.by, "/")), "DIRECT USD", "ALLOCATED USD", "TOTAL USD", "REQUESTS", "GPU HOURS")
	for _, g := range res.Groups {
		row(groupName(g), g.Direct.GetCostUsd(), g.Allocated.GetCostUsd(), g.Totals.GetCostUsd(), fmt.Sprint(g.Totals.GetRequests()), gpuHours(g.Totals))
	}
	direct, err := directCost(res)
	if err != nil {
		return err
	}
	row("total", direct, res.Allocation.GetAllocated().GetCostUsd(), res.Totals.GetCostUsd(), fmt.Sprint(res.Totals.GetRequests()), gpuHours(res.Totals))
	return t.Flush()
}

// gpuHours is time of GPUs in hours of whole devices.
func gpuHours(t *pb.Totals) string {
	return fmt.Sprintf("%.3f", float64(t.GetGpuUs())/3_600_000_000)
}

// directCost is what of the total is not allocated.
func directCost(res *pb.GroupsResponse) (string, error) {
	if res.Allocation == nil {
		return "", nil
	}
	total, err := money.ParseSum(res.Totals.GetCostUsd())
	if err != nil {
		return "", fmt.Errorf("the total: %w", err)
	}
	allocated, err := money.ParseSum(res.Allocation.GetAllocated().GetCostUsd())
	if err != nil {
		return "", fmt.Errorf("what is allocated: %w", err)
	}
	err = total.Sub(allocated)
	return total.String(), err
}

// groupName is a group's values, with a word for what carries none.
func groupName(g *pb.Group) string {
	if g.Other {
		return "(other)"
	}
	names := slices.Clone(g.Group)
	for i, name := range names {
		if name == "" {
			names[i] = "(untagged)"
		}
	}
	return strings.Join(names, "/")
}
