// Package gpu reads what the tools of GPU vendors tell: nvidia-smi as CSV and
// XML, its process lists, the DCGM exporter's text, rocm-smi's JSON. NVML itself
// is asked in package nvml, through [Collector] like the rest.
//
// It promises that absent is never 0. A value that the tool does not give
// (`[N/A]`, a DCGM blank such as 9223372036854775794, a field that is missing, a
// number out of its range) leaves the field of the sample unset; a 0 that the
// tool does give is a 0.
//
// The parsers are functions of bytes alone and may be fed anything: they return
// what they understood, or [ErrFormat] when the text is not what the tool writes.
// They never keep command lines, only the base name of an executable, and never
// log what they read.
package gpu

import (
	"context"
	"errors"
	"strings"
	"time"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// ErrFormat: the text is not what the tool writes.
var ErrFormat = errors.New("gpu: not this tool's output")

// Values of GpuSample.source and GpuSample.vendor.
const (
	SourceNVML     = "nvml"
	SourceSMI      = "nvidia_smi"
	SourceDCGM     = "dcgm_exporter"
	SourceROCm     = "rocm_smi"
	SourceOTLP     = "otlp" // a collector's metrics: see ingest/otlp
	SourceReplay   = "replay"
	VendorNVIDIA   = "nvidia"
	VendorAMD      = "amd"
	KindCompute    = "compute"
	KindGraphics   = "graphics"
	maxWordBytes   = 64  // of a profile
	maxWorkloads   = 64  // of one sample
	maxDevices     = 256 // of one host, MIG instances not counted
	maxTextBytes   = 256 // of one name, as the gateway takes it
	maxInputBytes  = 8 << 20
	maxCells       = 1 << 18 // of a CSV output
	maxMIGInstance = 64      // of one device
)

// Times that a sample may end at, by the clock of the door that takes it: of the
// agents' gateway (ingest/agent), or of the edge for collectors (ingest/otlp). What a
// door takes, processors/gputime accounts for, so both have the bounds from here.
const (
	// MaxAhead is how far ahead of that clock.
	MaxAhead = 10 * time.Minute
	// DefaultMaxAge is how long ago.
	DefaultMaxAge = 35 * 24 * time.Hour
)

// Snapshot is one look at a host.
type Snapshot struct {
	// Taken is when the tool looked: its own timestamp where it has one and the
	// snapshot is a recording, else zero.
	Taken time.Time
	// Host is whose devices they are, when that is not the collector's own host.
	Host string
	// Driver is the version of the driver; empty when not told.
	Driver string
	// Samples has one element for each device and for each MIG instance, without
	// host and interval, which [Finish] sets.
	Samples []*pb.GpuSample

	buses []string // the PCI address of each sample's device, where told
}

// Add adds a sample of the device at that PCI address, which may be empty.
func (s *Snapshot) Add(m *pb.GpuSample, bus string) {
	s.Samples = append(s.Samples, m)
	s.buses = append(s.buses, bus)
}

// bus is the PCI address of the device of sample i, or empty.
func (s *Snapshot) bus(i int) string {
	if i < len(s.buses) {
		return s.buses[i]
	}
	return ""
}

// Collector looks at the GPUs of this host. Collect obeys ctx and may be called
// again after an error; it is called by one goroutine at a time.
type Collector interface {
	// Name is the source of its samples.
	Name() string
	Collect(ctx context.Context) (*Snapshot, error)
}

// Finish gives every sample its host and interval: from the time of the look
// before, if that is not longer ago than maxGap, to the time of this one. The
// first look at a device stands for no time. previous is kept by the caller, by
// the key of [Key], and is changed.
func Finish(s *Snapshot, host string, at time.Time, maxGap time.Duration, previous map[string]time.Time) {
	if s.Host != "" {
		host = s.Host
	}
	for i, sample := range s.Samples {
		Identify(sample, host, s.bus(i))
		key := Key(sample)
		start := at
		if p, ok := previous[key]; ok && at.After(p) && at.Sub(p) <= maxGap {
			start = p
		}
		previous[key] = at
		sample.StartUs, sample.EndUs = start.UnixMicro(), at.UnixMicro()
	}
}

// Key identifies the device or MIG instance of a sample.
func Key(s *pb.GpuSample) string { return s.GpuUuid + "/" + s.MigUuid }

// Identify sets the host, and replaces an identity that is none: drivers and
// captures mask uuids as zeros, and some cards have none. The PCI address is unique
// on the host.
func Identify(s *pb.GpuSample, host, bus string) {
	s.Host = clip(host)
	if !masked(s.GpuUuid) {
		return
	}
	place := bus
	if place == "" && s.Index != nil {
		place = "index-" + decimal(uint64(s.GetIndex()))
	}
	if place == "" {
		place = "device"
	}
	old := s.GpuUuid
	s.GpuUuid = clip("HOST-" + host + "-" + place)
	if s.MigUuid != "" && (masked(s.MigUuid) || strings.Contains(s.MigUuid, old)) {
		s.MigUuid = clip("MIG-" + s.GpuUuid + "/" + decimal(uint64(s.GetGpuInstanceId())) + "/" + decimal(uint64(s.GetComputeInstanceId())))
	}
}

// masked reports whether a uuid identifies nothing: empty, or only zeros.
func masked(uuid string) bool {
	_, digits, found := strings.Cut(uuid, "-")
	if !found {
		digits = uuid
	}
	return strings.Trim(digits, "0-") == ""
}

// Inventory lists the devices that a snapshot saw.
func Inventory(s *Snapshot) []*pb.GpuDevice {
	var list []*pb.GpuDevice
	byUUID := map[string]*pb.GpuDevice{}
	device := func(m *pb.GpuSample, bus string) *pb.GpuDevice {
		d := byUUID[m.GpuUuid]
		if d == nil && len(list) < maxDevices {
			d = &pb.GpuDevice{GpuUuid: m.GpuUuid, Index: m.Index, Model: m.Model, Vendor: m.Vendor, MigEnabled: m.MigEnabled, PciBusId: bus}
			byUUID[m.GpuUuid], list = d, append(list, d)
		}
		return d
	}
	for i, m := range s.Samples {
		d := device(m, s.bus(i))
		switch {
		case d == nil:
		case m.MigUuid == "":
			d.MemoryTotalBytes = m.MemoryTotalBytes
		case len(d.Instances) < maxMIGInstance:
			d.Instances = append(d.Instances, &pb.GpuInstance{
				MigUuid: m.MigUuid, MigProfile: m.MigProfile, GpuInstanceId: m.GpuInstanceId,
				ComputeInstanceId: m.ComputeInstanceId, MemoryTotalBytes: m.MemoryTotalBytes,
			})
		}
	}
	return list
}
