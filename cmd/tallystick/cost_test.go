package main

import (
	"bytes"
	"strings"
	"testing"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// GPU-hours stand beside the cost where there are any, and else no column of zeros.
func TestCostShowsGPUHours(t *testing.T) {
	for _, tc := range []struct {
		micros int64
		want   string
	}{
		{5_400_000_000, "TEAM TOTAL USD REQUESTS GPU HOURS|a 1.0 3 1.500|total 1.0 3 1.500"},
		{0, "TEAM TOTAL USD REQUESTS|a 1.0 3|total 1.0 3"},
	} {
		totals := &pb.Totals{CostUsd: "1.0", Requests: 3, GpuUs: tc.micros}
		var out bytes.Buffer
		f := &costFlags{by: []string{"team"}}
		err := f.print(&out, &pb.GroupsResponse{Groups: []*pb.Group{{Group: []string{"a"}, Totals: totals}}, Totals: totals})
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		for i := range lines {
			lines[i] = strings.Join(strings.Fields(lines[i]), " ")
		}
		if got := strings.Join(lines, "|"); err != nil || got != tc.want {
			t.Errorf("%q, %v", got, err)
		}
	}
}
