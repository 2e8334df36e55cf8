package gpu

import (
	"strings"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Labels say of a metric which device it is about, and who has the device. They are
// text as the exporter gives it: absent, "" and "[N/A]" are the same.
type Labels struct {
	UUID string // of the device, or of a MIG instance if Parent is its device
	// Parent is the uuid of the device that a MIG instance is on, where UUID is that of
	// the instance.
	Parent string
	// Instance is the number of a MIG instance, and Profile its size.
	Instance, Profile string
	Index, Model      string
	Vendor            string // "" is NVIDIA
	Bus               string // the PCI address

	Namespace, Pod, Container, Job string
}

// Sample makes a sample without figures, host and interval.
func (l *Labels) Sample() *pb.GpuSample {
	m := &pb.GpuSample{
		GpuUuid: present(l.UUID), MigProfile: word(l.Profile), Model: present(l.Model), Vendor: VendorNVIDIA, Source: SourceDCGM,
	}
	if vendor := strings.ToLower(word(l.Vendor)); vendor != "" {
		m.Vendor = vendor
	}
	switch id := present(l.Instance); {
	case present(l.Parent) != "":
		m.GpuUuid, m.MigUuid = present(l.Parent), m.GpuUuid
	case id != "":
		// The exporter gives the instance's number and not its uuid.
		m.MigUuid = clip("MIG-" + m.GpuUuid + "/" + id)
	}
	index.set(m, l.Index, "")
	gpuInstance.set(m, l.Instance, "")
	if m.MigUuid != "" {
		m.MigEnabled = new(true)
	}
	return m
}

// AddWorkload adds the pod or job that has the device, if the labels name one.
func (l *Labels) AddWorkload(m *pb.GpuSample) {
	w := &pb.GpuWorkload{
		Namespace: present(l.Namespace), Pod: present(l.Pod), Container: present(l.Container), Job: present(l.Job), Allocated: new(true),
	}
	if w.Pod == "" && w.Job == "" {
		return
	}
	for _, have := range m.Workloads {
		if have.Namespace == w.Namespace && have.Pod == w.Pod && have.Container == w.Container && have.Job == w.Job {
			return
		}
	}
	if len(m.Workloads) < maxWorkloads {
		m.Workloads = append(m.Workloads, w)
	}
}

// engineActive is the figure of the exporter's profiling that means what
// DCGM_FI_DEV_GPU_UTIL does, and the only one of the two that MIG instances have.
const engineActive = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"

// Measures reports whether a metric is a figure of a sample.
func Measures(metric string) bool {
	_, dcgm := dcgmFields[metric]
	_, otel := otelFields[metric]
	return dcgm || otel
}

// Measure sets the figure that a metric is, if it is one, and leaves it unset when
// the value is none. Metrics are named as the DCGM exporter and OpenTelemetry's
// conventions do.
func Measure(m *pb.GpuSample, metric, value string) {
	if metric == engineActive && m.GpuUtilizationPercent != nil {
		return
	}
	if f, ok := dcgmFields[metric]; ok {
		f.set(m, value, "")
	} else if f, ok := otelFields[metric]; ok {
		f.set(m, value, "")
	}
}

// Figures of OpenTelemetry's conventions, which count in base units.
var (
	utilizationRatio = field{ratio, gpuUtilization.at}
	memoryCopyRatio  = field{ratio, memoryUtilization.at}
	encoderRatio     = field{ratio, encoder.at}
	decoderRatio     = field{ratio, decoder.at}
	memoryUsedBytes  = field{octets, memoryUsed.at}
	memoryFreeBytes  = field{octets, memoryFree.at}
	memoryTotalBytes = field{octets, memoryTotal.at}
	energyJoules     = field{joules, energy.at}
)

// otelFields are the metrics of OpenTelemetry's conventions for hardware that mean
// something to a sample, and those that collectors of GPUs add in their spirit. What
// the conventions tell apart by an attribute stands behind the name and a slash: a
// task of hw.gpu.utilization, a type of hw.errors.
//
// Sources: OpenTelemetry semantic conventions, docs/hardware/gpu.md and common.md
// (development); OpenLIT's GPU collector, its reference of metrics.
var otelFields = map[string]field{
	"hw.gpu.utilization":                   utilizationRatio,
	"hw.gpu.utilization/general":           utilizationRatio,
	"hw.gpu.utilization/encoder":           encoderRatio,
	"hw.gpu.utilization/decoder":           decoderRatio,
	"hw.gpu.memory.controller.utilization": memoryCopyRatio,
	"hw.gpu.memory.usage":                  memoryUsedBytes,
	"hw.gpu.memory.free":                   memoryFreeBytes,
	"hw.gpu.memory.limit":                  memoryTotalBytes,
	"hw.power":                             power,
	"hw.gpu.power.draw":                    power,
	"hw.gpu.power.limit":                   powerLimit,
	"hw.energy":                            energyJoules,
	"hw.gpu.energy.consumed":               energyJoules,
	"hw.temperature":                       temperature,
	"hw.gpu.temperature":                   temperature,
	"hw.gpu.clock.graphics":                smClock,
	"hw.gpu.clock.memory":                  memoryClock,
	"hw.errors/uncorrected":                eccUncorrected,
}
