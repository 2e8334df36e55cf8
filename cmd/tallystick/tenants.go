package main

import (
	"context"
	"fmt"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const tenantsLong = `Tenants: whose usage is counted, each with a ledger, keys and tokens of its own.

An id is 1 to 63 of a-z, 0-9 and hyphens, and does not begin with a hyphen. It stands
in signed checkpoints and is never given to another tenant.

Exit codes: 2 usage, 4 authentication, 7 unavailable.`

// newTenantsCommand is `tallystick tenants`.
func newTenantsCommand() *cobra.Command {
	f := &tenantFlags{}
	cmd := &cobra.Command{
		Use: "tenants", Short: "Make and list tenants", Long: tenantsLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		f.installation("create TENANT…", "Make tenants with their keys; those that exist stay as they are", cobra.MinimumNArgs(1), f.createTenants),
		f.installation("list", "List all tenants", cobra.NoArgs, f.listTenants),
	)
	return cmd
}

func (f *tenantFlags) createTenants(ctx context.Context, api *ledgerAPI, c *cobra.Command, ids []string) error {
	for _, id := range ids {
		if _, err := tenant.ParseID(id); err != nil {
			return usageError("%v", err)
		}
	}
	var res pb.CreateTenantsResponse
	if err := api.call(ctx, "/v1/tenants:batchCreate", &pb.CreateTenantsRequest{TenantIds: ids}, &res); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &res)
	}
	for _, id := range res.Created {
		if _, err := fmt.Fprintln(c.OutOrStdout(), id); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "made %d, %d were there\n", len(res.Created), len(ids)-len(res.Created))
	return err
}

func (f *tenantFlags) listTenants(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
	for token, first := "", true; first || token != ""; first = false {
		var page pb.ListTenantsResponse
		q := url.Values{"page_size": {"1000"}, "page_token": {token}}
		if err := api.call(ctx, "/v1/tenants?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		if first && !f.json {
			fmt.Fprintln(w, "TENANT\tMADE\tPARTITION")
		}
		for _, t := range page.Tenants {
			if f.json {
				if err := printJSONLine(c.OutOrStdout(), t); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%d\n", t.TenantId, t.CreatedAt.AsTime().Format(time.RFC3339), t.Partition)
		}
		token = page.NextPageToken
	}
	return w.Flush()
}
