package event

import (
	"unsafe"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Kind is how a field is written.
type Kind uint8

// The kinds of fields.
const (
	String Kind = iota
	Int
	Bool
	Time
	Bytes
	TokenMap
	TagMap
	Blob // bytes of any length up to Max, of an edge field
)

// Field describes one field of a usage event. The table drives the protobuf
// codec, the JSON decoder, validation and its messages.
type Field struct {
	Num  uint8  // protobuf field number
	Name string // JSON and protobuf name
	Kind Kind
	// Max is the greatest length in bytes of a string, and the greatest value
	// of an integer.
	Max int64
	// Required fields must not be empty.
	Required bool
	// OneOf is the closed vocabulary of a string; empty means free text.
	OneOf []string
	// Edge fields are stamped by the edge and refused in a request.
	Edge bool

	off uintptr // where the value lives in an Event; see places
}

// Field numbers that code names. They are those of event.proto.
const (
	fieldEventID       = 1
	fieldTenantID      = 2
	fieldOccurredAt    = 3
	fieldTokens        = 20
	fieldProviderCost  = 27
	fieldGPUMicros     = 28
	fieldGPUState      = 29
	fieldUser          = 34
	fieldTags          = 37
	fieldPurchase      = 38
	fieldCorrects      = 43
	fieldDerivedFrom   = 44
	fieldCorrectReason = 45
	fieldReceivedAt    = 50
	fieldContentMAC    = 51
	fieldUserPseudonym = 52
	fieldMapping       = 53
	fieldSealedTags    = 54
	maxFieldNum        = 54
)

// Fields lists all fields in ascending order of number.
var Fields = places([]Field{
	{Num: fieldEventID, Name: "event_id", Max: MaxIDBytes, Required: true},
	{Num: fieldTenantID, Name: "tenant_id", Max: 63, Required: true},
	{Num: fieldOccurredAt, Name: "occurred_at", Kind: Time, Required: true},
	{Num: 4, Name: "producer_id", Max: MaxIDBytes},
	{Num: 5, Name: "producer_epoch", Kind: Int, Max: 1<<63 - 1},
	{Num: 6, Name: "producer_seq", Kind: Int, Max: 1<<63 - 1},
	{Num: 10, Name: "provider", Max: 64, Required: true},
	{Num: 11, Name: "model", Max: MaxValueBytes, Required: true},
	{Num: 12, Name: "requested_model", Max: MaxValueBytes},
	{Num: 13, Name: "operation", Max: 64},
	{Num: 14, Name: "region", Max: 64},
	{Num: 15, Name: "service_tier", Max: 16, OneOf: []string{"standard", "batch", "flex", "priority"}},
	{Num: 16, Name: "status", Max: 16, OneOf: []string{StatusOK, StatusError, StatusBlocked, StatusKilled, StatusTruncated, StatusCancelled}},
	{Num: 17, Name: "http_status", Kind: Int, Max: 999},
	{Num: 18, Name: "error_type", Max: 64},
	{Num: fieldTokens, Name: "tokens", Kind: TokenMap, Max: MaxTokens},
	{Num: 21, Name: "context_tokens", Kind: Int, Max: MaxTokens},
	{Num: 22, Name: "latency_us", Kind: Int, Max: MaxMicros},
	{Num: 23, Name: "ttft_us", Kind: Int, Max: MaxMicros},
	{Num: 24, Name: "streamed", Kind: Bool},
	{Num: 25, Name: "estimated", Kind: Bool},
	{Num: 26, Name: "provider_request_id", Max: MaxValueBytes},
	{Num: fieldProviderCost, Name: "provider_cost_usd", Max: 32},
	{Num: fieldGPUMicros, Name: "gpu_us", Kind: Int, Max: MaxGPUMicros},
	{Num: fieldGPUState, Name: "gpu_state", Max: 16, OneOf: []string{GPUUsed, GPUIdle, GPUUnknown, GPUUnallocated}},
	{Num: 30, Name: "team", Max: MaxValueBytes},
	{Num: 31, Name: "service", Max: MaxValueBytes},
	{Num: 32, Name: "feature", Max: MaxValueBytes},
	{Num: 33, Name: "agent", Max: MaxValueBytes},
	{Num: fieldUser, Name: "user", Max: MaxValueBytes},
	{Num: 35, Name: "end_customer", Max: MaxValueBytes},
	{Num: 36, Name: "environment", Max: MaxValueBytes},
	{Num: fieldTags, Name: "tags", Kind: TagMap, Max: MaxValueBytes},
	{Num: fieldPurchase, Name: "purchase_option", Max: 16, OneOf: purchases},
	{Num: 40, Name: "decision_action", Max: 16, OneOf: []string{"allow", "block", "kill"}},
	{Num: 41, Name: "decision_policy", Max: MaxValueBytes},
	{Num: 42, Name: "decision_reason", Max: MaxValueBytes},
	{Num: fieldCorrects, Name: "corrects", Max: MaxIDBytes},
	{Num: fieldDerivedFrom, Name: "derived_from", Max: MaxValueBytes},
	{Num: fieldCorrectReason, Name: "correction_reason", Max: MaxValueBytes},
	{Num: fieldReceivedAt, Name: "received_at", Kind: Time, Required: true, Edge: true},
	{Num: fieldContentMAC, Name: "content_mac", Kind: Bytes, Max: 32, Required: true, Edge: true},
	{Num: fieldUserPseudonym, Name: "user_pseudonym", Max: 32, Edge: true},
	{Num: fieldMapping, Name: "mapping_version", Kind: Int, Max: 1<<31 - 1, Edge: true},
	{Num: fieldSealedTags, Name: "sealed_tags", Kind: Blob, Max: MaxSealedTags, Edge: true},
})

// places notes where each field lives, so that the codec, which runs several
// times for every event, need not choose among forty cases for every field.
func places(fields []Field) []Field {
	var e Event
	for i := range fields {
		f := &fields[i]
		var at unsafe.Pointer
		switch f.Kind {
		case String:
			at = unsafe.Pointer(e.StringPtr(f.Num))
		case Int:
			at = unsafe.Pointer(e.IntPtr(f.Num))
		case Bool:
			at = unsafe.Pointer(e.BoolPtr(f.Num))
		case Time:
			at = unsafe.Pointer(e.TimePtr(f.Num))
		default: // Bytes, Blob and the maps are one of a kind
			continue
		}
		f.off = uintptr(at) - uintptr(unsafe.Pointer(&e))
	}
	return fields
}

// str, num, flag and instant are where a field of their kind lives.
func (e *Event) str(f *Field) *string    { return (*string)(unsafe.Add(unsafe.Pointer(e), f.off)) }
func (e *Event) num(f *Field) *int64     { return (*int64)(unsafe.Add(unsafe.Pointer(e), f.off)) }
func (e *Event) flag(f *Field) *bool     { return (*bool)(unsafe.Add(unsafe.Pointer(e), f.off)) }
func (e *Event) instant(f *Field) *int64 { return (*int64)(unsafe.Add(unsafe.Pointer(e), f.off)) }

// fieldByNum finds a field by its number; nil where there is none.
var fieldByNum = func() (t [maxFieldNum + 1]*Field) {
	for i := range Fields {
		t[Fields[i].Num] = &Fields[i]
	}
	return t
}()

// FieldByName finds a producer's field by its JSON name.
func FieldByName(name string) (*Field, bool) {
	f := fieldsByName.find(name)
	return f, f != nil
}

var fieldsByName = newNameTable(Fields)

// nameBits make about ten slots for a name: with fewer the search for a
// multiplier takes long.
const nameBits = 9

// nameTable is a hash table without collisions: its multiplier was searched
// for. It takes a third of the time of a map, and every JSON name passes here.
type nameTable struct {
	mul   uint32
	slots [1 << nameBits]*Field
}

func newNameTable(fields []Field) *nameTable {
	t := &nameTable{}
	for seed := uint32(1); seed < 10_000; seed++ {
		t.mul = (2*seed + 1) * 0x9e3779b1
		if t.fill(fields) {
			return t
		}
	}
	panic("event: no hash tells the field names apart; let nameTable.hash look at more of them")
}

// fill reports false when two names meet in one slot.
func (t *nameTable) fill(fields []Field) bool {
	clear(t.slots[:])
	for i := range fields {
		slot := &t.slots[t.hash(fields[i].Name)]
		if *slot != nil {
			return false
		}
		*slot = &fields[i]
	}
	return true
}

// hash needs a name that is not empty.
func (t *nameTable) hash(s string) uint32 {
	n := len(s)
	seen := uint32(n)<<24 | uint32(s[0])<<16 | uint32(s[n*2/3])<<8 | uint32(s[n-1])
	return seen * t.mul >> (32 - nameBits)
}

func (t *nameTable) find(name string) *Field {
	if name == "" {
		return nil
	}
	if f := t.slots[t.hash(name)]; f != nil && f.Name == name {
		return f
	}
	return nil
}

// TokenClassByName finds the class of a member of "tokens".
func TokenClassByName(name string) (tokens.Class, bool) { return tokens.ParseClass(name) }

// StringPtr is where a String field of the event lives.
func (e *Event) StringPtr(num uint8) *string {
	switch num {
	case fieldEventID:
		return &e.ID
	case fieldTenantID:
		return &e.Tenant
	case 4:
		return &e.ProducerID
	case 10:
		return &e.Provider
	case 11:
		return &e.Model
	case 12:
		return &e.RequestedModel
	case 13:
		return &e.Operation
	case 14:
		return &e.Region
	case 15:
		return &e.ServiceTier
	case 16:
		return &e.Status
	case 18:
		return &e.ErrorType
	case 26:
		return &e.ProviderRequestID
	case fieldProviderCost:
		return &e.ProviderCost
	case fieldGPUState:
		return &e.GPUState
	case 30:
		return &e.Team
	case 31:
		return &e.Service
	case 32:
		return &e.Feature
	case 33:
		return &e.Agent
	case fieldUser:
		return &e.User
	case 35:
		return &e.EndCustomer
	case 36:
		return &e.Environment
	case fieldPurchase:
		return &e.PurchaseOption
	case 40:
		return &e.DecisionAction
	case 41:
		return &e.DecisionPolicy
	case 42:
		return &e.DecisionReason
	case fieldCorrects:
		return &e.Corrects
	case fieldDerivedFrom:
		return &e.DerivedFrom
	case fieldCorrectReason:
		return &e.CorrectionReason
	case fieldUserPseudonym:
		return &e.UserPseudonym
	default:
		return nil
	}
}

// IntPtr is where an Int field of the event lives.
func (e *Event) IntPtr(num uint8) *int64 {
	switch num {
	case 5:
		return &e.ProducerEpoch
	case 6:
		return &e.ProducerSeq
	case 17:
		return &e.HTTPStatus
	case 21:
		return &e.ContextTokens
	case 22:
		return &e.LatencyMicros
	case 23:
		return &e.TTFTMicros
	case fieldGPUMicros:
		return &e.GPUMicros
	case fieldMapping:
		return &e.MappingVersion
	default:
		return nil
	}
}

// BoolPtr is where a Bool field of the event lives.
func (e *Event) BoolPtr(num uint8) *bool {
	switch num {
	case 24:
		return &e.Streamed
	case 25:
		return &e.Estimated
	default:
		return nil
	}
}

// TimePtr is where a Time field of the event lives, in unix nanoseconds.
func (e *Event) TimePtr(num uint8) *int64 {
	switch num {
	case fieldOccurredAt:
		return &e.OccurredAt
	case fieldReceivedAt:
		return &e.ReceivedAt
	default:
		return nil
	}
}
