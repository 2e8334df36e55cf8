package audit_test

import (
	"testing"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

// BenchmarkRecord is a row in a transaction of its own, durable on return: what
// a call that changes something pays twice.
func BenchmarkRecord(b *testing.B) {
	pg := testenv.MigratedPostgres(b)
	ring, err := keyring.Open(b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ring.Close() })
	if _, err := ring.Create("acme"); err != nil {
		b.Fatal(err)
	}
	log := audit.NewLog(pg.Open(b, postgres.RoleApp), ring)
	for b.Loop() {
		if err := log.Record(b.Context(), example); err != nil {
			b.Fatal(err)
		}
	}
}
