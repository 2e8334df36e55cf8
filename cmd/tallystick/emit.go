package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/load"
	"github.com/tallystick/tallystick/internal/oracle"
)

// emitFlags are the flags of `tallystick emit` as they were given.
type emitFlags struct {
	o         load.Options
	synthetic bool
	tokenFile string
	base      string
	history   time.Duration
	liveFor   time.Duration
	format    string
	compress  bool
	encoding  string
	expect    string
	resume    string
	json      bool
}

const emitLong = `Replay a usage trace, or make up a realistic load, against the ingest API.

With --trace FILE the calls of a published trace are sent (.csv or .csv.zst: the
ServeGen, Azure LLM inference and Mooncake forms, told apart by their header).
Their clients are mapped to tenants, API keys, teams, services and environments
by a fixed table; cached and reasoning tokens are taken apart into disjoint
classes. The trace is moved so that it ends now (--base).

Without a file a synthetic load is made: tenants by Zipf's law, bursts, daily
and weekly season, eleven models of six providers, cached and reasoning
tokens, failures and latencies; it is labelled source=synthetic. It is spread
over the last --history as fast as it goes; with --live it then goes on at
--rate as it happens.

The same seed, source and base give the same events, byte for byte. Faults can
be injected; what the ledger must come to, to the last 1e-12 USD, is written
with --expect by an oracle that shares no code with the price book.

A server that is away or overloaded is waited for (--wait), and requests without
an answer are sent again as they were. Ctrl-C ends the load in order; a second
one at once.`

const emitExample = `  # a demo: two weeks of history, then 50 events a second
  tallystick emit --live --rate 50

  # a day of DeepSeek-R1 traffic, as fast as it goes
  tallystick emit --trace servegen_deepseek_r1_24h_requests.csv.zst --expect expected.json

  # the same with everything that goes wrong in practice
  tallystick emit --synthetic --events 200000 --duplicates 0.05 --late 0.02 \
    --reorder 0.1 --poison 0.01 --conflicts 0.005 --unpriced 0.01 --expect expected.json`

// newEmitCommand is `tallystick emit`. Exit codes: 1 the load failed or the
// server answered otherwise than expected, 2 wrong flags or trace, 4 the token
// was refused, 7 the server was away for longer than --wait.
func newEmitCommand() *cobra.Command {
	f := &emitFlags{}
	cmd := &cobra.Command{
		Use:     "emit",
		Short:   "Replay a usage trace or generate load, and say what must come of it",
		Long:    emitLong,
		Example: emitExample,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runEmit(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.register(cmd)
	return cmd
}

func (f *emitFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.o.Trace, "trace", "", "trace `FILE` to replay (.csv, .csv.zst)")
	fs.BoolVar(&f.synthetic, "synthetic", false, "make the load up (the default without --trace)")
	fs.Int64Var(&f.o.Events, "events", 0, "how many calls; 0 is the whole trace, or 100,000 made-up ones")
	fs.Uint64Var(&f.o.Seed, "seed", 1, "decides everything that is drawn")
	fs.StringVar(&f.base, "base", "end", "when the load ends: `TIME` is end (now), start (a trace begins now; needs --speed 1 or less) or RFC 3339")
	fs.DurationVar(&f.history, "history", load.DefaultHistory, "the span a synthetic load is spread over")
	fs.BoolVar(&f.o.Live, "live", false, "after the history, go on as it happens, at --rate")
	fs.DurationVar(&f.liveFor, "for", 0, "end a live load after this time; 0 is never")

	fs.IntVar(&f.o.Tenants, "tenants", load.DefaultTenants, "number of tenants; they are created first")
	fs.StringVar(&f.o.TenantPrefix, "tenant-prefix", "", "name the tenants `PREFIX`-0001 … instead of by a table")
	fs.Float64Var(&f.o.Zipf, "zipf", 0, "spread the events over the tenants by Zipf's law with this exponent")
	fs.Float64Var(&f.o.HotShare, "hot-share", 0, "give this share of all events to the first tenant")

	fs.StringVar(&f.o.URL, "url", envOr("TALLYSTICK_URL", "http://127.0.0.1:8321"), "the server")
	fs.StringVar(&f.tokenFile, "token-file", "", "read the token from `FILE` (else from the environment variable TALLYSTICK_TOKEN)")
	fs.StringVar(&f.format, "format", "protobuf", "protobuf, json or ndjson")
	fs.BoolVar(&f.compress, "compress", false, "compress the requests with zstd")
	fs.StringVar(&f.encoding, "encoding", "", "compress with this instead: gzip or zstd")
	fs.IntVar(&f.o.Batch, "batch", load.DefaultBatch, "events per request, at most 1000")
	fs.IntVar(&f.o.Connections, "connections", load.DefaultConnections, "requests under way at once")
	fs.BoolVar(&f.o.SkipTenants, "skip-tenants", false, "do not create the tenants")

	fs.Float64Var(&f.o.Speed, "speed", 0, "replay the source's own times this many times faster; 0 is as fast as it goes")
	fs.Float64Var(&f.o.Rate, "rate", 0, "events per second, whatever the answers take")
	fs.DurationVar(&f.o.Timeout, "timeout", load.DefaultTimeout, "send a request again when its answer takes longer")
	fs.DurationVar(&f.o.Deadline, "wait", 0, "how long to wait for a server that is away; 0 is for ever")

	fs.Float64Var(&f.o.Faults.Duplicates, "duplicates", 0, "share of events that are sent twice")
	fs.Float64Var(&f.o.Faults.Late, "late", 0, "share of events that happened hours or days before")
	fs.DurationVar(&f.o.Faults.LateMax, "late-max", load.DefaultLateMax, "how late at most")
	fs.Float64Var(&f.o.Faults.Reorder, "reorder", 0, "share of events taken out of their order")
	fs.IntVar(&f.o.Faults.Window, "reorder-window", load.DefaultWindow, "by how many events at most")
	fs.Float64Var(&f.o.Faults.Poison, "poison", 0, "share of extra events that must be refused")
	fs.Float64Var(&f.o.Faults.Conflicts, "conflicts", 0, "share of extra events with a used id and another body")
	fs.Float64Var(&f.o.Faults.Unpriced, "unpriced", 0, "share of events of models that have no price")

	fs.StringVar(&f.expect, "expect", "", "write what must come of the load to `FILE` (JSON)")
	fs.StringVar(&f.resume, "resume", "", "continue the load whose --expect `FILE` this is, with the same options")
	fs.Int64Var(&f.o.Limit, "limit", 0, "stop in order after this many calls, to --resume later")
	fs.BoolVar(&f.json, "json", false, "print the result as JSON")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// emitFailure gives an error its exit code.
func emitFailure(err error) error {
	code := exitFailure
	switch {
	case errors.Is(err, load.ErrOptions), errors.Is(err, load.ErrTrace):
		code = exitUsage
	case errors.Is(err, load.ErrAuth):
		code = exitAuth
	case errors.Is(err, load.ErrUnavailable):
		code = exitUnavailable
	}
	return &exitError{code, err}
}

// options completes the options by what flags cannot hold.
func (f *emitFlags) options() (err error) {
	if f.synthetic && f.o.Trace != "" {
		return fmt.Errorf("%w: --trace and --synthetic exclude each other", load.ErrOptions)
	}
	f.o.Format, f.o.History, f.o.Compress = load.Format(f.format), f.history, f.encoding
	if f.compress && f.encoding == "" {
		f.o.Compress = "zstd"
	}
	switch f.base {
	case "end":
	case "start":
		f.o.FromStart = true
	default:
		if f.o.Base, err = time.Parse(time.RFC3339, f.base); err != nil {
			return fmt.Errorf("%w: --base is end, start or an RFC 3339 time", load.ErrOptions)
		}
		if f.o.Base.After(time.Now()) {
			return fmt.Errorf("%w: --base lies in the future", load.ErrOptions)
		}
	}
	f.o.Token = os.Getenv("TALLYSTICK_TOKEN")
	if f.tokenFile != "" {
		b, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return fmt.Errorf("%w: the token: %w", load.ErrOptions, err)
		}
		f.o.Token = strings.TrimSpace(string(b))
	}
	if f.resume != "" {
		if f.o.Resume, err = load.ReadState(f.resume); err != nil {
			return fmt.Errorf("%w: %w", load.ErrOptions, err)
		}
	}
	return nil
}

func runEmit(ctx context.Context, f *emitFlags, stdout, stderr io.Writer) error {
	if err := f.options(); err != nil {
		return emitFailure(err)
	}
	stop, release := stopInOrder(ctx, stderr)
	defer release()
	f.o.Stop = stop
	res, err := emitAll(context.WithoutCancel(ctx), f, stderr)
	if res != nil {
		if werr := f.report(res, stdout, stderr); err == nil {
			err = werr
		}
	}
	if err != nil {
		return emitFailure(err)
	}
	return nil
}

// emitAll runs the history and then, if wanted, the live load.
func emitAll(ctx context.Context, f *emitFlags, stderr io.Writer) (*load.Result, error) {
	if !f.o.Live {
		return emitOnce(ctx, f.o, "events", stderr)
	}
	if err := f.o.Validate(); err != nil {
		return nil, err
	}
	past := f.o
	past.Live, past.Rate = false, 0
	res, err := emitOnce(ctx, past, "history", stderr)
	if err != nil || stopped(f.o.Stop) {
		return res, err
	}
	live := f.o
	live.Before, live.SkipTenants, live.Seed, live.Events = &res.Expectation, true, f.o.Seed+1, 0
	live.Base = time.Time{}
	if f.liveFor > 0 {
		live.Events = int64(f.liveFor.Seconds() * f.o.Rate)
	}
	return emitOnce(ctx, live, "live", stderr)
}

func emitOnce(ctx context.Context, o load.Options, what string, stderr io.Writer) (*load.Result, error) {
	p := newEmitProgress(stderr, what, emitTotal(&o))
	o.OnProgress = p.update
	res, err := load.Run(ctx, o)
	p.finish()
	return res, err
}

// emitTotal is about how many events there will be; 0 when nobody knows.
func emitTotal(o *load.Options) int64 {
	n := o.Events
	if o.Trace == "" && n == 0 && !o.Live {
		n = load.DefaultSynthetic
	}
	if o.Limit > 0 && (n == 0 || o.Limit < n) {
		n = o.Limit
	}
	return int64(float64(n) * (1 + o.Faults.Duplicates + o.Faults.Poison + o.Faults.Conflicts))
}

func stopped(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// stopInOrder turns the end of ctx, which the first Ctrl-C brings, into the end
// of the load in order: what is under way is finished and the expectation is
// right. The program ends at once with the second one.
func stopInOrder(ctx context.Context, stderr io.Writer) (stop <-chan struct{}, release func() bool) {
	ch := make(chan struct{})
	return ch, context.AfterFunc(ctx, func() {
		_, _ = fmt.Fprintln(stderr, "\nemit: finishing what is under way; press Ctrl-C again to end at once")
		close(ch)
	})
}

// report writes the expectation file and the result.
func (f *emitFlags) report(res *load.Result, stdout, stderr io.Writer) error {
	if f.expect != "" {
		if err := res.WriteFile(f.expect); err != nil {
			return err
		}
	}
	if f.json {
		if err := res.Write(stdout); err != nil {
			return fmt.Errorf("emit: %w", err)
		}
	} else {
		printEmitResult(stdout, res)
	}
	for _, s := range res.FirstSurprises {
		fmt.Fprintf(stderr, "emit: event %q: expected %s, got %s\n", s.EventID, s.Expected, s.Got)
	}
	if res.Surprises > 0 {
		return fmt.Errorf("emit: the server answered otherwise than expected for %d events", res.Surprises)
	}
	return nil
}

func printEmitResult(w io.Writer, r *load.Result) {
	e := &r.Expectation
	cpu := cpuTime()
	perEvent := 0.0
	if r.Acked > 0 {
		perEvent = float64(cpu.Microseconds()) / float64(r.Acked)
	}
	fmt.Fprintf(w, "emit: sent=%d acked=%d calls=%d requests=%d retries=%d in_doubt=%d seconds=%.1f events_per_s=%.0f cpu_us_per_event=%.2f\n",
		r.Sent, r.Acked, r.Calls, r.Requests, r.Retries, r.InDoubt, r.Duration.Seconds(), r.EventsPerSecond(), perEvent)
	fmt.Fprintf(w, "emit: answer p50=%s p99=%s max=%s", round(r.Latency.P50), round(r.Latency.P99), round(r.Latency.Max))
	if r.Lag.N > 0 {
		fmt.Fprintf(w, " schedule_lag p50=%s p99=%s max=%s", round(r.Lag.P50), round(r.Lag.P99), round(r.Lag.Max))
	}
	fmt.Fprintln(w)
	printExpectation(w, e)
}

func printExpectation(w io.Writer, e *oracle.Expectation) {
	fmt.Fprintf(w, "emit: expected accepted=%d duplicates=%d conflicts=%d refused=%d unpriced=%d late=%d reordered=%d tenants=%d usd=%s\n",
		e.Accepted, e.Duplicates, e.Conflicts, e.Refused, e.Unpriced, e.Late, e.Reordered, len(e.Tenants), e.USD.String())
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
