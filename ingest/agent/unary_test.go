package agent_test

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func TestRequestsWithoutAStream(t *testing.T) {
	w := newWorld(t, nil)
	who, client := w.agent("acme", "agt_1"), pb.NewAgentGatewayClient(w.dial(t))
	bad := sample(1)
	bad.GpuUtilizationPercent = proto.Float64(101)
	for seq, frame := range []*pb.AgentFrame{samplesFrame(3, 1, samples(4)...), samplesFrame(3, 2, sample(0), bad)} {
		got, err := client.SendTelemetry(t.Context(), request(who, 3, time.Now(), frame))
		if err != nil || got.Seq != int64(seq+1) {
			t.Fatalf("%v, %v", got, err)
		}
		if r := got.Refusal; (r != nil) != (seq == 1) || r != nil && (r.RefusedSamples != 1 || r.Reason != "samples[1].gpu_utilization_percent: range") {
			t.Errorf("refusal %v", r)
		}
	}
	// The same frame again is a duplicate, under another nonce.
	if got, err := client.SendTelemetry(t.Context(), request(who, 3, time.Now(), samplesFrame(3, 1, samples(4)...))); err != nil || got.Seq != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if got := w.topic.seqs("agt_1"); len(got) != 2 {
		t.Errorf("the topic has %v", got)
	}
	if st := w.Stats(); st.AcceptedSamples != 5 || st.RefusedSamples != 1 || st.DuplicateFrames != 1 {
		t.Errorf("stats %+v", st)
	}
	if _, err := client.SendTelemetry(t.Context(), request(who, 3, time.Now(), heartbeat(3, 10))); err != nil {
		t.Error(err)
	}
	// A stream goes on where requests have ended.
	if s := w.connect(t, who, 3); s.answer.AckedSeq != 2 {
		t.Errorf("the stream begins after %d", s.answer.AckedSeq)
	}
	for name, frame := range map[string]*pb.AgentFrame{
		"another epoch": samplesFrame(4, 1, sample(1)), "no number": samplesFrame(3, 0, sample(1)), "a hello": {Body: &pb.AgentFrame_Hello{Hello: &pb.HelloProof{}}}, "nothing": {},
	} {
		if _, err := client.SendTelemetry(t.Context(), request(who, 3, time.Now(), frame)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestClockAndNonce: 300 s either way are allowed, a nonce once; and however a
// request may still pass by its time, its nonce is remembered for longer.
func TestClockAndNonce(t *testing.T) {
	now := time.Now().Truncate(time.Microsecond)
	w := newWorld(t, func(o *agent.Options) { o.Now = func() time.Time { return now } })
	who, client := w.agent("acme", "agt_1"), pb.NewAgentGatewayClient(w.dial(t))
	for offset, ok := range map[time.Duration]bool{
		0: true, 300 * time.Second: true, -300 * time.Second: true,
		300*time.Second + time.Microsecond: false, -300*time.Second - time.Microsecond: false,
	} {
		r := request(who, 1, now.Add(offset), heartbeat(1, 1))
		_, err := client.SendTelemetry(t.Context(), r)
		if (err == nil) != ok || err != nil && status.Code(err) != codes.Unauthenticated {
			t.Errorf("off by %s: %v", offset, err)
		}
		if _, err := client.SendTelemetry(t.Context(), r); status.Code(err) != codes.Unauthenticated {
			t.Errorf("off by %s, again: %v", offset, err)
		}
	}
	if agentauth.NonceLife <= 2*agent.ClockWindow {
		t.Error("a nonce is forgotten while its request still passes")
	}
	short := request(who, 1, now, heartbeat(1, 1))
	short.Nonce = short.Nonce[:15]
	agentauth.SignFrame(&who.Secret, short)
	if _, err := client.SendTelemetry(t.Context(), short); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a short nonce: %v", err)
	}
}

func TestRequestsOverTheRate(t *testing.T) {
	var denied int
	w := newWorld(t, func(o *agent.Options) {
		o.StreamRate = 1
		o.Denied = func(authn.Peer, string) { denied++ }
	})
	who, client := w.agent("acme", "agt_1"), pb.NewAgentGatewayClient(w.dial(t))
	if _, err := client.SendTelemetry(t.Context(), request(who, 1, time.Now(), samplesFrame(1, 1, samples(1000)...))); err != nil {
		t.Fatal(err)
	}
	over := request(who, 1, time.Now(), samplesFrame(1, 2, samples(10)...))
	_, err := client.SendTelemetry(t.Context(), over)
	st := status.Convert(err)
	if st.Code() != codes.ResourceExhausted || len(st.Details()) != 1 {
		t.Fatalf("%v", err)
	}
	info, ok := st.Details()[0].(*errdetails.RetryInfo)
	if !ok || info.RetryDelay.AsDuration() < 5*time.Second || info.RetryDelay.AsDuration() > 11*time.Second {
		t.Errorf("details %v", st.Details())
	}
	if w.Stats().DelayedFrames != 1 || denied != 0 {
		t.Errorf("stats %+v, denied %d", w.Stats(), denied)
	}
	// What is over the limit is a nonce used all the same.
	if _, err := client.SendTelemetry(t.Context(), over); status.Code(err) != codes.Unauthenticated || denied != 1 {
		t.Errorf("again: %v, denied %d", err, denied)
	}
}

func TestRequestsThatKafkaDoesNotTake(t *testing.T) {
	w := newWorld(t, nil)
	w.topic.fail = func(*pb.GpuSampleBatch) error { return kafka.ErrUnacked }
	who, client := w.agent("acme", "agt_1"), pb.NewAgentGatewayClient(w.dial(t))
	if _, err := client.SendTelemetry(t.Context(), request(who, 1, time.Now(), samplesFrame(1, 1, sample(1)))); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	if s := w.connect(t, who, 1); s.answer.AckedSeq != 0 {
		t.Errorf("acknowledged %d", s.answer.AckedSeq)
	}
}
