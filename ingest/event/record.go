package event

import (
	"errors"
	"slices"
	"strings"
)

// RecordKind says what a record of the topic `events` holds.
type RecordKind uint8

// The kinds of records, which are the field numbers of LogRecord.
const (
	UsageRecord    RecordKind = 1
	ControlRecord  RecordKind = 2
	CountersRecord RecordKind = 3
	// CorrectionRecord is a usage event that corrects another one.
	CorrectionRecord RecordKind = 5
	// RerateRecord asks for the price of an entry anew.
	RerateRecord RecordKind = 6
)

// fieldSubject is the number of the sealed identity beside a usage event.
const fieldSubject = 4

// ErrNotARecord says that bytes are not a LogRecord with exactly one body.
var ErrNotARecord = errors.New("not a LogRecord with exactly one body")

// Record is a record of the topic `events`, taken apart. Its slices alias it.
type Record struct {
	Kind RecordKind
	// Body is the message of that kind.
	Body []byte
	// Subject is the sealed identity of the person that a usage event names by
	// a pseudonym, nil when there is none. No entry's bytes depend on it.
	Subject []byte
}

// Kinds of control records.
const (
	ControlPriceBook   = "price_book"
	ControlKeyEpoch    = "key_epoch"
	ControlRuleVersion = "rule_version"
	// ControlMappingRules is a version of a tenant's mapping rules.
	ControlMappingRules = "mapping_rules"
)

// Control is a control record: it changes what later records of its partition
// mean. Strings and bytes of a decoded one alias its buffer.
type Control struct {
	Kind     string
	Tenant   string // "" for a global one
	Version  string
	Content  []byte
	IssuedAt int64 // unix nanoseconds
}

// Counters say what an edge instance has accepted and refused of one producer
// since the instance started. They are cumulative.
type Counters struct {
	Tenant     string
	ProducerID string
	EdgeID     string
	EdgeEpoch  int64
	Accepted   int64
	Refused    int64
	Reasons    []ReasonCount // sorted by reason
	CountedAt  int64         // unix nanoseconds
}

// ReasonCount is how often one reason was given.
type ReasonCount struct {
	Reason string
	N      int64
}

// AppendUsageRecord appends the record that carries the event: a
// CorrectionRecord when it corrects another one, else a UsageRecord.
func AppendUsageRecord(b []byte, e *Event) []byte {
	return appendNested(b, uint8(e.recordKind()), e.AppendLog)
}

// AppendUsageRecordOf is AppendUsageRecord for an event whose producer fields
// are encoded already: producer and person are what AppendProducerMarked gave
// for an empty slice. subject is the sealed identity of the event's person, or
// empty; it stands beside the event in the record and in no entry. A correction
// has none: the person is the original's.
func AppendUsageRecordOf(b []byte, e *Event, producer []byte, person Span, subject []byte) []byte {
	kind := e.recordKind()
	if kind == CorrectionRecord {
		subject = nil
	}
	b = appendNested(b, uint8(kind), func(b []byte) []byte {
		b = append(b, producer[:person.Start]...)
		b = append(b, producer[person.End:]...)
		return e.appendFields(b, edgeFields)
	})
	return appendString(b, fieldSubject, alias(subject))
}

// AppendControlRecord appends the record that carries the control message.
func AppendControlRecord(b []byte, c *Control) []byte {
	return appendNested(b, uint8(ControlRecord), func(b []byte) []byte {
		b = appendString(b, 1, c.Kind)
		b = appendString(b, 2, c.Tenant)
		b = appendString(b, 3, c.Version)
		if len(c.Content) <= maxPlainContent {
			b = appendString(b, 4, alias(c.Content))
			return appendTime(b, 5, c.IssuedAt)
		}
		return appendString(appendTime(b, 5, c.IssuedAt), 6, alias(compress(c.Content)))
	})
}

// AppendCountersRecord appends the record that carries the counters.
func AppendCountersRecord(b []byte, c *Counters) []byte {
	return appendNested(b, uint8(CountersRecord), func(b []byte) []byte {
		b = appendString(b, 1, c.Tenant)
		b = appendString(b, 2, c.ProducerID)
		b = appendString(b, 3, c.EdgeID)
		b = appendInt(b, 4, c.EdgeEpoch)
		b = appendInt(b, 5, c.Accepted)
		b = appendInt(b, 6, c.Refused)
		for i := range c.Reasons {
			b = appendNested(b, 7, func(b []byte) []byte {
				return appendInt(appendString(b, 1, c.Reasons[i].Reason), 2, c.Reasons[i].N)
			})
		}
		return appendTime(b, 8, c.CountedAt)
	})
}

// SplitRecord takes a record apart: one body and, behind that of a usage event,
// at most one sealed subject of 1 to MaxSealedSubject bytes. The error is
// ErrNotARecord.
func SplitRecord(b []byte) (Record, error) {
	r := reader{b: b}
	num, wire, ok := r.next()
	if !ok || wire != wireBytes || num < uint64(UsageRecord) || num > uint64(RerateRecord) || num == fieldSubject {
		return Record{}, ErrNotARecord
	}
	rec := Record{Kind: RecordKind(num), Body: r.bytes()}
	if len(r.b) > 0 && rec.Kind == UsageRecord {
		if num, wire, ok = r.next(); !ok || num != fieldSubject || wire != wireBytes {
			return Record{}, ErrNotARecord
		}
		if rec.Subject = r.bytes(); len(rec.Subject) == 0 || len(rec.Subject) > MaxSealedSubject {
			return Record{}, ErrNotARecord
		}
	}
	if r.bad || len(r.b) > 0 {
		return Record{}, ErrNotARecord
	}
	return rec, nil
}

// DecodeControl reads the body of a control record.
func DecodeControl(b []byte) (c Control, err error) {
	r := reader{b: b}
	var packed []byte
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		if wire != wireBytes || num > 6 {
			return c, fail("control", RuleUnknown, "")
		}
		v := r.bytes()
		switch num {
		case 1:
			c.Kind = alias(v)
		case 2:
			c.Tenant = alias(v)
		case 3:
			c.Version = alias(v)
		case 4:
			c.Content = v
		case 5:
			if c.IssuedAt, err = decodeTime(fieldByNum[fieldOccurredAt], v); err != nil {
				return c, err
			}
		case 6:
			packed = v
		}
	}
	if r.bad || c.Kind == "" || len(packed) > 0 && len(c.Content) > 0 {
		return c, fail("control", RuleMalformed, "")
	}
	if len(packed) > 0 {
		if c.Content, err = decompress(packed); err != nil {
			return c, fail("content_gzip", RuleMalformed, "")
		}
	}
	return c, nil
}

// DecodeCounters reads the body of a counters record.
func DecodeCounters(b []byte) (c Counters, err error) {
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		if err := c.decodeField(num, wire, &r); err != nil {
			return c, err
		}
	}
	if r.bad || c.EdgeEpoch < 0 || c.Accepted < 0 || c.Refused < 0 {
		return c, fail("counters", RuleMalformed, "")
	}
	for _, s := range [...]string{c.Tenant, c.ProducerID, c.EdgeID} {
		if len(s) > MaxIDBytes || textRule(s) != "" {
			return c, fail("counters", RuleMalformed, "")
		}
	}
	slices.SortFunc(c.Reasons, func(a, b ReasonCount) int { return strings.Compare(a.Reason, b.Reason) })
	return c, nil
}

// MaxReasons bounds the refusal reasons of one counters record.
const MaxReasons = 128

func (c *Counters) decodeField(num uint64, wire byte, r *reader) (err error) {
	strs := [...]*string{1: &c.Tenant, 2: &c.ProducerID, 3: &c.EdgeID}
	ints := [...]*int64{4: &c.EdgeEpoch, 5: &c.Accepted, 6: &c.Refused}
	switch {
	case num <= 3 && wire == wireBytes:
		*strs[num] = alias(r.bytes())
	case num >= 4 && num <= 6 && wire == wireVarint:
		*ints[num] = int64(r.uvarint())
	case num == 7 && wire == wireBytes && len(c.Reasons) < MaxReasons:
		var rc ReasonCount
		if rc, err = decodeReason(r.bytes()); err == nil {
			c.Reasons = append(c.Reasons, rc)
		}
	case num == 8 && wire == wireBytes:
		c.CountedAt, err = decodeTime(fieldByNum[fieldOccurredAt], r.bytes())
	default:
		return fail("counters", RuleUnknown, "")
	}
	return err
}

func decodeReason(b []byte) (rc ReasonCount, err error) {
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		switch {
		case num == 1 && wire == wireBytes:
			rc.Reason = alias(r.bytes())
		case num == 2 && wire == wireVarint:
			rc.N = int64(r.uvarint())
		default:
			return rc, fail("counters", RuleUnknown, "")
		}
	}
	if r.bad || rc.N < 0 || len(rc.Reason) > MaxIDBytes || textRule(rc.Reason) != "" {
		return rc, fail("counters", RuleMalformed, "")
	}
	return rc, nil
}
