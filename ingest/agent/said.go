package agent

import (
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/internal/agentauth"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// dropUnknown decodes what is stored: a field that we do not know is not.
var dropUnknown = proto.UnmarshalOptions{DiscardUnknown: true}

// takeHeartbeat keeps what an agent says of itself. An error ends the stream.
func (g *Gateway) takeHeartbeat(p *producer, who admitted, body []byte) error {
	h := &pb.Heartbeat{}
	if err := dropUnknown.Unmarshal(body, h); err != nil || h.SentAt.CheckValid() != nil || len(h.LostSamples) > maxLostReasons {
		return errProtocol
	}
	if h.ProducerEpoch != who.epoch {
		return errEpoch
	}
	least := min(h.EmittedSamples, h.EmittedFrames, h.AckedSamples, h.AckedFrames, h.SpooledFrames, h.SpooledBytes, h.RefusedFrames, h.Reconnects)
	for reason, n := range h.LostSamples {
		least = min(least, n)
		if len(reason) > maxWord || !plain([]byte(reason)) {
			return errProtocol
		}
	}
	if least < 0 {
		return errProtocol
	}
	now := g.opts.Now()
	p.update(who.epoch, now, func(r *agentauth.Report) {
		r.Heartbeat = &agentauth.Heartbeat{
			EmittedSamples: h.EmittedSamples, EmittedFrames: h.EmittedFrames, AckedSamples: h.AckedSamples, AckedFrames: h.AckedFrames,
			LostSamples: h.LostSamples, SpooledFrames: h.SpooledFrames, SpooledBytes: h.SpooledBytes,
			RefusedFrames: h.RefusedFrames, Reconnects: h.Reconnects, SentAt: h.SentAt.AsTime(), ReceivedAt: now,
		}
	})
	return nil
}

// takeInventory keeps an agent's newest inventory. An error ends the stream.
func (g *Gateway) takeInventory(p *producer, who admitted, body []byte) error {
	v := &pb.Inventory{}
	if err := dropUnknown.Unmarshal(body, v); err != nil || v.TakenAt.CheckValid() != nil || len(v.Devices) > maxDevices || len(body) > maxInventoryBytes {
		return errProtocol
	}
	if v.ProducerEpoch != who.epoch {
		return errEpoch
	}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(v)
	if err != nil {
		return errProtocol
	}
	now := g.opts.Now()
	p.update(who.epoch, now, func(r *agentauth.Report) {
		r.Inventory = &agentauth.Inventory{Content: content, TakenAt: v.TakenAt.AsTime(), ReceivedAt: now}
	})
	return nil
}
