package postgres_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

// BenchmarkContext is the price of a tenant context: a transaction with one
// statement on a tenant's row, with context and policy, beside the same one by a
// login that no policy holds back. Blocks of the two are interleaved.
//
// cpu is the time of the server's process (Linux only), and the figure to go by:
// on a shared machine the wall time is mostly how long a process that waited
// takes to be woken up. least is the difference of the two fastest blocks.
func BenchmarkContext(b *testing.B) {
	l := testenv.MigratedPostgres(b)
	seed(b, l)
	ctx := b.Context()
	db, err := postgres.Open(ctx, l.DSNs[postgres.RoleApp], l.Signer, postgres.Options{MaxConns: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	conn, release, err := db.Acquire(ctx)
	if err != nil {
		b.Fatal(err)
	}
	pid := conn.PgConn().PID()
	release()
	plain, err := pgx.Connect(ctx, l.DSNs[postgres.RoleBypass])
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close(ctx)
	read := func(tx postgres.Tx) error {
		var seq int64
		return tx.QueryRow(ctx, "select seq from ledger.head where tenant_id = $1", "acme").Scan(&seq)
	}
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	with := series{pid: pid, run: func() error { return db.InTenant(ctx, "acme", read) }}
	without := series{pid: plain.PgConn().PID(), run: func() error { return pgx.BeginTxFunc(ctx, plain, options, read) }}
	for b.Loop() {
		without.block(b)
		with.block(b)
	}
	b.ReportMetric(micros(median(without.wall)), "plain-us/tx")
	b.ReportMetric(micros(median(with.wall)), "context-us/tx")
	b.ReportMetric(micros(slices.Min(with.wall)-slices.Min(without.wall)), "least-us/tx")
	b.ReportMetric(micros(median(with.cpu)-median(without.cpu)), "cpu-us/tx")
	b.ReportMetric(micros(slices.Min(with.cpu)-slices.Min(without.cpu)), "least-cpu-us/tx")
}

// series is what blocks of one kind of transaction took, each.
type series struct {
	pid       uint32
	run       func() error
	wall, cpu []time.Duration
}

// block measures some transactions after some that warm the server's process up:
// one that just ran answers sooner than one that was woken up.
func (s *series) block(b *testing.B) {
	const warmUp, measured = 10, 40
	var start time.Time
	var cpu time.Duration
	for i := range warmUp + measured {
		if i == warmUp {
			start, cpu = time.Now(), cpuOf(b, s.pid)
		}
		if err := s.run(); err != nil {
			b.Fatal(err)
		}
	}
	s.wall = append(s.wall, time.Since(start)/measured)
	s.cpu = append(s.cpu, (cpuOf(b, s.pid)-cpu)/measured)
}

// cpuOf is the time that a process of the server has run, 0 where the system
// does not tell.
func cpuOf(b *testing.B, pid uint32) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0
	}
	var ns int64
	if _, err := fmt.Sscan(string(raw), &ns); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ns)
}

func median[T cmp.Ordered](list []T) T {
	slices.Sort(list)
	return list[len(list)/2]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
