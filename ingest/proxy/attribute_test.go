package proxy_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/money"
)

// bound gives every call of tok_1 to the team search, as a tenant's rule would.
type bound struct{ err error }

func (b bound) Attribute(ev *event.Event, credential string) error {
	if credential == "tok_1" {
		ev.Team, ev.MappingVersion = "search", 7
	}
	return b.err
}

// teams notes of which team each gate takes a call to be.
type teams struct{ killed, limited, reserved string }

func (s *teams) Killed(_ context.Context, c *proxy.Call) (policy, reason string, killed bool, err error) {
	s.killed = c.Team
	return "", "", false, nil
}

func (s *teams) Take(_ context.Context, c *proxy.Call) (time.Duration, string, error) {
	s.limited = c.Team
	return 0, "", nil
}

func (s *teams) Reserve(_ context.Context, c *proxy.Call, _ money.Pico) (proxy.Reservation, error) {
	s.reserved = c.Team
	return &policy{}, nil
}

// Whoever leaves the team's header out, or names another team, is held against the
// team that the tenant's rules say; the event says what the caller said, because its
// sink runs the same rules.
func TestCallsAreJudgedByTheTenantsRules(t *testing.T) {
	for _, header := range []string{"", "search", "forged"} {
		var seen teams
		w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(rw, chatAnswer)
		}, func(p *proxy.Parts, _ *proxy.Options) {
			p.Rules, p.Switch, p.Limits, p.Budgets = bound{}, &seen, &seen, &seen
		})
		req := w.request("POST", "/openai/v1/chat/completions", chatRequest)
		if header != "" {
			req.Header.Set("X-Tallystick-Team", header)
		}
		if resp := w.do(req); resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
		if seen != (teams{"search", "search", "search"}) {
			t.Errorf("header %q: judged as %+v", header, seen)
		}
		if ev := w.sink.wait(t); ev.Team != header || ev.MappingVersion != 0 {
			t.Errorf("header %q: event of team %q", header, ev.Team)
		}
	}
}

// While nobody can tell whom a call is for, it is not forwarded.
func TestRulesThatCannotBeTold(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded") }, func(p *proxy.Parts, _ *proxy.Options) {
		p.Rules = bound{err: errors.New("away")}
	})
	resp := w.do(w.request("POST", "/openai/v1/chat/completions", chatRequest))
	if got := w.sink.take(); resp.StatusCode != http.StatusServiceUnavailable || len(got) != 1 || got[0].ErrorType != "unavailable" {
		t.Errorf("status %d, events %+v", resp.StatusCode, got)
	}
}
