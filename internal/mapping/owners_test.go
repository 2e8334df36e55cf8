package mapping_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestCheckOwners(t *testing.T) {
	for _, tc := range []struct {
		name, owner, field, rule string
	}{
		{"team", "platform", "", ""},
		{"end_customer", strings.Repeat("ä", 128), "", ""},
		{"model", "gpt", "owners", "one_of"},
		{"tag.x", "gpt", "owners", "one_of"},
		{"user", "jo", "owners.user", "person"},
		{"user_pseudonym", "jo", "owners.user_pseudonym", "person"},
		{"team", "", "owners.team", "required"},
		{"team", " \t", "owners.team", "required"},
		{"service", strings.Repeat("a", 257), "owners.service", "length"},
		{"agent", "a\x00", "owners.agent", "text"},
		{"agent", "a\xff", "owners.agent", "text"},
	} {
		err := mapping.CheckOwners(map[string]string{tc.name: tc.owner})
		var bad *mapping.OwnerError
		switch {
		case tc.field == "" && err != nil:
			t.Errorf("%s=%q: %v", tc.name, tc.owner, err)
		case tc.field != "" && (!errors.As(err, &bad) || bad.Field != tc.field || bad.Rule != tc.rule || !errors.Is(err, mapping.ErrInvalid)):
			t.Errorf("%s=%q: %v; want %s of %s", tc.name, tc.owner, err, tc.rule, tc.field)
		}
	}
	// Every dimension that a rule can set can have an owner, and no other name.
	for _, name := range append(mapping.Dimensions(), mapping.Fields...) {
		err := mapping.CheckOwners(map[string]string{name: "x"})
		if want := slices.Contains(mapping.Dimensions(), name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// At any time the period says what the newest version says of those in force.
func TestPeriods(t *testing.T) {
	at := func(h int) time.Time { return time.Unix(int64(h)*3600, 0) }
	rapid.Check(t, func(t *rapid.T) {
		var versions []mapping.DefaultOwners
		for i, h := range rapid.SliceOfN(rapid.IntRange(1, 8), 0, 8).Draw(t, "from") {
			versions = append(versions, mapping.DefaultOwners{Version: int64(i + 1), From: at(h), Owners: map[string]string{"team": string(rune('a' + i))}})
		}
		periods := mapping.Periods(rapid.Permutation(versions).Draw(t, "order"))
		if !slices.IsSortedFunc(periods, func(a, b mapping.OwnerPeriod) int { return a.Start.Compare(b.Start) }) {
			t.Fatalf("not in order: %v", periods)
		}
		for h := range 10 {
			var want, got int64
			for _, v := range versions {
				if !v.From.After(at(h)) {
					want = max(want, v.Version)
				}
			}
			for _, p := range periods {
				if !p.Start.After(at(h)) {
					got = p.Version
				}
			}
			if got != want {
				t.Fatalf("at %d version %d counts, want %d: %v of %v", h, got, want, periods, versions)
			}
		}
	})
}

func TestDefaultOwners(t *testing.T) {
	ring := testenv.Ring(t, "acme", "umbrella")
	env := testenv.MigratedPostgres(t)
	db := env.Open(t, postgres.RoleApp)
	s := mapping.NewStore(db, ring)
	ctx := context.Background()
	if v, err := s.DefaultOwners(ctx, "acme", 0); err != nil || v.Version != 0 {
		t.Fatalf("before any: %+v, %v", v, err)
	}
	platform := map[string]string{"team": "platform", "environment": "prod"}
	before := time.Now()
	first, err := s.PutDefaultOwners(ctx, owner, "acme", 0, platform, time.Time{})
	if err != nil || first.Version != 1 || !maps.Equal(first.Owners, platform) || first.CreatedBy != owner.Subject {
		t.Fatalf("the first: %+v, %v", first, err)
	}
	if first.From.After(before) || first.From.Before(before.Add(-2*time.Hour)) || first.From.Unix()%3600 != 0 {
		t.Errorf("in force from %v, put at %v", first.From, before)
	}
	for name, from := range map[string]time.Time{"now": {}, "later": before.Add(time.Hour)} {
		if again, err := s.PutDefaultOwners(ctx, owner, "acme", 1, platform, from); err != nil || again.Version != 1 {
			t.Errorf("the same from %s: %+v, %v", name, again, err)
		}
	}
	if _, err := s.PutDefaultOwners(ctx, owner, "acme", 0, platform, time.Time{}); !errors.Is(err, mapping.ErrVersion) {
		t.Errorf("after a version that is not the newest: %v", err)
	}
	var bad *mapping.OwnerError
	if _, err := s.PutDefaultOwners(ctx, owner, "acme", 1, map[string]string{"user": "jo"}, time.Time{}); !errors.As(err, &bad) || bad.Field != "owners.user" {
		t.Errorf("a person: %v", err)
	}
	for _, from := range []time.Time{time.Unix(-1, 0), time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if _, err := s.PutDefaultOwners(ctx, owner, "acme", 1, platform, from); !errors.As(err, &bad) || bad.Field != "effective_from" {
			t.Errorf("from %v: %v", from, err)
		}
	}
	march := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	if v, err := s.PutDefaultOwners(ctx, owner, "acme", 1, platform, march); err != nil || v.Version != 2 || !v.From.Equal(march) {
		t.Errorf("the same for the past too: %+v, %v", v, err)
	}
	if v, err := s.PutDefaultOwners(ctx, owner, "acme", 2, nil, time.Time{}); err != nil || v.Version != 3 || len(v.Owners) != 0 {
		t.Errorf("none from now on: %+v, %v", v, err)
	}
	if old, err := s.DefaultOwners(ctx, "acme", 1); err != nil || !maps.Equal(old.Owners, platform) {
		t.Errorf("the first one later: %+v, %v", old, err)
	}
	if _, err := s.DefaultOwners(ctx, "acme", 9); !postgres.IsNoRows(err) {
		t.Errorf("one that is not there: %v", err)
	}
	periods, err := s.OwnerPeriods(ctx, "acme")
	if err != nil || len(periods) != 2 || periods[0].Version != 2 || !periods[0].Start.Equal(march) || periods[1].Version != 3 {
		t.Errorf("periods: %+v, %v", periods, err)
	}
	if v, err := s.DefaultOwners(ctx, "umbrella", 0); err != nil || v.Version != 0 {
		t.Errorf("another tenant has %+v, %v", v, err)
	}
	if other, err := s.OwnerPeriods(ctx, "umbrella"); err != nil || len(other) != 0 {
		t.Errorf("another tenant has %+v, %v", other, err)
	}
	checkAudited(t, db, ring)
}

// checkAudited wants a row for each version that was made, and for nothing else.
func checkAudited(t *testing.T, db *postgres.DB, ring audit.Keys) {
	t.Helper()
	log := audit.NewLog(db, ring)
	rows, err := log.Rows(t.Context(), "acme", 1, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for i := range rows {
		ev, _, err := audit.Decode(rows[i].Canonical)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Action == "mapping.default_owners" && ev.Actor == owner.Subject && ev.Outcome == audit.OK && strings.Contains(ev.Reason, " owners from ") {
			made = append(made, ev.Resource)
		}
	}
	if want := []string{"default_owners/1", "default_owners/2", "default_owners/3"}; !slices.Equal(made, want) {
		t.Errorf("the audit log has %v, want %v", made, want)
	}
}
