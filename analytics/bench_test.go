package analytics_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/ledger/chain"
)

// BenchmarkStore stores plans of entries in the real schema, with its view and
// with parts synced to disk. It prints entries/s by the median plan and the CPU
// of this process (from entry to block to socket) and of the engine, background
// merges included, per entry; beside it the same block into a bare table of the
// same columns without view and announcement, interleaved.
func BenchmarkStore(b *testing.B) {
	for _, size := range []int{10_000, 100_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) { benchmarkStore(b, size) })
	}
}

func benchmarkStore(b *testing.B, size int) {
	engine := startEngine(b, b.TempDir())
	db := open(b, engine.DSN(""), clickhouse.Writer)
	w := analytics.NewWriter(db)
	entries := newWorkload(1, 50, march, 500).entries(size)
	var plans []time.Duration
	own, child := ownCPU(b), processCPU(b, engine.PID())
	var fillCPU time.Duration
	for plan := int64(1); b.Loop(); plan++ {
		begin, before := time.Now(), ownCPU(b)
		fill(b, w, plan, entries)
		fillCPU += ownCPU(b) - before
		if err := w.Store(b.Context(), fmt.Sprint("plan-", plan), []analytics.Range{{From: plan, To: plan}}); err != nil {
			b.Fatal(err)
		}
		plans = append(plans, time.Since(begin))
	}
	own, child = ownCPU(b)-own, processCPU(b, engine.PID())-child
	slices.Sort(plans)
	rows := float64(size * len(plans))
	b.ReportMetric(float64(size)/plans[len(plans)/2].Seconds(), "entries/s")
	b.ReportMetric(float64(own.Microseconds())/rows, "own-cpu-µs/entry")
	b.ReportMetric(float64(fillCPU.Microseconds())/rows, "fill-cpu-µs/entry")
	b.ReportMetric(float64(child.Microseconds())/rows, "engine-cpu-µs/entry")
	for _, table := range []string{"entry", "usage_hour"} {
		bytes := count(b, db, "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = '"+table+"'")
		b.ReportMetric(float64(bytes)/rows, table+"-bytes/entry")
	}
	b.ReportMetric(0, "ns/op")
	checkView(b, db)
}

func ownCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// processCPU reads user and system time from the process table, in which they
// count 10 ms ticks.
func processCPU(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// BenchmarkReports asks the page's usual reports of a month of one hot tenant's
// entries, as many as fit into 30 s of storing, and prints the 95th percentile
// of each in milliseconds.
func BenchmarkReports(b *testing.B) {
	engine := startEngine(b, b.TempDir())
	w := analytics.NewWriter(open(b, engine.DSN(""), clickhouse.Writer))
	load := newWorkload(1, 3, march, 5)
	stored := int64(0)
	var e chain.Entry
	for plan, begin := int64(1), time.Now(); time.Since(begin) < 30*time.Second; plan++ {
		w.Reset()
		for range 100_000 {
			load.next(&e)
			if err := w.Append(&e, plan); err != nil {
				b.Fatal(err)
			}
			stored++
		}
		if err := w.Store(b.Context(), fmt.Sprint("plan-", plan), []analytics.Range{{From: plan, To: plan}}); err != nil {
			b.Fatal(err)
		}
	}
	cover := &coverage{}
	for id, seq := range load.seq {
		cover.set(id, seq)
	}
	now := time.Unix(0, load.at)
	reporter := analytics.NewReporter(open(b, engine.DSN(""), clickhouse.Reader), cover, func() time.Time { return now })
	month := report.Query{Tenant: "tenant-0", Window: report.Window{Name: report.Last30Days}}
	byEntry := month
	byEntry.Exact = true
	for name, ask := range map[string]func() error{
		"summary": func() error {
			_, err := reporter.Summary(b.Context(), &report.SummaryRequest{Query: month})
			return err
		},
		"groups-hours": func() error {
			_, err := reporter.Groups(b.Context(), &report.GroupsRequest{Query: month, GroupBy: []string{"team", "model"}})
			return err
		},
		"series-hours": func() error {
			_, err := reporter.TimeSeries(b.Context(), &report.TimeSeriesRequest{Query: month, Granularity: report.Hour, GroupBy: []string{"model"}})
			return err
		},
		"groups-entries": func() error {
			_, err := reporter.Groups(b.Context(), &report.GroupsRequest{Query: byEntry, GroupBy: []string{"end_customer"}})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				if err := ask(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
			b.ReportMetric(float64(stored), "entries")
			b.ReportMetric(0, "ns/op")
		})
	}
}
