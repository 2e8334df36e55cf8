package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/transport"
	"github.com/tallystick/tallystick/ledger/checkpoint/witness"
)

const witnessLong = `Witness the checkpoints of transparency logs, ours or others', on another host
(C2SP tlog-witness): a checkpoint is cosigned only if it continues the last one
that was. A log that is rolled back or forked finds no cosignature any more.

  tallystick witness keygen --name witness.example/w1 --key-file w1.key
  tallystick witness --key-file w1.key --logs logs.txt --state-dir state --listen :8330 \
      --cert-file cert.pem --cert-key-file key.pem

logs.txt holds the public key of each log, one a line (tallystick ledger checkpoint --keys).
Without a certificate only loopback is listened on, for a TLS proxy before it.`

type witnessFlags struct {
	name, keyFile, logs, stateDir, listen string
	certFile, certKeyFile                 string
}

// newWitnessCommand is `tallystick witness`.
func newWitnessCommand() *cobra.Command {
	f := &witnessFlags{}
	cmd := &cobra.Command{
		Use: "witness", Short: "Cosign the checkpoints of logs that only ever grow", Long: witnessLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.keyFile, "key-file", "", "`FILE` with the witness's key (required)")
	fs.StringVar(&f.logs, "logs", "", "`FILE` with the public keys of the logs, one a line (required)")
	fs.StringVar(&f.stateDir, "state-dir", "", "`DIR` of what was cosigned last; it must outlive everything else (required)")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:8330", "address to listen on")
	fs.StringVar(&f.certFile, "cert-file", "", "PEM certificate")
	fs.StringVar(&f.certKeyFile, "cert-key-file", "", "PEM key of the certificate")
	cmd.AddCommand(newWitnessKeygenCommand())
	return cmd
}

func newWitnessKeygenCommand() *cobra.Command {
	f := &witnessFlags{}
	cmd := &cobra.Command{
		Use: "keygen", Short: "Make the key of a witness and print its public half", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.name == "" || f.keyFile == "" {
				return usageError("--name and --key-file are needed")
			}
			vkey, err := witness.CreateKey(f.keyFile, f.name)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), vkey)
			return nil
		},
	}
	cmd.Flags().StringVar(&f.name, "name", "", "the witness's name, such as witness.example/w1")
	cmd.Flags().StringVar(&f.keyFile, "key-file", "", "write the key to a new `FILE`")
	return cmd
}

// run serves until ctx ends.
func (f *witnessFlags) run(ctx context.Context, stderr io.Writer) error {
	if f.keyFile == "" || f.logs == "" || f.stateDir == "" {
		return usageError("--key-file, --logs and --state-dir are needed")
	}
	name, key, err := witness.LoadKey(f.keyFile)
	if err != nil {
		return usageError("--key-file: %w", err)
	}
	logs, err := witness.LoadLogs(f.logs)
	if err != nil {
		return usageError("--logs: %w", err)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	w, err := witness.New(witness.Options{Name: name, Key: key, Logs: logs, StateDir: f.stateDir}, log)
	if err != nil {
		return err
	}
	defer w.Close()
	srv := &http.Server{
		Handler: transport.HSTS(w.Handler()), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	l, err := f.listener(ctx, srv, log)
	if err != nil {
		return err
	}
	log.Info("witness", "listen", l.Addr().String(), "logs", len(logs), "vkey", w.VKey())
	return serveHTTP(ctx, srv, l)
}

// listener opens the address; without a certificate it must be loopback.
func (f *witnessFlags) listener(ctx context.Context, srv *http.Server, log *slog.Logger) (net.Listener, error) {
	encrypted := f.certFile != ""
	if encrypted {
		cert, err := transport.Load(f.certFile, f.certKeyFile, log)
		if err != nil {
			return nil, usageError("--cert-file: %w", err)
		}
		srv.TLSConfig = cert.Config()
		go func() { _ = cert.Run(ctx, nil) }() // it ends with ctx
	}
	l, err := transport.Listen(ctx, f.listen, encrypted)
	if errors.Is(err, transport.ErrPlaintext) {
		return nil, usageError("--listen: %w: give --cert-file and --cert-key-file", err)
	}
	if err != nil {
		return nil, &exitError{exitUnavailable, fmt.Errorf("--listen: %w", err)}
	}
	return l, nil
}
