package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

// memory is a Sink that keeps what it is given.
type memory struct {
	mu   sync.Mutex // protects what follows
	rows []Event
	fail error
}

func (m *memory) recordAll(_ context.Context, id tenant.ID, events []Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, ev := range events {
		if ev.Tenant != id {
			return fmt.Errorf("an event of %q in a batch of %q", ev.Tenant, id)
		}
		if id == "keyless" {
			return fmt.Errorf("%w: %q", keyring.ErrNoKey, id)
		}
	}
	m.rows = append(m.rows, events...)
	return nil
}

func (m *memory) taken() []Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	rows := m.rows
	m.rows = nil
	return rows
}

func (m *memory) set(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// run gives fn a running Recorder in fake time, and what it wrote at its end.
func run(t *testing.T, fn func(*Recorder, *memory)) (end []Event) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		r := newRecorder(m, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		fn(r, m)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		end = m.taken()
	})
	return end
}

func login(actor, addr string) Event {
	return Event{Tenant: "acme", Actor: actor, Action: Authenticate, Addr: addr, Client: "curl/8"}
}

// total is how many events the rows stand for.
func total(rows []Event) (n int64) {
	for i := range rows {
		n += max(1, rows[i].Count)
	}
	return n
}

func TestRepeatedLoginsAreOneRowAndACount(t *testing.T) {
	end := run(t, func(r *Recorder, m *memory) {
		for range 1000 {
			r.Allowed(login("tok_1", "192.0.2.1"))
		}
		r.Allowed(login("tok_2", "192.0.2.1"))
		r.Allowed(login("tok_1", "192.0.2.2"))
		synctest.Wait()
		if rows := m.taken(); len(rows) != 3 || rows[0].Count != 0 || rows[0].Outcome != OK {
			t.Errorf("at once: %+v", rows)
		}
		time.Sleep(AllowedWindow + tickInterval)
		synctest.Wait()
		if rows := m.taken(); len(rows) != 1 || rows[0].Count != 999 || rows[0].Actor != "tok_1" || rows[0].Addr != "192.0.2.1" {
			t.Errorf("after the window: %+v", rows)
		}
		r.Allowed(login("tok_1", "192.0.2.1"))
		r.Allowed(login("tok_1", "192.0.2.1"))
	})
	if len(end) != 2 || total(end) != 2 {
		t.Errorf("the next window's at the end: %+v", end)
	}
}

// A refusal's row is durable before the caller is answered.
func TestDenialIsWrittenBeforeItIsAnswered(t *testing.T) {
	run(t, func(r *Recorder, m *memory) {
		ev := login("", "192.0.2.1")
		ev.Reason = "unknown token"
		r.Denied(context.Background(), ev)
		if rows := m.taken(); len(rows) != 1 || rows[0].Outcome != Denied {
			t.Errorf("when Denied returns: %+v", rows)
		}
	})
}

// A flood from ever new addresses writes a bounded number of rows, and none of
// its events goes uncounted.
func TestFloodIsBoundedAndCounted(t *testing.T) {
	const events = 50_000
	var first []Event
	end := run(t, func(r *Recorder, m *memory) {
		for i := range events {
			ev := login("", fmt.Sprintf("2001:db8:%x::%x", i%5000, i))
			ev.Reason = fmt.Sprint("reason ", i%7)
			r.Denied(context.Background(), ev)
		}
		synctest.Wait()
		first = m.taken()
	})
	if len(first) > deniedBudget {
		t.Errorf("%d rows of their own", len(first))
	}
	if len(end) > deniedSources+2 {
		t.Errorf("%d rows of counts", len(end))
	}
	if n := total(first) + total(end); n != events {
		t.Errorf("%d events are told of, %d happened", n, events)
	}
	overflow := 0
	for _, ev := range end {
		if ev.Actor == OverflowActor && ev.Tenant == Installation {
			overflow++
		}
	}
	if overflow != 1 {
		t.Errorf("%d rows count the sources that are too many", overflow)
	}
}

// Addresses of one IPv6 customer are one source, of IPv4 each is its own.
func TestSourcesAreNetworks(t *testing.T) {
	for _, tc := range []struct{ a, b string }{{"2001:db8::1", "2001:db8::ffff"}, {"fe80::1%eth0", "fe80::2%eth1"}} {
		if network(tc.a) != network(tc.b) {
			t.Errorf("%s and %s are told apart", tc.a, tc.b)
		}
	}
	for _, tc := range []struct{ a, b string }{{"192.0.2.1", "192.0.2.2"}, {"2001:db8:0:1::1", "2001:db8::1"}, {"::ffff:192.0.2.1", "::ffff:192.0.2.2"}, {"unix", ""}} {
		if network(tc.a) == network(tc.b) {
			t.Errorf("%s and %s are one", tc.a, tc.b)
		}
	}
}

// While the store is away rows wait; refusals still answer, within their limit.
func TestRowsWaitForTheStore(t *testing.T) {
	end := run(t, func(r *Recorder, m *memory) {
		m.set(errors.New("away"))
		began := time.Now()
		r.Denied(context.Background(), login("", "192.0.2.1"))
		if waited := time.Since(began); waited != denialWait {
			t.Errorf("the refusal waited %v", waited)
		}
		r.Allowed(login("tok_1", "192.0.2.1"))
		time.Sleep(time.Minute)
		m.set(nil)
	})
	if total(end) != 2 || end[0].Outcome != Denied {
		t.Errorf("written in the end: %+v", end)
	}
}

// However long the store is away, only so many rows wait for it, and what finds
// no room is counted all the same.
func TestWaitingRowsAreBounded(t *testing.T) {
	const minutes = 5
	var sent int64
	end := run(t, func(r *Recorder, m *memory) {
		m.set(errors.New("away"))
		for i := range allowedSources {
			r.Allowed(login("tok_1", fmt.Sprintf("192.0.%d.%d", i/256, i%256)))
			sent++
		}
		for range minutes {
			for i := range deniedSources {
				for range deniedRows + 1 {
					r.DeniedLater(login("", fmt.Sprintf("192.0.2.%d", i)))
					sent++
				}
			}
			time.Sleep(DeniedWindow)
			if n := r.waiting(); n > maxQueued {
				t.Fatalf("%d rows wait", n)
			}
		}
		m.set(nil)
	})
	if n := total(end); n != sent {
		t.Errorf("%d events are told of, %d happened", n, sent)
	}
}

// A tenant without keys has no chain of its own.
func TestKeylessTenantsRowsGoToTheInstallation(t *testing.T) {
	end := run(t, func(r *Recorder, _ *memory) {
		ev := login("tok_9", "192.0.2.1")
		ev.Tenant = "keyless"
		r.Allowed(ev)
	})
	if len(end) != 1 || end[0].Tenant != Installation || end[0].Resource != "tenant/keyless" {
		t.Errorf("%+v", end)
	}
}
