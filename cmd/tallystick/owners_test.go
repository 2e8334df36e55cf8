package main

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestDefaultOwners does by the command line what a person does: says whose
// untagged usage is, changes that, and asks what it cost. Usage stays with who was
// the owner when it occurred, and no total moves.
func TestDefaultOwners(t *testing.T) {
	w := newAccessWorld(t)
	t.Cleanup(func() {
		if err := w.app.close(); err != nil {
			t.Error(err)
		}
	})
	run := func(want int, args ...string) string {
		t.Helper()
		code, out := w.command("", append(args, "--tenant", "acme")...)
		if code != want {
			t.Errorf("%v: exit code %d, want %d\n%s", args, code, want, out)
		}
		return out
	}
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme"]}`, false)
	now := time.Now().UTC()
	// gpt-4o at 2.5e-6 and 1e-5 USD a token.
	for i, e := range []struct {
		team          string
		ago           time.Duration
		input, output int
	}{
		{"search", time.Minute, 1000, 500},
		{"", time.Minute, 1, 0},
		{"", 30 * time.Hour, 1000, 0},
		{"platform", 30 * time.Hour, 0, 1000},
	} {
		code, m := w.ask(w.admin, "POST", "/v1/events:batch", fmt.Sprintf(
			`[{"event_id":"e%d","tenant_id":"acme","occurred_at":%q,"provider":"openai","model":"gpt-4o","team":%q,"tokens":{"input":"%d","output":"%d"}}]`,
			i, now.Add(-e.ago).Format(time.RFC3339), e.team, e.input, e.output), false)
		if code != http.StatusAccepted {
			t.Fatalf("event %d: %d %v", i, code, m)
		}
	}
	await(t, "all is in the report", time.Minute, func() bool {
		_, out := w.command("", "cost", "--tenant", "acme", "--window", "7d")
		return regexp.MustCompile(`total +\S+ +4\n`).MatchString(out)
	})
	check := func(out string, rows ...string) {
		t.Helper()
		for _, row := range rows {
			if !strings.Contains(words(out), words(row)+"\n") {
				t.Errorf("no row %q in\n%s", row, out)
			}
		}
	}
	check(run(exitOK, "cost", "--window", "7d"), "platform 0.010000000000 1", "search 0.007500000000 1", "(untagged) 0.002502500000 2", "total 0.020002500000 4")

	if out := run(exitOK, "mapping", "owners", "show"); !strings.Contains(out, "no default owners") {
		t.Errorf("before any: %s", out)
	}
	none := run(exitOK, "cost", "--window", "7d", "--allocate", "default_owner")
	check(none, "(untagged) 0.002502500000 0.000000000000 0.002502500000 2", "total 0.020002500000 0.000000000000 0.020002500000 4")
	check(run(exitOK, "mapping", "owners", "put", "team=platform", "environment=prod", "--from", now.Add(-72*time.Hour).Format(time.DateOnly)), "team=platform", "environment=prod")
	check(run(exitOK, "mapping", "owners", "put", "team=fin ops", "--from", now.Add(-time.Hour).Format(time.RFC3339)), "team=fin ops")
	check(run(exitOK, "mapping", "owners", "show", "--version", "1"), "environment=prod", "team=platform")

	check(run(exitOK, "cost", "--window", "7d", "--allocate", "default_owner"), "TEAM DIRECT USD ALLOCATED USD TOTAL USD REQUESTS",
		"platform 0.010000000000 0.002500000000 0.012500000000 2", "search 0.007500000000 0.000000000000 0.007500000000 1",
		"fin ops 0.000000000000 0.000002500000 0.000002500000 1", "total 0.017500000000 0.002502500000 0.020002500000 4")
	check(run(exitOK, "cost", "--window", "7d", "--by", "team,model", "--allocate", "default_owner", "--top", "1"),
		"platform/gpt-4o 0.010000000000 0.002500000000 0.012500000000 2", "(other) 0.007500000000 0.000002500000 0.007502500000 2")
	// 2,502,500,000 by 10:7.5 is 1,430,000,000 and 1,072,500,000.
	check(run(exitOK, "cost", "--window", "7d", "--allocate", "proportional"), "platform 0.010000000000 0.001430000000 0.011430000000 1",
		"search 0.007500000000 0.001072500000 0.008572500000 1", "(untagged) 0.000000000000 0.000000000000 0.000000000000 2",
		"total 0.017500000000 0.002502500000 0.020002500000 4")

	check(run(exitOK, "mapping", "owners", "clear"), "no default owners")
	for _, args := range [][]string{
		{"mapping", "owners", "put", "team"}, {"mapping", "owners", "put", "user=jo"}, {"mapping", "owners", "put", "team="},
		{"mapping", "owners", "put", "team=a", "team=b"}, {"mapping", "owners", "put", "team=a", "--from", "soon"},
		{"cost", "--allocate", "even"}, {"cost", "--by", "model", "--allocate", "default_owner"}, {"cost", "--window", "7d", "--from", "2026-01-01"},
	} {
		if code, out := w.command("", append(args, "--tenant", "acme")...); code != exitUsage {
			t.Errorf("%v: exit code %d, want %d\n%s", args, code, exitUsage, out)
		}
	}
	run(exitNotFound, "mapping", "owners", "show", "--version", "9")
}

// words is a text with single spaces.
func words(s string) string { return regexp.MustCompile(` +`).ReplaceAllString(s, " ") }
