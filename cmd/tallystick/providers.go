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
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/internal/provider"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const providersLong = `What a tenant lets the metering proxy do with its providers: the keys that calls
go with, kill switches, rate limits and monthly spend caps. Every change is in the
audit log, and in force in every proxy within five seconds.

A key is read from standard input or from a file, never from the command line,
where other users of the machine and the shell's history see it. It is stored
sealed and shown masked. After a rotation the old key is live for 24 hours.

The key for bedrock is an AWS credential, with which the proxy signs each request, or
an API key of Bedrock. A credential is ACCESS_KEY_ID:SECRET_ACCESS_KEY, with
:SESSION_TOKEN behind that for a temporary one, or the JSON that aws iam
create-access-key, aws sts assume-role or aws configure export-credentials prints.

A switch or cap of a team is about the calls whose entries name the team: mapping
rules decide (tallystick mapping), so a rule with override binds a credential to its
team whatever its callers send.

Rate limits hold in each proxy by itself. A spend cap counts what calls cost from
when it is first set; of several proxies each knows what the others have spent as
of a few seconds ago.

Exit codes: 2 usage, 4 authentication, 5 not found or destroyed, 6 conflict,
7 unavailable.`

// providersFlags are the flags of the providers commands.
type providersFlags struct {
	secretsFlags
	baseURL          string
	scope, subject   string
	requests, tokens int64
	usd              string
	none             bool
}

// newProvidersCommand is `tallystick providers`.
func newProvidersCommand() *cobra.Command {
	f := &providersFlags{}
	cmd := &cobra.Command{
		Use: "providers", Short: "Provider keys, kill switches, rate limits and spend caps of the proxy", Long: providersLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	add := f.command("add PROVIDER", "Keep a provider key", cobra.ExactArgs(1), f.addKey)
	rotate := f.command("rotate SECRET_ID", "Give a provider key a new value", cobra.ExactArgs(1), f.rotateKey)
	kill := f.command("kill", "Stop calls: they are answered with 451", cobra.NoArgs, f.kill)
	limit := f.command("limit KEY_ID", "Set what a token or a provider key may do in a minute", cobra.ExactArgs(1), f.limit)
	limitCap := f.command("cap", "Set what may be spent in a calendar month", cobra.NoArgs, f.setCap)
	add.Flags().StringVar(&f.name, "name", "", "what it is called (default: the provider)")
	add.Flags().StringVar(&f.baseURL, "base-url", "", "what stands before the provider's own paths (default: the provider's address)")
	for _, c := range []*cobra.Command{add, rotate} {
		c.Flags().StringVar(&f.from, "value-file", "-", "read the key from `FILE`; - is standard input")
	}
	kill.Flags().StringVar(&f.reason, "reason", "", "why, for callers and the audit log (required)")
	for _, c := range []*cobra.Command{kill, limitCap} {
		c.Flags().StringVar(&f.scope, "scope", provider.ScopeTenant, strings.Join(provider.Scopes(), ", "))
		c.Flags().StringVar(&f.subject, "subject", "", "which key (tok_… or sec_…), team or model; a model may end in * for any end")
	}
	limit.Flags().Int64Var(&f.requests, "requests", 0, "requests per minute; 0 is no limit")
	limit.Flags().Int64Var(&f.tokens, "tokens", 0, "tokens per minute; 0 is no limit")
	limitCap.Flags().StringVar(&f.usd, "usd", "", "USD per month, a decimal")
	limitCap.Flags().BoolVar(&f.none, "none", false, "end the cap")
	capture := f.command("capture [on|off]", "Say or set whether keyed digests of prompts are kept", cobra.MaximumNArgs(1), f.capture)
	capture.ValidArgs = []string{"on", "off"}
	cmd.AddCommand(add, rotate, kill, limit, limitCap, capture,
		f.command("list", "List a tenant's provider keys, masked", cobra.NoArgs, f.listKeys),
		f.command("revoke SECRET_ID", "End a provider key and take its values out", cobra.ExactArgs(1), f.revokeKey),
		f.command("lift SWITCH_ID", "Let calls go again", cobra.ExactArgs(1), f.lift),
		f.command("switches", "List kill switches", cobra.NoArgs, f.switches),
		f.command("limits", "List rate limits", cobra.NoArgs, f.limits),
		f.command("caps", "List spend caps and what was spent this month", cobra.NoArgs, f.caps))
	return cmd
}

func (f *providersFlags) addKey(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	v, err := f.value(c)
	if err != nil {
		return err
	}
	var k pb.ProviderKey
	req := &pb.AddProviderKeyRequest{TenantId: f.tenant, Provider: args[0], Name: f.name, BaseUrl: f.baseURL, Value: v}
	if err := api.call(ctx, "/v1/providers/keys", req, &k); err != nil {
		return err
	}
	return f.printKeys(c.OutOrStdout(), []*pb.ProviderKey{&k})
}

func (f *providersFlags) rotateKey(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	v, err := f.value(c)
	if err != nil {
		return err
	}
	var k pb.ProviderKey
	err = api.call(ctx, "/v1/providers/keys/"+url.PathEscape(args[0])+":rotate", &pb.RotateProviderKeyRequest{TenantId: f.tenant, Value: v}, &k)
	if err != nil {
		return err
	}
	return f.printKeys(c.OutOrStdout(), []*pb.ProviderKey{&k})
}

func (f *providersFlags) revokeKey(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	err := api.call(ctx, "/v1/providers/keys/"+url.PathEscape(args[0])+":revoke", &pb.RevokeProviderKeyRequest{TenantId: f.tenant}, &pb.RevokeProviderKeyResponse{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.ErrOrStderr(), "%s is revoked, its values are taken out\n", args[0])
	return err
}

func (f *providersFlags) kill(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	if f.reason == "" {
		return usageError("--reason is needed")
	}
	var w pb.KillSwitch
	req := &pb.ThrowKillSwitchRequest{TenantId: f.tenant, Scope: f.scope, Subject: f.subject, Reason: f.reason}
	if err := api.call(ctx, "/v1/providers/switches", req, &w); err != nil {
		return err
	}
	return f.printSwitches(c.OutOrStdout(), []*pb.KillSwitch{&w})
}

func (f *providersFlags) lift(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	err := api.call(ctx, "/v1/providers/switches/"+url.PathEscape(args[0])+":lift", &pb.LiftKillSwitchRequest{TenantId: f.tenant}, &pb.LiftKillSwitchResponse{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.ErrOrStderr(), "%s is lifted\n", args[0])
	return err
}

func (f *providersFlags) limit(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var l pb.KeyLimit
	req := &pb.SetKeyLimitRequest{TenantId: f.tenant, KeyId: args[0], RequestsPerMinute: f.requests, TokensPerMinute: f.tokens}
	if err := api.call(ctx, "/v1/providers/limits", req, &l); err != nil {
		return err
	}
	return f.printLimits(c.OutOrStdout(), []*pb.KeyLimit{&l})
}

func (f *providersFlags) setCap(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	if (f.usd == "") != f.none {
		return usageError("one of --usd and --none is needed")
	}
	req := &pb.SetSpendCapRequest{TenantId: f.tenant, Scope: f.scope, Subject: f.subject}
	if !f.none {
		req.UsdPerMonth = &f.usd
	}
	if err := api.call(ctx, "/v1/providers/caps", req, &pb.SetSpendCapResponse{}); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.ErrOrStderr(), "the cap is set")
	return err
}

func (f *providersFlags) capture(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error {
	var now pb.Capture
	var err error
	switch {
	case len(args) == 0:
		err = api.call(ctx, "/v1/providers/capture?"+url.Values{"tenant_id": {f.tenant}}.Encode(), nil, &now)
	case args[0] != "on" && args[0] != "off":
		return usageError("capture is on or off")
	default:
		err = api.call(ctx, "/v1/providers/capture", &pb.SetCaptureRequest{TenantId: f.tenant, PromptDigests: args[0] == "on"}, &now)
	}
	if err != nil {
		return err
	}
	return printRows(c.OutOrStdout(), f.json, []*pb.Capture{&now}, "PROMPT DIGESTS\tSET BY\tSINCE", func(m *pb.Capture) string {
		state, since := "off", "never set"
		if m.PromptDigests {
			state = "on"
		}
		if m.SetAt != nil {
			since = m.SetAt.AsTime().Format(time.RFC3339)
		}
		return fmt.Sprintf("%s\t%s\t%s", state, m.SetBy, since)
	})
}

// pages reads a list to its end.
func pages[M proto.Message](ctx context.Context, api *ledgerAPI, path, tenant string, page func() M, take func(M) string) error {
	for token := ""; ; {
		p := page()
		q := url.Values{"tenant_id": {tenant}, "page_size": {"1000"}, "page_token": {token}}
		if err := api.call(ctx, path+"?"+q.Encode(), nil, p); err != nil {
			return err
		}
		if token = take(p); token == "" {
			return nil
		}
	}
}

func (f *providersFlags) listKeys(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var all []*pb.ProviderKey
	err := pages(ctx, api, "/v1/providers/keys", f.tenant, func() *pb.ListProviderKeysResponse { return &pb.ListProviderKeysResponse{} },
		func(p *pb.ListProviderKeysResponse) string { all = append(all, p.Keys...); return p.NextPageToken })
	if err != nil {
		return err
	}
	return f.printKeys(c.OutOrStdout(), all)
}

func (f *providersFlags) switches(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var all []*pb.KillSwitch
	err := pages(ctx, api, "/v1/providers/switches", f.tenant, func() *pb.ListKillSwitchesResponse { return &pb.ListKillSwitchesResponse{} },
		func(p *pb.ListKillSwitchesResponse) string { all = append(all, p.Switches...); return p.NextPageToken })
	if err != nil {
		return err
	}
	return f.printSwitches(c.OutOrStdout(), all)
}

func (f *providersFlags) limits(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var all []*pb.KeyLimit
	err := pages(ctx, api, "/v1/providers/limits", f.tenant, func() *pb.ListKeyLimitsResponse { return &pb.ListKeyLimitsResponse{} },
		func(p *pb.ListKeyLimitsResponse) string { all = append(all, p.Limits...); return p.NextPageToken })
	if err != nil {
		return err
	}
	return f.printLimits(c.OutOrStdout(), all)
}

func (f *providersFlags) caps(ctx context.Context, api *ledgerAPI, c *cobra.Command, _ []string) error {
	var res pb.ListSpendCapsResponse
	if err := api.call(ctx, "/v1/providers/caps?"+url.Values{"tenant_id": {f.tenant}}.Encode(), nil, &res); err != nil {
		return err
	}
	return printRows(c.OutOrStdout(), f.json, res.Caps, "SCOPE\tSUBJECT\tUSD A MONTH\tSPENT\tSET BY", func(m *pb.SpendCap) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", m.Scope, m.Subject, m.UsdPerMonth, m.SpentUsd, m.SetBy)
	})
}

// printRows prints messages as JSON lines or as a table.
func printRows[M proto.Message](w io.Writer, asJSON bool, list []M, head string, row func(M) string) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if !asJSON {
		fmt.Fprintln(t, head)
	}
	for _, m := range list {
		if asJSON {
			if err := printJSONLine(w, m); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(t, row(m))
	}
	return t.Flush()
}

func (f *providersFlags) printKeys(w io.Writer, list []*pb.ProviderKey) error {
	return printRows(w, f.json, list, "KEY\tPROVIDER\tNAME\tVALUE\tVERSION\tBASE URL\tROTATE BY\tSTATE", func(k *pb.ProviderKey) string {
		state := "in force"
		if k.RevokedAt != nil {
			state = "revoked"
		} else if k.PreviousUntil != nil {
			state += ", the old value until " + k.PreviousUntil.AsTime().Format(time.RFC3339)
		}
		base := k.BaseUrl
		if base == "" {
			base = "the provider's"
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s", k.SecretId, k.Provider, k.Name, k.Masked, k.Version, base, k.RotateBy.AsTime().Format(time.DateOnly), state)
	})
}

func (f *providersFlags) printSwitches(w io.Writer, list []*pb.KillSwitch) error {
	return printRows(w, f.json, list, "SWITCH\tSCOPE\tSUBJECT\tREASON\tBY\tSINCE\tSTATE", func(s *pb.KillSwitch) string {
		state := "in force"
		if s.LiftedAt != nil {
			state = "lifted by " + s.LiftedBy
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s", s.SwitchId, s.Scope, s.Subject, s.Reason, s.CreatedBy, s.CreatedAt.AsTime().Format(time.RFC3339), state)
	})
}

func (f *providersFlags) printLimits(w io.Writer, list []*pb.KeyLimit) error {
	return printRows(w, f.json, list, "KEY\tREQUESTS A MINUTE\tTOKENS A MINUTE\tSET BY", func(l *pb.KeyLimit) string {
		return fmt.Sprintf("%s\t%d\t%d\t%s", l.KeyId, l.RequestsPerMinute, l.TokensPerMinute, l.SetBy)
	})
}
