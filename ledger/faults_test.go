package ledger_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/embedded"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/migrations"
)

// rounds is how often a fault is made: few in every run, many with
// TALLYSTICK_CHAOS=1 (nightly).
func rounds(few, many int) int {
	if os.Getenv("TALLYSTICK_CHAOS") != "" {
		return many
	}
	return few
}

// fastRetry keeps the waits of a test short.
var fastRetry = ledger.Options{MaxBatchRecords: 200, Linger: 2 * time.Millisecond, RetryMin: 5 * time.Millisecond, RetryMax: 100 * time.Millisecond}

// until polls a server until the condition holds.
func until(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

func (w *world) admin(sql string, args ...any) {
	w.t.Helper()
	w.db.Exec(w.t, sql, args...)
}

// Invariant 7: one row that the database refuses, in the middle of a batch,
// halts the partition naming that very offset, with everything before it
// ledgered; an audited quarantine makes it a rejection, and a replay agrees.
func TestRefusedRowHaltsAndIsQuarantined(t *testing.T) {
	w := newWorld(t)
	w.newTenant("acme")
	const bad = 137
	var values [][]byte
	for n := range 300 {
		values = append(values, usage("acme", n, nil))
	}
	w.put("acme", values...)
	p := tenant.ID("acme").Partition(testPartitions)
	offset := int64(bad + 1) // after the key epoch
	w.admin(fmt.Sprintf(`
		create function public.refuse() returns trigger language plpgsql as $$ begin
			if position('event-%d'::bytea in new.canonical) > 0 and new.kind = 1 then raise exception 'refused' using errcode = '22000'; end if;
			return new;
		end $$;
		create trigger refuse before insert on ledger.entry_0 for each row execute function public.refuse()`, bad))
	lw, stop := w.haltingWriter(fastRetry)
	until(t, "the partition halts", 30*time.Second, func() bool { return lw.Stats().Places()[p].Halted != nil })
	stop()
	err := lw.Stats().Places()[p].Halted
	if !errors.Is(err, ledger.ErrRefused) || !strings.Contains(err.Error(), fmt.Sprintf("offset %d:", offset)) {
		t.Fatalf("halted with %v; want ErrRefused and offset %d", err, offset)
	}
	wantKinds(t, "acme before the bad record", kinds(w.entries("acme")), fmt.Sprintf("control=1 usage=%d", bad))

	if err := pgstore.Quarantine(t.Context(), w.db.AdminDSN, pgstore.Decision{Partition: p, Offset: offset, Reason: "refused by a trigger", Operator: "test"}); err != nil {
		t.Fatal(err)
	}
	lw, stop = w.writer(fastRetry)
	w.drain(lw)
	stop()
	first := w.entries("acme")
	wantKinds(t, "acme", kinds(first), "control=1 usage=299 rejected/quarantined=1")
	if e := first[bad+1]; e.RejectReason != "quarantined" || e.Position.Offset != offset || e.BodyHash != sha256.Sum256(values[bad]) {
		t.Errorf("entry %d is %+v", e.Seq, e)
	}

	// A replay that is told of the decision gives the same bytes.
	w.db = testenv.MigratedPostgres(t)
	w.admin(`insert into ledger.partition (partition, topic_id, partitions, epoch, next_offset) values ($1, $2, $3, 1, 0)`, p, w.topic.ID, w.topic.Partitions)
	w.admin(`insert into ledger.quarantine (partition, kafka_offset, reason, operator) values ($1, $2, 'replay', 'test')`, p, offset)
	lw, stop = w.writer(ledger.Options{MaxBatchRecords: 13})
	w.drain(lw)
	stop()
	second := w.entries("acme")
	for i := range first {
		if string(first[i].Append(nil)) != string(second[i].Append(nil)) {
			t.Fatalf("entry %d differs after a replay", i+1)
		}
	}
}

// haltingWriter is writer for a test in which a partition halts: that is not an
// error of Run, and it must not fail the test.
func (w *world) haltingWriter(opts ledger.Options) (*ledger.Writer, func()) {
	w.t.Helper()
	db := w.db.Open(w.t, postgres.RoleLedger)
	lw := ledger.NewWriter(pgstore.New(db), testKeys{}, w.producer, w.cfg.Topics(), opts, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = lw.Run(ctx, w.cfg, w.topic, true); close(done) }()
	stop := func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return lw, stop
}

// A control record that asks for rules of a newer binary halts at its offset.
func TestRule06NewerRulesHalt(t *testing.T) {
	w := newWorld(t)
	w.newTenant("acme")
	w.put("acme", usage("acme", 1, nil), usage("acme", 2, nil))
	p := tenant.ID("acme").Partition(testPartitions)
	w.put(string(tenant.System(p)), event.AppendControlRecord(nil, &event.Control{Kind: event.ControlRuleVersion, Version: fmt.Sprint(pricing.RuleVersion + 1)}))
	w.put("acme", usage("acme", 3, nil))
	lw, stop := w.haltingWriter(fastRetry)
	until(t, "the partition halts", 30*time.Second, func() bool { return lw.Stats().Places()[p].Halted != nil })
	stop()
	if err := lw.Stats().Places()[p].Halted; !errors.Is(err, ledger.ErrRuleVersion) || !strings.Contains(err.Error(), "offset 3:") {
		t.Errorf("halted with %v; want ErrRuleVersion and offset 3", err)
	}
	wantKinds(t, "acme before the record", kinds(w.entries("acme")), "control=1 usage=2")
}

// chaosPostgres is a Postgres of the test's own, which it may kill.
func chaosPostgres(t *testing.T) (*embedded.Postgres, *testenv.Ledger) {
	t.Helper()
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{
		DataDir: filepath.Join(t.TempDir(), "pg"), Restart: true,
		Settings: map[string]string{"shared_buffers": "64MB", "max_wal_size": "256MB", "min_wal_size": "80MB"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = pg.Stop(ctx)
	})
	l := &testenv.Ledger{AdminDSN: pg.DSN(embedded.PostgresSuperuser, "postgres"), Signer: postgres.NewSigner(1, [32]byte{1, 2, 3})}
	if err := migrations.Postgres(t.Context(), l.AdminDSN); err != nil {
		t.Fatal(err)
	}
	if l.DSNs, err = postgres.Provision(t.Context(), l.AdminDSN, l.Signer, [32]byte{4}); err != nil {
		t.Fatal(err)
	}
	return pg, l
}

// feed produces events of acme until stop is called, which says how many.
func (w *world) feed() (stop func() int) {
	var n atomic.Int64
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond): // a steady load, not a wait
			}
			for { // as a producer does: again with the same ids until it is acknowledged
				recs := make([]kafka.Record, 10)
				at := int(n.Load())
				for i := range recs {
					recs[i] = kafka.Record{
						Topic: w.cfg.Topics().Events, Partition: tenant.ID("acme").Partition(testPartitions), Key: []byte("acme"),
						Value: usage("acme", at+i, nil), TimestampMs: time.Now().UnixMilli(),
					}
				}
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				err := w.producer.ProduceBatch(ctx, recs, nil)
				cancel()
				if err == nil {
					n.Add(10)
					break
				}
				select {
				case <-end:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
	return func() int { close(end); <-done; return int(n.Load()) }
}

// wantAll: every acknowledged event of acme once, and nothing else. Others may
// be there when their acknowledgement was lost: extra says how many at most.
func (w *world) wantAll(acked, extra int) {
	w.t.Helper()
	seen := map[string]bool{}
	for _, e := range w.entries("acme") {
		if e.Event.ID == "" {
			continue
		}
		if e.Kind.String() != "usage" || seen[e.Event.ID] {
			w.t.Fatalf("entry %d: %s %s", e.Seq, e.Kind, e.Event.ID)
		}
		seen[e.Event.ID] = true
	}
	for n := range acked {
		if !seen[fmt.Sprintf("event-%d", n)] {
			w.t.Errorf("event %d was acknowledged and is lost", n)
		}
	}
	if len(seen) > acked+extra {
		w.t.Errorf("%d events in the ledger, %d acknowledged", len(seen), acked)
	}
}

// Postgres dies by kill -9 and comes back, again and again, under load.
func TestPostgresKilledUnderLoad(t *testing.T) {
	w := newWorld(t)
	pg, l := chaosPostgres(t)
	w.db = l
	w.newTenant("acme")
	lw, _ := w.writer(fastRetry)
	stop := w.feed()
	const few, many = 3, 20
	for range rounds(few, many) {
		before := lw.Stats().Counts().Entries
		until(t, "the writer writes", time.Minute, func() bool { return lw.Stats().Counts().Entries > before+200 })
		pid := pg.PID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "Postgres is back", time.Minute, func() bool { return pg.PID() != pid })
	}
	acked := stop()
	w.drain(lw)
	w.wantAll(acked, 10)
	t.Logf("%d events, %d kills", acked, rounds(few, many))
}

// Postgres is stopped for a while without dying: nothing answers.
func TestPostgresPaused(t *testing.T) {
	w := newWorld(t)
	pg, l := chaosPostgres(t)
	w.db = l
	w.newTenant("acme")
	lw, _ := w.writer(fastRetry)
	stop := w.feed()
	for range rounds(1, 10) {
		before := lw.Stats().Counts().Entries
		until(t, "the writer writes", time.Minute, func() bool { return lw.Stats().Counts().Entries > before+100 })
		pids := append(childrenOf(t, pg.PID()), pg.PID())
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
		time.Sleep(2 * time.Second) // the fault itself
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	acked := stop()
	w.drain(lw)
	w.wantAll(acked, 10)
}

func childrenOf(t *testing.T, pid int) (pids []int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(text)) {
		var child int
		if _, err := fmt.Sscan(f, &child); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// The broker goes away and comes back under a running writer and producer.
func TestBrokerRestarted(t *testing.T) {
	dir := t.TempDir()
	begin := func() *embedded.Kafka {
		k, err := embedded.StartKafka(t.Context(), embedded.KafkaOptions{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := begin()
	defer func() { k.Close() }()
	cred := k.Credentials()
	w := newWorldOn(t, kafka.Config{Brokers: k.Brokers(), SASL: kafka.SASL{Mechanism: cred.Mechanism, Username: cred.User, Password: cred.Password}})
	w.newTenant("acme")
	lw, _ := w.writer(fastRetry)
	stop := w.feed()
	for range rounds(2, 20) {
		before := lw.Stats().Counts().Entries
		until(t, "the writer writes", time.Minute, func() bool { return lw.Stats().Counts().Entries > before+200 })
		k.Close()
		time.Sleep(200 * time.Millisecond) // the fault itself
		k = begin()
	}
	acked := stop()
	w.drain(lw)
	w.wantAll(acked, 10*rounds(2, 20)+10)
}

// A writer process is stopped (SIGSTOP) in the middle of its work; another one
// takes over and finishes; the first wakes up and believes to be the writer.
func TestStoppedWriterWakesUpFenced(t *testing.T) {
	w := newWorld(t)
	w.newTenant("acme")
	p := tenant.ID("acme").Partition(testPartitions)
	const perRound = 4000
	for n := range rounds(2, 20) {
		from := w.nextOffset(p)
		values := make([][]byte, perRound)
		for i := range values {
			values[i] = usage("acme", n*perRound+i, nil)
		}
		w.put("acme", values...)
		z := w.zombie(t)
		until(t, "the zombie writes", time.Minute, func() bool { return w.nextOffset(p) > from })
		if err := z.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		lw, stop := w.writer(fastRetry)
		until(t, "the other took over", time.Minute, func() bool { return lw.Stats().Places()[p].NextOffset > from })
		if err := z.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		w.put("acme", usage("acme", 1_000_000+n, nil))
		time.Sleep(200 * time.Millisecond) // both believe to be the writer
		_ = z.Process.Kill()
		_ = z.Wait()
		w.drain(lw)
		stop()
	}
	wantKinds(t, "acme", kinds(w.entries("acme")), fmt.Sprintf("control=1 usage=%d", (perRound+1)*rounds(2, 20)))
}

func (w *world) nextOffset(p int32) (next int64) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.db.AdminDSN)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	err = conn.QueryRow(w.t.Context(), "select coalesce(max(next_offset), 0) from ledger.partition where partition = $1", p).Scan(&next)
	if err != nil {
		w.t.Fatal(err)
	}
	return next
}

// zombie starts this test binary as a process that does nothing but write.
func (w *world) zombie(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestZombieProcess$")
	cmd.Env = append(os.Environ(), "TALLYSTICK_TEST_ZOMBIE=1", "Z_BROKERS="+strings.Join(w.cfg.Brokers, ","), "Z_PREFIX="+w.cfg.TopicPrefix,
		"Z_MECHANISM="+w.cfg.SASL.Mechanism, "Z_USER="+w.cfg.SASL.Username, "Z_PASSWORD="+w.cfg.SASL.Password,
		"Z_DSN="+w.db.DSNs[postgres.RoleLedger], fmt.Sprintf("Z_TOPIC=%x", w.topic.ID))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// TestZombieProcess is the process that TestStoppedWriterWakesUpFenced starts;
// by itself it has nothing to do.
func TestZombieProcess(t *testing.T) {
	if os.Getenv("TALLYSTICK_TEST_ZOMBIE") == "" {
		return
	}
	cfg := kafka.Config{
		Brokers: strings.Split(os.Getenv("Z_BROKERS"), ","), TopicPrefix: os.Getenv("Z_PREFIX"), AllowPlaintext: true,
		SASL: kafka.SASL{Mechanism: os.Getenv("Z_MECHANISM"), Username: os.Getenv("Z_USER"), Password: os.Getenv("Z_PASSWORD")},
	}
	topic := ledger.Topic{Partitions: testPartitions}
	if n, err := hex.Decode(topic.ID[:], []byte(os.Getenv("Z_TOPIC"))); err != nil || n != len(topic.ID) {
		t.Fatal("Z_TOPIC is no topic id")
	}
	producer, err := kafka.NewProducer(cfg, kafka.ProducerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(t.Context(), os.Getenv("Z_DSN"), postgres.NewSigner(1, [32]byte{1, 2, 3}), postgres.Options{MaxConns: 8})
	if err != nil {
		t.Fatal(err)
	}
	opts := fastRetry
	opts.MaxBatchRecords = 50
	lw := ledger.NewWriter(pgstore.New(db), testKeys{}, producer, cfg.Topics(), opts, slog.New(slog.DiscardHandler))
	_ = lw.Run(t.Context(), cfg, topic, true) // until it is killed
}
