package agent_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/agent"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// reasonOf is why a sample is refused, "" when it is not.
func reasonOf(t testing.TB, s *pb.GpuSample) string {
	t.Helper()
	b, err := proto.Marshal(samplesFrame(1, 1, s))
	if err != nil {
		t.Fatal(err)
	}
	w := agent.NewWalker()
	if n := w.Walk(b); n == 1 {
		return ""
	} else if n < 0 {
		return "malformed frame"
	}
	for reason := range w.Reasons() {
		return reason
	}
	return "no reason"
}

// TestFieldTable compares the tables with telemetry.proto: every field of it is
// in them, under its name and with its form, and nothing else is.
func TestFieldTable(t *testing.T) {
	for name, c := range map[string]struct {
		of    protoreflect.MessageDescriptor
		table map[int32]agent.FieldInfo
	}{
		"GpuSample":   {(&pb.GpuSample{}).ProtoReflect().Descriptor(), agent.SampleFields()},
		"GpuWorkload": {(&pb.GpuWorkload{}).ProtoReflect().Descriptor(), agent.WorkloadFields()},
	} {
		for i := range c.of.Fields().Len() {
			f := c.of.Fields().Get(i)
			got, ok := c.table[int32(f.Number())]
			if !ok || got.Name != string(f.Name()) || got.Kind != f.Kind().String() {
				t.Errorf("%s.%s (%s) is %+v in the table", name, f.Name(), f.Kind(), got)
			}
			delete(c.table, int32(f.Number()))
			measured := f.Kind() != protoreflect.StringKind && f.Kind() != protoreflect.MessageKind && f.Number() != 12 && f.Number() != 13
			if measured && !f.HasPresence() {
				t.Errorf("%s.%s is measured and cannot be absent", name, f.Name())
			}
		}
		if len(c.table) > 0 {
			t.Errorf("%s: the table has %v too", name, c.table)
		}
	}
}

func TestRefusedSamples(t *testing.T) {
	now := time.Now()
	for want, change := range map[string]func(*pb.GpuSample){
		"gpu_uuid: required":             func(s *pb.GpuSample) { s.GpuUuid = "" },
		"host: required":                 func(s *pb.GpuSample) { s.Host = "" },
		"end_us: required":               func(s *pb.GpuSample) { s.EndUs = 0 },
		"end_us: time":                   func(s *pb.GpuSample) { s.EndUs = now.Add(time.Hour).UnixMicro() },
		"start_us: time":                 func(s *pb.GpuSample) { s.StartUs = s.EndUs + 1 },
		"gpu_uuid: range":                func(s *pb.GpuSample) { s.GpuUuid = strings.Repeat("x", 257) },
		"host: text":                     func(s *pb.GpuSample) { s.Host = "a\nb" },
		"gpu_utilization_percent: range": func(s *pb.GpuSample) { s.GpuUtilizationPercent = proto.Float64(math.NaN()) },
		"power_watts: range":             func(s *pb.GpuSample) { s.PowerWatts = proto.Float64(math.Inf(1)) },
		"memory_used_bytes: range":       func(s *pb.GpuSample) { s.MemoryUsedBytes = proto.Uint64(0x7fffffffffffff0) },
		"temperature_celsius: range":     func(s *pb.GpuSample) { s.TemperatureCelsius = proto.Float64(2147483632) },
		"purchase_option: must be on_demand, spot or reserved": func(s *pb.GpuSample) { s.PurchaseOption = "preemptible" },
		"purchase_option: range":                               func(s *pb.GpuSample) { s.PurchaseOption = strings.Repeat("x", 65) },
		"workloads: range":                                     func(s *pb.GpuSample) { s.Workloads[0].AllocatedShare = proto.Float64(0) },
		"workloads: text":                                      func(s *pb.GpuSample) { s.Workloads[0].Pod = "a\x00" },
		"workloads: too_many":                                  func(s *pb.GpuSample) { s.Workloads = make([]*pb.GpuWorkload, 65) },
		"sample: unknown":                                      func(s *pb.GpuSample) { s.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 1}) }, // field 99
		"memory_temperature_celsius: range":                    func(s *pb.GpuSample) { s.MemoryTemperatureCelsius = proto.Float64(-101) },
		"encoder_utilization_percent: range":                   func(s *pb.GpuSample) { s.EncoderUtilizationPercent = proto.Float64(-0.1) },
		"decoder_utilization_percent: range":                   func(s *pb.GpuSample) { s.DecoderUtilizationPercent = proto.Float64(100.1) },
		"performance_state: range":                             func(s *pb.GpuSample) { s.PerformanceState = proto.Uint32(33) },
		"workloads: unknown":                                   func(s *pb.GpuSample) { s.Workloads[0].ProtoReflect().SetUnknown([]byte{0x98, 0x06, 1}) },
	} {
		s := sample(1)
		for len(s.Workloads) > 1 {
			s.Workloads = s.Workloads[:1]
		}
		change(s)
		for i, w := range s.Workloads {
			if w == nil {
				s.Workloads[i] = &pb.GpuWorkload{}
			}
		}
		if got := reasonOf(t, s); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestPurchaseOptions: how a device was bought passes as clouds and Kubernetes
// write it.
func TestPurchaseOptions(t *testing.T) {
	for _, option := range []string{"", "on_demand", "on-demand", "On-Demand", "SPOT", "spot", "reserved"} {
		s := sample(1)
		s.PurchaseOption = option
		b, err := proto.Marshal(samplesFrame(1, 1, s))
		if err != nil {
			t.Fatal(err)
		}
		if w := agent.NewWalker(); w.Walk(b) != 1 {
			t.Errorf("%q is refused: %v", option, w.Reasons())
		}
	}
}

// TestAbsentIsNotZero: what was not measured is not there after the gateway, and
// a measured 0 is.
func TestAbsentIsNotZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &pb.GpuSample{GpuUuid: "GPU-1", Host: "h", EndUs: time.Now().UnixMicro()}
		r := s.ProtoReflect()
		fields := r.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if !f.HasPresence() || f.Kind() == protoreflect.MessageKind || !rapid.Bool().Draw(t, string(f.Name())) {
				continue
			}
			zero := rapid.Bool().Draw(t, "zero")
			switch f.Kind() {
			case protoreflect.DoubleKind:
				r.Set(f, protoreflect.ValueOfFloat64(map[bool]float64{true: 0, false: 42.5}[zero]))
			case protoreflect.Uint64Kind:
				r.Set(f, protoreflect.ValueOfUint64(map[bool]uint64{true: 0, false: 7}[zero]))
			case protoreflect.Uint32Kind:
				r.Set(f, protoreflect.ValueOfUint32(map[bool]uint32{true: 0, false: 7}[zero]))
			case protoreflect.BoolKind:
				r.Set(f, protoreflect.ValueOfBool(!zero))
			}
		}
		b, err := proto.Marshal(samplesFrame(1, 1, s))
		if err != nil {
			t.Fatal(err)
		}
		w := agent.NewWalker()
		if n := w.Walk(b); n != 1 {
			t.Fatalf("refused: %v", w.Reasons())
		}
		var got pb.GpuSampleBatch
		if err := proto.Unmarshal(w.Value(), &got); err != nil || len(got.Samples) != 1 || !proto.Equal(got.Samples[0], s) {
			t.Fatalf("%v, %v; want %v", &got, err, s)
		}
	})
}

// FuzzFrame: whatever is walked does not panic, and what is let pass is what
// protobuf reads, within the ranges.
func FuzzFrame(f *testing.F) {
	for _, frame := range []*pb.AgentFrame{samplesFrame(1, 1, samples(2)...), heartbeat(1, 1), {}, samplesFrame(1, 1)} {
		b, err := proto.Marshal(frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w := agent.NewWalker()
		n := w.Walk(b)
		if n < 0 {
			return
		}
		var got pb.GpuSampleBatch
		if err := proto.Unmarshal(w.Value(), &got); err != nil || len(got.Samples) != n || int(got.SampleCount) != n {
			t.Fatalf("%d samples let pass are %v, %v", n, &got, err)
		}
		for _, s := range got.Samples {
			if s.GpuUuid == "" || s.Host == "" || s.EndUs <= 0 || len(s.Workloads) > agent.MaxWorkloads || len(s.ProtoReflect().GetUnknown()) > 0 {
				t.Errorf("let pass: %v", s)
			}
			if s.PowerWatts != nil && !(*s.PowerWatts >= 0 && *s.PowerWatts <= 100_000) {
				t.Errorf("let pass: %v", s)
			}
		}
	})
}

// FuzzHello: no first frame panics the gateway, and none that was not signed is
// admitted.
func FuzzHello(f *testing.F) {
	w := newWorld(f, nil)
	w.agent("acme", "agt_1")
	b, err := proto.Marshal(&pb.AgentFrame{Body: &pb.AgentFrame_Hello{Hello: &pb.HelloProof{
		Version: 1, TenantId: "acme", AgentId: "agt_1", ProducerEpoch: 1, AgentNonce: make([]byte, 16), Mac: make([]byte, 32),
	}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if agent.TryHello(w.Gateway, b) {
			t.Errorf("admitted by %x", b)
		}
	})
}
