package postgres_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

// BenchmarkContext is the price of a tenant context: a transaction with one
// statement on a tenant's row, with challenge, context and policy, beside the
// same one by a login that no policy holds back. Blocks of the two are
// interleaved, and the difference of their medians is reported.
func BenchmarkContext(b *testing.B) {
	l := testenv.MigratedPostgres(b)
	seed(b, l)
	ctx := b.Context()
	db := l.Open(b, postgres.RoleApp)
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
	// Blocks, because each login has a server process of its own, and one that
	// just ran answers sooner than one that was woken up.
	const warmUp, block = 10, 40
	var with, without []time.Duration
	measure := func(list *[]time.Duration, run func() error) {
		var start time.Time
		for i := range warmUp + block {
			if i == warmUp {
				start = time.Now()
			}
			if err := run(); err != nil {
				b.Fatal(err)
			}
		}
		*list = append(*list, time.Since(start)/block)
	}
	for b.Loop() {
		measure(&without, func() error { return pgx.BeginTxFunc(ctx, plain, options, read) })
		measure(&with, func() error { return db.InTenant(ctx, "acme", read) })
	}
	b.ReportMetric(micros(median(without)), "plain-us/tx")
	b.ReportMetric(micros(median(with)), "context-us/tx")
	b.ReportMetric(micros(median(with)-median(without)), "difference-us/tx")
	b.ReportMetric(micros(slices.Min(with)-slices.Min(without)), "least-us/tx")
}

func median[T cmp.Ordered](list []T) T {
	slices.Sort(list)
	return list[len(list)/2]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
