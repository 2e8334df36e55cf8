package event

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"unsafe"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Protobuf wire types.
const (
	wireVarint = 0
	wireFixed8 = 1
	wireBytes  = 2
	wireFixed4 = 5
)

// The producer's fields stand before the edge's in Fields, and the person in
// the midst of them: what goes into the log is the one without the person, and
// then the other.
var (
	beforePerson, person, afterPerson, edgeFields = splitFields()
)

func splitFields() (before, person, after, edge []Field) {
	at := slices.IndexFunc(Fields, func(f Field) bool { return f.Num == fieldUser })
	end := slices.IndexFunc(Fields, func(f Field) bool { return f.Edge })
	return Fields[:at], Fields[at : at+1], Fields[at+1 : end], Fields[end:]
}

// AppendProducer appends the producer's fields as protobuf, in ascending order
// of field number, zero values left out, tags sorted. For a normalised event
// it is the one byte string that its ContentMAC is computed over, whatever
// encoding the event arrived in.
func (e *Event) AppendProducer(b []byte) []byte {
	b, _ = e.AppendProducerMarked(b)
	return b
}

// Span is a part of a byte slice.
type Span struct{ Start, End int }

// AppendProducerMarked is AppendProducer, and says where in the result the
// person stands, so that AppendUsageRecordOf can leave it out.
func (e *Event) AppendProducerMarked(b []byte) ([]byte, Span) {
	b = e.appendFields(b, beforePerson)
	s := Span{Start: len(b)}
	b = e.appendFields(b, person)
	s.End = len(b)
	return e.appendFields(b, afterPerson), s
}

// AppendLog appends the event as it stands in the log: the producer's fields
// without the person, then what the edge stamped.
func (e *Event) AppendLog(b []byte) []byte {
	b = e.appendFields(b, beforePerson)
	b = e.appendFields(b, afterPerson)
	return e.appendFields(b, edgeFields)
}

func (e *Event) appendFields(b []byte, fields []Field) []byte {
	for i := range fields {
		f := &fields[i]
		switch f.Kind {
		case String:
			b = appendString(b, f.Num, *e.str(f))
		case Int:
			b = appendInt(b, f.Num, *e.num(f))
		case Bool:
			if *e.flag(f) {
				b = appendInt(b, f.Num, 1)
			}
		case Time:
			b = appendTime(b, f.Num, *e.instant(f))
		case Bytes:
			if e.HasContentMAC {
				b = appendTag(b, f.Num, wireBytes)
				b = append(b, byte(len(e.ContentMAC)))
				b = append(b, e.ContentMAC[:]...)
			}
		case TokenMap:
			b = appendTokens(b, f.Num, &e.Tokens)
		case TagMap:
			b = appendTags(b, f.Num, e.Tags)
		case Blob:
			b = appendString(b, f.Num, alias(e.SealedTags))
		}
	}
	return b
}

func appendTag(b []byte, num uint8, wire byte) []byte {
	return binary.AppendUvarint(b, uint64(num)<<3|uint64(wire))
}

func appendString(b []byte, num uint8, s string) []byte {
	if s == "" {
		return b
	}
	b = appendTag(b, num, wireBytes)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendInt(b []byte, num uint8, v int64) []byte {
	if v == 0 {
		return b
	}
	b = appendTag(b, num, wireVarint)
	return binary.AppendUvarint(b, uint64(v))
}

// appendTime writes a google.protobuf.Timestamp.
func appendTime(b []byte, num uint8, ns int64) []byte {
	if ns == 0 {
		return b
	}
	sec, nanos := ns/1e9, ns%1e9
	if nanos < 0 {
		sec, nanos = sec-1, nanos+1e9
	}
	return appendNested(b, num, func(b []byte) []byte {
		return appendInt(appendInt(b, 1, sec), 2, nanos)
	})
}

func appendTokens(b []byte, num uint8, v *tokens.Vector) []byte {
	if *v == (tokens.Vector{}) {
		return b
	}
	return appendNested(b, num, func(b []byte) []byte {
		for c, n := range v {
			b = appendInt(b, uint8(c)+1, n)
		}
		return b
	})
}

func appendTags(b []byte, num uint8, tags []Tag) []byte {
	for i := range tags {
		b = appendNested(b, num, func(b []byte) []byte {
			return appendString(appendString(b, 1, tags[i].Key), 2, tags[i].Value)
		})
	}
	return b
}

// appendNested writes a sub-message without knowing its length beforehand: it
// leaves one byte for the length and moves the body when that was too little.
func appendNested(b []byte, num uint8, body func([]byte) []byte) []byte {
	b = appendTag(b, num, wireBytes)
	at := len(b)
	b = body(append(b, 0))
	n := len(b) - at - 1
	if n < 0x80 {
		b[at] = byte(n)
		return b
	}
	var length [binary.MaxVarintLen64]byte
	return slices.Replace(b, at, at+1, length[:binary.PutUvarint(length[:], uint64(n))]...)
}

// reader walks protobuf bytes. A malformed input sets bad and ends the walk.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 { // nearly all are one byte
		v := r.b[0]
		r.b = r.b[1:]
		return uint64(v)
	}
	return r.longUvarint()
}

func (r *reader) longUvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// next reads a tag. ok is false at the end of the input or when it is malformed.
func (r *reader) next() (num uint64, wire byte, ok bool) {
	if len(r.b) == 0 {
		return 0, 0, false
	}
	tag := r.uvarint()
	if r.bad || tag>>3 == 0 || tag>>3 > 1<<29-1 {
		r.bad = true
		return 0, 0, false
	}
	return tag >> 3, byte(tag & 7), true
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if r.bad || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

// skip passes over an unknown field.
func (r *reader) skip(wire byte) {
	switch wire {
	case wireVarint:
		r.uvarint()
	case wireBytes:
		r.bytes()
	case wireFixed8:
		r.fixed(8)
	case wireFixed4:
		r.fixed(4)
	default: // groups were never part of proto3
		r.bad = true
	}
}

func (r *reader) fixed(n int) {
	if len(r.b) < n {
		r.bad, r.b = true, nil
		return
	}
	r.b = r.b[n:]
}

// Mode says how an event's bytes are read.
type Mode uint8

// The modes of DecodeProto.
const (
	// Strict refuses unknown fields and fields that only the edge sets.
	Strict Mode = iota
	// Lenient drops unknown fields; they are never stored.
	Lenient
	// Log reads an event back from the log, with what the edge stamped.
	Log
)

// DecodeProto reads a protobuf UsageEvent into e, which is reset first. The
// strings of e alias b. A field that stands twice is refused: the producers
// whose last value wins and those whose first value wins would not agree on
// what was sent. The error is a *FieldError.
func (e *Event) DecodeProto(b []byte, mode Mode) error {
	e.Reset()
	var seen uint64
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		f := lookupField(num)
		if f == nil || (f.Edge && mode != Log) || (f.Num == fieldUser && mode == Log) {
			if f != nil {
				return fail(f.Name, RuleEdgeOnly, "")
			}
			if mode != Lenient {
				return fail("#"+uitoa(num), RuleUnknown, "no field has this number")
			}
			r.skip(wire)
			continue
		}
		if f.Kind != TagMap && !once(&seen, num) {
			return fail(f.Name, RuleDuplicate, "")
		}
		if err := e.decodeField(f, wire, &r); err != nil {
			return err
		}
	}
	if r.bad {
		return fail("event", RuleMalformed, "not a protobuf UsageEvent")
	}
	return sortTags(e.Tags)
}

func lookupField(num uint64) *Field {
	if num > maxFieldNum {
		return nil
	}
	return fieldByNum[num]
}

func (e *Event) decodeField(f *Field, wire byte, r *reader) error {
	want := byte(wireBytes)
	if f.Kind == Int || f.Kind == Bool {
		want = wireVarint
	}
	if wire != want {
		return fail(f.Name, RuleType, "")
	}
	switch f.Kind {
	case String:
		*e.str(f) = alias(r.bytes())
	case Int:
		*e.num(f) = int64(r.uvarint())
	case Bool:
		*e.flag(f) = r.uvarint() != 0
	case Time:
		ns, err := decodeTime(f, r.bytes())
		if err != nil {
			return err
		}
		*e.instant(f) = ns
	case Bytes:
		v := r.bytes()
		if len(v) != len(e.ContentMAC) {
			return fail(f.Name, RuleRange, "must be 32 bytes")
		}
		e.ContentMAC, e.HasContentMAC = [32]byte(v), true
	case TokenMap:
		return e.decodeTokens(f, r.bytes())
	case TagMap:
		return e.decodeTag(f, r.bytes())
	case Blob:
		e.SealedTags = r.bytes()
	}
	return nil
}

func decodeTime(f *Field, b []byte) (int64, error) {
	var sec, nanos int64
	var seen uint64
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		if wire != wireVarint || num > 2 {
			return 0, fail(f.Name, RuleType, "a google.protobuf.Timestamp")
		}
		if !once(&seen, num) {
			return 0, fail(f.Name, RuleDuplicate, "")
		}
		if num == 1 {
			sec = int64(r.uvarint())
		} else {
			nanos = int64(r.uvarint())
		}
	}
	if r.bad {
		return 0, fail(f.Name, RuleMalformed, "a google.protobuf.Timestamp")
	}
	if nanos < 0 || nanos > 999_999_999 || sec <= 0 || sec >= math.MaxInt64/1_000_000_000 {
		return 0, fail(f.Name, RuleRange, "a time between 1970 and 2262")
	}
	return sec*1e9 + nanos, nil
}

// once notes that a field stands in a message and reports whether it is the
// first time. num is below 64.
func once(seen *uint64, num uint64) bool {
	first := *seen&(1<<num) == 0
	*seen |= 1 << num
	return first
}

func (e *Event) decodeTokens(f *Field, b []byte) error {
	var seen uint64
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		if num > uint64(tokens.NumClasses) {
			return fail("tokens.#"+uitoa(num), RuleUnknown, "no token class has this number")
		}
		if wire != wireVarint {
			return fail("tokens."+tokens.Class(num-1).String(), RuleType, "an integer")
		}
		if !once(&seen, num) {
			return fail("tokens."+tokens.Class(num-1).String(), RuleDuplicate, "")
		}
		e.Tokens[num-1] = int64(r.uvarint())
	}
	if r.bad {
		return fail(f.Name, RuleMalformed, "")
	}
	return nil
}

func (e *Event) decodeTag(f *Field, b []byte) error {
	if len(e.Tags) == MaxTags {
		return fail(f.Name, RuleMaxItems, "at most %d", MaxTags)
	}
	var t Tag
	var seen uint64
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		if wire != wireBytes || num > 2 {
			return fail(f.Name, RuleType, "a map of strings")
		}
		if !once(&seen, num) {
			return fail(f.Name, RuleDuplicate, "")
		}
		if num == 1 {
			t.Key = alias(r.bytes())
		} else {
			t.Value = alias(r.bytes())
		}
	}
	if r.bad {
		return fail(f.Name, RuleMalformed, "")
	}
	e.Tags = append(e.Tags, t)
	return nil
}

// AddTag adds a pair in any order; SortTags puts them in their stored order.
func (e *Event) AddTag(key, value string) error {
	if len(e.Tags) == MaxTags {
		return fail("tags", RuleMaxItems, "at most %d", MaxTags)
	}
	e.Tags = append(e.Tags, Tag{key, value})
	return nil
}

// SortTags sorts the tags by key and refuses a key that stands twice.
func (e *Event) SortTags() error { return sortTags(e.Tags) }

func sortTags(tags []Tag) error {
	if len(tags) < 2 {
		return nil
	}
	slices.SortFunc(tags, func(a, b Tag) int { return strings.Compare(a.Key, b.Key) })
	for i := 1; i < len(tags); i++ {
		if tags[i].Key == tags[i-1].Key {
			return fail("tags", RuleDuplicate, "a key stands twice")
		}
	}
	return nil
}

// alias views bytes as a string without copying. The result lives as long as
// the bytes are left alone (see Event).
func alias(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return unsafe.String(&b[0], len(b))
}

func uitoa(v uint64) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return string(b[i:])
		}
	}
}

// PeekID reads the event id of an encoded UsageEvent without decoding the rest.
// AppendLog puts it first; wherever it stands, it is found. The result aliases b.
func PeekID(b []byte) (string, bool) {
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			return "", false
		}
		if num == fieldEventID && wire == wireBytes {
			return alias(r.bytes()), !r.bad
		}
		r.skip(wire)
	}
}
