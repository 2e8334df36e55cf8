package pricing_test

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/tokens"
)

// list draws a price list of a few models with one input rate each.
func drawList(t *rapid.T, label string) *pricing.Book {
	var rows []pricing.Row
	for _, model := range []string{"a", "b", "c", "d"} {
		for _, region := range []string{"", "eu"} {
			if rate := rapid.IntRange(0, 3).Draw(t, label); rate > 0 {
				row := flat("p", model, "1e-6")
				row.Region = region
				row.Sheets[0].Rates[tokens.Input] *= pricing.Rate(rate)
				rows = append(rows, row)
			}
		}
	}
	return mustBook(t, rows)
}

// A price change never rewrites history: before KnownFrom everything is as it was, before
// ValidFrom the prices are the old ones, and after it those of the list.
func TestReviseKeepsHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		book := drawList(t, "first")
		known := day("2025-01-01")
		for i := range rapid.IntRange(1, 4).Draw(t, "revisions") {
			next := drawList(t, "next")
			known = known.AddDate(0, 0, rapid.IntRange(1, 20).Draw(t, "known"))
			rev := pricing.Revision{Header: header, ValidFrom: day("2025-01-01").AddDate(0, 0, rapid.IntRange(0, 60).Draw(t, "valid")), KnownFrom: known}
			rev.Header.Version = "revision-" + string(rune('a'+i))
			revised, _, err := book.Revise(next, rev)
			if err != nil {
				t.Fatal(err)
			}
			checkRevision(t, book, next, revised, rev)
			book = revised
		}
	})
}

func checkRevision(t *rapid.T, old, list, revised *pricing.Book, rev pricing.Revision) {
	t.Helper()
	listed := map[[2]string]bool{}
	for _, r := range list.Rows() {
		listed[[2]string{r.Model, r.Region}] = true
	}
	for _, model := range []string{"a", "b", "c", "d"} {
		for _, region := range []string{"", "eu"} {
			for days := 0; days < 90; days += 3 {
				u := pricing.Usage{Provider: "p", Model: model, Region: region, Tokens: vector(input, 1), At: day("2025-01-01").AddDate(0, 0, days).UnixNano()}
				u.KnownAt = rev.KnownFrom.Add(-time.Second).UnixNano()
				if was, is := old.Price(&u), revised.Price(&u); was.Cost != is.Cost || was.Row != is.Row {
					t.Fatalf("%+v as known before: %+v, was %+v", u, is, was)
				}
				u.KnownAt = rev.KnownFrom.UnixNano()
				was, is := old.Price(&u), revised.Price(&u)
				switch {
				case u.At < rev.ValidFrom.UnixNano():
					if was.Cost != is.Cost || was.Priced != is.Priced {
						t.Fatalf("%+v before the change: %+v, was %+v", u, is, was)
					}
				case listed[[2]string{model, region}]:
					u.KnownAt = pricing.Latest
					if want := list.Price(&u); is.Cost != want.Cost || !is.Priced {
						t.Fatalf("%+v after the change: %+v, the list says %+v", u, is, want)
					}
				}
			}
		}
	}
}

func TestReviseCountsAndKeepsIDs(t *testing.T) {
	old := mustBook(t, []pricing.Row{flat("p", "same", "1e-6"), flat("p", "dearer", "1e-6"), flat("p", "gone", "1e-6")},
		pricing.Alias{Name: "old-name", Provider: "p", Model: "same"}, pricing.Alias{Name: "new", Provider: "p", Model: "gone"})
	list := mustBook(t, []pricing.Row{flat("p", "same", "1e-6"), flat("p", "dearer", "2e-6"), flat("p", "new", "3e-6")})
	rev := pricing.Revision{Header: header, ValidFrom: day("2025-03-01"), KnownFrom: day("2025-03-02")}
	if _, _, err := old.Revise(list, rev); !errors.Is(err, pricing.ErrFormat) {
		t.Errorf("the same version twice: %v", err)
	}
	rev.Header.Version = "test-2"
	b, changes, err := old.Revise(list, rev)
	if err != nil || changes != (pricing.Changes{Added: 1, Changed: 1, Unchanged: 1, Missing: 1}) {
		t.Fatalf("%+v, %v", changes, err)
	}
	for model, want := range map[string]string{
		"same": "p/same@2025-01-01/standard", "old-name": "p/same@2025-01-01/standard", "gone": "p/gone@2025-01-01/standard",
		"dearer": "p/dearer@2025-03-01~2025-03-02/standard", "new": "p/new@2025-03-01~2025-03-02/standard",
	} {
		if r := b.Price(&pricing.Usage{Provider: "p", Model: model, Tokens: vector(input, 1), At: at}); string(r.Row) != want {
			t.Errorf("%s: %q (%s), want %q", model, r.Row, r.Reason, want)
		}
	}
	rev.Header.Version, rev.KnownFrom = "test-3", day("2025-02-01")
	again := mustBook(t, []pricing.Row{flat("p", "dearer", "4e-6")})
	if _, _, err := b.Revise(again, rev); !errors.Is(err, pricing.ErrRow) {
		t.Errorf("a revision from before the last one: %v", err)
	}
}
