package ledger_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/pgstore"
	"github.com/tallystick/tallystick/ledger/verify"
)

// ringKeys are a ring as the writer's Keys.
type ringKeys struct{ ring *keyring.Ring }

func (k ringKeys) MACKey(id tenant.ID, epoch uint32) ([32]byte, error) {
	return k.ring.Derive(id, keyring.MAC, epoch)
}

// start runs a writer with the ring's keys on a database.
func (w *world) start(db *testenv.Ledger, ring *keyring.Ring) (*ledger.Writer, *pgstore.Store, func()) {
	w.t.Helper()
	pool, err := postgres.Open(w.t.Context(), db.DSNs[postgres.RoleLedger], db.Signer, postgres.Options{MaxConns: 12})
	if err != nil {
		w.t.Fatal(err)
	}
	store := pgstore.New(pool)
	lw := ledger.NewWriter(store, ringKeys{ring}, w.producer, w.cfg.Topics(), ledger.Options{RetryMax: 50 * time.Millisecond}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- lw.Run(ctx, w.cfg, w.topic, true) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("writer: %v", err)
		}
		pool.Close()
	})
	w.t.Cleanup(stop)
	return lw, store, stop
}

// rows are a tenant's entries as text, MACs and all.
func rows(t *testing.T, db *testenv.Ledger, id tenant.ID) (out []string, epochs []int32) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.AdminDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	result, err := conn.Query(t.Context(), `select seq, key_epoch, encode(sha256(canonical), 'hex'), encode(chain, 'hex'), encode(mac, 'hex')
		from ledger.entry where tenant_id = $1 order by seq`, string(id))
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	for result.Next() {
		var seq int64
		var epoch int32
		var body, link, mac string
		if err := result.Scan(&seq, &epoch, &body, &link, &mac); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(seq, epoch, body, link, mac))
		epochs = append(epochs, epoch)
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	return out, epochs
}

func openRing(t *testing.T, dir string, o keyring.Options) *keyring.Ring {
	t.Helper()
	r, err := keyring.OpenWith(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// intact verifies a tenant's chain with the keys of a ring.
func intact(t *testing.T, db *testenv.Ledger, ring *keyring.Ring, id tenant.ID) {
	t.Helper()
	pool, err := postgres.Open(t.Context(), db.DSNs[postgres.RoleLedger], db.Signer, postgres.Options{MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	report, err := verify.Verify(t.Context(), pgread.New(pool, id), verify.Options{
		Tenant: string(id), Workers: 2, Keys: func(epoch uint32) ([32]byte, error) { return ring.ExportMACKey(id, epoch) },
	})
	if err != nil || report.Verdict != verify.Intact {
		t.Errorf("%s: %s %s at %d: %v", id, report.Verdict, report.Reason, report.FirstBad, err)
	}
}

// TestRotationUnderARunningLedger moves the MAC epochs of tenants while they
// write: nothing is lost, every entry verifies, and a replay of the log into an
// empty database gives the same MACs. One tenant's sealing root is destroyed on
// the way, which its chain must not notice.
func TestRotationUnderARunningLedger(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	ring, cli := openRing(t, dir, keyring.Options{}), openRing(t, dir, keyring.Options{})
	lw, store, stop := w.start(w.db, ring)
	reg := ledger.NewRegistrar(ring, store, w.producer, w.cfg.Topics(), w.topic)
	ids := []tenant.ID{"acme", "bravo", "carol"}
	if _, err := reg.CreateTenants(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	rotating := make(chan error, 1)
	go func() {
		rotating <- (&keyring.Rotator{Ring: ring, Announce: reg.MoveEpochs, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()

	const rounds = 3
	n := 0
	for round := range rounds {
		if round > 0 { // by another process, as the command line is
			if _, err := cli.Rotate(keyring.SeriesMAC, ids...); err != nil {
				t.Fatal(err)
			}
		}
		want := uint32(round + 1)
		arrived := func() bool {
			return !slices.ContainsFunc(ids, func(id tenant.ID) bool { return cli.Epoch(id, keyring.MAC) != want })
		}
		for deadline := time.Now().Add(time.Minute); !arrived(); time.Sleep(20 * time.Millisecond) { // polling another process's file
			for _, id := range ids {
				w.put(string(id), usage(string(id), n, nil))
			}
			n++
			if time.Now().After(deadline) {
				t.Fatalf("epoch %d did not come into force", want)
			}
		}
		for range 50 {
			for _, id := range ids {
				w.put(string(id), usage(string(id), n, nil))
			}
			n++
		}
		if round == 1 {
			if err := cli.Destroy("carol"); err != nil {
				t.Fatal(err)
			}
			ids = ids[:2]
		}
	}
	cancel()
	if err := <-rotating; err != nil {
		t.Error(err)
	}
	w.drain(lw)
	stop()

	replayed := testenv.MigratedPostgres(t)
	again, _, stopAgain := w.start(replayed, ring)
	w.drain(again)
	stopAgain()
	for _, id := range []tenant.ID{"acme", "bravo", "carol"} {
		got, epochs := rows(t, w.db, id)
		last := int32(rounds)
		if id == "carol" {
			last--
		} else if len(got) != n+rounds {
			t.Errorf("%s: %d entries of %d events and %d epochs", id, len(got), n, rounds)
		}
		if !slices.IsSorted(epochs) || epochs[0] != 1 || epochs[len(epochs)-1] != last {
			t.Errorf("%s: epochs run from %d to %d", id, epochs[0], epochs[len(epochs)-1])
		}
		intact(t, w.db, ring, id)
		if same, _ := rows(t, replayed, id); !slices.Equal(got, same) {
			t.Errorf("%s: a replay of the log gives another chain", id)
		}
	}
}

// awayKMS is a key service that can be cut off.
type awayKMS struct {
	away   atomic.Bool
	missed atomic.Int64 // calls while it was away
}

func (*awayKMS) ID() string { return "test:xor" }

func (k *awayKMS) pad(at keyring.Binding) ([32]byte, error) {
	if k.away.Load() {
		k.missed.Add(1)
		return [32]byte{}, fmt.Errorf("%w: cut off", keyring.ErrUnavailable)
	}
	return sha256.Sum256(at.Bytes()), nil
}

func (k *awayKMS) Wrap(_ context.Context, secret []byte, at keyring.Binding) ([]byte, error) {
	pad, err := k.pad(at)
	for i := range secret {
		pad[i] ^= secret[i]
	}
	return pad[:], err
}

func (k *awayKMS) Unwrap(ctx context.Context, wrapped []byte, at keyring.Binding) ([]byte, error) {
	return k.Wrap(ctx, wrapped, at)
}

// TestLedgerWaitsForItsKeys starts a writer whose key service is away: nothing
// is ledgered and nothing halts, and when the service is back all is there.
func TestLedgerWaitsForItsKeys(t *testing.T) {
	w, kms, dir := newWorld(t), &awayKMS{}, t.TempDir()
	ring := openRing(t, dir, keyring.Options{KMS: kms})
	_, store, stop := w.start(w.db, ring)
	reg := ledger.NewRegistrar(ring, store, w.producer, w.cfg.Topics(), w.topic)
	if _, err := reg.CreateTenants(t.Context(), []tenant.ID{"acme"}); err != nil {
		t.Fatal(err)
	}
	stop()

	cold := openRing(t, dir, keyring.Options{KMS: kms})
	kms.away.Store(true)
	lw, _, _ := w.start(w.db, cold)
	for n := range 20 {
		w.put("acme", usage("acme", n, nil))
	}
	for kms.missed.Load() < 3 { // it asks again and again
		time.Sleep(10 * time.Millisecond)
	}
	for p, place := range lw.Stats().Places() {
		if place.Halted != nil {
			t.Errorf("partition %d halted: %v", p, place.Halted)
		}
	}
	kms.away.Store(false)
	w.drain(lw)
	got, _ := rows(t, w.db, "acme")
	if len(got) != 21 {
		t.Errorf("%d entries, want 20 and the key epoch", len(got))
	}
	intact(t, w.db, cold, "acme")
	kms.away.Store(true) // what is unwrapped stays usable
	w.put("acme", usage("acme", 20, nil))
	w.drain(lw)
	if got, _ := rows(t, w.db, "acme"); len(got) != 22 {
		t.Errorf("%d entries after the service went again, want 22", len(got))
	}
}
