package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// benchRun is one run of `tallystick bench`: what to measure, for how long, and
// what came of it. Every figure that is compared is a ratio of two measured in
// this run, in interleaved blocks.
type benchRun struct {
	out     io.Writer
	short   bool
	only    string
	dir     string
	figures map[string]string
}

// benchOrder is the last line, as quality.md of the design gives it.
var benchOrder = []string{"e2e", "e2e_vs_copy", "ledger", "ledger_vs_copy", "ledger_vs_rowtx",
	"verify", "verify_vs_drain", "ingest_cpu_us", "p99_visible_ms"}

// benchFurther is the line before it: figures that the design bounds, too.
var benchFurther = []string{"ledger2_vs_copy", "consume3_vs_poll", "consume5_vs_poll", "clickhouse_vs_append", "clickhouse_vs_engine",
	"state_update_ns", "hop5_ns", "proxy_vs_bare", "proxy_p50_us", "proxy_p99_us", "proxy_p50_vs_bare", "proxy_p99_vs_bare",
	"proxy_ttfb_us", "proxy_idle_mib"}

func newBenchCommand() *cobra.Command {
	r := &benchRun{figures: map[string]string{}}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the hot paths as ratios to limits of the same run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.out = cmd.OutOrStdout()
			return r.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&r.short, "short", false, "a few seconds each: shows that it runs, not how fast")
	cmd.Flags().StringVar(&r.only, "only", "", "measure only this: ledger (with verify), ingest, kafka (with processors), clickhouse, proxy or e2e")
	cmd.AddCommand(newBenchGatewaysCommand())
	return cmd
}

func (r *benchRun) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "tallystick-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The engines' unprivileged user must be able to pass through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	r.dir = dir
	for _, b := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"ledger", r.benchLedger}, {"ingest", r.benchIngest}, {"kafka", r.benchKafka},
		{"clickhouse", r.benchClickHouse}, {"proxy", r.benchProxy}, {"e2e", r.benchE2E},
	} {
		if r.only != "" && r.only != b.name {
			continue
		}
		if err := b.run(ctx); err != nil {
			return fmt.Errorf("bench %s: %w", b.name, err)
		}
	}
	r.printLine("bench-further:", benchFurther)
	r.printLine("bench:", benchOrder)
	return nil
}

// printLine prints those of the figures that were measured.
func (r *benchRun) printLine(title string, names []string) {
	line := title
	for _, name := range names {
		if v, ok := r.figures[name]; ok {
			line += " " + name + "=" + v
		}
	}
	r.printf("%s", line)
}

func (r *benchRun) printf(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

func (r *benchRun) set(name, format string, args ...any) {
	r.figures[name] = fmt.Sprintf(format, args...)
}

// sample is one measured block.
type sample struct {
	rows int
	took time.Duration
	own  time.Duration // CPU of this process
	db   time.Duration // CPU of the database's processes
}

func (s sample) rate() float64 { return float64(s.rows) / s.took.Seconds() }

// measure times one block with the CPU of this process and of a child's tree.
func measure(pid, rows int, block func() error) (sample, error) {
	own, db := selfCPU(), treeCPU(pid)
	start := time.Now()
	err := block()
	return sample{rows: rows, took: time.Since(start), own: selfCPU() - own, db: treeCPU(pid) - db}, err
}

// medianRate is the median of the blocks' rows per second.
func medianRate(s []sample) float64 {
	rates := make([]float64, len(s))
	for i := range s {
		rates[i] = s[i].rate()
	}
	return median(rates)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// medianRatio is the median over the pairs of a's rate to b's: both were
// measured one after the other, so a machine that slows down slows both.
func medianRatio(a, b []sample) float64 {
	n := min(len(a), len(b))
	ratios := make([]float64, n)
	for i := range n {
		ratios[i] = a[i].rate() / b[i].rate()
	}
	return median(ratios)
}

// cpuPerRow is the mean CPU a row in microseconds, ours and the database's.
func cpuPerRow(s []sample) (own, db float64) {
	var rows int
	var o, d time.Duration
	for _, x := range s {
		rows, o, d = rows+x.rows, o+x.own, d+x.db
	}
	return float64(o.Microseconds()) / float64(rows), float64(d.Microseconds()) / float64(rows)
}

// report prints a table row of one path.
func (r *benchRun) report(name string, s []sample) {
	rates := make([]float64, len(s))
	for i := range s {
		rates[i] = s[i].rate()
	}
	own, db := cpuPerRow(s)
	line := fmt.Sprintf("  %-28s %9.0f rows/s  (min %.0f, max %.0f, %d blocks)  cpu us/row: ours %.2f",
		name, median(rates), slices.Min(rates), slices.Max(rates), len(s), own)
	if db > 0 {
		line += fmt.Sprintf(", engine %.2f", db)
	}
	r.printf("%s", line)
}

func selfCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// clockTick is the unit of /proc's CPU times, which Linux fixes at 100 a second.
const clockTick = time.Second / 100

// treeCPU is the CPU that a process, its living children and their children have
// used, with that of children already waited for.
func treeCPU(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	total := statTicks(pid, 11, 12, 13, 14) // utime, stime, cutime, cstime
	for _, c := range childrenOf(pid) {
		total += treeCPU(c)
	}
	return total
}

// processCPU is the CPU of a process without its children.
func processCPU(pid int) time.Duration { return statTicks(pid, 11, 12) }

// statTicks adds up fields of /proc/PID/stat, counted after the command.
func statTicks(pid int, fields ...int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command may hold blanks, but it stands in parentheses.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int64
	for _, i := range fields {
		if i < len(f) {
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * clockTick
}

// childrenOf lists the children that any thread of a process started.
func childrenOf(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, c := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(c); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// peakKiB is the peak resident memory of a process.
func peakKiB(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}
