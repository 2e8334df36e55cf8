package main

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

// A decision of an operator stands in the audit log, and is not made where that
// cannot be written.
func TestQuarantineIsAudited(t *testing.T) {
	cfg := &config.Config{DataDir: t.TempDir()}
	dsn := testenv.Postgres(t)
	d := pgstore.Decision{Partition: 3, Offset: 17, Reason: "it is poison", Operator: "dora"}
	if err := quarantineIn(t.Context(), cfg, dsn, d); !errors.Is(err, keyring.ErrNoKeyring) {
		t.Fatalf("without keys: %v", err)
	}
	ring, err := keyring.Open(filepath.Join(cfg.DataDir, "keys"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	if _, err := ring.Create(audit.Installation); err != nil {
		t.Fatal(err)
	}
	admin, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	exec := func(statement string) {
		t.Helper()
		if _, err := admin.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec("insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset) values (3, gen_random_uuid(), 12, 1, 17)")
	exec("revoke insert on audit.event from tallystick_app")
	if err := quarantineIn(t.Context(), cfg, dsn, d); !errors.Is(err, audit.ErrUnwritten) {
		t.Fatalf("without a row: %v", err)
	}
	exec("grant insert on audit.event to tallystick_app")
	elsewhere := d
	elsewhere.Offset = 99
	if err := quarantineIn(t.Context(), cfg, dsn, elsewhere); !errors.Is(err, pgstore.ErrElsewhere) {
		t.Fatalf("another record: %v", err)
	}
	if err := quarantineIn(t.Context(), cfg, dsn, d); err != nil {
		t.Fatal(err)
	}
	var made int
	if err := admin.QueryRowContext(t.Context(), "select count(*) from ledger.quarantine").Scan(&made); err != nil || made != 1 {
		t.Errorf("%d decisions, %v", made, err)
	}
	logins, signer, err := provision(t.Context(), dsn, ring)
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(t.Context(), logins[postgres.RoleApp], signer, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	rows, err := audit.NewLog(db, ring).Rows(t.Context(), audit.Installation, 1, 10, false)
	if err != nil || len(rows) != 4 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for i, want := range []string{audit.Attempted, audit.Failed, audit.Attempted, audit.OK} {
		ev, _, err := audit.Decode(rows[i].Canonical)
		if err != nil || ev.Outcome != want || ev.Actor != "dora" || ev.Action != "record.quarantine" || ev.Reason != "it is poison" {
			t.Errorf("row %d: %+v, %v", i+1, ev, err)
		}
	}
}
