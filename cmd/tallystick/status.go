package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/config"
)

// adminTokenFile is the file of the data directory that holds the admin token.
const adminTokenFile = "admin.token"

const statusLong = `Show how the pipeline of a running server is.

On a terminal the screen is drawn again every second until Ctrl-C; elsewhere,
and with -o json, it is shown once. The token is taken from TALLYSTICK_TOKEN,
else from the data directory of the server.`

// statusFlags are the flags of `tallystick status`.
type statusFlags struct {
	url       string
	dataDir   string
	tokenFile string
	output    string
}

// newStatusCommand is `tallystick status`. Exit codes: 2 wrong flags, 4 no token
// or a refused one, 7 the server does not answer.
func newStatusCommand() *cobra.Command {
	f := &statusFlags{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show events per second, lags, ledger head and cost of a running server",
		Long:  statusLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runStatus(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.url, "url", os.Getenv("TALLYSTICK_URL"), "the server (default: where `up` listens by the configuration)")
	fs.StringVar(&f.dataDir, "data-dir", "", "the server's data directory (default: by the configuration)")
	fs.StringVar(&f.tokenFile, "token-file", "", "read the token from `FILE`")
	fs.StringVarP(&f.output, "output", "o", "table", "table or json")
	return cmd
}

func runStatus(ctx context.Context, f *statusFlags, stdout io.Writer) error {
	if f.output != "table" && f.output != "json" {
		return &exitError{exitUsage, fmt.Errorf("--output is table or json, not %q", f.output)}
	}
	api, err := f.client()
	if err != nil {
		return err
	}
	defer api.Close()
	source := &statusSource{api: api, url: f.url}
	st, err := source.read(ctx)
	if err != nil {
		return apiFailure(err)
	}
	width, live := terminalWidth(stdout)
	switch {
	case f.output == "json":
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	case !live:
		_, err := io.WriteString(stdout, strings.Join(st.lines(palette{}, width), "\n")+"\n")
		return err
	}
	return watchStatus(ctx, source, newScreen(stdout), nil)
}

// client finds the server and the token.
func (f *statusFlags) client() (*client.Client, error) {
	if f.url == "" || f.dataDir == "" {
		cfg, err := config.Load(config.Sources{Environ: os.Environ()})
		if err != nil {
			return nil, err
		}
		if f.url == "" {
			f.url = baseURL(cfg, cfg.HTTP.Listen)
		}
		if f.dataDir == "" {
			f.dataDir = cfg.DataDir
		}
	}
	token := os.Getenv("TALLYSTICK_TOKEN")
	if token == "" || f.tokenFile != "" {
		path := f.tokenFile
		if path == "" {
			path = filepath.Join(f.dataDir, adminTokenFile)
		}
		var err error
		if token, err = authn.LoadToken(path); err != nil {
			return nil, &exitError{exitAuth, fmt.Errorf("no token: %w (or set TALLYSTICK_TOKEN)", err)}
		}
	}
	return client.New(f.url, token), nil
}

// baseURL is the URL of a server at an address.
func baseURL(cfg *config.Config, addr string) string {
	if cfg.TLS.CertFile != "" {
		return "https://" + addr
	}
	return "http://" + addr
}

// apiFailure gives an error of the API its exit code.
func apiFailure(err error) error {
	var away *client.UnreachableError
	if errors.As(err, &away) {
		return &exitError{exitUnavailable, fmt.Errorf("%w; is `tallystick up` running there?", err)}
	}
	switch client.StatusOf(err) {
	case 0:
		return err
	case http.StatusUnauthorized, http.StatusForbidden:
		return &exitError{exitAuth, fmt.Errorf("the token was refused: %w", err)}
	case http.StatusNotFound:
		return &exitError{exitNotFound, err}
	case http.StatusConflict, http.StatusPreconditionFailed:
		return &exitError{exitConflict, err}
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &exitError{exitUnavailable, err}
	}
	return &exitError{exitFailure, err}
}

// status is how a server is at one moment. As JSON it is what `-o json` prints.
type status struct {
	URL      string              `json:"url"`
	At       time.Time           `json:"at"`
	Ready    bool                `json:"ready"`
	Engines  []client.Dependency `json:"engines"`
	Pipeline *client.Pipeline    `json:"pipeline"`
	// Head is of the largest ledger; nil without any.
	Head *client.Head `json:"head"`
}

// statusSource reads the status of one server.
type statusSource struct {
	api     *client.Client
	url     string
	largest string // tenant with the largest ledger, as of the last look
	looked  time.Time
}

const (
	// largestEvery is how often the largest ledger is looked for among at most
	// largestAmong tenants.
	largestEvery = 20 * time.Second
	largestAmong = 100
	// statusTime bounds one reading.
	statusTime = 10 * time.Second
)

func (s *statusSource) read(ctx context.Context) (*status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	st := &status{URL: s.url, At: time.Now().UTC()}
	ready, err := s.api.Ready(ctx)
	if err != nil && !client.IsNotReady(err) {
		return nil, err
	}
	st.Ready, st.Engines = err == nil, ready.Dependencies
	if st.Pipeline, err = s.api.Pipeline(ctx); err != nil {
		return nil, err
	}
	st.Head, err = s.head(ctx)
	return st, err
}

// head is the head of the largest ledger.
func (s *statusSource) head(ctx context.Context) (*client.Head, error) {
	if s.largest != "" && time.Since(s.looked) < largestEvery {
		return s.api.Head(ctx, s.largest)
	}
	tenants, err := s.api.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	var best *client.Head
	for _, t := range tenants[:min(len(tenants), largestAmong)] {
		h, err := s.api.Head(ctx, t.TenantID)
		if client.StatusOf(err) == http.StatusNotFound {
			continue // made, and not in the ledger yet
		}
		if err != nil {
			return nil, err
		}
		if best == nil || h.Seq > best.Seq {
			best = h
		}
	}
	if best != nil {
		s.largest, s.looked = best.TenantID, time.Now()
	}
	return best, nil
}
