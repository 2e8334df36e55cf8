package testenv

import (
	"testing"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Ring is a keyring of the test's own, with keys of the tenants. It is closed when
// the test ends.
func Ring(t testing.TB, tenants ...tenant.ID) *keyring.Ring {
	t.Helper()
	ring, err := keyring.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() }) // what it holds ends with the test
	if _, err := ring.Create(tenants...); err != nil {
		t.Fatal(err)
	}
	return ring
}
