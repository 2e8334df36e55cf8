package gputime

import (
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func TestSampleOf(t *testing.T) {
	whole := func(change func(*pb.GpuSample)) *pb.GpuSample {
		m := &pb.GpuSample{GpuUuid: "g", Host: "h", EndUs: base, StartUs: base - second, PurchaseOption: "On-Demand", GpuUtilizationPercent: proto.Float64(12.5)}
		if change != nil {
			change(m)
		}
		return m
	}
	for _, tc := range []struct {
		name   string
		change func(*pb.GpuSample)
		ok     bool
		used   int64
		owners int
	}{
		{"plain", nil, true, 125_000, 0},
		{"absent is not 0", func(m *pb.GpuSample) { m.GpuUtilizationPercent = nil }, true, Unknown, 0},
		{"0 is 0", func(m *pb.GpuSample) { m.GpuUtilizationPercent = proto.Float64(0) }, true, 0, 0},
		{"what no percentage is", func(m *pb.GpuSample) { m.GpuUtilizationPercent = proto.Float64(math.NaN()) }, true, Unknown, 0},
		{"idle, and the driver says 100 %", func(m *pb.GpuSample) {
			m.GpuUtilizationPercent, m.SmActivePercent = proto.Float64(100), proto.Float64(0)
		}, true, 0, 0},
		{"of a device in MIG mode it means nothing", func(m *pb.GpuSample) { m.MigEnabled = proto.Bool(true) }, true, Unknown, 0},
		{"allocated goes before running", func(m *pb.GpuSample) {
			m.Workloads = []*pb.GpuWorkload{{Pid: proto.Uint32(1), Team: "a"}, {Pod: "p", Allocated: proto.Bool(true)}}
		}, true, 125_000, 1},
		{"two processes of one owner", func(m *pb.GpuSample) {
			m.Workloads = []*pb.GpuWorkload{{Pid: proto.Uint32(1), Pod: "p"}, {Pid: proto.Uint32(2), Pod: "p"}, {Pid: proto.Uint32(3), Kind: "graphics"}}
		}, true, 125_000, 1},
		{"it is said that it does not have it", func(m *pb.GpuSample) { m.Workloads = []*pb.GpuWorkload{{Pod: "p", Allocated: proto.Bool(false)}} }, true, 125_000, 0},
		{"no device", func(m *pb.GpuSample) { m.GpuUuid = "" }, false, 0, 0},
		{"no end", func(m *pb.GpuSample) { m.EndUs = 0 }, false, 0, 0},
		{"backwards", func(m *pb.GpuSample) { m.StartUs = base + 1 }, false, 0, 0},
		{"bought in no known way", func(m *pb.GpuSample) { m.PurchaseOption = "stolen" }, false, 0, 0},
		{"longer than an event can carry", func(m *pb.GpuSample) { m.Host = strings.Repeat("x", 257) }, false, 0, 0},
		{"a control character", func(m *pb.GpuSample) { m.Workloads = []*pb.GpuWorkload{{Pod: "p\n"}} }, false, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := sampleOf(whole(tc.change))
			if (err == nil) != tc.ok || tc.ok && (s.Used != tc.used || len(s.Claims) != tc.owners || s.Device.Purchase != "on_demand") {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}
