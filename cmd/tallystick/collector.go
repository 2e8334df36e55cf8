package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// heapFloor is up to where the heap of a process that only forwards may grow before
// the collector runs: with a few MiB alive, as a proxy has, it would else run at every
// few MiB of garbage, tens of times a second (measured: a twentieth of the CPU of a
// call). A heap of half of it and more is collected as usual.
const heapFloor = 64 << 20

// The percentages of garbage that are allowed, in SetGCPercent's terms.
const (
	usualGarbage = 100
	mostGarbage  = 400
)

// easeCollector keeps to heapFloor until ctx ends. A user's GOGC wins.
func easeCollector(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	defer debug.SetGCPercent(usualGarbage)
	alive := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	now := usualGarbage
	for {
		metrics.Read(alive)
		if want := allowedGarbage(alive[0].Value.Uint64()); want != now {
			debug.SetGCPercent(want) // stops the world for a moment
			now = want
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// allowedGarbage is by how many percent a heap may grow of which so many bytes are
// alive, in few steps.
func allowedGarbage(alive uint64) int {
	for percent := mostGarbage; percent > usualGarbage; percent /= 2 {
		if alive*uint64(100+percent)/100 <= heapFloor {
			return percent
		}
	}
	return usualGarbage
}
