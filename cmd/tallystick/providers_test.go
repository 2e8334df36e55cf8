package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/config"
)

// TestProviders does by the command line what a person does, and calls the proxy
// after each step: what is changed here is in force at once.
func TestProviders(t *testing.T) {
	const first, second = "sk-proj-FIRSTfirstFIRSTfirst0001", "sk-proj-SECONDsecondSECOND0002"
	var key string // that the provider saw last
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key = r.Header.Get("Authorization")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Strict-Transport-Security", "max-age=0") // which is for the provider's host
		_, _ = io.WriteString(w, `{"id":"chatcmpl-1","model":"gpt-4o-2024-08-06","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],`+
			`"usage":{"prompt_tokens":1000,"completion_tokens":100,"total_tokens":1100}}`)
	}))
	defer provider.Close()
	w := newProvidersWorld(t)
	run := func(want int, stdin string, args ...string) string {
		t.Helper()
		code, out := w.command(stdin, append(args, "--tenant", "acme")...)
		if code != want || strings.Contains(out, "FIRST") || strings.Contains(out, "SECOND") {
			t.Errorf("%v: exit code %d, want %d\n%s", args, code, want, out)
		}
		return out
	}
	id := func(out, prefix string) string {
		t.Helper()
		_, rest, ok := strings.Cut(out, prefix)
		if !ok {
			t.Fatalf("no %s in %q", prefix, out)
		}
		return prefix + strings.FieldsFunc(rest, func(r rune) bool { return r == ' ' || r == '"' })[0]
	}
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme"]}`, false)
	made := w.must("/v1/tokens", `{"tenant_id":"acme","name":"caller","scopes":["ingest"]}`, true)
	w.caller, _ = made["secret"].(string)
	about, _ := made["token"].(map[string]any)
	tokenID, _ := about["token_id"].(string)

	w.call(http.StatusBadGateway, "search")
	run(exitUsage, "", "providers", "add", "openai")
	run(exitUsage, first, "providers", "add", "openai", "--base-url", "http://169.254.169.254/")
	secret := id(run(exitOK, first+"\n", "providers", "add", "openai", "--base-url", provider.URL), "sec_")
	run(exitConflict, first, "providers", "add", "openai", "--base-url", provider.URL)
	if w.call(http.StatusOK, "search"); key != "Bearer "+first {
		t.Errorf("the provider saw another key")
	}
	if out := run(exitOK, second, "providers", "rotate", secret); !strings.Contains(out, "sk-p…0002") || !strings.Contains(out, "the old value until") {
		t.Errorf("rotate prints %q", out)
	}
	if w.call(http.StatusOK, "search"); key != "Bearer "+second {
		t.Errorf("the provider saw another key after the rotation")
	}

	run(exitUsage, "", "providers", "kill", "--scope", "team", "--subject", "search")
	w.switches(t, run, id)
	run(exitOK, "", "providers", "limit", tokenID, "--requests", "2")
	w.call(http.StatusOK, "search")
	w.call(http.StatusOK, "search")
	if h := w.call(http.StatusTooManyRequests, "search"); h.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	if out := run(exitOK, "", "providers", "limits"); !strings.Contains(out, tokenID) {
		t.Errorf("limits prints %q", out)
	}
	run(exitOK, "", "providers", "limit", tokenID)
	w.call(http.StatusOK, "search")
	w.caps(t, run)
	run(exitOK, "", "providers", "capture", "on")
	for name := range w.attribution(w.call(http.StatusOK, "search")) {
		if strings.Contains(name, "digest") {
			t.Errorf("%s is kept where the installation does not allow it", name)
		}
	}

	if out := run(exitOK, "", "providers", "list", "--json"); !strings.Contains(out, secret) || !strings.Contains(out, `"provider":"openai"`) {
		t.Errorf("list prints %q", out)
	}
	run(exitOK, "", "providers", "revoke", secret)
	run(exitNotFound, second, "providers", "rotate", secret)
	w.call(http.StatusBadGateway, "search")
	t.Setenv("TALLYSTICK_TOKEN", w.caller)
	run(exitAuth, "", "providers", "list")
}

// providersWorld is an accessWorld whose proxy may call this machine.
type providersWorld struct {
	*accessWorld
	caller string // a token with the scope ingest
}

func newProvidersWorld(t *testing.T, settings ...string) *providersWorld {
	t.Helper()
	settings = append(settings, config.EnvPrefix+"PROVIDERS_PRIVATE_NETWORKS=true", config.EnvPrefix+"PROXY_LISTEN=127.0.0.1:0")
	w := &providersWorld{accessWorld: newAccessWorld(t, settings...)}
	t.Cleanup(func() {
		if err := w.app.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// call makes one call through the proxy and gives the answer's headers.
func (w *providersWorld) call(want int, team string) http.Header {
	w.t.Helper()
	code, h, body := w.tryCall(team)
	if code != want {
		w.t.Errorf("a call: %d %s, want %d", code, body, want)
	}
	return h
}

// tryCall makes one call through the proxy; without a team it sends no header.
func (w *providersWorld) tryCall(team string) (code int, h http.Header, body []byte) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "https://"+w.app.metering.addr+"/openai/v1/chat/completions",
		strings.NewReader(`{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}],"max_tokens":10}`))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.caller)
	if team != "" {
		req.Header.Set("X-Tallystick-Team", team)
	}
	req.Header.Set("X-Tallystick-Return", "cost")
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		w.t.Fatal(err)
	}
	w.checkHSTS("a call", resp.Header)
	return resp.StatusCode, resp.Header, body
}

// switches throws and lifts a switch.
func (w *providersWorld) switches(t *testing.T, run func(want int, stdin string, args ...string) string, id func(out, prefix string) string) {
	t.Helper()
	thrown := id(run(exitOK, "", "providers", "kill", "--scope", "team", "--subject", "search", "--reason", "a loop"), "swi_")
	run(exitConflict, "", "providers", "kill", "--scope", "team", "--subject", "search", "--reason", "a loop")
	w.call(http.StatusUnavailableForLegalReasons, "search")
	w.call(http.StatusOK, "other")
	if out := run(exitOK, "", "providers", "switches"); !strings.Contains(out, thrown) || !strings.Contains(out, "a loop") || !strings.Contains(out, "in force") {
		t.Errorf("switches prints %q", out)
	}
	run(exitOK, "", "providers", "lift", thrown)
	run(exitNotFound, "", "providers", "lift", thrown)
	w.call(http.StatusOK, "search")
}

// caps sets a cap that three calls use up: each costs 0.0035 USD of gpt-4o.
func (w *providersWorld) caps(t *testing.T, run func(want int, stdin string, args ...string) string) {
	t.Helper()
	run(exitUsage, "", "providers", "cap")
	run(exitUsage, "", "providers", "cap", "--usd", "many")
	run(exitUsage, "", "providers", "cap", "--usd", "1", "--none")
	run(exitOK, "", "providers", "cap", "--scope", "team", "--subject", "thrifty", "--usd", "0.0105")
	for left := range 3 {
		h := w.call(http.StatusOK, "thrifty")
		if want := []string{"0.007000000000", "0.003500000000", "0.000000000000"}[left]; h.Get("X-Tallystick-Budget-Remaining-Usd") != want {
			t.Errorf("%s left of the cap, want %s", h.Get("X-Tallystick-Budget-Remaining-Usd"), want)
		}
	}
	w.call(http.StatusTooManyRequests, "thrifty")
	w.call(http.StatusOK, "other")
	w.app.access.gate.Flush(t.Context())
	var cap struct {
		Spent string `json:"spent_usd"`
	}
	if err := json.Unmarshal([]byte(run(exitOK, "", "providers", "caps", "--json")), &cap); err != nil || cap.Spent != "0.010500000000" {
		t.Errorf("spent %q, %v", cap.Spent, err)
	}
	run(exitOK, "", "providers", "cap", "--scope", "team", "--subject", "thrifty", "--none")
	w.call(http.StatusOK, "thrifty")
}
