package chain_test

import (
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"
)

func usageOf(status string, priced bool, input int64) chain.Entry {
	e := chain.Entry{Kind: chain.Usage, Seq: 1, Priced: priced, Event: event.Event{Status: status}}
	e.Event.Tokens[tokens.Input] = input
	return e
}

// A call without a price counts as unpriced unless it failed and used nothing.
func TestWhatCountsAsUnpriced(t *testing.T) {
	for _, tc := range []struct {
		status string
		priced bool
		input  int64
		want   int64
	}{
		{"killed", false, 0, 0}, {"blocked", false, 0, 0}, {"error", false, 0, 0},
		{"killed", false, 5, 1}, {"error", false, 5, 1},
		{"ok", false, 0, 1}, {"truncated", false, 0, 1}, {"cancelled", false, 0, 1}, {"", false, 0, 1}, {"ok", false, 5, 1},
		{"ok", true, 5, 0}, {"error", true, 0, 0},
	} {
		e := usageOf(tc.status, tc.priced, tc.input)
		if got := e.AddsUnpriced(); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
	gpu := usageOf("error", false, 0)
	gpu.Event.GPUMicros = 1
	control := chain.Entry{Kind: chain.Control}
	if gpu.AddsUnpriced() != 1 || control.AddsUnpriced() != 0 {
		t.Errorf("time of a GPU %d, a control entry %d", gpu.AddsUnpriced(), control.AddsUnpriced())
	}
}

// Whatever corrections follow each other, an original and its corrections add up to
// whether the newest state counts as unpriced: never below 0.
func TestUnpricedTelescopes(t *testing.T) {
	type state struct {
		priced bool
		input  int64
	}
	var all []state
	for _, priced := range []bool{false, true} {
		for _, input := range []int64{0, 5} {
			all = append(all, state{priced, input})
		}
	}
	for _, status := range []string{"ok", "killed", "error"} {
		for _, first := range all {
			for _, second := range all {
				for _, third := range all {
					original := usageOf(status, first.priced, first.input)
					sum, last := original.AddsUnpriced(), original
					for _, s := range []state{second, third} {
						was, ok := last.Net()
						if !ok {
							t.Fatal("no usage")
						}
						c := usageOf(status, s.priced, s.input)
						if err := c.Correct(&was); err != nil {
							t.Fatal(err)
						}
						sum, last = sum+c.AddsUnpriced(), c
					}
					want := usageOf(status, third.priced, third.input)
					if sum != want.AddsUnpriced() {
						t.Errorf("%s: %+v, %+v, %+v: sum %d, want %d", status, first, second, third, sum, want.AddsUnpriced())
					}
				}
			}
		}
	}
}
