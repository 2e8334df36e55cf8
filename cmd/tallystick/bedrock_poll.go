package main

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/ingest/bedrock/awslogs"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/processors/plan"
)

// startBedrock reads the tenants' connections to invocation logs, and takes log
// files that are sent. Events of both go through the edge like all others; records of
// calls that the metering proxy has entries of are left out.
func (a *app) startBedrock(server *api.Server) {
	store := connections.NewStore(a.appDB, a.ring)
	coverage := plan.NewCoverage(a.appDB)
	calls := &loggedCalls{
		metered: analytics.NewMetered(analytics.NewReporter(a.chReader, coverage, time.Now), coverage),
		app:     a.appDB, topic: a.topic, wait: committing,
		ends: func(ctx context.Context) ([]int64, error) { return a.admin.EndOffsets(ctx, a.kafkaCfg.Topics().Events) },
	}
	server.Mount("POST "+bedrock.UploadPath, bedrock.NewUploader(a.access.auth, a.edge, edgeKeys{a}, store, calls, a.log))
	poller := &bedrock.Poller{
		Store: store, Sink: a.edge, Keys: edgeKeys{a}, Settings: store, Calls: calls,
		Tenants: a.ring.Tenants, Open: a.openLogs,
		Interval: time.Duration(a.cfg.Bedrock.IntervalSeconds) * time.Second, Log: a.log,
	}
	a.start("bedrock", poller.Run)
}

// openLogs opens what a connection names.
func (a *app) openLogs(ctx context.Context, c *connections.Bedrock) (bedrock.Source, error) {
	if c.Place.Source != connections.Directory {
		return awslogs.Open(ctx, c, awslogs.Options{})
	}
	if a.cfg.Bedrock.Directory == "" {
		return nil, fmt.Errorf("%w: the operator has no directory of logs (bedrock.directory)", bedrock.ErrDenied)
	}
	return bedrock.OpenDirectory(a.cfg.Bedrock.Directory, c.Place.Prefix)
}
