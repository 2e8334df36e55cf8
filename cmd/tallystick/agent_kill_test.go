package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

const (
	agentTenant = "gpu-farm"
	// agentLives is how often the agent is started, all but the last to be killed;
	// in every second life the gateway is killed first.
	agentLives = 5
)

// agentWorld is the program with its gateway, and an agent in a process of its
// own that plays the data pack's polls.
type agentWorld struct {
	t        *testing.T
	srv      *faultServer
	cfg      kafka.Config
	admin    *kafka.Admin
	gateway  string
	cred     string
	dir      string
	agentLog *os.File
}

func newAgentWorld(t *testing.T) *agentWorld {
	t.Helper()
	brokers := testenv.Kafka(t)
	w := &agentWorld{t: t, dir: t.TempDir(), cfg: kafka.Config{
		Brokers: brokers.Seeds, TopicPrefix: brokers.TopicPrefix, AllowPlaintext: brokers.TLSCA == "",
		TLS:  kafka.TLS{Enabled: brokers.TLSCA != "", CAFile: brokers.TLSCA},
		SASL: kafka.SASL{Mechanism: brokers.SASLMechanism, Username: brokers.SASLUser, Password: brokers.SASLPassword},
	}}
	addrs, err := freeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	w.gateway = addrs[0]
	w.srv = startFaultServer(t, func(s *smokeServer) {
		s.env = append(s.env, "TALLYSTICK_AGENTS_LISTEN="+w.gateway, "TALLYSTICK_AGENTS_AGENT_SAMPLES_PER_SECOND=20000",
			"TALLYSTICK_KAFKA_BROKERS="+strings.Join(brokers.Seeds, ","), "TALLYSTICK_KAFKA_TOPIC_PREFIX="+brokers.TopicPrefix,
			"TALLYSTICK_KAFKA_REPLICATION=1", "TALLYSTICK_KAFKA_ALLOW_PLAINTEXT=true")
	})
	w.srv.post(t, "/v1/tenants:batchCreate", map[string]any{"tenant_ids": []string{agentTenant}}, http.StatusOK)
	var made struct{ Credential string }
	if err := json.Unmarshal(w.srv.post(t, "/v1/agents", map[string]any{"tenant_id": agentTenant, "name": "node-1"}, http.StatusOK), &made); err != nil {
		t.Fatal(err)
	}
	w.cred = filepath.Join(w.dir, "credential")
	writeFile(t, w.cred, made.Credential+"\n")
	if w.admin, err = kafka.NewAdmin(w.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.admin.Close)
	if w.agentLog, err = os.Create(filepath.Join(w.dir, "agent.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.agentLog.Close()
		if text, err := os.ReadFile(w.agentLog.Name()); t.Failed() {
			t.Logf("the agent's messages (%v):\n%s", err, text[max(0, len(text)-10_000):])
		}
	})
	return w
}

// agent starts the agent; stdout gets its counters.
func (w *agentWorld) agent(stdout *os.File) *exec.Cmd {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(exe, "agent", "--gateway", w.gateway, "--plaintext", "--credential-file", w.cred, "--verbose",
		"--spool-dir", filepath.Join(w.dir, "spool"), "--host", "node-1", "--speed", "0", "--drain", "2m",
		"--replay", testenv.Data(w.t, "gpu/nvidia_smi_fast_poll.csv.zst"))
	cmd.Env = append(os.Environ(), runsTheProgram+"=1")
	cmd.Stdout, cmd.Stderr = stdout, w.agentLog
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	return cmd
}

// live runs an agent of its own that reads what a program in nvidia-smi's place
// tells, until some frames are in Kafka, and stops it as an operator does.
func (w *agentWorld) live() {
	w.t.Helper()
	var made struct{ Credential string }
	answer := w.srv.post(w.t, "/v1/agents", map[string]any{"tenant_id": agentTenant, "name": "node-2"}, http.StatusOK)
	if err := json.Unmarshal(answer, &made); err != nil {
		w.t.Fatal(err)
	}
	tool := filepath.Join(w.dir, "nvidia-smi")
	script := "#!/bin/sh\n[ \"$*\" = '-q -x' ] && exec cat '" + testenv.Data(w.t, "gpu/nvidia_smi_xml/tesla-t4.xml") + "'\nexit 1\n"
	if err := os.WriteFile(tool, []byte(script), 0o755); err != nil { //nolint:gosec // it is to be run
		w.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	from := w.end()
	cmd := exec.Command(exe, "agent", "--gateway", w.gateway, "--plaintext", "--collect", "nvidia-smi", "--nvidia-smi", tool,
		"--interval", "100ms", "--host", "node-2", "--cloud", "aws", "--spool-dir", filepath.Join(w.dir, "live"))
	cmd.Env = append(os.Environ(), runsTheProgram+"=1", credentialEnv+"="+made.Credential)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, w.agentLog
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "looks in Kafka", time.Minute, func() bool { return w.end() > from+5 })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("stopped: %v", err)
	}
	var counters struct {
		Emitted int64 `json:"emitted_samples"`
		Acked   int64 `json:"acked_samples"`
	}
	if err := json.Unmarshal(out.Bytes(), &counters); err != nil || counters.Emitted <= 5 || counters.Acked < counters.Emitted-1 {
		w.t.Errorf("%v: %s", err, out.String())
	}
}

// end is where the tenant's partition of telemetry ends.
func (w *agentWorld) end() int64 {
	w.t.Helper()
	ends, err := w.admin.EndOffsets(w.t.Context(), w.cfg.Topics().Telemetry)
	if err != nil {
		w.t.Fatal(err)
	}
	return ends[tenant.ID(agentTenant).Partition(int32(len(ends)))]
}

// batches reads what the agent got into Kafka: the samples by frame. A frame that
// stands there twice must have the same samples.
func (w *agentWorld) batches() (frames map[int64]int64, records int) {
	w.t.Helper()
	infos, err := w.admin.Topics(w.t.Context(), w.cfg.Topics().Telemetry)
	if err != nil {
		w.t.Fatal(err)
	}
	partition := tenant.ID(agentTenant).Partition(infos[w.cfg.Topics().Telemetry].Partitions)
	frames = map[int64]int64{}
	first := map[int64]*pb.GpuSampleBatch{}
	epoch := int64(0)
	err = kafka.ReadRange(w.t.Context(), w.cfg, w.cfg.Topics().Telemetry, partition, kafka.Position{}, w.end(), func(recs []kafka.Record) error {
		for i := range recs {
			records++
			b := &pb.GpuSampleBatch{}
			if err := proto.Unmarshal(recs[i].Value, b); err != nil {
				return err
			}
			if epoch == 0 {
				epoch = b.ProducerEpoch
			}
			if b.ProducerEpoch != epoch || b.TenantId != agentTenant || int(b.SampleCount) != len(b.Samples) {
				w.t.Errorf("frame %d: epoch %d, tenant %s, %d of %d samples", b.Seq, b.ProducerEpoch, b.TenantId, len(b.Samples), b.SampleCount)
			}
			if have := first[b.Seq]; have != nil && !proto.Equal(&pb.GpuSampleBatch{Samples: have.Samples}, &pb.GpuSampleBatch{Samples: b.Samples}) {
				w.t.Errorf("frame %d stands there with other samples", b.Seq)
			}
			first[b.Seq], frames[b.Seq] = b, int64(len(b.Samples))
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return frames, records
}

// TestAgentAndGatewayKilled kills agent and gateway with SIGKILL under load, in
// turn, and holds what is in Kafka against the agent's own counters: no sample
// lost, none twice under two numbers.
func TestAgentAndGatewayKilled(t *testing.T) {
	w := newAgentWorld(t)
	killed := 0
	for life := range agentLives - 1 {
		cmd := w.agent(nil)
		from := w.end()
		await(t, "frames in Kafka", time.Minute, func() bool { return w.end() > from+15 })
		if life%2 == 1 {
			if _, err := w.srv.kill(); err != nil {
				t.Fatal(err)
			}
			killed++
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // its error says that it was killed
		killed++
		if life%2 == 1 {
			w.srv.mustStart(t)
		}
	}
	out, err := os.Create(filepath.Join(w.dir, "counters"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := w.agent(out)
	from := w.end()
	await(t, "frames in Kafka", time.Minute, func() bool { return w.end() > from+15 })
	if _, err := w.srv.kill(); err != nil { // and once under an agent that goes on
		t.Fatal(err)
	}
	killed++
	w.srv.mustStart(t)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the agent's last life: %v", err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	var counters struct {
		Emitted int64            `json:"emitted_samples"`
		Frames  int64            `json:"emitted_frames"`
		Acked   int64            `json:"acked_samples"`
		Refused int64            `json:"refused_samples"`
		Lost    map[string]int64 `json:"lost_samples"`
		Spooled int64            `json:"spooled_frames"`
	}
	if err := json.Unmarshal(text, &counters); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	frames, records := w.batches()
	samples := int64(0)
	missing := 0
	for seq := int64(1); seq <= counters.Frames; seq++ {
		n, ok := frames[seq]
		if !ok {
			missing++
		}
		samples += n
	}
	if missing > 0 || int64(len(frames)) != counters.Frames || samples != counters.Emitted || counters.Acked != counters.Emitted ||
		counters.Refused != 0 || counters.Spooled != 0 || counters.Lost["spool_full"]+counters.Lost["collector_error"] != 0 {
		t.Errorf("%+v; in Kafka %d samples in %d frames, %d frames missing", counters, samples, len(frames), missing)
	}
	if counters.Emitted < 56_264 {
		t.Errorf("%d samples are less than the recording has", counters.Emitted)
	}
	w.live()
	fmt.Printf("agent: kills=%d emitted=%d in_kafka=%d lost=%d frames=%d records=%d\n",
		killed, counters.Emitted, samples, counters.Emitted-samples, counters.Frames, records)
}

// TestAgentWrongUse: what is wrong is said, with the exit code of usage.
func TestAgentWrongUse(t *testing.T) {
	dir := t.TempDir()
	capture := testenv.Data(t, "gpu/captures/linux-x86_64__nvidia-h100-mig__590.48.01.txt")
	bad := filepath.Join(dir, "bad")
	writeFile(t, bad, "tsa_acme.node-1.c2VjcmV0")
	rules := filepath.Join(dir, "rules.yaml")
	writeFile(t, rules, "rules:\n  - {pod: x}\n")
	agent := func(args ...string) []string { return append([]string{"agent"}, args...) }
	playing := func(args ...string) []string {
		return agent(append(args, "--gateway", "127.0.0.1:1", "--plaintext", "--replay", capture, "--spool-dir", filepath.Join(dir, "spool"))...)
	}
	runCLI(t, dir, map[string]cliCase{
		"no gateway":              {args: agent(), code: exitUsage, says: "--gateway is needed"},
		"gateway without a port":  {args: agent("--gateway", "host"), code: exitUsage, says: "HOST:PORT"},
		"plaintext to elsewhere":  {args: agent("--gateway", "192.0.2.1:50051", "--plaintext"), code: exitUsage, says: "on this machine"},
		"plaintext to a name":     {args: agent("--gateway", "localhost:50051", "--plaintext"), code: exitUsage, says: "on this machine"},
		"no GPUs":                 {args: agent("--gateway", "127.0.0.1:1", "--plaintext", "--collect", "rocm-smi", "--rocm-smi", "/none/rocm-smi"), code: exitUsage, says: "not on this host"},
		"unknown purchase":        {args: agent("--gateway", "127.0.0.1:1", "--plaintext", "--purchase-option", "preemptible"), code: exitUsage, says: "on_demand, spot and reserved"},
		"unknown collector":       {args: agent("--gateway", "127.0.0.1:1", "--plaintext", "--collect", "oracle"), code: exitUsage, says: "nvidia-smi"},
		"too often":               {args: agent("--gateway", "127.0.0.1:1", "--interval", "1ms"), code: exitUsage, says: "--interval"},
		"bad rules":               {args: agent("--gateway", "127.0.0.1:1", "--plaintext", "--rules", rules), code: exitUsage, says: "rules[0]"},
		"no recording":            {args: agent("--replay", filepath.Join(dir, "none")), code: exitUsage, says: "no such file"},
		"a recording of nothing":  {args: agent("--replay", rules), code: exitUsage, says: "no recording"},
		"no credential":           {args: playing(), code: exitUsage, says: credentialEnv},
		"a damaged credential":    {args: playing("--credential-file", bad), code: exitUsage, says: "damaged"},
		"the gateway stays away":  {args: playing("--drain", "1ms", "--speed", "0"), env: []string{credentialEnv + "=tsa_acme.node-1." + strings.Repeat("A", 43)}, code: exitUnavailable, says: "start again"},
		"what would be sent":      {args: agent("--replay", capture, "--speed", "0"), code: exitOK, says: `"mig_enabled":`},
		"a transport of its own":  {args: playing("--transport", "pigeon"), env: []string{credentialEnv + "=tsa_acme.node-1." + strings.Repeat("A", 43)}, code: exitUsage, says: "pigeon"},
		"an authority without it": {args: agent("--gateway", "127.0.0.1:1", "--ca-file", rules, "--replay", capture, "--spool-dir", filepath.Join(dir, "s2")), env: []string{credentialEnv + "=tsa_acme.node-1." + strings.Repeat("A", 43)}, code: exitUsage, says: "no PEM"},
	})
}
