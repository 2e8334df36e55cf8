package authn_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"
)

func TestStaticKnowsOneToken(t *testing.T) {
	token := authn.NewToken()
	s := authn.NewStatic(token, authn.Principal{Subject: "admin", AllTenants: true})
	p, err := s.Authenticate(context.Background(), token)
	if err != nil || p.Subject != "admin" {
		t.Fatalf("Authenticate(the token) = %+v, %v", p, err)
	}
	for _, bad := range []string{"", token[:len(token)-1], token + "x", strings.ToUpper(token), authn.NewToken()} {
		if p, err := s.Authenticate(context.Background(), bad); !errors.Is(err, authn.ErrUnauthenticated) || p.AllTenants {
			t.Errorf("a wrong token gave %+v, %v", p, err)
		}
	}
}

// An installation without a token must not be open to callers without one.
func TestEmptyTokenAdmitsNobody(t *testing.T) {
	s := authn.NewStatic("", authn.Principal{AllTenants: true})
	if _, err := s.Authenticate(context.Background(), ""); !errors.Is(err, authn.ErrUnauthenticated) {
		t.Fatalf("the empty token was let in: %v", err)
	}
}

func TestPrincipalMay(t *testing.T) {
	all := authn.Principal{AllTenants: true}
	one := authn.Principal{Tenants: []tenant.ID{"acme"}}
	two := authn.Principal{Tenants: []tenant.ID{"acme", "umbrella"}}
	for _, tc := range []struct {
		name string
		p    authn.Principal
		id   tenant.ID
		want bool
	}{
		{"all", all, "acme", true},
		{"all, system chain", all, tenant.System(0), false},
		{"own", one, "acme", true},
		{"foreign", one, "umbrella", false},
		{"second of two", two, "umbrella", true},
		{"nobody", authn.Principal{}, "acme", false},
		{"listed system chain", authn.Principal{Tenants: []tenant.ID{tenant.System(1)}}, tenant.System(1), false},
	} {
		if got := tc.p.May(tc.id); got != tc.want {
			t.Errorf("%s: May(%q) = %v", tc.name, tc.id, got)
		}
	}
	if id, ok := one.Single(); !ok || id != "acme" {
		t.Errorf("Single of one tenant = %q, %v", id, ok)
	}
	for _, p := range []authn.Principal{all, two, {}} {
		if id, ok := p.Single(); ok {
			t.Errorf("Single of %+v = %q", p, id)
		}
	}
}

func TestBearerToken(t *testing.T) {
	for in, want := range map[string]string{
		"Bearer abc": "abc", "bearer  abc": "abc", "BEARER a b": "a b",
		"": "", "abc": "", "Basic abc": "", "Bearer": "", "Bearer ": "",
	} {
		if got := authn.BearerToken(in); got != want {
			t.Errorf("BearerToken(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	first, err := authn.LoadOrCreateToken(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := authn.LoadOrCreateToken(path)
	if err != nil || again != first {
		t.Fatalf("second load gave another token or %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := authn.LoadOrCreateToken(path); !errors.Is(err, authn.ErrTokenFileMode) {
		t.Errorf("a file that the group can read: %v", err)
	}
}

func TestTokenFileRefusesWhatIsNoToken(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "short": "hunter2\n", "two words": strings.Repeat("a", 20) + " " + strings.Repeat("b", 20),
	} {
		path := filepath.Join(t.TempDir(), "admin.token")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := authn.LoadOrCreateToken(path)
		if !errors.Is(err, authn.ErrTokenFile) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error repeats the secret: %v", name, err)
		}
	}
}

// Processes that start together must agree on one token.
func TestTokenFileIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	tokens := make([]string, 8)
	var wg sync.WaitGroup
	for i := range tokens {
		wg.Go(func() {
			var err error
			if tokens[i], err = authn.LoadOrCreateToken(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, got := range tokens {
		if got != tokens[0] {
			t.Fatal("two tokens from one file")
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}
