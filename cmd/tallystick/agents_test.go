package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/internal/agentauth"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// hello connects to the program's gateway over TLS as an agent.
func (w *accessWorld) hello(text string) (pb.AgentGateway_ConnectClient, error) {
	w.t.Helper()
	who, err := agentauth.ParseCredential(text)
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := grpc.NewClient(w.app.agents.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13})))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	s, err := pb.NewAgentGatewayClient(conn).Connect(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	first, err := s.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	p, _ := peer.FromContext(s.Context())
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		w.t.Fatal("the gateway speaks plaintext")
	}
	on, err := agentauth.BindingOf(&info.State)
	if err != nil {
		w.t.Fatal(err)
	}
	h := &pb.HelloProof{Version: agentauth.ProofVersion, TenantId: string(who.Tenant), AgentId: who.Agent, ProducerEpoch: 1, AgentNonce: make([]byte, 16)}
	agentauth.SignHello(&who.Secret, first.GetChallenge().GetNonce(), on, h)
	if err := s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Hello{Hello: h}}); err != nil {
		return nil, err
	}
	_, err = s.Recv()
	return s, err
}

// TestAgentsOfTheProgram: an agent that is registered by API sends over TLS, is
// issued a new credential after the pepper was rotated, and is cut off when it is
// revoked; and its secret stands nowhere.
func TestAgentsOfTheProgram(t *testing.T) {
	w := newAccessWorld(t)
	defer func() {
		if err := w.app.close(); err != nil {
			t.Error(err)
		}
	}()
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme","umbrella"]}`, false)
	made := w.must("/v1/agents", `{"tenant_id":"acme","name":"rack 1"}`, true)
	text, _ := made["credential"].(string)
	id, _ := made["agent"].(map[string]any)["agent_id"].(string)
	s, err := w.hello(text)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UnixMicro()
	frame := &pb.SampleFrame{ProducerEpoch: 1, Seq: 1, Samples: []*pb.GpuSample{{GpuUuid: "GPU-1", Host: "n1", EndUs: now, PowerWatts: proto.Float64(300)}}}
	if err := s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Samples{Samples: frame}}); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Recv(); err != nil || f.GetAck().GetSeq() != 1 {
		t.Fatalf("%v, %v", f, err)
	}
	w.countSamples(s, id)
	w.refuseInterval(text)
	// Another tenant's token neither sees nor ends it.
	other := w.must("/v1/tokens", `{"tenant_id":"umbrella","name":"x","scopes":["admin","read"]}`, true)["secret"].(string)
	for path, body := range map[string]string{"/v1/agents/" + id + ":revoke": `{}`, "/v1/agents/" + id + ":issue": `{}`} {
		if code, m := w.ask(other, "POST", path, body, true); code != http.StatusNotFound {
			t.Errorf("%s by another tenant: %d %v", path, code, m)
		}
	}
	if _, m := w.ask(other, "GET", "/v1/agents", "", false); strings.Contains(fmt.Sprint(m), id) {
		t.Errorf("another tenant sees %v", m)
	}
	w.rotatePepper(id, text)
	if s, err = w.hello(text); err != nil {
		t.Fatal(err)
	}
	if code, m := w.ask(w.admin, "POST", "/v1/agents/"+id+":revoke", `{"tenant_id":"acme"}`, false); code != http.StatusOK {
		t.Fatalf("revoke: %d %v", code, m)
	}
	if f, err := s.Recv(); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("after the revocation: %v, %v", f, err)
	}
	if _, err := w.hello(text); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("a revoked agent: %v", err)
	}
	if strings.Contains(string(w.log.Bytes())+w.answers.String(), text[len(text)-43:]) {
		t.Error("the secret is in the log or in an answer")
	}
}

// countSamples has an agent send what is no GPU time, and looks for it in the list.
func (w *accessWorld) countSamples(s pb.AgentGateway_ConnectClient, id string) {
	w.t.Helper()
	now := time.Now()
	frame := &pb.SampleFrame{ProducerEpoch: 1, Seq: 2, Samples: []*pb.GpuSample{
		{GpuUuid: "GPU-2", Host: "n1", StartUs: now.Add(-10 * time.Minute).UnixMicro(), EndUs: now.UnixMicro()},
		{GpuUuid: "GPU-2", Host: "n1", StartUs: now.Add(-80*time.Hour - time.Minute).UnixMicro(), EndUs: now.Add(-80 * time.Hour).UnixMicro()},
		{GpuUuid: "GPU-2", Host: "n1", EndUs: now.Add(-36 * 24 * time.Hour).UnixMicro()},
	}}
	if err := s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Samples{Samples: frame}}); err != nil {
		w.t.Fatal(err)
	}
	for range 2 { // the refusal and the acknowledgement
		if f, err := s.Recv(); err != nil {
			w.t.Fatalf("%v, %v", f, err)
		}
	}
	await(w.t, "the samples are in the list", 30*time.Second, func() bool {
		_, out := w.command("", "agents", "list", "--tenant", "acme")
		line := strings.Join(strings.Fields(out), " ")
		return strings.Contains(line, id+" rack 1") && strings.HasSuffix(line, "in force 3 1 refused (end_us: time), 1 without time, 8m0s clipped")
	})
}

// refuseInterval has an agent look at its devices less often than a sample counts for.
func (w *accessWorld) refuseInterval(credential string) {
	w.t.Helper()
	exporter := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(rw, `DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-9",modelName="H100",Hostname="n1"} 50`)
	}))
	w.t.Cleanup(exporter.Close)
	w.t.Setenv(credentialEnv, credential)
	code, out := w.command("", "agent", "--gateway", w.app.agents.addr, "--ca-file", w.ca, "--spool-dir", filepath.Join(w.t.TempDir(), "spool"),
		"--collect", "dcgm", "--dcgm-url", exporter.URL, "--interval", "5m")
	if code != exitUsage || !strings.Contains(out, "--interval 5m0s") || !strings.Contains(out, "at most 2m0s (gputime.max_gap_seconds") {
		w.t.Errorf("an interval of five minutes: exit code %d, %s", code, out)
	}
}

// rotatePepper puts a new pepper in place: both credentials are good then.
func (w *accessWorld) rotatePepper(id, old string) {
	w.t.Helper()
	path := filepath.Join(w.app.cfg.DataDir, "agent.pepper")
	before, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := agentauth.RotatePepperFile(w.t.Context(), path); err != nil {
		w.t.Fatal(err)
	}
	fresh := old
	for limit := time.Now().Add(3 * agentauth.PepperPoll); fresh == old && time.Now().Before(limit); time.Sleep(200 * time.Millisecond) {
		fresh, _ = w.must("/v1/agents/"+id+":issue", `{"tenant_id":"acme"}`, true)["credential"].(string)
	}
	after, err := os.ReadFile(path)
	if err != nil || fresh == old || !strings.HasSuffix(string(after), string(before)) {
		w.t.Fatalf("the pepper was not rotated (%v)", err)
	}
	for name, text := range map[string]string{"old": old, "new": fresh} {
		s, err := w.hello(text)
		if err != nil {
			w.t.Errorf("the %s credential: %v", name, err)
			continue
		}
		if err := s.CloseSend(); err != nil {
			w.t.Error(err)
		}
	}
}
