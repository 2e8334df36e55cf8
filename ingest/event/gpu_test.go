package event_test

import (
	"errors"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

func TestValidateHoldsGPUTime(t *testing.T) {
	for _, tc := range []struct {
		name        string
		change      func(*event.Event)
		field, rule string
	}{
		{"time of a GPU", func(e *event.Event) { e.GPUMicros, e.GPUState = 300_000_000, event.GPUUsed }, "", ""},
		{"bought as spot", func(e *event.Event) { e.GPUMicros, e.GPUState, e.PurchaseOption = 1, event.GPUIdle, event.Spot }, "", ""},
		{"none is left after a correction", func(e *event.Event) { e.GPUState, e.Corrects = event.GPUUnknown, "other" }, "", ""},
		{"derived", func(e *event.Event) { e.GPUState, e.DerivedFrom = event.GPUUnallocated, "telemetry" }, "", ""},
		{"time of no state", func(e *event.Event) { e.GPUMicros = 1 }, "gpu_state", event.RuleRequired},
		{"bought, and no GPU", func(e *event.Event) { e.PurchaseOption = event.Spot }, "gpu_state", event.RuleRequired},
		{"with tokens", func(e *event.Event) { e.GPUState, e.Tokens[tokens.Output] = event.GPUUsed, 1 }, "tokens", event.RuleRange},
		{"with a context", func(e *event.Event) { e.GPUState, e.ContextTokens = event.GPUUsed, 1 }, "tokens", event.RuleRange},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := full(t)
			e.Tokens = tokens.Vector{}
			tc.change(&e)
			err := e.Validate(false)
			var fe *event.FieldError
			if tc.rule == "" && err != nil || tc.rule != "" && (!errors.As(err, &fe) || fe.Field != tc.field || fe.Rule != tc.rule) {
				t.Errorf("%v, want %s: %s", err, tc.field, tc.rule)
			}
			if e.IsGPU() != (e.GPUState != "") {
				t.Error("IsGPU is not that it has a state")
			}
		})
	}
}
