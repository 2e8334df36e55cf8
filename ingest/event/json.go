package event

import (
	"math"

	"github.com/tallystick/tallystick/internal/tokens"
)

// DecodeJSON reads b, which must hold exactly one JSON object, into e, which is
// reset first. Names and kinds are those of Fields; an integer may be a number
// or a string of digits, a time is an RFC 3339 string with at most nine
// decimals, null is the same as leaving the field out. mode is Strict or
// Lenient; the fields that only the edge sets are refused in both. A name that
// stands twice is refused, so no two readers can differ on what was sent.
//
// The strings of e alias b, and b is changed where it holds escapes. The error
// is a *FieldError; with RuleMalformed it says that b is not JSON.
func (e *Event) DecodeJSON(b []byte, mode Mode) error {
	rest, err := e.DecodeNextJSON(b, mode)
	if err != nil {
		return err
	}
	r := jsonReader{b: rest}
	if r.peek(); r.i < len(r.b) {
		return fail("event", RuleMalformed, "something follows the JSON object")
	}
	return nil
}

// DecodeNextJSON is DecodeJSON for a value with more behind it: rest is what
// follows it. When the value is JSON but no valid event, rest is set beside the
// error and reading can go on; when it is not JSON, rest is nil.
func (e *Event) DecodeNextJSON(b []byte, mode Mode) (rest []byte, err error) {
	e.Reset()
	r := jsonReader{b: b}
	if r.peek() != '{' {
		r.skip(0)
		err = fail("event", RuleType, "a JSON object")
	} else {
		err = e.decodeObject(&r, mode)
	}
	if r.bad {
		return nil, fail("event", RuleMalformed, "not JSON")
	}
	return r.b[r.i:], err
}

// decodeObject reads to the end of the object whatever is wrong with it, and
// returns what was wrong first.
func (e *Event) decodeObject(r *jsonReader, mode Mode) (first error) {
	var seen uint64
	for more := r.open('{', '}'); more; more = r.comma('}') {
		name, rule := r.name()
		if r.bad {
			return nil
		}
		err := e.decodeMember(r, name, rule, mode, &seen)
		if first == nil {
			first = err
		}
	}
	if err := sortTags(e.Tags); first == nil {
		first = err
	}
	return first
}

func (e *Event) decodeMember(r *jsonReader, name []byte, rule string, mode Mode, seen *uint64) error {
	f := fieldsByName.find(alias(name))
	switch {
	case rule != "":
		r.skip(0)
		return fail("event", rule, "in a field's name")
	case f == nil:
		r.skip(0)
		if mode == Lenient {
			return nil
		}
		return fail(safeName(name), RuleUnknown, "no such field")
	case f.Edge:
		r.skip(0)
		return fail(f.Name, RuleEdgeOnly, "")
	case *seen&(1<<f.Num) != 0:
		r.skip(0)
		return fail(f.Name, RuleDuplicate, "")
	}
	*seen |= 1 << f.Num
	if r.null() {
		return nil
	}
	return e.decodeJSONField(f, r)
}

func (e *Event) decodeJSONField(f *Field, r *jsonReader) (err error) {
	switch f.Kind {
	case String:
		*e.str(f), err = r.text(f.Name)
	case Int:
		*e.num(f), err = r.integer(f.Name)
	case Bool:
		*e.flag(f), err = r.boolean(f.Name)
	case Time:
		*e.instant(f), err = r.time(f.Name)
	case TokenMap:
		err = e.decodeJSONTokens(r)
	case TagMap:
		err = e.decodeJSONTags(r)
	default: // Bytes and Blob: edge fields only
		r.skip(0)
		err = fail(f.Name, RuleEdgeOnly, "")
	}
	return err
}

// decodeJSONTokens refuses an unknown class in every mode: dropping one would
// drop money.
func (e *Event) decodeJSONTokens(r *jsonReader) (first error) {
	if r.peek() != '{' {
		r.skip(0)
		return fail("tokens", RuleType, "an object of integers")
	}
	var seen uint64
	for more := r.open('{', '}'); more; more = r.comma('}') {
		name, rule := r.name()
		if r.bad {
			return nil
		}
		err := e.decodeJSONToken(r, name, rule, &seen)
		if first == nil {
			first = err
		}
	}
	return first
}

func (e *Event) decodeJSONToken(r *jsonReader, name []byte, rule string, seen *uint64) (err error) {
	c, ok := tokens.ParseClass(alias(name))
	switch {
	case rule != "":
		err = fail("tokens", rule, "in the name of a class")
	case !ok:
		err = fail("tokens."+safeName(name), RuleUnknown, "no such token class")
	case *seen&(1<<c) != 0:
		err = fail("tokens."+c.String(), RuleDuplicate, "")
	case r.null():
		*seen |= 1 << c
		return nil
	}
	if err != nil {
		r.skip(0)
		return err
	}
	*seen |= 1 << c
	n, rule := r.int64()
	if rule != "" {
		return fail("tokens."+c.String(), rule, wantInteger)
	}
	e.Tokens[c] = n
	return nil
}

func (e *Event) decodeJSONTags(r *jsonReader) (first error) {
	if r.peek() != '{' {
		r.skip(0)
		return fail("tags", RuleType, "an object of strings")
	}
	for more := r.open('{', '}'); more; more = r.comma('}') {
		name, rule := r.name()
		if r.bad {
			return nil
		}
		value, err := r.text("tags")
		if rule != "" {
			err = fail("tags", rule, "in a key")
		}
		if err == nil {
			err = e.AddTag(alias(name), value)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// safeName is a name that may be repeated to the caller: only what looks like
// the name of a field. Anything else could be somebody's text in the wrong place.
func safeName(name []byte) string {
	if len(name) == 0 || len(name) > 40 {
		return "(unnamed)"
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return "(unnamed)"
		}
	}
	return string(name)
}

const (
	wantInteger = "an integer of at most 64 bits"
	wantTime    = "an RFC 3339 time with at most nine decimals"
)

// text reads a string value.
func (r *jsonReader) text(field string) (string, error) {
	if r.peek() != '"' {
		r.skip(0)
		return "", fail(field, RuleType, "a string")
	}
	s, rule := r.str()
	if rule != "" {
		return "", fail(field, rule, "")
	}
	return alias(s), nil
}

func (r *jsonReader) integer(field string) (int64, error) {
	n, rule := r.int64()
	if rule != "" {
		return 0, fail(field, rule, wantInteger)
	}
	return n, nil
}

// int64 reads an integer, bare or as a string. It names the rule that the
// value breaks, or "".
func (r *jsonReader) int64() (int64, string) {
	switch c := r.peek(); {
	case c == '"':
		s, rule := r.str()
		if rule != "" {
			return 0, RuleType
		}
		return parseInt(s)
	case c == '-' || '0' <= c && c <= '9':
		return parseInt(r.number())
	default:
		r.skip(0)
		return 0, RuleType
	}
}

// parseInt takes the integers of JSON's grammar: no plus, no leading zero.
func parseInt(s []byte) (int64, string) {
	digits := s
	negative := len(s) > 0 && s[0] == '-'
	if negative {
		digits = s[1:]
	}
	if len(digits) == 0 || digits[0] == '0' && len(digits) > 1 {
		return 0, RuleType
	}
	var v uint64
	over := false
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, RuleType
		}
		over = over || v > (math.MaxInt64)/10 // then v*10 leaves the range
		v = v*10 + uint64(c-'0')
	}
	switch {
	case over || v > math.MaxInt64+1 || v > math.MaxInt64 && !negative:
		return 0, RuleRange
	case negative:
		return int64(-v), ""
	}
	return int64(v), ""
}

func (r *jsonReader) boolean(field string) (bool, error) {
	switch r.peek() {
	case 't':
		r.literal("true")
		return true, nil
	case 'f':
		r.literal("false")
		return false, nil
	default:
		r.skip(0)
		return false, fail(field, RuleType, "true or false")
	}
}

func (r *jsonReader) time(field string) (int64, error) {
	if r.peek() != '"' {
		r.skip(0)
		return 0, fail(field, RuleType, wantTime)
	}
	s, rule := r.str()
	if rule != "" {
		return 0, fail(field, rule, "")
	}
	ns, rule := parseTime(s)
	switch rule {
	case "":
		return ns, nil
	case RuleRange:
		return 0, fail(field, rule, "a time between 1970 and 2262")
	default:
		return 0, fail(field, rule, wantTime)
	}
}

// parseTime reads RFC 3339 and gives unix nanoseconds, or the rule it breaks.
// A leap second is no time of the unix scale and is refused.
func parseTime(s []byte) (int64, string) {
	if len(s) < len("2006-01-02T15:04:05Z") || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return 0, RuleType
	}
	year, ok1 := number(s[0:4])
	month, ok2 := number(s[5:7])
	day, ok3 := number(s[8:10])
	hour, ok4 := number(s[11:13])
	minute, ok5 := number(s[14:16])
	second, ok6 := number(s[17:19])
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || month < 1 || month > 12 || day < 1 ||
		day > daysIn(year, month) || hour > 23 || minute > 59 || second > 59 {
		return 0, RuleType
	}
	nanos, zone, ok := parseFraction(s[19:])
	if !ok {
		return 0, RuleType
	}
	offset, ok := parseZone(zone)
	if !ok {
		return 0, RuleType
	}
	sec := daysSinceEpoch(year, month, day)*86400 + hour*3600 + minute*60 + second - offset
	if sec <= 0 || sec >= math.MaxInt64/1_000_000_000 {
		return 0, RuleRange
	}
	return sec*1e9 + nanos, ""
}

// parseFraction reads the decimals of the second, if there are any.
func parseFraction(s []byte) (nanos int64, rest []byte, ok bool) {
	if s[0] != '.' {
		return 0, s, true
	}
	scale := int64(1e9)
	i := 1
	for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		scale /= 10
		nanos += int64(s[i]-'0') * scale
	}
	return nanos, s[i:], i > 1 && i <= 10
}

// parseZone reads "Z" or "+hh:mm" and gives seconds east of UTC.
func parseZone(s []byte) (int64, bool) {
	if len(s) == 1 {
		return 0, s[0]|0x20 == 'z'
	}
	if len(s) != 6 || s[3] != ':' || s[0] != '+' && s[0] != '-' {
		return 0, false
	}
	h, ok1 := number(s[1:3])
	m, ok2 := number(s[4:6])
	if !ok1 || !ok2 || h > 23 || m > 59 {
		return 0, false
	}
	if s[0] == '-' {
		return -(h*3600 + m*60), true
	}
	return h*3600 + m*60, true
}

// number reads decimal digits; there are never more than four.
func number(s []byte) (v int64, ok bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, true
}

func daysIn(year, month int64) int64 {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	default:
		return 31
	}
}

// daysSinceEpoch counts from 1970-01-01 in the Gregorian calendar: the year is
// made to begin in March, so that the leap day is its last (H. Hinnant,
// "chrono-compatible low-level date algorithms", days_from_civil).
func daysSinceEpoch(year, month, day int64) int64 {
	if month <= 2 {
		year--
	}
	era := year / 400
	yearOfEra := year - era*400
	dayOfYear := (153*((month+9)%12)+2)/5 + day - 1
	dayOfEra := yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear
	return era*146097 + dayOfEra - 719468
}
