package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/awskms"
	"github.com/tallystick/tallystick/internal/keyring/gcpkms"
	"github.com/tallystick/tallystick/internal/keyring/vaultkms"
)

// keysDir is where the keyring lies.
func keysDir(cfg *config.Config) string { return filepath.Join(cfg.DataDir, "keys") }

// keyringOptions are the ring's options that the settings say.
func keyringOptions(ctx context.Context, cfg *config.Config) (keyring.Options, error) {
	k := &cfg.KMS
	o := keyring.Options{Timeout: time.Duration(k.TimeoutMS) * time.Millisecond}
	if phrase := k.Passphrase.Reveal(); phrase != "" {
		o.Passphrase = []byte(phrase)
	}
	ca, err := kmsRoots(k)
	if err != nil {
		return o, err
	}
	if k.Kind != config.KMSLocal {
		kms, err := openKMS(ctx, k, k.Kind, k.Key, ca)
		if err != nil {
			return o, &exitError{exitUsage, fmt.Errorf("kms.key: %w", err)}
		}
		o.KMS = kms
	}
	for _, prev := range k.Previous {
		kind, name, _ := strings.Cut(prev, ":")
		kms, err := openKMS(ctx, k, kind, name, ca)
		if err != nil {
			return o, &exitError{exitUsage, fmt.Errorf("kms.previous: %w", err)}
		}
		o.Previous = append(o.Previous, kms)
	}
	return o, nil
}

// kmsRoots are the PEM roots that the settings name; nil is the system's.
func kmsRoots(k *config.KMS) ([]byte, error) {
	if k.CAFile == "" {
		return nil, nil
	}
	ca, err := os.ReadFile(k.CAFile)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("kms.ca_file: %w", err)}
	}
	return ca, nil
}

// pepperInVault is the agents' pepper as a secret of the server that wraps the roots.
func pepperInVault(k *config.KMS, name string) (agentauth.PepperSource, error) {
	ca, err := kmsRoots(k)
	if err != nil {
		return nil, err
	}
	secret, err := vaultkms.NewSecret(vaultkms.Options{
		Address: k.EndpointOf(config.KMSVault), Key: name, Token: k.Token.Reveal(), TokenFile: k.TokenFile, Namespace: k.Namespace, CA: ca,
	})
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(k.TimeoutMS)*time.Millisecond)
		defer cancel()
		return secret.Read(ctx)
	}, nil
}

// openKMS makes the client of a key service. It asks nothing of it yet.
func openKMS(ctx context.Context, k *config.KMS, kind, name string, ca []byte) (keyring.KMS, error) {
	endpoint := k.EndpointOf(kind)
	switch kind {
	case config.KMSAWS:
		return awskms.New(ctx, awskms.Options{Key: name, Region: k.Region, Endpoint: endpoint, CA: ca})
	case config.KMSGCP:
		return gcpkms.New(gcpkms.Options{Key: name, Endpoint: endpoint, CA: ca})
	default: // Validate allows no other
		return vaultkms.New(vaultkms.Options{
			Address: endpoint, Key: name, Token: k.Token.Reveal(), TokenFile: k.TokenFile, Namespace: k.Namespace, CA: ca,
		})
	}
}

// openRing opens the keyring as the settings say. A key service that is away is
// an engine that cannot be reached.
func openRing(ctx context.Context, cfg *config.Config, o keyring.Options) (*keyring.Ring, error) {
	said, err := keyringOptions(ctx, cfg)
	if err != nil {
		return nil, err
	}
	o.KMS, o.Previous, o.Passphrase, o.Timeout = said.KMS, said.Previous, said.Passphrase, said.Timeout
	ring, err := keyring.OpenWith(keysDir(cfg), o)
	switch {
	case errors.Is(err, keyring.ErrUnavailable):
		return nil, &exitError{exitUnavailable, err}
	case err != nil:
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return ring, nil
}

// schedule is how old the settings let key epochs become.
func schedule(cfg *config.Config) keyring.Schedule {
	days := func(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }
	k := cfg.Keys
	return keyring.Schedule{
		MAC: days(k.MACDays), Checkpoint: days(k.CheckpointDays), Audit: days(k.AuditDays), Sealing: days(k.SealingDays),
	}
}
