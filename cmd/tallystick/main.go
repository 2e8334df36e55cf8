// Command tallystick turns AI usage into a ledger that finance can sign: it runs
// the whole pipeline (up), its parts (serve), and everything a person does with
// it on the command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/transport"
)

// Exit codes, the same for every subcommand (README.md lists them).
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitIntegrity   = 3
	exitAuth        = 4
	exitNotFound    = 5
	exitConflict    = 6
	exitUnavailable = 7
	exitUnknown     = 8
)

// exitError carries the exit code that a failure ends with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	embedded.MaybeChild() // in the ClickHouse child this never returns
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second Ctrl-C ends the process at once: everything is safe to kill.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := newRootCommand()
	root.SetArgs(args)
	begun := false
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := cmd.ValidateRequiredFlags(); err != nil { // else cobra looks when the command has begun
			return err
		}
		begun = true
		return nil
	}
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !begun { // an unknown command, flag or argument, or a flag that is missing
		err = &exitError{exitUsage, err}
	}
	fmt.Fprintln(os.Stderr, "tallystick:", err)
	return exitCode(err)
}

// exitCode is what an error ends the program with.
func exitCode(err error) int {
	var e *exitError
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, config.ErrInvalid), errors.Is(err, transport.ErrCertificate):
		return exitUsage
	default:
		return exitFailure
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "tallystick",
		Short:         "The ledger for AI spend",
		Long:          "Tallystick turns AI usage events into money exactly once, in a hash-chained ledger that an auditor can verify.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	root.AddCommand(newUpCommand(), newProxyCommand(), newAgentCommand(), newStatusCommand(), newLedgerCommand(), newKeysCommand(), newSubjectCommand(), newPricesCommand(), newWitnessCommand(), newTenantsCommand(), newTokensCommand(), newAgentsCommand(), newSecretsCommand(), newProvidersCommand(), newBedrockCommand(), newMappingCommand(), newCostCommand(), newAuditCommand(), newEmitCommand(), newSmokeCommand(), newBenchCommand(), newBenchPartCommand(), newVersionCommand())
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionString())
			return err
		},
	}
}
