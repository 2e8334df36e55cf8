package gpu

import (
	"bytes"
	"encoding/csv"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/testenv"
)

// dcgmText is the DCGM exporter's text for two devices: one whole with every
// kind of blank, one in MIG mode with an instance that two pods share. It was
// composed after the exporter's documented format, with the labels of 3.3 to 4.x.
const dcgmText = `# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-aaaa",pci_bus_id="00000000:07:00.0",device="nvidia0",modelName="NVIDIA A100-SXM4-80GB",Hostname="n1",DCGM_FI_DRIVER_VERSION="535.129.03",container="train",namespace="ml",pod="train-0"} 100
DCGM_FI_DEV_MEM_COPY_UTIL{gpu="0",UUID="GPU-aaaa",container="train",namespace="ml",pod="train-0"} 0
DCGM_FI_DEV_ENC_UTIL{gpu="0",UUID="GPU-aaaa"} 2147483632
DCGM_FI_DEV_DEC_UTIL{gpu="0",UUID="GPU-aaaa"} 2.147483634e+09
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-aaaa"} 79000
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-aaaa"} 9223372036854775794
DCGM_FI_DEV_FB_RESERVED{gpu="0",UUID="GPU-aaaa"} 9.223372036854776e+18
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-aaaa"} 1.40737488355328e+14
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-aaaa"} 1.2345678e+07 1700000000000
DCGM_FI_DEV_MEMORY_TEMP{gpu="0",UUID="GPU-aaaa"} NaN
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-aaaa"} +Inf
DCGM_FI_DEV_XID_ERRORS{gpu="0",UUID="GPU-aaaa",err_code="0",err_msg="No \"Error\", really"} 0
DCGM_FI_PROF_SM_ACTIVE{gpu="0",UUID="GPU-aaaa"} 0.031250
DCGM_FI_PROF_DRAM_ACTIVE{gpu="0",UUID="GPU-aaaa"} 1.5
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="1",UUID="GPU-bbbb",GPU_I_PROFILE="3g.40gb",GPU_I_ID="2",namespace="ml",pod="a"} 0.5
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="1",UUID="GPU-bbbb",GPU_I_PROFILE="3g.40gb",GPU_I_ID="2",namespace="ml",pod="b"} 0.5
go_goroutines 12
`

func TestDCGM(t *testing.T) {
	snap, err := ParseDCGM([]byte(dcgmText))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "dcgm", showSnapshot(snap))
	for _, bad := range []string{"DCGM_FI_DEV_GPU_UTIL{gpu=\"0\" 1", "{}", "DCGM_FI_DEV_GPU_UTIL", "<html><body>504</body></html> a b"} {
		if _, err := ParseDCGM([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// notMeasured are exporter metrics that no sample has a place for.
var notMeasured = map[string]bool{
	"DCGM_FI_DEV_PCIE_REPLAY_COUNTER": true, "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": true, "DCGM_FI_DEV_VGPU_LICENSE_STATUS": true,
	"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": true, "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": true, "DCGM_FI_DEV_ROW_REMAP_FAILURE": true,
	"DCGM_FI_DRIVER_VERSION": true,
	// Rates, where the sample wants counters.
	"DCGM_FI_PROF_PCIE_TX_BYTES": true, "DCGM_FI_PROF_PCIE_RX_BYTES": true,
}

// TestExporterDefaultsAreKnown reads the exporter's own lists of metrics.
func TestExporterDefaultsAreKnown(t *testing.T) {
	seen := 0
	for _, name := range []string{"dcgm_exporter_default_counters.csv", "dcgm_exporter_dcp_metrics.csv"} {
		b, err := os.ReadFile(testenv.Data(t, "gpu/"+name))
		if err != nil {
			t.Fatal(err)
		}
		r := csv.NewReader(bytes.NewReader(b))
		r.Comment, r.FieldsPerRecord, r.TrimLeadingSpace = '#', -1, true
		rows, err := r.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			metric := strings.TrimSpace(row[0])
			seen++
			if _, known := dcgmFields[metric]; known == notMeasured[metric] {
				t.Errorf("%s of %s: known %t, left out %t", metric, name, known, notMeasured[metric])
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d metrics", seen)
	}
}

// TestXMLByOtherCode finds the figures of each device with regular expressions.
func TestXMLByOtherCode(t *testing.T) {
	find := func(text []byte, expr string) string {
		m := regexp.MustCompile(`(?s)` + expr).FindSubmatch(text)
		if m == nil {
			return ""
		}
		return string(m[1])
	}
	for name, text := range files(t, "nvidia_smi_xml", 6) {
		snap, err := ParseXML(text, nil)
		if err != nil {
			t.Fatal(err)
		}
		mig := bytes.Count(text, []byte("<mig_device>"))
		if gpus := bytes.Count(text, []byte("<gpu id=")); gpus != 1 || len(snap.Samples) != 1+mig {
			t.Errorf("%s: %d samples of %d devices with %d instances", name, len(snap.Samples), gpus, mig)
		}
		s := snap.Samples[0]
		for _, f := range []struct {
			expr string
			got  *float64
		}{
			{`<gpu_util>(\d+) %`, s.GpuUtilizationPercent},
			{`<memory_util>(\d+) %`, s.MemoryUtilizationPercent},
			{`<gpu_temp>(\d+) C`, s.TemperatureCelsius},
			{`<memory_temp>(\d+) C`, s.MemoryTemperatureCelsius},
			{`<sm_clock>(\d+) MHz`, s.SmClockMhz},
			{`<fan_speed>(\d+) %`, s.FanPercent},
			{`power_draw>([\d.]+) W`, s.PowerWatts},
		} {
			want := find(text, f.expr)
			if (want == "") != (f.got == nil) {
				t.Errorf("%s: %s is %q, the sample has %v", name, f.expr, want, f.got)
			} else if want != "" && !equalNumber(want, *f.got) {
				t.Errorf("%s: %s is %s, the sample has %v", name, f.expr, want, *f.got)
			}
		}
		if want := find(text, `</bar1_memory_usage>.*<uuid>([^<]*)<|<uuid>([^<]*)<`); want != "" && s.GpuUuid != want {
			t.Errorf("%s: uuid %s, want %s", name, s.GpuUuid, want)
		}
	}
}

func equalNumber(text string, v float64) bool {
	var got *float64
	watts.set(&got, text, "")
	return got != nil && *got == v
}

// TestMIGNames joins the XML with `nvidia-smi -L`.
func TestMIGNames(t *testing.T) {
	text := files(t, "nvidia_smi_xml", 6)["a100-sxm4-v12"]
	list := []byte("GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-513536b6-7d19-9063-b049-1e69664bb298)\n" +
		"  MIG 2g.20gb     Device  0: (UUID: MIG-7e6bd2ac-0000-5555-8888-000000000000)\n" +
		"  MIG 1g.10gb+me  Device  3: (UUID: MIG-7e6bd2ac-0000-5555-8888-000000000003)\n")
	snap, err := ParseXML(text, list)
	if err != nil {
		t.Fatal(err)
	}
	if m := snap.Samples[1]; m.MigUuid != "MIG-7e6bd2ac-0000-5555-8888-000000000000" || m.MigProfile != "2g.20gb" {
		t.Errorf("%v", m)
	}
	if m := snap.Samples[2]; m.MigUuid != "MIG-GPU-513536b6-7d19-9063-b049-1e69664bb298/4/0" || m.MigProfile != "" {
		t.Errorf("an instance without a name: %v", m)
	}
	if m := snap.Samples[4]; m.MigProfile != "1g.10gb+me" {
		t.Errorf("%v", m)
	}
	devices := Inventory(snap)
	if len(devices) != 1 || len(devices[0].Instances) != 4 || devices[0].GetMemoryTotalBytes() != 81920<<20 || devices[0].PciBusId != "00000000:01:00.0" {
		t.Errorf("%v", devices)
	}
	capture := files(t, "captures", 5)["linux-x86_64__nvidia-h100-mig__590.48.01"]
	names := parseList(capture)
	if len(names) != 4 || names[migPlace{"GPU-00000000-0000-0000-0000-000000000000", 1}].profile != "2g.20gb" {
		t.Errorf("%v", names)
	}
}

// TestProcessesInInstances puts a process where it runs.
func TestProcessesInInstances(t *testing.T) {
	text := strings.Replace(string(files(t, "nvidia_smi_xml", 6)["a100-sxm4-v12"]), "</gpu>", `<processes>
		<process_info><gpu_instance_id>4</gpu_instance_id><compute_instance_id>0</compute_instance_id><pid>77</pid><type>C</type>
		<process_name>/usr/bin/python3 train.py --token=SECRET &amp; more</process_name><used_memory>[N/A]</used_memory></process_info></processes></gpu>`, 1)
	snap, err := ParseXML([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := snap.Samples[2].Workloads
	if len(w) != 1 || w[0].GetPid() != 77 || w[0].ProcessName != "python3" || w[0].MemoryUsedBytes != nil {
		t.Errorf("%v", snap.Samples)
	}
	if strings.Contains(showSnapshot(snap), "SECRET") {
		t.Error("an argument was kept")
	}
}

func TestFinish(t *testing.T) {
	previous := map[string]time.Time{}
	at := time.UnixMicro(1_700_000_000_000_000)
	look := func(at time.Time) []*pb.GpuSample {
		snap, err := ParseROCm(files(t, "rocm_smi_json", 3)["mi100_rocm571"])
		if err != nil {
			t.Fatal(err)
		}
		Finish(snap, "node-1", at, 3*time.Second, previous)
		return snap.Samples
	}
	first := look(at)
	seen := map[string]bool{}
	for _, s := range first {
		if s.StartUs != s.EndUs || s.EndUs != at.UnixMicro() || s.Host != "node-1" {
			t.Errorf("the first look stands for no time: %v", s)
		}
		if !strings.HasPrefix(s.GpuUuid, "HOST-node-1-0000:") || seen[s.GpuUuid] {
			t.Errorf("a card without an id is called %s", s.GpuUuid)
		}
		seen[s.GpuUuid] = true
	}
	if s := look(at.Add(2 * time.Second))[0]; s.EndUs-s.StartUs != 2_000_000 || s.GpuUuid != first[0].GpuUuid {
		t.Errorf("the second look: %v", s)
	}
	if s := look(at.Add(20 * time.Second))[0]; s.EndUs != s.StartUs {
		t.Errorf("after a gap: %v", s)
	}
	if s := look(at.Add(19 * time.Second))[0]; s.EndUs != s.StartUs {
		t.Errorf("after the clock went back: %v", s)
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		kind kind
		text string
		unit string
		want any // nil is absent
	}{
		{percent, "0 %", "", 0.0}, {percent, "100", "%", 100.0}, {percent, "101", "", nil}, {percent, "-1", "", nil},
		{percent, "[N/A]", "", nil}, {percent, "", "", nil}, {percent, "5 W", "", nil}, {percent, "1e400", "", nil},
		{percent, "2147483632", "", nil}, {watts, "9223372036854775794", "", nil}, {watts, "140737488355329", "", nil},
		{watts, "69.85 W", "", 69.85}, {watts, "NaN", "", nil}, {watts, "0x10", "", nil}, {celsius, "27 C", "", 27.0}, {celsius, "N/A", "", nil},
		{mhz, "300", "MHz", 300.0}, {ratio, "0.25", "", 25.0}, {ratio, "1.01", "", nil},
		{mebibyte, "596 MiB", "", uint64(596 << 20)}, {mebibyte, "1", "", uint64(1 << 20)}, {mebibyte, "2 GiB", "", uint64(2 << 30)},
		{mebibyte, "1 furlong", "", nil}, {mebibyte, "17592186044416", "", nil}, {mebibyte, "67108865", "", nil}, {octets, "34342961152", "", uint64(34342961152)},
		{count, "18446744073709551615", "", nil}, {count, "5.0", "", uint64(5)}, {count, "5.5", "", nil}, {count, "0", "", uint64(0)},
		{mask, "0x0000000000000041", "", uint64(65)}, {mask, "65", "", uint64(65)}, {mask, "0xzz", "", nil},
		{pstate, "P0", "", uint64(0)}, {pstate, "P16", "", nil}, {pstate, "Requested functionality has been deprecated", "", nil},
	} {
		var f *float64
		var u *uint64
		c.kind.set(&f, c.text, c.unit)
		c.kind.set(&u, c.text, c.unit)
		switch want := c.want.(type) {
		case float64:
			if f == nil || *f != want {
				t.Errorf("%q %q: %v, want %v", c.text, c.unit, f, want)
			}
		case uint64:
			if u == nil || *u != want {
				t.Errorf("%q %q: %v, want %v", c.text, c.unit, u, want)
			}
		case nil:
			if (f != nil && c.kind < octets) || (u != nil && c.kind >= octets) {
				t.Errorf("%q %q is a value", c.text, c.unit)
			}
		}
	}
	for text, want := range map[string]string{
		"/usr/bin/python3 /srv/a.py --key=x": "python3", `C:\Program Files\NZXT CAM\NZXT CAM.exe`: "NZXT CAM.exe",
		"[Not Supported]": "", "./gpu_burn": "gpu_burn", "-": "", "a\x00b\nc": "abc", "": "",
	} {
		if got := baseName(text); got != want {
			t.Errorf("%q is called %q, want %q", text, got, want)
		}
	}
}

// check holds what every snapshot must be, whatever it was made of.
func check(t *testing.T, s *Snapshot) {
	t.Helper()
	for _, m := range s.Samples {
		if _, err := proto.Marshal(m); err != nil {
			t.Fatal(err) // not UTF-8
		}
		for _, v := range []*float64{m.GpuUtilizationPercent, m.MemoryUtilizationPercent, m.SmActivePercent, m.FanPercent} {
			if v != nil && !(*v >= 0 && *v <= 100) {
				t.Fatalf("%v %%", *v)
			}
		}
		if len(m.Workloads) > maxWorkloads || len(m.GpuUuid) > maxTextBytes {
			t.Fatalf("%d workloads, a uuid of %d bytes", len(m.Workloads), len(m.GpuUuid))
		}
	}
	Finish(s, "h", time.UnixMicro(1), time.Second, map[string]time.Time{})
	Inventory(s)
}

// FuzzParsers feeds anything to every parser.
func FuzzParsers(f *testing.F) {
	f.Add([]byte(dcgmText))
	for _, folder := range []string{"captures", "nvidia_smi_xml", "rocm_smi_json"} {
		dir := testenv.Data(f, "gpu/"+folder)
		entries, err := os.ReadDir(dir)
		if err != nil {
			f.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(dir + "/" + e.Name())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
			for _, s := range splitCapture(b) {
				f.Add(s.body)
			}
		}
	}
	parsers := []func([]byte) (*Snapshot, error){
		ParseDCGM, ParseROCm, ParseQueryGPU, func(b []byte) (*Snapshot, error) { return ParseXML(b, b) },
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range parsers {
			if s, err := parse(b); err == nil {
				check(t, s)
			} else if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
		}
		if list, err := ParseCapture(b); err == nil {
			for _, s := range list {
				check(t, s)
			}
		}
		s := &Snapshot{Samples: []*pb.GpuSample{{GpuUuid: "GPU-1", Index: new(uint32(0))}}}
		for _, add := range []func([]byte, *Snapshot) error{ParsePmon, ParseComputeApps} {
			if err := add(b, s); err != nil && !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
		}
		check(t, s)
	})
}
