package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// admitted is an agent that has proved who it is and is in force. Only prove
// makes one, of a proof that holds; nothing else in this package speaks for an
// agent.
type admitted struct {
	agentauth.Key
	epoch int64
	until time.Time // when its secret ends; zero when nothing ends it
}

// prove checks a proof that the caller is the agent k in the epoch. The work is
// the same whether the agent exists, and whatever is wrong with the claim.
func (g *Gateway) prove(k agentauth.Key, epoch int64, formed bool, message, mac []byte) (admitted, error) {
	until, err := g.verifier.Verify(k, message, mac)
	if err != nil || !formed || !k.Valid() || epoch <= 0 {
		return admitted{}, agentauth.ErrRefused
	}
	return admitted{k, epoch, until}, nil
}

// proveHello checks the answer to a challenge.
func (g *Gateway) proveHello(challenge []byte, on agentauth.Binding, h *pb.HelloProof) (admitted, error) {
	k := agentauth.Key{Tenant: tenant.ID(h.GetTenantId()), Agent: h.GetAgentId()}
	formed := h.GetVersion() == agentauth.ProofVersion && goodNonce(h.GetAgentNonce())
	return g.prove(k, h.GetProducerEpoch(), formed, agentauth.HelloMessage(challenge, on, h), h.GetMac())
}

// proveRequest checks a request without a stream, but for its nonce.
func (g *Gateway) proveRequest(r *pb.SendTelemetryRequest) (admitted, error) {
	k := agentauth.Key{Tenant: tenant.ID(r.GetTenantId()), Agent: r.GetAgentId()}
	now := g.opts.Now().UnixMicro()
	sent, window := r.GetSentAtUs(), ClockWindow.Microseconds()
	formed := r.GetVersion() == agentauth.ProofVersion && goodNonce(r.GetNonce()) && sent >= now-window && sent <= now+window
	return g.prove(k, r.GetProducerEpoch(), formed, agentauth.FrameMessage(r), r.GetMac())
}

func goodNonce(b []byte) bool {
	return len(b) >= agentauth.MinNonceBytes && len(b) <= agentauth.MaxNonceBytes
}

// newChallenge makes a challenge for one stream.
func (g *Gateway) newChallenge() *pb.Challenge {
	nonce := make([]byte, agentauth.ChallengeBytes)
	rand.Read(nonce) // crypto/rand.Read never returns an error
	return &pb.Challenge{Nonce: nonce, Version: agentauth.ProofVersion, ServerTime: timestamppb.New(g.opts.Now())}
}

// bindingOf is what a hello on the connection of ctx is bound to. Where the
// gateway has a certificate that is the TLS exporter and nothing else; without
// one it is 32 zero bytes, of connections from this machine only.
func (g *Gateway) bindingOf(ctx context.Context) (agentauth.Binding, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return agentauth.Binding{}, agentauth.ErrRefused
	}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		return agentauth.BindingOf(&info.State)
	}
	if g.opts.TLS != nil || !fromLoopback(p.Addr) {
		return agentauth.Binding{}, agentauth.ErrRefused
	}
	return agentauth.Binding{}, nil
}

// enter finds out how an agent that has proved itself stands, and counts who was
// let in and who was not. ask asks the register. ended is for producer.attach.
func (g *Gateway) enter(ctx context.Context, who admitted, ask func() (agentauth.Standing, error)) (p *producer, ended int, err error) {
	p = g.producerOf(who)
	ended = p.ended()
	standing, err := ask()
	if errors.Is(err, agentauth.ErrUnavailable) && p.recentlyLive(g.opts.Now()) {
		standing, err = agentauth.Standing{Live: true}, nil
	}
	if err != nil && !errors.Is(err, agentauth.ErrRefused) {
		g.complain(ctx, "agents cannot be verified now", err)
		return nil, 0, errUnavailable
	}
	if err != nil || !standing.Live || !g.opts.Served(who.Tenant) || !p.admit(ended, who.epoch, standing.AckedSeq, g.opts.Now()) {
		g.denied(ctx, "not in force, or a request that came again")
		return nil, 0, errRefused
	}
	g.stats.admitted.Add(1)
	g.opts.Admitted(who.Tenant, who.Agent, peerOf(ctx))
	return p, ended, nil
}

// denied counts a proof that does not hold. What was claimed is believed by
// nobody: the audit log learns where it came from.
func (g *Gateway) denied(ctx context.Context, reason string) {
	g.stats.refusedHellos.Add(1)
	g.opts.Denied(peerOf(ctx), reason)
}

// peerOf is where a call comes from.
func peerOf(ctx context.Context) authn.Peer {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return authn.Peer{}
	}
	return authn.Peer{Addr: authn.Host(p.Addr.String())}
}

// answer admits the agent.
func (g *Gateway) answer(who admitted, acked int64) *pb.HelloAnswer {
	a := &pb.HelloAnswer{
		AckedSeq: acked, TenantId: string(who.Tenant), AgentId: who.Agent, ProducerEpoch: who.epoch,
		MaxSamples: MaxSamples, MaxFrameBytes: MaxFrameBytes, HeartbeatIntervalMs: int32(g.opts.Heartbeat.Milliseconds()),
		MaxGapMs: g.opts.MaxGap.Milliseconds(),
	}
	if !who.until.IsZero() {
		a.SecretExpiresAt = timestamppb.New(who.until)
	}
	return a
}
