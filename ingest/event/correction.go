package event

// RuleOriginal says that `corrects` names no usage event of the tenant, or the
// event itself, or that the correction speaks of another provider or model.
const RuleOriginal = "original"

// recordKind is the kind of record that carries the event.
func (e *Event) recordKind() RecordKind {
	if e.Corrects != "" {
		return CorrectionRecord
	}
	return UsageRecord
}

// validateCorrection holds the fields of a correction against each other.
func (e *Event) validateCorrection() error {
	switch {
	case e.Corrects == "" && e.CorrectionReason == "":
		return nil
	case e.Corrects == "":
		return fail("corrects", RuleRequired, "correction_reason without it")
	case e.Corrects == e.ID:
		return fail("corrects", RuleOriginal, "an event does not correct itself")
	}
	return nil
}

// Rerate asks for the price of a ledgered event anew. Strings of a decoded one
// alias its buffer.
type Rerate struct {
	ID       string // of the correction that comes of it
	Tenant   string
	Corrects string // id of the event to price anew
	AskedAt  int64  // unix nanoseconds; the knowledge time of the new price
}

// AppendRerateRecord appends the record that carries the request.
func AppendRerateRecord(b []byte, r *Rerate) []byte {
	return appendNested(b, uint8(RerateRecord), func(b []byte) []byte {
		b = appendString(b, 1, r.ID)
		b = appendString(b, 2, r.Tenant)
		b = appendString(b, 3, r.Corrects)
		return appendTime(b, 4, r.AskedAt)
	})
}

// DecodeRerate reads the body of a re-rate record. The error is a *FieldError.
func DecodeRerate(b []byte) (rr Rerate, err error) {
	texts := [...]*string{1: &rr.ID, 2: &rr.Tenant, 3: &rr.Corrects}
	var seen uint64
	r := reader{b: b}
	for {
		num, wire, ok := r.next()
		if !ok {
			break
		}
		if wire != wireBytes || num > 4 {
			return rr, fail("rerate", RuleUnknown, "")
		}
		if !once(&seen, num) {
			return rr, fail("rerate", RuleDuplicate, "")
		}
		v := r.bytes()
		if num < 4 {
			*texts[num] = alias(v)
		} else if rr.AskedAt, err = decodeTime(fieldByNum[fieldOccurredAt], v); err != nil {
			return rr, err
		}
	}
	if r.bad {
		return rr, fail("rerate", RuleMalformed, "")
	}
	for num, text := range texts {
		if num > 0 && (*text == "" || len(*text) > MaxIDBytes || textRule(*text) != "") {
			return rr, fail("rerate", RuleMalformed, "")
		}
	}
	if rr.AskedAt == 0 || rr.ID == rr.Corrects {
		return rr, fail("rerate", RuleMalformed, "")
	}
	return rr, nil
}
