package load

import (
	"bytes"
	"strings"
	"time"
)

// poison is a way to spoil an event so that the edge must refuse it.
type poison struct {
	// rule is the answer's "field rule".
	rule string
	// change spoils the emission before it is encoded; spoil its encoding.
	change func(e *emission)
	spoil  func(f Format, b []byte) []byte
	// foreign events are of no tenant of the load.
	foreign bool
	// notIn are formats in which this spoils the whole request, not one event.
	notIn string
}

const (
	day = int64(24 * time.Hour)
	// farFuture is 2200-01-01, longAgo 2001-09-09, in nanoseconds.
	farFuture = 84006 * day
	longAgo   = 11574 * day
)

// poisons are all classes of refusals that a client can see in one event
// (ingest/event/errors.go lists the rules).
var poisons = []poison{
	{rule: "event_id required", change: func(e *emission) { e.noID = true }},
	{rule: "provider required", change: func(e *emission) { e.noModel = true }},
	{rule: "tokens.input range", change: func(e *emission) { e.tokens[0] = -1 }},
	{rule: "tokens.output range", change: func(e *emission) { e.tokens[4] = 1_000_000_000_001 }},
	{rule: "occurred_at future", change: func(e *emission) { e.at = farFuture }},
	{rule: "occurred_at too_old", change: func(e *emission) { e.at = longAgo }},
	{rule: "tenant_id tenant", change: func(e *emission) { e.tenantText = "no-such-tenant" }, foreign: true},
	{rule: "tenant_id tenant", change: func(e *emission) { e.tenantText = "Not A Slug" }, foreign: true},
	{rule: "region max_bytes", spoil: adds(appendText(nil, numRegion, strings.Repeat("a", 300)), `,"region":"`+strings.Repeat("a", 300)+`"`)},
	{rule: "region control_char", spoil: adds(appendText(nil, numRegion, "a\x01b"), `,"region":"a\u0001b"`)},
	{rule: "region utf8", spoil: adds(appendText(nil, numRegion, "\xff\xfe"), ",\"region\":\"\xff\xfe\"")},
	{rule: "decision_action one_of", spoil: adds(appendText(nil, numDecisionAction, "maybe"), `,"decision_action":"maybe"`)},
	{rule: "provider_cost_usd money", spoil: adds(appendText(nil, numProviderCost, "12,5"), `,"provider_cost_usd":"12,5"`)},
	{rule: "context_tokens type", spoil: adds(appendText(nil, numContextTokens, "many"), `,"context_tokens":"many"`)},
	{rule: "received_at edge_only", spoil: adds(appendTime(nil, numReceivedAt, longAgo), `,"received_at":"2001-09-09T00:00:00Z"`)},
	{rule: "tags max_items", spoil: tooManyTags},
	{rule: "#49 unknown", spoil: adds(appendText(nil, 49, "x"), ""), notIn: "json ndjson"},
	{rule: "prompt unknown", spoil: adds(nil, `,"prompt":"x"`), notIn: "protobuf"},
	{rule: "model duplicate", spoil: adds(appendText(nil, numModel, "gpt-4o"), `,"model":"gpt-4o"`)},
	{rule: "event malformed", spoil: func(_ Format, b []byte) []byte { return b[:len(b)-1] }, notIn: "json"},
}

// poisonsOf are the classes that a format can carry.
func poisonsOf(f Format) (p []*poison) {
	for i := range poisons {
		if !bytes.Contains([]byte(" "+poisons[i].notIn+" "), []byte(" "+f+" ")) {
			p = append(p, &poisons[i])
		}
	}
	return p
}

// adds puts fields at the end of an encoded event that does not have them.
func adds(proto []byte, json string) func(Format, []byte) []byte {
	return func(f Format, b []byte) []byte {
		if f == Protobuf {
			return append(b, proto...)
		}
		return append(append(b[:len(b)-1], json...), '}')
	}
}

// tooManyTags adds 40 tags: to an event that has some already in protobuf, and
// in a member of its own in JSON, where the tags stand last but one.
func tooManyTags(f Format, b []byte) []byte {
	if f == Protobuf {
		for i := range 40 {
			b = appendTag(b, "extra-"+string(rune('a'+i%26))+string(rune('a'+i/26)), "x")
		}
		return b
	}
	var more []byte
	for i := range 40 {
		more = appendJSONText(more, "extra-"+string(rune('a'+i%26))+string(rune('a'+i/26)), "x")
	}
	at := bytes.Index(b, []byte(`"tags":{`)) + len(`"tags":{`)
	tail := append([]byte(nil), b[at:]...)
	return append(append(append(b[:at], more[1:]...), ','), tail...)
}
