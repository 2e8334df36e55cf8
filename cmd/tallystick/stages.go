package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/ledger"
)

// startStages starts hops 3 to 6.
func (a *app) startStages(context.Context) error {
	if a.cfg.Target.Runs(config.TargetLedger) {
		a.writer = ledger.NewWriter(a.store, macKeys{a.ring}, a.stageLog, a.kafkaCfg.Topics(), ledger.Options{}, a.log)
		a.start("ledger", func(ctx context.Context) error {
			return a.writer.Run(ctx, a.kafkaCfg, a.topic, a.alone())
		})
	}
	return nil
}

// alone reports that no other process can share the work: with an embedded
// broker and one process, partitions need no consumer group.
func (a *app) alone() bool { return a.cfg.Target == config.TargetAll && a.cfg.EmbeddedKafka() }

// startServers starts the edge and the listeners.
func (a *app) startServers(context.Context) error {
	mux := http.NewServeMux()
	edge, err := ingest.New(a.edgeLog, edgeKeys{a}, a.auth, ingest.Options{
		Topic: a.kafkaCfg.Topics().Events, Partitions: a.topic.Partitions, EdgeID: a.edgeID(), Logger: a.log,
	})
	if err != nil {
		return err
	}
	a.edge = edge
	mux.Handle("POST /v1/events:batch", edge.Handler())
	a.start("edge", edge.Run)
	return a.listen("http", a.cfg.HTTP.Listen, mux)
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

// listen serves HTTP until the part is stopped; requests in hand are finished.
func (a *app) listen(name, addr string, h http.Handler) error {
	tlsConfig, err := a.cfg.TLS.ServerConfig()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return &exitError{exitUnavailable, fmt.Errorf("%s.listen: %w", name, err)}
	}
	srv := &http.Server{Handler: h, TLSConfig: tlsConfig, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	a.httpAddr = l.Addr().String()
	a.start(name, func(ctx context.Context) error {
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
		serve := func() error { return srv.Serve(l) }
		if tlsConfig != nil {
			serve = func() error { return srv.ServeTLS(l, "", "") }
		}
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		<-stopped
		return nil
	})
	return nil
}
