package provider_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/provider"
)

// A tenant's prompts are digested from when it says so until it says no, by every
// process within CacheLife, and nobody else's are.
func TestCapture(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	gate := w.gate() // of another process: nobody tells it what changes
	want := func(on bool) {
		t.Helper()
		c, err := w.Capture(ctx, "acme")
		if err != nil || c.PromptDigests != on || c.SetBy != "tok_admin" || time.Since(c.SetAt) > time.Minute {
			t.Errorf("%+v, %v", c, err)
		}
		for end := time.Now().Add(provider.CacheLife + 2*time.Second); gate.Digests(ctx, "acme") != on; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the gate does not know after %v that it is %v", provider.CacheLife, on)
			}
		}
		if gate.Digests(ctx, "umbrella") {
			t.Error("another tenant's prompts are digested")
		}
	}
	if c, err := w.Capture(ctx, "acme"); err != nil || c.PromptDigests || !c.SetAt.IsZero() || gate.Digests(ctx, "acme") {
		t.Errorf("before anybody said so: %+v, %v", c, err)
	}
	for _, on := range []bool{true, false} {
		if c, err := w.SetCapture(ctx, admin, "acme", on); err != nil || c.PromptDigests != on {
			t.Fatalf("%+v, %v", c, err)
		}
		want(on)
	}
	if got := w.actions(t); !strings.HasSuffix(got, "capture.set capture.set") || len(w.changed) != 2 {
		t.Errorf("audit log %q, told of %v", got, w.changed)
	}
}
