package event

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// maxJSONDepth bounds the nesting of a value that is skipped.
const maxJSONDepth = 64

// jsonReader walks JSON text (RFC 8259) without building anything. A malformed
// input sets bad and ends the walk: every later read answers zero values.
type jsonReader struct {
	b   []byte
	i   int
	bad bool
}

func (r *jsonReader) fail() { r.bad, r.i = true, len(r.b) }

// peek skips white space and returns the next byte, or 0 at the end. 0 begins
// no JSON value.
func (r *jsonReader) peek() byte {
	for r.i < len(r.b) {
		switch c := r.b[r.i]; c {
		case ' ', '\n', '\r', '\t':
			r.i++
		default:
			return c
		}
	}
	return 0
}

// open enters an object or array and says whether it has a member.
func (r *jsonReader) open(begin, end byte) bool {
	if r.peek() != begin {
		r.fail()
		return false
	}
	r.i++
	if r.peek() == end {
		r.i++
		return false
	}
	return true
}

// comma is called after a member and says whether another one follows.
func (r *jsonReader) comma(end byte) bool {
	switch r.peek() {
	case ',':
		r.i++
		return true
	case end:
		r.i++
		return false
	default:
		r.fail()
		return false
	}
}

// name reads a member's name and its colon. rule is not empty when the name is
// no text.
func (r *jsonReader) name() (name []byte, rule string) {
	if r.peek() != '"' {
		r.fail()
		return nil, ""
	}
	name, rule = r.str()
	if r.peek() != ':' {
		r.fail()
		return nil, ""
	}
	r.i++
	return name, rule
}

// plain marks the bytes that stand for themselves in a JSON string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x80; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// skipPlain returns the place of the first byte from i on that does not stand
// for itself, looking at eight at a time. In a word, a byte b is below n exactly
// where b-n borrows and b had no high bit; the lowest such place is exact, and
// only that one is used (Hacker's Delight, 6-1).
func skipPlain(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quote, slash := w^ones*'"', w^ones*'\\'
		if odd := ((w-ones*0x20)&^w | (quote-ones)&^quote | (slash-ones)&^slash | w) & highs; odd != 0 {
			return i + bits.TrailingZeros64(odd)/8
		}
	}
	for i < len(b) && plain[b[i]] {
		i++
	}
	return i
}

// str reads the string that begins at i. It is returned without escapes, which
// are resolved in place: what an escape stands for is never longer than it.
func (r *jsonReader) str() (s []byte, rule string) {
	start := r.i + 1
	high := false
	for i := start; i < len(r.b); i++ {
		i = skipPlain(r.b, i)
		if i == len(r.b) {
			break
		}
		switch c := r.b[i]; {
		case c == '"':
			r.i = i + 1
			s = r.b[start:i]
			if high && !utf8.Valid(s) {
				return nil, RuleUTF8
			}
			return s, ""
		case c == '\\':
			return r.escaped(start, i)
		case c < 0x20:
			r.fail()
			return nil, ""
		default:
			high = true
		}
	}
	r.fail()
	return nil, ""
}

// escaped goes on with a string whose first escape is at i.
func (r *jsonReader) escaped(start, i int) (s []byte, rule string) {
	b, w := r.b, i
	for i < len(b) {
		switch c := b[i]; {
		case c == '"':
			r.i = i + 1
			if s = b[start:w]; rule == "" && !utf8.Valid(s) {
				rule = RuleUTF8
			}
			if rule != "" {
				return nil, rule
			}
			return s, ""
		case c < 0x20:
			r.fail()
			return nil, ""
		case c != '\\':
			b[w] = c
			w++
			i++
		case i+1 < len(b) && b[i+1] == 'u':
			code, n := unicodeEscape(b[i:])
			if n == 0 {
				r.fail()
				return nil, ""
			}
			if code < 0 { // half of a surrogate pair is no text
				rule, code = RuleUTF8, '?'
			}
			w += utf8.EncodeRune(b[w:w+4:len(b)], code)
			i += n
		default:
			c := byte(0)
			if i+1 < len(b) {
				c = shortEscape(b[i+1])
			}
			if c == 0 {
				r.fail()
				return nil, ""
			}
			b[w] = c
			w++
			i += 2
		}
	}
	r.fail()
	return nil, ""
}

// shortEscape is what a two-character escape stands for, or 0.
func shortEscape(c byte) byte {
	switch c {
	case '"', '\\', '/':
		return c
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	default:
		return 0
	}
}

// unicodeEscape reads \uXXXX, or a surrogate pair of them, and how many bytes
// that took; 0 when it is malformed. The rune is -1 for an unpaired surrogate.
func unicodeEscape(b []byte) (rune, int) {
	hi, ok := hex4(b)
	switch {
	case !ok:
		return 0, 0
	case !utf16.IsSurrogate(hi):
		return hi, 6
	}
	if lo, ok := hex4(b[6:]); ok {
		if c := utf16.DecodeRune(hi, lo); c != utf8.RuneError {
			return c, 12
		}
	}
	return -1, 6
}

func hex4(b []byte) (v rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		d := unhex(c | 0x20)
		if d > 15 || c < '0' {
			return 0, false
		}
		v = v<<4 | rune(d)
	}
	return v, true
}

// number reads a number and returns its text.
func (r *jsonReader) number() []byte {
	start := r.i
	if r.at() == '-' {
		r.i++
	}
	if r.at() == '0' {
		r.i++
	} else if !r.digits() {
		r.fail()
		return nil
	}
	if r.at() == '.' {
		r.i++
		if !r.digits() {
			r.fail()
			return nil
		}
	}
	if r.at()|0x20 == 'e' {
		r.i++
		if c := r.at(); c == '+' || c == '-' {
			r.i++
		}
		if !r.digits() {
			r.fail()
			return nil
		}
	}
	return r.b[start:r.i]
}

func (r *jsonReader) at() byte {
	if r.i < len(r.b) {
		return r.b[r.i]
	}
	return 0
}

// digits reads at least one digit.
func (r *jsonReader) digits() bool {
	start := r.i
	for r.i < len(r.b) && '0' <= r.b[r.i] && r.b[r.i] <= '9' {
		r.i++
	}
	return r.i > start
}

func (r *jsonReader) literal(word string) {
	if len(r.b)-r.i < len(word) || string(r.b[r.i:r.i+len(word)]) != word {
		r.fail()
		return
	}
	r.i += len(word)
}

// null reads a null, if that is what comes.
func (r *jsonReader) null() bool {
	if r.peek() != 'n' {
		return false
	}
	r.literal("null")
	return !r.bad
}

// skip passes over any value and holds it against the grammar.
func (r *jsonReader) skip(depth int) {
	if depth > maxJSONDepth {
		r.fail()
		return
	}
	switch c := r.peek(); c {
	case '{':
		for more := r.open('{', '}'); more; more = r.comma('}') {
			r.name()
			r.skip(depth + 1)
		}
	case '[':
		for more := r.open('[', ']'); more; more = r.comma(']') {
			r.skip(depth + 1)
		}
	case '"':
		r.str()
	case 't':
		r.literal("true")
	case 'f':
		r.literal("false")
	case 'n':
		r.literal("null")
	default:
		r.number()
	}
}
