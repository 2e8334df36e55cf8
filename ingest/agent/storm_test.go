package agent_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/tallystick/tallystick/internal/agentauth"
)

const (
	stormFrames  = 20 // of each agent
	stormSamples = 5
)

// spooling is an agent that keeps frames until they are acknowledged, as the
// reference agent does on disk.
type spooling struct {
	who            agentauth.Credential
	emitted, acked int64 // its own counters, of frames
	connects       int
}

// run connects and sends until everything is acknowledged, or ctx ends.
func (a *spooling) run(ctx context.Context, dial func() *grpc.ClientConn, all []byte) error {
	for a.acked < a.emitted && ctx.Err() == nil {
		if err := a.connected(ctx, dial(), all); err != nil && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond) // it comes again
		}
	}
	return ctx.Err()
}

func (a *spooling) connected(ctx context.Context, conn *grpc.ClientConn, all []byte) error {
	defer conn.Close() //nolint:errcheck // the agent dies or is done
	s, err := connect(ctx, conn, a.who, 1)
	if err != nil {
		return err
	}
	defer s.cancel()
	a.connects++
	a.acked = max(a.acked, s.answer.AckedSeq)
	next := a.acked + 1
	for a.acked < a.emitted {
		for ; next <= a.emitted && next <= a.acked+4; next++ {
			if err := s.SendMsg(encodedFrame(1, next, all)); err != nil {
				return err
			}
		}
		f, err := s.Recv()
		if err != nil {
			return err
		}
		if r := f.GetRefusal(); r != nil {
			return fmt.Errorf("refused: %v", r) // it goes back by coming again
		}
		a.acked = max(a.acked, f.GetAck().GetSeq())
	}
	return nil
}

// storm has agents send, cuts all of them off at once with frames in flight,
// replaces the gateway, and has all of them come back together. It returns how
// long the second half took, how many frames are lost, by the agents' counters or in
// Kafka, which also fails the test, and how many stand in Kafka twice.
func storm(t testing.TB, n int) (took time.Duration, lost, twice int) {
	t.Helper()
	r := newReal(t, n, nil)
	r.log.acked = map[string]int{}
	all := encodeSamples(stormSamples)
	agents := make([]*spooling, n)
	for i := range agents {
		agents[i] = &spooling{who: r.agents[i], emitted: stormFrames / 2}
	}
	var finished atomic.Int64
	phase := func(ctx context.Context) {
		var running sync.WaitGroup
		for _, a := range agents {
			running.Go(func() {
				if a.run(ctx, func() *grpc.ClientConn { return r.dialOnce(t) }, all) == nil {
					finished.Add(1)
				}
			})
		}
		running.Wait()
	}
	cut, stop := context.WithCancel(t.Context())
	go func() { // when a third of them is done, the others are in the middle
		for finished.Load() < int64(n/3) {
			time.Sleep(time.Millisecond)
		}
		stop()
	}()
	phase(cut)
	r.restart(t)
	for _, a := range agents {
		a.emitted = stormFrames
	}
	began := time.Now()
	whole, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	phase(whole)
	took = time.Since(began)
	for _, a := range agents {
		if a.acked != a.emitted {
			t.Errorf("%s has %d of %d acknowledged", a.who.Agent, a.acked, a.emitted)
			lost += int(a.emitted - a.acked)
		}
		for seq := int64(1); seq <= a.emitted; seq++ {
			switch n := r.log.acked[fmt.Sprint(a.who.Tenant, a.who.Agent, 1, "/", seq)]; n {
			case 0:
				lost++
			case 1:
			default:
				twice += n - 1
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d frames are lost", lost)
	}
	return took, lost, twice
}

// TestReconnectStorm: agents that are cut off all at once lose nothing, by their
// own counters and by what Kafka has.
func TestReconnectStorm(t *testing.T) {
	took, lost, twice := storm(t, 200)
	t.Logf("lost=%d took=%s twice=%d", lost, took.Round(time.Millisecond), twice)
}

// BenchmarkReconnectStorm is the same with 2,000 agents.
func BenchmarkReconnectStorm(b *testing.B) {
	for b.Loop() {
		took, _, twice := storm(b, benchAgents)
		b.ReportMetric(took.Seconds(), "s-until-all-acked")
		b.ReportMetric(float64(twice), "twice")
	}
}
