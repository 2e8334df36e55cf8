package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const keysLong = `The keys of tenants: list, rotate, destroy, rewrap. No key is ever shown.

Keys go through epochs in four series: mac, checkpoint, audit and sealing. A
rotation begins a new epoch and rewrites nothing. Epochs also change by
themselves, at the ages that the settings keys.* say. A new MAC epoch is "next"
until the ledger has met its control record, a moment later.

The commands ask the server, which writes each change into the audit log before
it happens. Several servers may share one keyring: all follow at once.

Exit codes: 2 usage, 4 authentication, 5 not found or destroyed, 7 unavailable.`

// keysFlags are the flags of all `keys` commands.
type keysFlags struct {
	ledgerFlags
	json   bool
	series []string
	yes    bool
}

// newKeysCommand is `tallystick keys`.
func newKeysCommand() *cobra.Command {
	f := &keysFlags{}
	cmd := &cobra.Command{
		Use: "keys", Short: "List, rotate, destroy and rewrap the keys of tenants", Long: keysLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := f.command("list", "List the epochs of a tenant's keys", f.list)
	rotate := f.command("rotate", "Begin new epochs of a tenant's keys", f.rotate)
	destroy := f.command("destroy", "Destroy what is sealed for a tenant, for good", f.destroy)
	rewrap := f.command("rewrap", "Wrap every root key anew, after the key service's key or setting changed", f.rewrap)
	for _, c := range []*cobra.Command{list, rotate, destroy} {
		c.Flags().StringVar(&f.tenant, "tenant", "", "the tenant; may be left out when the token is of one")
	}
	list.Flags().StringVar(&f.keysDir, "keys-dir", "", "read the keyring in `DIR` without the server")
	rotate.Flags().StringSliceVar(&f.series, "series", nil, "only these `SERIES` of mac, checkpoint, audit and sealing (default: all)")
	destroy.Flags().BoolVar(&f.yes, "yes", false, "it cannot be undone, and I mean it")
	destroy.Long = `Destroy the root of what is sealed for a tenant: identities of persons,
confidential tags, and secrets. Nothing of it can be opened again, and the
tenant sends no more events. Its ledger stays and verifies.

Backups of the keyring still hold the root until they are rotated, and so may a
flash disk or a file system that copies on write: the root is only as gone as
they are.`
	cmd.AddCommand(list, rotate, destroy, rewrap)
	return cmd
}

func (f *keysFlags) command(use, short string, run func(ctx context.Context, c *cobra.Command) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cmd) },
	}
	f.serverFlags(cmd.Flags())
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (f *keysFlags) list(ctx context.Context, c *cobra.Command) error {
	if f.keysDir != "" {
		return f.listDir(c.OutOrStdout())
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	var out pb.ListKeysResponse
	if err := api.call(ctx, "/v1/keys?"+url.Values{"tenant_id": {f.tenant}}.Encode(), nil, &out); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &out)
	}
	return printEpochs(c.OutOrStdout(), epochsOf(out.TenantId, out.Epochs))
}

// listDir lists what a keyring's directory says, without its master key.
func (f *keysFlags) listDir(w io.Writer) error {
	if f.json {
		return usageError("--json needs the server")
	}
	all, err := keyring.ReadEpochs(f.keysDir)
	if err != nil {
		return &exitError{exitUnknown, err}
	}
	var rows []epochRow
	for _, e := range all {
		if f.tenant != "" && string(e.Tenant) != f.tenant {
			continue
		}
		r := epochRow{string(e.Tenant), e.Series.String(), e.State.String(), "-", e.Number}
		if !e.Since.IsZero() {
			r.since = e.Since.Format(time.RFC3339)
		}
		rows = append(rows, r)
	}
	return printEpochs(w, rows)
}

func (f *keysFlags) rotate(ctx context.Context, c *cobra.Command) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var out pb.RotateKeysResponse
	if err := api.call(ctx, "/v1/keys:rotate", &pb.RotateKeysRequest{TenantId: f.tenant, Series: f.series}, &out); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &out)
	}
	return printEpochs(c.OutOrStdout(), epochsOf(out.TenantId, out.Epochs))
}

func (f *keysFlags) destroy(ctx context.Context, c *cobra.Command) error {
	if f.tenant == "" {
		return usageError("name the tenant with --tenant")
	}
	if !f.yes {
		fmt.Fprintf(c.ErrOrStderr(), "This destroys what is sealed for %s, for good. Type the tenant's name to go on: ", f.tenant)
		var typed string
		if _, err := fmt.Fscanln(c.InOrStdin(), &typed); err != nil || typed != f.tenant {
			return usageError("not destroyed: the name was not typed; or say --yes")
		}
	}
	api, err := f.api()
	if err != nil {
		return err
	}
	var out pb.DestroySealingKeysResponse
	err = api.call(ctx, "/v1/keys:destroy", &pb.DestroySealingKeysRequest{TenantId: f.tenant, ConfirmTenantId: f.tenant}, &out)
	if err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &out)
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "Destroyed: nothing that was sealed for %s can be opened again, once backups of the keyring are rotated. Its ledger still verifies.\n", out.TenantId)
	return err
}

func (f *keysFlags) rewrap(ctx context.Context, c *cobra.Command) error {
	api, err := f.api()
	if err != nil {
		return err
	}
	var out pb.RewrapKeysResponse
	if err := api.call(ctx, "/v1/keys:rewrap", &pb.RewrapKeysRequest{}, &out); err != nil {
		return err
	}
	if f.json {
		return printJSONLine(c.OutOrStdout(), &out)
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%d root keys are wrapped anew\n", out.Keys)
	return err
}

// epochRow is one line of a list.
type epochRow struct {
	tenant, series, state, since string
	epoch                        uint32
}

// epochsOf are the epochs of an answer as rows.
func epochsOf(id string, epochs []*pb.KeyEpoch) []epochRow {
	rows := make([]epochRow, len(epochs))
	for i, e := range epochs {
		rows[i] = epochRow{id, e.Series, e.State, "-", e.Epoch}
		if e.Since.IsValid() {
			rows[i].since = e.Since.AsTime().UTC().Format(time.RFC3339)
		}
	}
	return rows
}

func printEpochs(w io.Writer, rows []epochRow) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "TENANT\tSERIES\tEPOCH\tSTATE\tSINCE")
	for _, r := range rows {
		fmt.Fprintf(out, "%s\t%s\t%d\t%s\t%s\n", r.tenant, r.series, r.epoch, r.state, r.since)
	}
	return out.Flush()
}

// startRotation begins key epochs when they are due, and leads MAC epochs to
// the ledger, whichever process or command began them.
func (a *app) startRotation() {
	r := &keyring.Rotator{
		Ring: a.ring, Schedule: schedule(a.cfg), Announce: a.registrar.MoveEpochs, Due: a.auditDue, Log: a.log,
	}
	a.start("keys", r.Run)
}

// auditDue puts epochs that are about to begin into the audit log.
func (a *app) auditDue(ctx context.Context, epochs []keyring.KeyEpoch) error {
	for _, e := range epochs {
		err := a.access.log.Record(ctx, audit.Event{
			Tenant: e.Tenant, Actor: "tallystick", Action: "key.rotate", Outcome: audit.Attempted,
			Resource: fmt.Sprintf("key/%s/%d", e.Series, e.Number), Reason: "due by its age", Client: "tallystick",
		})
		if err != nil {
			return err
		}
	}
	return nil
}
