package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/load"
)

// Lengths of the end-to-end measurement. Sustained means that nothing is left
// behind: the time ends when the last event is seen through the report API.
const (
	e2eLoad         = 65 * time.Second
	e2eLoadShort    = 5 * time.Second
	e2eLatency      = 25 * time.Second
	e2eLatencyShort = 4 * time.Second
	// Blocks of the COPY baseline before the load, and as many after it; together
	// they load about as many rows as the run does: small tables that have no
	// checkpoint to write yet would be a limit of something else.
	e2eCopyRounds  = 6
	e2eCopyBatches = 25
	e2eDrain       = 5 * time.Minute
	e2eLeast       = 10 * time.Microsecond // for one event, however fast
	// e2eSpan is the time that e2eEvents of the source happen in: live traffic of
	// 50,000 events a second, whose ids follow their times. The import of a
	// history would touch more hours at once; more events in the span would all
	// have happened in the same milliseconds, with ids in no order.
	e2eSpan   = 10 * time.Minute
	e2eEvents = 50_000 * int64(e2eSpan/time.Second) // more than are sent
)

// e2e is the whole program in processes of its own, under a load from here.
type e2e struct {
	r      *benchRun
	server *smokeServer
	api    *client.Client
	token  string
}

// benchE2E measures from the public ingest API to the report API: protobuf
// batches over HTTP, half the traffic by one tenant; then how long an event
// takes to be seen at half that rate. The COPY baseline is measured in the same
// run, before and after.
func (r *benchRun) benchE2E(ctx context.Context) error {
	r.printf("end to end (one hot tenant with half the traffic)")
	base, err := r.openPostgres(ctx, "postgres-e2e")
	if base != nil {
		defer base.close()
	}
	if err != nil {
		return err
	}
	copies, err := newCopyBaseline(ctx, base)
	if err != nil {
		return err
	}
	before, err := r.copyBlocks(ctx, copies)
	if err != nil {
		return err
	}
	rate, err := r.e2eServer(ctx)
	if err != nil {
		return err
	}
	after, err := r.copyBlocks(ctx, copies)
	if err != nil {
		return err
	}
	all := append(before, after...)
	r.report("COPY baseline", all)
	r.set("e2e", "%.0f/s", rate)
	r.set("e2e_vs_copy", "%.2f", rate/medianRate(all))
	return nil
}

func (r *benchRun) copyBlocks(ctx context.Context, c *copyBaseline) ([]sample, error) {
	rounds, batches := e2eCopyRounds, e2eCopyBatches
	if r.short {
		rounds, batches = 2, 2
	}
	var out []sample
	for i := range rounds + 1 {
		s, err := c.block(ctx, batches)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first warms up
			out = append(out, s)
		}
	}
	return out, nil
}

// e2eServer starts the program, loads it and measures.
func (r *benchRun) e2eServer(ctx context.Context) (rate float64, err error) {
	dir := filepath.Join(r.dir, "e2e")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return 0, err
	}
	e := &e2e{r: r}
	if e.server, err = newSmokeServer(dir); err != nil {
		return 0, err
	}
	defer e.server.close()
	took, err := e.server.start(ctx)
	if err != nil {
		return 0, err
	}
	defer func() {
		if _, serr := e.server.stop(stopTime); err == nil {
			err = serr
		}
	}()
	if e.token, err = e.server.token(); err != nil {
		return 0, err
	}
	e.api = client.New(e.server.url(), e.token)
	defer e.api.Close()
	r.printf("  ready in %.1f s", took.Seconds())
	if rate, err = e.throughput(ctx); err != nil {
		return 0, err
	}
	return rate, e.latency(ctx, rate/2)
}

// options of a load of some tenants.
func (e *e2e) options(prefix string) load.Options {
	return load.Options{
		URL: e.server.url(), Token: e.token, Tenants: 200, TenantPrefix: prefix, HotShare: 0.5, Seed: uint64(time.Now().UnixNano()),
		History: e2eSpan, Batch: 1000, Connections: 8,
	}
}

// throughput sends for a while, as fast as it goes while the backlog stays below
// e2eBacklog, and waits until all of it is in the reports.
func (e *e2e) throughput(ctx context.Context) (float64, error) {
	length := e2eLoad
	if e.r.short {
		length = e2eLoadShort
	}
	pids := e.processes()
	own, cpu := selfCPU(), cpuOf(pids)
	start := time.Now()
	o := e.options("load")
	o.Events = e2eEvents
	b := &backlog{api: e.api, until: start.Add(length)}
	o.Hold = b.hold
	res, err := e.send(ctx, o, length)
	if err = errors.Join(err, b.err); err != nil {
		return 0, err
	}
	sent := time.Since(start)
	if err := e.seen(ctx); err != nil {
		return 0, err
	}
	took := time.Since(start)
	rate := float64(res.Expectation.Accepted) / took.Seconds()
	perEvent := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(res.Expectation.Accepted) }
	line := fmt.Sprintf("  %d events in %.1f s (sent in %.1f s, all seen in reports %.1f s later): %.0f/s; cpu us/event: load %.2f",
		res.Expectation.Accepted, took.Seconds(), sent.Seconds(), (took - sent).Seconds(), rate, perEvent(selfCPU()-own))
	for i, d := range cpuOf(pids) {
		line += fmt.Sprintf(", %s %.2f", pids[i].name, perEvent(d-cpu[i]))
	}
	e.r.printf("%s", line)
	e.r.printf("  peak memory without postgres: %s", e.memory(pids))
	return rate, e.check(ctx, res)
}

// e2eBacklog is how many events may be accepted and not yet in a report: a rate
// counts as sustained while no more wait. e2eLook is how often that is asked.
const (
	e2eBacklog = 400_000
	e2eLook    = 500 * time.Millisecond
)

// backlog holds a load while too much of it waits.
type backlog struct {
	api    *client.Client
	until  time.Time // the end of the load
	looked time.Time
	err    error
}

// hold returns when the pipeline is less than e2eBacklog behind, when it cannot be
// asked, or at the end of the load.
func (b *backlog) hold(ctx context.Context) {
	for b.err == nil && ctx.Err() == nil && time.Since(b.looked) >= e2eLook && time.Now().Before(b.until) {
		p, err := b.api.Pipeline(ctx)
		if err != nil {
			b.err = fmt.Errorf("the backlog: %w", err)
			return
		}
		if p.LedgerLag+p.AnalyticsLag < e2eBacklog {
			b.looked = time.Now()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(e2eLook / 5):
		}
	}
}

// send runs a load that ends in order after the given time.
func (e *e2e) send(ctx context.Context, o load.Options, length time.Duration) (*load.Result, error) {
	stop := make(chan struct{})
	timer := time.AfterFunc(length, func() { close(stop) })
	defer timer.Stop()
	o.Stop = stop
	res, err := load.Run(ctx, o)
	if err != nil && !errors.Is(err, load.ErrStopped) {
		return nil, err
	}
	if res.Surprises > 0 || res.InDoubt > 0 {
		return nil, fmt.Errorf("the load had %d answers other than expected and %d without one", res.Surprises, res.InDoubt)
	}
	return res, nil
}

// seen waits until reports show everything that the ledger has, and the ledger
// has everything that was accepted. While much is behind it asks seldom: each
// answer reads from every engine.
func (e *e2e) seen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e2eDrain)
	defer cancel()
	for {
		p, err := e.api.Pipeline(ctx)
		if err != nil {
			return err
		}
		if len(p.Halted) > 0 {
			return fmt.Errorf("halted: %s", strings.Join(p.Halted, "; "))
		}
		if p.LedgerLag == 0 && p.AnalyticsLag == 0 {
			return nil
		}
		behind := time.Duration(p.LedgerLag+p.AnalyticsLag) * e2eLeast
		select {
		case <-ctx.Done():
			return fmt.Errorf("not drained: ledger %d, analytics %d behind", p.LedgerLag, p.AnalyticsLag)
		case <-time.After(min(max(behind/2, 50*time.Millisecond), time.Second)):
		}
	}
}

// check holds every tenant's report against the oracle, and verifies the hot
// tenant's ledger: a figure of a pipeline that loses events means nothing.
func (e *e2e) check(ctx context.Context, res *load.Result) error {
	for id, want := range res.Expectation.Tenants {
		s, err := e.api.Summary(ctx, client.Query{TenantID: id, Window: client.Window{Name: "all"}})
		if err != nil {
			return err
		}
		if int64(s.Totals.Requests) != want.Accepted || s.Totals.CostUSD != want.USD.String() {
			return fmt.Errorf("tenant %s: reports say %d events of %s USD, the oracle %d of %s", id, s.Totals.Requests, s.Totals.CostUSD, want.Accepted, want.USD.String())
		}
	}
	hot := load.TenantIDs("load", 1)[0]
	v, err := e.api.Verify(ctx, hot)
	if err != nil {
		return err
	}
	if v.Verdict != "intact" {
		return fmt.Errorf("ledger of %s: %s: %s", hot, v.Verdict, v.Message)
	}
	e.r.printf("  %d tenants equal the oracle, %s USD; ledger of %s intact, %d entries", len(res.Expectation.Tenants), res.Expectation.USD.String(), hot, v.Entries)
	return nil
}

// latency measures how long an event takes from being sent to being seen in a
// report, while a load of the same tenants runs at the given rate. Events of one tenant are sent one
// after the other, so that a single report says which of them are in: many
// that ask at once would be the load that is measured.
func (e *e2e) latency(ctx context.Context, rate float64) error {
	length := e2eLatency
	if e.r.short {
		length = e2eLatencyShort
	}
	ctx, cancel := context.WithTimeout(ctx, length+e2eDrain)
	defer cancel()
	if err := e.sendProbe(ctx, true); err != nil { // it makes the tenant
		return err
	}
	p := &probes{}
	var wg sync.WaitGroup
	var sendErr, seeErr error
	sending, stop := context.WithCancel(ctx)
	wg.Go(func() { sendErr = p.send(sending, func() error { return e.sendProbe(ctx, false) }) })
	wg.Go(func() { seeErr = p.watch(ctx, e.reported) })
	o := e.options("load") // whose tenants stand: nobody gets 200 new ones at once
	o.Live, o.Rate, o.Base = true, rate, time.Now()
	_, err := e.send(ctx, o, length)
	stop()
	wg.Wait()
	if err := errors.Join(err, sendErr, seeErr); err != nil {
		return err
	}
	seen := slices.Sorted(slices.Values(p.took))
	if len(seen) == 0 {
		return errors.New("no probe was sent")
	}
	q := func(p float64) float64 { return seen[min(len(seen)-1, int(p*float64(len(seen))))] }
	e.r.printf("  at %.0f events/s, sent -> seen in a report (asked every %s): p50 %.0f ms, p99 %.0f ms, max %.0f ms of %d probes",
		rate, probePoll, q(0.5), q(0.99), seen[len(seen)-1], len(seen))
	e.r.set("p99_visible_ms", "%.0f", q(0.99))
	return nil
}

// Of the probes: how long after one the next is sent, and how long after a
// report the next is asked for; the latter is part of what they measure.
const (
	probeEvery = 70 * time.Millisecond
	probePoll  = 50 * time.Millisecond
	probeID    = "probe"
)

// probes are events of one tenant on their way.
type probes struct {
	mu   sync.Mutex  // protects all below
	sent []time.Time // when each began, in order of the tenant's chain
	took []float64   // milliseconds until each was seen
	done bool        // no more are sent
}

// send sends a probe every while until ctx ends.
func (p *probes) send(ctx context.Context, one func() error) error {
	defer func() {
		p.mu.Lock()
		p.done = true
		p.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(probeEvery):
		}
		p.mu.Lock()
		p.sent = append(p.sent, time.Now())
		p.mu.Unlock()
		if err := one(); err != nil {
			return err
		}
	}
}

// watch asks how many events are reported until all that were sent are.
func (p *probes) watch(ctx context.Context, reported func(context.Context) (int, error)) error {
	for {
		n, err := reported(ctx)
		if err != nil {
			return err
		}
		if p.saw(n-1, time.Now()) { // the first event made the tenant
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("probes: %w", ctx.Err())
		case <-time.After(probePoll):
		}
	}
}

// saw notes that the first n probes were in a report, and whether all are.
func (p *probes) saw(n int, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.took); i < min(n, len(p.sent)); i++ {
		p.took = append(p.took, float64(now.Sub(p.sent[i]).Microseconds())/1000)
	}
	return p.done && len(p.took) == len(p.sent)
}

// sendProbe sends one event of the probes' tenant, which the first makes.
func (e *e2e) sendProbe(ctx context.Context, first bool) error {
	res, err := load.Run(ctx, load.Options{
		URL: e.server.url(), Token: e.token, Tenants: 1, TenantPrefix: probeID, Events: 1, Seed: uint64(time.Now().UnixNano()),
		History: time.Minute, Connections: 1, SkipTenants: !first,
	})
	if err == nil && res.Acked != 1 {
		err = errors.New("not acknowledged")
	}
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

// reported is how many events of the probes' tenant a report shows.
func (e *e2e) reported(ctx context.Context) (int, error) {
	s, err := e.api.Summary(ctx, client.Query{TenantID: load.TenantIDs(probeID, 1)[0], Window: client.Window{Name: "24h"}})
	// Until its first entry the ledger does not know the tenant.
	if err != nil && client.StatusOf(err) != http.StatusNotFound {
		return 0, fmt.Errorf("probe: %w", err)
	}
	if err != nil {
		return 0, nil
	}
	return int(s.Totals.Requests), nil
}

// process is one of the server's processes.
type process struct {
	name string
	pid  int
}

// processes are the server's own process and those of its engines.
func (e *e2e) processes() []process {
	pid := e.server.cmd.Process.Pid
	out := []process{{"tallystick", pid}}
	for _, c := range childrenOf(pid) {
		name := "clickhouse"
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c)); strings.HasPrefix(string(comm), "postgres") {
			name = "postgres"
		}
		out = append(out, process{name, c})
	}
	return out
}

// cpuOf is the CPU of each process; a child counts with its own children.
func cpuOf(ps []process) []time.Duration {
	out := make([]time.Duration, len(ps))
	for i, p := range ps {
		if out[i] = processCPU(p.pid); i > 0 {
			out[i] = treeCPU(p.pid)
		}
	}
	return out
}

// memory is the peak resident memory of our processes.
func (e *e2e) memory(ps []process) string {
	var parts []string
	var sum int64
	for _, p := range ps {
		if p.name == "postgres" {
			continue
		}
		kib := peakKiB(p.pid)
		sum += kib
		parts = append(parts, fmt.Sprintf("%s %d MiB", p.name, kib>>10))
	}
	return fmt.Sprintf("%s, together %d MiB", strings.Join(parts, ", "), sum>>10)
}
