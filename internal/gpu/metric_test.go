package gpu

import (
	"testing"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// A metric sets its own figure in the sample's unit, and what is no value sets none.
func TestMeasure(t *testing.T) {
	for _, tc := range []struct {
		metric, value string
		at            func(*pb.GpuSample) any
		want          float64
		absent        bool
	}{
		{"DCGM_FI_PROF_GR_ENGINE_ACTIVE", "0.25", gpuUtilization.at, 25, false},
		{"DCGM_FI_PROF_GR_ENGINE_ACTIVE", "1.40737488355328e+14", gpuUtilization.at, 0, true},
		{"hw.gpu.utilization", "0", gpuUtilization.at, 0, false},
		{"hw.gpu.utilization/general", "1", gpuUtilization.at, 100, false},
		{"hw.gpu.utilization", "50", gpuUtilization.at, 0, true},
		{"hw.gpu.utilization/encoder", "0.5", encoder.at, 50, false},
		{"hw.gpu.utilization/copy", "0.5", gpuUtilization.at, 0, true},
		{"hw.gpu.memory.usage", "1.7179869184e+10", memoryUsed.at, 1 << 34, false},
		{"hw.gpu.memory.usage", "9223372036854775794", memoryUsed.at, 0, true},
		{"hw.gpu.memory.limit", "-1", memoryTotal.at, 0, true},
		{"hw.energy", "12.3456", energy.at, 12346, false},
		{"hw.energy", "2147483632", energy.at, 0, true},
		{"hw.energy", "-1", energy.at, 0, true},
		{"hw.energy", "NaN", energy.at, 0, true},
		{"hw.power", "312.5", power.at, 312.5, false},
		{"hw.temperature", "NaN", temperature.at, 0, true},
		{"hw.errors/uncorrected", "3", eccUncorrected.at, 3, false},
	} {
		m := &pb.GpuSample{}
		Measure(m, tc.metric, tc.value)
		var got float64
		present := false
		switch p := tc.at(m).(type) {
		case **float64:
			if present = *p != nil; present {
				got = **p
			}
		case **uint64:
			if present = *p != nil; present {
				got = float64(**p)
			}
		}
		if got != tc.want || present == tc.absent {
			t.Errorf("%s %s: %v, %t", tc.metric, tc.value, got, present)
		}
	}
}

// Of the two figures that mean the same the device's own counts, in either order;
// where it is blank, as under MIG, the other one does.
func TestMeasureUtilizationTwice(t *testing.T) {
	const device = "DCGM_FI_DEV_GPU_UTIL"
	for _, tc := range []struct {
		first, second, blank string
		want                 float64
	}{
		{device, engineActive, "", 90}, {engineActive, device, "", 90},
		{device, engineActive, device, 50}, {engineActive, device, device, 50},
	} {
		m := &pb.GpuSample{}
		for _, metric := range []string{tc.first, tc.second} {
			value := map[string]string{device: "90", engineActive: "0.5"}[metric]
			if metric == tc.blank {
				value = "2147483632"
			}
			Measure(m, metric, value)
		}
		if m.GetGpuUtilizationPercent() != tc.want {
			t.Errorf("%+v: %v", tc, m.GetGpuUtilizationPercent())
		}
	}
}

// Labels of whoever scrapes stand beside the exporter's own, which it renames.
func TestExportedLabels(t *testing.T) {
	s, err := ParseDCGM([]byte(`DCGM_FI_DEV_GPU_UTIL{UUID="GPU-a",namespace="monitoring",pod="dcgm-exporter-x",exported_namespace="ml",exported_pod="train-0"} 1`))
	if err != nil || len(s.Samples) != 1 || len(s.Samples[0].Workloads) != 1 {
		t.Fatalf("%v, %v", s, err)
	}
	if w := s.Samples[0].Workloads[0]; w.Pod != "train-0" || w.Namespace != "ml" {
		t.Errorf("%v", w)
	}
}
