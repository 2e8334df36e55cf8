package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/secrets"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const secretsLong = `Secrets that a tenant has given us to keep, such as provider keys and webhook
addresses. They are stored sealed and shown masked.

A value is read from standard input or from a file, never from the command line,
where other users of the machine and the shell's history see it. One line end at
its end is left out. After a rotation the old value is live for 24 hours.

reveal needs a token with the scope decrypt, and a reason; both are in the audit
log before the value is on the screen.

Exit codes: 2 usage, 4 authentication, 5 not found or destroyed, 7 unavailable.`

// secretsFlags are the flags of the secrets commands.
type secretsFlags struct {
	tenantFlags
	kind, name string
	from       string
	reason     string
}

// newSecretsCommand is `tallystick secrets`.
func newSecretsCommand() *cobra.Command {
	f := &secretsFlags{}
	cmd := &cobra.Command{
		Use: "secrets", Short: "Keep, rotate, show and revoke a tenant's secrets", Long: secretsLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	add := f.command("add", "Keep a secret", cobra.NoArgs, f.add)
	list := f.command("list", "List a tenant's secrets, masked", cobra.NoArgs, f.list)
	rotate := f.command("rotate SECRET_ID", "Give a secret a new value", cobra.ExactArgs(1), f.rotate)
	revoke := f.command("revoke SECRET_ID", "End a secret and take its values out", cobra.ExactArgs(1), f.revoke)
	reveal := f.command("reveal SECRET_ID", "Print the full value", cobra.ExactArgs(1), f.reveal)
	add.Flags().StringVar(&f.kind, "kind", "", strings.Join(secrets.Kinds(), ", ")+" (required)")
	add.Flags().StringVar(&f.name, "name", "", "what it is called (required)")
	for _, c := range []*cobra.Command{add, rotate} {
		c.Flags().StringVar(&f.from, "value-file", "-", "read the value from `FILE`; - is standard input")
	}
	reveal.Flags().StringVar(&f.reason, "reason", "", "why, for the audit log (required)")
	cmd.AddCommand(add, list, rotate, revoke, reveal)
	return cmd
}

// value reads the secret.
func (f *secretsFlags) value(c *cobra.Command) (string, error) {
	in := c.InOrStdin()
	if f.from != "-" {
		file, err := os.Open(f.from)
		if err != nil {
			return "", usageError("--value-file: %w", err)
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(io.LimitReader(in, secrets.MaxValueBytes+2))
	if err != nil {
		return "", usageError("the value cannot be read: %w", err)
	}
	v := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if v == "" {
		return "", usageError("the value is empty")
	}
	return v, nil
}

func (f *secretsFlags) add(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	if f.kind == "" || f.name == "" {
		return usageError("--kind and --name are needed")
	}
	v, err := f.value(c)
	if err != nil {
		return err
	}
	var s pb.Secret
	if err := api.call(ctx, "/v1/secrets", &pb.AddSecretRequest{TenantId: f.tenant, Kind: f.kind, Name: f.name, Value: v}, &s); err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &s)
}

func (f *secretsFlags) rotate(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	v, err := f.value(c)
	if err != nil {
		return err
	}
	var s pb.Secret
	err = api.call(ctx, "/v1/secrets/"+url.PathEscape(args[0])+":rotate", &pb.RotateSecretRequest{TenantId: f.tenant, Value: v}, &s)
	if err != nil {
		return err
	}
	return f.print(c.OutOrStdout(), &s)
}

func (f *secretsFlags) revoke(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	err := api.call(ctx, "/v1/secrets/"+url.PathEscape(args[0])+":revoke", &pb.RevokeSecretRequest{TenantId: f.tenant}, &pb.RevokeSecretResponse{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.ErrOrStderr(), "%s is revoked, its values are taken out\n", args[0])
	return err
}

func (f *secretsFlags) reveal(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	if f.reason == "" {
		return usageError("--reason is needed")
	}
	var res pb.RevealSecretResponse
	err := api.call(ctx, "/v1/secrets/"+url.PathEscape(args[0])+":reveal", &pb.RevealSecretRequest{TenantId: f.tenant, Reason: f.reason}, &res)
	if err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &res)
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), res.Value)
	return err
}

func (f *secretsFlags) list(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var all []*pb.Secret
	for token := ""; ; {
		var page pb.ListSecretsResponse
		q := url.Values{"tenant_id": {f.tenant}, "page_size": {"1000"}, "page_token": {token}}
		if err := api.call(ctx, "/v1/secrets?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		all = append(all, page.Secrets...)
		if token = page.NextPageToken; token == "" {
			return f.print(c.OutOrStdout(), all...)
		}
	}
}

func (f *secretsFlags) print(w io.Writer, list ...*pb.Secret) error {
	if f.json {
		for _, s := range list {
			if err := printJSONLine(w, s); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "SECRET\tKIND\tNAME\tVALUE\tVERSION\tROTATE BY\tSTATE")
	for _, s := range list {
		state := "in force"
		switch {
		case s.RevokedAt != nil:
			state = "revoked"
		case s.Destroyed:
			state = "unreadable: the sealing keys are destroyed"
		case s.PreviousUntil != nil:
			state += ", the old value until " + s.PreviousUntil.AsTime().Format(time.RFC3339)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.SecretId, s.Kind, s.Name, s.Masked, s.Version, s.RotateBy.AsTime().Format(time.DateOnly), state)
	}
	return t.Flush()
}
