package gpu

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/testenv"
)

// play reads a whole recording.
func play(t *testing.T, path string, each func(*Snapshot)) (r *Recording, looks, samples int) {
	t.Helper()
	r, err := OpenRecording(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r, looks, samples
		}
		if err != nil {
			t.Fatal(err)
		}
		looks++
		samples += len(s.Samples)
		each(s)
	}
}

// TestRecordings plays every file of the data pack that has looks at devices.
func TestRecordings(t *testing.T) {
	uuids := map[string]string{}
	for _, folder := range []string{"captures", "nvidia_smi_xml", "rocm_smi_json"} {
		names, err := filepath.Glob(testenv.Data(t, "gpu/"+folder) + "/*")
		if err != nil || len(names) == 0 {
			t.Fatal(err)
		}
		for _, name := range names {
			_, looks, _ := play(t, name, func(s *Snapshot) {
				Finish(s, filepath.Base(name), time.Now(), time.Second, map[string]time.Time{})
				for _, m := range s.Samples {
					if masked(m.GpuUuid) || m.Source != SourceReplay {
						t.Errorf("%s: %v", name, m)
					}
					if in := uuids[Key(m)]; in != "" && in != name {
						t.Errorf("%s and %s have both %s", in, name, Key(m))
					}
					uuids[Key(m)] = name
				}
			})
			if looks == 0 {
				t.Errorf("%s has no look", name)
			}
		}
	}
	// 5 captures, 5 XML without MIG and one with 4 instances, 6 MI100 and 2 AMD cards more.
	if len(uuids) != 23 {
		t.Errorf("%d devices and instances in 14 files, want 23", len(uuids))
	}
}

// TestPolls holds the count of the data pack's README against the file.
func TestPolls(t *testing.T) {
	hosts := map[string]bool{}
	zero := 0
	r, looks, samples := play(t, testenv.Data(t, "gpu/nvidia_smi_fast_poll.csv.zst"), func(s *Snapshot) {
		hosts[s.Host] = true
		m := s.Samples[0]
		if m.GpuUtilizationPercent != nil && *m.GpuUtilizationPercent == 0 {
			zero++
		}
		if m.MemoryUsedBytes != nil || m.PowerWatts == nil {
			t.Fatalf("%v", m)
		}
	})
	if looks != 56_264 || samples != looks || len(hosts) < 3 || zero == 0 || r.Last.Sub(r.First) <= 0 {
		t.Errorf("%d looks at %d devices, %d idle, %s to %s", looks, len(hosts), zero, r.First, r.Last)
	}
}

// TestAllocations adds up what the first rows of the file say and what is played.
func TestAllocations(t *testing.T) {
	const rows = 20_000
	path := testenv.Data(t, "gpu/helios_earth_vc_minute.csv.zst")
	r, err := OpenRecording(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.First.Format(time.DateTime) != "2020-05-01 00:00:00" || r.Last.Format(time.DateTime) != "2020-05-31 23:59:00" {
		t.Errorf("from %s to %s", r.First, r.Last)
	}
	samples, allocated := 0, 0
	for range rows {
		s, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		samples += len(s.Samples)
		for _, m := range s.Samples {
			if m.GpuUtilizationPercent != nil {
				t.Fatal("an allocation became utilisation")
			}
			if len(m.Workloads) > 0 {
				allocated++
			}
		}
	}
	wantTotal, wantRunning := sumColumns(t, path, rows)
	if samples != wantTotal || allocated != wantRunning {
		t.Errorf("%d samples, %d allocated; the columns add up to %d and %d", samples, allocated, wantTotal, wantRunning)
	}
}

func TestNoRecording(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"empty": "", "text": "hello", "xml": "<?xml version=\"1.0\"?><a/>", "json": "{\"card0\": 5}",
		"polls":  "ts,gpu_model,experiment,utilization_gpu_pct\nyesterday,a,b,1\n",
		"rows":   "ts,vc,gpus_total,gpus_running,x\n2020-05-01 00:00:00,a,5,6,1\n",
		"zstd":   "\x28\xb5\x2f\xfd",
		"ragged": "ts,gpu_model,experiment,utilization_gpu_pct\n1,2\n",
	} {
		path := filepath.Join(dir, name)
		if name == "zstd" {
			path += ".zst"
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := OpenRecording(path)
		if err == nil { // a table's rows are looked at when they are played
			_, err = r.Next()
			r.Close()
		}
		if err == nil {
			t.Errorf("%s was played", name)
		}
	}
}

// sumColumns adds up gpus_total and gpus_running of the first rows by splitting
// lines.
func sumColumns(t *testing.T, path string, rows int) (total, running int) {
	t.Helper()
	f, err := openMaybeZstd(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() && rows >= 0 {
		rows--
		cells := strings.Split(lines.Text(), ",")
		if cells[0] == "ts" {
			continue
		}
		for i, sum := range map[int]*int{2: &total, 3: &running} {
			n, err := strconv.Atoi(cells[i])
			if err != nil {
				t.Fatal(err)
			}
			*sum += n
		}
	}
	return total, running
}
