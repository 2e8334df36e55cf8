package nvml

import (
	"errors"
	"testing"
	"unsafe"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/gpu"
)

const notSupported = 3

// write puts a text where a function of the library would.
func write(b *byte, n uint32, text string) int32 {
	copy(unsafe.Slice(b, n), text+"\x00")
	return ok
}

// fake is a library with two devices: one whole, busy, with two processes; one
// under MIG with an instance at its second place.
func fake(closed *bool) *library {
	const whole, mig, instance = 1, 2, 3
	return &library{
		init: func() int32 { return ok }, shutdown: func() int32 { return ok },
		close:         func() error { *closed = true; return nil },
		driverVersion: func(b *byte, n uint32) int32 { return write(b, n, "590.48.01") },
		processName: func(pid uint32, b *byte, n uint32) int32 {
			return write(b, n, "/usr/bin/python3 train.py --token=SECRET")
		},
		count:   func(n *uint32) int32 { *n = 2; return ok },
		byIndex: func(i uint32, d *device) int32 { *d = device(i + 1); return ok },
		uuid: func(d device, b *byte, n uint32) int32 {
			return write(b, n, map[device]string{whole: "GPU-a", mig: "GPU-b", instance: "MIG-c"}[d])
		},
		name: func(d device, b *byte, n uint32) int32 {
			return write(b, n, map[device]string{whole: "NVIDIA H100", mig: "NVIDIA H100", instance: "NVIDIA H100 MIG 1g.10gb"}[d])
		},
		pci: func(d device, p *pciInfo) int32 { copy(p.id[:], "00000000:07:00.0"); return ok },
		utilization: func(d device, u *utilization) int32 {
			if d != whole {
				return notSupported
			}
			u.gpu, u.memory = 100, 0
			return ok
		},
		memory: func(d device, m *memoryV2) int32 {
			if m.version != memoryV2Version {
				return 25 // version mismatch
			}
			m.total, m.used, m.free, m.reserved = 80<<30, 1<<30, 78<<30, 1<<30
			return ok
		},
		power:       func(d device, v *uint32) int32 { *v = 631950; return ok },
		energy:      func(d device, v *uint64) int32 { *v = notAvailable64; return ok },
		temperature: func(d device, sensor uint32, v *uint32) int32 { *v = 59 + sensor; return ok },
		clock:       func(d device, which uint32, v *uint32) int32 { *v = 1000 * which; return ok },
		fan:         func(d device, v *uint32) int32 { *v = 255; return notSupported },
		performance: func(d device, v *uint32) int32 { *v = 32; return ok }, // unknown
		reasons:     func(d device, v *uint64) int32 { *v = 0; return ok },
		migMode: func(d device, current, pending *uint32) int32 {
			*current = uint32(d) - 1
			return ok
		},
		migCount: func(d device, n *uint32) int32 { *n = 7; return ok },
		migByIndex: func(d device, i uint32, m *device) int32 {
			*m = instance
			if i != 1 {
				return 6 // not found
			}
			return ok
		},
		gpuInstanceID:     func(d device, v *uint32) int32 { *v = 9; return ok },
		computeInstanceID: func(d device, v *uint32) int32 { *v = 0; return ok },
		processes: func(d device, n *uint32, list *process) int32 {
			l := unsafe.Slice(list, *n)
			if d == whole {
				l[0] = process{pid: 10, usedMemory: 5 << 20, gpuInstance: notAvailable32, computeInstance: notAvailable32}
				l[1] = process{pid: 11, usedMemory: notAvailable64, gpuInstance: notAvailable32, computeInstance: notAvailable32}
				*n = 2
			} else {
				l[0] = process{pid: 12, usedMemory: 0, gpuInstance: 9}
				*n = 1
			}
			return ok
		},
		processUtilization: func(d device, list *processSample, n *uint32, since uint64) int32 {
			if d != whole || since >= 2000 {
				return 6
			}
			l := unsafe.Slice(list, *n)
			l[0], l[1] = processSample{pid: 10, timestampUs: 2000, sm: 42}, processSample{pid: 10, timestampUs: 1000, sm: 7}
			*n = 2
			return ok
		},
	}
}

func TestCollect(t *testing.T) {
	closed := false
	c, err := open(fake(&closed))
	if err != nil {
		t.Fatal(err)
	}
	for look := range 2 {
		snap, err := c.Collect(t.Context())
		if err != nil || len(snap.Samples) != 3 || snap.Driver != "590.48.01" {
			t.Fatalf("%v: %+v", err, snap)
		}
		s := snap.Samples[0]
		if s.GetGpuUtilizationPercent() != 100 || s.MemoryUtilizationPercent == nil || s.GetPowerWatts() != 631.95 || s.GetTemperatureCelsius() != 59 ||
			s.GetSmClockMhz() != 1000 || s.GetMemoryClockMhz() != 2000 || s.GetMemoryReservedBytes() != 1<<30 || s.MigEnabled == nil || *s.MigEnabled {
			t.Errorf("%v", s)
		}
		// What the driver does not give, or says with a mark, or has no function for.
		if s.EnergyMillijoules != nil || s.FanPercent != nil || s.PerformanceState != nil || s.PowerLimitWatts != nil || s.EncoderUtilizationPercent != nil || s.EccUncorrected != nil {
			t.Errorf("absent became a figure: %v", s)
		}
		if s.ClockEventReasons == nil || *s.ClockEventReasons != 0 {
			t.Errorf("0 became absent: %v", s)
		}
		if len(s.Workloads) != 2 || s.Workloads[0].ProcessName != "python3" || s.Workloads[1].MemoryUsedBytes != nil || s.Workloads[1].SmUtilizationPercent != nil {
			t.Errorf("%v", s.Workloads)
		}
		// A share is told once, for the time since the look before.
		if share := s.Workloads[0].SmUtilizationPercent; (share == nil) != (look == 1) || (share != nil && *share != 42) {
			t.Errorf("look %d: share %v", look, share)
		}
		if whole := snap.Samples[1]; whole.GpuUtilizationPercent != nil || len(whole.Workloads) != 0 || !whole.GetMigEnabled() {
			t.Errorf("%v", whole)
		}
		m := snap.Samples[2]
		if m.MigUuid != "MIG-c" || m.GpuUuid != "GPU-b" || m.MigProfile != "1g.10gb" || m.GetGpuInstanceId() != 9 || m.PowerWatts != nil {
			t.Errorf("%v", m)
		}
		if len(m.Workloads) != 1 || m.Workloads[0].MemoryUsedBytes == nil || *m.Workloads[0].MemoryUsedBytes != 0 {
			t.Errorf("%v", m.Workloads)
		}
		if devices := gpu.Inventory(snap); len(devices) != 2 || len(devices[1].Instances) != 1 || devices[0].PciBusId != "00000000:07:00.0" {
			t.Errorf("%v", devices)
		}
	}
	if err := c.Close(); err != nil || !closed {
		t.Error("the library stayed open")
	}
}

// TestAnOldDriver has only what every library has.
func TestAnOldDriver(t *testing.T) {
	closed := false
	full := fake(&closed)
	c, err := open(&library{init: full.init, count: full.count, byIndex: full.byIndex, uuid: full.uuid, close: full.close})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := c.Collect(t.Context())
	if err != nil || len(snap.Samples) != 2 {
		t.Fatalf("%v: %+v", err, snap)
	}
	s := snap.Samples[0]
	want := &pb.GpuSample{GpuUuid: "GPU-a", Vendor: gpu.VendorNVIDIA, Source: gpu.SourceNVML, Index: new(uint32(0))}
	if s.String() != want.String() {
		t.Errorf("%v, want %v", s, want)
	}
}

func TestFailures(t *testing.T) {
	closed := false
	broken := fake(&closed)
	broken.init = func() int32 { return 9 } // driver not loaded
	if _, err := open(broken); !errors.Is(err, gpu.ErrAbsent) || !closed {
		t.Errorf("%v, closed %t", err, closed)
	}
	for name, breaks := range map[string]func(*library){
		"count":  func(l *library) { l.count = func(*uint32) int32 { return 999 } },
		"handle": func(l *library) { l.byIndex = func(uint32, *device) int32 { return 15 } }, // fell off the bus
		"uuid":   func(l *library) { l.uuid = func(device, *byte, uint32) int32 { return 15 } },
	} {
		l := fake(&closed)
		breaks(l)
		c, err := open(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Collect(t.Context()); err == nil {
			t.Errorf("%s fails and the look does not", name)
		}
	}
}

// TestLibraries opens files that are no NVML.
func TestLibraries(t *testing.T) {
	for _, path := range []string{"libtallystick-none.so.1", "/dev/null"} {
		if _, err := Open(path); !errors.Is(err, gpu.ErrAbsent) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// The names that are looked up belong to one function each.
	l := &library{}
	if n := len(l.symbols()); n != 29 {
		t.Errorf("%d functions", n)
	}
}

// TestLayouts compares sizes with those of nvml.h.
func TestLayouts(t *testing.T) {
	for name, sizes := range map[string][2]uintptr{
		"nvmlMemory_v2_t": {unsafe.Sizeof(memoryV2{}), 40}, "nvmlProcessInfo_t": {unsafe.Sizeof(process{}), 24},
		"nvmlPciInfo_t": {unsafe.Sizeof(pciInfo{}), 68}, "nvmlProcessUtilizationSample_t": {unsafe.Sizeof(processSample{}), 32},
		"nvmlUtilization_t": {unsafe.Sizeof(utilization{}), 8},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s has %d bytes, want %d", name, sizes[0], sizes[1])
		}
	}
}
