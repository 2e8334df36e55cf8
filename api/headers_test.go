package api_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// What a browser is told with every answer, whatever the answer is.
func TestHeadersOfEveryAnswer(t *testing.T) {
	h := testServer(t, nil).HTTPHandler()
	for _, c := range []struct {
		method, target, token string
		status                int
	}{
		{http.MethodGet, "/v1/ledger/head?tenant_id=acme", "", http.StatusUnauthorized},
		{http.MethodGet, "/v1/no-such-thing", "", http.StatusUnauthorized},
		{http.MethodGet, "/v1/no-such-thing", "two", http.StatusNotFound},
		{http.MethodTrace, "/v1/ledger/head", "two", http.StatusMethodNotAllowed},
		{http.MethodOptions, "/v1/ledger/head", "", http.StatusUnauthorized},
		{http.MethodOptions, "/v1/ledger/head", "two", http.StatusMethodNotAllowed},
		{http.MethodGet, "/healthz", "", http.StatusOK},
	} {
		r := httptest.NewRequest(c.method, c.target, nil)
		r.Header.Set("Origin", "https://elsewhere.example")
		r.Header.Set("Access-Control-Request-Method", http.MethodPost)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.target, w.Code, c.status)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy":     "default-src 'none'; frame-ancestors 'none'",
			"Access-Control-Allow-Origin": "", "Access-Control-Allow-Methods": "", "Location": "",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s %s: %s is %q, want %q", c.method, c.target, name, got, want)
			}
		}
	}
}

// A token counts in the Authorization header only, and a parameter that stands
// twice is refused rather than read one way here and another way elsewhere.
func TestParametersStandOnceAndTokensInTheirHeader(t *testing.T) {
	h := testServer(t, nil).HTTPHandler()
	do := func(target, token string) int {
		r := httptest.NewRequest(http.MethodGet, target, nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, name := range []string{"token", "access_token", "authorization"} {
		if code := do("/v1/ledger/head?tenant_id=acme&"+name+"="+"two", ""); code != http.StatusUnauthorized {
			t.Errorf("a token in the query as %s: %d", name, code)
		}
	}
	if code := do("/v1/ledger/head?tenant_id=acme", "two"); code != http.StatusOK {
		t.Errorf("a token in its header: %d", code)
	}
	if code := do("/v1/ledger/head?tenant_id=acme&tenant_id=bravo", "two"); code != http.StatusBadRequest {
		t.Errorf("a parameter that stands twice: %d", code)
	}
}
