package gpu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// dcgmFields are the metrics of the DCGM exporter that mean something to a
// sample. FB metrics are in MiB, PROF metrics ratios.
var dcgmFields = map[string]field{
	"DCGM_FI_DEV_GPU_UTIL":                 gpuUtilization,
	engineActive:                           utilizationRatio,
	"DCGM_FI_DEV_MEM_COPY_UTIL":            memoryUtilization,
	"DCGM_FI_DEV_ENC_UTIL":                 encoder,
	"DCGM_FI_DEV_DEC_UTIL":                 decoder,
	"DCGM_FI_DEV_FB_USED":                  memoryUsed,
	"DCGM_FI_DEV_FB_FREE":                  memoryFree,
	"DCGM_FI_DEV_FB_RESERVED":              memoryReserved,
	"DCGM_FI_DEV_FB_TOTAL":                 memoryTotal,
	"DCGM_FI_DEV_POWER_USAGE":              power,
	"DCGM_FI_DEV_POWER_MGMT_LIMIT":         powerLimit,
	"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": energy,
	"DCGM_FI_DEV_GPU_TEMP":                 temperature,
	"DCGM_FI_DEV_MEMORY_TEMP":              memoryTemperature,
	"DCGM_FI_DEV_SM_CLOCK":                 smClock,
	"DCGM_FI_DEV_MEM_CLOCK":                memoryClock,
	"DCGM_FI_DEV_FAN_SPEED":                fan,
	"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS":   clockReasons,
	"DCGM_FI_DEV_CLOCKS_EVENT_REASONS":     clockReasons,
	"DCGM_FI_DEV_XID_ERRORS":               xid,
	"DCGM_FI_DEV_MIG_MODE":                 migEnabled,
	"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL":        eccUncorrected,
	"DCGM_FI_PROF_SM_ACTIVE":               smActive,
	"DCGM_FI_PROF_SM_OCCUPANCY":            smOccupancy,
	"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE":      tensorActive,
	"DCGM_FI_PROF_DRAM_ACTIVE":             dramActive,
}

// ParseDCGM reads the DCGM exporter's Prometheus text. Rows of one device that
// differ only in their pod are one device shared by time slicing: each pod is
// a workload with an equal share of it.
func ParseDCGM(text []byte) (*Snapshot, error) {
	if len(text) > maxInputBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(text))
	}
	snap := &Snapshot{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, labels, value, ok := parseMetric(line)
		if !ok {
			return nil, fmt.Errorf("%w: a line is no metric", ErrFormat)
		}
		if strings.HasPrefix(name, "DCGM_FI_") && labels["UUID"] != "" {
			if err := snap.addMetric(name, labels, value); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range snap.Samples {
		shareTime(s)
	}
	return snap, nil
}

// addMetric puts one metric where it belongs.
func (s *Snapshot) addMetric(name string, labels map[string]string, value string) error {
	l := labelsOf(labels)
	m := l.Sample()
	if i := slices.IndexFunc(s.Samples, func(have *pb.GpuSample) bool { return Key(have) == Key(m) }); i >= 0 {
		m = s.Samples[i]
	} else {
		if len(s.Samples) >= maxDevices*8 {
			return fmt.Errorf("%w: more than %d devices", ErrFormat, maxDevices*8)
		}
		s.Add(m, present(l.Bus))
	}
	if driver := present(labels["DCGM_FI_DRIVER_VERSION"]); driver != "" {
		s.Driver = driver
	}
	Measure(m, name, value)
	l.AddWorkload(m)
	return nil
}

// labelsOf are those of the exporter.
func labelsOf(labels map[string]string) Labels {
	l := Labels{
		UUID: labels["UUID"], Instance: labels["GPU_I_ID"], Profile: labels["GPU_I_PROFILE"], Index: labels["gpu"],
		Model: labels["modelName"], Bus: labels["pci_bus_id"], Job: labels["hpc_job"],
	}
	// Who scrapes with labels of its own renames those of the exporter.
	if present(labels["exported_pod"]) != "" {
		l.Namespace, l.Pod, l.Container = labels["exported_namespace"], labels["exported_pod"], labels["exported_container"]
	} else {
		l.Namespace, l.Pod, l.Container = labels["namespace"], labels["pod"], labels["container"]
	}
	return l
}

// shareTime gives each of several pods on a device its share.
func shareTime(m *pb.GpuSample) {
	if n := len(m.Workloads); n > 1 {
		for _, w := range m.Workloads {
			w.AllocatedShare = new(1 / float64(n))
		}
	}
}

// parseMetric reads one line of Prometheus text: name, labels, value, and
// perhaps a time, which is left out.
func parseMetric(line string) (name string, labels map[string]string, value string, ok bool) {
	end := strings.IndexAny(line, "{ \t")
	if end <= 0 || strings.ContainsFunc(line[:end], notInName) {
		return "", nil, "", false
	}
	name, line = line[:end], line[end:]
	if line[0] == '{' {
		if labels, line, ok = parseLabels(line[1:]); !ok {
			return "", nil, "", false
		}
	}
	fields := strings.Fields(line)
	if len(fields) == 0 || len(fields) > 2 {
		return "", nil, "", false
	}
	_, err := strconv.ParseFloat(fields[0], 64) // NaN and Inf are values here
	return name, labels, fields[0], err == nil
}

// notInName reports what no metric's name has.
func notInName(r rune) bool {
	return r != '_' && r != ':' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

// parseLabels reads `a="b",c="d"}` and returns what is behind it.
func parseLabels(line string) (labels map[string]string, rest string, ok bool) {
	labels = map[string]string{}
	for {
		line = strings.TrimLeft(line, " ,")
		if rest, done := strings.CutPrefix(line, "}"); done {
			return labels, rest, true
		}
		name, after, found := strings.Cut(line, `="`)
		if !found || len(labels) > 64 {
			return nil, "", false
		}
		var value strings.Builder
		i := 0
		for ; i < len(after) && after[i] != '"'; i++ {
			c := after[i]
			if c == '\\' && i+1 < len(after) {
				i++
				if c = after[i]; c == 'n' {
					c = '\n'
				}
			}
			value.WriteByte(c)
		}
		if i == len(after) {
			return nil, "", false
		}
		labels[name] = value.String()
		line = after[i+1:]
	}
}
