package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestTeamsCannotBeDodged binds a credential to a team by a mapping rule, and calls
// with it in every way that would step over the team's kill switch and cap if the
// proxy went by the caller's header.
func TestTeamsCannotBeDodged(t *testing.T) {
	calls := 0
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"chatcmpl-1","model":"gpt-4o-2024-08-06","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],`+
			`"usage":{"prompt_tokens":1000,"completion_tokens":100,"total_tokens":1100}}`)
	}))
	defer provider.Close()
	w := newProvidersWorld(t)
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme"]}`, false)
	token := func(name string) (secret, id string) {
		made := w.must("/v1/tokens", fmt.Sprintf(`{"tenant_id":"acme","name":%q,"scopes":["ingest"]}`, name), true)
		secret, _ = made["secret"].(string)
		about, _ := made["token"].(map[string]any)
		id, _ = about["token_id"].(string)
		return secret, id
	}
	bound, boundID := token("bound")
	filled, filledID := token("filled")
	free, _ := token("free")
	w.must("/v1/providers/keys", fmt.Sprintf(`{"tenant_id":"acme","provider":"openai","base_url":%q,"value":"sk-none"}`, provider.URL), false)
	w.must("/v1/mapping/rules", fmt.Sprintf(`{"tenant_id":"acme","rules":[
		{"when":{"credential":%q},"set":{"team":"search"},"override":true},
		{"when":{"credential":%q},"set":{"team":"search"}}]}`, boundID, filledID), false)
	thrown := w.must("/v1/providers/switches", `{"tenant_id":"acme","scope":"team","subject":"search","reason":"a loop"}`, false)

	// The proxy knows new rules within some seconds; it may know none yet.
	w.caller = bound
	await(t, "the rule in the proxy", 30*time.Second, func() bool {
		code, _, _ := w.tryCall("")
		return code == http.StatusUnavailableForLegalReasons
	})
	before := calls
	for _, team := range []string{"", "search", "other"} {
		w.call(http.StatusUnavailableForLegalReasons, team)
	}
	w.caller = filled // a default: it fills in what the caller leaves out, and no more
	w.call(http.StatusUnavailableForLegalReasons, "")
	if calls != before {
		t.Errorf("%d calls of a killed team went to the provider", calls-before)
	}
	w.call(http.StatusOK, "other")
	w.caller = free
	w.call(http.StatusOK, "")
	w.must(fmt.Sprintf("/v1/providers/switches/%s:lift", thrown["switch_id"]), `{"tenant_id":"acme"}`, false)

	// Each call costs 0.0035 USD: three use the cap up, whatever they say.
	w.must("/v1/providers/caps", `{"tenant_id":"acme","scope":"team","subject":"search","usd_per_month":"0.0105"}`, false)
	w.caller = bound
	for _, team := range []string{"", "other", "search"} {
		w.call(http.StatusOK, team)
	}
	for _, team := range []string{"", "other", "search"} {
		w.call(http.StatusTooManyRequests, team)
	}
	w.caller = free
	w.call(http.StatusOK, "other")
	w.app.access.gate.Flush(t.Context())
	_, caps := w.ask(w.admin, "GET", "/v1/providers/caps?tenant_id=acme", "", false)
	if text, err := json.Marshal(caps["caps"]); err != nil || len(caps["caps"].([]any)) != 1 || caps["caps"].([]any)[0].(map[string]any)["spent_usd"] != "0.010500000000" {
		t.Errorf("caps: %s, %v", text, err)
	}
}
