package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/verify"
)

const ledgerLong = `Read, verify and export ledgers.

By default the running server is asked (--url; its token is taken from
TALLYSTICK_TOKEN, --token-file or the data directory). With --postgres-dsn-file
verify and export read the ledger's database directly, in the tenant's context, with the keys
in --keys-dir; nothing of the server is used then.

Exit codes: 0 intact, 2 usage, 3 broken, 4 authentication, 5 not found,
7 unavailable, 8 cannot tell (part of the evidence is missing).`

// ledgerFlags are the flags of all `ledger` commands.
type ledgerFlags struct {
	url, tokenFile, dsnFile, keysDir string
	tenant                           string
	all                              bool
	from, to                         int64
	workers                          int
	file, output, outFile            string
	limit                            int
	descending, yes                  bool
	kept                             keptFlags
}

// newLedgerCommand is `tallystick ledger`.
func newLedgerCommand() *cobra.Command {
	f := &ledgerFlags{}
	cmd := &cobra.Command{
		Use: "ledger", Short: "Read, verify and export ledgers", Long: ledgerLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	verifyCmd, exportCmd := newLedgerVerifyCommand(f), newLedgerExportCommand(f)
	headCmd, entriesCmd := newLedgerHeadCommand(f), newLedgerEntriesCommand(f)
	proveCmd, checkpointCmd, compareCmd := newProveCommand(f), newCheckpointCommand(f), newLedgerCompareCommand(f)
	for _, sub := range []*cobra.Command{verifyCmd, headCmd, entriesCmd, exportCmd, proveCmd, checkpointCmd, compareCmd} {
		f.serverFlags(sub.Flags())
	}
	f.storeFlags(verifyCmd.Flags())
	f.storeFlags(exportCmd.Flags())
	cmd.AddCommand(verifyCmd, compareCmd, headCmd, entriesCmd, exportCmd, proveCmd, checkpointCmd, newLedgerMACKeysCommand(f), newQuarantineCommand())
	return cmd
}

// serverFlags say which server is asked.
func (f *ledgerFlags) serverFlags(fs *pflag.FlagSet) {
	fs.StringVar(&f.url, "url", envOr("TALLYSTICK_URL", "http://"+config.DefaultHTTPListen), "the server")
	fs.StringVar(&f.tokenFile, "token-file", "", "read the token from `FILE` (else TALLYSTICK_TOKEN, else the data directory)")
}

// storeFlags say which database is read in place of a server, and with what keys.
func (f *ledgerFlags) storeFlags(fs *pflag.FlagSet) {
	fs.StringVar(&f.dsnFile, "postgres-dsn-file", "", "read the database whose DSN stands in `FILE`, without the server")
	fs.StringVar(&f.keysDir, "keys-dir", "", "keyring `DIR` (default with --postgres-dsn-file: keys in the data directory)")
}

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// dataDir is where the server of this machine keeps token and keys.
func dataDir() (string, error) {
	cfg, err := config.Load(config.Sources{Environ: os.Environ()})
	if err != nil {
		return "", err
	}
	return cfg.DataDir, nil
}

// api makes the client of the running server.
func (f *ledgerFlags) api() (*ledgerAPI, error) {
	token, err := f.token()
	if err != nil {
		return nil, err
	}
	return &ledgerAPI{client.New(f.url, token)}, nil
}

func (f *ledgerFlags) token() (string, error) {
	if f.tokenFile != "" {
		token, err := authn.LoadToken(f.tokenFile)
		if err != nil {
			return "", usageError("--token-file: %w", err)
		}
		return token, nil
	}
	if token := os.Getenv("TALLYSTICK_TOKEN"); token != "" {
		return token, nil
	}
	dir, err := dataDir()
	if err != nil {
		return "", err
	}
	token, err := authn.LoadToken(filepath.Join(dir, "admin.token"))
	if err != nil {
		return "", &exitError{exitAuth, fmt.Errorf("no token: set TALLYSTICK_TOKEN or --token-file: %w", err)}
	}
	return token, nil
}

// ring opens the keyring; nil when none was asked for and none is needed.
func (f *ledgerFlags) ring() (*keyring.Ring, error) {
	if f.keysDir == "" && f.dsnFile == "" {
		return nil, nil
	}
	return f.openRing()
}

// openRing opens the keyring of --keys-dir, or that of the data directory.
func (f *ledgerFlags) openRing() (*keyring.Ring, error) {
	dir := f.keysDir
	if dir == "" {
		base, err := dataDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(base, "keys")
	}
	ring, err := keyring.OpenExisting(dir, nil)
	if err != nil {
		return nil, &exitError{exitUnknown, err}
	}
	return ring, nil
}

// direct is a ledger database that is read without the server.
type direct struct {
	ring *keyring.Ring
	db   *postgres.DB
}

func (f *ledgerFlags) direct(ctx context.Context) (*direct, error) {
	ring, err := f.ring()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(f.dsnFile)
	if err != nil {
		return nil, usageError("--postgres-dsn-file: %w", err)
	}
	signer := postgres.NewSigner(1, ring.ContextSecret())
	db, err := postgres.Open(ctx, strings.TrimSpace(string(b)), signer, postgres.Options{MaxConns: int32(f.workers) + 1, Name: "tallystick ledger"})
	switch {
	case errors.Is(err, postgres.ErrOverprivileged):
		return nil, usageError("--postgres-dsn-file: %w", err)
	case err != nil:
		return nil, &exitError{exitUnavailable, err}
	}
	return &direct{ring, db}, nil
}

func (d *direct) close() error {
	d.db.Close()
	return d.ring.Close()
}

// verifier checks ledgers of the database.
func (d *direct) verifier(dir string) (ledgerVerifier, error) {
	cfg, err := config.Load(config.Sources{Environ: os.Environ()})
	if err != nil {
		return ledgerVerifier{}, err
	}
	return ledgerVerifier{d.db, d.ring, &publishedNotes{d.db, d.ring, cfg.Name, dir}}, nil
}

func (d *direct) source(id string) verify.Source { return pgread.New(d.db, tenant.ID(id)) }

// tenants is the tenant of --tenant, or all.
func (d *direct) tenants() []string {
	var ids []string
	for _, id := range d.ring.Tenants() {
		ids = append(ids, string(id))
	}
	return ids
}
