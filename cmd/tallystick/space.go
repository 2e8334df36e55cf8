package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/kafka"
)

// spaceInterval is how often the free space below the embedded broker is looked
// at. In that time far less than what must stay free can be written.
const spaceInterval = 200 * time.Millisecond

// edgeSink is where the edge writes: the broker, and nothing while the disk
// below the embedded one is nearly full. A write that fails half way could
// leave the broker's idea of a producer's sequence ahead of its log, and the
// repetition would then be acknowledged without being stored.
func (a *app) edgeSink() ingest.Log {
	if a.engines.kafka == nil {
		return a.edgeLog
	}
	g := &spaceGuard{Log: a.edgeLog}
	a.start("space", func(ctx context.Context) error {
		tick := time.NewTicker(spaceInterval)
		defer tick.Stop()
		for {
			full := !a.engines.kafka.Room()
			if g.full.Swap(full) != full {
				a.log.Warn("space below the embedded Kafka", "full", full)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return g
}

// spaceGuard refuses records while the disk is full; the edge answers 503.
type spaceGuard struct {
	ingest.Log
	full atomic.Bool
}

// ProduceBatch implements ingest.Log.
func (g *spaceGuard) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error {
	if !g.full.Load() {
		return g.Log.ProduceBatch(ctx, recs, results)
	}
	for i := range results {
		results[i] = kafka.Result{Offset: -1, Err: kafka.ErrFull}
	}
	return kafka.ErrFull
}
