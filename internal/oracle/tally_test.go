package oracle

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/tokens"
)

// show is the JSON of an expectation, which holds everything.
func show(t interface{ Fatal(...any) }, e *Expectation) string {
	var b bytes.Buffer
	if err := e.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An id counts once with the body that was accepted; everything else is only
// counted by its kind.
func TestTallyCountsByKind(t *testing.T) {
	tally := NewTally([]string{"a", "b"})
	m, team := tally.Model("openai/gpt-4o"), tally.Team("search")
	ok := Outcome{Priced: true, Tenant: 1, Model: m, Team: team, Hour: 490_000, CostPico: 7, Tokens: tokens.Vector{tokens.Input: 3}}
	again, twin, late := ok, ok, ok
	again.Kind, twin.Kind = Duplicate, Conflict
	late.Late, late.Hour = true, 489_999
	unpriced := Outcome{Tenant: 0, Model: m, Team: team, Hour: 490_000}
	refused := Outcome{Kind: Refused, Tenant: 0, Rule: "model required", CostPico: 99}
	foreign := Outcome{Kind: Refused, Tenant: -1, Rule: "tenant_id tenant"}
	for _, o := range []Outcome{ok, again, twin, late, unpriced, refused, foreign} {
		tally.Add(&o)
	}
	e := tally.Expectation()
	if e.Accepted != 3 || e.Duplicates != 1 || e.Conflicts != 1 || e.Refused != 2 || e.Unpriced != 1 || e.Late != 1 || e.RefusedOutside != 1 {
		t.Errorf("totals %s", show(t, e))
	}
	if e.USD.String() != "0.000000000014" || e.Tokens[tokens.Input] != 6 {
		t.Errorf("money %s, tokens %v", e.USD.String(), e.Tokens)
	}
	b := e.Tenants["b"]
	if b.Accepted != 2 || b.Duplicates != 1 || b.Conflicts != 1 || b.Hours["2025-11-24T16:00:00Z"].Events != 1 || b.Hours["2025-11-24T15:00:00Z"].USD.String() != "0.000000000007" {
		t.Errorf("tenant b: %s", show(t, e))
	}
	if diff := cmp.Diff(map[string]int64{"model required": 1, "tenant_id tenant": 1}, e.RefusedByRule); diff != "" {
		t.Error(diff)
	}
}

func drawOutcome(t *rapid.T, models, teams int32) Outcome {
	o := Outcome{
		Kind: Kind(rapid.IntRange(0, 3).Draw(t, "kind")), Priced: rapid.Bool().Draw(t, "priced"),
		Late: rapid.Bool().Draw(t, "late"), Tenant: rapid.Int32Range(-1, 2).Draw(t, "tenant"),
		Model: rapid.Int32Range(0, models-1).Draw(t, "model"), Team: rapid.Int32Range(0, teams-1).Draw(t, "team"),
		Hour: rapid.Int64Range(490_000, 490_003).Draw(t, "hour"), CostPico: rapid.Int64Range(0, 1<<62).Draw(t, "cost"),
	}
	o.Tokens[rapid.IntRange(0, int(tokens.NumClasses)-1).Draw(t, "class")] = rapid.Int64Range(0, 1000).Draw(t, "n")
	if o.Kind == Refused {
		o.Rule = rapid.SampledFrom([]string{"a b", "c d"}).Draw(t, "rule")
	} else if o.Tenant < 0 {
		o.Tenant = 0
	}
	return o
}

// A tally that was written, read and continued ends as one that never stopped;
// and every way to take the accepted events apart adds up to the totals.
func TestRestoreContinues(t *testing.T) {
	ids := []string{"a", "b", "c"}
	fresh := func() *Tally {
		tally := NewTally(ids)
		tally.Model("m0")
		tally.Model("m1")
		tally.Team("")
		tally.Team("t1")
		return tally
	}
	rapid.Check(t, func(t *rapid.T) {
		var all []Outcome
		for range rapid.IntRange(0, 40).Draw(t, "n") {
			all = append(all, drawOutcome(t, 2, 2))
		}
		cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
		whole, first, second := fresh(), fresh(), fresh()
		for i := range all {
			whole.Add(&all[i])
			if i < cut {
				first.Add(&all[i])
			}
		}
		var read Expectation
		if err := json.Unmarshal([]byte(show(t, first.Expectation())), &read); err != nil {
			t.Fatal(err)
		}
		if err := second.Restore(&read); err != nil {
			t.Fatal(err)
		}
		for i := cut; i < len(all); i++ {
			second.Add(&all[i])
		}
		want := whole.Expectation()
		if diff := cmp.Diff(show(t, want), show(t, second.Expectation())); diff != "" {
			t.Fatal(diff)
		}
		for name, cells := range map[string]map[string]*Cell{"hours": want.Hours, "models": want.Models, "teams": want.Teams} {
			var sum Cell
			for _, c := range cells {
				sum.merge(c)
			}
			if sum.Events != want.Accepted || sum.Unpriced != want.Unpriced || sum.USD.Cmp(&want.USD) != 0 {
				t.Fatalf("the %s add up to %d events, %s", name, sum.Events, sum.USD.String())
			}
		}
	})
}

func TestRestoreRefuses(t *testing.T) {
	other := NewTally([]string{"x"}).Expectation()
	if err := NewTally([]string{"a"}).Restore(other); !errors.Is(err, ErrExpectation) {
		t.Errorf("another load's tenants: %v", err)
	}
	odd := NewTally([]string{"a"}).Expectation()
	odd.Tenants["a"].Hours["2026-01-01T00:30:00Z"] = &Cell{}
	if err := NewTally([]string{"a"}).Restore(odd); !errors.Is(err, ErrExpectation) {
		t.Errorf("half an hour: %v", err)
	}
	var e Expectation
	if err := json.Unmarshal([]byte(`{"tokens":{"laughs":1}}`), &e); !errors.Is(err, ErrExpectation) {
		t.Errorf("unknown class: %v", err)
	}
}
