package event_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Whatever differs makes another id, also when the parts joined are the same; and
// the id of a call stays the same for ever.
func TestDerivedID(t *testing.T) {
	v, w := tokens.Vector{tokens.Input: 7}, tokens.Vector{tokens.CacheRead: 7}
	ids := map[string]bool{}
	for _, id := range []string{
		event.DerivedID("acme", "otlp/x", "chatcmpl-1", 5, "gpt-5", &v, 0),
		event.DerivedID("acm", "eotlp/x", "chatcmpl-1", 5, "gpt-5", &v, 0),
		event.DerivedID("acme", "otlp/xc", "hatcmpl-1", 5, "gpt-5", &v, 0),
		event.DerivedID("acme", "otlp/x", "", 5, "gpt-5", &v, 0),
		event.DerivedID("acme", "otlp/x", "chatcmpl-1", 6, "gpt-5", &v, 0),
		event.DerivedID("acme", "otlp/x", "chatcmpl-1", 5, "gpt-5", &v, 1),
		event.DerivedID("acme", "otlp/x", "chatcmpl-1", 5, "gpt-5", &w, 0),
		event.DerivedID("acme", "otlp/x", "chatcmpl-1", 5, "gpt-4", &v, 0),
	} {
		if u, err := uuid.Parse(id); err != nil || u.Version() != 8 || u.String() != id || ids[id] {
			t.Errorf("%s: %v, seen %v", id, err, ids[id])
		}
		ids[id] = true
	}
	if got := event.DerivedID("acme", "otlp/x", "chatcmpl-1", 5, "gpt-5", &v, 0); got != wantDerived {
		t.Errorf("the id of a call was %s and is %s", wantDerived, got)
	}
}

// wantDerived was computed with another language's SHA-256 of the bytes that DerivedID documents.
const wantDerived = "777e5ed3-1de9-87a2-8eed-6c01758bc9cc"
