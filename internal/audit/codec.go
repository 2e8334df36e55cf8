package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/tenant"
)

// The form of docs/ledger-format.md, "Audit log".
const (
	version = 1
	// kind is none of the ledger's, so a leaf of one log is never one of the other.
	kind = 64

	genesisDomain = "tallystick/audit/genesis/v1\x00"
	chainDomain   = "tallystick/audit/chain/v1\x00"
	macDomain     = "tallystick/audit/mac/v1\x00"
)

// Tags of the fields, in the order in which they stand.
const (
	tagTenant = 1 + iota
	tagSeq
	tagAt
	tagActor
	tagAction
	tagResource
	tagOutcome
	tagReason
	tagAddr
	tagClient
	tagRequestID
	tagCount
	tagUntil
)

// Most bytes of the texts.
const (
	maxNameBytes = 128 // actor, action, outcome, address, request id
	maxTextBytes = 512 // resource, reason, client
)

// ErrFormat says that bytes are not the canonical encoding of an event.
var ErrFormat = errors.New("audit: not a canonical event")

// Hash is a SHA-256 or an HMAC-SHA-256.
type Hash [sha256.Size]byte

// Genesis is the chain hash before the first event of a tenant.
func Genesis(id tenant.ID) Hash { return sha256.Sum256([]byte(genesisDomain + string(id))) }

// Leaf is the RFC 6962 leaf hash of canonical bytes.
func Leaf(canonical []byte) Hash {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(canonical)
	return Hash(h.Sum(nil))
}

// Next is the chain hash behind prev.
func Next(prev, leaf Hash) Hash {
	b := append(append([]byte(chainDomain), prev[:]...), leaf[:]...)
	return sha256.Sum256(b)
}

// MAC authenticates the chain hash of event seq.
func MAC(key [32]byte, epoch uint32, seq int64, chain Hash) Hash {
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(macDomain))
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, epoch), uint64(seq)))
	h.Write(chain[:])
	return Hash(h.Sum(nil))
}

// fit makes what clients gave fit for a row.
func (ev *Event) fit() {
	for _, p := range []*string{&ev.Actor, &ev.Action, &ev.Outcome, &ev.Addr, &ev.RequestID} {
		*p = clean(*p, maxNameBytes)
	}
	for _, p := range []*string{&ev.Resource, &ev.Reason, &ev.Client} {
		*p = clean(*p, maxTextBytes)
	}
}

// append writes the canonical bytes of event number seq, which must be fit.
func (ev *Event) append(b []byte, seq int64) []byte {
	b = append(b, version, kind)
	b = appendText(b, tagTenant, string(ev.Tenant))
	b = appendUint(b, tagSeq, seq)
	b = appendTime(b, tagAt, ev.At)
	b = appendText(b, tagActor, ev.Actor)
	b = appendText(b, tagAction, ev.Action)
	b = appendText(b, tagResource, ev.Resource)
	b = appendText(b, tagOutcome, ev.Outcome)
	b = appendText(b, tagReason, ev.Reason)
	b = appendText(b, tagAddr, ev.Addr)
	b = appendText(b, tagClient, ev.Client)
	b = appendText(b, tagRequestID, ev.RequestID)
	if ev.Count > 1 {
		b = appendUint(b, tagCount, ev.Count)
		b = appendTime(b, tagUntil, ev.Until)
	}
	return b
}

// clean makes a client's text fit for a row: printable, whole runes, at most max
// bytes, and without what looks like a token of ours.
func clean(s string, max int) string {
	if len(s) > 4*max {
		s = s[:4*max] // it is cut below; what is behind need not be looked at
	}
	s = strings.ToValidUTF8(s, "\ufffd")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\ufffd'
		}
		return r
	}, s)
	s = redact(s)
	if len(s) <= max {
		return s
	}
	cut := max
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

// tokenPrefix begins every credential that this program makes.
const tokenPrefix = "tsk_"

// redact leaves of a token its prefix: somebody may put one where it does not
// belong, and the audit log is kept for years.
func redact(s string) string {
	at := strings.Index(s, tokenPrefix)
	if at < 0 {
		return s
	}
	end := at + len(tokenPrefix)
	rest := strings.TrimLeftFunc(s[end:], func(r rune) bool {
		return r == '-' || r == '_' || r == '.' || unicode.IsLetter(r) || unicode.IsDigit(r)
	})
	return s[:end] + "***" + redact(strings.TrimPrefix(rest, "***"))
}

func appendText(b []byte, tag byte, s string) []byte {
	if s == "" {
		return b
	}
	return append(binary.AppendUvarint(append(b, tag), uint64(len(s))), s...)
}

// appendUint writes a number > 0 in as few bytes as it needs, big-endian.
func appendUint(b []byte, tag byte, v int64) []byte {
	if v <= 0 {
		return b
	}
	n := (bits.Len64(uint64(v)) + 7) / 8
	b = append(b, tag, byte(n))
	for i := n - 1; i >= 0; i-- {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}

// appendTime writes unix nanoseconds; 0, the very moment of the epoch, is left out.
func appendTime(b []byte, tag byte, t time.Time) []byte {
	n := t.UnixNano()
	if t.IsZero() || n == 0 {
		return b
	}
	return binary.BigEndian.AppendUint64(append(b, tag, 8), uint64(n))
}

// floorMicro is the time as the column has it.
func floorMicro(t time.Time) time.Time {
	micro := t.UnixNano() / 1000
	if t.UnixNano() < 0 && t.UnixNano()%1000 != 0 {
		micro--
	}
	return time.UnixMicro(micro).UTC()
}

// Decode reads canonical bytes. It accepts only what the writer writes: bytes
// that decode are the one encoding of their event. Errors match ErrFormat.
func Decode(b []byte) (ev Event, seq int64, err error) {
	fail := func(what string) (Event, int64, error) {
		return Event{}, 0, fmt.Errorf("%w: %s", ErrFormat, what)
	}
	if len(b) < 2 || b[0] != version || b[1] != kind {
		return fail("unknown version or kind")
	}
	ev.Count = 1
	last := byte(0)
	for rest := b[2:]; len(rest) > 0; {
		tag := rest[0]
		size, n := binary.Uvarint(rest[1:])
		if tag <= last || n <= 0 || size > uint64(len(rest)-1-n) {
			return fail(fmt.Sprintf("after field %d", last))
		}
		value := rest[1+n : 1+n+int(size)]
		if !ev.decodeField(tag, value, &seq) {
			return fail(fmt.Sprintf("field %d", tag))
		}
		last, rest = tag, rest[1+n+int(size):]
	}
	if ev.Tenant == "" || seq == 0 || string(ev.append(nil, seq)) != string(b) {
		return fail("not the one encoding of its event")
	}
	return ev, seq, nil
}

func (ev *Event) decodeField(tag byte, v []byte, seq *int64) bool {
	text := map[byte]*string{
		tagTenant: (*string)(&ev.Tenant), tagActor: &ev.Actor, tagAction: &ev.Action, tagResource: &ev.Resource,
		tagOutcome: &ev.Outcome, tagReason: &ev.Reason, tagAddr: &ev.Addr, tagClient: &ev.Client, tagRequestID: &ev.RequestID,
	}[tag]
	switch {
	case text != nil:
		*text = string(v)
		return true
	case tag == tagSeq:
		return decodeUint(v, seq)
	case tag == tagCount:
		return decodeUint(v, &ev.Count)
	case tag == tagAt:
		return decodeTime(v, &ev.At)
	case tag == tagUntil:
		return decodeTime(v, &ev.Until)
	}
	return false
}

func decodeUint(v []byte, out *int64) bool {
	if len(v) == 0 || len(v) > 8 {
		return false
	}
	var n uint64
	for _, c := range v {
		n = n<<8 | uint64(c)
	}
	*out = int64(n)
	return *out > 0
}

func decodeTime(v []byte, out *time.Time) bool {
	if len(v) != 8 {
		return false
	}
	*out = time.Unix(0, int64(binary.BigEndian.Uint64(v))).UTC()
	return true
}
