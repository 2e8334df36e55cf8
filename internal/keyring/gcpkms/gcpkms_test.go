package gcpkms_test

import (
	"encoding/json"
	"errors"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/gcpkms"
	"github.com/tallystick/tallystick/internal/keyring/kmstest"
)

const keys = "projects/p/locations/europe-west3/keyRings/tallystick/cryptoKeys/"

// service is the protocol of Cloud KMS, as its REST reference gives it, over
// real encryption.
type service struct {
	keys  kmstest.Keys
	spoil bool // answer with wrong checksums
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, word string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": status, "status": word}})
	}
	if r.Header.Get("Authorization") != "Bearer ya29.secret" {
		fail(http.StatusUnauthorized, "UNAUTHENTICATED")
		return
	}
	var in struct {
		Plaintext, Ciphertext, AdditionalAuthenticatedData                   []byte
		PlaintextCrc32c, CiphertextCrc32c, AdditionalAuthenticatedDataCrc32c string
	}
	name, what, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), ":")
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !ok || in.AdditionalAuthenticatedDataCrc32c != s.sum(in.AdditionalAuthenticatedData, false) {
		fail(http.StatusBadRequest, "INVALID_ARGUMENT")
		return
	}
	var out map[string]any
	switch what {
	case "encrypt":
		sealed, version, err := s.keys.Encrypt(name, in.Plaintext, in.AdditionalAuthenticatedData)
		if err != nil {
			fail(http.StatusNotFound, "NOT_FOUND")
			return
		}
		out = map[string]any{
			"name": name + "/cryptoKeyVersions/" + strconv.Itoa(version), "ciphertext": sealed, "ciphertextCrc32c": s.sum(sealed, s.spoil),
			"verifiedPlaintextCrc32c": in.PlaintextCrc32c == s.sum(in.Plaintext, false), "protectionLevel": "SOFTWARE",
		}
	case "decrypt":
		plain, err := s.keys.Decrypt(name, in.Ciphertext, in.AdditionalAuthenticatedData)
		if err != nil || in.CiphertextCrc32c != s.sum(in.Ciphertext, false) {
			fail(http.StatusBadRequest, "INVALID_ARGUMENT")
			return
		}
		out = map[string]any{"plaintext": plain, "plaintextCrc32c": s.sum(plain, s.spoil), "usedPrimary": true}
	default:
		fail(http.StatusNotFound, "NOT_FOUND")
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *service) sum(b []byte, spoil bool) string {
	n := int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	if spoil {
		n ^= 1
	}
	return strconv.FormatInt(n, 10)
}

func newKey(t *testing.T, name, url string) *gcpkms.Key {
	t.Helper()
	k, err := gcpkms.New(gcpkms.Options{
		Key: keys + name, Endpoint: url, Tokens: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "ya29.secret"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestContract(t *testing.T) {
	s := &service{}
	s.keys.Rotate(keys + "ledger")
	s.keys.Rotate(keys + "other")
	server := httptest.NewServer(s)
	defer server.Close()
	kmstest.Run(t, kmstest.Service{
		Key: newKey(t, "ledger", server.URL), Other: newKey(t, "other", server.URL),
		Rotate: func(*testing.T) { s.keys.Rotate(keys + "ledger") },
		At:     func(t *testing.T, url string) keyring.KMS { return newKey(t, "ledger", url) },
	})
}

// TestChecksums: an answer that was damaged on its way is not used.
func TestChecksums(t *testing.T) {
	s := &service{}
	s.keys.Rotate(keys + "ledger")
	server := httptest.NewServer(s)
	defer server.Close()
	k, at := newKey(t, "ledger", server.URL), keyring.Binding{Tenant: "acme", Kind: "sealing", Version: 1}
	wrapped, err := k.Wrap(t.Context(), make([]byte, 32), at)
	if err != nil {
		t.Fatal(err)
	}
	s.spoil = true
	if _, err := k.Wrap(t.Context(), make([]byte, 32), at); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("Wrap: %v", err)
	}
	if _, err := k.Unwrap(t.Context(), wrapped, at); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("Unwrap: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	for _, o := range []gcpkms.Options{
		{}, {Key: "ledger"}, {Key: keys}, {Key: keys + "ledger/cryptoKeyVersions/1"}, {Key: keys + "led?ger"},
		{Key: keys + "ledger", Endpoint: "http://kms.example"},
	} {
		if _, err := gcpkms.New(o); err == nil {
			t.Errorf("%+v: accepted", o)
		}
	}
	if _, err := gcpkms.New(gcpkms.Options{Key: keys + "ledger"}); err != nil {
		t.Error(err)
	}
}
