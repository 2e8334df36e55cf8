package vaultkms_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/kmstest"
	"github.com/tallystick/tallystick/internal/keyring/vaultkms"
)

// transit is the protocol of a transit engine, as its API document gives it,
// over real encryption.
type transit struct {
	keys  kmstest.Keys
	token string
}

func (s *transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, text string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string][]string{"errors": {text}})
	}
	if r.Header.Get("X-Vault-Token") != s.token || r.Header.Get("X-Vault-Namespace") != "team" {
		fail(http.StatusForbidden, "permission denied")
		return
	}
	var in struct {
		Plaintext      *[]byte `json:"plaintext"`
		Ciphertext     string  `json:"ciphertext"`
		AssociatedData []byte  `json:"associated_data"`
	}
	what, name, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/mounts/transit/"), "/")
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !ok || r.Method != http.MethodPost {
		fail(http.StatusBadRequest, "bad request")
		return
	}
	data := map[string]any{}
	switch what {
	case "encrypt":
		sealed, version, err := s.keys.Encrypt(name, *in.Plaintext, in.AssociatedData)
		if err != nil {
			fail(http.StatusForbidden, err.Error())
			return
		}
		data["ciphertext"] = fmt.Sprintf("vault:v%d:%s", version, base64.StdEncoding.EncodeToString(sealed))
	case "decrypt":
		parts := strings.SplitN(in.Ciphertext, ":", 3)
		sealed, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
		if err == nil {
			data["plaintext"], err = s.keys.Decrypt(name, sealed, in.AssociatedData)
		}
		if err != nil || len(parts) != 3 {
			fail(http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
	default:
		fail(http.StatusNotFound, "no handler")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func newKey(t *testing.T, o vaultkms.Options) *vaultkms.Key {
	t.Helper()
	o.Namespace = "team"
	k, err := vaultkms.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestContract(t *testing.T) {
	s := &transit{token: "hvs.secret"}
	s.keys.Rotate("tallystick")
	s.keys.Rotate("other")
	server := httptest.NewServer(s)
	defer server.Close()
	o := func(key, address string) vaultkms.Options {
		return vaultkms.Options{Address: address, Key: "mounts/transit/" + key, Token: s.token}
	}
	kmstest.Run(t, kmstest.Service{
		Key: newKey(t, o("tallystick", server.URL)), Other: newKey(t, o("other", server.URL)),
		Rotate: func(*testing.T) { s.keys.Rotate("tallystick") },
		At:     func(t *testing.T, url string) keyring.KMS { return newKey(t, o("tallystick", url)) },
	})
}

// TestTokenFile renews the token under the key, and takes it away.
func TestTokenFile(t *testing.T) {
	s := &transit{token: "first"}
	s.keys.Rotate("tallystick")
	server := httptest.NewServer(s)
	defer server.Close()
	path := filepath.Join(t.TempDir(), "token")
	k := newKey(t, vaultkms.Options{Address: server.URL, Key: "mounts/transit/tallystick", TokenFile: path})
	for _, c := range []struct {
		file, token string
		ok          bool
	}{{"first\n", "first", true}, {"first", "second", false}, {"second", "second", true}, {"", "second", false}, {"a\nb", "second", false}} {
		s.token = c.token
		if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := k.Wrap(t.Context(), make([]byte, 32), keyring.Binding{Tenant: "acme", Kind: "sealing", Version: 1})
		if (err == nil) != c.ok {
			t.Errorf("file %q, token %q: %v", c.file, c.token, err)
		}
		if err != nil && strings.Contains(err.Error(), "second") && c.file != "" {
			t.Errorf("the token is in the error: %v", err)
		}
	}
}

// TestNoRedirect: the token must not follow where an answer points.
func TestNoRedirect(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	k := newKey(t, vaultkms.Options{Address: server.URL, Key: "transit/tallystick", Token: "x"})
	if _, err := k.Wrap(t.Context(), make([]byte, 32), keyring.Binding{}); err == nil {
		t.Error("a redirect is an answer")
	}
}

func TestRefuses(t *testing.T) {
	good := vaultkms.Options{Address: "https://vault.example:8200", Key: "transit/tallystick", Token: "x"}
	if _, err := vaultkms.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*vaultkms.Options){
		"plain HTTP":   func(o *vaultkms.Options) { o.Address = "http://vault.example:8200" },
		"no address":   func(o *vaultkms.Options) { o.Address = "" },
		"credentials":  func(o *vaultkms.Options) { o.Address = "https://u:p@vault.example" },
		"no mount":     func(o *vaultkms.Options) { o.Key = "tallystick" },
		"no name":      func(o *vaultkms.Options) { o.Key = "transit/" },
		"no token":     func(o *vaultkms.Options) { o.Token = "" },
		"no PEM roots": func(o *vaultkms.Options) { o.CA = []byte("x") },
	} {
		o := good
		change(&o)
		if _, err := vaultkms.New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
