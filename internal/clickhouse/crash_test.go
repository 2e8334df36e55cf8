package clickhouse_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/embedded"
)

// startEngine starts an engine on dir that the test may kill.
func startEngine(t *testing.T, dir string) *embedded.ClickHouse {
	t.Helper()
	lib, err := embedded.FindCHDB("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{DataDir: dir, LibPath: lib})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// t.Context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = c.Stop(ctx)
	})
	return c
}

// TestKillInMidInsert kills the engine at a random moment of an insert, again
// and again, and sends the block once more to the next engine. Every row must
// be there once, in the table and in the view's target.
func TestKillInMidInsert(t *testing.T) {
	const kills, rows = 10, 50_000
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	mid := 0
	for round := range uint64(kills) {
		c := startEngine(t, dir)
		db, err := clickhouse.Open(t.Context(), c.DSN(""), clickhouse.Writer)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			mustExec(t, db, usageTables...)
		} else {
			resend(t, db, round-1, rows)
		}
		// A first insert goes through, so that the time of the next is known.
		block := usageBlock(2*round*rows, rows)
		begin := time.Now()
		if err := db.Insert(t.Context(), "usage", fmt.Sprint(2*round), block); err != nil {
			t.Fatal(err)
		}
		usual := time.Since(begin)
		block = usageBlock((2*round+1)*rows, rows)
		result := make(chan error, 1)
		go func() { result <- db.Insert(t.Context(), "usage", fmt.Sprint(2*round+1), block) }()
		// The moment is the point of the test; no event marks it.
		time.Sleep(time.Duration(random.Int64N(int64(usual))))
		if err := syscall.Kill(c.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil {
			mid++
			if !clickhouse.Transient(err) {
				t.Errorf("the loss of the engine is no transient error: %v", err)
			}
		}
		<-c.Done()
		db.Close()
	}
	c := startEngine(t, dir)
	db, err := clickhouse.Open(t.Context(), c.DSN(""), clickhouse.Writer)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	resend(t, db, kills-1, rows)
	checkUsage(t, db, 2*kills*rows)
	t.Logf("%d of %d inserts were cut", mid, kills)
	if mid == 0 {
		t.Error("no insert was cut; the test shows nothing")
	}
}

// resend repeats both blocks of a round.
func resend(t *testing.T, db *clickhouse.DB, round uint64, rows int) {
	t.Helper()
	for _, n := range []uint64{2 * round, 2*round + 1} {
		if err := db.Insert(t.Context(), "usage", fmt.Sprint(n), usageBlock(n*uint64(rows), rows)); err != nil {
			t.Fatal(err)
		}
	}
}
