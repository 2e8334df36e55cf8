package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/load"
)

// The load of the smoke test.
const (
	smokeEvents      = 200_000
	smokeEventsShort = 40_000
	smokeKills       = 2
	smokeTenants     = 8
	smokeHotShare    = 0.4
	smokeConnections = 4
)

// Time limits of the smoke test. They are for a machine that is busy with
// something else; none is reached on a quiet one.
const (
	smokeStartTime = 2 * time.Minute
	smokeAwayTime  = 3 * time.Minute // the server, in the middle of the load
	smokeDrainTime = 5 * time.Minute
	smokeStopTime  = 20 * time.Second
)

const smokeLong = `Run the whole path in a temporary directory and hold it against an oracle.

A server with embedded engines is started as a process group of its own and fed
over its public API by this process: synthetic calls of several tenants, one of
them hot, with duplicates, late and reordered events, events that must be
refused, conflicting bodies and unpriced models. Under that load the group is
killed with SIGKILL, twice, at moments that the seed decides, and started again.

When everything has arrived, every entry of every ledger is read and compared
with what was sent, one by one; the chain is verified; and totals, hours, teams
and models of the reports are compared with the ledger and with the oracle,
which has its own prices and arithmetic. Nothing may be missing, nothing there
twice, and money must agree to the last 1e-12 USD.

Where TALLYSTICK_TEST_KAFKA_BROKERS names real brokers, the log is there and not
embedded; the brokers are not killed.`

// smokeFlags are the flags of `tallystick smoke`.
type smokeFlags struct {
	short  bool
	keep   bool
	seed   uint64
	events int64
}

// newSmokeCommand is `tallystick smoke`. Exit codes: 0 everything agrees, 1
// something does not, or the test could not run, 3 a ledger does not verify.
func newSmokeCommand() *cobra.Command {
	f := &smokeFlags{}
	cmd := &cobra.Command{
		Use:   "smoke",
		Short: "Prove the whole path under kill -9 against an independent oracle",
		Long:  smokeLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runSmoke(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.short, "short", false, fmt.Sprintf("send %d calls in place of %d", smokeEventsShort, smokeEvents))
	fs.Uint64Var(&f.seed, "seed", 0, "decides the load and the moments of the kills (0: drawn, and printed)")
	fs.Int64Var(&f.events, "events", 0, "how many calls; injected faults come on top")
	fs.BoolVar(&f.keep, "keep", false, "keep the directory")
	return cmd
}

// smoke is one run of the smoke test.
type smoke struct {
	f     *smokeFlags
	log   io.Writer
	begin time.Time
	dir   string
	srv   *smokeServer
	api   *client.Client

	coverTime time.Duration // for checkCoverage
	load      load.Options
	want      *smokeWant
	res       *load.Result
	inFlight  []int64 // sent and not acknowledged, at each kill

	verified map[string]*client.Verification
	ledgers  map[string]*smokeLedger
	stored   big.Int // what ClickHouse says everything cost
	counted  int64   // duplicates that the ledger counted
	verdict  string
	broken   bool // a ledger does not verify
	faults   int
}

// maxSmokeFaults is how many differences are printed.
const maxSmokeFaults = 50

func (s *smoke) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.log, "smoke: %5.1fs "+format+"\n", append([]any{time.Since(s.begin).Seconds()}, args...)...)
}

// fault reports something that is not as it must be.
func (s *smoke) fault(format string, args ...any) {
	s.faults++
	switch {
	case s.faults <= maxSmokeFaults:
		s.say("WRONG "+format, args...)
	case s.faults == maxSmokeFaults+1:
		s.say("WRONG and more")
	}
}

func runSmoke(ctx context.Context, f *smokeFlags, stdout, stderr io.Writer) error {
	s := &smoke{f: f, log: stderr, begin: time.Now(), verdict: "not-run", coverTime: smokeCoverTime, verified: map[string]*client.Verification{}, ledgers: map[string]*smokeLedger{}}
	if f.seed == 0 {
		f.seed = rand.Uint64N(1 << 31)
	}
	if f.events == 0 {
		f.events = smokeEvents
		if f.short {
			f.events = smokeEventsShort
		}
	}
	err := s.run(ctx)
	if err == nil && s.faults > 0 {
		err = fmt.Errorf("smoke: %d differences", s.faults)
	}
	s.tidy(err != nil && ctx.Err() == nil)
	_, _ = fmt.Fprintln(stdout, s.lastLine(err))
	if s.broken {
		return &exitError{exitIntegrity, err}
	}
	return err
}

// run does everything in order. An error means that the test could not go on;
// differences are counted in faults.
func (s *smoke) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		s.prepare, s.feed, s.drain, s.verifyLedgers, s.checkReports, s.readLedgers, s.checkLedgers, s.stop, s.checkCounters,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// prepare starts the server and computes what must come of the load meanwhile.
func (s *smoke) prepare(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "tallystick-smoke-"); err != nil {
		return fmt.Errorf("smoke: %w", err)
	}
	// The engines' unprivileged user must be able to pass through.
	if err := os.Chmod(s.dir, 0o711); err != nil { //nolint:gosec // what must be private below it is
		return fmt.Errorf("smoke: %w", err)
	}
	if s.srv, err = newSmokeServer(s.dir); err != nil {
		return err
	}
	s.say("seed=%d calls=%d kafka=%s directory=%s", s.f.seed, s.f.events, s.srv.kafka, s.dir)
	s.load = load.Options{
		Events: s.f.events, Seed: s.f.seed, Base: time.Now().UTC().Truncate(24 * time.Hour), Tenants: smokeTenants, HotShare: smokeHotShare,
		URL: s.srv.url(), Connections: smokeConnections, Deadline: smokeAwayTime,
		Faults: load.Faults{Duplicates: 0.05, Late: 0.02, Reorder: 0.10, Poison: 0.01, Conflicts: 0.005, Unpriced: 0.01},
	}
	computed := make(chan error, 1)
	go func() {
		want, err := expectSmoke(s.load)
		s.want = want
		computed <- err
	}()
	ready, err := s.srv.start(ctx)
	if cerr := <-computed; cerr != nil {
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return err
	}
	s.say("ready in %.2f s", ready.Seconds())
	token, err := s.srv.token()
	if err != nil {
		return err
	}
	s.load.Token = token
	s.api = client.New(s.srv.url(), token)
	return nil
}

// feed sends the load and kills the server in the middle of it.
func (s *smoke) feed(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	moments := s.moments()
	s.load.OnProgress = moments.progress
	killed := make(chan error, 1)
	go func() {
		err := s.killAt(ctx, moments)
		if err != nil {
			cancel(err)
		}
		killed <- err
	}()
	res, err := load.Run(ctx, s.load)
	s.res = res
	moments.close()
	if kerr := <-killed; kerr != nil {
		return kerr
	}
	if err != nil {
		return fmt.Errorf("smoke: the load: %w", err)
	}
	s.say("sent=%d acked=%d requests=%d retries=%d retransmitted=%d in %.1f s",
		res.Sent, res.Acked, res.Requests, res.Retries, s.retransmitted(), res.Duration.Seconds())
	if len(s.inFlight) < smokeKills {
		s.fault("the server was killed %d times, not %d", len(s.inFlight), smokeKills)
	}
	return nil
}

// retransmitted is how many events may have arrived twice for want of an answer.
func (s *smoke) retransmitted() int64 {
	r := s.res.Retransmitted
	return r.Accepted + r.Duplicates + r.Conflicts
}

// killAt kills the server group at the moments, and starts it again at once.
func (s *smoke) killAt(ctx context.Context, m *smokeMoments) error {
	for {
		select {
		case inFlight, ok := <-m.due:
			if !ok {
				return nil
			}
			n, err := s.srv.kill()
			if err != nil {
				return err
			}
			s.inFlight = append(s.inFlight, inFlight)
			s.say("kill -9 of %d processes with %d events in flight", n, inFlight)
			ready, err := s.srv.start(ctx)
			if err != nil {
				return err
			}
			s.say("ready again in %.2f s", ready.Seconds())
		case <-s.srv.died():
			return s.srv.lastWords("the server ended by itself")
		case <-ctx.Done():
			return nil // the load says why
		}
	}
}

// drain waits until everything that was acknowledged has gone all the way.
func (s *smoke) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, smokeDrainTime, fmt.Errorf("smoke: not drained within %s", smokeDrainTime))
	defer cancel()
	began := time.Now()
	var before string
	for {
		state, err := s.state(ctx)
		if err == nil && state != "" && state == before {
			s.say("drained in %.1f s", time.Since(began).Seconds())
			return nil
		}
		before = state
		select {
		case <-time.After(250 * time.Millisecond):
		case <-s.srv.died():
			return s.srv.lastWords("the server ended by itself")
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// state names the heads of all ledgers when nothing is under way, else "".
func (s *smoke) state(ctx context.Context) (string, error) {
	p, err := s.api.Pipeline(ctx)
	if err != nil {
		return "", err
	}
	if len(p.Halted) > 0 {
		return "", fmt.Errorf("smoke: halted: %s", strings.Join(p.Halted, "; "))
	}
	if p.LedgerLag > 0 || p.PublishLag > 0 || p.AnalyticsLag > 0 {
		return "", fmt.Errorf("smoke: lag of the ledger %d, of publication %d, of ClickHouse %d", p.LedgerLag, p.PublishLag, p.AnalyticsLag)
	}
	var b strings.Builder
	for _, t := range s.want.tenants {
		h, err := s.api.Head(ctx, t)
		if err != nil {
			return "", fmt.Errorf("smoke: head of %s: %w", t, err)
		}
		fmt.Fprintf(&b, "%s %d %s\n", t, h.Seq, h.ChainHash)
	}
	return b.String(), nil
}

// stop ends the server in order.
func (s *smoke) stop(context.Context) error {
	took, err := s.srv.stop(smokeStopTime)
	if err != nil {
		return err
	}
	s.say("stopped in %.1f s", took.Seconds())
	return nil
}

// tidy ends what still runs and removes the directory, unless it is wanted.
func (s *smoke) tidy(failed bool) {
	if s.srv != nil {
		if _, err := s.srv.kill(); err != nil {
			s.say("WRONG %v", err)
		}
		s.srv.close()
	}
	if s.dir == "" {
		return
	}
	if failed || s.f.keep {
		s.say("directory kept: %s (its server.log has the server's messages)", s.dir)
		return
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.say("the directory stays: %v", err)
	}
}

// lastLine is the line that scripts look for.
func (s *smoke) lastLine(err error) string {
	var entries, rejected, unpriced int64
	var ledgered big.Int
	for _, l := range s.ledgers {
		entries += l.entries
		rejected += l.kinds["rejected"]
		unpriced += l.unpriced
		ledgered.Add(&ledgered, &l.cost)
	}
	kills := make([]string, len(s.inFlight))
	for i, n := range s.inFlight {
		kills[i] = strconv.FormatInt(n, 10)
	}
	var events int64
	expected := "0"
	if s.res != nil {
		events = s.res.Acked
	}
	if s.want != nil {
		expected = s.want.USD.String()
	}
	word := "ok"
	if err != nil {
		word = "FAILED"
	}
	return fmt.Sprintf("smoke: %s seed=%d events=%d inflight_at_kill=%s entries=%d duplicates=%d rejected=%d unpriced=%d ledger_usd=%s clickhouse_usd=%s oracle_usd=%s verify=%s seconds=%.0f",
		word, s.f.seed, events, strings.Join(kills, "/"), entries, s.counted, rejected, unpriced,
		usdText(&ledgered), usdText(&s.stored), expected, s.verdict, time.Since(s.begin).Seconds())
}
