package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/provider"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/testenv"
)

// providerServer serves providers over a fresh database.
func providerServer(t *testing.T) http.Handler {
	t.Helper()
	ring := testenv.Ring(t, "acme", "bravo")
	db := testenv.MigratedPostgres(t).Open(t, postgres.RoleApp)
	store := provider.NewStore(db, ring, secrets.NewStore(db, ring), provider.Options{})
	return testServer(t, func(d *api.Deps, _ *api.Options) { d.Providers = store }).HTTPHandler()
}

// post sends JSON as a credential and returns the status and the body.
func post(h http.Handler, credential, path, body string) (int, string) {
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+credential)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// What the page does, by the API that it does it with: no answer holds a key's value.
func TestProviderKeysOverREST(t *testing.T) {
	h := providerServer(t)
	const first, second = "sk-live-FIRSTfirstFIRSTfirst-0001", "sk-live-SECONDsecondSECOND-0002"
	ask := func(credential, path, body string, want int) (answer map[string]any) {
		t.Helper()
		code, text := post(h, credential, path, body)
		if code != want || strings.Contains(text, first) || strings.Contains(text, second) {
			t.Fatalf("%s: %d %s, want %d", path, code, text, want)
		}
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	const keys = "/v1/providers/keys"
	made := ask("acme", keys, `{"tenant_id":"acme","provider":"openai","value":"`+first+`"}`, 200)
	id, _ := made["secret_id"].(string)
	if made["masked"] != "sk-l…0001" || id == "" {
		t.Errorf("added: %v", made)
	}
	turned := ask("acme", keys+"/"+id+":rotate", `{"tenant_id":"acme","value":"`+second+`"}`, 200)
	if turned["masked"] != "sk-l…0002" || turned["previous_until"] == nil {
		t.Errorf("rotated: %v", turned)
	}
	ask("two", keys+"?tenant_id=acme", "", 403) // may read, is no admin
	ask("two", keys+"/"+id+":revoke", `{"tenant_id":"acme"}`, 403)
	ask("acme", keys+"/"+id+":revoke", `{"tenant_id":"acme"}`, 200)
	list, _ := ask("acme", keys+"?tenant_id=acme", "", 200)["keys"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["revoked_at"] == nil {
		t.Errorf("listed: %v", list)
	}

	for name, tc := range map[string]struct{ path, body, field, rule string }{
		"a provider's name": {keys, `{"provider":"Open AI","value":"` + first + `"}`, "provider", "pattern"},
		"two lines":         {keys, `{"provider":"openai","value":"` + first + `\nHost: x"}`, "value", "syntax"},
		"an address":        {keys, `{"provider":"openai","base_url":"https://127.0.0.1","value":"` + first + `"}`, "base_url", "address"},
		"a scope":           {"/v1/providers/switches", `{"scope":"person","reason":"x"}`, "scope", "in"},
		"no reason":         {"/v1/providers/switches", `{"scope":"tenant"}`, "reason", "length"},
		"a limit":           {"/v1/providers/limits", `{"key_id":"tok_1","tokens_per_minute":"-1"}`, "tokens_per_minute", "range"},
		"a cap":             {"/v1/providers/caps", `{"scope":"tenant","usd_per_month":"-1"}`, "usd_per_month", "range"},
	} {
		violations, _ := ask("acme", tc.path, tc.body, 400)["violations"].([]any)
		if len(violations) != 1 {
			t.Errorf("%s: violations %v", name, violations)
			continue
		}
		if v := violations[0].(map[string]any); v["field"] != tc.field || v["rule"] != tc.rule {
			t.Errorf("%s: %v, want %s, %s", name, v, tc.field, tc.rule)
		}
	}
}
