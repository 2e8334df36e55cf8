package agent

import (
	"context"
	"time"

	"github.com/tallystick/tallystick/internal/agentauth"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// sendTelemetry serves one request without a stream. It is proved and its nonce
// used up before anything of its frame is looked at: one that comes again costs
// its agent no part of a limit.
func (g *Gateway) sendTelemetry(ctx context.Context, req *pb.SendTelemetryRequest) (*pb.SendTelemetryResponse, error) {
	g.stats.unaries.Add(1)
	if _, err := g.bindingOf(ctx); err != nil {
		g.denied(ctx, "the connection cannot be bound to")
		return nil, errRefused
	}
	who, err := g.proveRequest(req)
	if err != nil {
		g.denied(ctx, "the proof does not hold")
		return nil, errRefused
	}
	g.nonceUsed(who.Tenant)
	p, _, err := g.enter(ctx, who, func() (agentauth.Standing, error) {
		s, err := g.register.UseNonce(ctx, who.Key, who.epoch, req.GetNonce())
		if err != nil && !isRefused(err) {
			// Nothing stands for a nonce that nobody has remembered: unlike a hello,
			// which nobody can send twice, the request is not let in on an older word.
			err = errNonceUnknown
		}
		return s, err
	})
	if err != nil {
		return nil, err
	}
	num, body, err := bodyOf(req.GetFrame())
	if err != nil {
		return nil, errProtocol
	}
	switch num {
	case frameSamples:
		return g.sendSamples(ctx, p, who, body)
	case frameHeartbeat:
		return &pb.SendTelemetryResponse{}, g.takeHeartbeat(p, who, body)
	case frameInventory:
		return &pb.SendTelemetryResponse{}, g.takeInventory(p, who, body)
	}
	return nil, errProtocol
}

func (g *Gateway) sendSamples(ctx context.Context, p *producer, who admitted, body []byte) (*pb.SendTelemetryResponse, error) {
	now := g.opts.Now()
	f := g.frames.Get().(*frame)
	defer g.frames.Put(f)
	if f.read(body, g.opts.boundsAt(now)) != nil {
		return nil, errProtocol
	}
	if f.epoch != who.epoch || f.seq < 1 {
		return nil, errEpoch
	}
	if f.seq <= p.acked(who.epoch) {
		g.stats.duplicates.Add(1)
		p.update(who.epoch, now, func(r *agentauth.Report) { r.DuplicateFrames++ })
		return &pb.SendTelemetryResponse{Seq: f.seq}, nil
	}
	if wait, reason, ok := g.allow(p, f.samples()); !ok {
		g.stats.delayedFrames.Add(1)
		p.update(who.epoch, now, func(r *agentauth.Report) { count(&r.DelayedFrames, reason, 1) })
		return nil, tooMuch(reason, max(wait, time.Millisecond))
	}
	if len(f.good) > 0 {
		if err := g.carry(ctx, f, who, now); err != nil {
			g.stats.unavailable.Add(1)
			g.complain(ctx, "samples are not durable yet; their agents send them again", err)
			return nil, errNotDurable
		}
	}
	g.accepted(p, who, f, now)
	return &pb.SendTelemetryResponse{Seq: f.seq, Refusal: f.refusal()}, nil
}

// carry waits until Kafka has a frame.
func (g *Gateway) carry(ctx context.Context, f *frame, who admitted, now time.Time) error {
	done := make(chan error, 1)
	it := g.newItem(f, who, now)
	it.settle = func(it *item, err error) {
		g.recycle(it, err)
		done <- err
	}
	if err := g.batches.submit(ctx, it); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// accepted counts a frame that came without a stream. Such frames may overtake
// each other: the acknowledged number moves only over what lies next to it.
func (g *Gateway) accepted(p *producer, who admitted, f *frame, now time.Time) {
	g.stats.acceptedFrames.Add(1)
	g.stats.acceptedSamples.Add(int64(len(f.good)))
	g.stats.refusedSamples.Add(int64(f.refused))
	p.update(who.epoch, now, func(r *agentauth.Report) {
		if f.seq == r.AckedSeq+1 {
			r.AckedSeq = f.seq
		}
		r.AcceptedFrames++
		r.AcceptedSamples += int64(len(f.good))
		for reason, k := range f.reasons {
			count(&r.RefusedSamples, reason, k)
		}
	})
}
