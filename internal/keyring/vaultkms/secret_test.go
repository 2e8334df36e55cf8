package vaultkms_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/vaultkms"
)

// A secret is read as Vault's KV version 2 gives it, in its newest version, and no
// failure tells of it or of the token.
func TestSecret(t *testing.T) {
	const canary = "the-pepper-of-the-test"
	answer, status := `{"data":{"data":{"pepper":"`+canary+`","n":1},"metadata":{"version":3}}}`, http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.EscapedPath() != "/v1/secret/data/team/a%20b" || r.Header.Get("X-Vault-Token") != "hvs.token" || r.Header.Get("X-Vault-Namespace") != "team" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	defer server.Close()
	read := func(name, token string) (string, error) {
		t.Helper()
		s, err := vaultkms.NewSecret(vaultkms.Options{Address: server.URL, Key: name, Token: token, Namespace: "team"})
		if err != nil {
			t.Fatal(err)
		}
		return s.Read(t.Context())
	}
	const name = "secret/team/a b#pepper"
	if got, err := read(name, "hvs.token"); err != nil || got != canary {
		t.Fatalf("%q, %v", got, err)
	}
	fails := func(what, name, token string) {
		t.Helper()
		got, err := read(name, token)
		if !errors.Is(err, keyring.ErrUnavailable) && !errors.Is(err, keyring.ErrMasterKey) || got != "" || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "hvs.") {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	fails("another token", name, "hvs.other")
	fails("another secret", "secret/team#pepper", "hvs.token")
	fails("no such field", "secret/team/a b#other", "hvs.token")
	fails("a number", "secret/team/a b#n", "hvs.token")
	for _, status = range []int{http.StatusNotFound, http.StatusBadRequest, http.StatusServiceUnavailable} {
		fails("a refusal", name, "hvs.token")
	}
	status, answer = http.StatusOK, "{"+canary
	fails("no JSON", name, "hvs.token")
	for _, name := range []string{"", "secret", "secret/x", "secret#x", "/x#y", "secret/x#", "secret//x#y", "secret/x/#y", "secret/x#y#z"} {
		if _, err := vaultkms.NewSecret(vaultkms.Options{Address: server.URL, Key: name, Token: "x"}); !errors.Is(err, vaultkms.ErrSecretName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
