package load

import (
	"encoding/binary"
	"strconv"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// emission is a call that is about to be sent, with its identity.
type emission struct {
	call
	id  [36]byte
	seq int64 // producer_seq
	// tenantText overrides the tenant's id, for poison.
	tenantText string
	// noModel and noID leave a required field out, for poison.
	noModel, noID bool
}

// identify gives the emission its UUIDv7: the time of the event, and 74 bits
// drawn from (seed, position, variant).
func (e *emission) identify(seed uint64, variant int64) {
	d := newDice(seed, streamID, e.position*4+variant)
	a, b := d.next(), d.next()
	var u [16]byte
	ms := uint64(e.at / 1_000_000)
	binary.BigEndian.PutUint64(u[:8], ms<<16|0x7000|a&0xfff)
	binary.BigEndian.PutUint64(u[8:], b&(1<<62-1)|1<<63)
	const hex = "0123456789abcdef"
	at := 0
	for i, c := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			e.id[at] = '-'
			at++
		}
		e.id[at], e.id[at+1] = hex[c>>4], hex[c&15]
		at += 2
	}
}

// Field numbers of UsageEvent (api/proto/tallystick/v1/event.proto).
const (
	numEventID = 1 + iota
	numTenantID
	numOccurredAt
	numProducerID
	numProducerEpoch
	numProducerSeq
)

const (
	numProvider       = 10
	numModel          = 11
	numOperation      = 13
	numRegion         = 14
	numServiceTier    = 15
	numStatus         = 16
	numHTTPStatus     = 17
	numErrorType      = 18
	numTokens         = 20
	numContextTokens  = 21
	numLatency        = 22
	numTTFT           = 23
	numStreamed       = 24
	numProviderCost   = 27
	numTeam           = 30
	numService        = 31
	numFeature        = 32
	numAgent          = 33
	numUser           = 34
	numEndCustomer    = 35
	numEnvironment    = 36
	numTags           = 37
	numDecisionAction = 40
	numDecisionPolicy = 41
	numReceivedAt     = 50
)

func appendKey(b []byte, num, wire uint64) []byte { return binary.AppendUvarint(b, num<<3|wire) }

func appendText(b []byte, num uint64, s string) []byte {
	if s == "" {
		return b
	}
	b = binary.AppendUvarint(appendKey(b, num, 2), uint64(len(s)))
	return append(b, s...)
}

func appendNumber(b []byte, num uint64, v int64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(appendKey(b, num, 0), uint64(v))
}

// appendShort appends a sub-message of less than 128 bytes.
func appendShort(b []byte, num uint64, body []byte) []byte {
	b = append(appendKey(b, num, 2), byte(len(body)))
	return append(b, body...)
}

func appendTime(b []byte, num uint64, ns int64) []byte {
	var scratch [20]byte
	return appendShort(b, num, appendNumber(appendNumber(scratch[:0], 1, ns/1e9), 2, ns%1e9))
}

func appendTag(b []byte, key, value string) []byte {
	var scratch [127]byte
	return appendShort(b, numTags, appendText(appendText(scratch[:0], 1, key), 2, value))
}

// encodeHead is what every event of a model has in common, encodeTail of a
// profile: they are copied into place.
func encodeHead(f Format, m *model) []byte {
	if f != Protobuf {
		return appendJSONText(appendJSONText(appendJSONText(nil, "provider", m.provider), "model", m.name), "operation", m.operation)
	}
	return appendText(appendText(appendText(nil, numProvider, m.provider), numModel, m.name), numOperation, m.operation)
}

func encodeTail(f Format, p *profile) (b []byte) {
	attributes := [...]struct {
		num         uint64
		name, value string
	}{
		{numTeam, "team", p.team}, {numService, "service", p.service}, {numFeature, "feature", p.feature},
		{numAgent, "agent", p.agent}, {numEndCustomer, "end_customer", p.endCustomer}, {numEnvironment, "environment", p.environment},
	}
	for _, a := range attributes {
		if f == Protobuf {
			b = appendText(b, a.num, a.value)
		} else {
			b = appendJSONText(b, a.name, a.value)
		}
	}
	if f == Protobuf {
		b = appendTag(b, "api_key", p.apiKey)
		if p.synthetic {
			b = appendTag(b, "source", "synthetic")
		}
		return b
	}
	b = append(b, `,"tags":{"api_key":"`...)
	b = append(b, p.apiKey...)
	if p.synthetic {
		b = append(b, `","source":"synthetic`...)
	}
	return append(b, `"}`...)
}

// append encodes the event: a protobuf UsageEvent without its length, or one
// JSON object.
func (p *plan) append(b []byte, e *emission) []byte {
	if p.format == Protobuf {
		return p.appendProto(b, e)
	}
	return p.appendJSON(b, e)
}

func (p *plan) tenantOf(e *emission) string {
	if e.tenantText != "" {
		return e.tenantText
	}
	return p.assign.tenants[e.tenant]
}

func (p *plan) appendProto(b []byte, e *emission) []byte {
	pr := &p.profiles[e.profile]
	if !e.noID {
		b = append(b, numEventID<<3|2, byte(len(e.id)))
		b = append(b, e.id[:]...)
	}
	b = appendText(b, numTenantID, p.tenantOf(e))
	b = appendTime(b, numOccurredAt, e.at)
	b = appendText(b, numProducerID, producerNames[pr.producer])
	b = appendNumber(b, numProducerEpoch, p.epoch)
	b = appendNumber(b, numProducerSeq, e.seq)
	if !e.noModel {
		b = append(b, p.models[e.model].head...)
	}
	if e.batch {
		b = appendText(b, numServiceTier, tierNames[tierBatch])
	}
	st := &statuses[e.status]
	if e.status != statusOK || e.latency > 0 { // traces say nothing of a status
		b = appendText(b, numStatus, st.text)
		b = appendNumber(b, numHTTPStatus, st.http)
		b = appendText(b, numErrorType, st.errorType)
	}
	var scratch [120]byte
	counts := scratch[:0]
	for c, n := range e.tokens {
		counts = appendNumber(counts, uint64(c)+1, n)
	}
	if len(counts) > 0 {
		b = appendShort(b, numTokens, counts)
	}
	b = appendNumber(b, numLatency, e.latency)
	b = appendNumber(b, numTTFT, e.ttft)
	if e.stream {
		b = appendNumber(b, numStreamed, 1)
	}
	if e.user != 0 {
		b = appendText(b, numUser, userName(e.user))
	}
	b = append(b, pr.tail...)
	if st.action != "" {
		b = appendText(appendText(b, numDecisionAction, st.action), numDecisionPolicy, st.policy)
	}
	return b
}

// userName is a made-up person.
func userName(n int32) string { return "user-" + strconv.Itoa(int(n)) + "@example.com" }

// appendJSONText appends `,"name":"value"`; values need no escapes.
func appendJSONText(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":"`...)
	return append(append(b, value...), '"')
}

func appendJSONNumber(b []byte, name string, v int64) []byte {
	if v == 0 {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strconv.AppendInt(b, v, 10)
}

func (p *plan) appendJSON(b []byte, e *emission) []byte {
	pr := &p.profiles[e.profile]
	b = append(b, `{"occurred_at":"`...)
	b = time.Unix(0, e.at).UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	if !e.noID {
		b = append(append(append(b, `,"event_id":"`...), e.id[:]...), '"')
	}
	b = appendJSONText(b, "tenant_id", p.tenantOf(e))
	b = appendJSONText(b, "producer_id", producerNames[pr.producer])
	b = appendJSONNumber(b, "producer_epoch", p.epoch)
	b = appendJSONNumber(b, "producer_seq", e.seq)
	if !e.noModel {
		b = append(b, p.models[e.model].head...)
	}
	if e.batch {
		b = appendJSONText(b, "service_tier", tierNames[tierBatch])
	}
	st := &statuses[e.status]
	if e.status != statusOK || e.latency > 0 {
		b = appendJSONText(b, "status", st.text)
		b = appendJSONNumber(b, "http_status", st.http)
		b = appendJSONText(b, "error_type", st.errorType)
	}
	b = appendJSONTokens(b, &e.tokens)
	b = appendJSONNumber(b, "latency_us", e.latency)
	b = appendJSONNumber(b, "ttft_us", e.ttft)
	if e.stream {
		b = append(b, `,"streamed":true`...)
	}
	if e.user != 0 {
		b = appendJSONText(b, "user", userName(e.user))
	}
	b = append(b, pr.tail...)
	b = appendJSONText(b, "decision_action", st.action)
	b = appendJSONText(b, "decision_policy", st.policy)
	return append(b, '}')
}

func appendJSONTokens(b []byte, v *tokens.Vector) []byte {
	if *v == (tokens.Vector{}) {
		return b
	}
	b = append(b, `,"tokens":{`...)
	open := len(b)
	for c, n := range v {
		b = appendJSONNumber(b, tokens.Class(c).String(), n)
	}
	return append(append(b[:open], b[open+1:]...), '}') // without the first comma
}
