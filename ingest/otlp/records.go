package otlp

import (
	"strconv"

	logspb "go.opentelemetry.io/proto/slim/otlp/logs/v1"

	"github.com/tallystick/tallystick/ingest/event"
)

// records makes events of the log records by which coding tools report their calls.
// Their bodies, and all other records, are left alone.
func (b *batch) records(data []*logspb.ResourceLogs) {
	for _, rl := range data {
		service := serviceOf(rl.GetResource())
		for _, sl := range rl.GetScopeLogs() {
			t := toolOf(service, sl.GetScope().GetName())
			if t == nil {
				continue
			}
			find := ranks(t.fields)
			for _, r := range sl.GetLogRecords() {
				if recordName(r) == t.record {
					b.record(t, find, r, rl)
				}
			}
		}
	}
}

// recordName is the name of the event that a record is.
func recordName(r *logspb.LogRecord) string {
	if r.GetEventName() != "" {
		return r.GetEventName()
	}
	for _, kv := range r.GetAttributes() {
		if kv.GetKey() == "event.name" {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// record reads one call of a tool. Of Codex' events only those that end a response
// have counts.
func (b *batch) record(t *tool, find map[string]int, r *logspb.LogRecord, rl *logspb.ResourceLogs) {
	var f facts
	f.read(r.GetAttributes(), t.fields, find)
	if !f.tokens {
		return
	}
	f.read(rl.GetResource().GetAttributes(), aliasTable, aliasOfResource)
	if b.billedElsewhere(&f) {
		b.elsewhere++
		return
	}
	f.text[provider] = t.provider
	e := event.Event{Estimated: true}
	f.event(&e, t.cacheApart, t.reasoningApart)
	e.Operation = "chat"
	end := int64(r.GetTimeUnixNano())
	if end == 0 {
		end = int64(r.GetObservedTimeUnixNano())
	}
	e.LatencyMicros = min(f.num[durationMillis], event.MaxMicros)
	e.OccurredAt = end - e.LatencyMicros*1e3
	f.whose.SetTag("tool", t.name)
	upstream := f.text[responseID]
	for _, tag := range f.whose.Tags {
		if tag.Key == tagNames[tagSession] || tag.Key == tagNames[tagConversation] {
			upstream += "/" + tag.Value
		}
	}
	e.ID = event.DerivedID(b.tenant, "otlp/"+t.name, upstream, end, e.Model, &e.Tokens, f.num[sequence])
	b.attribute(&e, &f)
	if b.metered(&e, f.addressed()) {
		b.elsewhere++
		return
	}
	b.events = append(b.events, e)
}

// number is n in decimal digits.
func number(n int) string { return strconv.Itoa(n) }
