package gputime

import (
	"bufio"
	"encoding/csv"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/gpu"
	"github.com/tallystick/tallystick/internal/testenv"
)

// A cluster's minutes: each row stands for so many devices, of which so many run.
// What is accounted is what the trace says, by virtual cluster, to the microsecond.
func TestHeliosIsConserved(t *testing.T) {
	f, err := os.Open(testenv.Data(t, "gpu/helios_earth_vc_minute.csv.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(bufio.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	rows := csv.NewReader(z)
	if _, err := rows.Read(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Options{Window: 5 * time.Minute, MaxGap: time.Minute, Lateness: 2 * time.Minute})
	const minutes = 90
	total, running := map[string]int64{}, map[string]int64{}
	for n := range 10 * minutes {
		cells, err := rows.Read()
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.DateTime, cells[0])
		if err != nil {
			t.Fatal(err)
		}
		count, err1 := strconv.ParseInt(cells[2], 10, 64)
		busy, err2 := strconv.ParseInt(cells[3], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		vc, end := cells[1], at.Add(time.Minute).UnixMicro()
		total[vc], running[vc] = total[vc]+count, running[vc]+busy
		b := Batch{Tenant: tenantOf(vc), Agent: "replay", ReceivedAt: end}
		for i := range count {
			s := Sample{GPU: vc + "-" + strconv.FormatInt(i, 10), Start: at.UnixMicro(), End: end, Used: Unknown, Device: Device{Host: vc, Model: "V100"}}
			if i < busy {
				s.Claims = []Claim{{Owner: Owner{Team: vc}, Share: Unknown, Used: Unknown}}
			} else {
				s.Used = 0
			}
			b.Samples = append(b.Samples, s)
		}
		w.apply(&b)
		if n%97 == 0 {
			w.commit()
			w.die()
		}
	}
	w.flush()
	got, have := map[string]int64{}, map[string]int64{}
	for i := range w.events {
		e := &w.events[i]
		if e.Corrects != "" {
			t.Fatalf("nothing was late: %+v", e)
		}
		got[e.Tenant] += e.GPUMicros
		if e.GPUState == event.GPUUnknown && e.Team != "" {
			have[e.Tenant] += e.GPUMicros
		}
	}
	for vc, n := range total {
		if id := tenantOf(vc); got[id] != n*60*second || have[id] != running[vc]*60*second {
			t.Errorf("%s: %d of %d device-minutes, %d of %d running", vc, got[id]/60/second, n, have[id]/60/second, running[vc])
		}
	}
}

func tenantOf(vc string) string {
	b := []byte(vc)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// What real tools printed: the devices' time is accounted whole, MIG instances by
// their slices, and what was not measured is unknown. The first look at a device
// stands for no time.
func TestCapturesAreConserved(t *testing.T) {
	folder := testenv.Data(t, "gpu")
	captures, err := filepath.Glob(filepath.Join(folder, "captures", "*.txt"))
	if err != nil || len(captures) < 5 {
		t.Fatalf("%v: %v", captures, err)
	}
	xmls, err := filepath.Glob(filepath.Join(folder, "nvidia_smi_xml", "*.xml"))
	if err != nil || len(xmls) < 6 {
		t.Fatalf("%v: %v", xmls, err)
	}
	instances := 0
	for _, file := range append(captures, xmls...) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			look := func() []*gpu.Snapshot {
				var snaps []*gpu.Snapshot
				if filepath.Ext(file) == ".xml" {
					var snap *gpu.Snapshot
					snap, err = gpu.ParseXML(text, nil)
					snaps = []*gpu.Snapshot{snap}
				} else {
					snaps, err = gpu.ParseCapture(text)
				}
				if err != nil {
					t.Fatal(err)
				}
				return snaps
			}
			for state := range look() {
				instances += conserve(t, func() *gpu.Snapshot { return look()[state] })
			}
		})
	}
	if instances == 0 {
		t.Error("no file has a MIG instance")
	}
}

// conserve runs one state of a host for two minutes and gives how many MIG instances
// it has.
func conserve(t *testing.T, look func() *gpu.Snapshot) int {
	t.Helper()
	devices, mig := map[string]bool{}, map[string]string{}
	w := newWorld(t, testOptions)
	const rounds = 25
	previous := map[string]time.Time{}
	for n := range rounds {
		at := time.UnixMicro(base).Add(time.Duration(n) * 5 * time.Second)
		snap := look()
		gpu.Finish(snap, "host", at, 10*time.Second, previous)
		b := Batch{Tenant: "acme", Agent: "a", ReceivedAt: at.UnixMicro()}
		for _, m := range snap.Samples {
			s, err := sampleOf(m)
			if err != nil {
				t.Fatalf("%v: %v", m, err)
			}
			if devices[s.GPU] = true; s.MIG != "" {
				mig[s.MIG] = s.Profile
			}
			b.Samples = append(b.Samples, s)
		}
		w.apply(&b)
	}
	w.flush()
	parts := net(t, w.events)
	want := int64(len(devices)) * (rounds - 1) * 5 * second
	if got := total(parts); got != want || want == 0 {
		t.Errorf("%d µs of %d devices, want %d", got, len(devices), want)
	}
	seen := map[string]bool{}
	for i := range w.events {
		for _, tag := range w.events[i].Tags {
			if tag.Key == "mig" {
				seen[tag.Value] = true
			}
		}
	}
	for _, profile := range mig {
		if !seen[profile] {
			t.Errorf("no time of a %s", profile)
		}
	}
	return len(mig)
}
