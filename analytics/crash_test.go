package analytics_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/processors/finding"
)

// TestKillInMidStore kills the engine at a random moment of storing a plan,
// again and again, and stores the same plan once more on the next engine, as the
// runner does. Every entry and rollup must be there once, in the target of the
// view too, and the announcement never behind what is stored.
func TestKillInMidStore(t *testing.T) {
	const kills, rows = 4, 15_000
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	cut := 0
	fillPlan := func(w *analytics.Writer, plan int64) {
		fill(t, w, plan, newTraffic(uint64(plan), 4, march, 72*time.Hour).entries(rows))
		if err := w.AppendRollup(&finding.Rollup{Tenant: "tenant-0", Hour: march.Unix(), Requests: 1}); err != nil {
			t.Fatal(err)
		}
	}
	storePlan := func(w *analytics.Writer, plan int64) error {
		return w.Store(t.Context(), fmt.Sprint("plan-", plan), []analytics.Range{{Partition: 9, From: plan, To: plan}})
	}
	plan := int64(0)
	for round := range kills {
		engine := startEngine(t, dir)
		db, err := clickhouse.Open(t.Context(), engine.DSN(""), clickhouse.Writer)
		if err != nil {
			t.Fatal(err)
		}
		w := analytics.NewWriter(db)
		if round > 0 {
			checkAnnounced(t, db, plan)
			fillPlan(w, plan)
			if err := storePlan(w, plan); err != nil {
				t.Fatal(err)
			}
		}
		// A first plan goes through, so that the time of the next is known.
		plan++
		fillPlan(w, plan)
		begin := time.Now()
		if err := storePlan(w, plan); err != nil {
			t.Fatal(err)
		}
		usual := time.Since(begin)
		plan++
		fillPlan(w, plan)
		result := make(chan error, 1)
		go func() { result <- storePlan(w, plan) }()
		// The moment is the point of the test; no event marks it.
		time.Sleep(time.Duration(random.Int64N(int64(usual))))
		if err := syscall.Kill(engine.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil {
			cut++
			if !w.Transient(err) {
				t.Errorf("the loss of the engine is no transient error: %v", err)
			}
		}
		<-engine.Done()
		db.Close()
	}
	db := open(t, startEngine(t, dir).DSN(""), clickhouse.Writer)
	w := analytics.NewWriter(db)
	fillPlan(w, plan)
	if err := storePlan(w, plan); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, "SELECT count() FROM entry"); n != uint64(plan*rows) {
		t.Errorf("%d entries, want %d", n, plan*rows)
	}
	if n := count(t, db, "SELECT sum(sum_requests) FROM rollup_hour"); n != uint64(plan) {
		t.Errorf("%d rollups, want %d", n, plan)
	}
	checkView(t, db)
	checkAnnounced(t, db, plan)
	t.Logf("%d of %d plans were cut", cut, kills)
	if cut == 0 {
		t.Error("no plan was cut; the test shows nothing")
	}
}

// TestPlansAreKnownAfterARestart stores plans, kills the engine, and stores the
// same plans again, from the engine's very first life on: what a schema change
// leaves in its memory must not be part of what a plan is known by.
func TestPlansAreKnownAfterARestart(t *testing.T) {
	dir := t.TempDir()
	for plans := int64(1); plans <= 3; plans++ {
		engine := startEngine(t, dir)
		db := open(t, engine.DSN(""), clickhouse.Writer)
		w := analytics.NewWriter(db)
		for plan := int64(1); plan <= plans; plan++ {
			fill(t, w, plan, newTraffic(uint64(plan), 4, march, 72*time.Hour).entries(500))
			if err := w.Store(t.Context(), fmt.Sprint("plan-", plan), []analytics.Range{{Partition: 9, From: plan, To: plan}}); err != nil {
				t.Fatal(err)
			}
		}
		if n := count(t, db, "SELECT count() FROM entry"); n != uint64(plans*500) {
			t.Errorf("life %d: %d entries, want %d", plans, n, plans*500)
		}
		checkView(t, db)
		if err := syscall.Kill(engine.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-engine.Done()
	}
}

// checkAnnounced looks for entries that nothing announces.
func checkAnnounced(t *testing.T, db *clickhouse.DB, most int64) {
	t.Helper()
	if n := count(t, db, `SELECT count() FROM (SELECT tenant_id, max(seq) AS stored, max(ledger_commit) AS last FROM entry GROUP BY tenant_id) AS e
		LEFT JOIN (SELECT tenant_id, max(seq) AS known, max(commit) AS commits FROM announced GROUP BY tenant_id) AS a USING (tenant_id)
		WHERE stored > known OR last > commits`); n > 0 {
		t.Errorf("%d tenants have entries that were not announced", n)
	}
	largest, err := analytics.NewWriter(db).Largest(t.Context())
	if err != nil || largest[9] > most || largest[9] < most-1 {
		t.Errorf("largest commit %d, %v; the last plan was %d", largest[9], err, most)
	}
}
