package gpu

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/testenv"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func TestMain(m *testing.M) { testenv.Main(m) }

// show writes a message with one line for each field that is set, so that a
// review sees what is absent too: it is not there.
func show(b *strings.Builder, indent string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		if !f.IsList() {
			fmt.Fprintf(b, "%s%s %v\n", indent, f.Name(), m.Get(f))
			continue
		}
		list := m.Get(f).List()
		for j := range list.Len() {
			fmt.Fprintf(b, "%s%s\n", indent, strings.TrimSuffix(string(f.Name()), "s"))
			show(b, indent+"  ", list.Get(j).Message())
		}
	}
}

func showSnapshot(s *Snapshot) string {
	var b strings.Builder
	if !s.Taken.IsZero() {
		fmt.Fprintf(&b, "taken %s\n", s.Taken.Format("2006-01-02T15:04:05.000Z"))
	}
	fmt.Fprintf(&b, "driver %q\n", s.Driver)
	for i, m := range s.Samples {
		fmt.Fprintf(&b, "sample at %q\n", s.bus(i))
		show(&b, "  ", m.ProtoReflect())
	}
	return b.String()
}

// golden compares with testdata/name.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

// files are the data pack's files of a folder; there must be as many as said.
func files(t *testing.T, folder string, n int) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	dir := testenv.Data(t, "gpu/"+folder)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != n {
		t.Fatalf("%d files in %s (%v), want %d", len(entries), folder, err, n)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))] = b
	}
	return found
}

func TestGoldenCaptures(t *testing.T) {
	for name, text := range files(t, "captures", 5) {
		snaps, err := ParseCapture(text)
		if err != nil || len(snaps) != 2 {
			t.Fatalf("%s: %d snapshots, %v", name, len(snaps), err)
		}
		golden(t, name, "idle\n"+showSnapshot(snaps[0])+"load\n"+showSnapshot(snaps[1]))
	}
}

func TestGoldenXML(t *testing.T) {
	for name, text := range files(t, "nvidia_smi_xml", 6) {
		snap, err := ParseXML(text, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, name, showSnapshot(snap))
	}
}

func TestGoldenROCm(t *testing.T) {
	for name, text := range files(t, "rocm_smi_json", 3) {
		snap, err := ParseROCm(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, name, showSnapshot(snap))
	}
}

// TestCapturesByOtherCode reads each figure of each capture again, by a split at
// commas and the column's name, and compares. A value that does not begin with a
// digit or 0x is no value, and then the field must be unset.
func TestCapturesByOtherCode(t *testing.T) {
	figures := []struct {
		column string
		scale  float64
		name   protoreflect.Name
	}{
		{"utilization.gpu [%]", 1, "gpu_utilization_percent"},
		{"utilization.memory [%]", 1, "memory_utilization_percent"},
		{"utilization.encoder [%]", 1, "encoder_utilization_percent"},
		{"utilization.decoder [%]", 1, "decoder_utilization_percent"},
		{"memory.total [MiB]", 1 << 20, "memory_total_bytes"},
		{"memory.reserved [MiB]", 1 << 20, "memory_reserved_bytes"},
		{"memory.used [MiB]", 1 << 20, "memory_used_bytes"},
		{"memory.free [MiB]", 1 << 20, "memory_free_bytes"},
		{"power.draw [W]", 1, "power_watts"},
		{"enforced.power.limit [W]", 1, "power_limit_watts"},
		{"temperature.gpu", 1, "temperature_celsius"},
		{"temperature.memory", 1, "memory_temperature_celsius"},
		{"clocks.current.sm [MHz]", 1, "sm_clock_mhz"},
		{"clocks.current.memory [MHz]", 1, "memory_clock_mhz"},
		{"fan.speed [%]", 1, "fan_percent"},
		{"ecc.errors.uncorrected.volatile.total", 1, "ecc_uncorrected"},
		{"index", 1, "index"},
	}
	absent, zero, more := 0, 0, 0
	for name, text := range files(t, "captures", 5) {
		snaps, err := ParseCapture(text)
		if err != nil {
			t.Fatal(err)
		}
		var rows [][2]string // header and row of each --query-gpu
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "timestamp, driver_version") && lines.Scan() {
				rows = append(rows, [2]string{"", lines.Text()})
			}
		}
		headers := bytes.Split(text, []byte("timestamp, driver_version"))
		if len(rows) != 2 || len(headers) != 3 {
			t.Fatalf("%s: %d rows", name, len(rows))
		}
		for i, snap := range snaps {
			head, _, _ := strings.Cut("timestamp, driver_version"+string(headers[i+1]), "\n")
			columns, cells := strings.Split(strings.TrimSpace(head), ", "), strings.Split(strings.TrimSpace(rows[i][1]), ", ")
			if len(columns) != len(cells) {
				t.Fatalf("%s: %d columns, %d cells", name, len(columns), len(cells))
			}
			m := snap.Samples[0].ProtoReflect()
			for _, f := range figures {
				for j, c := range columns {
					if c != f.column {
						continue
					}
					fd := m.Descriptor().Fields().ByName(f.name)
					if first := cells[j][0]; first < '0' || first > '9' {
						absent++
						if m.Has(fd) {
							t.Errorf("%s: %s is %q, and the sample has %v", name, c, cells[j], m.Get(fd))
						}
						continue
					}
					want, err := strconv.ParseFloat(strings.Fields(cells[j])[0], 64)
					if err != nil {
						t.Fatal(err)
					}
					if want == 0 {
						zero++
					} else {
						more++
					}
					if got := fmt.Sprint(m.Get(fd)); !m.Has(fd) || got != fmt.Sprint(want*f.scale) && got != strconv.FormatUint(uint64(want*f.scale), 10) {
						t.Errorf("%s: %s is %q, and the sample has %s (%t)", name, c, cells[j], got, m.Has(fd))
					}
				}
			}
		}
	}
	t.Logf("%d absent, %d zero, %d other figures", absent, zero, more)
	if absent < 20 || zero < 20 || more < 80 {
		t.Error("too few figures were compared")
	}
}

// TestWhatTheDataSays looks at what people get wrong.
func TestWhatTheDataSays(t *testing.T) {
	captures := files(t, "captures", 5)
	parse := func(name string, phase int) *pb.GpuSample {
		snaps, err := ParseCapture(captures[name])
		if err != nil {
			t.Fatal(err)
		}
		return snaps[phase].Samples[0]
	}
	mig := parse("linux-x86_64__nvidia-h100-mig__590.48.01", 1)
	if mig.GpuUtilizationPercent != nil || !mig.GetMigEnabled() || mig.MemoryUsedBytes == nil {
		t.Errorf("the device under MIG has no utilisation of its own, but memory: %v", mig)
	}
	idle := parse("linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01", 0)
	if idle.GpuUtilizationPercent == nil || *idle.GpuUtilizationPercent != 0 || idle.MigEnabled == nil || *idle.MigEnabled || len(idle.Workloads) != 0 {
		t.Errorf("an idle device says 0, and MIG off: %v", idle)
	}
	busy := parse("linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01", 1)
	if busy.GetGpuUtilizationPercent() != 100 || len(busy.Workloads) != 3 {
		t.Fatalf("%v", busy)
	}
	for _, w := range busy.Workloads {
		switch w.ProcessName {
		case "gpu_burn":
			if w.GetSmUtilizationPercent() != 99 || w.GetMemoryUsedBytes() != 15690<<20 {
				t.Errorf("%v", w)
			}
		case "memhog": // holds memory and computes nothing that the tool saw
			if w.SmUtilizationPercent != nil || w.MemoryUsedBytes == nil {
				t.Errorf("%v", w)
			}
		default:
			t.Errorf("%v", w)
		}
	}
	// Encoders are busy while SMs are not: utilisation alone calls it idle.
	windows := parse("windows-x86_64__nvidia-geforce-rtx-2080-super__591.86", 1)
	if windows.GetEncoderUtilizationPercent() != 100 || windows.GetGpuUtilizationPercent() != 7 {
		t.Errorf("%v", windows)
	}
	for _, w := range windows.Workloads {
		if w.MemoryUsedBytes != nil || strings.ContainsAny(w.ProcessName, `\/`) {
			t.Errorf("Windows tells no memory of a process, and of its path only the name is kept: %v", w)
		}
	}
}
