package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/embedded"
)

// A dead engine is started again after minRestartDelay; where it does not start,
// ever more slowly, up to maxRestartDelay.
const (
	minRestartDelay = 100 * time.Millisecond
	maxRestartDelay = 10 * time.Second
)

// engineStopTime bounds the orderly end of one engine; after it, its process is
// killed, which loses nothing.
const engineStopTime = 20 * time.Second

// child is an engine in a process of its own.
type child interface {
	DSN() string
	Done() <-chan struct{}
	Wait() error
	Stop(ctx context.Context) error
}

// engines are the embedded engines that this process runs. What is given by
// configuration instead is not among them.
type engines struct {
	cfg *config.Config
	log *slog.Logger

	kafka *embedded.Kafka

	mu         sync.Mutex // protects the children
	postgres   child
	clickhouse child
}

type postgresChild struct{ *embedded.Postgres }

func (p postgresChild) DSN() string {
	return p.Postgres.DSN(embedded.PostgresSuperuser, "postgres")
}

type clickhouseChild struct{ *embedded.ClickHouse }

func (c clickhouseChild) DSN() string { return c.ClickHouse.DSN("default") }

// start starts the engines side by side.
func (e *engines) start(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if e.cfg.EmbeddedPostgres() {
		g.Go(func() (err error) { e.postgres, err = e.startPostgres(ctx); return err })
	}
	if e.cfg.EmbeddedClickHouse() && e.cfg.Target != config.TargetProxy {
		g.Go(func() (err error) { e.clickhouse, err = e.startClickHouse(ctx); return err })
	}
	if e.cfg.EmbeddedKafka() {
		g.Go(func() (err error) {
			e.kafka, err = embedded.StartKafka(ctx, embedded.KafkaOptions{
				DataDir: filepath.Join(e.cfg.DataDir, "kafka"), Port: e.cfg.Engines.KafkaPort,
				Partitions: e.cfg.Partitions(), Authenticate: true, Logger: e.log,
			})
			return err
		})
	}
	return startFailure(g.Wait())
}

// startFailure gives an engine that does not start its exit code: unavailable
// where something is missing or taken, conflict where the data belongs to
// another process, user or version.
func startFailure(err error) error {
	for code, causes := range map[int][]error{
		exitUnavailable: {embedded.ErrEngineMissing, embedded.ErrWrongPlatform, embedded.ErrPortTaken, embedded.ErrNoSpace},
		exitConflict:    {embedded.ErrDataDirInUse, embedded.ErrDataDirOwner, embedded.ErrNewerDataDir, embedded.ErrOlderDataDir},
	} {
		if slices.ContainsFunc(causes, func(cause error) bool { return errors.Is(err, cause) }) {
			return &exitError{code, err}
		}
	}
	return err
}

func (e *engines) startPostgres(ctx context.Context) (child, error) {
	p, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{
		DataDir: filepath.Join(e.cfg.DataDir, "postgres"), BinDir: e.cfg.Postgres.BinDir,
		EnginesDir: e.cfg.Engines.Dir, Logger: e.log, OwnProcessGroup: true, Restart: true,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded postgres: %w", err)
	}
	return postgresChild{p}, nil
}

func (e *engines) startClickHouse(ctx context.Context) (child, error) {
	lib, err := embedded.FindCHDB(e.cfg.Engines.Dir)
	if err != nil {
		return nil, fmt.Errorf("embedded clickhouse: %w", err)
	}
	c, err := embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{
		DataDir: filepath.Join(e.cfg.DataDir, "clickhouse"), LibPath: lib,
		MaxMemoryBytes: e.cfg.Engines.ClickHouseMemoryBytes, Logger: e.log,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded clickhouse: %w", err)
	}
	return clickhouseChild{c}, nil
}

// supervise starts ClickHouse again when it dies, until ctx ends; Postgres is
// started again by its own package, on the same socket, and Kafka lives in this
// process. Everybody who uses them waits and goes on by himself.
func (e *engines) supervise(ctx context.Context) error {
	e.mu.Lock()
	c := e.clickhouse
	e.mu.Unlock()
	for c != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-c.Done():
		}
		e.log.Error("engine ended, starting it again", "engine", "clickhouse", "err", c.Wait())
		next := e.startAgain(ctx)
		if next == nil {
			return nil
		}
		e.mu.Lock()
		e.clickhouse = next
		e.mu.Unlock()
		if next.DSN() != c.DSN() {
			return errors.New("clickhouse came back at another address")
		}
		c = next
	}
	<-ctx.Done()
	return nil
}

// startAgain tries for as long as it takes: what keeps an engine from starting,
// a full disk for one, may pass. It returns nil when ctx ends.
func (e *engines) startAgain(ctx context.Context) child {
	for delay := minRestartDelay; ; delay = min(2*delay, maxRestartDelay) {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		next, err := e.startClickHouse(ctx)
		if err == nil {
			return next
		}
		if ctx.Err() == nil {
			e.log.Error("engine did not start, trying again", "engine", "clickhouse", "err", err)
		}
	}
}

// stop ends the engines, the log last: the others may still be reading it.
func (e *engines) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), engineStopTime)
	defer cancel()
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, c := range []child{e.clickhouse, e.postgres} {
		if c != nil {
			errs = append(errs, c.Stop(ctx))
		}
	}
	if e.kafka != nil {
		e.kafka.Close()
	}
	return errors.Join(errs...)
}
