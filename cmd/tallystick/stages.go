package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/tallystick/tallystick/analytics"
	"github.com/tallystick/tallystick/analytics/report"
	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/api/web"
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing/candidate"
	"github.com/tallystick/tallystick/internal/transport"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/processors"
	"github.com/tallystick/tallystick/processors/plan"
	"github.com/tallystick/tallystick/processors/rollup"
)

// startStages starts hops 3 to 6.
func (a *app) startStages(context.Context) error {
	if a.cfg.Target.Runs(config.TargetProcessors) {
		if err := a.startProcessors(); err != nil {
			return err
		}
		if err := a.startGPUTime(); err != nil {
			return err
		}
	}
	if a.cfg.Target.Runs(config.TargetLedger) {
		opts, err := a.openCheckpoints()
		if err != nil {
			return err
		}
		a.writer = ledger.NewWriter(a.store, macKeys{a.ring}, a.stageLog, a.kafkaCfg.Topics(), opts, a.log)
		a.startCheckpoints()
		a.start("ledger", func(ctx context.Context) error {
			return a.writer.Run(ctx, a.kafkaCfg, a.topic, a.alone())
		})
		a.startRerates()
		a.startMapping()
		a.startBooks()
		a.startRotation()
	}
	return nil
}

func (a *app) startProcessors() (err error) {
	store := plan.NewStore(a.processorsDB)
	a.runner, err = processors.New(processors.Parts{
		Ledger: plan.NewLedger(a.processorsDB), Store: store, Snapshots: store, Sink: sink{analytics.NewWriter(a.chWriter)},
		Processors: func() []processors.Processor { return []processors.Processor{rollup.New()} }, Log: a.log,
	}, processors.Options{})
	if err != nil {
		return err
	}
	a.start("processors", func(ctx context.Context) error { return a.runner.Run(ctx, a.kafkaCfg, a.alone()) })
	return nil
}

// sink is the analytics writer as the processors' Sink: the stages know each
// other's shape, and only this file knows both.
type sink struct{ *analytics.Writer }

func (s sink) Store(ctx context.Context, p *processors.Plan) error {
	ranges := make([]analytics.Range, len(p.Ranges))
	for i, r := range p.Ranges {
		ranges[i] = analytics.Range{Partition: r.Partition, From: r.From, To: r.To}
	}
	return s.Writer.Store(ctx, p.ID, ranges)
}

// alone reports that no other process can share the work: with an embedded
// broker and one process, partitions need no consumer group.
func (a *app) alone() bool { return a.cfg.Target == config.TargetAll && a.cfg.EmbeddedKafka() }

// startServers starts the edge and the listeners.
func (a *app) startServers(ctx context.Context) error {
	if err := a.recordStart(ctx); err != nil {
		return err
	}
	tlsConfig, err := a.openTLS()
	if err != nil {
		return err
	}
	if err := a.startProxy(ctx, tlsConfig); err != nil || a.cfg.Target == config.TargetProxy {
		return err
	}
	if err := a.openAgents(ctx); err != nil {
		return err
	}
	encrypted := tlsConfig != nil
	server, err := api.New(a.apiDeps(), api.Options{TLS: tlsConfig, Version: versionString(), PageKey: a.pageKey()})
	if err != nil {
		return err
	}
	grpcOptions := append(server.ServerOptions(), ingest.ServerOptions()...)
	grpcServer := grpc.NewServer(grpcOptions...)
	server.RegisterGRPC(grpcServer)
	if a.cfg.Target.Runs(config.TargetIngest) {
		if err := a.startEdge(server, grpcServer); err != nil {
			return err
		}
		if err := a.startOTLP(ctx, tlsConfig); err != nil {
			return err
		}
	}
	if a.cfg.Target.Runs(config.TargetAPI) {
		server.Mount("/", web.Handler())
	}
	httpServer := server.HTTPServer()
	if a.httpAddr, err = a.listen(ctx, "http", a.cfg.HTTP.Listen, encrypted, func(ctx context.Context, l net.Listener) error {
		return serveHTTP(ctx, httpServer, l)
	}); err != nil {
		return err
	}
	if a.grpcAddr, err = a.listen(ctx, "grpc", a.cfg.GRPC.Listen, encrypted, func(ctx context.Context, l net.Listener) error {
		return serveGRPC(ctx, grpcServer, l)
	}); err != nil {
		return err
	}
	return a.startAgents(ctx, tlsConfig)
}

func (a *app) startEdge(server *api.Server, grpcServer *grpc.Server) error {
	edge, err := ingest.New(a.edgeSink(), edgeKeys{a}, a.access.auth, ingest.Options{
		Topic: a.kafkaCfg.Topics().Events, Partitions: a.topic.Partitions, EdgeID: a.edgeID(), Logger: a.log,
		Confidential: api.NewPostgresSubjects(a.appDB, a.ring), Mapping: a.mappingRules(),
		Denied:      a.deniedAtEdge,
		MaxInFlight: a.cfg.Limits.InFlight, MaxInFlightBytes: a.cfg.Limits.InFlightBytes,
	})
	if err != nil {
		return err
	}
	a.edge = edge
	if err := a.openGPURelay(); err != nil {
		return err
	}
	if err := a.openGateways(); err != nil {
		return err
	}
	server.Mount("POST /v1/events:batch", authn.TellPeer(edge.Handler()))
	a.mountDoors(server)
	edge.RegisterGRPC(grpcServer, server)
	a.startBedrock(server)
	a.start("edge", edge.Run)
	return nil
}

// apiDeps is what the API serves from.
func (a *app) apiDeps() api.Deps {
	d := api.Deps{Auth: a.access.auth, Audit: auditor{a.access.log, a.access.recorder}, Pipeline: a, Logger: a.log, Ready: []api.Dependency{
		{Name: "postgres", Check: a.appDB.Ping},
		{Name: "clickhouse", Check: a.chReader.Ping},
		{Name: "kafka", Check: a.stageLog.Ping},
	}}
	if a.cfg.Target.Runs(config.TargetAPI) || a.cfg.Target.Runs(config.TargetIngest) {
		d.Ledger, d.Tenants, d.Subjects = api.NewPostgresLedger(a.appDB), a, api.NewPostgresSubjects(a.appDB, a.ring)
	}
	if a.cfg.Target.Runs(config.TargetAPI) {
		d.Tokens, d.Secrets = tokenStore{a.access.tokens, a.access.cache}, a.access.secrets
		d.Providers = a.providerStore()
		if issuer := a.agents.issuer(); issuer != nil {
			d.Agents = issuer
		}
		d.AuditLog, d.AuditExporter, d.LedgerExporter = a.access.log, auditExporter{a.access.log}, ledgerExporter{a.appDB}
		d.Rerates = api.NewPostgresRerates(a.appDB, a.ring)
		d.Prices = candidate.New(a.appDB, a.ring, a.cfg.Prices.FourEyes)
		d.Connections = connections.NewStore(a.appDB, a.ring)
		d.Mapping = a.mappingRules()
		d.Keys = a.ring
		d.Checkpoints = newProofs(a.appDB)
		d.Serving = (&recoveryGate{db: a.appDB, partitions: a.topic.Partitions}).open
		d.Verifier = ledgerVerifier{a.appDB, a.ring, &publishedNotes{a.appDB, a.ring, a.cfg.Name, a.cfg.CheckpointDir()}}
		d.Evidence = evidenceMaker{a.appDB}
		reporter := analytics.NewReporter(a.chReader, plan.NewCoverage(a.appDB), time.Now)
		d.Reports, d.Conflicts = reports{reporter}, reporter
		d.Comparer = &beside{
			app: a.appDB, ring: a.ring, kafka: a.kafkaCfg, offsets: a.admin, reports: reports{reporter},
		}
	}
	return d
}

// pageKey authenticates page tokens, the same in every process of this ring.
func (a *app) pageKey() [32]byte {
	secret := a.ring.ContextSecret()
	return sha256.Sum256(append([]byte("tallystick/page-tokens\x00"), secret[:]...))
}

// reports tells the API which errors of a report pass with time.
type reports struct{ *analytics.Reporter }

func (r reports) Summary(ctx context.Context, q *report.SummaryRequest) (*report.Summary, error) {
	out, err := r.Reporter.Summary(ctx, q)
	return out, unavailable(err)
}

func (r reports) TimeSeries(ctx context.Context, q *report.TimeSeriesRequest) (*report.TimeSeries, error) {
	out, err := r.Reporter.TimeSeries(ctx, q)
	return out, unavailable(err)
}

func (r reports) Groups(ctx context.Context, q *report.GroupsRequest) (*report.Groups, error) {
	out, err := r.Reporter.Groups(ctx, q)
	return out, unavailable(err)
}

// unavailable marks an error of a store that is away. A field of the request
// that is wrong, and what a database says of our own statement, is not.
func unavailable(err error) error {
	var field *report.FieldError
	if err == nil || errors.As(err, &field) || postgres.Permanent(err) || clickhouse.Code(err) != 0 && !clickhouse.Transient(err) {
		return err
	}
	return fmt.Errorf("%w: %w", api.ErrUnavailable, err)
}

// edgeID names this instance in producer counters: kept in the data directory,
// so that a restart is the same instance with a new epoch.
func (a *app) edgeID() string {
	path := filepath.Join(a.cfg.DataDir, "edge.id")
	if b, err := os.ReadFile(path); err == nil {
		return strings.TrimSpace(string(b))
	}
	id := uuid.NewString()
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		a.log.Warn("edge id is not kept", "err", err)
	}
	return id
}

// listen opens an address and serves it in a part of its own.
func (a *app) listen(ctx context.Context, name, addr string, encrypted bool, serve func(context.Context, net.Listener) error) (string, error) {
	l, err := transport.Listen(ctx, addr, encrypted)
	if err != nil {
		return "", &exitError{exitUnavailable, fmt.Errorf("%s.listen: %w", name, err)}
	}
	a.start(name, func(ctx context.Context) error { return serve(ctx, l) })
	return l.Addr().String(), nil
}

// serveHTTP serves until ctx ends; requests in hand are finished then.
func serveHTTP(ctx context.Context, srv *http.Server, l net.Listener) error {
	serve := func() error { return srv.Serve(l) }
	if srv.TLSConfig != nil {
		serve = func() error { return srv.ServeTLS(l, "", "") }
	}
	return serveUntil(ctx, srv, serve)
}

// stopper is a server over HTTP.
type stopper interface {
	Shutdown(ctx context.Context) error
	Close() error
}

// serveUntil serves until ctx ends; requests in hand are finished then.
func serveUntil(ctx context.Context, srv stopper, serve func() error) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		limited, cancel := context.WithTimeout(context.Background(), stopTime/2)
		defer cancel()
		if srv.Shutdown(limited) != nil {
			srv.Close()
		}
	}()
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

// serveGRPC serves until ctx ends; calls in hand are finished then, and streams
// that do not end are cut.
func serveGRPC(ctx context.Context, srv *grpc.Server, l net.Listener) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		cut := time.AfterFunc(stopTime/3, srv.Stop)
		defer cut.Stop()
		srv.GracefulStop()
	}()
	if err := srv.Serve(l); err != nil {
		return err
	}
	<-stopped
	return nil
}
