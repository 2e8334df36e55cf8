package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/transport"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func TestMain(m *testing.M) {
	if os.Getenv(generatorEnv) != "" {
		if err := generate(); err != nil {
			fmt.Fprintln(os.Stderr, "generator:", err)
			os.Exit(1)
		}
		return
	}
	testenv.Main(m)
}

// topic is a Log in memory.
type topic struct {
	mu      sync.Mutex
	batches []*pb.GpuSampleBatch
	calls   int
	fail    func(b *pb.GpuSampleBatch) error // nil acknowledges
	hold    chan struct{}                    // when not nil, calls wait for it
}

func (l *topic) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) (first error) {
	l.mu.Lock()
	hold := l.hold
	l.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			for i := range results {
				results[i].Err = kafka.ErrUnacked
			}
			return kafka.ErrUnacked
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	for i := range recs {
		b := &pb.GpuSampleBatch{}
		err := proto.Unmarshal(recs[i].Value, b)
		if err == nil && l.fail != nil {
			err = l.fail(b)
		}
		if err == nil && string(recs[i].Key) != b.TenantId {
			err = errors.New("the key is not the tenant")
		}
		if err == nil {
			l.batches = append(l.batches, b)
		} else if first == nil {
			first = err
		}
		results[i].Err = err
	}
	return first
}

// seqs are the numbers of an agent's frames in the order of the log.
func (l *topic) seqs(agentID string) (out []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.batches {
		if b.AgentId == agentID {
			out = append(out, b.Seq)
		}
	}
	return out
}

// register is a Register in memory.
type register struct {
	mu      sync.Mutex
	live    map[agentauth.Key]bool
	nonces  map[string]bool
	acked   map[string]int64
	reports map[string]agentauth.Report
	version int64

	looks       func() // called before each look at the number of revocations; nil is nothing
	standing    int    // agents that were asked for
	inventories map[string]*agentauth.Inventory
	err         error
}

func newRegister() *register {
	return &register{live: map[agentauth.Key]bool{}, nonces: map[string]bool{}, acked: map[string]int64{}, reports: map[string]agentauth.Report{}, inventories: map[string]*agentauth.Inventory{}}
}

func (r *register) Standings(_ context.Context, id tenant.ID, asks []agentauth.Ask) ([]agentauth.Standing, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.standing += len(asks)
	out := make([]agentauth.Standing, len(asks))
	for i, a := range asks {
		out[i] = agentauth.Standing{Live: r.live[agentauth.Key{Tenant: id, Agent: a.Agent}], AckedSeq: r.acked[fmt.Sprint(id, a.Agent, a.Epoch)]}
	}
	return out, r.err
}

func (r *register) UseNonce(_ context.Context, k agentauth.Key, epoch int64, nonce []byte) (agentauth.Standing, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := fmt.Sprint(k, string(nonce))
	if r.err != nil {
		return agentauth.Standing{}, r.err
	}
	if r.nonces[key] || !r.live[k] {
		return agentauth.Standing{}, agentauth.ErrRefused
	}
	r.nonces[key] = true
	return agentauth.Standing{Live: true, AckedSeq: r.acked[fmt.Sprint(k.Tenant, k.Agent, epoch)]}, nil
}

func (r *register) Revocations(context.Context) (int64, error) {
	r.mu.Lock()
	looks := r.looks
	r.mu.Unlock()
	if looks != nil {
		looks()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version, r.err
}

func (r *register) Revoked(_ context.Context, id tenant.ID, agents []string) (out []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range agents {
		if !r.live[agentauth.Key{Tenant: id, Agent: a}] {
			out = append(out, a)
		}
	}
	return out, r.err
}

func (r *register) Save(_ context.Context, id tenant.ID, _ agentauth.Run, reports []agentauth.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range reports {
		key := fmt.Sprint(id, reports[i].Agent, reports[i].Epoch)
		r.reports[key] = reports[i]
		r.acked[key] = max(r.acked[key], reports[i].AckedSeq)
		if v := reports[i].Inventory; v != nil {
			r.inventories[reports[i].Agent] = v
		}
	}
	return r.err
}

func (r *register) SweepNonces(context.Context, tenant.ID) (int64, error) { return 0, r.err }

func (r *register) asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.standing
}

func (r *register) revoke(k agentauth.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, k)
	r.version++
}

// world is a gateway on a port, with a topic and a register in memory unless a
// test gives others.
type world struct {
	*agent.Gateway
	topic    *topic
	register *register
	pepper   []byte
	addr     string
	roots    *x509.CertPool // nil: plaintext
	cert     string         // the certificate's file
	stop     func()
}

// noLog is a PepperLog of a pepper that was always there.
type noLog struct{}

func (noLog) FirstSeen(context.Context, []byte) (time.Time, time.Duration, error) {
	return time.Now(), 0, nil
}
func (noLog) AnySeen(context.Context) (bool, error) { return true, nil }

func newWorld(t testing.TB, change func(*agent.Options)) *world {
	t.Helper()
	w := &world{topic: &topic{}, register: newRegister()}
	w.start(t, w.topic, w.register, change)
	return w
}

func (w *world) start(t testing.TB, log agent.Log, reg agent.Register, change func(*agent.Options)) {
	t.Helper()
	opts := agent.Options{Topic: "telemetry", GatewayID: "gw", PerAddress: 10_000, RevocationInterval: 10 * time.Millisecond, ReportInterval: 10 * time.Millisecond}
	opts.TLS, w.roots, w.cert = certificate(t)
	if change != nil {
		change(&opts)
	}
	if opts.TLS == nil {
		w.roots = nil
	}
	if w.pepper == nil {
		w.pepper = []byte(agentauth.NewPepper())
	}
	p, err := agentauth.LoadPeppers(t.Context(), agentauth.PepperText(string(w.pepper)), noLog{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.Gateway, err = agent.New(log, p, reg, opts); err != nil {
		t.Fatal(err)
	}
	l, err := transport.Listen(t.Context(), "127.0.0.1:0", opts.TLS != nil)
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	serve, stopServing := context.WithCancel(context.Background())
	run, stopRunning := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	served := make(chan struct{})
	parts.Go(func() {
		defer close(served)
		if err := w.Serve(serve, l); err != nil {
			t.Error(err)
		}
	})
	parts.Go(func() {
		if err := w.Run(run); err != nil {
			t.Error(err)
		}
	})
	w.stop = sync.OnceFunc(func() {
		stopServing()
		<-served
		stopRunning()
		parts.Wait()
	})
	t.Cleanup(w.stop)
}

// certificate is a pair for 127.0.0.1, and the pool that trusts it.
func certificate(t testing.TB) (*tls.Config, *x509.CertPool, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := transport.Load(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return c.Config(), pool, certFile
}

// agent registers an agent and returns its credential.
func (w *world) agent(id tenant.ID, name string) agentauth.Credential {
	k := agentauth.Key{Tenant: id, Agent: name}
	w.register.mu.Lock()
	w.register.live[k] = true
	w.register.mu.Unlock()
	return agentauth.Credential{Key: k, Secret: agentauth.Derive(w.pepper, k)}
}

// dial connects; each call is a connection of its own.
func (w *world) dial(t testing.TB, certs ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn := w.dialWith(t, certs)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// dialWith connects; the caller closes.
func (w *world) dialWith(t testing.TB, certs []tls.Certificate) *grpc.ClientConn {
	creds := insecure.NewCredentials()
	if w.roots != nil {
		creds = credentials.NewTLS(&tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13, Certificates: certs})
	}
	conn, err := dialGateway(w.addr, creds)
	if err != nil {
		t.Error(err)
	}
	return conn
}

// dialGateway connects as the agent does.
func dialGateway(addr string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr, grpc.WithTransportCredentials(creds), grpc.WithReadBufferSize(8<<10), grpc.WithWriteBufferSize(8<<10),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(encodedCodec{encoding.GetCodecV2("proto")})))
}

// stream is the client's side of a stream.
type stream struct {
	pb.AgentGateway_ConnectClient
	who       agentauth.Credential
	epoch     int64
	challenge []byte
	on        agentauth.Binding
	answer    *pb.HelloAnswer
	cancel    context.CancelFunc
}

// open opens a stream and reads the challenge.
func open(ctx context.Context, conn *grpc.ClientConn, who agentauth.Credential, epoch int64) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	var p peer.Peer
	c, err := pb.NewAgentGatewayClient(conn).Connect(ctx, grpc.Peer(&p))
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{AgentGateway_ConnectClient: c, who: who, epoch: epoch, cancel: cancel}
	f, err := c.Recv()
	if err != nil {
		cancel()
		return nil, err
	}
	s.challenge = f.GetChallenge().GetNonce()
	if pr, ok := peer.FromContext(c.Context()); ok {
		if info, ok := pr.AuthInfo.(credentials.TLSInfo); ok {
			if s.on, err = agentauth.BindingOf(&info.State); err != nil {
				cancel()
				return nil, err
			}
		}
	}
	return s, nil
}

// proof is a hello that holds.
func (s *stream) proof() *pb.HelloProof {
	h := &pb.HelloProof{
		Version: agentauth.ProofVersion, TenantId: string(s.who.Tenant), AgentId: s.who.Agent, ProducerEpoch: s.epoch,
		AgentVersion: "test", Host: "node-1", AgentNonce: make([]byte, 16),
	}
	rand.Read(h.AgentNonce)
	agentauth.SignHello(&s.who.Secret, s.challenge, s.on, h)
	return h
}

// greet sends a hello and reads its answer.
func (s *stream) greet(h *pb.HelloProof) error {
	if err := s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Hello{Hello: h}}); err != nil {
		return err
	}
	f, err := s.Recv()
	if err != nil {
		return err
	}
	if s.answer = f.GetHello(); s.answer == nil {
		return errors.New("no answer to the hello")
	}
	return nil
}

// connect opens a stream and says hello.
func connect(ctx context.Context, conn *grpc.ClientConn, who agentauth.Credential, epoch int64) (*stream, error) {
	s, err := open(ctx, conn, who, epoch)
	if err != nil {
		return nil, err
	}
	if err := s.greet(s.proof()); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

func (w *world) connect(t testing.TB, who agentauth.Credential, epoch int64) *stream {
	t.Helper()
	s, err := connect(t.Context(), w.dial(t), who, epoch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.cancel)
	return s
}

// sample is one that every rule lets pass.
func sample(i int) *pb.GpuSample {
	now := time.Now().UnixMicro()
	return &pb.GpuSample{
		GpuUuid: fmt.Sprintf("GPU-%08d", i), Host: "node-1", Index: proto.Uint32(uint32(i % 8)), Model: "NVIDIA H100 80GB HBM3", Vendor: "nvidia", Source: "nvml",
		StartUs: now - 10_000_000, EndUs: now, InstanceType: "p5.48xlarge", Region: "us-east-1",
		GpuUtilizationPercent: proto.Float64(97), MemoryUsedBytes: proto.Uint64(60 << 30), MemoryTotalBytes: proto.Uint64(80 << 30),
		PowerWatts: proto.Float64(655.5), TemperatureCelsius: proto.Float64(64), SmClockMhz: proto.Float64(1980), EnergyMillijoules: proto.Uint64(123_456_789),
		Workloads: []*pb.GpuWorkload{{Pid: proto.Uint32(4242), Namespace: "ml", Pod: "train-0", Team: "vision", Allocated: proto.Bool(true)}},
	}
}

func samples(n int) []*pb.GpuSample {
	out := make([]*pb.GpuSample, n)
	for i := range out {
		out[i] = sample(i)
	}
	return out
}

// say sends a numbered frame.
func (s *stream) say(seq int64, all ...*pb.GpuSample) error {
	return s.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Samples{Samples: &pb.SampleFrame{ProducerEpoch: s.epoch, Seq: seq, Samples: all}}})
}

// until reads frames until one satisfies, and returns all of them.
func (s *stream) until(t testing.TB, ok func(*pb.GatewayFrame) bool) []*pb.GatewayFrame {
	t.Helper()
	var all []*pb.GatewayFrame
	for {
		f, err := s.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		if all = append(all, f); ok(f) {
			return all
		}
	}
}

func ackOf(seq int64) func(*pb.GatewayFrame) bool {
	return func(f *pb.GatewayFrame) bool { return f.GetAck().GetSeq() == seq }
}

// both is of two conditions in any order.
func both(a, b func(*pb.GatewayFrame) bool) func(*pb.GatewayFrame) bool {
	var hadA, hadB bool
	return func(f *pb.GatewayFrame) bool {
		hadA, hadB = hadA || a(f), hadB || b(f)
		return hadA && hadB
	}
}

func refusalOf(seq int64) func(*pb.GatewayFrame) bool {
	return func(f *pb.GatewayFrame) bool { return f.GetRefusal() != nil && f.GetRefusal().GetSeq() == seq }
}

// request is a request without a stream that holds.
func request(who agentauth.Credential, epoch int64, now time.Time, f *pb.AgentFrame) *pb.SendTelemetryRequest {
	b, err := proto.Marshal(f)
	if err != nil {
		panic(err)
	}
	r := &pb.SendTelemetryRequest{
		Version: agentauth.ProofVersion, TenantId: string(who.Tenant), AgentId: who.Agent, ProducerEpoch: epoch,
		SentAtUs: now.UnixMicro(), Nonce: make([]byte, 16), Frame: b,
	}
	rand.Read(r.Nonce)
	agentauth.SignFrame(&who.Secret, r)
	return r
}

func samplesFrame(epoch, seq int64, all ...*pb.GpuSample) *pb.AgentFrame {
	return &pb.AgentFrame{Body: &pb.AgentFrame_Samples{Samples: &pb.SampleFrame{ProducerEpoch: epoch, Seq: seq, Samples: all}}}
}

func heartbeat(epoch, emitted int64) *pb.AgentFrame {
	return &pb.AgentFrame{Body: &pb.AgentFrame_Heartbeat{Heartbeat: &pb.Heartbeat{
		ProducerEpoch: epoch, SentAt: timestamppb.Now(), EmittedSamples: emitted, LostSamples: map[string]int64{"spool_full": 2},
	}}}
}

// eventually waits for something that another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s did not come about", what)
}
