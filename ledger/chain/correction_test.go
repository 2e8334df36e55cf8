package chain

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

func drawCorrected(t *rapid.T) (d Corrected) {
	d.Seq = rapid.Int64Range(0, 1<<62).Draw(t, "corrects")
	d.Priced = rapid.Bool().Draw(t, "net priced")
	if d.Priced {
		d.NetCost = money.Pico(rapid.Int64().Draw(t, "net"))
	}
	d.Unpriced, d.Estimated = rapid.Int64Range(-1, 1).Draw(t, "unpriced"), rapid.Int64Range(-1, 1).Draw(t, "estimated")
	for c := range d.Tokens {
		d.Tokens[c] = rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "delta")
	}
	d.GPUMicros = rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "gpu delta")
	return d
}

// An entry and all its corrections add up to the newest state, whatever the
// states between were, and each correction says that state.
func TestCorrectionsTelescope(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func() *Entry {
			e := &Entry{Kind: Usage, Seq: 7, Priced: rapid.Bool().Draw(t, "priced")}
			if e.Priced {
				e.Cost = money.Pico(rapid.Int64Range(0, 1<<62).Draw(t, "cost"))
			}
			e.Event.Estimated = rapid.Bool().Draw(t, "estimated")
			for c := range e.Event.Tokens {
				e.Event.Tokens[c] = rapid.Int64Range(0, 1e12).Draw(t, "tokens")
			}
			return e
		}
		original := draw()
		state := original
		var sum struct {
			cost                money.Pico
			tokens              tokens.Vector
			unpriced, estimated int64
		}
		sum.cost, sum.tokens = original.Cost, original.Event.Tokens
		sum.unpriced, sum.estimated = one(!original.Priced), one(original.Event.Estimated)
		for range rapid.IntRange(1, 5).Draw(t, "corrections") {
			next := draw()
			want := *next
			was, ok := state.Net()
			if !ok || was.Seq != 7 {
				t.Fatalf("net of %+v: %+v", state, was)
			}
			if err := next.Correct(&was); err != nil {
				t.Fatal(err)
			}
			if !next.Priced || next.Corrected.Seq != 7 {
				t.Fatalf("a correction without cost or original: %+v", next)
			}
			sum.cost += next.Cost
			sum.unpriced += next.Corrected.Unpriced
			sum.estimated += next.Corrected.Estimated
			for c := range sum.tokens {
				sum.tokens[c] += next.Corrected.Tokens[c]
			}
			if sum.cost != want.Cost || sum.tokens != want.Event.Tokens || sum.unpriced != one(!want.Priced) || sum.estimated != one(want.Event.Estimated) {
				t.Fatalf("the sums are %+v, the newest state is %+v", sum, want)
			}
			next.Seq = 9
			state = next
		}
		if _, ok := (&Entry{Kind: Rejected}).Net(); ok {
			t.Error("a rejection has a net cost")
		}
	})
}
