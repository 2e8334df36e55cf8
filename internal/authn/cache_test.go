package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/tenant"
)

// fakeTokens answers questions as Tokens does, and counts them.
type fakeTokens struct {
	mu    sync.Mutex // protects what follows
	valid map[[sha256.Size]byte]known
	asked int
	away  bool
	slow  time.Duration
	busy  int
	most  int
}

func (f *fakeTokens) lookup(ctx context.Context, _ tenant.ID, digest [sha256.Size]byte) (known, error) {
	f.mu.Lock()
	f.asked++
	f.busy++
	f.most = max(f.most, f.busy)
	slow := f.slow
	f.mu.Unlock()
	time.Sleep(slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy--
	k, ok := f.valid[digest]
	switch {
	case f.away || ctx.Err() != nil:
		return known{}, fmt.Errorf("%w: away", ErrUnavailable)
	case !ok:
		return known{}, ErrUnauthenticated
	}
	return k, nil
}

func (f *fakeTokens) set(fn func(*fakeTokens)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(f)
}

const goodToken = "tsk_acme.good"

func withCache(t *testing.T, fn func(*Cache, *fakeTokens)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		f := &fakeTokens{valid: map[[sha256.Size]byte]known{
			sha256.Sum256([]byte(goodToken)): {Principal{Subject: "tok_1", Tenants: []tenant.ID{"acme"}, Scopes: Read}, time.Now().Add(time.Hour)},
		}}
		fn(newCache(f, time.Now), f)
	})
}

func TestCacheAsksOncePerLife(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		for range 1000 {
			if p, err := c.Authenticate(context.Background(), goodToken); err != nil || p.Subject != "tok_1" {
				t.Fatalf("%+v, %v", p, err)
			}
			if _, err := c.Authenticate(context.Background(), "tsk_acme.bad"); !errors.Is(err, ErrUnauthenticated) {
				t.Fatal(err)
			}
		}
		if f.asked != 2 {
			t.Errorf("%d questions for two tokens", f.asked)
		}
		time.Sleep(CacheLife)
		if _, err := c.Authenticate(context.Background(), goodToken); err != nil || f.asked != 3 {
			t.Errorf("after the life: %v, %d questions", err, f.asked)
		}
	})
}

// Revocation is noticed within CacheLife everywhere, and at once after Forget.
func TestRevocationIsNoticed(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		ok := func() bool { _, err := c.Authenticate(context.Background(), goodToken); return err == nil }
		if !ok() {
			t.Fatal("a good token is refused")
		}
		f.set(func(f *fakeTokens) { clear(f.valid) })
		time.Sleep(CacheLife - time.Millisecond)
		if !ok() {
			t.Error("the cache is not used")
		}
		time.Sleep(time.Millisecond)
		if ok() {
			t.Error("a revoked token is believed for longer than CacheLife")
		}
	})
	withCache(t, func(c *Cache, f *fakeTokens) {
		_, _ = c.Authenticate(context.Background(), goodToken)
		f.set(func(f *fakeTokens) { clear(f.valid) })
		c.Forget()
		if _, err := c.Authenticate(context.Background(), goodToken); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("after Forget: %v", err)
		}
	})
}

func TestExpiryNeedsNoQuestion(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		digest := sha256.Sum256([]byte(goodToken))
		k := f.valid[digest]
		k.expiresAt = time.Now().Add(time.Second)
		f.valid[digest] = k
		if _, err := c.Authenticate(context.Background(), goodToken); err != nil {
			t.Fatal(err)
		}
		f.set(func(f *fakeTokens) { f.away = true })
		time.Sleep(time.Second)
		if _, err := c.Authenticate(context.Background(), goodToken); err == nil {
			t.Error("an expired token is believed while nobody can be asked")
		}
	})
}

// While Postgres is away known tokens go on for StaleLife; unknown ones get no
// verdict, and none of that is remembered.
func TestOutage(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		ctx := context.Background()
		_, _ = c.Authenticate(ctx, goodToken)
		f.set(func(f *fakeTokens) { f.away = true })
		time.Sleep(StaleLife - time.Second)
		if _, err := c.Authenticate(ctx, goodToken); err != nil {
			t.Errorf("a known token: %v", err)
		}
		if _, err := c.Authenticate(ctx, "tsk_acme.new"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("an unknown token: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := c.Authenticate(ctx, goodToken); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after StaleLife: %v", err)
		}
		f.set(func(f *fakeTokens) { f.away = false })
		if _, err := c.Authenticate(ctx, "tsk_acme.new"); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("afterwards an unknown token: %v", err)
		}
		if _, err := c.Authenticate(ctx, goodToken); err != nil {
			t.Errorf("afterwards a known token: %v", err)
		}
	})
}

// A flood of unknown tokens neither fills the memory, nor displaces known ones,
// nor asks more than a few questions at once.
func TestFloodOfUnknownTokens(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		ctx := context.Background()
		_, _ = c.Authenticate(ctx, goodToken)
		f.set(func(f *fakeTokens) { f.slow = time.Millisecond })
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { _, _ = c.Authenticate(ctx, fmt.Sprint("tsk_acme.", i)) })
		}
		synctest.Wait()
		before := time.Now()
		if _, err := c.Authenticate(ctx, goodToken); err != nil || !time.Now().Equal(before) {
			t.Errorf("a known token waits for unknown ones: %v", err)
		}
		wg.Wait()
		if f.most > maxLookups {
			t.Errorf("%d questions at once", f.most)
		}
		for i := range cacheSize + 100 {
			c.keep(sha256.Sum256(fmt.Append(nil, i)), known{}, ErrUnauthenticated, time.Now(), c.forgotten())
		}
		if len(c.refused) > cacheSize || len(c.good) != 1 {
			t.Errorf("%d refused and %d good tokens are remembered", len(c.refused), len(c.good))
		}
	})
}

// One question serves all that ask it at once, and one that gives up ends
// nothing for the others.
func TestOneQuestionForAll(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		f.slow = time.Second
		hurried, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Authenticate(hurried, goodToken); !errors.Is(err, ErrUnavailable) {
				t.Errorf("the one that gave up: %v", err)
			}
		})
		synctest.Wait()
		for range 20 {
			wg.Go(func() {
				if _, err := c.Authenticate(context.Background(), goodToken); err != nil {
					t.Errorf("one that waits: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if f.asked != 1 {
			t.Errorf("%d questions", f.asked)
		}
	})
}

// An answer counts from when it was asked for, and one that was under way while
// all was forgotten is not remembered: it may be from before a revocation.
func TestAnswersUnderWay(t *testing.T) {
	withCache(t, func(c *Cache, f *fakeTokens) {
		ctx := context.Background()
		f.slow = 3 * time.Second
		if _, err := c.Authenticate(ctx, goodToken); err != nil {
			t.Fatal(err)
		}
		f.set(func(f *fakeTokens) { clear(f.valid) })
		time.Sleep(CacheLife - f.slow)
		if _, err := c.Authenticate(ctx, goodToken); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("revoked %v after it was asked for: %v", CacheLife, err)
		}
	})
	withCache(t, func(c *Cache, f *fakeTokens) {
		ctx := context.Background()
		f.slow = time.Second
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = c.Authenticate(ctx, goodToken) })
		synctest.Wait()
		c.Forget()
		wg.Wait()
		f.set(func(f *fakeTokens) { clear(f.valid) })
		if _, err := c.Authenticate(ctx, goodToken); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("an answer from before it was forgotten is believed: %v", err)
		}
	})
}

// fakeRecorder keeps what it is told.
type fakeRecorder struct{ allowed, denied []audit.Event }

func (f *fakeRecorder) Allowed(ev audit.Event)                   { f.allowed = append(f.allowed, ev) }
func (f *fakeRecorder) Denied(_ context.Context, ev audit.Event) { f.denied = append(f.denied, ev) }

func TestAuthenticationsAreAudited(t *testing.T) {
	rec := &fakeRecorder{}
	admin := NewStatic("tsk_the-admin-token-of-this-test", Principal{Subject: "admin-token", AllTenants: true})
	withCache(t, func(c *Cache, f *fakeTokens) {
		a := NewAudited(First{admin, c}, rec)
		ctx := WithPeer(context.Background(), Peer{Addr: "192.0.2.9", Client: "curl/8", RequestID: "r-1"})
		for _, token := range []string{"tsk_the-admin-token-of-this-test", goodToken, "", "tsk_acme.wrong"} {
			_, _ = a.Authenticate(ctx, token)
		}
		f.set(func(f *fakeTokens) { f.away = true })
		if _, err := a.Authenticate(ctx, "tsk_acme.other"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("that nobody can tell: %v", err)
		}
	})
	if len(rec.allowed) != 2 || rec.allowed[0].Actor != "admin-token" || rec.allowed[0].Tenant != "" ||
		rec.allowed[1].Actor != "tok_1" || rec.allowed[1].Tenant != "acme" || rec.allowed[1].Addr != "192.0.2.9" {
		t.Errorf("let in: %+v", rec.allowed)
	}
	if len(rec.denied) != 2 || rec.denied[0].Reason != "no credential" || rec.denied[1].Reason != "no valid credential" || rec.denied[1].Client != "curl/8" {
		t.Errorf("refused: %+v", rec.denied)
	}
}
