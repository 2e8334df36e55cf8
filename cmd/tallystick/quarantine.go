package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/migrations"
)

// newQuarantineCommand is `tallystick ledger quarantine`.
func newQuarantineCommand() *cobra.Command {
	var d pgstore.Decision
	cmd := &cobra.Command{
		Use:   "quarantine --partition P --offset N --reason TEXT",
		Short: "Turn the record that halted a partition into a ledgered rejection",
		Long: `Turn the record that halted a partition into a ledgered rejection.

The database refused what the record would have become, and the writer halted
with its offset. The decision is kept for ever with its time, reason and
operator; the next writer of the partition appends rejected(quarantined) in the
record's place. Only the record that the partition waits at can be quarantined.

The decision is a row of the audit log, too: the keys of the data directory are
needed. With a Postgres of your own, give the DSN of the role that owns the tables, and
start the halted server again afterwards. With the embedded Postgres, stop the
server first: this command starts the engine for a moment.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Sources{Flags: cmd.Flags(), Environ: os.Environ()})
			if err != nil {
				return err
			}
			if err := quarantine(cmd.Context(), cfg, d); err != nil {
				return quarantineExit(err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "quarantined: partition %d offset %d; it counts from the next start of the writer\n", d.Partition, d.Offset)
			return err
		},
	}
	config.BindFlags(cmd.Flags())
	cmd.Flags().Int32Var(&d.Partition, "partition", 0, "partition of the topic events")
	cmd.Flags().Int64Var(&d.Offset, "offset", 0, "offset of the record, as the halted writer names it")
	cmd.Flags().StringVar(&d.Reason, "reason", "", "why, for the auditor (1 to 500 bytes)")
	cmd.Flags().StringVar(&d.Operator, "operator", currentUser(), "who decides (1 to 200 bytes)")
	for _, name := range []string{"partition", "offset", "reason"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag stands three lines above
		}
	}
	return cmd
}

func quarantine(ctx context.Context, cfg *config.Config, d pgstore.Decision) (err error) {
	if !cfg.EmbeddedPostgres() {
		return quarantineIn(ctx, cfg, cfg.Postgres.DSN.Reveal(), d)
	}
	dir := filepath.Join(cfg.DataDir, "postgres")
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("no embedded ledger here: %w", err)
	}
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{DataDir: dir, BinDir: cfg.Postgres.BinDir, EnginesDir: cfg.Engines.Dir})
	if errors.Is(err, embedded.ErrDataDirInUse) {
		return fmt.Errorf("stop the running server first: %w", err)
	}
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineStopTime)
		defer cancel()
		err = errors.Join(err, pg.Stop(ctx))
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return quarantineIn(ctx, cfg, postgresChild{pg}.DSN(), d)
}

// quarantineIn makes the decision, between the two rows of it in the audit log.
// Without the first one it is not made.
func quarantineIn(ctx context.Context, cfg *config.Config, dsn string, d pgstore.Decision) error {
	if err := migrations.Postgres(ctx, dsn); err != nil {
		return err
	}
	ring, err := keyring.OpenExisting(filepath.Join(cfg.DataDir, "keys"), nil)
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	defer ring.Close()
	logins, signer, err := provision(ctx, dsn, ring)
	if err != nil {
		return err
	}
	db, err := postgres.Open(ctx, logins[postgres.RoleApp], signer, postgres.Options{MaxConns: 1, Name: "tallystick quarantine", Role: postgres.RoleApp})
	if err != nil {
		return err
	}
	defer db.Close()
	log := audit.NewLog(db, ring)
	ev := audit.Event{
		Actor: d.Operator, Action: "record.quarantine", Resource: fmt.Sprintf("events/%d/%d", d.Partition, d.Offset),
		Outcome: audit.Attempted, Reason: d.Reason, Client: "tallystick ledger quarantine",
	}
	if err := log.Record(ctx, ev); err != nil {
		return err
	}
	ev.Outcome = audit.OK
	err = pgstore.Quarantine(ctx, dsn, d)
	if err != nil {
		ev.Outcome = audit.Failed
	}
	return errors.Join(err, log.Record(ctx, ev))
}

// quarantineExit gives the error its exit code.
func quarantineExit(err error) error {
	switch {
	case errors.Is(err, pgstore.ErrElsewhere), errors.Is(err, pgstore.ErrDecided):
		return &exitError{exitConflict, err}
	case errors.Is(err, pgstore.ErrDecision):
		return &exitError{exitUsage, err}
	case errors.Is(err, embedded.ErrDataDirInUse):
		return &exitError{exitUnavailable, err}
	default:
		return err
	}
}

// currentUser is who runs the command, as far as the system says.
func currentUser() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}
