package gpu

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// queryFields are the columns of `nvidia-smi --query-gpu` that mean something to
// a sample. Of two columns for one figure the later one wins where it has a
// value: the average over the driver's interval before the instant.
var queryFields = []struct {
	column string
	field  field
}{
	{"index", index},
	{"utilization.gpu", gpuUtilization},
	{"utilization.memory", memoryUtilization},
	{"utilization.encoder", encoder},
	{"utilization.decoder", decoder},
	{"memory.total", memoryTotal},
	{"memory.reserved", memoryReserved},
	{"memory.used", memoryUsed},
	{"memory.free", memoryFree},
	{"power.draw.instant", power},
	{"power.draw", power},
	{"power.draw.average", power},
	{"power.limit", powerLimit},
	{"enforced.power.limit", powerLimit},
	{"temperature.gpu", temperature},
	{"temperature.memory", memoryTemperature},
	{"clocks.current.sm", smClock},
	{"clocks.current.memory", memoryClock},
	{"clocks.sm", smClock},
	{"clocks.mem", memoryClock},
	{"fan.speed", fan},
	{"pstate", performance},
	{"clocks_throttle_reasons.active", clockReasons},
	{"clocks_event_reasons.active", clockReasons},
	{"mig.mode.current", migEnabled},
	{"ecc.errors.uncorrected.volatile.total", eccUncorrected},
}

// QueryColumns are the columns to ask nvidia-smi for: those above that every
// driver since 450 knows, and what identifies a device.
const QueryColumns = "timestamp,driver_version,name,uuid,pci.bus_id,index,utilization.gpu,utilization.memory," +
	"memory.total,memory.used,memory.free,power.draw,power.limit,temperature.gpu,temperature.memory," +
	"clocks.current.sm,clocks.current.memory,fan.speed,pstate,mig.mode.current,ecc.errors.uncorrected.volatile.total"

// AppColumns are the columns to ask for each compute process.
const AppColumns = "gpu_uuid,pid,process_name,used_gpu_memory"

// smiTime is how nvidia-smi writes a time in CSV; it says no zone.
const smiTime = "2006/01/02 15:04:05.000"

// ParseQueryGPU reads `nvidia-smi --query-gpu=… --format=csv`, with any columns,
// with units or without. Times count as UTC.
func ParseQueryGPU(text []byte) (*Snapshot, error) {
	rows, err := parseCSV(text)
	if err != nil {
		return nil, err
	}
	snap := &Snapshot{}
	for _, row := range rows {
		s := &pb.GpuSample{
			GpuUuid: present(row["uuid"].text), Model: present(row["name"].text), Vendor: VendorNVIDIA, Source: SourceSMI,
		}
		if s.GpuUuid == "" && s.Model == "" {
			return nil, fmt.Errorf("%w: a row of --query-gpu has neither uuid nor name", ErrFormat)
		}
		for _, f := range queryFields {
			if c, ok := row[f.column]; ok {
				f.field.set(s, c.text, c.unit)
			}
		}
		if at, err := time.Parse(smiTime, row["timestamp"].text); err == nil {
			snap.Taken = at
		}
		snap.Driver = cmp.Or(snap.Driver, present(row["driver_version"].text))
		snap.Add(s, present(row["pci.bus_id"].text))
	}
	return snap, nil
}

// cell is a value and the unit that its column's name gives, as in
// "memory.used [MiB]".
type cell struct{ text, unit string }

// parseCSV reads nvidia-smi's CSV: it separates by comma and blank and quotes
// nothing, so that a process name with a comma makes a row too long: then the
// surplus belongs to process_name.
func parseCSV(text []byte) ([]map[string]cell, error) {
	lines := nonEmptyLines(text)
	if len(lines) == 0 || !strings.Contains(lines[0], ",") {
		return nil, fmt.Errorf("%w: no header of columns", ErrFormat)
	}
	type column struct{ name, unit string }
	var header []column
	long := -1
	for i, h := range splitRow(lines[0]) {
		name, unit, _ := strings.Cut(h, " [")
		header = append(header, column{name, strings.TrimSuffix(unit, "]")})
		if name == "process_name" || name == "name" {
			long = i
		}
	}
	var rows []map[string]cell
	for _, line := range lines[1:] {
		cells := splitRow(line)
		if extra := len(cells) - len(header); extra > 0 && long >= 0 {
			joined := strings.Join(cells[long:long+extra+1], ", ")
			cells = slices.Concat(cells[:long], []string{joined}, cells[long+extra+1:])
		}
		if len(cells) != len(header) {
			return nil, fmt.Errorf("%w: a row of %d values under %d columns", ErrFormat, len(cells), len(header))
		}
		row := make(map[string]cell, len(header))
		for i, c := range header {
			row[c.name] = cell{cells[i], c.unit}
		}
		if rows = append(rows, row); len(rows)*len(header) > maxCells {
			return nil, fmt.Errorf("%w: more than %d values", ErrFormat, maxCells)
		}
	}
	return rows, nil
}

func splitRow(line string) []string {
	cells := strings.Split(line, ",")
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	return cells
}

func nonEmptyLines(text []byte) []string {
	if len(text) > maxInputBytes {
		return nil
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// ParseComputeApps reads `nvidia-smi --query-compute-apps=… --format=csv` and
// adds the processes to the samples of their devices.
func ParseComputeApps(text []byte, snap *Snapshot) error {
	rows, err := parseCSV(text)
	if err != nil {
		return err
	}
	for _, row := range rows {
		w := &pb.GpuWorkload{ProcessName: baseName(row["process_name"].text), Kind: KindCompute}
		count.set(&w.Pid, row["pid"].text, "")
		used := cmp.Or(row["used_gpu_memory"], row["used_memory"])
		mebibyte.set(&w.MemoryUsedBytes, used.text, used.unit)
		if s := snap.device(present(row["gpu_uuid"].text)); s != nil {
			AddWorkload(s, w)
		}
	}
	return nil
}

// device is the sample of a whole device, or of the MIG instance of that uuid.
func (s *Snapshot) device(uuid string) *pb.GpuSample {
	for _, m := range s.Samples {
		if (m.GpuUuid == uuid && m.MigUuid == "") || (m.MigUuid == uuid && uuid != "") {
			return m
		}
	}
	return nil
}

// AddWorkload adds a process to a sample, or what is new about one that is there.
func AddWorkload(s *pb.GpuSample, w *pb.GpuWorkload) {
	for _, have := range s.Workloads {
		if w.Pid == nil || have.Pid == nil || *have.Pid != *w.Pid {
			continue
		}
		have.ProcessName = cmp.Or(have.ProcessName, w.ProcessName)
		have.Kind = cmp.Or(have.Kind, w.Kind)
		have.MemoryUsedBytes = cmp.Or(have.MemoryUsedBytes, w.MemoryUsedBytes)
		have.SmUtilizationPercent = cmp.Or(w.SmUtilizationPercent, have.SmUtilizationPercent)
		return
	}
	if len(s.Workloads) < maxWorkloads {
		s.Workloads = append(s.Workloads, w)
	}
}

// ParsePmon reads `nvidia-smi pmon` and adds what it tells of each process to
// the samples of its device, which it names by index. Of several looks at one
// process the newest counts.
func ParsePmon(text []byte, snap *Snapshot) error {
	var header []string
	for _, line := range nonEmptyLines(text) {
		if rest, is := strings.CutPrefix(line, "# gpu"); is {
			header = append([]string{"gpu"}, strings.Fields(rest)...)
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.Fields(line)
		if header == nil || len(cells) < len(header) {
			return fmt.Errorf("%w: no row of pmon", ErrFormat)
		}
		row := map[string]string{}
		for i, name := range header {
			row[name] = cells[i]
		}
		row["command"] = strings.Join(cells[len(header)-1:], " ") // a name may have blanks
		snap.addPmon(row)
	}
	if header == nil {
		return fmt.Errorf("%w: pmon has no header", ErrFormat)
	}
	return nil
}

func (s *Snapshot) addPmon(row map[string]string) {
	w := &pb.GpuWorkload{ProcessName: baseName(row["command"]), Kind: workloadKind(row["type"])}
	count.set(&w.Pid, row["pid"], "")
	percent.set(&w.SmUtilizationPercent, row["sm"], "")
	at, err := strconv.ParseUint(row["gpu"], 10, 32)
	if w.Pid == nil || err != nil {
		return // "-": nothing runs
	}
	for _, m := range s.Samples {
		if m.MigUuid == "" && m.Index != nil && uint64(*m.Index) == at {
			AddWorkload(m, w)
			return
		}
	}
}

// workloadKind reads nvidia-smi's C, G and C+G; what computes at all computes.
func workloadKind(kind string) string {
	switch {
	case strings.Contains(kind, "C"):
		return KindCompute
	case kind == "G":
		return KindGraphics
	}
	return ""
}

// migName is how `nvidia-smi -L` names a MIG instance.
type migName struct{ uuid, profile string }

// migPlace finds it: the device's uuid and the instance's number on it.
type migPlace struct {
	gpu    string
	number uint32
}

// parseList reads the MIG instances out of `nvidia-smi -L`.
func parseList(text []byte) map[migPlace]migName {
	found := map[migPlace]migName{}
	gpu := ""
	for _, line := range nonEmptyLines(text) {
		head, rest, ok := strings.Cut(line, "(UUID: ")
		uuid := present(strings.TrimSuffix(rest, ")"))
		if !ok {
			continue
		}
		words := strings.Fields(strings.ReplaceAll(head, ":", " "))
		switch {
		case len(words) > 1 && words[0] == "GPU":
			gpu = uuid
		case len(words) == 4 && words[0] == "MIG" && words[2] == "Device":
			n, err := strconv.ParseUint(words[3], 10, 32)
			if err == nil && len(found) < maxDevices*maxMIGInstance {
				found[migPlace{gpu, uint32(n)}] = migName{uuid, word(words[1])}
			}
		}
	}
	return found
}
