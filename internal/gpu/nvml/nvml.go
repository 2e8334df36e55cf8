// Package nvml asks NVIDIA's management library, where a machine has it: the one
// that nvidia-smi asks too, without starting a program at each look.
//
// The library is opened with dlopen; nothing is linked, and a machine without it
// gives [gpu.ErrAbsent]. What a device or a driver does not support leaves the
// figure unset. The package calls reading functions only: it changes no setting
// of a device.
package nvml

import (
	"context"
	"errors"
	"fmt"
	"strings"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/gpu"
)

// DefaultLibrary is the name under which the driver installs the library.
const DefaultLibrary = "libnvidia-ml.so.1"

// Values of NVML's header, nvml.h.
const (
	ok = 0

	clockSM, clockMemory           = 1, 2
	sensorGPU                      = 0
	uncorrected, volatileCounter   = 1, 0
	notAvailable64                 = ^uint64(0) // NVML_VALUE_NOT_AVAILABLE
	notAvailable32                 = ^uint32(0)
	maxProcesses, maxPerformance   = 1024, 15
	uuidBytes, nameBytes, busBytes = 96, 96, 32
)

// device is NVML's handle.
type device uintptr

// library are the functions that are asked. A function that the driver's library
// lacks is nil.
type library struct {
	init, shutdown func() int32
	driverVersion  func(buf *byte, n uint32) int32
	processName    func(pid uint32, buf *byte, n uint32) int32

	count      func(n *uint32) int32
	byIndex    func(i uint32, d *device) int32
	uuid, name func(d device, buf *byte, n uint32) int32
	pci        func(d device, p *pciInfo) int32

	utilization        func(d device, u *utilization) int32
	encoder, decoder   func(d device, percent, periodUs *uint32) int32
	memory             func(d device, m *memoryV2) int32
	power, powerLimit  func(d device, milliwatts *uint32) int32
	energy             func(d device, millijoules *uint64) int32
	temperature        func(d device, sensor uint32, celsius *uint32) int32
	clock              func(d device, which uint32, mhz *uint32) int32
	fan                func(d device, percent *uint32) int32
	performance        func(d device, state *uint32) int32
	reasons            func(d device, mask *uint64) int32
	ecc                func(d device, kind, counter uint32, n *uint64) int32
	processes          func(d device, n *uint32, list *process) int32
	processUtilization func(d device, list *processSample, n *uint32, since uint64) int32

	migMode                          func(d device, current, pending *uint32) int32
	migCount                         func(d device, n *uint32) int32
	migByIndex                       func(d device, i uint32, m *device) int32
	gpuInstanceID, computeInstanceID func(d device, id *uint32) int32

	close func() error
}

// Layouts of nvml.h.
type (
	utilization struct{ gpu, memory uint32 }
	memoryV2    struct {
		version                     uint32
		_                           uint32
		total, reserved, free, used uint64
	}
	process struct {
		pid                          uint32
		_                            uint32
		usedMemory                   uint64
		gpuInstance, computeInstance uint32
	}
	processSample struct {
		pid         uint32
		_           uint32
		timestampUs uint64
		sm          uint32
		_           [3]uint32 // memory, encoder, decoder
	}
	pciInfo struct {
		_  [16]byte  // the address in an older form
		_  [5]uint32 // its parts, and the device's type
		id [busBytes]byte
	}
)

// memoryV2Version is sizeof(nvmlMemory_v2_t) with its version, 2.
const memoryV2Version = 40 | 2<<24

// Collector asks the library. It is a [gpu.Collector].
type Collector struct {
	lib  *library
	seen map[device]uint64 // the newest utilisation sample of each device
}

// Open loads the library at path, or [DefaultLibrary] if it is empty. The error
// matches [gpu.ErrAbsent] when it is not there or finds no driver.
func Open(path string) (*Collector, error) {
	if path == "" {
		path = DefaultLibrary
	}
	lib, err := load(path)
	if err != nil {
		return nil, err
	}
	return open(lib)
}

func open(lib *library) (*Collector, error) {
	if lib.init == nil || lib.count == nil || lib.byIndex == nil || lib.uuid == nil {
		return nil, errors.Join(fmt.Errorf("%w: the library lacks what every driver has", gpu.ErrAbsent), lib.close())
	}
	if code := lib.init(); code != ok {
		return nil, errors.Join(fmt.Errorf("%w: NVML does not start, code %d", gpu.ErrAbsent, code), lib.close())
	}
	return &Collector{lib: lib, seen: map[device]uint64{}}, nil
}

// Name implements [gpu.Collector].
func (*Collector) Name() string { return gpu.SourceNVML }

// Close lets go of the library.
func (c *Collector) Close() error {
	if c.lib.shutdown != nil {
		c.lib.shutdown()
	}
	return c.lib.close()
}

// Collect implements [gpu.Collector]. A device that cannot be asked is an error
// for all: a look with some devices missing would pass for their absence.
func (c *Collector) Collect(ctx context.Context) (*gpu.Snapshot, error) {
	var n uint32
	if code := c.lib.count(&n); code != ok {
		return nil, fmt.Errorf("nvml: count of devices: code %d", code)
	}
	snap := &gpu.Snapshot{}
	if c.lib.driverVersion != nil {
		snap.Driver = text(nameBytes, c.lib.driverVersion)
	}
	for i := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var d device
		if code := c.lib.byIndex(i, &d); code != ok {
			return nil, fmt.Errorf("nvml: device %d: code %d", i, code)
		}
		whole, err := c.device(d, i)
		if err != nil {
			return nil, err
		}
		bus := c.bus(d)
		snap.Add(whole, bus)
		instances := c.instances(d, whole)
		for _, m := range instances {
			snap.Add(m, bus)
		}
		c.processes(d, whole, instances)
	}
	return snap, nil
}

// device is the sample of a whole device.
func (c *Collector) device(d device, i uint32) (*pb.GpuSample, error) {
	l := c.lib
	s := &pb.GpuSample{GpuUuid: named(uuidBytes, d, l.uuid), Model: named(nameBytes, d, l.name), Vendor: gpu.VendorNVIDIA, Source: gpu.SourceNVML, Index: &i}
	if s.GpuUuid == "" {
		return nil, fmt.Errorf("nvml: device %d has no uuid", i)
	}
	s.MigEnabled = c.mig(d)
	if u, have := get(d, l.utilization); have && u.gpu <= 100 && u.memory <= 100 {
		s.GpuUtilizationPercent, s.MemoryUtilizationPercent = new(float64(u.gpu)), new(float64(u.memory))
	}
	s.EncoderUtilizationPercent, s.DecoderUtilizationPercent = coder(d, l.encoder), coder(d, l.decoder)
	c.memory(d, s)
	s.PowerWatts, s.PowerLimitWatts = milli(d, l.power), milli(d, l.powerLimit)
	if v, have := get(d, l.energy); have && v != notAvailable64 {
		s.EnergyMillijoules = &v
	}
	if v, have := get(d, with(sensorGPU, l.temperature)); have && v <= 500 {
		s.TemperatureCelsius = new(float64(v))
	}
	if v, have := get(d, with(clockSM, l.clock)); have && v <= 1e5 {
		s.SmClockMhz = new(float64(v))
	}
	if v, have := get(d, with(clockMemory, l.clock)); have && v <= 1e5 {
		s.MemoryClockMhz = new(float64(v))
	}
	if v, have := get(d, l.fan); have && v <= 100 {
		s.FanPercent = new(float64(v))
	}
	if v, have := get(d, l.performance); have && v <= maxPerformance {
		s.PerformanceState = &v
	}
	if v, have := get(d, l.reasons); have {
		s.ClockEventReasons = &v
	}
	if l.ecc != nil {
		var v uint64
		if l.ecc(d, uncorrected, volatileCounter, &v) == ok && v != notAvailable64 {
			s.EccUncorrected = &v
		}
	}
	return s, nil
}

// get asks for one number.
func get[T any](d device, f func(device, *T) int32) (v T, have bool) {
	if f == nil {
		return v, false
	}
	have = f(d, &v) == ok
	return v, have
}

// with fixes the selector of a function.
func with(which uint32, f func(device, uint32, *uint32) int32) func(device, *uint32) int32 {
	if f == nil {
		return nil
	}
	return func(d device, v *uint32) int32 { return f(d, which, v) }
}

// milli is a figure that NVML gives in thousandths.
func milli(d device, f func(device, *uint32) int32) *float64 {
	if v, have := get(d, f); have && v <= 1e8 {
		return new(float64(v) / 1000)
	}
	return nil
}

func coder(d device, f func(device, *uint32, *uint32) int32) *float64 {
	var percent, period uint32
	if f == nil || f(d, &percent, &period) != ok || percent > 100 {
		return nil
	}
	return new(float64(percent))
}

// memory reads memory of a device or an instance.
func (c *Collector) memory(d device, s *pb.GpuSample) {
	m := memoryV2{version: memoryV2Version}
	if c.lib.memory == nil || c.lib.memory(d, &m) != ok || m.total > 1<<46 || m.used > m.total || m.free > m.total || m.reserved > m.total {
		return
	}
	s.MemoryTotalBytes, s.MemoryReservedBytes, s.MemoryFreeBytes, s.MemoryUsedBytes = &m.total, &m.reserved, &m.free, &m.used
}

// mig says whether MIG is on; nil where the device has none.
func (c *Collector) mig(d device) *bool {
	var current, pending uint32
	if c.lib.migMode == nil || c.lib.migMode(d, &current, &pending) != ok {
		return nil
	}
	return new(current == 1)
}

// instances are the samples of a device's MIG instances.
func (c *Collector) instances(d device, whole *pb.GpuSample) (list []*pb.GpuSample) {
	l := c.lib
	if !whole.GetMigEnabled() || l.migByIndex == nil {
		return nil
	}
	n, _ := get(d, l.migCount)
	for i := range min(n, 64) {
		var m device
		if l.migByIndex(d, i, &m) != ok {
			continue // places without an instance
		}
		s := &pb.GpuSample{
			GpuUuid: whole.GpuUuid, MigUuid: named(uuidBytes, m, l.uuid), Model: whole.Model, Vendor: whole.Vendor, Source: whole.Source,
			MigEnabled: whole.MigEnabled, Index: whole.Index,
		}
		if s.MigUuid == "" {
			continue
		}
		_, s.MigProfile, _ = strings.Cut(named(nameBytes, m, l.name), " MIG ")
		if v, have := get(m, l.gpuInstanceID); have {
			s.GpuInstanceId = &v
		}
		if v, have := get(m, l.computeInstanceID); have {
			s.ComputeInstanceId = &v
		}
		c.memory(m, s)
		list = append(list, s)
	}
	return list
}

// processes adds the compute processes where they run, with their share of the
// SMs where the driver samples it.
func (c *Collector) processes(d device, whole *pb.GpuSample, instances []*pb.GpuSample) {
	l := c.lib
	if l.processes == nil {
		return
	}
	list := make([]process, maxProcesses)
	n := uint32(len(list))
	if l.processes(d, &n, &list[0]) != ok {
		return
	}
	shares := c.shares(d)
	for _, p := range list[:min(n, maxProcesses)] {
		w := &pb.GpuWorkload{Pid: &p.pid, Kind: gpu.KindCompute, SmUtilizationPercent: shares[p.pid]}
		if p.usedMemory != notAvailable64 && p.usedMemory <= 1<<46 {
			w.MemoryUsedBytes = &p.usedMemory
		}
		if l.processName != nil {
			w.ProcessName = gpu.ProcessName(text(256, func(b *byte, n uint32) int32 { return l.processName(p.pid, b, n) }))
		}
		gpu.AddWorkload(owner(p, whole, instances), w)
	}
}

// owner is the instance of a process, or the whole device.
func owner(p process, whole *pb.GpuSample, instances []*pb.GpuSample) *pb.GpuSample {
	for _, m := range instances {
		if p.gpuInstance != notAvailable32 && m.GpuInstanceId != nil && *m.GpuInstanceId == p.gpuInstance &&
			(p.computeInstance == notAvailable32 || m.GetComputeInstanceId() == p.computeInstance) {
			return m
		}
	}
	return whole
}

// shares are the newest samples since the last look, by process.
func (c *Collector) shares(d device) map[uint32]*float64 {
	if c.lib.processUtilization == nil {
		return nil
	}
	list := make([]processSample, maxProcesses)
	n := uint32(len(list))
	if c.lib.processUtilization(d, &list[0], &n, c.seen[d]) != ok {
		return nil
	}
	found, newest := map[uint32]*float64{}, map[uint32]uint64{}
	for _, s := range list[:min(n, maxProcesses)] {
		c.seen[d] = max(c.seen[d], s.timestampUs)
		if s.sm <= 100 && s.timestampUs >= newest[s.pid] && s.timestampUs > 0 {
			found[s.pid], newest[s.pid] = new(float64(s.sm)), s.timestampUs
		}
	}
	return found
}

// bus is the PCI address of a device.
func (c *Collector) bus(d device) string {
	var p pciInfo
	if c.lib.pci == nil || c.lib.pci(d, &p) != ok {
		return ""
	}
	return cString(p.id[:])
}

// named is a text about a device.
func named(n uint32, d device, f func(device, *byte, uint32) int32) string {
	if f == nil {
		return ""
	}
	return text(n, func(b *byte, n uint32) int32 { return f(d, b, n) })
}

// text is what a function writes into a buffer of n bytes.
func text(n uint32, f func(*byte, uint32) int32) string {
	b := make([]byte, n)
	if f(&b[0], n) != ok {
		return ""
	}
	return cString(b)
}

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return gpu.Text(s)
}
