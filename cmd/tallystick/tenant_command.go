package main

import (
	"context"

	"github.com/spf13/cobra"
)

// tenantFlags are the flags of commands that ask a server, most of them about one
// tenant.
type tenantFlags struct {
	ledgerFlags
	json bool
}

// apiCall is what such a command does.
type apiCall func(ctx context.Context, api *ledgerAPI, c *cobra.Command, args []string) error

// command is a command that asks the server about one tenant.
func (f *tenantFlags) command(use, short string, args cobra.PositionalArgs, run apiCall) *cobra.Command {
	cmd := f.installation(use, short, args, run)
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "the tenant; may be left out when the token is of one")
	return cmd
}

// installation is a command that asks the server about all of it.
func (f *tenantFlags) installation(use, short string, args cobra.PositionalArgs, run apiCall) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := f.api()
			if err != nil {
				return err
			}
			return run(cmd.Context(), api, cmd, args)
		},
	}
	f.serverFlags(cmd.Flags())
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}
