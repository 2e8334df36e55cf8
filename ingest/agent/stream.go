package agent

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/internal/agentauth"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// connect serves one stream: challenge, hello, and then whatever the agent that
// the hello has proved sends.
func (g *Gateway) connect(stream grpc.ServerStream) error {
	ctx := stream.Context()
	on, err := g.bindingOf(ctx)
	if err != nil {
		g.denied(ctx, "the connection cannot be bound to")
		return errRefused
	}
	challenge := g.newChallenge()
	if err := stream.SendMsg(&pb.GatewayFrame{Body: &pb.GatewayFrame_Challenge{Challenge: challenge}}); err != nil {
		return err
	}
	hello, err := g.readHello(ctx, stream)
	if err != nil {
		return err
	}
	who, err := g.proveHello(challenge.Nonce, on, hello)
	if err != nil {
		g.denied(ctx, "the proof does not hold")
		return errRefused
	}
	p, ended, err := g.enter(ctx, who, func() (agentauth.Standing, error) {
		return g.asks.get(ctx, who.Tenant, agentauth.Ask{Agent: who.Agent, Epoch: who.epoch})
	})
	if err != nil {
		return err
	}
	s := g.newSession(ctx, who, p)
	defer s.end(errSuperseded)
	if !p.attach(s, ended) {
		g.denied(ctx, "revoked meanwhile")
		return errRefused
	}
	defer p.detach(s)
	g.stats.streams.Add(1)
	defer g.stats.streams.Add(-1)
	if err := stream.SendMsg(&pb.GatewayFrame{Body: &pb.GatewayFrame_Hello{Hello: g.answer(who, s.acked)}}); err != nil {
		return err
	}
	return s.serve(stream)
}

// readHello waits for the answer to the challenge, for a while.
func (g *Gateway) readHello(ctx context.Context, stream grpc.ServerStream) (*pb.HelloProof, error) {
	type result struct {
		hello *pb.HelloProof
		err   error
	}
	got := make(chan result, 1)
	go func() { // ends with the stream at the latest
		raw := new(rawFrame)
		if err := stream.RecvMsg(raw); err != nil {
			got <- result{err: err}
			return
		}
		defer raw.free()
		hello, err := parseHello(raw.bytes())
		got <- result{hello, err}
	}()
	limit := time.NewTimer(g.opts.HelloTimeout)
	defer limit.Stop()
	select {
	case r := <-got:
		return r.hello, r.err
	case <-limit.C:
		g.denied(ctx, "no answer to the challenge")
		return nil, errHelloTimeout
	case <-g.stopping:
		return nil, errStopping
	}
}

// parseHello reads the first frame of a stream.
func parseHello(b []byte) (*pb.HelloProof, error) {
	if len(b) > maxHelloBytes {
		return nil, errProtocol
	}
	num, body, err := bodyOf(b)
	if err != nil || num != frameHello {
		return nil, errProtocol
	}
	h := &pb.HelloProof{}
	if err := proto.Unmarshal(body, h); err != nil {
		return nil, errProtocol
	}
	return h, nil
}
