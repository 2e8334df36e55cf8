package gpu

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// xmlFields are the elements of one device in `nvidia-smi -q -x` that mean
// something to a sample, over the forms that drivers from 418 on write. Of two
// for one figure the later one wins where it has a value.
var xmlFields = []struct {
	path  string
	field field
}{
	{"utilization/gpu_util", gpuUtilization},
	{"utilization/memory_util", memoryUtilization},
	{"utilization/encoder_util", encoder},
	{"utilization/decoder_util", decoder},
	{"fb_memory_usage/total", memoryTotal},
	{"fb_memory_usage/reserved", memoryReserved},
	{"fb_memory_usage/used", memoryUsed},
	{"fb_memory_usage/free", memoryFree},
	{"gpu_power_readings/instant_power_draw", power},
	{"power_readings/power_draw", power},
	{"gpu_power_readings/power_draw", power},
	{"gpu_power_readings/average_power_draw", power},
	{"power_readings/power_limit", powerLimit},
	{"power_readings/enforced_power_limit", powerLimit},
	{"gpu_power_readings/current_power_limit", powerLimit},
	{"temperature/gpu_temp", temperature},
	{"temperature/memory_temp", memoryTemperature},
	{"clocks/sm_clock", smClock},
	{"clocks/mem_clock", memoryClock},
	{"fan_speed", fan},
	{"performance_state", performance},
	{"mig_mode/current_mig", migEnabled},
	{"ecc_errors/volatile/double_bit/total", eccUncorrected},
	{"ecc_errors/volatile/dram_uncorrectable", eccUncorrected},
}

// migFields are those of a MIG instance.
var migFields = []struct {
	path  string
	field field
}{
	{"gpu_instance_id", gpuInstance},
	{"compute_instance_id", computeInstance},
	{"fb_memory_usage/total", memoryTotal},
	{"fb_memory_usage/reserved", memoryReserved},
	{"fb_memory_usage/used", memoryUsed},
	{"fb_memory_usage/free", memoryFree},
	{"ecc_error_count/volatile_count/sram_uncorrectable", eccUncorrected},
}

// xmlTime is how nvidia-smi writes a time in XML; it says no zone.
const xmlTime = "Mon Jan _2 15:04:05 2006"

// maxXMLDepth is more than nvidia-smi nests.
const maxXMLDepth = 16

// element is one <gpu>, <mig_device> or <process_info>: the texts of its leaves
// by their paths below it, and the elements of these kinds within it.
type element struct {
	name     string
	depth    int
	attr     map[string]string
	leaves   map[string]string
	children []*element
}

// ParseXML reads `nvidia-smi -q -x`. list is the output of `nvidia-smi -L`, which
// alone names MIG instances, or nil. Times count as UTC.
func ParseXML(text, list []byte) (*Snapshot, error) {
	root, err := readElements(text)
	if err != nil {
		return nil, err
	}
	snap := &Snapshot{Driver: present(root.leaves["driver_version"])}
	if at, err := time.Parse(xmlTime, root.leaves["timestamp"]); err == nil {
		snap.Taken = at
	}
	names := parseList(list)
	for _, gpu := range root.children {
		if gpu.name != "gpu" {
			return nil, fmt.Errorf("%w: <%s> outside of a device", ErrFormat, gpu.name)
		}
		snap.addXML(gpu, names)
	}
	return snap, nil
}

// addXML adds a device, its MIG instances and its processes.
func (s *Snapshot) addXML(gpu *element, names map[migPlace]migName) {
	whole := &pb.GpuSample{
		GpuUuid: present(gpu.leaves["uuid"]), Model: present(gpu.leaves["product_name"]), Vendor: VendorNVIDIA, Source: SourceSMI,
	}
	for _, f := range xmlFields {
		f.field.set(whole, gpu.leaves[f.path], "")
	}
	bus := present(gpu.attr["id"])
	s.Add(whole, bus)
	first := len(s.Samples)
	for _, e := range gpu.children {
		if e.name == "mig_device" && len(s.Samples)-first < maxMIGInstance {
			s.Add(migSample(whole, e, names), bus)
		}
	}
	instances := s.Samples[first:]
	for _, e := range gpu.children {
		if e.name == "process_info" {
			AddWorkload(ownerOf(e, whole, instances), processOf(e))
		}
	}
}

// migSample is the sample of one instance of a device.
func migSample(whole *pb.GpuSample, e *element, names map[migPlace]migName) *pb.GpuSample {
	m := &pb.GpuSample{GpuUuid: whole.GpuUuid, Model: whole.Model, Vendor: whole.Vendor, Source: whole.Source, MigEnabled: whole.MigEnabled, Index: whole.Index}
	for _, f := range migFields {
		f.field.set(m, e.leaves[f.path], "")
	}
	var number *uint32
	count.set(&number, e.leaves["index"], "")
	if number != nil {
		name := names[migPlace{whole.GpuUuid, *number}]
		m.MigUuid, m.MigProfile = name.uuid, name.profile
	}
	if m.MigUuid == "" {
		// As drivers before 470 named it: without a name it would pass for the
		// whole device.
		m.MigUuid = clip("MIG-" + whole.GpuUuid + "/" + decimal(uint64(m.GetGpuInstanceId())) + "/" + decimal(uint64(m.GetComputeInstanceId())))
	}
	return m
}

// ownerOf is the instance that a process runs in, or the whole device.
func ownerOf(e *element, whole *pb.GpuSample, instances []*pb.GpuSample) *pb.GpuSample {
	var gi, ci *uint32
	count.set(&gi, e.leaves["gpu_instance_id"], "")
	count.set(&ci, e.leaves["compute_instance_id"], "")
	for _, m := range instances {
		if gi != nil && m.GpuInstanceId != nil && *m.GpuInstanceId == *gi && (ci == nil || m.GetComputeInstanceId() == *ci) {
			return m
		}
	}
	return whole
}

func processOf(e *element) *pb.GpuWorkload {
	w := &pb.GpuWorkload{ProcessName: baseName(e.leaves["process_name"]), Kind: workloadKind(e.leaves["type"])}
	count.set(&w.Pid, e.leaves["pid"], "")
	mebibyte.set(&w.MemoryUsedBytes, e.leaves["used_memory"], "")
	return w
}

// readElements reads the document token by token. The decoder resolves no
// entity but the five of XML itself and follows no DTD; depth and size are
// bounded here.
func readElements(text []byte) (*element, error) {
	if len(text) > maxInputBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(text))
	}
	d := xml.NewDecoder(bytes.NewReader(text))
	d.CharsetReader = func(string, io.Reader) (io.Reader, error) {
		return nil, errors.New("only UTF-8")
	}
	var path []string
	var open []*element // the elements of a kind of their own on the way
	leaf := ""
	for {
		token, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			name := token.Name.Local
			if path = append(path, name); len(path) > maxXMLDepth || (len(path) == 1 && name != "nvidia_smi_log") {
				return nil, fmt.Errorf("%w: no nvidia_smi_log", ErrFormat)
			}
			leaf = ""
			if len(path) == 1 || name == "gpu" || name == "mig_device" || name == "process_info" {
				if open, err = push(open, token, len(path)); err != nil {
					return nil, err
				}
			}
		case xml.CharData:
			if len(leaf)+len(token) <= maxTextBytes {
				leaf += string(token)
			}
		case xml.EndElement:
			e := open[len(open)-1]
			if len(path) == e.depth { // the element itself
				if open = open[:len(open)-1]; len(open) == 0 {
					return e, nil
				}
			} else if text := strings.TrimSpace(leaf); text != "" {
				e.leaves[strings.Join(path[e.depth:], "/")] = text
			}
			path, leaf = path[:len(path)-1], ""
		}
	}
}

// push opens an element of a kind of its own.
func push(open []*element, start xml.StartElement, depth int) ([]*element, error) {
	e := &element{name: start.Name.Local, depth: depth, attr: map[string]string{}, leaves: map[string]string{}}
	for _, a := range start.Attr {
		e.attr[a.Name.Local] = a.Value
	}
	if n := len(open); n > 0 {
		parent := open[n-1]
		if len(parent.children) >= maxDevices*2 {
			return nil, fmt.Errorf("%w: more than %d elements", ErrFormat, maxDevices*2)
		}
		parent.children = append(parent.children, e)
	}
	return append(open, e), nil
}
