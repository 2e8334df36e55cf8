package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/authn"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const tokensLong = `API tokens: each is of one tenant, may do what its scopes say, and ends.

A token is shown once, when it is made; the server keeps a digest of it. One
that is revoked is refused everywhere within five seconds.

Exit codes: 2 usage, 4 authentication, 5 not found, 7 unavailable.`

// tokensFlags are the flags of the tokens commands.
type tokensFlags struct {
	tenantFlags
	name   string
	scopes []string
	life   time.Duration
}

// newTokensCommand is `tallystick tokens`.
func newTokensCommand() *cobra.Command {
	f := &tokensFlags{}
	cmd := &cobra.Command{
		Use: "tokens", Short: "Make, list and revoke API tokens", Long: tokensLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	create := f.command("create", "Make a token and print it, once", cobra.NoArgs, f.create)
	list := f.command("list", "List a tenant's tokens", cobra.NoArgs, f.list)
	revoke := f.command("revoke TOKEN_ID", "End a token for ever", cobra.ExactArgs(1), f.revoke)
	create.Flags().StringVar(&f.name, "name", "", "what it is for (required)")
	create.Flags().StringSliceVar(&f.scopes, "scope", nil, "what it may do: "+strings.Join(authn.ScopeNames(), ", ")+" (required)")
	create.Flags().DurationVar(&f.life, "life", authn.DefaultTokenLife, "when it ends, from now; at most 366 days")
	cmd.AddCommand(create, list, revoke)
	return cmd
}

// create prints the token alone on standard output, for a file or a pipe.
func (f *tokensFlags) create(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	if f.name == "" || len(f.scopes) == 0 {
		return usageError("--name and --scope are needed")
	}
	req := &pb.CreateTokenRequest{TenantId: f.tenant, Name: f.name, Scopes: f.scopes, ExpiresAt: timestamppb.New(time.Now().Add(f.life))}
	var res pb.CreateTokenResponse
	if err := api.call(ctx, "/v1/tokens", req, &res); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &res)
	}
	t := res.Token
	if _, err := fmt.Fprintln(c.OutOrStdout(), res.Secret); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.ErrOrStderr(), "%s of %s, for %s, until %s; it is not shown again\n",
		t.TokenId, t.TenantId, strings.Join(t.Scopes, ", "), t.ExpiresAt.AsTime().Format(time.RFC3339))
	return err
}

func (f *tokensFlags) list(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
	if !f.json {
		fmt.Fprintln(w, "TOKEN\tNAME\tSCOPES\tMADE BY\tENDS\tSTATE")
	}
	for token := ""; ; {
		var page pb.ListTokensResponse
		q := url.Values{"tenant_id": {f.tenant}, "page_size": {"1000"}, "page_token": {token}}
		if err := api.call(ctx, "/v1/tokens?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, t := range page.Tokens {
			if err := f.print(c.OutOrStdout(), w, t); err != nil {
				return err
			}
		}
		if token = page.NextPageToken; token == "" {
			return w.Flush()
		}
	}
}

func (f *tokensFlags) print(out, table io.Writer, t *pb.Token) error {
	if f.json {
		return printJSONLine(out, t)
	}
	state := "in force"
	switch {
	case t.RevokedAt != nil:
		state = "revoked by " + t.RevokedBy
	case t.ExpiresAt.AsTime().Before(time.Now()):
		state = "over"
	}
	_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", t.TokenId, t.Name, strings.Join(t.Scopes, ","), t.CreatedBy, t.ExpiresAt.AsTime().Format(time.DateOnly), state)
	return err
}

func (f *tokensFlags) revoke(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	err := api.call(ctx, "/v1/tokens/"+url.PathEscape(args[0])+":revoke", &pb.RevokeTokenRequest{TenantId: f.tenant}, &pb.RevokeTokenResponse{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.ErrOrStderr(), "%s is revoked\n", args[0])
	return err
}
