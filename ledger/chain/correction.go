package chain

import (
	"encoding/binary"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tokens"
)

// RerateReason is the correction reason of an entry that was priced anew, its
// tokens unchanged, because the price changed. Such an entry has no content MAC.
const RerateReason = "rerate"

// Corrected is what a Correction entry says beside its Event and its money:
// which entry it nets, by how much, and what that comes to. Its Event.Tokens,
// Event.ContextTokens, Event.Estimated and Event.GPUMicros are the original's from
// here on.
type Corrected struct {
	Seq int64 // of the original, a Usage entry
	// NetCost is the original's cost from here on. When not Priced it is
	// unpriced from here on, and NetCost is 0.
	Priced  bool
	NetCost money.Pico
	// What the correction adds to the sums of its original's hour, beside Cost.
	// Tokens and GPUMicros may be negative; Unpriced and Estimated are -1, 0 or 1.
	Tokens    tokens.Vector
	GPUMicros int64
	Unpriced  int64
	Estimated int64
}

// Net is what a usage entry comes to with the corrections so far.
type Net struct {
	Seq           int64 // of the usage entry
	Tokens        tokens.Vector
	GPUMicros     int64
	ContextTokens int64
	Estimated     bool
	Priced        bool
	Cost          money.Pico // 0 when not Priced
}

// Net is what a Usage entry says of itself, and a Correction of its original.
// ok is false for other kinds.
func (e *Entry) Net() (n Net, ok bool) {
	n = Net{Seq: e.Seq, Tokens: e.Event.Tokens, GPUMicros: e.Event.GPUMicros, ContextTokens: e.Event.ContextTokens, Estimated: e.Event.Estimated, Priced: e.Priced, Cost: e.Cost}
	if e.Kind == Correction {
		n.Seq, n.Priced, n.Cost = e.Corrected.Seq, e.Corrected.Priced, e.Corrected.NetCost
	}
	return n, e.Kind == Usage || e.Kind == Correction
}

// Correct turns e, which has the new counts and the price of them, into the
// Correction of what stands there until now. The error says that the difference
// of two costs is no amount, which no costs of usage can bring about.
func (e *Entry) Correct(was *Net) error {
	delta, err := e.Cost.Sub(was.Cost)
	if err != nil {
		return err
	}
	e.Kind = Correction
	d := &e.Corrected
	*d = Corrected{
		Seq: was.Seq, Priced: e.Priced, NetCost: e.Cost,
		Unpriced: one(was.Priced) - one(e.Priced), Estimated: one(e.Event.Estimated) - one(was.Estimated),
		GPUMicros: e.Event.GPUMicros - was.GPUMicros,
	}
	for c := range d.Tokens {
		d.Tokens[c] = e.Event.Tokens[c] - was.Tokens[c]
	}
	e.Priced, e.Cost = true, delta
	return nil
}

func one(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Attribute gives the event the time and attribution of the entry that it
// corrects: a correction counts where its original does.
func Attribute(e, original *event.Event) {
	e.OccurredAt = original.OccurredAt
	e.Provider, e.Model, e.RequestedModel = original.Provider, original.Model, original.RequestedModel
	e.Operation, e.Region, e.ServiceTier, e.Status = original.Operation, original.Region, original.ServiceTier, original.Status
	e.Team, e.Service, e.Feature, e.Agent = original.Team, original.Service, original.Feature, original.Agent
	e.EndCustomer, e.Environment = original.EndCustomer, original.Environment
	e.GPUState, e.PurchaseOption = original.GPUState, original.PurchaseOption
	e.UserPseudonym, e.MappingVersion = original.UserPseudonym, original.MappingVersion
	e.Tags = append(e.Tags[:0], original.Tags...)
	e.SealedTags = nil // they open in the original alone
}

func (e *Entry) appendCorrected(b []byte) []byte {
	d := &e.Corrected
	b = appendDelta(b, tagEstimatedDelta, d.Estimated)
	b = appendTokenDeltas(b, &d.Tokens)
	b = appendUint(b, tagCorrectsSeq, d.Seq)
	if d.Priced {
		b = appendInt64(b, tagNetCost, int64(d.NetCost))
	}
	b = appendDelta(b, tagUnpricedDelta, d.Unpriced)
	return appendDelta(b, tagGPUDelta, d.GPUMicros)
}

func appendDelta(b []byte, tag uint8, v int64) []byte {
	if v == 0 {
		return b
	}
	return appendInt64(b, tag, v)
}

func appendTokenDeltas(b []byte, v *tokens.Vector) []byte {
	n := 0
	for _, d := range v {
		if d != 0 {
			n += tokenDeltaBytes
		}
	}
	if n == 0 {
		return b
	}
	b = append(b, tagTokenDeltas, byte(n)) // at most 100
	for c, d := range v {
		b = appendDelta(b, uint8(c)+1, d)
	}
	return b
}

// tokenDeltaBytes is the size of one member: class, length, eight bytes.
const tokenDeltaBytes = 10

func (e *Entry) decodeCorrected(tag uint8, v []byte) bool {
	d := &e.Corrected
	switch tag {
	case tagEstimatedDelta:
		return decodeDelta(v, &d.Estimated)
	case tagTokenDeltas:
		return decodeTokenDeltas(v, &d.Tokens)
	case tagCorrectsSeq:
		return decodeUint(v, &d.Seq)
	case tagNetCost:
		d.Priced = true
		return decodeInt64(v, (*int64)(&d.NetCost))
	case tagUnpricedDelta:
		return decodeDelta(v, &d.Unpriced)
	case tagGPUDelta:
		return decodeDelta(v, &d.GPUMicros)
	}
	return false
}

func decodeDelta(v []byte, out *int64) bool {
	return decodeInt64(v, out) && *out != 0
}

func decodeTokenDeltas(v []byte, out *tokens.Vector) bool {
	last := 0
	for len(v) >= tokenDeltaBytes {
		class := int(v[0])
		if class <= last || class > int(tokens.NumClasses) || v[1] != 8 {
			return false
		}
		if out[class-1] = int64(binary.BigEndian.Uint64(v[2:])); out[class-1] == 0 {
			return false
		}
		v, last = v[tokenDeltaBytes:], class
	}
	return len(v) == 0 && last > 0
}
