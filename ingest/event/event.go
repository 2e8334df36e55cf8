// Package event is the usage event: what a producer says about one call of a
// model, what the edge stamps on it, and how it travels in the topic `events`.
//
// It is a hand-over package: the ingest stage fills events and the ledger
// stage reads them. It promises that an event that passes Validate encodes to
// exactly one byte string (AppendLog), that decoding those bytes gives the
// same event, and that equal producer fields give equal ContentMAC inputs
// whatever form they arrived in. It never reads a clock, never does I/O and
// has no field that could hold a prompt or a response.
package event

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Event is one usage event. Strings of a decoded event alias the buffer it was
// decoded from: they live as long as that buffer is left alone.
type Event struct {
	ID            string
	Tenant        string
	OccurredAt    int64 // unix nanoseconds
	ProducerID    string
	ProducerEpoch int64
	ProducerSeq   int64

	Provider       string
	Model          string
	RequestedModel string
	Operation      string
	Region         string
	ServiceTier    string // "" is standard
	Status         string // "" is ok
	HTTPStatus     int64
	ErrorType      string

	Tokens            tokens.Vector
	ContextTokens     int64 // 0: the sum of the prompt classes
	LatencyMicros     int64 // 0: unknown
	TTFTMicros        int64 // 0: unknown
	Streamed          bool
	Estimated         bool
	ProviderRequestID string
	ProviderCost      string // decimal USD, "" is unknown; see ProviderCostPico

	// Time of a GPU, of an event that has a GPUState; see gpu.go.
	GPUMicros      int64
	GPUState       string
	PurchaseOption string

	Team        string
	Service     string
	Feature     string
	Agent       string
	User        string // never in the log: see UserPseudonym
	EndCustomer string
	Environment string
	Tags        []Tag // sorted by key, keys unique

	DecisionAction string
	DecisionPolicy string
	DecisionReason string

	// Corrects is the id of the event whose counts this one replaces, "" in
	// usage; see correction.go.
	Corrects         string
	CorrectionReason string
	// DerivedFrom names what a processor computed the event from, "" for an event
	// that something outside reported. Processors never emit from such events.
	DerivedFrom string

	// Stamped by the edge.
	ReceivedAt     int64 // unix nanoseconds
	ContentMAC     [sha256.Size]byte
	HasContentMAC  bool
	UserPseudonym  string
	MappingVersion int64
	// SealedTags are the tags that the tenant keeps confidential, sealed; see
	// AppendTagPairs for what is inside. They stand in no plaintext field.
	SealedTags []byte
}

// Tag is one pair of the tags map.
type Tag struct{ Key, Value string }

// Statuses of a call.
const (
	StatusOK        = "ok"
	StatusError     = "error"
	StatusBlocked   = "blocked"
	StatusKilled    = "killed"
	StatusTruncated = "truncated"
	StatusCancelled = "cancelled"
)

// Limits of an event.
const (
	MaxIDBytes     = 128
	MaxValueBytes  = 256
	MaxTags        = 32
	MaxTokens      = 1_000_000_000_000 // per class
	MaxMicros      = 1_000_000_000_000 // 11.5 days
	MaxEncodedSize = 32 << 10          // of one event in the log
	// MaxSealedTags bounds SealedTags: all tags at their longest, and what
	// sealing adds.
	MaxSealedTags = 17 << 10
	// MaxSealedSubject bounds the sealed identity of a person beside an event.
	MaxSealedSubject = 512
)

// Reset empties the event for reuse and keeps the tags' memory.
func (e *Event) Reset() {
	tags := e.Tags[:0]
	*e = Event{Tags: tags}
}

// ProxyProducer begins the producer ids of metering proxies.
const ProxyProducer = "proxy-"

// KeySize is the size of an event key.
const KeySize = 16

// Key is what an event is deduplicated by, within its tenant.
type Key [KeySize]byte

// KeyOf is the key of an event id: the id's own 16 bytes when it is a UUID in
// its canonical lower-case form, else the first 16 bytes of SHA-256 over
// "tallystick/event-id/v1" ‖ 0x00 ‖ id.
func KeyOf(id string) Key {
	if k, ok := parseUUID(id); ok {
		return k
	}
	const domain = "tallystick/event-id/v1\x00"
	var scratch [len(domain) + MaxIDBytes]byte
	b := append(scratch[:0], domain...)
	sum := sha256.Sum256(append(b, id...))
	return Key(sum[:KeySize])
}

// String is the key in hexadecimal digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

func parseUUID(s string) (k Key, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return k, false
	}
	n := 0
	for i := 0; i < 36; {
		if s[i] == '-' {
			i++
			continue
		}
		hi, lo := unhex(s[i]), unhex(s[i+1])
		if hi > 15 || lo > 15 {
			return k, false
		}
		k[n] = hi<<4 | lo
		n++
		i += 2
	}
	return k, true
}

// unhex takes lower-case digits only: an upper-case UUID is another id, and
// treating it as the same would make two spellings of an id one.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	default:
		return 0xff
	}
}

// ProviderCostPico is the provider's own cost of a valid event. ok is false
// when the provider stated none.
func (e *Event) ProviderCostPico() (cost money.Pico, ok bool) {
	if e.ProviderCost == "" {
		return 0, false
	}
	cost, err := money.Parse(e.ProviderCost)
	return cost, err == nil
}
