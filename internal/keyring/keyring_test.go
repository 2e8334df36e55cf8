package keyring_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
)

func mustOpen(t testing.TB, dir string) *keyring.Ring {
	t.Helper()
	r, err := keyring.Open(dir, nil)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func mustCreate(t testing.TB, r *keyring.Ring, ids ...tenant.ID) []tenant.ID {
	t.Helper()
	created, err := r.Create(ids...)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return created
}

func mustDerive(t testing.TB, r *keyring.Ring, id tenant.ID, p keyring.Purpose, epoch uint32) [32]byte {
	t.Helper()
	k, err := r.Derive(id, p, epoch)
	if err != nil {
		t.Fatalf("Derive(%s, %s, %d): %v", id, p, epoch, err)
	}
	return k
}

func TestCreateSurvivesReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	r := mustOpen(t, dir)
	if got := mustCreate(t, r, "beta", "acme", "beta", "system/3"); !slices.Equal(got, []tenant.ID{"beta", "acme", "system/3"}) {
		t.Errorf("created %v", got)
	}
	if got := mustCreate(t, r, "acme", "gamma"); !slices.Equal(got, []tenant.ID{"gamma"}) {
		t.Errorf("created %v the second time", got)
	}
	mac, secret := mustDerive(t, r, "acme", keyring.MAC, 1), r.ContextSecret()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	again := mustOpen(t, dir)
	if mustDerive(t, again, "acme", keyring.MAC, 1) != mac || again.ContextSecret() != secret {
		t.Error("keys changed by reopening")
	}
	if secret == ([32]byte{}) {
		t.Error("the context secret is zero")
	}
	if got := again.Tenants(); !slices.Equal(got, []tenant.ID{"acme", "beta", "gamma", "system/3"}) {
		t.Errorf("Tenants = %v", got)
	}
	if !again.Has("acme") || again.Has("delta") {
		t.Error("Has is wrong")
	}
}

func TestUnknownTenantAndPurpose(t *testing.T) {
	r := mustOpen(t, t.TempDir())
	mustCreate(t, r, "acme")
	if _, err := r.Derive("nobody", keyring.MAC, 0); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("unknown tenant: %v", err)
	}
	for _, c := range []struct {
		p     keyring.Purpose
		epoch uint32
	}{{"", 0}, {"context", 0}, {keyring.Dedupe, 1}, {keyring.Pseudonym, 7}, {keyring.Digest, 1}} {
		if _, err := r.Derive("acme", c.p, c.epoch); !errors.Is(err, keyring.ErrPurpose) {
			t.Errorf("Derive(%q, %d): %v", c.p, c.epoch, err)
		}
	}
	for _, id := range []tenant.ID{"", "Acme", "a/b", "system/-1", "system/x"} {
		if _, err := r.Create("ok", id); !errors.Is(err, tenant.ErrInvalidID) {
			t.Errorf("Create(%q): %v", id, err)
		}
	}
	if r.Has("ok") {
		t.Error("a refused call created a tenant")
	}
}

// rfc5869 is the derivation written from the package comment with HMAC alone.
func rfc5869(root [32]byte, info []byte) (key [32]byte) {
	extract := hmac.New(sha256.New, make([]byte, 32))
	extract.Write(root[:])
	expand := hmac.New(sha256.New, extract.Sum(nil))
	expand.Write(append(info, 1))
	return [32]byte(expand.Sum(nil))
}

func TestDerivationIsTheDocumentedOne(t *testing.T) {
	r := mustOpen(t, t.TempDir())
	mustCreate(t, r, "acme")
	root := keyring.IntegrityRoot(r, "acme")
	for _, c := range []struct {
		p     keyring.Purpose
		epoch uint32
		info  string
	}{
		{keyring.MAC, 0, "tallystick/mac\x00acme\x00\x00\x00\x00\x00"},
		{keyring.MAC, 0x01020304, "tallystick/mac\x00acme\x00\x01\x02\x03\x04"},
		{keyring.Dedupe, 0, "tallystick/dedupe\x00acme\x00\x00\x00\x00\x00"},
		{keyring.Pseudonym, 0, "tallystick/pseudonym\x00acme\x00\x00\x00\x00\x00"},
	} {
		if got, want := mustDerive(t, r, "acme", c.p, c.epoch), rfc5869(root, []byte(c.info)); got != want {
			t.Errorf("%s epoch %d differs from the documented derivation", c.p, c.epoch)
		}
	}
	exported, err := r.ExportMACKey("acme", 5)
	if err != nil || exported != mustDerive(t, r, "acme", keyring.MAC, 5) {
		t.Errorf("ExportMACKey is not the MAC key (%v)", err)
	}
}

// TestDerivationVector pins the derivation to bytes, so that no change of code
// and test together can change what old ledgers were signed with.
func TestDerivationVector(t *testing.T) {
	var root [32]byte
	for i := range root {
		root[i] = byte(i)
	}
	for _, c := range []struct {
		p     keyring.Purpose
		epoch uint32
		want  string
	}{
		{keyring.MAC, 1, "08abb0bffc9f9c8c861f7bd803e7789368e3f4779886f2ea31baf0e07f67a658"},
		{keyring.Dedupe, 0, "7bffb2610a9251a8411fa8e397ed37b2299d008b82504452d8701dd1a55d70e5"},
		{keyring.Pseudonym, 0, "50132afbaacedc474077e5c8e0fd34f104840fb4228bec79e1fa9e43ff85ab32"},
		{keyring.Digest, 0, "0cbc7199264ce5ba3480e0a866d0999dcbc27b1df17204ceef8a426d1adc6e9c"},
	} {
		got := keyring.Subkey(root, c.p, "acme", c.epoch)
		if hex.EncodeToString(got[:]) != c.want {
			t.Errorf("%s/%d of root 00..1f = %x, want %s", c.p, c.epoch, got, c.want)
		}
	}
}

func TestKeysAreAllDifferent(t *testing.T) {
	r := mustOpen(t, t.TempDir())
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,8}`)
		a, b := tenant.ID(id.Draw(t, "a")), tenant.ID(id.Draw(t, "b"))
		epochs := rapid.Uint32()
		if _, err := r.Create(a, b); err != nil {
			t.Fatal(err)
		}
		type use struct {
			id    tenant.ID
			p     keyring.Purpose
			epoch uint32
		}
		seen := map[[32]byte]use{}
		for _, u := range []use{
			{a, keyring.MAC, epochs.Draw(t, "e1")}, {a, keyring.MAC, epochs.Draw(t, "e2")},
			{a, keyring.Dedupe, 0}, {a, keyring.Pseudonym, 0},
			{b, keyring.MAC, epochs.Draw(t, "e3")}, {b, keyring.Dedupe, 0}, {b, keyring.Pseudonym, 0},
		} {
			k, err := r.Derive(u.id, u.p, u.epoch)
			if err != nil {
				t.Fatal(err)
			}
			if was, ok := seen[k]; ok && was != u {
				t.Fatalf("%v and %v share a key", was, u)
			}
			seen[k] = u
		}
	})
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	r := mustOpen(t, dir)
	mustCreate(t, r, "acme")
	for name, want := range map[string]os.FileMode{".": 0o700, "master.key": 0o600, "keys.log": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, info.Mode().Perm(), err, want)
		}
	}
	for _, c := range []struct {
		name string
		mode os.FileMode
	}{{"master.key", 0o640}, {"master.key", 0o604}, {"master.key", 0o620}, {"keys.log", 0o660}, {".", 0o777}} {
		t.Run(fmt.Sprintf("%s %o", c.name, c.mode), func(t *testing.T) {
			path := filepath.Join(dir, c.name)
			was, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			defer os.Chmod(path, was.Mode().Perm())
			if _, err := keyring.Open(dir, nil); !errors.Is(err, keyring.ErrPermissions) {
				t.Errorf("Open: %v, want ErrPermissions", err)
			}
		})
	}
}

func TestMasterKeyIsNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	_ = mustOpen(t, dir).Close()
	path := filepath.Join(dir, "master.key")
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wrong := slices.Clone(right)
	wrong[0] ^= 1
	for name, spoil := range map[string]func() error{
		"missing": func() error { return os.Remove(path) },
		"wrong":   func() error { return os.WriteFile(path, wrong, 0o600) },
		"short":   func() error { return os.WriteFile(path, right[:31], 0o600) },
		"empty":   func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			if _, err := keyring.Open(dir, nil); !errors.Is(err, keyring.ErrMasterKey) {
				t.Errorf("Open: %v, want ErrMasterKey", err)
			}
			if err := os.WriteFile(path, right, 0o600); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, dir)
		})
	}
	link := filepath.Join(dir, "elsewhere")
	if err := errors.Join(os.Rename(path, link), os.Symlink(link, path)); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Open(dir, nil); err == nil {
		t.Error("a link was accepted as master key")
	}
}

func TestOpenExistingReadsOnly(t *testing.T) {
	dir := t.TempDir()
	if _, err := keyring.OpenExisting(dir, nil); !errors.Is(err, keyring.ErrNoKeyring) {
		t.Fatalf("empty directory: %v", err)
	}
	w := mustOpen(t, dir)
	mustCreate(t, w, "acme")
	want := mustDerive(t, w, "acme", keyring.MAC, 2)

	r, err := keyring.OpenExisting(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := r.ExportMACKey("acme", 2); err != nil || got != want {
		t.Errorf("ExportMACKey: %v", err)
	}
	if _, err := r.Create("beta"); !errors.Is(err, keyring.ErrReadOnly) {
		t.Errorf("Create: %v", err)
	}
	mustCreate(t, w, "beta")
	if !r.Has("beta") {
		t.Error("a reader does not see a key made after it opened")
	}
}

func TestErrorsAndLogsHoldNoKeys(t *testing.T) {
	dir := t.TempDir()
	var text strings.Builder
	r, err := keyring.Open(dir, textLogger(&text))
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, r, "acme")
	root := keyring.IntegrityRoot(r, "acme")
	_ = r.Close()
	master, err := os.ReadFile(filepath.Join(dir, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "master.key"), make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = keyring.Open(dir, textLogger(&text))
	fmt.Fprintln(&text, err)
	for _, secret := range [][]byte{root[:], master} {
		for _, form := range []string{string(secret), hex.EncodeToString(secret), fmt.Sprintf("%v", secret)} {
			if strings.Contains(text.String(), form) {
				t.Errorf("a key is in the log or an error:\n%s", text.String())
			}
		}
	}
	if !strings.Contains(text.String(), "master key") {
		t.Errorf("nothing was logged about the new master key: %q", text.String())
	}
}
