package usage

import "bytes"

const (
	maxDepth = 256 // of nested objects and lists
	maxKey   = 64  // bytes of a key of the tables
)

// scanState is where in JSON's syntax the next byte stands.
type scanState uint8

const (
	wantValue scanState = iota
	wantFirst           // a list's first value, or its end
	wantKey             // a key, or the object's end
	wantNextKey
	inKey
	wantColon
	inString
	inNumber
	inWord
	afterValue
	broken // no JSON: nothing more is read of the document
)

// scanner reads JSON documents, one after another, in pieces of any size. It
// follows the grammar's paths and skips everything else without keeping it.
type scanner struct {
	g      *grammar
	state  scanState
	depth  int
	lists  [maxDepth / 64]uint64 // which containers are lists
	nodes  [maxDepth]uint16      // the containers' places in the grammar
	cur    uint16                // the place of the value at hand
	n      int                   // bytes in buf
	over   bool                  // what was scanned does not fit in buf
	escape uint8                 // 1: after a backslash; 2..5: hex digits to come
	num    number
	word   uint32 // hash of the key of the text at hand
	buf    [maxName]byte
}

func (s *scanner) reset(g *grammar) { s.g = g; s.restart() }

// restart begins a new document.
func (s *scanner) restart() {
	s.state, s.depth, s.cur, s.n, s.over, s.escape = wantValue, 0, root, 0, false, 0
	s.lists = [maxDepth / 64]uint64{}
}

// idle reports that no document is begun and unfinished.
func (s *scanner) idle() bool { return s.state == wantValue && s.depth == 0 }

func (s *scanner) bad() bool { return s.state == broken }

// close ends a number that nothing follows.
func (s *scanner) close(m *Meter) {
	if s.state == inNumber && s.depth == 0 {
		s.endNumber(m)
	}
}

// endDocument ends the document where the framing says so.
func (s *scanner) endDocument(m *Meter) {
	s.close(m)
	if !s.idle() {
		m.malformed = true
		m.doc.reset()
	}
	s.restart()
}

func (s *scanner) write(m *Meter, p []byte) {
	for i := 0; i < len(p); {
		switch s.state {
		case broken:
			return
		case inString:
			i += s.text(m, p[i:])
		case inKey:
			i += s.key(p[i:])
		case inNumber:
			if c := p[i]; s.num.more(c) {
				i++
			} else {
				s.endNumber(m)
			}
		case inWord:
			if c := p[i]; c >= 'a' && c <= 'z' {
				i++
			} else {
				s.endValue(m)
			}
		default:
			s.punctuation(m, p[i])
			i++
		}
	}
}

// punctuation reads a byte that is no part of a string, number or word.
func (s *scanner) punctuation(m *Meter, c byte) {
	if c == ' ' || c == '\n' || c == '\r' || c == '\t' {
		return
	}
	switch s.state {
	case wantFirst:
		if c == ']' {
			s.pop(m)
			return
		}
		s.value(m, c)
	case wantValue:
		s.value(m, c)
	case wantKey, wantNextKey:
		switch {
		case c == '"':
			s.state, s.n, s.over = inKey, 0, false
		case c == '}' && s.state == wantKey:
			s.pop(m)
		default:
			s.fail(m)
		}
	case wantColon:
		if c != ':' {
			s.fail(m)
			return
		}
		s.state = wantValue
	case afterValue:
		s.after(m, c)
	}
}

func (s *scanner) after(m *Meter, c byte) {
	switch list := s.inList(); {
	case c == ',' && list:
		s.cur = s.g.child(s.nodes[s.depth-1], anyElement)
		s.state = wantValue
	case c == ',':
		s.state = wantNextKey
	case c == ']' && list, c == '}' && !list:
		s.pop(m)
	default:
		s.fail(m)
	}
}

func (s *scanner) fail(m *Meter) {
	s.state = broken
	if m.x.Framing != SSE { // there, [DONE] is no JSON
		m.malformed = true
	}
}

func (s *scanner) inList() bool {
	d := s.depth - 1
	return s.lists[d/64]&(1<<(d%64)) != 0
}

// value begins a value with its first byte.
func (s *scanner) value(m *Meter, c byte) {
	switch {
	case c == '{' || c == '[':
		s.push(m, c == '[')
	case c == '"':
		s.state, s.n, s.over, s.escape = inString, 0, false, 0
		if s.g.nodes[s.cur].text {
			m.gather.begin(s.word)
		}
	case c == '-' || c >= '0' && c <= '9':
		s.state, s.num = inNumber, number{}
		s.num.more(c)
	case c == 't' || c == 'f' || c == 'n':
		s.state = inWord
		if c == 't' && s.g.nodes[s.cur].count == Background+1 {
			m.doc.set(Background, 1)
		}
	default:
		s.fail(m)
	}
}

func (s *scanner) push(m *Meter, list bool) {
	if s.depth == maxDepth {
		s.fail(m)
		return
	}
	d := s.depth
	s.depth++
	s.nodes[d] = s.cur
	s.lists[d/64] &^= 1 << (d % 64)
	s.state = wantKey
	if list {
		s.lists[d/64] |= 1 << (d % 64)
		s.cur = s.g.child(s.cur, anyElement)
		s.state = wantFirst
	}
}

func (s *scanner) pop(m *Meter) {
	s.depth--
	node := &s.g.nodes[s.nodes[s.depth]]
	if node.element > 0 {
		m.doc.element(lists[node.element-1])
	}
	if node.document {
		m.document()
	}
	s.endValue(m)
}

// endValue is called after each value, and after the last one of a document.
func (s *scanner) endValue(m *Meter) {
	s.state = afterValue
	if s.depth == 0 {
		s.restart()
		if s != &m.inner {
			m.document()
		}
	}
}

// key reads bytes of an object's key and returns how many.
func (s *scanner) key(p []byte) int {
	for i, c := range p {
		switch {
		case s.escape > 0:
			s.escape = 0
		case c == '\\':
			s.escape, s.over = 1, true // no key of the tables needs an escape
		case c == '"':
			s.cur = 0
			if !s.over {
				s.cur = s.g.child(s.nodes[s.depth-1], string(s.buf[:s.n]))
				if s.g.nodes[s.cur].text {
					s.word = keyHash(s.buf[:s.n])
				}
			}
			s.state = wantColon
			return i + 1
		case s.n < maxKey:
			s.buf[s.n] = c
			s.n++
		default:
			s.over = true
		}
	}
	return len(p)
}

// text reads bytes of a string value and returns how many.
func (s *scanner) text(m *Meter, p []byte) int {
	node := &s.g.nodes[s.cur]
	for i := 0; i < len(p); {
		if s.escape > 0 {
			if node.text {
				m.gather.keep(p[i : i+1])
			}
			s.escaped(m, node, p[i])
			i++
			continue
		}
		end := plain(p[i:])
		if end > 0 {
			s.take(m, node, p[i:i+end])
			i += end
			continue
		}
		if p[i] == '\\' {
			s.escape = 1
			if node.text {
				m.gather.keep(p[i : i+1])
			}
			i++
			continue
		}
		s.endString(m, node)
		return i + 1
	}
	return len(p)
}

// plainWindow bounds how far plain looks: text with an escape in every line would
// else be searched for its end again at each of them.
const plainWindow = 256

// plain is the length of the text before a quote or a backslash, or of a part of it.
func plain(p []byte) int {
	p = p[:min(len(p), plainWindow)]
	end := bytes.IndexByte(p, '"')
	if end < 0 {
		end = len(p)
	}
	if i := bytes.IndexByte(p[:end], '\\'); i >= 0 {
		end = i
	}
	return end
}

// escaped reads a byte after a backslash.
func (s *scanner) escaped(m *Meter, node *place, c byte) {
	switch {
	case s.escape == 1 && c == 'u':
		s.escape = 2
		s.over = true
		if node.text {
			m.answer.other++ // a surrogate pair counts as two
		}
		return
	case s.escape > 1 && s.escape < 5:
		s.escape++
		return
	case s.escape == 5:
		s.escape = 0
		return
	}
	s.escape = 0
	if node.text {
		m.answer.ascii++
		return
	}
	if c == '/' {
		s.take(m, node, []byte{'/'})
		return
	}
	s.over = true
}

// take is given the text of a string in pieces.
func (s *scanner) take(m *Meter, node *place, p []byte) {
	switch {
	case node.text:
		m.gather.keep(p)
		for _, c := range p {
			if c < 0x80 {
				m.answer.ascii++
			} else if c >= 0xc0 {
				m.answer.other++
			}
		}
	case node.base64:
		m.b64.write(m, p)
	case node.name == 0:
	case len(p) > maxName-s.n:
		s.over = true
	default:
		s.n += copy(s.buf[s.n:], p)
	}
}

func (s *scanner) endString(m *Meter, node *place) {
	if node.base64 {
		m.b64.close(m)
	}
	if node.name > 0 && (s.over || s.n > 0) {
		ok := !s.over
		for _, c := range s.buf[:s.n] {
			ok = ok && nameByte(c)
		}
		if ok {
			m.doc.names[node.name-1].set(s.buf[:s.n])
		} else {
			m.doc.odd |= 1 << (node.name - 1)
		}
	}
	s.endValue(m)
}

func (s *scanner) endNumber(m *Meter) {
	node := &s.g.nodes[s.cur]
	if node.count > 0 {
		c := node.count - 1
		n, ok := s.num.value(c == Seconds)
		if !ok {
			m.doc.badNumber = true
		}
		m.doc.set(c, n)
	}
	s.endValue(m)
}

// number reads a count digit by digit.
type number struct {
	n        int64
	negative bool
	point    bool
	rest     bool // digits after the point that are not 0
	exponent bool
}

// more takes a byte and reports whether it belongs to the number.
func (x *number) more(c byte) bool {
	switch {
	case c >= '0' && c <= '9':
		switch {
		case x.exponent:
		case x.point:
			x.rest = x.rest || c != '0'
		case x.n <= maxCount:
			x.n = x.n*10 + int64(c-'0')
		}
	case c == '.':
		x.point = true
	case c == 'e' || c == 'E':
		x.exponent = true
	case c == '-':
		x.negative = true
	case c != '+':
		return false
	}
	return true
}

// value is the number as a count; false where it is none, and then it is 0.
func (x *number) value(roundUp bool) (int64, bool) {
	n := x.n
	if x.rest && roundUp {
		n++
	}
	if x.exponent || x.negative && n != 0 || n > maxCount || x.rest && !roundUp {
		return 0, false
	}
	return n, true
}
