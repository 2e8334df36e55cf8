package ledger_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

// memoryLog is a partition of `events` in memory: what a writer takes of it is
// the writer's own time.
type memoryLog struct{ recs []kafka.Record }

func (m *memoryLog) Open(context.Context, kafka.Position) (ledger.Reader, error) { return m, nil }
func (m *memoryLog) CommitForLag(int64)                                          {}
func (m *memoryLog) Close()                                                      {}

func (m *memoryLog) Next(ctx context.Context) ([]kafka.Record, error) {
	if len(m.recs) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n := min(len(m.recs), 4096)
	recs := m.recs[:n]
	m.recs = m.recs[n:]
	return recs, nil
}

// nowhere acknowledges everything.
type nowhere struct{}

func (nowhere) ProduceBatch(context.Context, []kafka.Record, []kafka.Result) error { return nil }

// cpu is the processor time of this process, without that of Postgres.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serverCPU is the processor time of a Postgres and all it has started.
func serverCPU(b *testing.B, db *postgres.DB) (total time.Duration) {
	b.Helper()
	var backend int
	if err := db.Tx(b.Context(), func(tx postgres.Tx) error {
		return tx.QueryRow(b.Context(), "select pg_backend_pid()").Scan(&backend)
	}); err != nil {
		b.Fatal(err)
	}
	postmaster := procStat(b, strconv.Itoa(backend))[1]
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	add := func(fields []string) {
		for _, f := range fields {
			n, err := strconv.Atoi(f)
			if err != nil {
				b.Fatal(err)
			}
			total += time.Duration(n) * tick
		}
	}
	add(procStat(b, postmaster)[11:15]) // with the backends that have ended
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	for _, dir := range dirs {
		if f := procStat(b, filepath.Base(dir)); f != nil && f[1] == postmaster {
			add(f[11:13])
		}
	}
	return total
}

// procStat is what follows the name in /proc/PID/stat: state, parent …; nil for a
// process that has ended.
func procStat(b *testing.B, pid string) []string {
	content, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return nil
	}
	_, rest, ok := strings.Cut(string(content), ") ")
	if !ok {
		b.Fatalf("/proc/%s/stat: %q", pid, content)
	}
	return strings.Fields(rest)
}

// BenchmarkSigning measures what checkpoints cost beside the writer, over the
// same entries in a real Postgres: processor time of this process (%ours), with
// that of Postgres (%all), and time in all (%wall). The writer neither reads nor
// writes Kafka here. The limit is 15 % of the writer's time.
func BenchmarkSigning(b *testing.B) {
	const n = 200_000
	recs := make([]kafka.Record, 0, n+1)
	add := func(value []byte) {
		recs = append(recs, kafka.Record{Key: []byte("acme"), Value: value, Offset: int64(len(recs))})
	}
	add(event.AppendControlRecord(nil, &event.Control{Kind: event.ControlKeyEpoch, Tenant: "acme", Version: "1", IssuedAt: 1_760_000_000_000_000_001}))
	for i := range n {
		add(usage("acme", i, nil))
	}
	for b.Loop() {
		pg := testenv.MigratedPostgres(b)
		many, one := pg.Open(b, postgres.RoleLedger), pg.Open(b, postgres.RoleApp)
		dir, err := checkpoint.OpenDir(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		source := pglog.NewLedger(many, one)
		lw := ledger.NewWriter(pgstore.New(many), testKeys{}, nowhere{}, kafka.Config{}.Topics(), ledger.Options{}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		wall, used, server := time.Now(), cpu(b), serverCPU(b, one)
		go func() { done <- lw.RunPartition(ctx, ledger.Topic{Partitions: 1}, 0, &memoryLog{recs}) }()
		for lw.Stats().Places()[0].NextOffset < int64(len(recs)) {
			time.Sleep(time.Millisecond) // polling a store
		}
		if c := lw.Stats().Counts(); c.Usage != n {
			b.Fatalf("counts %+v", c)
		}
		writerCPU, writerWall, writerServer := cpu(b)-used, time.Since(wall), serverCPU(b, one)-server
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		signer := checkpoint.New(source, pgstore.NewCheckpoints(many), dir, drillKeys{},
			checkpoint.Options{Tenants: func() []tenant.ID { return []tenant.ID{"acme"} }}, slog.New(slog.DiscardHandler))
		wall, used, server = time.Now(), cpu(b), serverCPU(b, one)
		if err := signer.Round(b.Context()); err != nil || signer.Status().Entries != n+1 {
			b.Fatalf("%v, %+v, %+v", err, signer.Status(), lw.Stats().Counts())
		}
		signCPU, signWall, signServer := cpu(b)-used, time.Since(wall), serverCPU(b, one)-server
		b.ReportMetric(float64(writerCPU.Microseconds())/n, "writer-cpu-µs/entry")
		b.ReportMetric(float64(signCPU.Microseconds())/n, "signing-cpu-µs/entry")
		b.ReportMetric(float64(writerServer.Microseconds())/n, "writer-pg-µs/entry")
		b.ReportMetric(float64(signServer.Microseconds())/n, "signing-pg-µs/entry")
		b.ReportMetric(100*float64(signCPU)/float64(writerCPU), "%ours")
		b.ReportMetric(100*float64(signCPU+signServer)/float64(writerCPU+writerServer), "%all")
		b.ReportMetric(100*float64(signWall)/float64(writerWall), "%wall")
	}
}
