package provider

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/tenant"
)

func testContext() context.Context { return context.Background() }

// usd is a whole number of dollars.
func usd(n int64) money.Pico { return money.Pico(n * 1_000_000_000_000) }

// sealedValues are those of a key that is not opened.
func sealedValues(id string) []secrets.Sealed { return []secrets.Sealed{{SecretID: id, Name: id}} }

// source is a Postgres that can be away, silent or slow.
type source struct {
	mu     sync.Mutex
	policy policy
	err    error
	delay  time.Duration
	asked  int
}

func (s *source) read(ctx context.Context, _ tenant.ID, now time.Time) (*policy, error) {
	s.mu.Lock()
	s.asked++
	p, err, delay := s.policy, s.err, s.delay
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ErrUnavailable
	}
	p.asked, p.month = now, monthOf(now)
	return &p, err
}

func (s *source) set(change func(s *source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func fakeGate(s *source) *Gate {
	g := NewGate(nil, nil, nil, nil)
	g.read = s.read
	return g
}

var killed = policy{switches: []Switch{{ID: "swi_a", Scope: ScopeTenant}}}

// stopped asks the gate and says how long that took.
func stopped(t *testing.T, g *Gate) (yes bool, took time.Duration, err error) {
	t.Helper()
	begin := time.Now()
	_, yes, err = g.Stopped(t.Context(), &Call{Tenant: "acme"})
	return yes, time.Since(begin), err
}

// TestASwitchIsNoticedInFiveSeconds calls all the time while one is thrown: the
// calls after five seconds are refused, and none waits for Postgres.
func TestASwitchIsNoticedInFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{delay: 50 * time.Millisecond}
		g := fakeGate(s)
		if yes, _, err := stopped(t, g); yes || err != nil {
			t.Fatal(yes, err)
		}
		s.set(func(s *source) { s.policy = killed })
		thrown := time.Now()
		for {
			yes, took, err := stopped(t, g)
			if err != nil || took > 0 {
				t.Fatalf("%s after: waited %s, %v", time.Since(thrown), took, err)
			}
			if yes {
				break
			}
			if time.Since(thrown) > 5*time.Second {
				t.Fatal("not noticed")
			}
			time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		}
		// A tenant without calls asks nothing, and its next call what is so now.
		s.set(func(s *source) { s.policy, s.asked = policy{}, 0 })
		time.Sleep(time.Minute)
		if yes, _, err := stopped(t, g); yes || err != nil || s.asked != 1 {
			t.Fatalf("after a minute: stopped %v, asked %d times, %v", yes, s.asked, err)
		}
	})
}

// TestCallsGoOnWhilePostgresIsAway goes on with what was known, at its pace also
// where Postgres hangs, and ends after StaleLife.
func TestCallsGoOnWhilePostgresIsAway(t *testing.T) {
	for name, away := range map[string]func(s *source){
		"refuses": func(s *source) { s.err = ErrUnavailable },
		"hangs":   func(s *source) { s.delay = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{policy: killed}
				g := fakeGate(s)
				if yes, _, err := stopped(t, g); !yes || err != nil {
					t.Fatal(yes, err)
				}
				s.set(away)
				begin := time.Now()
				var waited time.Duration
				for time.Since(begin) < StaleLife-10*time.Second {
					yes, took, err := stopped(t, g)
					if !yes || err != nil || took > patience {
						t.Fatalf("%s after: stopped %v, waited %s, %v", time.Since(begin), yes, took, err)
					}
					waited += took
					time.Sleep(100 * time.Millisecond)
				}
				if waited > 30*time.Second {
					t.Errorf("calls waited %s in five minutes", waited)
				}
				time.Sleep(20 * time.Second)
				if _, took, err := stopped(t, g); !errors.Is(err, ErrUnavailable) || took > lookupWait {
					t.Errorf("after %s: %v, waited %s", StaleLife, err, took)
				}
				s.set(func(s *source) { s.err, s.delay = nil, 0 })
				time.Sleep(lookupLimit + failedLife)
				if yes, _, err := stopped(t, g); !yes || err != nil {
					t.Errorf("Postgres is back: %v, %v", yes, err)
				}
			})
		})
	}
}

// TestForgetSeesWhatWasChanged has an answer from before the change under way.
func TestForgetSeesWhatWasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{delay: 100 * time.Millisecond}
		g := fakeGate(s)
		first := make(chan bool)
		go func() {
			yes, _, err := stopped(t, g)
			if err != nil {
				t.Error(err)
			}
			first <- yes
		}()
		synctest.Wait()
		s.set(func(s *source) { s.policy = killed })
		g.Forget("acme")
		if yes, _, err := stopped(t, g); !yes || err != nil {
			t.Errorf("after the change: %v, %v", yes, err)
		}
		if !<-first {
			t.Error("who waited for the old answer was let through after the change")
		}
	})
}

// TestAskingIsShared lets a hundred calls begin at once.
func TestAskingIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{delay: time.Second}
		g := fakeGate(s)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, _, err := stopped(t, g); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s.asked != 1 {
			t.Errorf("asked %d times", s.asked)
		}
	})
}

func TestStopped(t *testing.T) {
	call := Call{Tenant: "acme", Credential: "tok_a", Provider: "openai", Model: "gpt-4o-mini", Team: "search"}
	for _, x := range []struct {
		scope, subject string
		want           bool
	}{
		{ScopeTenant, "", true},
		{ScopeKey, "tok_a", true}, {ScopeKey, "tok_b", false}, {ScopeKey, "sec_a", true}, {ScopeKey, "sec_b", false},
		{ScopeTeam, "search", true}, {ScopeTeam, "sear", false}, {ScopeTeam, "sear*", false},
		{ScopeModel, "gpt-4o-mini", true}, {ScopeModel, "gpt-4o", false}, {ScopeModel, "gpt-4o*", true}, {ScopeModel, "*", true}, {ScopeModel, "claude*", false},
	} {
		s := &source{policy: policy{
			keys:     map[string]*usable{"openai": {values: sealedValues("sec_a")}, "anthropic": {values: sealedValues("sec_b")}},
			switches: []Switch{{ID: "swi_a", Scope: x.scope, Subject: x.subject}},
		}}
		_, yes, err := fakeGate(s).Stopped(t.Context(), &call)
		if yes != x.want || err != nil {
			t.Errorf("%s %q: %v, %v", x.scope, x.subject, yes, err)
		}
	}
	untagged := Call{Tenant: "acme", Provider: "openai"}
	s := &source{policy: policy{switches: []Switch{{Scope: ScopeKey, Subject: "sec_a"}}}}
	if _, yes, err := fakeGate(s).Stopped(t.Context(), &untagged); yes || err != nil {
		t.Errorf("a call without a key: %v, %v", yes, err)
	}
}

// TestBucketKeepsItsRate draws takings at random times: in no span of time do more
// go than one bucket and what runs out meanwhile, and a refused one goes when it is
// told to come.
func TestBucketKeepsItsRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perMinute := rapid.Int64Range(1, MaxPerMinute).Draw(t, "perMinute")
		var b bucket
		now := time.Unix(1_800_000_000, 0)
		type taken struct {
			at time.Time
			n  int64
		}
		var all []taken
		for range rapid.IntRange(1, 60).Draw(t, "takings") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "pause")))
			n := rapid.Int64Range(1, perMinute).Draw(t, "n")
			wait := b.take(n, perMinute, now)
			if wait > 0 {
				if wait > time.Minute {
					t.Fatalf("told to wait %s", wait)
				}
				now = now.Add(wait)
				if again := b.take(n, perMinute, now); again != 0 {
					t.Fatalf("came after %s and was told to wait %s more", wait, again)
				}
			}
			all = append(all, taken{now, n})
		}
		for i := range all {
			var sum int64
			for _, x := range all[i:] {
				sum += x.n
				// Each taking may be rounded down by less than a nanosecond's worth.
				runs := span(sum, perMinute) - x.at.Sub(all[i].at) - time.Duration(len(all))
				if runs > time.Minute {
					t.Fatalf("%d in %s at %d per minute", sum, x.at.Sub(all[i].at), perMinute)
				}
			}
		}
	})
}

func TestBucketOfLargeAndCorrectedTakings(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var b bucket
	if wait := b.take(5000, 1000, now); wait != 0 {
		t.Fatalf("a taking larger than the bucket waits %s for an empty one", wait)
	}
	if wait := b.take(1, 1000, now); wait != 4*time.Minute+60*time.Millisecond {
		t.Errorf("after it: %s", wait)
	}
	b.change(-5000, 1000, now)
	if wait := b.take(1000, 1000, now); wait != 0 {
		t.Errorf("after it was taken back: %s", wait)
	}
	b.change(500, 1000, now)
	if wait := b.take(1, 1000, now); wait != 30*time.Second+60*time.Millisecond {
		t.Errorf("overdrawn by 500 at 1000 per minute: %s", wait)
	}
}

// TestTakeIsAllOrNothing: a call that the provider key's limit refuses takes
// nothing of its credential's.
func TestTakeIsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{policy: policy{
			keys: map[string]*usable{"openai": {values: sealedValues("sec_a")}},
			limits: map[string]Limit{
				"tok_a": {KeyID: "tok_a", RequestsPerMinute: 3, TokensPerMinute: 1000},
				"sec_a": {KeyID: "sec_a", RequestsPerMinute: 1},
			},
		}}
		g := fakeGate(s)
		with := Call{Tenant: "acme", Credential: "tok_a", Provider: "openai", PromptTokens: 10}
		take := func(c *Call) (time.Duration, string) {
			t.Helper()
			wait, rule, err := g.Take(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			return wait, rule
		}
		if wait, _ := take(&with); wait != 0 {
			t.Fatal(wait)
		}
		for range 5 {
			if wait, rule := take(&with); wait != time.Minute || rule != "requests per minute of sec_a" {
				t.Fatal(wait, rule)
			}
		}
		other := Call{Tenant: "acme", Credential: "tok_a", Provider: "anthropic"}
		for i, want := range []time.Duration{0, 0, 20 * time.Second} {
			if wait, _ := take(&other); wait != want {
				t.Errorf("call %d: %s, want %s", i, wait, want)
			}
		}
		// The tokens of the answer count when they are known.
		time.Sleep(time.Minute)
		r, err := g.Reserve(t.Context(), &other, 0)
		if err != nil {
			t.Fatal(err)
		}
		r.Settle(1501, 0, true)
		if wait, rule := take(&other); wait != 30*time.Second+60*time.Millisecond || rule != "tokens per minute of tok_a" {
			t.Error(wait, rule)
		}
	})
}

// TestConcurrentReservationsKeepTheCap lets many calls reserve and settle at once:
// what was spent exceeds the cap by no more than estimates were wrong by, and
// reservations never exceed it.
func TestConcurrentReservationsKeepTheCap(t *testing.T) {
	s := &source{policy: policy{caps: []Cap{
		{Scope: ScopeTenant, USD: money.SumOf(usd(100)), Spent: money.SumOf(usd(10))},
		{Scope: ScopeTeam, Subject: "a", USD: money.SumOf(usd(30))},
		{Scope: ScopeTeam, Subject: "other", USD: money.SumOf(0)},
	}}}
	g := fakeGate(s)
	var mu sync.Mutex
	spent := map[string]money.Pico{}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			team := []string{"a", "b"}[worker%2]
			for {
				r, err := g.Reserve(t.Context(), &Call{Tenant: "acme", Team: team}, usd(1))
				if errors.Is(err, ErrBudget) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				r.Settle(0, usd(1)/2, true)
				r.Settle(0, usd(50), true) // does nothing
				mu.Lock()
				spent[team] += usd(1) / 2
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// Up to the cap but for less than one estimate: until then a call would fit.
	if all := spent["a"] + spent["b"]; all > usd(90) || all <= usd(89) {
		t.Errorf("spent %v of 90", all)
	}
	if spent["a"] > usd(30) || spent["a"] <= usd(29) && spent["b"] <= usd(59) {
		t.Errorf("team a spent %v of 30", spent["a"])
	}
	if _, err := g.Reserve(t.Context(), &Call{Tenant: "acme", Team: "other"}, 0); !errors.Is(err, ErrBudget) {
		t.Errorf("a cap of 0 lets a call through: %v", err)
	}
}

// TestReservationsAddUp draws calls and holds the gate's sums against a plain count.
func TestReservationsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := usd(rapid.Int64Range(0, 50).Draw(t, "cap"))
		s := &source{policy: policy{caps: []Cap{{Scope: ScopeTenant, USD: money.SumOf(limit)}}}}
		g := fakeGate(s)
		var spent, reserved money.Pico
		type open struct {
			r        *Reservation
			estimate money.Pico
		}
		var held []open
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "settle") {
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				cost, known := usd(rapid.Int64Range(0, 12).Draw(t, "cost")), rapid.Bool().Draw(t, "known")
				held[i].r.Settle(0, cost, known)
				if !known {
					cost = held[i].estimate
				}
				spent, reserved = spent+cost, reserved-held[i].estimate
				held = append(held[:i], held[i+1:]...)
				continue
			}
			estimate := usd(rapid.Int64Range(0, 10).Draw(t, "estimate"))
			r, err := g.Reserve(testContext(), &Call{Tenant: "acme"}, estimate)
			left := limit - spent - reserved
			if fits := estimate <= left && left > 0; fits != (err == nil) {
				t.Fatalf("%v of %v left: %v", estimate, left, err)
			}
			if err != nil {
				continue
			}
			reserved += estimate
			held = append(held, open{r, estimate})
			if got, ok := r.Remaining(); !ok || got != limit-spent-reserved {
				t.Fatalf("remaining %v, want %v", got, limit-spent-reserved)
			}
		}
	})
}

// TestCapsBeginAnewEachMonth settles a call of October in November.
func TestCapsBeginAnewEachMonth(t *testing.T) {
	s := &source{policy: policy{caps: []Cap{{Scope: ScopeTenant, USD: money.SumOf(usd(10)), Spent: money.SumOf(usd(2))}}}}
	g := fakeGate(s)
	now := time.Date(2026, 10, 31, 23, 59, 59, 0, time.UTC)
	g.SetClock(func() time.Time { return now })
	old, err := g.Reserve(t.Context(), &Call{Tenant: "acme"}, usd(8))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Reserve(t.Context(), &Call{Tenant: "acme"}, usd(1)); !errors.Is(err, ErrBudget) {
		t.Fatal(err)
	}
	now = now.Add(1500 * time.Millisecond) // the policy is still October's
	r, err := g.Reserve(t.Context(), &Call{Tenant: "acme"}, usd(10))
	if err != nil {
		t.Fatal(err)
	}
	old.Settle(0, usd(8), true)
	if left, ok := r.Remaining(); !ok || left != 0 {
		t.Errorf("October's call counts in November: %v left", left)
	}
	h := g.tenants["acme"]
	if sums := h.changed(); len(sums) != 1 || sums[0].month.Month() != time.October || sums[0].usd != money.SumOf(usd(8)) {
		t.Errorf("to be written: %+v", sums)
	}
}

func BenchmarkGate(b *testing.B) {
	s := &source{policy: policy{
		limits: map[string]Limit{"tok_a": {KeyID: "tok_a", RequestsPerMinute: MaxPerMinute, TokensPerMinute: MaxPerMinute}},
		caps:   []Cap{{Scope: ScopeTenant, USD: money.SumOf(usd(1_000_000))}},
	}}
	g := fakeGate(s)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c := Call{Tenant: "acme", Credential: "tok_a", Provider: "openai", Model: "gpt-4o"}
		for pb.Next() {
			if _, yes, err := g.Stopped(testContext(), &c); yes || err != nil {
				b.Fatal(yes, err)
			}
			if _, _, err := g.Take(testContext(), &c); err != nil {
				b.Fatal(err)
			}
			r, err := g.Reserve(testContext(), &c, 1000)
			if err != nil {
				b.Fatal(err)
			}
			r.Settle(10, 900, true)
		}
	})
}
