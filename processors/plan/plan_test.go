package plan_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/processors"
	"github.com/tallystick/tallystick/processors/plan"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	planA = "00000000-0000-4000-8000-00000000000a"
	planB = "00000000-0000-4000-8000-00000000000b"
)

func open(t *testing.T) (*testenv.Ledger, *plan.Store) {
	t.Helper()
	l := testenv.MigratedPostgres(t)
	return l, plan.NewStore(l.Open(t, postgres.RoleProcessors))
}

func planOf(id string, ranges ...processors.Range) *processors.Plan {
	return &processors.Plan{ID: id, Ranges: ranges}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestPlansAreRecordedAndConfirmedOnce(t *testing.T) {
	_, s := open(t)
	ctx := t.Context()
	if cp, err := s.Checkpoint(ctx, 4); err != nil || cp != (processors.Checkpoint{}) {
		t.Errorf("checkpoint of a new partition = %+v, %v", cp, err)
	}
	at := kafka.Position{Offset: 70, Topic: kafka.TopicID{9}}
	a := planOf(planA, processors.Range{Partition: 0, From: 1, To: 3, Filled: 2, Resume: at}, processors.Range{Partition: 4, From: 1, To: 1})
	for range 2 { // the second time as after a lost answer
		if err := s.Record(ctx, a); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Open(ctx, planA); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("open plan = %+v, %v; want %+v", got, err, a)
	}
	wantErr(t, "another plan on an open partition", s.Record(ctx, planOf(planB, processors.Range{Partition: 4, From: 2, To: 2})), processors.ErrFenced)
	wantErr(t, "another plan on the same range", s.Record(ctx, planOf(planB, processors.Range{Partition: 4, From: 1, To: 2})), processors.ErrFenced)
	wantErr(t, "a plan with one bad range", s.Record(ctx, planOf(planB, processors.Range{Partition: 7, From: 1, To: 1}, processors.Range{Partition: 8, From: 2, To: 2})), processors.ErrFenced)
	if cp, err := s.Checkpoint(ctx, 7); err != nil || cp.Open != "" {
		t.Errorf("half a plan was recorded: %+v, %v", cp, err)
	}
	wantErr(t, "confirm of what was never recorded", s.Confirm(ctx, planOf(planB, processors.Range{Partition: 0, From: 1, To: 3}), nil), processors.ErrFenced)

	covered := []processors.Covered{{Tenant: "acme", Partition: 0, Seq: 12, Chain: chain.Hash{3}, ReceivedAt: 55}}
	for range 2 {
		if err := s.Confirm(ctx, a, covered); err != nil {
			t.Fatal(err)
		}
	}
	want := processors.Checkpoint{Commit: 3, Filled: 2, Resume: at}
	if cp, err := s.Checkpoint(ctx, 0); err != nil || cp != want {
		t.Errorf("checkpoint = %+v, %v; want %+v", cp, err, want)
	}
	if got, err := s.Open(ctx, planA); err != nil || got != nil {
		t.Errorf("a confirmed plan is open: %+v, %v", got, err)
	}
	if got, err := s.Covered(ctx, []string{"acme", "nobody"}); err != nil || !slices.Equal(got, covered) {
		t.Errorf("covered = %+v, %v", got, err)
	}
	wantErr(t, "a plan that begins before the checkpoint", s.Record(ctx, planOf(planB, processors.Range{Partition: 0, From: 3, To: 5})), processors.ErrFenced)
	b := planOf(planB, processors.Range{Partition: 0, From: 4, To: 5, Resume: at})
	if err := s.Record(ctx, b); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "coverage that goes back", s.Confirm(ctx, b, []processors.Covered{{Tenant: "acme", Seq: 12}}), processors.ErrRefused)
	if cp, err := s.Checkpoint(ctx, 0); err != nil || cp.Commit != 3 || cp.Open != planB {
		t.Errorf("a refused confirm moved the checkpoint: %+v, %v", cp, err)
	}
	if err := s.Confirm(ctx, b, []processors.Covered{{Tenant: "acme", Seq: 13, ReceivedAt: 7}}); err != nil {
		t.Fatal(err)
	}
	if cp, err := s.Checkpoint(ctx, 0); err != nil || cp.Filled != 2 {
		t.Errorf("an empty range moved what is filled: %+v, %v", cp, err)
	}
	if got, _ := s.Covered(ctx, []string{"acme"}); len(got) != 1 || got[0].ReceivedAt != 55 {
		t.Errorf("time of receipt went back: %+v", got)
	}
}

// Processes that record and confirm at once never deadlock, and never both win.
func TestRivalsRecordOnce(t *testing.T) {
	_, s := open(t)
	var mu sync.Mutex
	won := 0
	for round := range int64(20) {
		var rivals sync.WaitGroup
		for r := range 6 {
			rivals.Go(func() {
				p := planOf(fmt.Sprintf("00000000-0000-4000-8000-%012d", int(round)*10+r))
				for id := range int32(5) {
					p.Ranges = append(p.Ranges, processors.Range{Partition: id, From: round + 1, To: round + 1})
				}
				err := s.Record(context.Background(), p)
				switch {
				case errors.Is(err, processors.ErrFenced):
					return
				case err != nil:
					t.Errorf("record: %v", err)
					return
				}
				mu.Lock()
				won++
				mu.Unlock()
				if err := s.Confirm(context.Background(), p, nil); err != nil {
					t.Errorf("confirm: %v", err)
				}
			})
		}
		rivals.Wait()
	}
	if won != 20 {
		t.Errorf("%d plans were recorded in 20 rounds", won)
	}
}

func TestSnapshotsBelongToThePartition(t *testing.T) {
	l, s := open(t)
	ctx := t.Context()
	if got, err := s.Load(ctx, 3, "rollup"); got != nil || err != nil {
		t.Errorf("a snapshot from nowhere: %+v, %v", got, err)
	}
	want := &processors.Snapshot{Processor: "rollup", Version: 1, Commit: 5, State: []byte{1, 2, 0, 3}}
	for _, c := range []*processors.Snapshot{want, {Processor: "rollup", Version: 1, Commit: 4}} { // an earlier one changes nothing
		if c.State == nil {
			c.State = []byte{9}
		}
		if err := s.Save(ctx, 3, c); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Load(ctx, 3, "rollup"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("snapshot = %+v, %v", got, err)
	}
	if got, err := s.Load(ctx, 4, "rollup"); got != nil || err != nil {
		t.Errorf("another partition's snapshot: %+v, %v", got, err)
	}
	db := l.Open(t, postgres.RoleProcessors)
	count := func(tx postgres.Tx) error {
		var n int
		err := tx.QueryRow(ctx, "select count(*) from processors.snapshot").Scan(&n)
		if err == nil && n != 0 {
			t.Errorf("another context sees %d snapshots", n)
		}
		return err
	}
	if err := db.InTenant(ctx, "acme", count); err != nil {
		t.Error(err)
	}
	if err := db.Tx(ctx, count); postgres.SQLState(err) != "42501" {
		t.Errorf("without a context: %v", err)
	}
	if err := l.Open(t, postgres.RoleApp).InTenant(ctx, tenant.System(3), count); postgres.SQLState(err) != "42501" {
		t.Errorf("as the app role: %v", err)
	}
}

func TestCoverageIsForItsTenant(t *testing.T) {
	l, s := open(t)
	ctx := t.Context()
	p := planOf(planA, processors.Range{Partition: 0, From: 1, To: 1, Filled: 1})
	if err := s.Record(ctx, p); err != nil {
		t.Fatal(err)
	}
	covered := []processors.Covered{{Tenant: "acme", Seq: 3, Chain: chain.Hash{7}, ReceivedAt: 11}, {Tenant: "bravo", Seq: 4, Chain: chain.Hash{8}, ReceivedAt: 12}}
	if err := s.Confirm(ctx, p, covered); err != nil {
		t.Fatal(err)
	}
	app := l.Open(t, postgres.RoleApp)
	c := plan.NewCoverage(app)
	for _, want := range append(covered, processors.Covered{Tenant: "nobody"}) {
		seq, hash, received, err := c.Coverage(ctx, tenant.ID(want.Tenant))
		if err != nil || seq != want.Seq || hash != want.Chain || received != want.ReceivedAt {
			t.Errorf("%s: %d %x %d %v", want.Tenant, seq, hash, received, err)
		}
	}
	conn, err := pgx.Connect(ctx, l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for id, seq := range map[string]int64{"acme": 5, "charlie": 6} { // the latter has nothing stored
		if _, err := conn.Exec(ctx, `
			insert into ledger.head (tenant_id, partition, seq, chain, key_epoch, received_at) values ($1, 0, $2, sha256(''), 1, now())
			on conflict (tenant_id) do update set seq = excluded.seq`, id, seq); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[tenant.ID][2]int64{"acme": {5, 3}, "charlie": {6, 0}, "nobody": {}} {
		newest, stored, err := c.Progress(ctx, id)
		if got := [2]int64{newest, stored}; err != nil || got != want {
			t.Errorf("progress of %s: %v, want %v, %v", id, got, want, err)
		}
	}
	err = app.InTenant(ctx, "acme", func(tx postgres.Tx) error {
		var n int
		err := tx.QueryRow(ctx, "select count(*) from processors.coverage").Scan(&n)
		if n != 1 {
			t.Errorf("acme sees the coverage of %d tenants", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// fill writes commits into the ledger as its writer does: 40 commits of a few
// tenants each, some of them empty. It returns what Frames must give.
func fill(t *testing.T, l *testenv.Ledger) (frames []chain.Frame) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`alter table ledger.entry_0 disable trigger all`)
	exec(`insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset, last_batch) values (2, $1, 3, 1, 0, 40)`, [16]byte{1})
	seqs := map[string]int64{}
	for n := int64(1); n <= 40; n++ {
		var tenants []string
		var firsts []int64
		var counts []int32
		total := int32(0)
		for k := range n % 4 {
			id := fmt.Sprintf("tenant-%d", (n+k)%5)
			f := chain.Frame{Tenant: id, Partition: 2, Batch: n, Index: total, FirstSeq: seqs[id] + 1}
			for range 1 + n%3 {
				seqs[id]++
				s := chain.Sealed{Canonical: []byte(fmt.Sprint(id, seqs[id])), Chain: chain.Hash{byte(n)}, MAC: chain.Hash{byte(seqs[id])}, Epoch: uint32(n)}
				exec(`insert into ledger.entry (tenant_id, seq, kind, key_epoch, canonical, chain, mac) values ($1, $2, 1, $3, $4, $5, $6)`,
					id, seqs[id], int32(s.Epoch), s.Canonical, s.Chain[:], s.MAC[:])
				f.Entries = append(f.Entries, s)
			}
			tenants, firsts, counts = append(tenants, id), append(firsts, f.FirstSeq), append(counts, int32(len(f.Entries)))
			total += int32(len(f.Entries))
			frames = append(frames, f)
		}
		for i := range frames {
			if frames[i].Batch == n {
				frames[i].Total = total
			}
		}
		// A tenant that only had duplicates stands in the row with no entries.
		exec(`insert into ledger.batch (partition, batch, first_offset, next_offset, tenants, first_seqs, counts) values (2, $1, 0, 0, $2, $3, $4)`,
			n, append(tenants, "quiet"), append(firsts, 1), append(counts, 0))
	}
	return frames
}

func TestFramesAreTheLedger(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	all := fill(t, l)
	ledger := plan.NewLedger(l.Open(t, postgres.RoleProcessors))
	for _, c := range [][2]int64{{1, 40}, {1, 1}, {4, 4}, {17, 23}, {40, 40}, {9, 8}} {
		var want, got []chain.Frame
		for _, f := range all {
			if f.Batch >= c[0] && f.Batch <= c[1] {
				want = append(want, f)
			}
		}
		err := ledger.Frames(t.Context(), 2, c[0], c[1], func(f *chain.Frame) error {
			own := *f
			own.Entries = slices.Clone(f.Entries)
			got = append(got, own)
			return nil
		})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("commits %v: %v, %d frames, want %d", c, err, len(got), len(want))
		}
	}
	last, err := ledger.LastCommits(t.Context())
	if err != nil || len(last) != 1 || last[2] != 40 {
		t.Errorf("last commits = %v, %v", last, err)
	}
	none := func(*chain.Frame) error { return nil }
	wantErr(t, "a commit that is yet to come", ledger.Frames(t.Context(), 2, 39, 41, none), processors.ErrLedgerBehind)
	wantErr(t, "an unknown partition", ledger.Frames(t.Context(), 0, 1, 1, none), processors.ErrLedgerBehind)
	stop := errors.New("stop")
	wantErr(t, "an error of the reader", ledger.Frames(t.Context(), 2, 1, 40, func(*chain.Frame) error { return stop }), stop)

	conn, err := pgx.Connect(t.Context(), l.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `delete from ledger.entry where tenant_id = 'tenant-1' and seq = 2`); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a missing entry", ledger.Frames(t.Context(), 2, 1, 40, none), processors.ErrMissing)
	if _, err := conn.Exec(t.Context(), `delete from ledger.batch where batch = 20`); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a missing commit", ledger.Frames(t.Context(), 2, 20, 30, none), processors.ErrMissing)
}

func TestRebuildForgetsOnePartition(t *testing.T) {
	l, s := open(t)
	fill(t, l)
	ctx := t.Context()
	p := planOf(planA, processors.Range{Partition: 2, From: 1, To: 40, Filled: 39}, processors.Range{Partition: 1, From: 1, To: 3, Filled: 3})
	if err := s.Record(ctx, p); err != nil {
		t.Fatal(err)
	}
	if err := s.Confirm(ctx, p, []processors.Covered{{Tenant: "tenant-1", Partition: 2, Seq: 3}, {Tenant: "other", Partition: 1, Seq: 3}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuild(ctx, 2); err != nil {
		t.Fatal(err)
	}
	cp, err := s.Checkpoint(ctx, 2)
	covered, err2 := s.Covered(ctx, []string{"tenant-1", "other"})
	other, err3 := s.Checkpoint(ctx, 1)
	if err != nil || err2 != nil || err3 != nil || cp.Commit != 0 || cp.Filled != 0 || len(covered) != 1 || other.Commit != 3 {
		t.Errorf("after a rebuild: %+v %+v %+v, %v %v %v", cp, covered, other, err, err2, err3)
	}
}
