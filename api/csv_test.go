package api

import (
	"strings"
	"testing"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Time of GPUs stands in CSV exactly and in hours, also what a correction takes away.
func TestCSVHasGPUHours(t *testing.T) {
	for micros, want := range map[int64]string{0: ",0,0.000000", 5_400_000_000: ",5400000000,1.500000", -3_600_000: ",-3600000,-0.001000", 3_600: ",3600,0.000001"} {
		b, err := csvMarshaler{}.Marshal(&pb.SummaryResponse{Totals: &pb.Totals{CostUsd: "1.0", GpuUs: micros}})
		header, row, _ := strings.Cut(strings.TrimSpace(string(b)), "\r\n")
		if err != nil || !strings.HasSuffix(header, ",gpu_us,gpu_hours") || !strings.HasSuffix(row, want) || strings.Count(header, ",") != strings.Count(row, ",") {
			t.Errorf("%d: %q, %v", micros, b, err)
		}
	}
}
