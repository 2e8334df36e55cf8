package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/config"
)

// attribution is what the entry of a call says of whom and what it was for.
func (w *providersWorld) attribution(h http.Header) map[string]any {
	w.t.Helper()
	var found map[string]any
	await(w.t, "the entry of a call", 30*time.Second, func() bool {
		_, page := w.ask(w.admin, "GET", "/v1/ledger/entries?tenant_id=acme&descending=true", "", false)
		entries, _ := page["entries"].([]any)
		for _, e := range entries {
			if entry, _ := e.(map[string]any); entry["event_id"] == h.Get(proxy.EventIDHeader) {
				found, _ = entry["attribution"].(map[string]any)
				return true
			}
		}
		return false
	})
	return found
}

// TestCapture turns a tenant's digests on and off by the command line, and looks at
// the entries of the calls in between.
func TestCapture(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"chatcmpl-1","model":"gpt-4o","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":1,"total_tokens":11}}`)
	}))
	defer upstream.Close()
	w := newProvidersWorld(t, config.EnvPrefix+"PROXY_DIGESTS=true")
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme"]}`, false)
	made := w.must("/v1/tokens", `{"tenant_id":"acme","name":"caller","scopes":["ingest"]}`, true)
	w.caller, _ = made["secret"].(string)
	w.must("/v1/providers/keys", `{"tenant_id":"acme","provider":"openai","base_url":"`+upstream.URL+`","value":"sk-none"}`, false)

	var seen []string
	digest := func() string {
		t.Helper()
		d, _ := w.attribution(w.call(http.StatusOK, "search"))["tag:prompt_digest"].(string)
		seen = append(seen, d)
		return d
	}
	run := func(want int, args ...string) string {
		t.Helper()
		code, out := w.command("", append(append([]string{"providers", "capture"}, args...), "--tenant", "acme")...)
		if code != want {
			t.Errorf("capture %v: exit code %d, want %d\n%s", args, code, want, out)
		}
		return out
	}
	if out := run(exitOK); !strings.Contains(out, "off") || !strings.Contains(out, "never set") || digest() != "" {
		t.Errorf("at first: %q, digests %q", out, seen)
	}
	run(exitUsage, "perhaps")
	if out := run(exitOK, "on"); !strings.Contains(out, "on") || len(digest()) != 32 || digest() != seen[1] {
		t.Errorf("when it is on: %q, digests %q", out, seen)
	}
	if out := run(exitOK, "off"); !strings.Contains(out, "off") || digest() != "" {
		t.Errorf("when it is off again: %q, digests %q", out, seen)
	}
	if code, out := w.command("", "audit", "tail", "--tenant", "acme"); code != exitOK || strings.Count(out, "capture.set") != 2 {
		t.Errorf("audit tail: %d %s", code, out)
	}
	t.Setenv("TALLYSTICK_TOKEN", w.caller) // no admin
	run(exitAuth, "on")
}
