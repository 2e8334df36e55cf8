package mapping_test

import (
	"context"
	"errors"
	"testing"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var owner = authn.Principal{Subject: "tok_owner", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}

func newStore(t *testing.T) *mapping.Store {
	t.Helper()
	ring := testenv.Ring(t, "acme", "umbrella")
	return mapping.NewStore(testenv.MigratedPostgres(t).Open(t, postgres.RoleApp), ring)
}

func TestStore(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	if v, err := s.Get(ctx, "acme", 0); err != nil || v.Number != 0 {
		t.Fatalf("before any: %+v, %v", v, err)
	}
	began, err := s.MappingVersion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := []byte(`{ "rules":[{"set":{"team":"a"}}] }`)
	v, err := s.Put(ctx, owner, "acme", 0, first)
	if err != nil || v.Number != 1 || v.Content != `{"rules":[{"set":{"team":"a"}}]}` {
		t.Fatalf("the first: %+v, %v", v, err)
	}
	if again, err := s.Put(ctx, owner, "acme", 1, first); err != nil || again.Number != 1 {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	if _, err := s.Put(ctx, owner, "acme", 0, first); !errors.Is(err, mapping.ErrVersion) {
		t.Errorf("after a version that is not the newest: %v", err)
	}
	if _, err := s.Put(ctx, owner, "acme", 1, []byte(`{"rules":[{}]}`)); !errors.Is(err, mapping.ErrInvalid) {
		t.Errorf("no rules: %v", err)
	}
	if v, err = s.Put(ctx, owner, "acme", 1, []byte(`{"rules":[]}`)); err != nil || v.Number != 2 {
		t.Fatalf("the second: %+v, %v", v, err)
	}
	if now, err := s.MappingVersion(ctx); err != nil || now != began+2 {
		t.Errorf("two changes counted %d → %d, %v", began, now, err)
	}
	if r, err := s.MappingRules(ctx, "umbrella"); err != nil || r.Version != 0 {
		t.Errorf("another tenant has %+v, %v", r, err)
	}
	if r, err := s.MappingRules(ctx, "acme"); err != nil || r.Version != 2 {
		t.Errorf("in force: %+v, %v", r, err)
	}
	if old, err := s.Get(ctx, "acme", 1); err != nil || old.Number != 1 {
		t.Errorf("the first one later: %+v, %v", old, err)
	}
}

// What could not be said is said later, in order, and once it is said no more.
func TestUnsaid(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	for i, text := range []string{`{"rules":[{"set":{"team":"a"}}]}`, `{"rules":[{"set":{"team":"b"}}]}`} {
		if _, err := s.Put(ctx, owner, "acme", int64(i), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	var said []int64
	away := errors.New("away")
	err := s.Unsaid(ctx, "acme", func(v mapping.Version) error {
		said = append(said, v.Number)
		if v.Number == 2 {
			return away
		}
		return nil
	})
	if !errors.Is(err, away) {
		t.Fatalf("%v", err)
	}
	for range 2 {
		if err := s.Unsaid(ctx, "acme", func(v mapping.Version) error { said = append(said, v.Number); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	// The first was said twice: its transaction was given up with the second's.
	if len(said) != 4 || said[0] != 1 || said[1] != 2 || said[2] != 1 || said[3] != 2 {
		t.Errorf("said %v", said)
	}
	if v, err := s.Get(ctx, "acme", 0); err != nil || v.Said.IsZero() {
		t.Errorf("%+v, %v", v, err)
	}
}
