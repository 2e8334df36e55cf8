package gpuagent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/spool"
)

// stream holds one stream open: hello, then frames from the first that is not
// acknowledged on.
func (a *Agent) stream(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// What is open when the agent is stopped ends in order: see finish.
	calling, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	greeting := time.AfterFunc(helloTimeout, hangUp)
	defer greeting.Stop()
	stopGreeting := context.AfterFunc(ctx, hangUp)
	stream, err := pb.NewAgentGatewayClient(conn).Connect(calling)
	if err != nil {
		a.toUnary++
		return err
	}
	answer, err := a.hello(stream)
	if err != nil {
		if c := status.Code(err); c != codes.Unauthenticated && c != codes.ResourceExhausted {
			a.toUnary++
		}
		return err
	}
	if !greeting.Stop() || !stopGreeting() {
		return errors.New("gpuagent: the gateway answered the hello too late")
	}
	if err := a.acknowledge(answer.GetAckedSeq()); err != nil {
		return err
	}
	if err := a.checkInterval(answer); err != nil {
		return err
	}
	a.admitted("streaming")
	a.warnOfExpiry(answer)
	s := &session{
		a: a, stream: stream, wake: make(chan struct{}, 1), heartbeat: defaultHeartbeat,
		next: int64(a.opts.Spool.Stats().Acked) + 1,
	}
	if ms := answer.GetHeartbeatIntervalMs(); ms > 0 {
		s.heartbeat = time.Duration(ms) * time.Millisecond
	}
	received := make(chan error, 1)
	go func() {
		err := s.receive()
		cancel(errGone)
		received <- err
	}()
	err = s.send(ctx)
	if errors.Is(context.Cause(ctx), errGone) {
		return <-received // the gateway's word says more than the failed send
	}
	if err == nil {
		s.finish(hangUp, received)
		return nil
	}
	hangUp()
	return err
}

// errGone: the receiving side has ended.
var errGone = errors.New("gpuagent: the stream has ended")

// hello proves who the agent is.
func (a *Agent) hello(stream grpc.BidiStreamingClient[pb.AgentFrame, pb.GatewayFrame]) (*pb.HelloAnswer, error) {
	frame, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	challenge := frame.GetChallenge()
	if len(challenge.GetNonce()) != agentauth.ChallengeBytes || challenge.GetVersion() < agentauth.ProofVersion {
		return nil, errors.New("gpuagent: the gateway does not speak this protocol")
	}
	a.warnOfClock(challenge)
	credential, err := a.opts.Credential()
	if err != nil {
		return nil, err
	}
	on, err := bindingOf(stream.Context())
	if err != nil {
		return nil, err
	}
	h := &pb.HelloProof{
		Version: agentauth.ProofVersion, TenantId: string(credential.Tenant), AgentId: credential.Agent, ProducerEpoch: a.epoch,
		AgentVersion: a.opts.Version, Host: a.opts.Host, AgentNonce: newNonce(),
	}
	agentauth.SignHello(&credential.Secret, challenge.GetNonce(), on, h)
	// A failed send says nothing; the answer to Recv does.
	if err := stream.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Hello{Hello: h}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if frame, err = stream.Recv(); err != nil {
		return nil, err
	}
	answer := frame.GetHello()
	if answer == nil || answer.GetTenantId() != h.TenantId || answer.GetAgentId() != h.AgentId || answer.GetProducerEpoch() != a.epoch {
		return nil, errors.New("gpuagent: the gateway answers another hello")
	}
	return answer, nil
}

// newNonce is 32 bytes that were never used before.
func newNonce() []byte {
	nonce := make([]byte, 32)
	rand.Read(nonce) // crypto/rand.Read never returns an error
	return nonce
}

// bindingOf ties the hello to this connection: its TLS exporter, or zeros on
// plaintext, which [Options.Dial] allows to this machine only.
func bindingOf(ctx context.Context) (agentauth.Binding, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return agentauth.Binding{}, errors.New("gpuagent: the connection is not known")
	}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		return agentauth.BindingOf(&info.State)
	}
	return agentauth.Binding{}, nil
}

// warnOfClock: samples whose times are far off are refused.
func (a *Agent) warnOfClock(c *pb.Challenge) {
	const tolerated = time.Minute
	if off := a.opts.Now().Sub(c.GetServerTime().AsTime()); c.GetServerTime() != nil && off.Abs() > tolerated {
		a.opts.Log.Warn("agent: this clock and the gateway's differ", "by", off.Round(time.Second))
	}
}

// warnOfExpiry: the secret ends because its pepper was replaced.
func (a *Agent) warnOfExpiry(answer *pb.HelloAnswer) {
	if at := answer.GetSecretExpiresAt(); at != nil {
		a.opts.Log.Warn("agent: the credential ends soon: issue a new one", "at", at.AsTime())
	}
}

// checkInterval holds the interval against what a sample counts for.
func (a *Agent) checkInterval(answer *pb.HelloAnswer) error {
	most := time.Duration(answer.GetMaxGapMs()) * time.Millisecond
	first := !a.begun
	a.begun = true
	if most <= 0 || a.opts.Interval <= most {
		return nil
	}
	err := fmt.Errorf("%w: at most %s (gputime.max_gap_seconds of the server)", ErrInterval, most)
	if first {
		return err
	}
	a.opts.Log.Error("agent: time is lost between two looks", "interval", a.opts.Interval, "err", err)
	return nil
}

// session is one admitted stream.
type session struct {
	a         *Agent
	stream    grpc.BidiStreamingClient[pb.AgentFrame, pb.GatewayFrame]
	heartbeat time.Duration
	wake      chan struct{} // capacity 1: back changed, or something was acknowledged

	next int64 // the frame to send next; of send's goroutine

	mu   sync.Mutex // protects what follows
	back int64      // go back to this frame, 0 for none
	rest time.Time  // send no frame before
}

// receive takes acknowledgements and refusals until the stream ends. It alone
// reads, and never waits for send, so that neither side can block the other.
func (s *session) receive() error {
	for {
		frame, err := s.stream.Recv()
		if err != nil {
			return err
		}
		switch body := frame.GetBody().(type) {
		case *pb.GatewayFrame_Ack:
			if body.Ack.GetProducerEpoch() == s.a.epoch {
				err = s.a.acknowledge(body.Ack.GetSeq())
			}
		case *pb.GatewayFrame_Refusal:
			err = s.refused(body.Refusal)
		}
		if err != nil {
			return err
		}
		poke(s.wake)
	}
}

// refused goes back to a frame that comes again, or counts what never is taken.
func (s *session) refused(r *pb.Refusal) error {
	if r.GetCode() == codes.InvalidArgument.String() || r.GetRefusedSamples() > 0 {
		return s.a.countRefused(r)
	}
	delay := max(time.Duration(r.GetRetryAfterMs())*time.Millisecond, 10*time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq := r.GetSeq(); seq > 0 && (s.back == 0 || seq < s.back) {
		s.back = seq
	}
	if at := s.a.opts.Now().Add(min(delay, maxBackoff)); at.After(s.rest) {
		s.rest = at
	}
	return nil
}

// countRefused counts samples that the gateway never takes.
func (a *Agent) countRefused(r *pb.Refusal) error {
	a.opts.Log.Error("agent: the gateway refused samples for ever", "frame", r.GetSeq(), "samples", r.GetRefusedSamples(), "rule", r.GetReason())
	a.mu.Lock()
	a.counts.refusedFrames++
	a.counts.refusedSamples += int64(r.GetRefusedSamples())
	a.mu.Unlock()
	return a.keep(0)
}

// ready says whether a frame may be sent now, and if not for how long not.
func (s *session) ready() (ok bool, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Only ever back: a refusal of what was sent before we went back may come after,
	// and names a frame that has yet to be sent again.
	if s.back > 0 {
		s.next, s.back = min(s.next, s.back), 0
	}
	if wait = s.rest.Sub(s.a.opts.Now()); wait > 0 {
		return false, wait
	}
	return s.next-int64(s.a.opts.Spool.Stats().Acked) <= window, s.heartbeat
}

// send sends heartbeats, inventories and frames until ctx ends (nil) or a send
// fails.
func (s *session) send(ctx context.Context) error {
	var batch spool.Batch
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	if err := s.sendState(); err != nil {
		return err
	}
	for {
		ok, wait := s.ready()
		var more <-chan error
		var stopReading context.CancelFunc = func() {}
		if ok {
			if err := s.sendFrames(&batch); err != nil {
				return err
			}
			if ok, wait = s.ready(); ok {
				more, stopReading = s.waitForFrame(ctx)
			}
		}
		pause := time.NewTimer(wait)
		var err error
		select {
		case <-ctx.Done():
			stopReading()
			pause.Stop()
			return nil
		case err = <-more:
			if errors.Is(err, context.Canceled) {
				err = nil
			}
		case <-s.wake:
		case <-pause.C:
		case <-beat.C:
			err = s.sendState()
		case <-s.a.changed:
			err = s.sendInventory()
		}
		stopReading()
		pause.Stop()
		if err != nil {
			return err
		}
	}
}

// waitForFrame tells when there is a frame to send next.
func (s *session) waitForFrame(ctx context.Context) (<-chan error, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	after := uint64(s.next - 1)
	go func() { done <- s.a.opts.Spool.Wait(ctx, after) }()
	return done, cancel
}

// sendFrames sends what there is, as far as the window and refusals allow.
func (s *session) sendFrames(batch *spool.Batch) error {
	for {
		ok, _ := s.ready()
		sp := s.a.opts.Spool
		if !ok || uint64(s.next) > sp.Stats().Last {
			return nil
		}
		if err := sp.Read(context.Background(), uint64(s.next-1), readBytes, batch); err != nil {
			return err
		}
		s.next = int64(batch.First)
		for i, rec := range batch.Records {
			seq := int64(batch.First) + int64(i)
			if i > 0 {
				if ok, _ := s.ready(); !ok || s.next != seq {
					break
				}
			}
			frame, err := s.a.frameOf(seq, rec)
			if err != nil {
				return err
			}
			if err := s.stream.Send(frame); err != nil {
				return err
			}
			s.next = seq + 1
		}
	}
}

// frameOf is a stored frame with its numbers.
func (a *Agent) frameOf(seq int64, rec []byte) (*pb.AgentFrame, error) {
	_, _, body, err := parseStored(rec)
	if err != nil {
		return nil, fmt.Errorf("%w: frame %d", ErrSpool, seq)
	}
	f := &pb.SampleFrame{}
	if err := proto.Unmarshal(body, f); err != nil {
		return nil, fmt.Errorf("%w: frame %d: %w", ErrSpool, seq, err)
	}
	f.ProducerEpoch, f.Seq = a.epoch, seq
	return &pb.AgentFrame{Body: &pb.AgentFrame_Samples{Samples: f}}, nil
}

// sendState sends inventory and heartbeat.
func (s *session) sendState() error {
	if err := s.sendInventory(); err != nil {
		return err
	}
	return s.stream.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Heartbeat{Heartbeat: s.a.heartbeat()}})
}

func (s *session) sendInventory() error {
	inventory := s.a.inventoryNow()
	if inventory == nil {
		return nil
	}
	return s.stream.Send(&pb.AgentFrame{Body: &pb.AgentFrame_Inventory{Inventory: inventory}})
}

// finish says goodbye: the newest counts, and no more frames. What is still in
// flight is acknowledged if it comes in time; else it is sent again at the next
// start.
func (s *session) finish(hangUp context.CancelFunc, received <-chan error) {
	cut := time.AfterFunc(finalTimeout, hangUp)
	defer cut.Stop()
	if s.sendState() != nil || s.stream.CloseSend() != nil {
		return
	}
	if err := <-received; !errors.Is(err, io.EOF) {
		s.a.opts.Log.Debug("agent: the stream did not end in order", "err", plain(err))
	}
}
