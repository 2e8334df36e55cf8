package mapping_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/mapping"
)

type fakeEvent map[string]string

func (e fakeEvent) Get(name string) string { return e[name] }
func (e fakeEvent) Set(name, value string) { e[name] = value }

func TestApply(t *testing.T) {
	rules, err := mapping.New("acme", 3, []byte(`{"rules":[
		{"when":{"credential":"tok_1"},"set":{"team":"search","environment":"prod"}},
		{"when":{"service":"billing-*","model":"?pt-*"},"set":{"team":"finance"},"override":true},
		{"when":{"tag.repo":"acme/web/*"},"set":{"feature":"web"}},
		{"when":{"team":""},"set":{"team":"nobody"}}
	]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		credential string
		in, want   fakeEvent
		changed    bool
	}{
		{"tok_1", fakeEvent{}, fakeEvent{"team": "search", "environment": "prod"}, true},
		{"tok_1", fakeEvent{"team": "mine"}, fakeEvent{"team": "mine", "environment": "prod"}, true},
		{"tok_1", fakeEvent{"team": "mine", "environment": "dev"}, fakeEvent{"team": "mine", "environment": "dev"}, false},
		{"tok_2", fakeEvent{}, fakeEvent{"team": "nobody"}, true},
		{"tok_1", fakeEvent{"service": "billing-eu", "model": "gpt-5"}, fakeEvent{"service": "billing-eu", "model": "gpt-5", "team": "finance", "environment": "prod"}, true},
		{"", fakeEvent{"tag.repo": "acme/web/a/b", "team": "x"}, fakeEvent{"tag.repo": "acme/web/a/b", "team": "x", "feature": "web"}, true},
		{"", fakeEvent{"tag.repo": "acme/api", "team": "x"}, fakeEvent{"tag.repo": "acme/api", "team": "x"}, false},
	} {
		before := fmt.Sprint(tc.in)
		if changed := rules.Apply(tc.in, tc.credential); changed != tc.changed || fmt.Sprint(tc.in) != fmt.Sprint(tc.want) {
			t.Errorf("%s with %q: %v, %v; want %v", before, tc.credential, tc.in, changed, tc.want)
		}
	}
	if new(mapping.Rules).Apply(fakeEvent{}, "tok_1") {
		t.Error("no rules changed something")
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":        `{`,
		"unknown member": `{"rules":[{"set":{"team":"a"},"then":1}]}`,
		"sets nothing":   `{"rules":[{"when":{"team":"a"}}]}`,
		"sets a person":  `{"rules":[{"set":{"user":"jo"}}]}`,
		"sets the model": `{"rules":[{"set":{"model":"gpt-5"}}]}`,
		"sets emptiness": `{"rules":[{"set":{"team":""}}]}`,
		"long value":     `{"rules":[{"set":{"team":"` + strings.Repeat("a", 257) + `"}}]}`,
		"control":        `{"rules":[{"set":{"team":"a\u0007"}}]}`,
		"looks at user":  `{"rules":[{"when":{"user":"jo"},"set":{"team":"a"}}]}`,
		"empty tag":      `{"rules":[{"when":{"tag.":"x"},"set":{"team":"a"}}]}`,
		"a class":        `{"rules":[{"when":{"team":"[a-z]"},"set":{"team":"a"}}]}`,
		"too many":       `{"rules":[` + strings.Repeat(`{"set":{"team":"a"}},`, mapping.MaxRules) + `{"set":{"team":"a"}}]}`,
		"too long":       `{"rules":[` + strings.Repeat(" ", mapping.MaxBytes) + `]}`,
		"two documents":  `{"rules":[]} {}`,
	} {
		if _, err := mapping.Parse([]byte(text)); !errors.Is(err, mapping.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The canonical text reads back as the same rules and is its own canonical text; and
// rules run twice change nothing the second time unless one undoes another's condition.
func TestCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z*?/]{1,8}`)
		list := make([]mapping.Rule, rapid.IntRange(0, 5).Draw(t, "rules"))
		for i := range list {
			list[i] = mapping.Rule{
				When:     rapid.MapOfN(rapid.SampledFrom([]string{"team", "model", "tag.x", "credential"}), word, 0, 3).Draw(t, "when"),
				Set:      rapid.MapOfN(rapid.SampledFrom([]string{"team", "service", "feature"}), word, 1, 3).Draw(t, "set"),
				Override: rapid.Bool().Draw(t, "override"),
			}
		}
		text, err := mapping.Canonical(list)
		if err != nil {
			t.Fatal(err)
		}
		again, err := mapping.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := mapping.Canonical(again); err != nil || string(twice) != string(text) {
			t.Fatalf("%s became %s, %v", text, twice, err)
		}
		rules, err := mapping.New("acme", 1, text)
		if err != nil {
			t.Fatal(err)
		}
		a, b := fakeEvent{"model": "gpt"}, fakeEvent{"model": "gpt"}
		if rules.Apply(a, "c") != rules.Apply(b, "c") || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("the same event became %v and %v", a, b)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"rules":[{"when":{"credential":"tok_1"},"set":{"team":"search"},"override":true}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := mapping.Parse(text)
		if err != nil {
			return
		}
		canonical, err := mapping.Canonical(list)
		if err != nil && !errors.Is(err, mapping.ErrInvalid) {
			t.Fatal(err)
		}
		if err == nil {
			rules, err := mapping.New("acme", 1, canonical)
			if err != nil {
				t.Fatalf("%s does not read back: %v", canonical, err)
			}
			rules.Apply(fakeEvent{"team": "a", "tag.x": "b"}, "c")
		}
	})
}
