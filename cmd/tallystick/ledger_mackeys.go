package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

const macKeysLong = `Write a tenant's MAC keys, for somebody who is to check MACs too.

Whoever holds the file can forge MACs of the tenant, and nothing else: hashes, trees and the
signatures of checkpoints stay out of reach. An auditor does not need it; public keys are enough to
show that a ledger was not changed. The file has mode 0600.`

func newLedgerMACKeysCommand(f *ledgerFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "mac-keys", Short: "Write a tenant's MAC keys for tallystick-verify --mac-keys", Long: macKeysLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.tenant == "" || f.outFile == "" {
				return usageError("--tenant and --output are needed")
			}
			return f.macKeys()
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.tenant, "tenant", "", "the tenant (required)")
	fs.StringVar(&f.keysDir, "keys-dir", "", "keyring `DIR` (default: keys in the data directory)")
	fs.StringVarP(&f.outFile, "output", "o", "", "write to `FILE` (required)")
	fs.BoolVar(&f.yes, "yes", false, "replace a file that is there")
	return cmd
}

func (f *ledgerFlags) macKeys() error {
	if _, err := os.Lstat(f.outFile); !errors.Is(err, fs.ErrNotExist) && !f.yes {
		return &exitError{exitConflict, fmt.Errorf("%s is there already; --yes replaces it", f.outFile)}
	}
	ring, err := f.openRing()
	if err != nil {
		return err
	}
	defer ring.Close()
	id := tenant.ID(f.tenant)
	if ring.Epoch(id, keyring.MAC) == 0 {
		return &exitError{exitNotFound, fmt.Errorf("the keyring has no keys of %s", f.tenant)}
	}
	return createWhole(f.outFile, func(out *os.File) error {
		if _, err := fmt.Fprintf(out, "tenant %s\n", id); err != nil {
			return err
		}
		for _, p := range []struct {
			name    string
			purpose keyring.Purpose
		}{{"mac", keyring.MAC}, {"audit", keyring.Audit}} {
			for epoch := uint32(1); epoch <= ring.Epoch(id, p.purpose); epoch++ {
				key, err := ring.Derive(id, p.purpose, epoch)
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintf(out, "%s %d %x\n", p.name, epoch, key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
