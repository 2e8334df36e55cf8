package api_test

import (
	"slices"
	"testing"

	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/internal/mapping"
)

// What can have a default owner is what reports can allocate in.
func TestOwnableIsAllocatable(t *testing.T) {
	if got, want := report.Allocatable(), mapping.Dimensions(); !slices.Equal(got, want) {
		t.Errorf("reports allocate in %v, owners are kept for %v", got, want)
	}
}
