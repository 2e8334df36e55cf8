package verify

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// The decoder of canonical bytes, written from docs/ledger-format.md. It keeps
// the few values that the columns repeat and checks the form of all others: the
// format leaves no choice in writing a value, so bytes that pass have no other
// encoding.

var (
	errForm    = errors.New("the bytes are not a canonical entry")
	errVersion = errors.New("unknown version or kind")
)

const (
	formatVersion = 1
	gpuVersion    = 2 // of entries with one of the fields of isGPUField
	lastKind      = 6

	kindUsage      = 1
	kindRejected   = 2
	kindCorrection = 3
	kindControl    = 4
	kindCounters   = 5
)

// form is how the value of a field is written.
type form uint8

const (
	formNone   form = iota
	formText        // one byte or more
	formUint        // 1 to 8 bytes, big-endian, no leading zero byte, at most 2^63-1
	formUint31      // the same, at most 2^31-1
	formFlag        // no bytes
	formTime        // 8 bytes, not all zero
	formInt         // 8 bytes, two's complement
	formHash        // 32 bytes, not all zero
	form32          // 32 bytes
	form16          // 16 bytes
	formBytes       // one byte or more
	formTokens
	formDelta       // 8 bytes, two's complement, not all zero
	formTokenDeltas // classes as in formTokens, each with a formDelta
	formTags
	formReasons
)

// Tags that the decoder looks at itself.
const (
	tagTenant         = 2
	tagOccurredAt     = 3
	tagReceivedAt     = 50
	tagSeq            = 64
	tagTopicID        = 65
	tagKey            = 68
	tagCost           = 70
	tagCorrectsSeq    = 77
	tagControlKind    = 90
	tagControlVersion = 91
)

// field is what the format says of a tag: its form, and the kinds that may have it.
type field struct {
	form  form
	kinds uint8 // bit k: kind k
}

const (
	anyKind    = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6
	moneyKinds = 1<<kindUsage | 1<<kindCorrection
)

// fields is the table of docs/ledger-format.md, which a test compares with it.
var fields = [256]field{
	1: {formText, anyKind}, 2: {formText, anyKind}, 3: {formTime, anyKind}, 4: {formText, anyKind},
	5: {formUint, anyKind}, 6: {formUint, anyKind}, 10: {formText, anyKind}, 11: {formText, anyKind},
	12: {formText, anyKind}, 13: {formText, anyKind}, 14: {formText, anyKind}, 15: {formText, anyKind},
	16: {formText, anyKind}, 17: {formUint, anyKind}, 18: {formText, anyKind}, 20: {formTokens, anyKind},
	21: {formUint, anyKind}, 22: {formUint, anyKind}, 23: {formUint, anyKind}, 24: {formFlag, anyKind},
	25: {formFlag, anyKind}, 26: {formText, anyKind}, 27: {formText, anyKind}, 28: {formUint, anyKind}, 29: {formText, anyKind}, 30: {formText, anyKind},
	31: {formText, anyKind}, 32: {formText, anyKind}, 33: {formText, anyKind}, 34: {formText, anyKind},
	35: {formText, anyKind}, 36: {formText, anyKind}, 37: {formTags, anyKind}, 38: {formText, anyKind}, 40: {formText, anyKind},
	41: {formText, anyKind}, 42: {formText, anyKind}, 43: {formText, anyKind}, 44: {formText, anyKind}, 45: {formText, anyKind}, 50: {formTime, anyKind}, 51: {form32, anyKind},
	52: {formText, anyKind}, 53: {formUint, anyKind}, 54: {formBytes, anyKind},

	64: {formUint, anyKind}, 65: {form16, anyKind}, 66: {formUint31, anyKind}, 67: {formUint, anyKind}, 68: {form16, anyKind},
	70: {formInt, moneyKinds}, 71: {formHash, moneyKinds}, 72: {formText, moneyKinds}, 73: {formText, moneyKinds},
	74: {formUint, moneyKinds},
	75: {formDelta, 1 << kindCorrection}, 76: {formTokenDeltas, 1 << kindCorrection}, 77: {formUint, 1 << kindCorrection},
	78: {formInt, 1 << kindCorrection}, 79: {formDelta, 1 << kindCorrection},
	80: {formText, 1 << kindRejected}, 81: {formText, 1 << kindRejected}, 82: {formHash, 1 << kindRejected},
	83: {formUint, 1 << kindRejected},
	84: {formDelta, 1 << kindCorrection},
	90: {formText, 1 << kindControl}, 91: {formText, 1 << kindControl}, 92: {formHash, 1 << kindControl},
	100: {formText, 1 << kindCounters}, 101: {formUint, 1 << kindCounters}, 102: {formUint, 1 << kindCounters},
	103: {formUint, 1 << kindCounters}, 104: {formReasons, 1 << kindCounters},
}

// isGPUField reports whether the field came with version 2.
func isGPUField(tag byte) bool {
	switch tag {
	case 28, 29, 38, 44, 84:
		return true
	}
	return false
}

// content is what the verifier needs of an entry. Its slices alias the bytes.
type content struct {
	kind        uint8
	seq         int64
	tenant      []byte
	occurred    int64 // unix nanoseconds, 0 is none
	received    int64 // the same
	priced      bool
	cost        int64
	corrects    int64  // number of a correction's original, 0 is none
	control     []byte // kind of a control entry
	controlVers []byte
}

// decode reads canonical bytes. Errors: errForm, errVersion.
func (c *content) decode(b []byte) error {
	*c = content{}
	if len(b) < 2 {
		return errForm
	}
	if b[0] != formatVersion && b[0] != gpuVersion || b[1] == 0 || b[1] > lastKind {
		return errVersion
	}
	c.kind = b[1]
	rest, last := b[2:], -1
	var hasTopic, hasKey, hasGPU bool
	for len(rest) > 0 {
		tag := rest[0]
		f := fields[tag]
		v, after, ok := take(rest[1:])
		if !ok || int(tag) <= last || f.kinds>>c.kind&1 == 0 || !f.form.fits(v) {
			return errForm
		}
		rest, last = after, int(tag)
		hasGPU = hasGPU || isGPUField(tag)
		switch tag {
		case tagTenant:
			c.tenant = v
		case tagOccurredAt:
			c.occurred = int64(binary.BigEndian.Uint64(v))
		case tagReceivedAt:
			c.received = int64(binary.BigEndian.Uint64(v))
		case tagSeq:
			c.seq = number(v)
		case tagTopicID:
			hasTopic = true
		case tagKey:
			hasKey = true
		case tagCost:
			c.priced, c.cost = true, int64(binary.BigEndian.Uint64(v))
		case tagCorrectsSeq:
			c.corrects = number(v)
		case tagControlKind:
			c.control = v
		case tagControlVersion:
			c.controlVers = v
		}
	}
	if !hasTopic || !hasKey {
		return errForm // the two fields that are written even when they are zero
	}
	if hasGPU && b[0] != gpuVersion {
		return errForm // an entry has the lowest version that knows its fields
	}
	if !hasGPU && b[0] != formatVersion {
		return errVersion
	}
	return nil
}

// take splits a length-prefixed value off b. The length is LEB128 in its
// shortest form.
func take(b []byte) (v, rest []byte, ok bool) {
	n, rest, ok := length(b)
	if !ok || n > uint64(len(rest)) {
		return nil, nil, false
	}
	return rest[:n], rest[n:], true
}

func length(b []byte) (n uint64, rest []byte, ok bool) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), b[1:], true
	}
	n, size := binary.Uvarint(b)
	if size <= 0 || b[size-1] == 0 || n > 1<<63-1 {
		return 0, nil, false
	}
	return n, b[size:], true
}

// fits reports whether a value has the form.
func (f form) fits(v []byte) bool {
	switch f {
	case formText, formBytes:
		return len(v) > 0
	case formUint:
		return isUint(v)
	case formUint31:
		return isUint(v) && number(v) < 1<<31
	case formFlag:
		return len(v) == 0
	case formTime, formDelta:
		return len(v) == 8 && binary.BigEndian.Uint64(v) != 0
	case formInt:
		return len(v) == 8
	case formHash:
		return len(v) == HashSize && [HashSize]byte(v) != [HashSize]byte{}
	case form32:
		return len(v) == HashSize
	case form16:
		return len(v) == 16
	case formTokens:
		return isTokens(v, formUint)
	case formTokenDeltas:
		return isTokens(v, formDelta)
	case formTags:
		return isTags(v)
	case formReasons:
		return isReasons(v)
	default:
		return false
	}
}

func isUint(v []byte) bool {
	return len(v) > 0 && len(v) <= 8 && v[0] != 0 && (len(v) < 8 || v[0] < 0x80)
}

func number(v []byte) (n int64) {
	for _, c := range v {
		n = n<<8 | int64(c)
	}
	return n
}

// tokenClasses is how many classes of tokens there are.
const tokenClasses = 10

func isTokens(v []byte, counts form) bool {
	last := 0
	for len(v) > 0 {
		class := int(v[0])
		n, rest, ok := take(v[1:])
		if !ok || class <= last || class > tokenClasses || !counts.fits(n) {
			return false
		}
		v, last = rest, class
	}
	return last > 0
}

func isTags(v []byte) bool {
	var last []byte
	for first := true; len(v) > 0; first = false {
		key, rest, ok := take(v)
		if !ok || !first && bytes.Compare(last, key) >= 0 {
			return false
		}
		if _, rest, ok = take(rest); !ok {
			return false
		}
		v, last = rest, key
	}
	return last != nil
}

func isReasons(v []byte) bool {
	var last []byte
	for first := true; len(v) > 0; first = false {
		reason, rest, ok := take(v)
		if !ok || !first && bytes.Compare(last, reason) >= 0 {
			return false
		}
		if _, rest, ok = length(rest); !ok {
			return false
		}
		v, last = rest, reason
	}
	return last != nil
}
