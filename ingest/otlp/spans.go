package otlp

import (
	"encoding/hex"

	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// call is a span that is a call of a model.
type call struct {
	event  event.Event
	span   string // its id, and its parent's
	parent string
	inner  tokens.Vector // of the nearest calls below it
	inners int
	same   bool // one of them has its response id

	elsewhere bool // billed elsewhere
	addressed bool // it states where it went
}

// spans makes events of the spans that are calls. Spans of tools that report
// themselves by log records are none.
func (b *batch) spans(data []*tracepb.ResourceSpans) {
	var calls []*call
	parents := map[string]string{} // of every span of the batch
	for _, rs := range data {
		for _, ss := range rs.GetScopeSpans() {
			scope := ss.GetScope().GetName()
			own := toolOf(serviceOf(rs.GetResource()), scope) != nil
			for _, s := range ss.GetSpans() {
				if len(s.GetSpanId()) == 0 {
					continue
				}
				parents[spanKey(s.GetTraceId(), s.GetSpanId())] = spanKey(s.GetTraceId(), s.GetParentSpanId())
				if own {
					continue
				}
				if c := b.span(s, rs, scope); c != nil {
					calls = append(calls, c)
				}
			}
		}
	}
	for _, c := range outermostRemoved(calls, parents) {
		if c.elsewhere || b.metered(&c.event, c.addressed) {
			b.elsewhere++
			continue
		}
		b.events = append(b.events, c.event)
	}
}

func spanKey(trace, span []byte) string { return string(trace) + "/" + string(span) }

// span reads one span, nil when it is no call.
func (b *batch) span(s *tracepb.Span, rs *tracepb.ResourceSpans, scope string) *call {
	var f facts
	f.read(s.GetAttributes(), aliasTable, aliasOf)
	if !f.isCall() {
		return nil
	}
	f.read(rs.GetResource().GetAttributes(), aliasTable, aliasOfResource)
	c := &call{
		span: spanKey(s.GetTraceId(), s.GetSpanId()), parent: spanKey(s.GetTraceId(), s.GetParentSpanId()),
		elsewhere: b.billedElsewhere(&f), addressed: f.addressed(),
	}
	e := &c.event
	f.event(e, false, false)
	e.OccurredAt = int64(s.GetStartTimeUnixNano())
	e.LatencyMicros = micros(s.GetStartTimeUnixNano(), s.GetEndTimeUnixNano())
	switch {
	case s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR:
		e.Status, e.ErrorType = event.StatusError, first(word(f.text[errorType], 64), "error")
	case !f.tokens:
		e.Estimated = true
		f.whose.SetTag(usageTag, usageMissing)
	}
	e.ID = first(f.text[eventID], spanID(s.GetTraceId(), s.GetSpanId()))
	if e.ID == "" {
		e.ID = event.DerivedID(b.tenant, "otlp/"+scope, f.text[responseID], e.OccurredAt, e.Model, &e.Tokens, 0)
	}
	b.attribute(e, &f)
	return c
}

// spanID is the id of a span's event, "" for ids that say nothing.
func spanID(trace, span []byte) string {
	if len(trace) != 16 || len(span) != 8 || zero(trace) || zero(span) {
		return ""
	}
	return "otlp-" + hex.EncodeToString(trace) + "-" + hex.EncodeToString(span)
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// micros is a duration in microseconds, 0 when it cannot be one.
func micros(start, end uint64) int64 {
	if end <= start || (end-start)/1e3 > event.MaxMicros {
		return 0
	}
	return int64(end-start) / 1e3
}

// maxDepth bounds the way up from a span.
const maxDepth = 64

// outermostRemoved leaves out calls that only repeat the calls within them, as when
// a framework and the SDK below it are both instrumented: the response id is the
// same, or the tokens are their sum. The inner ones are nearer to the provider.
func outermostRemoved(calls []*call, parents map[string]string) []*call {
	if len(calls) < 2 {
		return calls
	}
	at := make(map[string]*call, len(calls))
	for _, c := range calls {
		at[c.span] = c
	}
	for _, c := range calls {
		up := c.parent
		for depth := 0; depth < maxDepth && up != ""; depth++ {
			if outer := at[up]; outer != nil && outer != c {
				outer.contain(c)
				break
			}
			up = parents[up]
		}
	}
	kept := calls[:0]
	for _, c := range calls {
		if c.inners == 0 || !c.same && c.inner != c.event.Tokens {
			kept = append(kept, c)
		}
	}
	return kept
}

func (c *call) contain(in *call) {
	c.inners++
	for i, n := range in.event.Tokens {
		c.inner[i] += n
	}
	if id := c.event.ProviderRequestID; id != "" && id == in.event.ProviderRequestID {
		c.same = true
	}
}
