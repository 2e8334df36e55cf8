package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/gpuagent"
	"github.com/tallystick/tallystick/internal/spool"
)

const agentLong = `Read the GPUs of this machine and carry what they tell to the gateway.

  tallystick agents create --tenant acme --name node-1 > node-1.credential   # at the server
  tallystick agent --gateway gateway.example:50051 --credential-file node-1.credential

The credential comes from the file, which is read again at each connection, or from
TALLYSTICK_AGENT_CREDENTIAL; never from a flag. Samples are on disk (--spool-dir)
before they are sent and stay there until the gateway says that Kafka has them: the
gateway may be away for as long as --spool-max-bytes lasts. What finds no room is
counted and told, and so is what could not be read.

--collect takes nvml, nvidia-smi, dcgm (with --dcgm-url), rocm-smi, or auto: the
first of nvml, nvidia-smi and rocm-smi that this machine has. --rules gives processes,
pods and jobs a team; see docs/agent.md. A figure that the tool does not give is
absent, never 0.

--replay plays recordings instead (captures and tables; docs/agent.md lists them),
--speed times as fast, 0 for as fast as it goes, and ends when all of it is
acknowledged. Without --gateway it says what it would send.

When it ends it prints its counters as one JSON line.

Exit codes: 2 usage, 1 failure, 7 the recording is played and the gateway is away
(the spool keeps the rest).`

// Bounds of the agent's flags.
const (
	minAgentInterval = 100 * time.Millisecond
	maxAgentInterval = 10 * time.Minute
	agentStopTime    = 15 * time.Second
	// agentWindowBytes is what the gateway may say unread.
	agentWindowBytes = 64 << 10
	// agentSessions is how many gateways' TLS sessions are remembered.
	agentSessions = 8
)

// credentialEnv is where the agent's credential may come from.
const credentialEnv = "TALLYSTICK_AGENT_CREDENTIAL"

type agentFlags struct {
	gateway, credentialFile, transport string
	caFile, serverName                 string
	certFile, certKeyFile              string
	plaintext                          bool

	spoolDir, spoolKeyFile string
	spoolMaxBytes          int64

	collect, dcgmURL, smiPath, rocmPath string
	root, rules, host                   string
	interval                            time.Duration
	place                               agentPlace

	replay     []string
	speed      float64
	drainLimit time.Duration
	verbose    bool
}

// newAgentCommand is `tallystick agent`.
func newAgentCommand() *cobra.Command {
	f := &agentFlags{}
	cmd := &cobra.Command{
		Use: "agent", Short: "Read this machine's GPUs and carry samples to the gateway", Long: agentLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.gateway, "gateway", "", "`HOST:PORT` of the gateway")
	fs.StringVar(&f.credentialFile, "credential-file", "", "`FILE` with the agent's credential (or "+credentialEnv+")")
	fs.StringVar(&f.transport, "transport", gpuagent.TransportAuto, "stream, unary (single requests), or auto: streams while they get through")
	fs.StringVar(&f.caFile, "ca-file", "", "PEM `FILE` of the authorities that may have issued the gateway's certificate (default: the system's)")
	fs.StringVar(&f.serverName, "server-name", "", "name in the gateway's certificate, where it is not that of --gateway")
	fs.StringVar(&f.certFile, "cert-file", "", "PEM client certificate, where the gateway asks for one")
	fs.StringVar(&f.certKeyFile, "cert-key-file", "", "PEM key of the client certificate")
	fs.BoolVar(&f.plaintext, "plaintext", false, "speak without TLS, to a gateway on this machine only")
	fs.StringVar(&f.spoolDir, "spool-dir", "", "`DIR` of what is not acknowledged yet (default: agent-spool below the data directory)")
	fs.StringVar(&f.spoolKeyFile, "spool-key-file", "", "`FILE` with the key that seals the spool, made at the first start (default: beside the spool)")
	fs.Int64Var(&f.spoolMaxBytes, "spool-max-bytes", spool.DefaultMaxBytes, "bound of the spool on disk")
	fs.StringVar(&f.collect, "collect", "auto", "auto, nvml, nvidia-smi, dcgm or rocm-smi")
	fs.StringVar(&f.dcgmURL, "dcgm-url", "http://127.0.0.1:9400/metrics", "address of the DCGM exporter")
	fs.StringVar(&f.smiPath, "nvidia-smi", "", "`PATH` of nvidia-smi (default: where the system has it)")
	fs.StringVar(&f.rocmPath, "rocm-smi", "", "`PATH` of rocm-smi (default: where the system has it)")
	fs.StringVar(&f.root, "root", "/", "`DIR` where the machine's own files are seen, to find out whose a process is")
	fs.StringVar(&f.rules, "rules", "", "YAML `FILE` that gives processes, pods and jobs a team, service or environment")
	fs.StringVar(&f.host, "host", "", "name of this machine (default: its own)")
	fs.DurationVar(&f.interval, "interval", 10*time.Second, "how often to look; at most gputime.max_gap_seconds of the server, or it does not begin")
	fs.StringVar(&f.place.Cloud, "cloud", "", "such as aws: what the price of the time depends on")
	fs.StringVar(&f.place.Region, "region", "", "such as us-east-1")
	fs.StringVar(&f.place.InstanceType, "instance-type", "", "such as p5.48xlarge")
	fs.StringVar(&f.place.PurchaseOption, "purchase-option", "", "on_demand, spot or reserved")
	fs.Uint32Var(&f.place.GPUsOnHost, "gpus-on-host", 0, "devices that the instance type stands for, where they are not all seen")
	fs.StringArrayVar(&f.replay, "replay", nil, "play the recording in `FILE` instead; may be given several times")
	fs.Float64Var(&f.speed, "speed", 1, "how fast a recording is played; 0 is as fast as it goes")
	fs.DurationVar(&f.drainLimit, "drain", time.Minute, "how long a played recording waits for its last acknowledgement")
	fs.BoolVar(&f.verbose, "verbose", false, "log what is done, not only what fails")
	return cmd
}

// validate reports what is wrong with the flags.
func (f *agentFlags) validate() error {
	_, known := event.Purchase(f.place.PurchaseOption)
	switch {
	case f.gateway == "" && len(f.replay) == 0:
		return usageError("--gateway is needed, such as gateway.example:50051")
	case !slices.Contains([]string{gpuagent.TransportAuto, gpuagent.TransportStream, gpuagent.TransportUnary}, f.transport):
		return usageError("--transport %s: there are auto, stream and unary", f.transport)
	case f.interval < minAgentInterval || f.interval > maxAgentInterval:
		return usageError("--interval must be between %s and %s", minAgentInterval, maxAgentInterval)
	case !known:
		return usageError("--purchase-option %s: there are on_demand, spot and reserved", f.place.PurchaseOption)
	case f.speed < 0 || f.speed > 1e6:
		return usageError("--speed must be between 0 and 1,000,000")
	case (f.certFile == "") != (f.certKeyFile == ""):
		return usageError("--cert-file and --cert-key-file go together")
	case f.plaintext && (f.caFile != "" || f.certFile != "" || f.serverName != ""):
		return usageError("--plaintext has no certificates")
	}
	if f.gateway == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(f.gateway)
	if err != nil {
		return usageError("--gateway must be HOST:PORT: %w", err)
	}
	if f.plaintext && !isLoopback(host) {
		return usageError("--plaintext is for a gateway on this machine, such as 127.0.0.1:50051; %s is not", host)
	}
	return nil
}

// isLoopback reports whether an address is this machine's own, without asking
// anybody what a name stands for.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// run reads or plays until ctx ends.
func (f *agentFlags) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if err := f.validate(); err != nil {
		return err
	}
	level := slog.LevelInfo
	if !f.verbose && len(f.replay) > 0 {
		level = slog.LevelWarn
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if f.host == "" {
		if f.host, err = os.Hostname(); err != nil {
			return usageError("--host is needed: this machine has no name: %w", err)
		}
	}
	source, err := f.source(log)
	if err != nil {
		return err
	}
	defer source.close()
	if f.gateway == "" {
		return source.dryRun(ctx, stdout)
	}
	sp, err := f.openSpool(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sp.Close()) }()
	a, err := f.newAgent(sp, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, printAgentStats(stdout, a.Stats())) }()
	return f.carry(ctx, a, source)
}

// carry runs the source beside the agent. The agent is stopped last, so that it
// can say goodbye with all counts.
func (f *agentFlags) carry(ctx context.Context, a *gpuagent.Agent, source *agentSource) error {
	carrying, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(carrying)
	g.Go(func() error { return a.Run(carrying) })
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(failed, cancel)()
	err := source.run(reading, a)
	if err == nil && ctx.Err() == nil && failed.Err() == nil { // played to its end
		draining, done := context.WithTimeout(reading, f.drainLimit)
		if left := a.Drain(draining); left != nil && ctx.Err() == nil && failed.Err() == nil {
			err = &exitError{exitUnavailable, fmt.Errorf("%d frames are not acknowledged after %s: %w; start again with the same --spool-dir",
				a.Stats().SpooledFrames, f.drainLimit, errors.Join(a.Stats().Err, left))}
		}
		done()
	} else if ctx.Err() != nil { // stopped: what is in the spool is sent at the next start
		draining, done := context.WithTimeout(carrying, time.Second)
		_ = a.Drain(draining) // nothing is lost if it does not come to an end
		done()
	}
	stop()
	ended := g.Wait()
	if errors.Is(ended, gpuagent.ErrInterval) {
		ended = usageError("--interval %s: %w", f.interval, ended)
	}
	return errors.Join(err, ended)
}

// lookInterval is how often the devices are looked at; 0 for a recording, which has
// its own times.
func (f *agentFlags) lookInterval() time.Duration {
	if len(f.replay) > 0 {
		return 0
	}
	return f.interval
}

// newAgent makes the agent over its spool.
func (f *agentFlags) newAgent(sp *spool.Spool, log *slog.Logger) (*gpuagent.Agent, error) {
	if _, err := f.credential(); err != nil {
		return nil, usageError("%w", err)
	}
	creds, err := f.transportCredentials()
	if err != nil {
		return nil, err
	}
	a, err := gpuagent.New(gpuagent.Options{
		Dial: func() (*grpc.ClientConn, error) {
			return grpc.NewClient("dns:///"+f.gateway, grpc.WithTransportCredentials(creds),
				// What it is told is short: fixed windows, so that no connection is measured by pings.
				grpc.WithStaticStreamWindowSize(agentWindowBytes), grpc.WithStaticConnWindowSize(agentWindowBytes),
				grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second, PermitWithoutStream: true}))
		},
		Credential: f.credential, Spool: sp, Interval: f.lookInterval(), Host: f.host, Version: versionString(), Transport: f.transport, Log: log,
	})
	if errors.Is(err, gpuagent.ErrSpool) {
		return nil, usageError("--spool-dir %s: %w", f.spoolDir, err)
	}
	return a, err
}

// credential reads the agent's credential. The error holds nothing of it.
func (f *agentFlags) credential() (agentauth.Credential, error) {
	if f.credentialFile == "" {
		text := os.Getenv(credentialEnv)
		if text == "" {
			return agentauth.Credential{}, fmt.Errorf("the agent's credential is needed: --credential-file or %s", credentialEnv)
		}
		return agentauth.ParseCredential(text)
	}
	text, err := os.ReadFile(f.credentialFile)
	if err != nil {
		return agentauth.Credential{}, fmt.Errorf("--credential-file: %w", err)
	}
	c, err := agentauth.ParseCredential(string(text))
	if err != nil {
		return agentauth.Credential{}, fmt.Errorf("--credential-file %s: %w", f.credentialFile, err)
	}
	return c, nil
}

// transportCredentials are TLS 1.3, or nothing for a gateway on this machine.
func (f *agentFlags) transportCredentials() (credentials.TransportCredentials, error) {
	if f.plaintext {
		return insecure.NewCredentials(), nil
	}
	// A session is resumed where the gateway still knows it, which spares both sides
	// the certificates when thousands of agents come back together. The exporter that
	// the hello is bound to is another one for each connection all the same.
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: f.serverName, ClientSessionCache: tls.NewLRUClientSessionCache(agentSessions)}
	if f.caFile != "" {
		pem, err := os.ReadFile(f.caFile)
		if err != nil {
			return nil, usageError("--ca-file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError("--ca-file: %s holds no PEM certificate", f.caFile)
		}
	}
	if f.certFile != "" {
		if _, err := tls.LoadX509KeyPair(f.certFile, f.certKeyFile); err != nil {
			return nil, usageError("--cert-file: %w", err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(f.certFile, f.certKeyFile) // it may have been renewed
			return &pair, err
		}
	}
	return credentials.NewTLS(config), nil
}

// openSpool opens the spool with its key.
func (f *agentFlags) openSpool(log *slog.Logger) (*spool.Spool, error) {
	if f.spoolDir == "" {
		dir, err := dataDir()
		if err != nil {
			return nil, err
		}
		f.spoolDir = filepath.Join(dir, "agent-spool")
	}
	if f.spoolKeyFile == "" {
		f.spoolKeyFile = filepath.Clean(f.spoolDir) + ".key"
	}
	key, err := spool.KeyFile(f.spoolKeyFile)
	if err != nil {
		return nil, usageError("--spool-key-file: %w", err)
	}
	sp, err := spool.Open(f.spoolDir, spool.Options{MaxBytes: f.spoolMaxBytes, Key: key, Log: log})
	if errors.Is(err, spool.ErrLocked) || errors.Is(err, spool.ErrKey) {
		return nil, usageError("--spool-dir: %w", err)
	}
	return sp, err
}

// printAgentStats prints the counters as one line.
func printAgentStats(w io.Writer, s gpuagent.Stats) error {
	return json.NewEncoder(w).Encode(map[string]any{
		"emitted_samples": s.EmittedSamples, "emitted_frames": s.EmittedFrames, "acked_samples": s.AckedSamples, "acked_frames": s.AckedFrames,
		"refused_samples": s.RefusedSamples, "lost_samples": s.LostSamples, "spooled_frames": s.SpooledFrames, "reconnects": s.Reconnects,
	})
}
