package event

// NextProto takes the first event off a protobuf EventBatch (or the
// SendEventsRequest of gRPC, which has the same form). It returns the event's
// bytes and what follows them, both aliases of b. ok is false at the end.
// Lenient passes over unknown fields, Strict refuses them.
func NextProto(b []byte, mode Mode) (ev, rest []byte, ok bool, err error) {
	r := reader{b: b}
	for {
		num, wire, more := r.next()
		switch {
		case r.bad:
			return nil, nil, false, fail("events", RuleMalformed, "not a protobuf EventBatch")
		case !more:
			return nil, nil, false, nil
		case num == 1 && wire == wireBytes:
			if ev = r.bytes(); !r.bad {
				return ev, r.b, true, nil
			}
		case num == 1:
			return nil, nil, false, fail("events", RuleType, "a list of UsageEvent")
		case mode != Lenient:
			return nil, nil, false, fail("#"+uitoa(num), RuleUnknown, "no field has this number")
		default:
			r.skip(wire)
		}
	}
}

// JSONBatch walks the events of a JSON body: an array of events, an object
// whose only member is "events", or a single event.
type JSONBatch struct {
	r       jsonReader
	wrapped bool // in {"events": […]}
	array   bool
	begun   bool
	done    bool
}

// NewJSONBatch begins to walk b. Like DecodeJSON it changes b.
func NewJSONBatch(b []byte) JSONBatch { return JSONBatch{r: jsonReader{b: b}} }

// Next decodes the next event into e. ok is false when there is none. refusal
// is what is wrong with this event: the walk can go on. err says that the body
// is malformed: it cannot.
func (j *JSONBatch) Next(e *Event, mode Mode) (ok bool, refusal, err error) {
	if j.done {
		return false, nil, nil
	}
	more := false
	if !j.begun {
		j.begun = true
		more = j.begin()
	} else if j.array {
		more = j.r.comma(']')
	}
	if !more || j.r.bad {
		j.done = true
		return false, nil, j.end()
	}
	rest, refusal := e.DecodeNextJSON(j.r.b[j.r.i:], mode)
	if rest == nil {
		j.done = true
		return false, nil, fail("events", RuleMalformed, "not JSON")
	}
	j.r.i = len(j.r.b) - len(rest)
	return true, refusal, nil
}

// begin finds out which of the three forms the body has.
func (j *JSONBatch) begin() bool {
	if j.r.peek() == '{' {
		at := j.r.i
		j.r.i++
		j.r.peek()
		if rest := j.r.b[j.r.i:]; len(rest) < 8 || string(rest[:8]) != `"events"` {
			j.r.i = at
			return true
		}
		j.wrapped = true
		j.r.name()
		if j.r.null() {
			return false
		}
	}
	j.array = true
	return j.r.open('[', ']')
}

// end holds what follows the last event against the grammar.
func (j *JSONBatch) end() error {
	if j.wrapped && !j.r.bad {
		if j.r.peek() == ',' {
			return fail("events", RuleUnknown, `an object with "events" has no other member`)
		}
		j.r.comma('}')
	}
	if j.r.peek(); j.r.bad || j.r.i < len(j.r.b) {
		return fail("events", RuleMalformed, `not a JSON array of events, an object with "events" or one event`)
	}
	return nil
}
