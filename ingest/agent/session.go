package agent

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/kafka"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// maxUnreadRefusals bounds what waits for an agent that does not read.
const maxUnreadRefusals = 256

// session is one stream of an agent that was let in. One goroutine reads frames,
// the stream's own sends, and the batcher's settle what Kafka has answered.
type session struct {
	g      *Gateway
	who    admitted
	p      *producer
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	places chan struct{} // one element per frame that waits for Kafka
	wake   chan struct{} // cap 1: there is something to send, or to look at

	mu       sync.Mutex // protects what follows
	err      error      // why it ends; nil while it goes on
	closing  bool       // takes no more frames
	next     int64      // the number that comes next; 0 is any
	back     bool       // the agent is to go back to next
	again    time.Time  // not before then
	code     string     // why: a code and a reason of Refusal
	reason   string
	turn     int
	flight   []slot // frames that were taken and are not acknowledged, by number
	acked    int64
	ackDue   bool
	refusals []*pb.Refusal
}

// slot is a frame that was taken.
type slot struct {
	seq     int64
	turn    int
	done    bool
	samples int
	refusal *pb.Refusal      // of samples that were refused for ever
	reasons map[string]int64 // of these
}

func (g *Gateway) newSession(ctx context.Context, who admitted, p *producer) *session {
	s := &session{
		g: g, who: who, p: p, acked: p.acked(who.epoch),
		places: make(chan struct{}, g.opts.Window), wake: make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s
}

// end ends the session: no frame is taken any more.
func (s *session) end(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.closing = true
	s.mu.Unlock()
	s.cancel()
}

// over is why the session ends.
func (s *session) over() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *session) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// serve serves the stream until it ends.
func (s *session) serve(stream grpc.ServerStream) error {
	read := make(chan error, 1)
	go func() { read <- s.read(stream) }()
	stopping := s.g.stopping
	for {
		var why error
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			if err := s.over(); err != nil {
				return err
			}
			return s.ctx.Err() // the agent has gone
		case err := <-read:
			if !errors.Is(err, io.EOF) {
				return err
			}
			return s.drain(stream, nil) // it has no more to say
		case <-stopping:
			why = errStopping
		}
		if why != nil {
			return s.drain(stream, why)
		}
		if err := s.send(stream); err != nil {
			return err
		}
	}
}

// drain settles what is in flight, and ends the stream with err.
func (s *session) drain(stream grpc.ServerStream, err error) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	limit := time.NewTimer(s.g.opts.Deadline)
	defer limit.Stop()
	for {
		if sendErr := s.send(stream); sendErr != nil {
			return sendErr
		}
		s.mu.Lock()
		left := len(s.flight)
		s.mu.Unlock()
		if left == 0 {
			return err
		}
		select {
		case <-s.wake:
		case <-limit.C:
			return err
		case <-s.ctx.Done():
			return errors.Join(s.over(), err)
		}
	}
}

// send sends what is due.
func (s *session) send(stream grpc.ServerStream) error {
	s.mu.Lock()
	refusals := s.refusals
	s.refusals = nil
	var ack *pb.Ack
	if s.ackDue {
		s.ackDue, ack = false, &pb.Ack{ProducerEpoch: s.who.epoch, Seq: s.acked}
	}
	s.mu.Unlock()
	if ack != nil {
		if err := stream.SendMsg(&pb.GatewayFrame{Body: &pb.GatewayFrame_Ack{Ack: ack}}); err != nil {
			return err
		}
	}
	for _, r := range refusals {
		if err := stream.SendMsg(&pb.GatewayFrame{Body: &pb.GatewayFrame_Refusal{Refusal: r}}); err != nil {
			return err
		}
	}
	return nil
}

// read takes frames until the stream or the session ends.
func (s *session) read(stream grpc.ServerStream) error {
	for {
		raw := new(rawFrame)
		if err := stream.RecvMsg(raw); err != nil {
			return err
		}
		err := s.take(raw.bytes())
		raw.free()
		if err != nil {
			s.end(err)
			return err
		}
	}
}

// take takes one frame. An error ends the stream.
func (s *session) take(b []byte) error {
	if err := s.over(); err != nil {
		return err
	}
	num, body, err := bodyOf(b)
	if err != nil {
		return errProtocol
	}
	switch num {
	case frameSamples:
		return s.takeSamples(body)
	case frameHeartbeat:
		return s.g.takeHeartbeat(s.p, s.who, body)
	case frameInventory:
		return s.g.takeInventory(s.p, s.who, body)
	}
	return errProtocol // a second hello
}

func (s *session) takeSamples(body []byte) error {
	select {
	case s.places <- struct{}{}: // else the agent is held back
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	now := s.g.opts.Now()
	f := s.g.frames.Get().(*frame)
	defer s.g.frames.Put(f)
	if f.read(body, s.g.opts.boundsAt(now)) != nil {
		return errProtocol
	}
	if f.epoch != s.who.epoch || f.seq < 1 {
		return errEpoch
	}
	turn, taken, err := s.accept(f, now)
	if err != nil {
		return err
	}
	if !taken || len(f.good) == 0 {
		<-s.places
		if taken {
			s.settled(f.seq, turn, nil)
		}
		return nil
	}
	it := s.g.newItem(f, s.who, now)
	it.turn, it.settle = turn, s.settleItem
	return s.g.batches.submit(s.ctx, it)
}

// accept decides whether a frame is taken.
func (s *session) accept(f *frame, now time.Time) (turn int, taken bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return 0, false, nil // the stream's end says that it was not taken
	case f.seq <= s.acked || s.next != 0 && f.seq < s.next:
		s.duplicate(f.seq, now)
		return 0, false, nil
	case s.back && f.seq > s.next:
		return 0, false, s.refuse(f.seq, now)
	}
	if wait, reason, ok := s.g.allow(s.p, f.samples()); !ok {
		return 0, false, s.goBack(f.seq, codeExhausted, reason, wait, now)
	}
	s.back, s.next = false, f.seq+1
	s.flight = append(s.flight, slot{seq: f.seq, turn: s.turn, samples: len(f.good), refusal: f.refusal(), reasons: f.reasons})
	return s.turn, true, nil
}

// goBack has the agent come again, from a frame on. The caller holds mu.
func (s *session) goBack(seq int64, code, reason string, wait time.Duration, now time.Time) error {
	s.back, s.next, s.again, s.code, s.reason = true, seq, now.Add(wait), code, reason
	return s.refuse(seq, now)
}

// refuse tells the agent to come again with a frame, and counts it. The caller
// holds mu.
func (s *session) refuse(seq int64, now time.Time) error {
	if len(s.refusals) >= maxUnreadRefusals {
		return errDeaf
	}
	wait := max(time.Millisecond, s.again.Sub(now))
	s.refusals = append(s.refusals, &pb.Refusal{
		ProducerEpoch: s.who.epoch, Seq: seq, Code: s.code, Reason: s.reason, RetryAfterMs: int32(min(wait, time.Hour).Milliseconds()) + 1,
	})
	s.g.stats.delayedFrames.Add(1)
	s.p.update(s.who.epoch, now, func(r *agentauth.Report) { count(&r.DelayedFrames, s.reason, 1) })
	s.nudge()
	return nil
}

// duplicate answers a frame that was taken before. The caller holds mu.
func (s *session) duplicate(seq int64, now time.Time) {
	s.g.stats.duplicates.Add(1)
	s.p.update(s.who.epoch, now, func(r *agentauth.Report) { r.DuplicateFrames++ })
	if seq <= s.acked {
		s.ackDue = true
		s.nudge()
	}
}

// newItem makes the record of a frame.
func (g *Gateway) newItem(f *frame, who admitted, now time.Time) *item {
	value := g.values.Get().(*[]byte)
	*value = f.appendBatch((*value)[:0], who, g.opts.GatewayID, now)
	return &item{
		rec: kafka.Record{
			Topic: g.opts.Topic, Partition: who.Tenant.Partition(g.opts.Partitions), Key: []byte(who.Tenant), Value: *value, TimestampMs: now.UnixMilli(),
		},
		value: value, seq: f.seq,
	}
}

// settleItem is told what became of a frame.
func (s *session) settleItem(it *item, err error) {
	s.g.recycle(it, err)
	<-s.places
	s.settled(it.seq, it.turn, err)
}

// recycle keeps the memory of a record's value, unless it may still be written.
func (g *Gateway) recycle(it *item, err error) {
	if !errors.Is(err, kafka.ErrUnacked) {
		g.values.Put(it.value)
	}
}

// settled notes what became of a frame that was taken. Of what comes after one
// that failed nothing counts: the agent sends it again.
func (s *session) settled(seq int64, turn int, err error) {
	now := s.g.opts.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.flight, func(x slot) bool { return x.seq == seq && x.turn == turn })
	if i < 0 {
		return
	}
	x := &s.flight[i]
	switch {
	case err == nil:
	case final(err):
		x.reasons = map[string]int64{reasonTooLarge: int64(x.samples)}
		x.refusal = &pb.Refusal{ProducerEpoch: s.who.epoch, Seq: seq, Code: codeInvalid, Reason: reasonTooLarge, RefusedSamples: int32(x.samples)}
		x.samples = 0
	default:
		s.g.stats.unavailable.Add(1)
		s.g.complain(s.ctx, "samples are not durable yet; their agents send them again", err)
		s.flight = s.flight[:i]
		s.turn++
		if deaf := s.goBack(seq, codeUnavailable, reasonNotDurable, retryNotDurable, now); deaf != nil {
			s.closing, s.err = true, deaf
			s.cancel()
		}
		return
	}
	x.done = true
	s.advance(now)
}

// advance acknowledges the frames at the front that are done. The caller holds
// mu.
func (s *session) advance(now time.Time) {
	n, samples, refused := 0, 0, 0
	for n < len(s.flight) && s.flight[n].done {
		x := &s.flight[n]
		samples += x.samples
		if x.refusal != nil {
			refused += int(x.refusal.RefusedSamples)
			s.refusals = append(s.refusals, x.refusal)
		}
		n++
	}
	if n == 0 {
		return
	}
	s.acked, s.ackDue = s.flight[n-1].seq, true
	s.p.update(s.who.epoch, now, func(r *agentauth.Report) {
		r.AckedSeq = max(r.AckedSeq, s.acked)
		r.AcceptedFrames += int64(n)
		r.AcceptedSamples += int64(samples)
		for i := range s.flight[:n] {
			for reason, k := range s.flight[i].reasons {
				count(&r.RefusedSamples, reason, k)
			}
		}
	})
	s.flight = append(s.flight[:0], s.flight[n:]...)
	s.g.stats.acceptedFrames.Add(int64(n))
	s.g.stats.acceptedSamples.Add(int64(samples))
	s.g.stats.refusedSamples.Add(int64(refused))
	s.nudge()
}
