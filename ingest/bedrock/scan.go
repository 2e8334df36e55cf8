package bedrock

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
)

const (
	bufferBytes = 64 << 10
	maxDepth    = 512 // of nested objects and lists
	// maxText bounds every string that is kept of a record, in bytes.
	maxText = 1024
	maxKey  = 256 // of the keys that are looked at
	maxWord = 64  // of the numbers that are looked at
)

// errSyntax: what was read is no JSON.
var errSyntax = errors.New("bedrock: not JSON")

// scanner reads JSON from a stream in a buffer of fixed size. The first error
// stays until resume; after it nothing moves and peek answers 0.
type scanner struct {
	src     io.Reader
	buf     []byte
	r, w    int
	line    bool // the last white space contained a line end
	err     error
	ended   error // what src said last
	kinds   [maxDepth / 64]uint64
	depth   int
	tee     io.Writer // gets what is read but white space; nil is nobody
	out     []byte    // what tee is still to get
	scratch []byte
}

func newScanner(src io.Reader) *scanner {
	return &scanner{src: src, buf: make([]byte, bufferBytes), out: make([]byte, 0, 4096), scratch: make([]byte, 0, maxText+16)}
}

// fill reads more when the buffer is empty; false at the end or after an error.
func (s *scanner) fill() bool {
	if s.err != nil {
		return false
	}
	for s.r == s.w {
		if s.ended != nil {
			s.err = s.ended
			return false
		}
		s.r = 0
		s.w, s.ended = s.src.Read(s.buf)
	}
	return true
}

// peek passes white space over and is the byte that follows, which stays.
func (s *scanner) peek() byte {
	if s.err != nil {
		return 0
	}
	s.line = false
	for s.fill() {
		for s.r < s.w {
			switch c := s.buf[s.r]; c {
			case '\n':
				s.line = true
			case ' ', '\t', '\r':
			default:
				return c
			}
			s.r++
		}
	}
	return 0
}

func (s *scanner) fail() {
	if s.err == nil {
		s.err = errSyntax
	}
}

// take passes over the byte that peek gave.
func (s *scanner) take() {
	if s.err == nil {
		s.give(s.buf[s.r : s.r+1])
		s.r++
	}
}

// expect passes over c, or it is a syntax error.
func (s *scanner) expect(c byte) {
	if s.peek() != c {
		s.fail()
		return
	}
	s.take()
}

// give hands bytes on to tee.
func (s *scanner) give(b []byte) {
	if s.tee == nil {
		return
	}
	if len(s.out)+len(b) > cap(s.out) {
		s.flush()
	}
	if len(b) > cap(s.out) {
		_, _ = s.tee.Write(b) // hashes and meters, which do not fail
		return
	}
	s.out = append(s.out, b...)
}

func (s *scanner) flush() {
	if len(s.out) > 0 && s.tee != nil {
		_, _ = s.tee.Write(s.out)
	}
	s.out = s.out[:0]
}

// begin and end stand around a value that tee is to get.
func (s *scanner) begin(tee io.Writer) { s.tee, s.out = tee, s.out[:0] }

func (s *scanner) end() {
	s.flush()
	s.tee = nil
}

// resume goes on behind a syntax error: with the line after it, or where a line
// began that was taken for a part of the value before.
func (s *scanner) resume() {
	s.end()
	s.depth = 0
	atStart := s.line && s.r < s.w && s.buf[s.r] == '{'
	s.err = nil
	if atStart {
		return
	}
	for s.fill() {
		if i := bytes.IndexByte(s.buf[s.r:s.w], '\n'); i >= 0 {
			s.r += i + 1
			return
		}
		s.r = s.w
	}
}

// value passes over one value of any kind.
func (s *scanner) value() {
	base := s.depth
	for s.err == nil {
		if s.opened() {
			continue // its first value
		}
		for s.depth > base && s.err == nil {
			if s.next() {
				break
			}
		}
		if s.depth <= base {
			return
		}
	}
}

// opened passes over a value, or over the beginning of a container that is not
// empty: then it is true, and the container's first value follows.
func (s *scanner) opened() bool {
	switch c := s.peek(); {
	case c == '"':
		s.text(nil)
	case c == '{' || c == '[':
		s.push(c == '{')
		if s.peek() == c+2 { // both pairs of brackets stand two apart
			s.pop()
			return false
		}
		if c == '{' {
			s.key(nil)
		}
		return s.err == nil
	case c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z':
		s.word()
	default:
		s.fail()
	}
	return false
}

// next passes over what stands behind a value of the innermost container, and
// reports that another value follows.
func (s *scanner) next() bool {
	object := s.kinds[(s.depth-1)/64]>>((s.depth-1)%64)&1 == 1
	switch c := s.peek(); {
	case c == ',':
		s.take()
		if object {
			s.key(nil)
		}
		return true
	case c == '}' && object, c == ']' && !object:
		s.pop()
	default:
		s.fail()
	}
	return false
}

func (s *scanner) push(object bool) {
	if s.depth == maxDepth {
		s.fail()
		return
	}
	bit := uint64(1) << (s.depth % 64)
	s.kinds[s.depth/64] &^= bit
	if object {
		s.kinds[s.depth/64] |= bit
	}
	s.depth++
	s.take()
}

func (s *scanner) pop() {
	s.depth--
	s.take()
}

// key reads an object's key and its colon into dst, as text does.
func (s *scanner) key(dst []byte) ([]byte, bool) {
	if s.peek() != '"' {
		s.fail()
		return dst, false
	}
	dst, ok := s.text(dst)
	s.expect(':')
	if s.peek() == '{' && s.line {
		s.fail() // nobody breaks a line there: a record was cut off, and the next one begins
	}
	return dst, ok
}

// text reads a string that begins at the next byte. Its contents between the
// quotes are appended to dst, escapes and all, and ok says that all of it had
// room; a nil dst takes nothing.
func (s *scanner) text(dst []byte) (_ []byte, ok bool) {
	ok = dst != nil
	s.take()
	escaped := false
	for s.fill() {
		b := s.buf[s.r:s.w]
		i := 0
		for ; i < len(b); i++ {
			c := b[i]
			if escaped {
				escaped = false
			} else if c == '\\' {
				escaped = true
			} else if c == '"' || c < ' ' {
				break
			}
		}
		if ok = ok && len(dst)+i <= cap(dst); ok {
			dst = append(dst, b[:i]...)
		}
		s.give(b[:i])
		s.r += i
		if s.r == s.w {
			continue
		}
		if s.buf[s.r] != '"' {
			s.line = false
			s.fail()
			return dst, false
		}
		s.take()
		return dst, ok
	}
	return dst, false
}

// word passes over a number or a literal. What is longer than maxWord is taken
// as it comes and gives nothing.
func (s *scanner) word() []byte {
	word, size := s.scratch[:0], 0
	for s.fill() {
		b := s.buf[s.r:s.w]
		i := 0
		for i < len(b) && wordByte(b[i]) {
			i++
		}
		if size += i; size <= maxWord {
			word = append(word, b[:i]...)
		}
		s.give(b[:i])
		s.r += i
		if s.r < s.w {
			break
		}
	}
	if errors.Is(s.err, io.EOF) {
		s.err = nil // a number may end the stream
	}
	if size > maxWord {
		return nil
	}
	if !validWord(word) {
		s.fail()
	}
	return word
}

// validWord reports whether b is a literal or a number of JSON (RFC 8259, 6).
func validWord(b []byte) bool {
	switch string(b) {
	case "true", "false", "null":
		return true
	}
	b = bytes.TrimPrefix(b, []byte("-"))
	digits := func() bool {
		n := 0
		for n < len(b) && b[n] >= '0' && b[n] <= '9' {
			n++
		}
		b = b[n:]
		return n > 0
	}
	if bytes.HasPrefix(b, []byte("0")) {
		b = b[1:]
	} else if !digits() {
		return false
	}
	if bytes.HasPrefix(b, []byte(".")) {
		if b = b[1:]; !digits() {
			return false
		}
	}
	if len(b) > 0 && (b[0] == 'e' || b[0] == 'E') {
		if b = b[1:]; len(b) > 0 && (b[0] == '+' || b[0] == '-') {
			b = b[1:]
		}
		if !digits() {
			return false
		}
	}
	return len(b) == 0
}

func wordByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '-' || c == '+' || c == '.' || c == 'E'
}

// object walks an object: member is called for each key, and passes over the
// value. What is no object is passed over.
func (s *scanner) object(member func(key string)) {
	if s.peek() != '{' {
		s.value()
		return
	}
	s.push(true)
	if s.peek() == '}' {
		s.pop()
		return
	}
	var room [maxKey]byte
	for s.err == nil {
		raw, ok := s.key(room[:0])
		key, known := "", false
		if ok && s.err == nil {
			key, known = unquote(raw)
		}
		if known {
			member(key)
		} else {
			s.value()
		}
		if s.peek() != ',' {
			break
		}
		s.take()
	}
	if s.peek() != '}' {
		s.fail()
		return
	}
	s.pop()
}

// list walks a list as object does an object.
func (s *scanner) list(element func()) {
	if s.peek() != '[' {
		s.value()
		return
	}
	s.push(false)
	if s.peek() == ']' {
		s.pop()
		return
	}
	for s.err == nil {
		element()
		if s.peek() != ',' {
			break
		}
		s.take()
	}
	if s.peek() != ']' {
		s.fail()
		return
	}
	s.pop()
}

// string reads a string of at most maxText bytes; another value, and a longer
// string, is passed over and gives "".
func (s *scanner) string() string {
	if s.peek() != '"' {
		s.value()
		return ""
	}
	raw, ok := s.text(s.scratch[:0:maxText])
	if !ok || s.err != nil {
		return ""
	}
	text, _ := unquote(raw)
	return text
}

// integer reads a whole number that is not negative; another value is passed over.
func (s *scanner) integer() (n int64, ok bool) {
	if c := s.peek(); c < '0' || c > '9' {
		s.value()
		return 0, false
	}
	n, err := strconv.ParseInt(string(s.word()), 10, 64)
	return n, err == nil
}

// unquote undoes the escapes of a string's contents.
func unquote(raw []byte) (string, bool) {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw), true
	}
	var text string
	quoted := append(append([]byte{'"'}, raw...), '"')
	if err := json.Unmarshal(quoted, &text); err != nil {
		return "", false
	}
	return text, true
}
