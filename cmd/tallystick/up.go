package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/load"
)

const upLong = `Run the whole pipeline in one process: ingest, ledger, processors, reports and
the page. Without configuration Kafka, Postgres and ClickHouse run beside it, with
their data in the data directory.

With --demo a new data directory is filled with two weeks of synthetic usage, and
calls go on as they happen; on a terminal a status is drawn every second, and the
server's messages go to server.log in the data directory.

Ctrl-C ends everything in order. A second one ends it at once, which loses nothing.`

func newUpCommand() *cobra.Command {
	demo := false
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the whole pipeline; without configuration on embedded engines",
		Long:  upLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			cfg, err := config.Load(config.Sources{Flags: cmd.Flags(), Environ: os.Environ()})
			if err != nil {
				return err
			}
			u := &upRun{cfg: cfg, demo: demo, began: began, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
			return u.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&demo, "demo", false, "feed a synthetic load, and show a live status")
	config.BindFlags(cmd.Flags())
	return cmd
}

// upRun is one run of `tallystick up`.
type upRun struct {
	cfg    *config.Config
	demo   bool
	began  time.Time
	stdout io.Writer
	stderr io.Writer

	app   *app
	token string
	live  bool // stdout is a terminal that the status is drawn on
}

// run runs the program until ctx ends.
func (u *upRun) run(ctx context.Context) (err error) {
	_, terminal := terminalWidth(u.stdout)
	u.live = u.demo && terminal
	logTo, closeLog, err := u.logWriter()
	if err != nil {
		return err
	}
	defer closeLog()
	if u.live {
		_, _ = fmt.Fprintln(u.stdout, "tallystick: starting Kafka, Postgres and ClickHouse …")
	}
	u.app = newApp(u.cfg, newLogger(u.cfg.Log, logTo))
	defer func() {
		began := time.Now()
		err = errors.Join(err, u.app.close())
		if err == nil && u.demo {
			_, _ = fmt.Fprintf(u.stdout, "stopped in %.1f s\n", time.Since(began).Seconds())
		}
	}()
	if err := u.app.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop before it was ready: what failed is only that
		}
		return err
	}
	if u.token, err = authn.LoadToken(u.app.tokenPath()); err != nil {
		return err
	}
	u.introduce(terminal)
	if !u.demo {
		return u.app.run(ctx)
	}
	return u.runDemo(ctx)
}

// runDemo feeds the demo load and shows the status until ctx ends. The load ends
// before the server does, so that nothing is under way when it stops.
func (u *upRun) runDemo(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	url := baseURL(u.cfg, u.app.httpAddr)
	d := newDemo(filepath.Join(u.cfg.DataDir, "demo"), url, u.token, u.app.log)
	d.start()
	defer d.stop()
	api := client.New(url, u.token)
	defer api.Close()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		source := &statusSource{api: api, url: url}
		if !u.live {
			logStatus(ctx, source, u.stdout, d.pair)
		} else if err := watchStatus(ctx, source, newScreen(u.stdout), d.lines); err != nil {
			u.app.log.Error("the status cannot be drawn any more", "err", err)
		}
	}()
	err := u.app.run(ctx)
	cancel()
	<-shown
	if err == nil {
		_, _ = fmt.Fprintln(u.stdout, "\nstopping: finishing what is under way …")
	}
	return err
}

// logWriter is where messages go: beside a status that is drawn on the same
// terminal nothing else can be written.
func (u *upRun) logWriter() (w io.Writer, done func(), err error) {
	if _, terminal := terminalWidth(u.stderr); !u.live || !terminal {
		return u.stderr, func() {}, nil
	}
	if err := os.MkdirAll(u.cfg.DataDir, 0o711); err != nil { //nolint:gosec // the engines' user passes through
		return nil, nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(u.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("data directory: %w", err)
	}
	return f, func() { _ = f.Close() }, nil
}

func (u *upRun) logPath() string { return filepath.Join(u.cfg.DataDir, "server.log") }

// introduce says where everything is, once. The token itself is shown on a
// terminal only: other output is kept, copied and searched.
func (u *upRun) introduce(terminal bool) {
	url := baseURL(u.cfg, u.app.httpAddr)
	if u.app.httpAddr == "" { // the proxy alone
		url = baseURL(u.cfg, u.app.metering.addr)
	}
	page := url + "/"
	if terminal {
		page += "#token=" + u.token
	}
	c := palette{}
	if terminal {
		c = newPalette()
	}
	w := u.stdout
	say := func(name, text string) {
		_, _ = fmt.Fprintf(w, "%s%s\n", c.paint(c.dim, fmt.Sprintf("  %-13s", name)), text)
	}
	_, _ = fmt.Fprintf(w, "%s in %.1f s: %s\n", c.paint(c.bold, "ready"), time.Since(u.began).Seconds(), url)
	if u.app.metering.addr != "" {
		say("for clients", u.app.clientEnvironment())
	}
	if u.app.httpAddr == "" {
		return
	}
	say("page", page)
	say("data", u.cfg.DataDir)
	say("token file", u.app.tokenPath())
	say("for tools", fmt.Sprintf(`export TALLYSTICK_URL=%s TALLYSTICK_TOKEN="$(cat %s)"`, url, u.app.tokenPath()))
	if env := u.app.otlpEnvironment(load.TenantIDs("", 1)[0]); env != "" {
		say("for OTLP", env)
	}
	say("a report", fmt.Sprintf(`curl -s %s/v1/reports/summary:query -H "Authorization: Bearer $(cat %s)" -H 'Content-Type: application/json' -d '{"tenant_id":"%s","window":{"name":"7d"}}'`,
		url, u.app.tokenPath(), load.TenantIDs("", 1)[0]))
	if u.live {
		say("messages", u.logPath())
	}
}

func newLogger(cfg config.Log, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
