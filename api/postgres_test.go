package api_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger/chain"
)

// storeChain writes the entries of makeChain, which the writer's own tests
// would write through the writer: the API may not import that.
func storeChain(t *testing.T, l *testenv.Ledger, id string, n int) []api.StoredEntry {
	t.Helper()
	db, err := sql.Open("pgx", l.AdminDSN) // the driver is registered by package migrations
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	run := func(statement string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	list := makeChain(id, n)
	run("alter table ledger.entry_0 disable trigger check_tenants")
	run("alter table ledger.event_key_0 disable trigger check_tenants")
	for i := range list {
		s := &list[i]
		var e chain.Entry
		if err := e.Decode(s.Canonical); err != nil {
			t.Fatal(err)
		}
		run(`insert into ledger.entry_0 values ($1, $2, $3, $4, to_timestamp($5::bigint / 1e9), $6::numeric / 1e12, $7, $8, $9)`,
			id, s.Seq, int(e.Kind), int(s.Epoch), optional(e.Event.OccurredAt != 0, e.Event.OccurredAt), optional(e.Priced, int64(e.Cost)),
			s.Canonical, s.Chain[:], s.MAC[:])
		run(`insert into ledger.event_key_0 values ($1, encode($2, 'hex')::uuid, gen_random_uuid(), $3)`, id, e.Key[:], s.Seq)
	}
	last := list[n-1]
	run(`insert into ledger.head values ($1, 0, $2, $3, 1, null, '2026-01-02T03:04:05.000006Z')`, id, last.Seq, last.Chain[:])
	run("alter table ledger.entry_0 enable trigger check_tenants")
	run("alter table ledger.event_key_0 enable trigger check_tenants")
	return list
}

func optional(has bool, v int64) *int64 {
	if !has {
		return nil
	}
	return &v
}

func TestPostgresLedger(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	acme, bravo := storeChain(t, l, "acme", 22), storeChain(t, l, "bravo", 3)
	r, ctx := api.NewPostgresLedger(l.Open(t, postgres.RoleApp)), t.Context()

	h, err := r.Head(ctx, "acme")
	if err != nil || h.Seq != 22 || h.Chain != acme[21].Chain || h.KeyEpoch != 1 || h.ReceivedAt.UTC().Format("15:04:05.999999") != "03:04:05.000006" {
		t.Errorf("head: %+v, %v", h, err)
	}
	if _, err := r.Head(ctx, "nobody"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("head of nobody: %v", err)
	}
	for _, c := range []struct {
		id          tenant.ID
		from        int64
		limit       int
		descending  bool
		first, last int64
	}{
		{"acme", 0, 5, false, 1, 5}, {"acme", 20, 5, false, 20, 22}, {"acme", 0, 2, true, 22, 21}, {"acme", 3, 9, true, 3, 1},
		{"bravo", 0, 100, false, 1, 3},
	} {
		list, err := r.Entries(ctx, c.id, c.from, c.limit, c.descending)
		if err != nil || len(list) == 0 || list[0].Seq != c.first || list[len(list)-1].Seq != c.last {
			t.Errorf("%+v: %d entries, %v", c, len(list), err)
			continue
		}
		want := map[tenant.ID][]api.StoredEntry{"acme": acme, "bravo": bravo}[c.id][list[0].Seq-1]
		if got := list[0]; string(got.Canonical) != string(want.Canonical) || got.Chain != want.Chain || got.MAC != want.MAC || got.Epoch != want.Epoch {
			t.Errorf("%+v: another entry", c)
		}
	}
	if list, err := r.Entries(ctx, "acme", 23, 5, false); err != nil || len(list) != 0 {
		t.Errorf("beyond the end: %v, %v", list, err)
	}
}

func TestPostgresEvent(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	acme := storeChain(t, l, "acme", 22)
	r, ctx := api.NewPostgresLedger(l.Open(t, postgres.RoleApp)), t.Context()
	for _, c := range []struct {
		id        tenant.ID
		event     string
		seq       int64 // 0: none
		conflicts int64
	}{{"acme", eventID(6), 6, 1}, {"acme", eventID(5), 5, 0}, {"acme", "never", 0, 0}, {"bravo", eventID(6), 0, 0}} {
		e, err := r.Event(ctx, c.id, c.event)
		if err != nil || (e != nil) != (c.seq > 0) || e != nil && (e.Seq != c.seq || e.Chain != acme[c.seq-1].Chain) {
			t.Errorf("%+v: %+v, %v", c, e, err)
		}
		if n, err := r.Conflicts(ctx, c.id, c.event); err != nil || n != c.conflicts {
			t.Errorf("%+v: %d conflicts, %v", c, n, err)
		}
	}
}

// A database that is away is 503, a caller that has gone is not.
func TestPostgresAway(t *testing.T) {
	l := testenv.MigratedPostgres(t)
	db := l.Open(t, postgres.RoleApp)
	r := api.NewPostgresLedger(db)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Head(ctx, "acme"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
	db.Close()
	if _, err := r.Head(t.Context(), "acme"); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("away: %v", err)
	}
}
