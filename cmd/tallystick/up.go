package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/config"
)

func newUpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the whole pipeline; without configuration on embedded engines",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Sources{Flags: cmd.Flags(), Environ: os.Environ()})
			if err != nil {
				return err
			}
			return up(cmd.Context(), cfg, cmd.ErrOrStderr())
		},
	}
	config.BindFlags(cmd.Flags())
	return cmd
}

// up runs the program until ctx ends.
func up(ctx context.Context, cfg *config.Config, stderr io.Writer) (err error) {
	a := newApp(cfg, newLogger(cfg.Log, stderr))
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.open(ctx); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "ready: http://%s\n", a.httpAddr)
	return a.run(ctx)
}

func newLogger(cfg config.Log, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
