package agent_test

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkAgents is what the gateway has to reach, in one line, over TLS and the real
// engines, with agents, gateway and engines on one machine:
//
//   - 2,000 streams at once, all sending flat out: samples acknowledged a second;
//   - hellos on new connections with full handshakes, of agents in a process of their
//     own;
//   - a storm of 2,000 agents that are cut off in mid-frame and come back together to
//     another gateway: frames that are lost, by the agents' own counters or in Kafka.
//
// It fails where a stream breaks, a sample is not taken, a hello is not admitted or a
// frame is lost, and not for a rate: how fast it is depends on the machine.
// In short only the storm is whole, and the rates show that it runs.
func BenchmarkAgents(b *testing.B) {
	b.Run("full", func(b *testing.B) { benchReach(b, 10*time.Second, 6000) })
	b.Run("short", func(b *testing.B) { benchReach(b, 2*time.Second, 1000) })
}

func benchReach(b *testing.B, took time.Duration, hellos int64) {
	for b.Loop() {
		r := newReal(b, benchAgents, nil)
		hello := r.sayHello(b, helloJob{Way: lean, Callers: helloCallers, Hellos: hellos}) // before 2,000 streams lie about
		l, stop := r.speakAll(b, 0)
		began, first := time.Now(), l.frames.Load()
		time.Sleep(took) // this is how long is measured, and waits for nothing
		frames, passed, streams := l.frames.Load()-first, time.Since(began), r.Stats().Streams
		stop()
		r.checkTaken(b)
		if streams != benchAgents {
			b.Errorf("%d of %d streams stand", streams, benchAgents)
		}
		r.stop()
		again, lost, twice := storm(b, benchAgents)
		fmt.Printf("\nagents: streams=%d samples_per_s=%.0f hello_per_s=%.0f storm_s=%.1f storm_twice=%d storm_agents=%d storm_lost=%d\n",
			streams, float64(frames*benchSamples)/passed.Seconds(), float64(hellos)/hello.Took.Seconds(), again.Seconds(), twice, benchAgents, lost)
	}
}
