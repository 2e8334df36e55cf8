package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/config"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const agentsLong = `GPU agents: each is of one tenant and has a credential of its own.

create prints the credential, which "tallystick agent" is given. issue prints it
again, under the newest pepper; the audit log says so first. What is revoked stays
revoked, and its streams end within seconds.

list says how many samples of each became GPU time, and what of them did not:
refused by a rule, lost before they were sent, too old, too far ahead, without time
(the first look at a device, or one that came too long after the look before) and
time that was clipped because a sample said to stand for more than
gputime.max_gap_seconds. Collectors that send GPUs by OTLP are listed below.

To change the pepper that all credentials are made of: rotate-pepper on the
machine with the file (other processes with the file notice within ten seconds),
then issue each agent's credential anew. The old ones live for 24 hours.

Exit codes: 2 usage, 4 authentication, 5 not found, 7 unavailable.`

// agentsFlags are the flags of the agents commands.
type agentsFlags struct {
	tenantFlags
	name string
}

// newAgentsCommand is `tallystick agents`.
func newAgentsCommand() *cobra.Command {
	f := &agentsFlags{}
	cmd := &cobra.Command{
		Use: "agents", Short: "Register, list and revoke GPU agents", Long: agentsLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	create := f.command("create", "Register an agent and print its credential", cobra.NoArgs, f.create)
	list := f.command("list", "List a tenant's agents", cobra.NoArgs, f.list)
	issue := f.command("issue AGENT_ID", "Print an agent's credential under the newest pepper", cobra.ExactArgs(1), f.issue)
	revoke := f.command("revoke AGENT_ID", "End an agent for ever", cobra.ExactArgs(1), f.revoke)
	create.Flags().StringVar(&f.name, "name", "", "which machine or cluster it is for (required)")
	cmd.AddCommand(create, list, issue, revoke, newRotatePepperCommand())
	return cmd
}

// create prints the credential alone on standard output, for a file or a pipe.
func (f *agentsFlags) create(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	if f.name == "" {
		return usageError("--name is needed")
	}
	var res pb.CreateAgentResponse
	if err := api.call(ctx, "/v1/agents", &pb.CreateAgentRequest{TenantId: f.tenant, Name: f.name}, &res); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &res)
	}
	if _, err := fmt.Fprintln(c.OutOrStdout(), res.Credential); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "%s of %s\n", res.Agent.AgentId, res.Agent.TenantId)
	return err
}

func (f *agentsFlags) list(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
	if !f.json {
		fmt.Fprintln(w, "AGENT\tNAME\tMADE BY\tISSUED\tLAST HEARTBEAT\tSTATE\tSAMPLES\tNOT COUNTED")
	}
	var collectors []*pb.Collector
	for token := ""; ; {
		var page pb.ListAgentsResponse
		q := url.Values{"tenant_id": {f.tenant}, "page_size": {"1000"}, "page_token": {token}}
		if err := api.call(ctx, "/v1/agents?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		collectors = append(collectors, page.Collectors...)
		for _, a := range page.Agents {
			if err := f.print(c.OutOrStdout(), w, a); err != nil {
				return err
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	for _, one := range collectors {
		if err := f.printCollector(c.OutOrStdout(), w, one); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (f *agentsFlags) print(out, table io.Writer, a *pb.Agent) error {
	if f.json {
		return printJSONLine(out, a)
	}
	state := "in force"
	if a.RevokedAt != nil {
		state = "revoked by " + a.RevokedBy
	}
	_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.AgentId, a.Name, a.CreatedBy, shortTime(a.IssuedAt), shortTime(a.ReportedAt), state,
		group(a.Samples.GetAccounted()), notCounted(a.Samples))
	return err
}

// printCollector prints who sends samples by OTLP.
func (f *agentsFlags) printCollector(out, table io.Writer, c *pb.Collector) error {
	if f.json {
		return printJSONLine(out, c)
	}
	_, err := fmt.Fprintf(table, "-\t%s\t-\t-\t-\tcollector\t%s\t%s\n", cmp.Or(c.Name, "-"), group(c.Samples.GetAccounted()), notCounted(c.Samples))
	return err
}

// notCounted says what of an agent's samples became no GPU time, and why; a dash for
// nothing. What came twice is not missing.
func notCounted(c *pb.SampleCounts) string {
	var parts []string
	add := func(n int64, what string) {
		if n > 0 {
			parts = append(parts, group(n)+" "+what)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(c.GetLost())) {
		add(c.Lost[reason], "lost ("+reason+")")
	}
	for _, rule := range slices.Sorted(maps.Keys(c.GetRefused())) {
		add(c.Refused[rule], "refused ("+rule+")")
	}
	add(c.GetTooOld(), "too old")
	add(c.GetTooFarAhead(), "too far ahead")
	add(c.GetMalformed(), "malformed")
	add(c.GetWithoutTime(), "without time")
	if us := c.GetClippedUs(); us > 0 {
		parts = append(parts, (time.Duration(us)*time.Microsecond).String()+" clipped")
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}

// shortTime is a time to the second, or a dash for none.
func shortTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Format(time.RFC3339)
}

func (f *agentsFlags) issue(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var res pb.IssueAgentResponse
	err := api.call(ctx, "/v1/agents/"+url.PathEscape(args[0])+":issue", &pb.IssueAgentRequest{TenantId: f.tenant}, &res)
	if err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &res)
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), res.Credential)
	return err
}

func (f *agentsFlags) revoke(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	err := api.call(ctx, "/v1/agents/"+url.PathEscape(args[0])+":revoke", &pb.RevokeAgentRequest{TenantId: f.tenant}, &pb.RevokeAgentResponse{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.ErrOrStderr(), "%s is revoked\n", args[0])
	return err
}

// newRotatePepperCommand is `tallystick agents rotate-pepper`, which works on the
// file alone: nobody but its owner can do it.
func newRotatePepperCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotate-pepper", Short: "Put a new pepper before the one in the file", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Sources{Flags: cmd.Flags(), Environ: os.Environ()})
			if err != nil {
				return err
			}
			if cfg.Agents.Pepper != "" {
				return usageError("the pepper comes from the environment: put a new one before it there")
			}
			if cfg.Agents.PepperVault != "" {
				return usageError("the pepper is in %s: put a new one before it there, with a space between", cfg.Agents.PepperVault)
			}
			if err := agentauth.RotatePepperFile(cmd.Context(), cfg.PepperPath()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%s has a new pepper; issue the agents' credentials anew within 24 hours\n", cfg.PepperPath())
			return err
		},
	}
	config.BindFlags(cmd.Flags())
	return cmd
}
