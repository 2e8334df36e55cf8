package chain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"unsafe"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Tags of the fields that the ledger adds. The tags below 64 are the event's
// field numbers (event.Fields).
const (
	tagSeq            = 64
	tagTopicID        = 65
	tagPartition      = 66
	tagOffset         = 67
	tagKey            = 68
	tagCost           = 70
	tagPriceBook      = 71
	tagPriceRow       = 72
	tagUnpricedReason = 73
	tagPricingVersion = 74
	tagEstimatedDelta = 75
	tagTokenDeltas    = 76
	tagCorrectsSeq    = 77
	tagNetCost        = 78
	tagUnpricedDelta  = 79
	tagGPUDelta       = 84
	tagRejectReason   = 80
	tagRejectField    = 81
	tagBodyHash       = 82
	tagBodySize       = 83
	tagControlKind    = 90
	tagControlVersion = 91
	tagControlHash    = 92
	tagEdgeID         = 100
	tagEdgeEpoch      = 101
	tagAccepted       = 102
	tagRefused        = 103
	tagReasons        = 104
)

// ErrFormat says that bytes are not the canonical encoding of an entry.
var ErrFormat = errors.New("not a canonical entry")

// ErrVersion says that an entry has a version or kind that this binary does
// not know. It is not a sign of tampering: a newer binary may know it.
var ErrVersion = errors.New("unknown entry version or kind")

// Append appends the canonical bytes of the entry.
func (e *Entry) Append(b []byte) []byte {
	b = append(b, e.version(), byte(e.Kind))
	b = e.appendEvent(b)
	b = appendUint(b, tagSeq, e.Seq)
	b = appendBytes(b, tagTopicID, e.Position.TopicID[:])
	b = appendUint(b, tagPartition, int64(e.Position.Partition))
	b = appendUint(b, tagOffset, e.Position.Offset)
	b = appendBytes(b, tagKey, e.Key[:])
	switch e.Kind {
	case Usage:
		b = e.appendMoney(b)
	case Correction:
		b = e.appendCorrected(e.appendMoney(b))
	case Rejected:
		b = appendString(b, tagRejectReason, e.RejectReason)
		b = appendString(b, tagRejectField, e.RejectField)
		b = appendHash(b, tagBodyHash, &e.BodyHash)
		b = appendUint(b, tagBodySize, e.BodySize)
	case Control:
		b = appendString(b, tagControlKind, e.ControlKind)
		b = appendString(b, tagControlVersion, e.ControlVersion)
		b = appendHash(b, tagControlHash, &e.ControlHash)
	case Counters:
		b = e.appendCounters(b)
	}
	return b
}

func (e *Entry) appendEvent(b []byte) []byte {
	ev := &e.Event
	for i := range event.Fields {
		f := &event.Fields[i]
		switch f.Kind {
		case event.String:
			b = appendString(b, f.Num, *ev.StringPtr(f.Num))
		case event.Int:
			b = appendUint(b, f.Num, *ev.IntPtr(f.Num))
		case event.Bool:
			if *ev.BoolPtr(f.Num) {
				b = append(b, f.Num, 0)
			}
		case event.Time:
			if t := *ev.TimePtr(f.Num); t != 0 {
				b = appendInt64(b, f.Num, t)
			}
		case event.Bytes:
			if ev.HasContentMAC {
				b = appendBytes(b, f.Num, ev.ContentMAC[:])
			}
		case event.TokenMap:
			b = appendTokens(b, f.Num, &ev.Tokens)
		case event.TagMap:
			b = appendTags(b, f.Num, ev.Tags)
		case event.Blob:
			b = appendString(b, f.Num, alias(ev.SealedTags))
		}
	}
	return b
}

func (e *Entry) appendMoney(b []byte) []byte {
	if e.Priced {
		b = appendInt64(b, tagCost, int64(e.Cost))
	}
	b = appendHash(b, tagPriceBook, &e.PriceBook)
	b = appendString(b, tagPriceRow, e.PriceRow)
	b = appendString(b, tagUnpricedReason, e.UnpricedReason)
	return appendUint(b, tagPricingVersion, e.PricingVersion)
}

func (e *Entry) appendCounters(b []byte) []byte {
	b = appendString(b, tagEdgeID, e.EdgeID)
	b = appendUint(b, tagEdgeEpoch, e.EdgeEpoch)
	b = appendUint(b, tagAccepted, e.Accepted)
	b = appendUint(b, tagRefused, e.Refused)
	if len(e.Reasons) == 0 {
		return b
	}
	n := 0
	for i := range e.Reasons {
		n += stringSize(e.Reasons[i].Reason) + uvarintLen(uint64(e.Reasons[i].N))
	}
	b = binary.AppendUvarint(append(b, tagReasons), uint64(n))
	for i := range e.Reasons {
		b = appendText(b, e.Reasons[i].Reason)
		b = binary.AppendUvarint(b, uint64(e.Reasons[i].N))
	}
	return b
}

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func stringSize(s string) int { return uvarintLen(uint64(len(s))) + len(s) }

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendString(b []byte, tag uint8, s string) []byte {
	if s == "" {
		return b
	}
	return appendText(append(b, tag), s)
}

func appendBytes(b []byte, tag uint8, v []byte) []byte {
	return append(append(b, tag, byte(len(v))), v...)
}

func appendHash(b []byte, tag uint8, h *Hash) []byte {
	if *h == (Hash{}) {
		return b
	}
	return appendBytes(b, tag, h[:])
}

// appendUint writes a non-negative integer in as few bytes as it needs, big-endian.
func appendUint(b []byte, tag uint8, v int64) []byte {
	if v == 0 {
		return b
	}
	n := (bits.Len64(uint64(v)) + 7) / 8
	b = append(b, tag, byte(n))
	for i := n - 1; i >= 0; i-- {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}

func appendInt64(b []byte, tag uint8, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, tag, 8), uint64(v))
}

func appendTokens(b []byte, tag uint8, v *tokens.Vector) []byte {
	if *v == (tokens.Vector{}) {
		return b
	}
	b = append(b, tag, 0)
	at := len(b)
	for c, n := range v {
		b = appendUint(b, uint8(c)+1, n)
	}
	// At most ten classes of ten bytes: the length fits one byte.
	b[at-1] = byte(len(b) - at)
	return b
}

func appendTags(b []byte, tag uint8, tags []event.Tag) []byte {
	if len(tags) == 0 {
		return b
	}
	n := 0
	for i := range tags {
		n += stringSize(tags[i].Key) + stringSize(tags[i].Value)
	}
	b = binary.AppendUvarint(append(b, tag), uint64(n))
	for i := range tags {
		b = appendText(appendText(b, tags[i].Key), tags[i].Value)
	}
	return b
}

// Decode reads canonical bytes into e, which is reset first. It accepts only
// what Append writes: whoever holds an entry that decodes holds its one
// encoding. Strings of e alias b.
func (e *Entry) Decode(b []byte) error {
	e.Reset()
	if len(b) < 2 {
		return fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	if b[0] != Version && b[0] != VersionGPU || b[1] == 0 || b[1] > byte(DeclaredLoss) {
		return fmt.Errorf("%w: version %d kind %d", ErrVersion, b[0], b[1])
	}
	e.Kind = Kind(b[1])
	d := decoder{b: b[2:]}
	last, placed := -1, 0 // placed: of the two fields that every entry has
	for len(d.b) > 0 && !d.bad {
		tag := d.b[0]
		d.b = d.b[1:]
		v := d.bytes()
		if int(tag) <= last {
			d.bad = true
			break
		}
		last = int(tag)
		if tag == tagTopicID || tag == tagKey {
			placed++
		}
		if !e.decodeField(tag, v) {
			return fmt.Errorf("%w: field %d", ErrFormat, tag)
		}
	}
	if d.bad {
		return fmt.Errorf("%w: after field %d", ErrFormat, last)
	}
	if placed != 2 {
		return fmt.Errorf("%w: no topic id or no key", ErrFormat)
	}
	switch v := e.version(); {
	case b[0] < v:
		return fmt.Errorf("%w: fields of version %d", ErrFormat, v)
	case b[0] > v:
		return fmt.Errorf("%w: version %d without a field of it", ErrVersion, b[0])
	}
	return nil
}

// version is the lowest version of the encoding that has all the entry's fields.
func (e *Entry) version() byte {
	ev := &e.Event
	if ev.GPUState != "" || ev.DerivedFrom != "" || ev.GPUMicros != 0 || ev.PurchaseOption != "" || e.Corrected.GPUMicros != 0 {
		return VersionGPU
	}
	return Version
}

func (e *Entry) decodeField(tag uint8, v []byte) bool {
	if tag < tagSeq {
		return e.decodeEventField(tag, v)
	}
	switch tag {
	case tagSeq:
		return decodeUint(v, &e.Seq)
	case tagTopicID:
		return copyExact(e.Position.TopicID[:], v)
	case tagPartition:
		var p int64
		ok := decodeUint(v, &p) && p < 1<<31
		e.Position.Partition = int32(p)
		return ok
	case tagOffset:
		return decodeUint(v, &e.Position.Offset)
	case tagKey:
		return copyExact(e.Key[:], v)
	}
	switch e.Kind {
	case Usage:
		return e.decodeMoney(tag, v)
	case Correction:
		return e.decodeMoney(tag, v) || e.decodeCorrected(tag, v)
	case Rejected:
		return e.decodeRejected(tag, v)
	case Control:
		return e.decodeControl(tag, v)
	case Counters:
		return e.decodeCounters(tag, v)
	default:
		return false
	}
}

func (e *Entry) decodeMoney(tag uint8, v []byte) bool {
	switch tag {
	case tagCost:
		e.Priced = true
		return decodeInt64(v, (*int64)(&e.Cost))
	case tagPriceBook:
		return decodeHash(v, &e.PriceBook)
	case tagPriceRow:
		return decodeString(v, &e.PriceRow)
	case tagUnpricedReason:
		return decodeString(v, &e.UnpricedReason)
	case tagPricingVersion:
		return decodeUint(v, &e.PricingVersion)
	}
	return false
}

func (e *Entry) decodeRejected(tag uint8, v []byte) bool {
	switch tag {
	case tagRejectReason:
		return decodeString(v, &e.RejectReason)
	case tagRejectField:
		return decodeString(v, &e.RejectField)
	case tagBodyHash:
		return decodeHash(v, &e.BodyHash)
	case tagBodySize:
		return decodeUint(v, &e.BodySize)
	}
	return false
}

func (e *Entry) decodeControl(tag uint8, v []byte) bool {
	switch tag {
	case tagControlKind:
		return decodeString(v, &e.ControlKind)
	case tagControlVersion:
		return decodeString(v, &e.ControlVersion)
	case tagControlHash:
		return decodeHash(v, &e.ControlHash)
	}
	return false
}

func (e *Entry) decodeCounters(tag uint8, v []byte) bool {
	switch tag {
	case tagEdgeID:
		return decodeString(v, &e.EdgeID)
	case tagEdgeEpoch:
		return decodeUint(v, &e.EdgeEpoch)
	case tagAccepted:
		return decodeUint(v, &e.Accepted)
	case tagRefused:
		return decodeUint(v, &e.Refused)
	case tagReasons:
		return e.decodeReasons(v)
	}
	return false
}

func (e *Entry) decodeReasons(v []byte) bool {
	d := decoder{b: v}
	for len(d.b) > 0 && !d.bad {
		r := event.ReasonCount{Reason: alias(d.bytes())}
		r.N = int64(d.uvarint())
		if k := len(e.Reasons); k > 0 && e.Reasons[k-1].Reason >= r.Reason {
			return false
		}
		e.Reasons = append(e.Reasons, r)
	}
	return !d.bad && len(e.Reasons) > 0
}

func (e *Entry) decodeEventField(tag uint8, v []byte) bool {
	ev := &e.Event
	f := eventFields[tag]
	if f == nil {
		return false
	}
	switch f.Kind {
	case event.String:
		return decodeString(v, ev.StringPtr(tag))
	case event.Int:
		return decodeUint(v, ev.IntPtr(tag))
	case event.Bool:
		*ev.BoolPtr(tag) = true
		return len(v) == 0
	case event.Time:
		return decodeInt64(v, ev.TimePtr(tag)) && *ev.TimePtr(tag) != 0
	case event.Bytes:
		ev.HasContentMAC = true
		return copyExact(ev.ContentMAC[:], v)
	case event.TokenMap:
		return decodeTokens(v, &ev.Tokens)
	case event.TagMap:
		return e.decodeTags(v)
	case event.Blob:
		ev.SealedTags = v
		return len(v) > 0
	}
	return false
}

var eventFields = func() (t [tagSeq]*event.Field) {
	for i := range event.Fields {
		t[event.Fields[i].Num] = &event.Fields[i]
	}
	return t
}()

func decodeTokens(v []byte, out *tokens.Vector) bool {
	if len(v) == 0 {
		return false
	}
	d := decoder{b: v}
	last := 0
	for len(d.b) > 0 {
		tag := int(d.b[0])
		d.b = d.b[1:]
		n := d.bytes()
		if d.bad || tag <= last || tag > int(tokens.NumClasses) || !decodeUint(n, &out[tag-1]) {
			return false
		}
		last = tag
	}
	return true
}

func (e *Entry) decodeTags(v []byte) bool {
	d := decoder{b: v}
	tags := e.Event.Tags
	for len(d.b) > 0 && !d.bad {
		t := event.Tag{Key: alias(d.bytes())}
		t.Value = alias(d.bytes())
		if k := len(tags); k > 0 && strings.Compare(tags[k-1].Key, t.Key) >= 0 {
			return false
		}
		tags = append(tags, t)
	}
	e.Event.Tags = tags
	return !d.bad && len(tags) > 0
}

type decoder struct {
	b   []byte
	bad bool
}

// uvarint reads a LEB128 number in its shortest form. Nearly all lengths have
// one byte.
func (d *decoder) uvarint() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := d.b[0]
		d.b = d.b[1:]
		return uint64(v)
	}
	return d.longUvarint()
}

func (d *decoder) longUvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n != uvarintLen(v) || v > 1<<63-1 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if d.bad || n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func decodeString(v []byte, out *string) bool {
	*out = alias(v)
	return len(v) > 0
}

func decodeUint(v []byte, out *int64) bool {
	if len(v) == 0 || len(v) > 8 || v[0] == 0 || len(v) == 8 && v[0] > 0x7f {
		return false
	}
	var n int64
	for _, c := range v {
		n = n<<8 | int64(c)
	}
	*out = n
	return true
}

func decodeInt64(v []byte, out *int64) bool {
	if len(v) != 8 {
		return false
	}
	*out = int64(binary.BigEndian.Uint64(v))
	return true
}

func decodeHash(v []byte, out *Hash) bool {
	return copyExact(out[:], v) && *out != Hash{}
}

func copyExact(dst, v []byte) bool {
	return copy(dst, v) == len(dst) && len(v) == len(dst)
}

func alias(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return unsafe.String(&b[0], len(b))
}

// Clone copies the entry so that it no longer aliases any buffer.
func (e *Entry) Clone() *Entry {
	c := &Entry{}
	if err := c.Decode(slices.Clone(e.Append(nil))); err != nil {
		panic("chain: an entry does not decode from its own encoding: " + err.Error())
	}
	return c
}

// CostOrNil is the cost of a priced entry and nil where there is none.
func (e *Entry) CostOrNil() *money.Pico {
	if !e.Priced {
		return nil
	}
	c := e.Cost
	return &c
}
