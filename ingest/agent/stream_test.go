package agent_test

import (
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/kafka"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func TestSamplesReachTheTopic(t *testing.T) {
	w := newWorld(t, func(o *agent.Options) { o.MaxGap = 2 * time.Minute })
	who := w.agent("acme", "agt_1")
	s := w.connect(t, who, 7)
	if a := s.answer; a.AckedSeq != 0 || a.MaxGapMs != 120_000 || a.TenantId != "acme" || a.AgentId != "agt_1" || a.ProducerEpoch != 7 || a.SecretExpiresAt != nil {
		t.Errorf("answer %v", a)
	}
	sent := samples(3)
	for seq := int64(1); seq <= 5; seq++ {
		if err := s.say(seq, sent...); err != nil {
			t.Fatal(err)
		}
	}
	s.until(t, ackOf(5))
	got := w.topic.seqs("agt_1")
	slices.Sort(got) // calls may overtake each other
	if !slices.Equal(got, []int64{1, 2, 3, 4, 5}) {
		t.Fatalf("the topic has %v", got)
	}
	b := w.topic.batches[0]
	if b.TenantId != "acme" || b.ProducerEpoch != 7 || b.GatewayId != "gw" || b.SampleCount != 3 || len(b.Samples) != 3 || time.Since(b.ReceivedAt.AsTime()) > time.Minute {
		t.Errorf("batch %v", b)
	}
	for i := range sent {
		if !proto.Equal(sent[i], b.Samples[i]) {
			t.Errorf("sample %d is %v, was %v", i, b.Samples[i], sent[i])
		}
	}
	if st := w.Stats(); st.AcceptedFrames != 5 || st.AcceptedSamples != 15 || st.Admitted != 1 || st.Streams != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestResume(t *testing.T) {
	w := newWorld(t, nil)
	who := w.agent("acme", "agt_1")
	s := w.connect(t, who, 1)
	for seq := int64(1); seq <= 3; seq++ {
		if err := s.say(seq, sample(1)); err != nil {
			t.Fatal(err)
		}
	}
	s.until(t, ackOf(3))
	s.cancel()
	again := w.connect(t, who, 1)
	if again.answer.AckedSeq != 3 {
		t.Errorf("the gateway remembers %d", again.answer.AckedSeq)
	}
	// What it has is acknowledged again, and stands in the topic once.
	for seq := int64(2); seq <= 4; seq++ {
		if err := again.say(seq, sample(1)); err != nil {
			t.Fatal(err)
		}
	}
	again.until(t, ackOf(4))
	if got := w.topic.seqs("agt_1"); len(got) != 4 {
		t.Errorf("the topic has %v", got)
	}
	// Another gateway knows it from the register.
	w.stop()
	other := &world{topic: w.topic, register: w.register, pepper: w.pepper}
	other.start(t, other.topic, other.register, nil)
	if s := other.connect(t, who, 1); s.answer.AckedSeq != 4 {
		t.Errorf("another gateway knows %d", s.answer.AckedSeq)
	}
	if s := other.connect(t, who, 2); s.answer.AckedSeq != 0 {
		t.Errorf("of another epoch it knows %d", s.answer.AckedSeq)
	}
}

// TestNothingIsAckedBeforeKafka: while Kafka does not answer there is no ack, and
// when it fails the agent is told from where to send again.
func TestNothingIsAckedBeforeKafka(t *testing.T) {
	w := newWorld(t, nil)
	failing := true
	w.topic.fail = func(b *pb.GpuSampleBatch) error {
		if failing && b.Seq == 3 {
			return kafka.ErrUnacked
		}
		return nil
	}
	s := w.connect(t, w.agent("acme", "agt_1"), 1)
	for seq := int64(1); seq <= 5; seq++ {
		if err := s.say(seq, sample(1)); err != nil {
			t.Fatal(err)
		}
	}
	got := s.until(t, refusalOf(3))
	for _, f := range got {
		if f.GetAck().GetSeq() > 2 {
			t.Errorf("acknowledged %v before Kafka", f)
		}
	}
	if r := got[len(got)-1].GetRefusal(); r.Code != "UNAVAILABLE" || r.RetryAfterMs <= 0 || r.RefusedSamples != 0 {
		t.Errorf("refusal %v", r)
	}
	w.topic.mu.Lock()
	failing = false
	w.topic.mu.Unlock()
	for seq := int64(3); seq <= 5; seq++ {
		if err := s.say(seq, sample(1)); err != nil {
			t.Fatal(err)
		}
	}
	s.until(t, ackOf(5))
	eventually(t, "the report", func() bool {
		w.register.mu.Lock()
		defer w.register.mu.Unlock()
		r := w.register.reports["acmeagt_11"]
		return r.AckedSeq == 5 && r.AcceptedFrames == 5 && r.AcceptedSamples == 5 && r.DelayedFrames["not_durable"] >= 1
	})
}

func TestOverTheRate(t *testing.T) {
	now := time.Now()
	clock := make(chan time.Duration, 1)
	clock <- 0
	w := newWorld(t, func(o *agent.Options) {
		o.StreamRate, o.TenantRate = 500, 800 // bursts of 1,000 and 1,600
		o.Now = func() time.Time { d := <-clock; clock <- d; return now.Add(d) }
	})
	s := w.connect(t, w.agent("acme", "agt_1"), 1)
	for seq := int64(1); seq <= 3; seq++ {
		if err := s.say(seq, samples(600)...); err != nil {
			t.Fatal(err)
		}
	}
	first := s.until(t, refusalOf(2))
	r := first[len(first)-1].GetRefusal()
	if r.Code != "RESOURCE_EXHAUSTED" || r.Reason != "stream_rate" || r.RetryAfterMs < 350 || r.RetryAfterMs > 450 {
		t.Errorf("refusal %v", r) // 200 missing at 500 a second
	}
	s.until(t, refusalOf(3)) // what comes after it is refused too
	// The second agent finds that the tenant has no more.
	other := w.connect(t, w.agent("acme", "agt_2"), 1)
	if err := other.say(1, samples(1000)...); err != nil {
		t.Fatal(err)
	}
	if err := other.say(2, samples(1)...); err != nil {
		t.Fatal(err)
	}
	got := other.until(t, both(ackOf(1), refusalOf(2)))
	for _, f := range got {
		if r := f.GetRefusal(); r != nil && r.Reason != "stream_rate" {
			t.Errorf("refusal %v", r)
		}
	}
	third := w.connect(t, w.agent("acme", "agt_3"), 1)
	if err := third.say(1, samples(100)...); err != nil {
		t.Fatal(err)
	}
	got = third.until(t, refusalOf(1))
	if r := got[len(got)-1].GetRefusal(); r.Reason != "tenant_rate" {
		t.Errorf("refusal %v", r)
	}
	<-clock
	clock <- 2 * time.Second
	if err := s.say(2, samples(600)...); err != nil {
		t.Fatal(err)
	}
	s.until(t, ackOf(2))
	if st := w.Stats(); st.DelayedFrames != 4 || st.AcceptedSamples != 2200 {
		t.Errorf("stats %+v", st)
	}
}

// TestBadSamplesStopNoOthers, and are told of once.
func TestBadSamplesStopNoOthers(t *testing.T) {
	w := newWorld(t, nil)
	s := w.connect(t, w.agent("acme", "agt_1"), 1)
	bad := sample(1)
	bad.PowerWatts = proto.Float64(140737488355328) // DCGM's blank
	nobody := sample(2)
	nobody.Host = ""
	if err := s.say(1, sample(0), bad, nobody, sample(3)); err != nil {
		t.Fatal(err)
	}
	if err := s.say(2, bad); err != nil {
		t.Fatal(err)
	}
	if err := s.say(3, samples(1001)...); err != nil {
		t.Fatal(err)
	}
	var refusals []*pb.Refusal
	for _, f := range s.until(t, both(ackOf(3), refusalOf(3))) {
		if r := f.GetRefusal(); r != nil {
			refusals = append(refusals, r)
		}
	}
	want := []string{"samples[1].power_watts: range", "samples[0].power_watts: range", "samples[0].samples: too_many"}
	for i, n := range []int32{2, 1, 1001} {
		if r := refusals[i]; r.Code != "INVALID_ARGUMENT" || r.RefusedSamples != n || r.Reason != want[i] {
			t.Errorf("refusal %v, want %s of %d", r, want[i], n)
		}
	}
	if err := s.say(4, sample(0)); err != nil {
		t.Fatal(err)
	}
	s.until(t, ackOf(4))
	if st := w.Stats(); st.AcceptedSamples != 3 || st.RefusedSamples != 1004 || st.AcceptedFrames != 4 {
		t.Errorf("stats %+v", st)
	}
	if got := w.topic.seqs("agt_1"); len(got) != 2 {
		t.Errorf("the topic has %v", got)
	}
}

func TestRevocationEndsStreams(t *testing.T) {
	w := newWorld(t, nil)
	who, other := w.agent("acme", "agt_1"), w.agent("acme", "agt_2")
	s, stays := w.connect(t, who, 1), w.connect(t, other, 1)
	began := time.Now()
	w.register.revoke(who.Key)
	if _, err := s.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the revoked agent's stream: %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	if _, err := connect(t.Context(), w.dial(t), who, 1); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a revoked agent's hello: %v", err)
	}
	if err := stays.say(1, sample(1)); err != nil {
		t.Fatal(err)
	}
	stays.until(t, ackOf(1))
}

// TestRevokedDuringALook: an agent that comes, and is revoked, while the gateway
// looks for revoked ones is not missed by this look and the next.
func TestRevokedDuringALook(t *testing.T) {
	w := newWorld(t, nil)
	who := w.agent("acme", "agt_1")
	conn := w.dial(t)
	came := make(chan *stream, 1)
	w.register.mu.Lock()
	w.register.looks = sync.OnceFunc(func() {
		s, err := connect(t.Context(), conn, who, 1)
		if err != nil {
			t.Error(err)
		}
		w.register.revoke(who.Key) // the number that this look is told counts it
		came <- s
	})
	w.register.mu.Unlock()
	s := <-came
	if s == nil {
		return
	}
	defer s.cancel()
	cut := time.AfterFunc(10*time.Second, s.cancel)
	defer cut.Stop()
	if _, err := s.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the revoked agent's stream: %v", err)
	}
}

// TestResumedSession: a TLS session that is resumed spares the certificates and
// nothing else, with client certificates and without. Each connection has an
// exporter of its own, to which its hello is bound, and a revoked agent is refused.
func TestResumedSession(t *testing.T) {
	own, _, ownFile := certificate(t)
	pair, err := own.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{agent.ClientCertsOff, agent.ClientCertsRequired} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, func(o *agent.Options) {
				if o.TLS, err = agent.WithClientCerts(o.TLS, mode, ownFile); err != nil {
					t.Fatal(err)
				}
			})
			who := w.agent("acme", "agt_1")
			config := &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
			if mode != agent.ClientCertsOff {
				config.Certificates = []tls.Certificate{*pair}
			}
			var before agentauth.Binding
			for n := range 3 {
				conn, err := dialGateway(w.addr, credentials.NewTLS(config))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				s, err := open(t.Context(), conn, who, 1)
				if err != nil {
					t.Fatal(err)
				}
				defer s.cancel()
				p, _ := peer.FromContext(s.Context())
				if state := p.AuthInfo.(credentials.TLSInfo).State; state.DidResume != (n > 0) || state.Version != tls.VersionTLS13 {
					t.Errorf("connection %d: resumed %v, %x", n, state.DidResume, state.Version)
				}
				if s.on == before {
					t.Error("two connections have one exporter")
				}
				wrong := *s
				wrong.on = before
				if n == 1 { // the session is the same, and a proof for the connection before is none
					if err := wrong.greet(wrong.proof()); status.Code(err) != codes.Unauthenticated {
						t.Errorf("a hello of another connection: %v", err)
					}
				} else if err := s.greet(s.proof()); err != nil && n < 2 {
					t.Error(err)
				} else if n == 2 && status.Code(err) != codes.Unauthenticated {
					t.Errorf("a revoked agent's hello: %v", err)
				}
				if before = s.on; n == 1 {
					w.register.revoke(who.Key)
				}
			}
		})
	}
}

// TestRegisterAway: agents that were in force a short while ago still come in,
// with a proof; others do not, and neither does anything that must use a nonce.
func TestRegisterAway(t *testing.T) {
	w := newWorld(t, nil)
	who, stranger := w.agent("acme", "agt_1"), w.agent("acme", "agt_2")
	w.connect(t, who, 1).cancel()
	w.register.mu.Lock()
	w.register.err = agentauth.ErrUnavailable
	w.register.mu.Unlock()
	s := w.connect(t, who, 1)
	if err := s.say(1, sample(1)); err != nil {
		t.Fatal(err)
	}
	s.until(t, ackOf(1))
	if _, err := connect(t.Context(), w.dial(t), stranger, 1); status.Code(err) != codes.Unavailable {
		t.Errorf("a stranger: %v", err)
	}
	forged := who
	forged.Secret[0] ^= 1
	if _, err := connect(t.Context(), w.dial(t), forged, 1); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a forged proof: %v", err)
	}
	if _, err := pb.NewAgentGatewayClient(w.dial(t)).SendTelemetry(t.Context(), request(who, 1, time.Now(), heartbeat(1, 1))); status.Code(err) != codes.Unavailable {
		t.Errorf("a request with a nonce: %v", err)
	}
}

func TestNewerStreamWins(t *testing.T) {
	w := newWorld(t, nil)
	who := w.agent("acme", "agt_1")
	older := w.connect(t, who, 1)
	newer := w.connect(t, who, 1)
	if _, err := older.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the older stream: %v", err)
	}
	if err := newer.say(1, sample(1)); err != nil {
		t.Fatal(err)
	}
	newer.until(t, ackOf(1))
}

func TestHeartbeatsAndInventories(t *testing.T) {
	w := newWorld(t, nil)
	s := w.connect(t, w.agent("acme", "agt_1"), 9)
	inventory := &pb.Inventory{ProducerEpoch: 9, TakenAt: timestamppb.Now(), Host: "node-1", Devices: []*pb.GpuDevice{{GpuUuid: "GPU-1"}}}
	for _, f := range []*pb.AgentFrame{heartbeat(9, 100), {Body: &pb.AgentFrame_Inventory{Inventory: inventory}}} {
		if err := s.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the report", func() bool {
		w.register.mu.Lock()
		defer w.register.mu.Unlock()
		r, v := w.register.reports["acmeagt_19"], w.register.inventories["agt_1"]
		return r.Heartbeat != nil && r.Heartbeat.EmittedSamples == 100 && r.Heartbeat.LostSamples["spool_full"] == 2 && v != nil
	})
	var kept pb.Inventory
	if err := proto.Unmarshal(w.register.inventories["agt_1"].Content, &kept); err != nil || !proto.Equal(&kept, inventory) {
		t.Errorf("kept %v, %v", &kept, err)
	}
}

// TestBadFramesEndTheStream, each for a reason that the status tells.
func TestBadFramesEndTheStream(t *testing.T) {
	w := newWorld(t, nil)
	for name, f := range map[string]*pb.AgentFrame{
		"another epoch":           samplesFrame(2, 1, sample(1)),
		"no number":               samplesFrame(1, 0, sample(1)),
		"a second hello":          {Body: &pb.AgentFrame_Hello{Hello: &pb.HelloProof{}}},
		"nothing":                 {},
		"a heartbeat of nothing":  {Body: &pb.AgentFrame_Heartbeat{Heartbeat: &pb.Heartbeat{ProducerEpoch: 1}}},
		"a negative count":        {Body: &pb.AgentFrame_Heartbeat{Heartbeat: &pb.Heartbeat{ProducerEpoch: 1, SentAt: timestamppb.Now(), AckedFrames: -1}}},
		"a heartbeat of another":  heartbeat(2, 1),
		"an inventory of another": {Body: &pb.AgentFrame_Inventory{Inventory: &pb.Inventory{ProducerEpoch: 3, TakenAt: timestamppb.Now()}}},
	} {
		s := w.connect(t, w.agent("acme", "agt_1"), 1)
		if err := s.Send(f); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if len(w.topic.batches) != 0 {
		t.Errorf("the topic has %v", w.topic.batches)
	}
}

// TestStopSettles: a gateway that stops settles what it has, says so, and asks
// its agents to come again.
func TestStopSettles(t *testing.T) {
	w := newWorld(t, nil)
	w.topic.hold = make(chan struct{})
	s := w.connect(t, w.agent("acme", "agt_1"), 1)
	if err := s.say(1, sample(1)); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); w.stop() }()
	time.AfterFunc(50*time.Millisecond, func() { close(w.topic.hold) })
	for {
		f, err := s.Recv()
		if err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the stream ended with %v", err)
			}
			break
		}
		if f.GetAck().GetSeq() != 1 {
			t.Errorf("got %v", f)
		}
	}
	<-stopped
	if r := w.register.reports["acmeagt_11"]; r.AckedSeq != 1 && len(w.topic.batches) == 1 {
		t.Errorf("the last report is %+v", r)
	}
}

func TestGoodbye(t *testing.T) {
	w := newWorld(t, nil)
	s := w.connect(t, w.agent("acme", "agt_1"), 1)
	if err := errors.Join(s.say(1, sample(1)), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	s.until(t, ackOf(1))
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := agent.New(nil, nil, nil, agent.Options{Partitions: -1, Window: -1, Deadline: -1, MaxInFlightBytes: 1})
	for _, want := range []string{"topic", "gateway_id", "partitions", "window", "deadline", "max_in_flight_bytes"} {
		if err == nil || !strings.Contains(err.Error(), "agent."+want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
