package ledger_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/pgstore"
)

// drill is a ledger with checkpoints, that is restored from a backup.
type drill struct {
	*world
	dir  *checkpoint.Dir
	tail func(ledger.Tail) ledger.Tail // nil leaves Kafka's as it is
}

// drillKeys sign checkpoints and audit rows.
type drillKeys struct{}

func (drillKeys) SigningEpoch(tenant.ID) uint32 { return 1 }

func (drillKeys) SigningKey(id tenant.ID, epoch uint32) (ed25519.PrivateKey, error) {
	seed := sha256.Sum256(fmt.Appendf(nil, "sign/%s/%d", id, epoch))
	return ed25519.NewKeyFromSeed(seed[:]), nil
}

func (drillKeys) Epoch(tenant.ID, keyring.Purpose) uint32 { return 1 }

func (drillKeys) Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([32]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "audit/%s/%v/%d", id, p, epoch)), nil
}

func drillTenants() []tenant.ID {
	return []tenant.ID{"acme", "bravo", "charlie", tenant.System(0), tenant.System(1)}
}

func newDrill(t *testing.T) *drill {
	w := newWorld(t)
	dir, err := checkpoint.OpenDir(filepath.Join(t.TempDir(), "checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	w.newTenant("acme", "bravo")
	return &drill{world: w, dir: dir}
}

// countingLog counts what is published.
type countingLog struct {
	ledger.Publisher
	records atomic.Int64
}

func (c *countingLog) ProduceBatch(ctx context.Context, recs []kafka.Record, results []kafka.Result) error {
	c.records.Add(int64(len(recs)))
	return c.Publisher.ProduceBatch(ctx, recs, results)
}

// run is a ledger process: it writes what is in the log, signs it, and stops. It
// returns what halted a partition and how many records were published.
func (d *drill) run(recover bool) (published int64, halted error) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	many, one := d.open(postgres.RoleLedger), d.open(postgres.RoleApp)
	defer many.Close()
	defer one.Close()
	admin, err := kafka.NewAdmin(d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	defer admin.Close()
	ends := func(ctx context.Context) ([]int64, error) { return admin.EndOffsets(ctx, d.cfg.Topics().Events) }
	source, store := pglog.NewLedger(many, one), pgstore.NewCheckpoints(many)
	var tail ledger.Tail = ledger.NewKafkaTail(d.cfg, admin)
	if d.tail != nil {
		tail = d.tail(tail)
	}
	pub := &countingLog{Publisher: d.producer}
	lw := ledger.NewWriter(pgstore.New(many), testKeys{}, pub, d.cfg.Topics(), ledger.Options{
		MaxBatchRecords: 50, Recover: recover, Recovery: pgstore.NewRecovery(many, drillKeys{}, ends),
		Tail:  tail,
		Floor: checkpoint.NewFloor(source, store, d.dir, drillKeys{}, "", drillTenants),
	}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- lw.Run(ctx, d.cfg, d.topic, true) }()
	halted = d.settle(lw)
	cancel()
	if err := <-done; err != nil {
		d.t.Fatal(err)
	}
	signer := checkpoint.New(source, store, d.dir, drillKeys{}, checkpoint.Options{Tenants: drillTenants}, slog.New(slog.DiscardHandler))
	if halted == nil {
		if err := signer.Round(d.t.Context()); err != nil || len(signer.Status().Faults) > 0 {
			d.t.Fatalf("signing: %v, %+v", err, signer.Status().Faults)
		}
	}
	return pub.records.Load(), halted
}

func (d *drill) open(role postgres.Role) *postgres.DB {
	db, err := postgres.Open(d.t.Context(), d.db.DSNs[role], d.db.Signer, postgres.Options{MaxConns: 12})
	if err != nil {
		d.t.Fatal(err)
	}
	return db
}

// settle waits until the log is written and published, or a partition halts.
func (d *drill) settle(lw *ledger.Writer) error {
	d.t.Helper()
	admin, err := kafka.NewAdmin(d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	defer admin.Close()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) { // polling a broker
		ends, err := admin.EndOffsets(d.t.Context(), d.cfg.Topics().Events)
		if err != nil {
			d.t.Fatal(err)
		}
		places, left := lw.Stats().Places(), 0
		for p, end := range ends {
			place, ok := places[int32(p)]
			if place.Halted != nil {
				return place.Halted
			}
			if !ok || place.Recovering || place.NextOffset < end || place.PublishedBatch < place.Batch || place.Batch == 0 {
				left++
			}
		}
		if left == 0 {
			return nil
		}
	}
	d.t.Fatalf("not settled: %+v", lw.Stats().Places())
	return nil
}

// backup copies the database, restore puts the copy in its place.
func (d *drill) backup()  { d.copyDatabase("", "_backup") }
func (d *drill) restore() { d.copyDatabase("_backup", "") }

func (d *drill) copyDatabase(from, to string) {
	d.t.Helper()
	u, err := url.Parse(d.db.AdminDSN)
	if err != nil {
		d.t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	conn, err := pgx.Connect(d.t.Context(), u.String())
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	source, target := pgx.Identifier{name + from}.Sanitize(), pgx.Identifier{name + to}.Sanitize()
	for _, sql := range []string{
		fmt.Sprintf("drop database if exists %s with (force)", target), fmt.Sprintf("create database %s template %s", target, source),
	} {
		if _, err := conn.Exec(d.t.Context(), sql); err != nil {
			d.t.Fatal(err)
		}
	}
	if to != "" {
		d.t.Cleanup(func() {
			conn, err := pgx.Connect(context.Background(), u.String())
			if err == nil {
				_, err = conn.Exec(context.Background(), fmt.Sprintf("drop database if exists %s with (force)", target))
				conn.Close(context.Background())
			}
			if err != nil {
				d.t.Errorf("drop the backup: %v", err)
			}
		})
	}
}

func (d *drill) usage(from, to int) {
	for n := from; n < to; n++ {
		d.put("acme", usage("acme", n, nil))
		if n%3 == 0 {
			d.put("bravo", usage("bravo", n, nil))
		}
	}
}

// scan reads one row as superuser.
func (d *drill) scan(sql string, into ...any) {
	d.t.Helper()
	conn, err := pgx.Connect(d.t.Context(), d.db.AdminDSN)
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(d.t.Context(), sql).Scan(into...); err != nil {
		d.t.Fatal(err)
	}
}

func (d *drill) clean(recover bool) int64 {
	d.t.Helper()
	published, halted := d.run(recover)
	if halted != nil {
		d.t.Fatal(halted)
	}
	return published
}

// TestRestoreDrill restores Postgres from a backup: the writer halts, and in
// recovery it replays the log to the very same checkpoints.
func TestRestoreDrill(t *testing.T) {
	d := newDrill(t)
	d.usage(0, 300)
	d.clean(false)
	d.backup()
	d.usage(300, 900)
	d.clean(false)
	var before, after string
	const state = `select string_agg(tenant_id || '/' || seq || '/' || encode(chain, 'hex'), ',' order by tenant_id) from ledger.head`
	const notes = `select string_agg(note, '' order by tenant_id) from ledger.checkpoint where tenant_id in ('acme', 'bravo') and size > 300`
	var signed, again string
	d.scan(state, &before)
	d.scan(notes, &signed)

	d.restore()
	published, halted := d.run(false)
	if !errors.Is(halted, ledger.ErrBelowCheckpoint) || published != 0 {
		t.Fatalf("after a restore: %v, %d records published", halted, published)
	}
	for _, want := range []string{"tenant ", "head ", "(chain ", "published checkpoint ", "(root ", "ledger.recover"} {
		if !strings.Contains(halted.Error(), want) {
			t.Errorf("the message %q does not say %q", halted, want)
		}
	}
	var open int
	d.scan(`select count(*) from ledger.recovery`, &open)
	if open != 0 {
		t.Error("a recovery was begun without the operator's word")
	}

	if n := d.clean(true); n != 0 {
		t.Errorf("%d records were published again", n)
	}
	d.scan(state, &after)
	d.scan(notes, &again)
	if after != before || again != signed {
		t.Errorf("replayed to\n%s\n%s\nwant\n%s\n%s", after, again, before, signed)
	}
	var ended, audited int
	d.scan(`select count(*) filter (where ended_at is null), count(*) filter (where ended_at is not null) from ledger.recovery`, &open, &ended)
	d.scan(`select count(*) from audit.event where tenant_id = 'system/0'`, &audited)
	if open != 0 || ended == 0 || audited != 2*ended {
		t.Errorf("%d recoveries open, %d ended, %d audit rows", open, ended, audited)
	}
	d.usage(900, 910)
	d.clean(false) // a normal life again
}

// publish signs a checkpoint that the directory then has, whatever the ledger holds.
func (d *drill) publish(id tenant.ID, size int64, root checkpoint.Hash) {
	d.t.Helper()
	key, _ := drillKeys{}.SigningKey(id, 1)
	s, err := checkpoint.NewSigner(checkpoint.Origin(checkpoint.DefaultInstallation, checkpoint.LedgerLog, id), key)
	if err != nil {
		d.t.Fatal(err)
	}
	note, err := s.SignHead(&checkpoint.Head{Origin: s.Name(), Size: size, Root: root})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.dir.Add(checkpoint.LedgerLog, id, size, note); err != nil {
		d.t.Fatal(err)
	}
}

// TestRecoveryThatCannotSucceed halts with the reason, and publishes nothing.
func TestRecoveryThatCannotSucceed(t *testing.T) {
	t.Run("missing range", func(t *testing.T) {
		d := newDrill(t)
		d.usage(0, 100)
		d.clean(false)
		d.publish("acme", 5000, checkpoint.Hash{1})
		published, halted := d.run(true)
		if !errors.Is(halted, ledger.ErrMissingRange) || published != 0 || !strings.Contains(halted.Error(), "tenant acme: head 101") {
			t.Errorf("%v, %d published", halted, published)
		}
		var open int
		if d.scan(`select count(*) from ledger.recovery where ended_at is null`, &open); open != 1 {
			t.Errorf("%d recoveries are open", open)
		}
	})
	t.Run("another root", func(t *testing.T) {
		d := newDrill(t)
		d.usage(0, 100)
		d.clean(false)
		for n := 100; n < 200; n++ {
			d.put("acme", usage("acme", n, nil))
		}
		d.publish("acme", 150, checkpoint.Hash{1})
		published, halted := d.run(true)
		if !errors.Is(halted, ledger.ErrForked) || published != 0 || !strings.Contains(halted.Error(), "tenant acme at 150") {
			t.Errorf("%v, %d published", halted, published)
		}
	})
	t.Run("another root at the head", func(t *testing.T) {
		d := newDrill(t)
		d.usage(0, 100)
		d.clean(false)
		d.dir, _ = checkpoint.OpenDir(t.TempDir())
		d.publish("acme", 101, checkpoint.Hash{1})
		if _, halted := d.run(false); !errors.Is(halted, ledger.ErrForked) || !strings.Contains(halted.Error(), "in the store") {
			t.Errorf("%v", halted)
		}
		d.scan(`delete from ledger.checkpoint where tenant_id = 'acme' returning size`, new(int64))
		if _, halted := d.run(false); !errors.Is(halted, ledger.ErrForked) {
			t.Errorf("%v", halted)
		}
	})
	t.Run("note altered", func(t *testing.T) {
		d := newDrill(t)
		d.usage(0, 100)
		d.clean(false)
		if err := d.dir.Add(checkpoint.LedgerLog, "acme", 7000, "no note"); err != nil {
			t.Fatal(err)
		}
		if _, halted := d.run(true); !errors.Is(halted, ledger.ErrAltered) {
			t.Errorf("%v", halted)
		}
	})
}
