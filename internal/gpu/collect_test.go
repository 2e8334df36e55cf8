package gpu

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// tool writes a program that answers like a vendor's, from files.
func tool(t *testing.T, script string, data map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range data {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "tool")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd "+dir+"\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSMI(t *testing.T) {
	path := tool(t, `case "$*" in
		"-q -x") cat t4.xml;;
		"pmon -c 1") echo "# gpu pid type sm mem enc dec command"; echo "# Idx # C/G % % % % name"; echo "0 5762 C 42 7 - - python";;
		*) exit 9;; esac`, map[string][]byte{"t4.xml": files(t, "nvidia_smi_xml", 6)["tesla-t4"]})
	c, err := NewSMI(path)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := c.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := snap.Samples[0].Workloads
	if len(w) != 2 || w[1].GetSmUtilizationPercent() != 42 || w[1].GetMemoryUsedBytes() != 1005<<20 || w[0].SmUtilizationPercent != nil {
		t.Errorf("%v", w)
	}
	if !snap.Taken.IsZero() || snap.Driver != "515.105.01" || snap.Samples[0].GetIndex() != 0 {
		t.Errorf("%+v", snap)
	}
}

func TestSMIWithInstances(t *testing.T) {
	path := tool(t, `case "$*" in
		"-q -x") cat a100.xml;;
		-L) echo "GPU 0: NVIDIA A100 (UUID: GPU-513536b6-7d19-9063-b049-1e69664bb298)"; echo "  MIG 2g.20gb     Device  0: (UUID: MIG-1)";;
		*) exit 9;; esac`, map[string][]byte{"a100.xml": files(t, "nvidia_smi_xml", 6)["a100-sxm4-v12"]})
	c, err := NewSMI(path)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := c.Collect(t.Context())
	if err != nil || snap.Samples[1].MigUuid != "MIG-1" || snap.Samples[1].MigProfile != "2g.20gb" || len(snap.Samples) != 5 {
		t.Errorf("%v %+v", err, snap)
	}
}

func TestROCm(t *testing.T) {
	path := tool(t, `echo "WARNING: something"; cat card.json`, map[string][]byte{"card.json": files(t, "rocm_smi_json", 3)["vega-20-WKS-GL-XE"]})
	c, err := NewROCm(path)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := c.Collect(t.Context())
	if err != nil || len(snap.Samples) != 1 || snap.Samples[0].GpuUuid != "AMD-0x2f048617326b1ea" {
		t.Errorf("%v %+v", err, snap)
	}
}

func TestToolsThatFail(t *testing.T) {
	if _, err := NewSMI(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrAbsent) {
		t.Errorf("no such tool: %v", err)
	}
	if _, err := NewROCm("bin/tool"); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("a relative path: %v", err)
	}
	c, err := NewSMI(tool(t, "echo 'Unable to determine the device handle' >&2; exit 15", nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 15") {
		t.Errorf("a tool that fails: %v", err)
	}
	c, err = NewSMI(tool(t, "echo no xml", nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(t.Context()); !errors.Is(err, ErrFormat) {
		t.Errorf("a tool that says something else: %v", err)
	}
	c, err = NewSMI(tool(t, "cat /dev/zero", nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(t.Context()); err == nil {
		t.Error("a tool without an end was read to it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c, err = NewSMI(tool(t, "exec sleep 60", nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(ctx); err == nil {
		t.Error("a tool that hangs was waited for")
	}
}

func TestDCGMOverHTTP(t *testing.T) {
	answer := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(answer)
		fmt.Fprint(w, dcgmText)
	}))
	defer server.Close()
	c, err := NewDCGM(server.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if snap, err := c.Collect(t.Context()); err != nil || len(snap.Samples) != 2 {
		t.Errorf("%v %+v", err, snap)
	}
	answer = http.StatusServiceUnavailable
	if _, err := c.Collect(t.Context()); err == nil {
		t.Error("a 503 was read")
	}
	for _, bad := range []string{"", "127.0.0.1:9400", "file:///etc/passwd", "http://user:secret@host/metrics"} {
		if _, err := NewDCGM(bad); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestAttribution builds a host with a pod under each of the two cgroup drivers,
// Slurm jobs by cgroup and by environment, and a process of nobody.
func TestAttribution(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/1/cgroup", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f2e3d4c_0000_1111_2222_333344445555.slice/cri-containerd-aa.scope\n")
	write("proc/2/cgroup", "12:devices:/kubepods/besteffort/pod9f2e3d4c-0000-1111-2222-333344445555/deadbeef\n")
	write("proc/3/cgroup", "0::/system.slice/slurmstepd.scope/job_4711/step_0/user/task_0\n")
	write("proc/4/cgroup", "0::/user.slice\n")
	write("proc/4/environ", "HOME=/home/x\x00OPENAI_API_KEY=sk-secret\x00SLURM_JOB_ID=4712\x00SLURM_JOB_USER=jane\x00")
	write("proc/5/cgroup", "0::/user.slice\n")
	write("proc/5/environ", "SLURM_JOB_ID=$(rm -rf)\x00")
	write("var/log/pods/ml_train-0_1f2e3d4c-0000-1111-2222-333344445555/main/0.log", "")
	rules, err := ParseRules(strings.NewReader(`rules:
  - {namespace: ml, pod: "train-*", team: research, service: training}
  - {namespace: ml, team: platform, environment: prod}
  - {job: "47*", team: hpc}
  - {process: Xorg, team: desktop}
`))
	if err != nil {
		t.Fatal(err)
	}
	snap := &Snapshot{Samples: []*pb.GpuSample{{}}}
	for pid := range uint32(7) {
		snap.Samples[0].Workloads = append(snap.Samples[0].Workloads, &pb.GpuWorkload{Pid: new(pid), ProcessName: "python"})
	}
	snap.Samples[0].Workloads = append(snap.Samples[0].Workloads, &pb.GpuWorkload{Namespace: "ml", Pod: "serve-1", Team: "kept"})
	NewAttributor(root, rules).Attribute(snap)
	golden(t, "attribution", showSnapshot(snap))
	for _, bad := range []string{"rules:\n  - {team: a, colour: blue}", "rules:\n  - {pod: a}", "rules:\n  - {pod: \"[\", team: a}", "rules: 5", "- a"} {
		if _, err := ParseRules(strings.NewReader(bad)); err == nil {
			t.Errorf("taken: %s", bad)
		}
	}
	if rules, err := ParseRules(strings.NewReader("")); err != nil || len(rules) != 0 {
		t.Errorf("an empty file: %v", err)
	}
}
