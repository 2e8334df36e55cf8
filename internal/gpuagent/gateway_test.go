package gpuagent

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/spool"
)

// gateway is a small stand-in for ingest/agent, which this package may not
// import: it verifies proofs and keeps frames, and fails as its test says. That
// the real one understands the agent is tested in cmd/tallystick.
type gateway struct {
	pb.UnimplementedAgentGatewayServer
	secret agentauth.Secret

	noStreams bool
	// fate says what becomes of a frame: "" is taken, "delay", "invalid" and "cut"
	// (taken, and the stream ends before the acknowledgement).
	fate func(seq int64) string

	mu        sync.Mutex
	frames    map[int64]*pb.SampleFrame
	order     []int64
	acked     int64
	maxGap    time.Duration // told in the answer to a hello
	heartbeat *pb.Heartbeat
	inventory *pb.Inventory
	hellos    int
	requests  int
	changed   chan struct{}
}

func (g *gateway) Connect(stream grpc.BidiStreamingServer[pb.AgentFrame, pb.GatewayFrame]) error {
	if g.noStreams {
		return status.Error(codes.Internal, "a proxy between us ends streams")
	}
	nonce := make([]byte, agentauth.ChallengeBytes)
	rand.Read(nonce)
	err := stream.Send(&pb.GatewayFrame{Body: &pb.GatewayFrame_Challenge{Challenge: &pb.Challenge{Nonce: nonce, Version: 1, ServerTime: timestamppb.Now()}}})
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h := first.GetHello()
	var on agentauth.Binding
	if p, ok := peer.FromContext(stream.Context()); ok && p.AuthInfo != nil {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			if on, err = agentauth.BindingOf(&info.State); err != nil {
				return err
			}
		}
	}
	mac := agentauth.Sign(&g.secret, agentauth.HelloMessage(nonce, on, h))
	if !hmac.Equal(mac[:], h.GetMac()) {
		return status.Error(codes.Unauthenticated, "no")
	}
	g.mu.Lock()
	g.hellos++
	acked, maxGap := g.acked, g.maxGap.Milliseconds()
	g.mu.Unlock()
	err = stream.Send(&pb.GatewayFrame{Body: &pb.GatewayFrame_Hello{Hello: &pb.HelloAnswer{
		AckedSeq: acked, TenantId: h.TenantId, AgentId: h.AgentId, ProducerEpoch: h.ProducerEpoch, HeartbeatIntervalMs: 20, MaxGapMs: maxGap,
	}}})
	if err != nil {
		return err
	}
	expect := acked + 1
	for {
		f, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		answer, cut := g.take(f, &expect)
		if cut {
			return status.Error(codes.Unavailable, "cut")
		}
		for _, a := range answer {
			if err := stream.Send(a); err != nil {
				return err
			}
		}
	}
}

// take keeps what came and says what to answer.
func (g *gateway) take(f *pb.AgentFrame, expect *int64) (answer []*pb.GatewayFrame, cut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer poke(g.changed)
	if h := f.GetHeartbeat(); h != nil {
		g.heartbeat = h
	}
	if i := f.GetInventory(); i != nil {
		g.inventory = i
	}
	s := f.GetSamples()
	if s == nil {
		return nil, false
	}
	refuse := func(code codes.Code, samples int) *pb.GatewayFrame {
		return &pb.GatewayFrame{Body: &pb.GatewayFrame_Refusal{Refusal: &pb.Refusal{
			ProducerEpoch: s.ProducerEpoch, Seq: *expect, Code: code.String(), RetryAfterMs: 1, RefusedSamples: int32(samples), Reason: "test",
		}}}
	}
	ack := func() *pb.GatewayFrame {
		return &pb.GatewayFrame{Body: &pb.GatewayFrame_Ack{Ack: &pb.Ack{ProducerEpoch: s.ProducerEpoch, Seq: g.acked}}}
	}
	if s.Seq > *expect {
		return nil, false // it follows one that was refused, and comes again
	}
	fate := ""
	if g.fate != nil {
		fate = g.fate(s.Seq)
	}
	if fate == "delay" {
		return []*pb.GatewayFrame{refuse(codes.ResourceExhausted, 0)}, false
	}
	*expect = s.Seq + 1
	if have := g.frames[s.Seq]; have != nil && !proto.Equal(have, s) {
		panic(fmt.Sprintf("frame %d came with other samples", s.Seq))
	}
	g.frames[s.Seq] = s
	g.order = append(g.order, s.Seq)
	g.acked = max(g.acked, s.Seq)
	switch fate {
	case "cut":
		return nil, true
	case "invalid":
		return []*pb.GatewayFrame{refuse(codes.InvalidArgument, 1), ack()}, false
	}
	return []*pb.GatewayFrame{ack()}, false
}

func (g *gateway) SendTelemetry(_ context.Context, r *pb.SendTelemetryRequest) (*pb.SendTelemetryResponse, error) {
	mac := agentauth.Sign(&g.secret, agentauth.FrameMessage(r))
	f := &pb.AgentFrame{}
	if !hmac.Equal(mac[:], r.GetMac()) || proto.Unmarshal(r.Frame, f) != nil {
		return nil, status.Error(codes.Unauthenticated, "no")
	}
	g.mu.Lock()
	g.requests++
	g.mu.Unlock()
	expect := f.GetSamples().GetSeq()
	answer, cut := g.take(f, &expect)
	if cut {
		return nil, status.Error(codes.DeadlineExceeded, "cut")
	}
	resp := &pb.SendTelemetryResponse{Seq: f.GetSamples().GetSeq()}
	for _, a := range answer {
		if r := a.GetRefusal(); r != nil && r.Code == codes.ResourceExhausted.String() {
			return nil, status.Error(codes.ResourceExhausted, "slowly")
		} else if r != nil {
			resp.Refusal = r
		}
	}
	return resp, nil
}

// world is a gateway and an agent's folder.
type world struct {
	g    *gateway
	addr string
	dir  string
	cred agentauth.Credential
	tls  credentials.TransportCredentials // of the agent
}

func newWorld(t *testing.T) *world {
	return newWorldOver(t, insecure.NewCredentials(), insecure.NewCredentials())
}

// newWorldOver is a world whose two sides speak as these credentials say.
func newWorldOver(t *testing.T, server, agent credentials.TransportCredentials) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{tls: agent, addr: l.Addr().String(), dir: t.TempDir(), g: &gateway{frames: map[int64]*pb.SampleFrame{}, changed: make(chan struct{}, 1)}}
	rand.Read(w.cred.Secret[:])
	w.cred.Key = agentauth.Key{Tenant: "acme", Agent: "node-1"}
	w.g.secret = w.cred.Secret
	srv := grpc.NewServer(grpc.Creds(server))
	pb.RegisterAgentGatewayServer(srv, w.g)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return w
}

// agent opens the folder's agent; what it opens is closed by stop.
func (w *world) agent(t *testing.T, transport string, opts spool.Options) (a *Agent, sp *spool.Spool) {
	t.Helper()
	sp, err := spool.Open(w.dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sp.Close() })
	a, err = New(Options{
		Dial: w.agentDial, Credential: w.credential, Spool: sp, Host: "node-1", Version: "test", Transport: transport,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a, sp
}

// run runs the agent; the returned function stops it and gives Run's error.
func run(t *testing.T, a *Agent) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			err = <-done
		})
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

// until waits for something that the gateway sees.
func (g *gateway) until(t *testing.T, ok func() bool) {
	t.Helper()
	for {
		g.mu.Lock()
		done := ok()
		g.mu.Unlock()
		if done {
			return
		}
		select {
		case <-g.changed:
		case <-t.Context().Done():
			t.Fatal("it did not come")
		}
	}
}

// samples are n samples that can be told apart.
func samples(from, n int) (list []*pb.GpuSample) {
	for i := range n {
		list = append(list, &pb.GpuSample{GpuUuid: "GPU-1", Host: "node-1", EndUs: int64(from + i + 1), GpuUtilizationPercent: new(0.0)})
	}
	return list
}

// got are the samples that the gateway has, in the order of their frames, and
// how often one is missing or doubled.
func (g *gateway) got(t *testing.T, want int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	next := int64(1)
	for seq := int64(1); seq <= int64(len(g.frames)); seq++ {
		f := g.frames[seq]
		if f == nil {
			t.Fatalf("frame %d is missing of %d", seq, len(g.frames))
		}
		for _, s := range f.Samples {
			if s.EndUs != next || s.GpuUtilizationPercent == nil || s.MemoryUsedBytes != nil {
				t.Fatalf("frame %d: %v, want sample %d", seq, s, next)
			}
			next++
		}
	}
	if next != int64(want)+1 {
		t.Errorf("%d samples arrived, want %d", next-1, want)
	}
}

func (w *world) agentDial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+w.addr, grpc.WithTransportCredentials(w.tls))
}

func (w *world) credential() (agentauth.Credential, error) { return w.cred, nil }

// seen is what the gateway has heard.
type seen struct {
	heartbeat                 *pb.Heartbeat
	inventory                 *pb.Inventory
	hellos, requests, arrived int
}

func (g *gateway) seen() seen {
	g.mu.Lock()
	defer g.mu.Unlock()
	return seen{g.heartbeat, g.inventory, g.hellos, g.requests, len(g.order)}
}
