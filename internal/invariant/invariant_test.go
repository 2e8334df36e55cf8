package invariant_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/invariant"
)

func guarded(f func()) (err error) {
	defer invariant.Recover(&err)
	f()
	return nil
}

func TestCheckHolds(t *testing.T) {
	if err := guarded(func() { invariant.Check(true, "one is one", "") }); err != nil {
		t.Fatalf("a true condition gave %v", err)
	}
}

func TestCheckViolated(t *testing.T) {
	err := guarded(func() { invariant.Check(false, "sequence has no gap", "want %d, got %d", 7, 9) })
	var v *invariant.Violation
	if !errors.As(fmt.Errorf("partition 3: %w", err), &v) {
		t.Fatalf("errors.As does not find the violation in %v", err)
	}
	if v.Name != "sequence has no gap" || v.Detail != "want 7, got 9" {
		t.Errorf("violation = %+v", v)
	}
	if !strings.Contains(err.Error(), "sequence has no gap") || !strings.Contains(err.Error(), "want 7, got 9") {
		t.Errorf("the text %q does not name the invariant and its evidence", err)
	}
}

func TestRecoverLetsOtherPanicsPass(t *testing.T) {
	defer func() {
		if r := recover(); r != "other" {
			t.Errorf("recovered %v, want the original panic", r)
		}
	}()
	_ = guarded(func() { panic("other") })
	t.Error("the panic was swallowed")
}
