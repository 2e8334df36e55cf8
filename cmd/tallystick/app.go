package main

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/ingest/otlp"
	"github.com/tallystick/tallystick/internal/clickhouse"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/migrations"
	"github.com/tallystick/tallystick/processors"
)

// stopTime bounds the orderly end of one part.
const stopTime = 30 * time.Second

// app is the whole program: what it opened, and the parts that run. Parts are
// started in the order of the life of an event's hops reversed, so that nothing
// is accepted before what comes after it stands, and stopped the other way.
type app struct {
	cfg *config.Config
	log *slog.Logger

	ring    *keyring.Ring
	access  access
	engines *engines

	kafkaCfg kafka.Config
	admin    *kafka.Admin
	topic    ledger.Topic
	edgeLog  *kafka.Producer // of the edge: gives up and answers 503
	stageLog *kafka.Producer // of the stages: keeps trying

	ledgerDB, processorsDB, appDB *postgres.DB
	chWriter, chReader            *clickhouse.DB
	store                         *pgstore.Store
	registrar                     *ledger.Registrar
	signing                       signing
	writer                        *ledger.Writer
	edge                          *ingest.Edge
	metering                      metering
	runner                        *processors.Runner
	httpAddr, grpcAddr            string
	otlp                          otlpAddrs
	agents                        agents
	gpuRelay                      *agent.Relay
	gateways                      otlp.Gateways
	telemetryPartitions           int32
	rates                         rates

	parts  []*part
	failed chan error

	mu     sync.Mutex     // protects closer: stores are opened side by side
	closer []func() error // in the order of opening
}

// part is something that runs until it is stopped.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// heapLimit is where the collector begins to work harder. The program needs
// about half of it under full load; a user's GOMEMLIMIT wins.
const heapLimit = 448 << 20

func newApp(cfg *config.Config, log *slog.Logger) *app {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapLimit)
	}
	return &app{cfg: cfg, log: log, failed: make(chan error, 16)}
}

// onClose has f called by close, after what was opened later is closed.
func (a *app) onClose(f func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closer = append(a.closer, f)
}

// start runs a part until stop is called. A part that ends by itself with an
// error ends the program: what it does would silently not happen any more.
func (a *app) start(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	a.parts = append(a.parts, p)
	go func() {
		defer close(p.done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			a.failed <- fmt.Errorf("%s: %w", name, err)
		}
	}()
}

// open opens everything and starts all parts of the target. What was opened
// before an error is closed by close.
func (a *app) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		a.openKeys, a.openEngines, a.openStores, a.openTopics, a.startStages, a.startServers,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// run waits until ctx ends or a part fails.
func (a *app) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-a.failed:
		return err
	}
}

// close stops the parts, the newest first, and closes what was opened.
func (a *app) close() error {
	var errs []error
	for _, p := range slices.Backward(a.parts) {
		p.cancel()
		select {
		case <-p.done:
		case <-time.After(stopTime):
			errs = append(errs, fmt.Errorf("%s did not stop within %s", p.name, stopTime))
		}
	}
	for _, f := range slices.Backward(a.closer) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (a *app) openKeys(ctx context.Context) error {
	if err := os.MkdirAll(a.cfg.DataDir, 0o711); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	ring, err := openRing(ctx, a.cfg, keyring.Options{Log: a.log})
	if err != nil {
		return err
	}
	a.ring = ring
	a.onClose(ring.Close)
	return nil
}

// tokenPath is the file with the admin token, made once.
func (a *app) tokenPath() string { return filepath.Join(a.cfg.DataDir, "admin.token") }

func (a *app) openEngines(ctx context.Context) error {
	a.engines = &engines{cfg: a.cfg, log: a.log}
	a.onClose(a.engines.stop)
	if err := a.engines.start(ctx); err != nil {
		return err
	}
	a.start("engines", a.engines.supervise)
	return nil
}

// postgresDSN and clickhouseDSN are the configured servers, or the embedded ones.
func (a *app) postgresDSN() string {
	if a.engines.postgres != nil {
		return a.engines.postgres.DSN()
	}
	return a.cfg.Postgres.DSN.Reveal()
}

func (a *app) clickhouseDSN() string {
	if a.engines.clickhouse != nil {
		return a.engines.clickhouse.DSN()
	}
	return a.cfg.ClickHouse.DSN.Reveal()
}

func (a *app) openStores(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.openPostgres(ctx) })
	if a.cfg.Target != config.TargetProxy { // it reads no reports
		g.Go(func() error { return a.openClickHouse(ctx) })
	}
	return g.Wait()
}

func (a *app) openPostgres(ctx context.Context) error {
	dsn := a.postgresDSN()
	if err := migrations.Postgres(ctx, dsn); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	dsns, signer, err := provision(ctx, dsn, a.ring)
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	open := func(role postgres.Role, conns int32) (*postgres.DB, error) {
		db, err := postgres.Open(ctx, dsns[role], signer, postgres.Options{MaxConns: conns, Name: string(role), Role: role})
		if err == nil {
			a.onClose(func() error { db.Close(); return nil })
		}
		return db, err
	}
	if a.ledgerDB, err = open(postgres.RoleLedger, 16); err != nil {
		return err
	}
	if a.processorsDB, err = open(postgres.RoleProcessors, 6); err != nil {
		return err
	}
	if a.appDB, err = open(postgres.RoleApp, 8); err != nil {
		return err
	}
	a.store = pgstore.New(a.ledgerDB)
	db, err := open(postgres.RoleApp, accessConns)
	if err != nil {
		return err
	}
	return a.openAccess(db)
}

// provision gives the database the ring's context key, and a login for each role.
func provision(ctx context.Context, dsn string, ring *keyring.Ring) (map[postgres.Role]string, *postgres.Signer, error) {
	secret := ring.ContextSecret()
	logins, err := hkdf.Key(sha256.New, secret[:], nil, "tallystick/postgres-logins", 32)
	if err != nil {
		return nil, nil, err
	}
	signer := postgres.NewSigner(1, secret)
	dsns, err := postgres.Provision(ctx, dsn, signer, [32]byte(logins))
	return dsns, signer, err
}

func (a *app) openClickHouse(ctx context.Context) (err error) {
	dsn := a.clickhouseDSN()
	if err := migrations.ClickHouseAlone(ctx, dsn, a.postgresDSN()); err != nil {
		return fmt.Errorf("clickhouse: %w", err)
	}
	if a.chWriter, err = clickhouse.Open(ctx, dsn, clickhouse.Writer); err != nil {
		return err
	}
	a.onClose(a.chWriter.Close)
	if a.chReader, err = clickhouse.Open(ctx, dsn, clickhouse.Reader); err != nil {
		return err
	}
	a.onClose(a.chReader.Close)
	return nil
}

func (a *app) openTopics(ctx context.Context) error {
	a.kafkaCfg = a.kafkaConfig()
	admin, err := kafka.NewAdmin(a.kafkaCfg)
	if err != nil {
		return err
	}
	a.admin = admin
	a.onClose(func() error { admin.Close(); return nil })
	partitions, err := a.partitions(ctx)
	if err != nil {
		return err
	}
	infos, err := admin.EnsureTopics(ctx, kafka.TopicSpec{Partitions: partitions, ReplicationFactor: int16(a.cfg.ReplicationFactor())})
	if err != nil {
		return err
	}
	events := infos[a.kafkaCfg.Topics().Events]
	a.telemetryPartitions = infos[a.kafkaCfg.Topics().Telemetry].Partitions
	a.topic = ledger.Topic{ID: events.ID, Partitions: events.Partitions}
	for _, p := range []**kafka.Producer{&a.edgeLog, &a.stageLog} {
		producer, err := kafka.NewProducer(a.kafkaCfg, kafka.ProducerOptions{})
		if err != nil {
			return err
		}
		*p = producer
		a.onClose(func() error { return closeProducer(producer) })
	}
	a.registrar = ledger.NewRegistrar(a.ring, a.store, a.stageLog, a.kafkaCfg.Topics(), a.topic)
	return a.bootstrap(ctx)
}

// partitions is how many our topics have or get. Where nobody says, topics that stand
// keep theirs, whatever the default was when they were created.
func (a *app) partitions(ctx context.Context) (int32, error) {
	if a.cfg.Kafka.Partitions == 0 {
		events := a.kafkaCfg.Topics().Events
		have, err := a.admin.Topics(ctx, events)
		if err != nil {
			return 0, err
		}
		if t, ok := have[events]; ok {
			return t.Partitions, nil
		}
	}
	return int32(a.cfg.Partitions()), nil
}

func closeProducer(p *kafka.Producer) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return p.Close(ctx)
}

func (a *app) kafkaConfig() kafka.Config {
	k := a.cfg.Kafka
	cfg := kafka.Config{
		Brokers: k.Brokers, TopicPrefix: k.TopicPrefix, AllowPlaintext: k.AllowPlaintext, Logger: a.log,
		TLS: kafka.TLS{Enabled: k.TLS.Enabled, CAFile: k.TLS.CAFile, CertFile: k.TLS.CertFile, KeyFile: k.TLS.KeyFile, ServerName: k.TLS.ServerName},
		SASL: kafka.SASL{
			Mechanism: k.SASL.Mechanism, Username: k.SASL.Username, Password: k.SASL.Password.Reveal(), PasswordFile: k.SASL.PasswordFile,
		},
	}
	if a.engines.kafka != nil {
		own := a.engines.kafka.Credentials()
		cfg.Brokers = a.engines.kafka.Brokers()
		cfg.SASL = kafka.SASL{Mechanism: own.Mechanism, Username: own.User, Password: own.Password}
	}
	return cfg
}

// bootstrap makes the system chains' keys, finishes what a killed process left
// between keys and log, and puts the price book into every partition.
func (a *app) bootstrap(ctx context.Context) error {
	systems := make([]tenant.ID, a.topic.Partitions)
	for p := range systems {
		systems[p] = tenant.System(int32(p))
	}
	if _, err := a.ring.Create(systems...); err != nil {
		return fmt.Errorf("keys of the system chains: %w", err)
	}
	if err := a.registrar.Resume(ctx); err != nil {
		return err
	}
	return a.startPrices(ctx)
}

// macKeys gives the ledger its keys out of the ring.
type macKeys struct{ ring *keyring.Ring }

func (k macKeys) MACKey(id tenant.ID, epoch uint32) ([32]byte, error) {
	return k.ring.Derive(id, keyring.MAC, epoch)
}

// edgeKeys gives the edge its keys, but for tenants that are still being made.
type edgeKeys struct{ a *app }

func (k edgeKeys) Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error) {
	// A tenant whose sealing root is destroyed is gone for whoever sends.
	if k.a.registrar.Pending(id) || k.a.ring.Destroyed(id) {
		return [keyring.KeyBytes]byte{}, keyring.ErrNoKey
	}
	return k.a.ring.Derive(id, p, epoch)
}
