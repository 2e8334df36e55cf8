package chain

import (
	"crypto/sha256"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
)

// Versions of the encoding, the first canonical byte. An entry has the lowest
// that knows all its fields, so what an older binary writes has the same bytes
// for ever, and an older verifier says of the others that it cannot tell.
const (
	Version = 1
	// VersionGPU adds gpu_us, gpu_state, purchase_option, derived_from and
	// gpu_us_delta.
	VersionGPU = 2
)

// Kind is what an entry records, the second canonical byte.
type Kind uint8

// The kinds of entries. Values are stored and never reused.
const (
	// Usage is a call of a model, priced or unpriced.
	Usage Kind = 1
	// Rejected is a record that could not become usage: undecodable, invalid,
	// for another tenant, or an id that was used for other content before.
	Rejected Kind = 2
	// Correction nets an earlier entry.
	Correction Kind = 3
	// Control says that from here on another price book, key or rule applies.
	Control Kind = 4
	// Counters are what an edge instance accepted and refused of a producer.
	Counters Kind = 5
	// DeclaredLoss closes a range that is gone, signed by an operator.
	DeclaredLoss Kind = 6
)

var kindNames = [...]string{"", "usage", "rejected", "correction", "control", "counters", "declared_loss"}

// String is the kind's name in the API and in reports.
func (k Kind) String() string {
	if int(k) < len(kindNames) && k > 0 {
		return kindNames[k]
	}
	return "unknown"
}

// Reasons of a rejected entry.
const (
	RejectUndecodable = "undecodable"
	RejectInvalid     = "invalid"
	RejectWrongTenant = "wrong_tenant"
	RejectConflict    = "conflict"
	RejectQuarantined = "quarantined"
)

// Entry is one entry of a tenant's ledger. Which fields are set depends on the
// kind; a zero field is absent from the canonical bytes. Strings and slices of
// a decoded entry alias the bytes it was decoded from.
type Entry struct {
	Kind     Kind
	Seq      int64 // from 1, without gaps, per tenant
	Position Position
	Key      event.Key // what the entry is unique by within its tenant

	// Event is the usage event of a Usage entry. Every kind has Event.Tenant,
	// and Event.ReceivedAt where the record carried one.
	Event event.Event

	// Money of a Usage or Correction entry. The cost of a correction is what it
	// adds to that of its original, and always there.
	Priced         bool
	Cost           money.Pico
	PriceBook      Hash   // hash of the book that was asked, zero when there was none
	PriceRow       string // row of that book
	UnpricedReason string
	PricingVersion int64

	Corrected Corrected // of a Correction

	// Rejected.
	RejectReason string
	RejectField  string // field and rule that were broken, when known
	BodyHash     Hash   // SHA-256 of the record's value
	BodySize     int64

	// Control.
	ControlKind    string
	ControlVersion string
	ControlHash    Hash // SHA-256 of the control record's content

	// Counters.
	EdgeID    string
	EdgeEpoch int64
	Accepted  int64
	Refused   int64
	Reasons   []event.ReasonCount
}

// Reset empties the entry for reuse and keeps its slices' memory.
func (e *Entry) Reset() {
	tags, reasons := e.Event.Tags[:0], e.Reasons[:0]
	*e = Entry{Reasons: reasons}
	e.Event.Tags = tags
}

// RejectionKey is the key of a rejection. It depends on the record's position
// alone, so a rejection always has room beside the entry it conflicts with.
func RejectionKey(p *Position) event.Key { return positionKey(domainRejection, p, "") }

// ControlKey is the key of the entry that a control record makes in the
// tenant's chain.
func ControlKey(p *Position, tenant string) event.Key {
	return positionKey(domainControl, p, tenant)
}

// CountersKey is the key of a counters entry.
func CountersKey(p *Position) event.Key { return positionKey(domainCounters, p, "") }

func positionKey(domain string, p *Position, suffix string) event.Key {
	b := p.append(append(make([]byte, 0, 128), domain...))
	sum := sha256.Sum256(append(b, suffix...))
	return event.Key(sum[:event.KeySize])
}
