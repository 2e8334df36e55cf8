package main

import (
	"context"
	"time"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/processors/gputime"
)

// startGPUTime makes usage events of GPU samples. They go back into `events` by an
// edge of their own, so that a process without listeners can do it too.
func (a *app) startGPUTime() error {
	edge, err := ingest.New(a.edgeSink(), edgeKeys{a}, a.access.auth, ingest.Options{
		Topic: a.kafkaCfg.Topics().Events, Partitions: a.topic.Partitions, EdgeID: a.edgeID() + "-" + gputime.ProducerID, Logger: a.log,
		Confidential: api.NewPostgresSubjects(a.appDB, a.ring), Mapping: a.mappingRules(),
	})
	if err != nil {
		return err
	}
	runner, err := gputime.New(gputime.Parts{
		Store: gputime.NewStore(a.processorsDB), Edge: gpuEdge{edge}, Log: a.log, Publisher: a.stageLog,
		Tenants: a.ring.Tenants, Topic: a.kafkaCfg.Topics().Telemetry, Partitions: a.topic.Partitions,
	}, gpuTimeOptions(a.cfg.GPUTime))
	if err != nil {
		return err
	}
	a.start("gputime edge", edge.Run)
	a.start("gputime", func(ctx context.Context) error { return runner.Run(ctx, a.kafkaCfg, a.alone()) })
	return nil
}

// gpuTimeOptions have every sample accounted that a door takes.
func gpuTimeOptions(cfg config.GPUTime) gputime.Options {
	return gputime.Options{
		Window:   time.Duration(cfg.WindowSeconds) * time.Second,
		Lateness: time.Duration(cfg.LatenessSeconds) * time.Second,
		MaxGap:   time.Duration(cfg.MaxGapSeconds) * time.Second,
		Horizon:  gpuMaxAge(cfg) + gputime.ClockSlack,
	}
}

// gpuMaxAge is how old a sample may be for whoever takes it.
func gpuMaxAge(cfg config.GPUTime) time.Duration {
	return time.Duration(cfg.HorizonDays) * 24 * time.Hour
}

// gpuEdge is the ordinary edge, under a principal that may only write events.
type gpuEdge struct{ edge *ingest.Edge }

// Submit implements gputime.Edge.
func (g gpuEdge) Submit(ctx context.Context, events []event.Event) (map[int]string, error) {
	who := authn.Principal{Subject: gputime.ProducerID, AllTenants: true, Scopes: authn.Ingest}
	out, err := g.edge.Submit(ctx, who, events)
	if err != nil {
		return nil, err
	}
	refused := make(map[int]string, len(out.Refusals))
	for _, r := range out.Refusals {
		refused[r.Index] = r.Field + ": " + r.Rule
	}
	return refused, nil
}
