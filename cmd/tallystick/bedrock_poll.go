package main

import (
	"context"
	"fmt"
	"time"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/ingest/bedrock/awslogs"
	"github.com/tallystick/tallystick/internal/connections"
)

// startBedrock reads the tenants' connections to invocation logs, and takes log
// files that are sent. Events of both go through the edge like all others.
func (a *app) startBedrock(server *api.Server) {
	store := connections.NewStore(a.appDB, a.ring)
	server.Mount("POST "+bedrock.UploadPath, bedrock.NewUploader(a.access.auth, a.edge, edgeKeys{a}, store, a.log))
	poller := &bedrock.Poller{
		Store: store, Sink: a.edge, Keys: edgeKeys{a}, Settings: store, Tenants: a.ring.Tenants, Open: a.openLogs,
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
