package keyring_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// fakeKMS is a key service whose answers a test decides. (What a real one does
// is tested in kmstest.)
type fakeKMS struct {
	err   error         // answered in place of keys
	delay time.Duration // before each answer
	calls atomic.Int64
}

func (*fakeKMS) ID() string { return "fake:1" }

func (k *fakeKMS) Wrap(ctx context.Context, secret []byte, at keyring.Binding) ([]byte, error) {
	k.calls.Add(1)
	select {
	case <-time.After(k.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	pad := sha256.Sum256(at.Bytes())
	for i := range secret {
		pad[i] ^= secret[i]
	}
	return pad[:], k.err
}

func (k *fakeKMS) Unwrap(ctx context.Context, wrapped []byte, at keyring.Binding) ([]byte, error) {
	return k.Wrap(ctx, wrapped, at)
}

var errAway = fmt.Errorf("%w: cut off", keyring.ErrUnavailable)

func openKMS(t testing.TB, dir string, kms keyring.KMS) *keyring.Ring {
	t.Helper()
	r, err := keyring.OpenWith(dir, keyring.Options{KMS: kms, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestServiceHangs: whoever waits behind calls that hang waits no longer than a
// call may take.
func TestServiceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kms, dir := &fakeKMS{}, t.TempDir()
		ids := make([]tenant.ID, 40)
		for i := range ids {
			ids[i] = tenant.ID(fmt.Sprintf("t%02d", i))
		}
		mustCreate(t, openKMS(t, dir, kms), ids...)
		r := openKMS(t, dir, kms)
		kms.delay = time.Hour
		start := time.Now()
		var waiting sync.WaitGroup
		for _, id := range ids {
			waiting.Go(func() {
				if _, err := r.Derive(id, keyring.MAC, 1); !errors.Is(err, keyring.ErrUnavailable) {
					t.Errorf("%s: %v, want ErrUnavailable", id, err)
				}
			})
		}
		waiting.Wait()
		if took := time.Since(start); took > time.Second {
			t.Errorf("somebody waited %v for calls that end after a second", took)
		}
	})
}

// TestServiceAway: what is in memory goes on, all else waits for the service.
func TestServiceAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kms, dir := &fakeKMS{}, t.TempDir()
		mustCreate(t, openKMS(t, dir, kms), "acme", "beta")
		r := openKMS(t, dir, kms)
		at := keyring.Place{Table: "subject"}
		want := mustDerive(t, r, "acme", keyring.MAC, 1)
		sealed, err := r.Seal(nil, "acme", keyring.SealTags, at, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}

		kms.err = errAway
		if got, err := r.Derive("acme", keyring.MAC, 1); err != nil || got != want {
			t.Errorf("a key in memory: %v", err)
		}
		if _, err := r.Open(nil, "acme", keyring.SealTags, at, sealed); err != nil {
			t.Errorf("a sealing key in memory: %v", err)
		}
		before := kms.calls.Load()
		for range 1000 {
			if _, err := r.Derive("beta", keyring.MAC, 1); !errors.Is(err, keyring.ErrUnavailable) {
				t.Fatalf("a key that is not: %v, want ErrUnavailable", err)
			}
		}
		if n := kms.calls.Load() - before; n != 1 {
			t.Errorf("the service was asked %d times in one moment", n)
		}
		if _, err := r.Create("carol"); !errors.Is(err, keyring.ErrUnavailable) || r.Has("carol") {
			t.Errorf("Create: %v, want ErrUnavailable", err)
		}
		if _, err := r.Rewrap(); !errors.Is(err, keyring.ErrUnavailable) {
			t.Errorf("Rewrap: %v, want ErrUnavailable", err)
		}
		if _, err := keyring.OpenWith(dir, keyring.Options{KMS: kms}); !errors.Is(err, keyring.ErrUnavailable) {
			t.Errorf("OpenWith: %v, want ErrUnavailable", err)
		}
		// What needs no key works: destroying above all.
		if _, err := r.Rotate(keyring.SeriesSealing, "acme"); err != nil {
			t.Error(err)
		}
		if err := r.Destroy("acme"); err != nil {
			t.Error(err)
		}

		kms.err = nil
		time.Sleep(time.Second)
		mustDerive(t, r, "beta", keyring.MAC, 1)
		mustCreate(t, r, "carol")
	})
}

// TestServiceSlow: an answer that does not come in time is none, and those who
// wait for one root share one question.
func TestServiceSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kms, dir := &fakeKMS{}, t.TempDir()
		mustCreate(t, openKMS(t, dir, kms), "acme")
		r := openKMS(t, dir, kms)
		kms.delay = time.Hour
		begin, before := time.Now(), kms.calls.Load()
		errs := make(chan error)
		for range 50 {
			go func() {
				_, err := r.Derive("acme", keyring.MAC, 1)
				errs <- err
			}()
		}
		for range 50 {
			if err := <-errs; !errors.Is(err, keyring.ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable", err)
			}
		}
		if took := time.Since(begin); took != time.Second || kms.calls.Load()-before != 1 {
			t.Errorf("50 callers took %v and %d calls", took, kms.calls.Load()-before)
		}
	})
}

// rotatorWorld is the audit log and the ledger of a Rotator: they fail, and come
// to announced epochs, when the test lets them.
type rotatorWorld struct {
	mu        sync.Mutex // protects what follows
	told      int
	refuse    error
	announced int
	met       bool
	err       error
}

func (w *rotatorWorld) due(_ context.Context, due []keyring.KeyEpoch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told += len(due)
	return w.refuse
}

func (w *rotatorWorld) announce(_ context.Context, epochs []keyring.KeyEpoch) ([]keyring.KeyEpoch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.announced++
	if w.met {
		return epochs, w.err
	}
	return nil, w.err
}

// after sets what the world does from now on, lets time pass, and answers what
// has been asked of it.
func (w *rotatorWorld) after(d time.Duration, refuse error, met bool, err error) (told, announced int) {
	w.mu.Lock()
	w.refuse, w.met, w.err = refuse, met, err
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told, w.announced
}

// TestRotator runs a year of rotations, with days of an hour, with an audit log
// and a ledger that fail in between.
func TestRotator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := mustOpen(t, t.TempDir())
		mustCreate(t, r, "acme", "system/0")
		w := &rotatorWorld{}
		const day = time.Hour // a year of seconds would take one
		o := &keyring.Rotator{
			Ring: r, Schedule: keyring.Schedule{MAC: 365 * day, Checkpoint: 365 * day, Audit: 365 * day, Sealing: 90 * day},
			Announce: w.announce, Due: w.due, Log: slog.New(slog.DiscardHandler),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- o.Run(ctx) }()
		active := func(p keyring.Purpose) uint32 { return r.Epoch("acme", p) }

		if told, _ := w.after(89*day, nil, false, nil); told != 0 || active(keyring.SealTags) != 1 {
			t.Errorf("something happened too early: %d told", told)
		}
		if told, _ := w.after(2*day, errors.New("the audit log is away"), false, nil); told == 0 || active(keyring.SealTags) != 1 {
			t.Error("rotated without an audit row")
		}
		if w.after(time.Hour, nil, false, nil); active(keyring.SealTags) != 2 {
			t.Error("not rotated although due")
		}
		if _, announced := w.after(280*day, nil, false, nil); active(keyring.MAC) != 1 || len(r.Pending()) != 1 || announced == 0 {
			t.Errorf("a MAC epoch in force before the ledger met it: %d, %v", active(keyring.MAC), r.Pending())
		}
		if w.after(time.Hour, nil, true, errors.New("the broker is away")); active(keyring.MAC) != 1 {
			t.Error("in force although the ledger could not be asked")
		}
		w.after(time.Minute, nil, true, nil)
		if active(keyring.MAC) != 2 || len(r.Pending()) != 0 || active(keyring.Checkpoint) != 2 || active(keyring.Audit) != 2 {
			t.Errorf("after a year: mac %d, checkpoint %d, audit %d", active(keyring.MAC), active(keyring.Checkpoint), active(keyring.Audit))
		}
		if r.Epoch("system/0", keyring.MAC) != 1 {
			t.Error("a system chain's MAC epoch moved")
		}
		// One that a command begins follows within seconds.
		rotate(t, r, keyring.SeriesMAC, tenant.ID("acme"))
		if w.after(5*time.Second, nil, true, nil); active(keyring.MAC) != 3 {
			t.Error("a rotation by command waits")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
