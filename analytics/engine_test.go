package analytics_test

import (
	"context"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/migrations"
)

// startEngine starts an engine of the test's own, which it may kill and whose
// CPU time it may read, and migrates it.
func startEngine(t testing.TB, dir string) *embedded.ClickHouse {
	t.Helper()
	lib, err := embedded.FindCHDB("")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{DataDir: dir, LibPath: lib})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = engine.Stop(ctx)
	})
	if err := migrations.ClickHouse(t.Context(), engine.DSN("")); err != nil {
		t.Fatal(err)
	}
	return engine
}
