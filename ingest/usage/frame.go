package usage

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
)

// Framing is how documents stand in the bytes of a response.
type Framing uint8

// The framings.
const (
	// JSON is a body: a document, several after one another, or JSON lines.
	JSON Framing = iota
	// SSE is server-sent events, the documents in their data fields.
	SSE
	// EventStream is AWS's binary frames.
	EventStream
	// Opaque is bytes that state nothing: audio, images, files.
	Opaque
)

// FramingOf reads a Content-Type. An absent one is JSON.
func FramingOf(contentType string) Framing {
	kind, _, _ := strings.Cut(contentType, ";")
	switch kind = strings.ToLower(strings.TrimSpace(kind)); {
	case kind == "text/event-stream":
		return SSE
	case kind == "application/vnd.amazon.eventstream":
		return EventStream
	case kind == "" || strings.Contains(kind, "json"):
		return JSON
	}
	return Opaque
}

// sseFramer takes server-sent events apart, as the WHATWG's HTML standard
// defines them; of their fields only data matters here.
type sseFramer struct {
	field   [5]byte // the line's first bytes
	n       uint8   // bytes of the line before its value, up to 6
	inValue bool
	skip    bool // the line's rest is no data
	space   bool // one space after the colon is no part of the value
	cr      bool // the last byte ended a line that a newline may still end
	head    [8]byte
	size    int // bytes of the event's data, as far as head reaches and one more
}

func (f *sseFramer) write(m *Meter, p []byte) {
	for len(p) > 0 {
		if f.cr && p[0] == '\n' {
			f.cr = false
			p = p[1:]
			continue
		}
		f.cr = false
		end := bytes.IndexByte(p, '\n')
		line := p
		if end >= 0 {
			line = p[:end]
		}
		if i := bytes.IndexByte(line, '\r'); i >= 0 {
			line, end = line[:i], i
		}
		f.part(m, line)
		if end < 0 {
			return
		}
		f.cr = p[end] == '\r'
		f.endLine(m)
		p = p[end+1:]
	}
}

// part reads some of a line, without its end.
func (f *sseFramer) part(m *Meter, p []byte) {
	for len(p) > 0 && !f.inValue && !f.skip {
		c := p[0]
		p = p[1:]
		switch {
		case c == ':':
			f.inValue = f.n == 4 && string(f.field[:4]) == "data"
			f.skip = !f.inValue
			f.space = true
		case f.n < 5:
			f.field[f.n] = c
			f.n++
		default:
			f.skip = true
		}
		if f.n == 0 {
			f.n = 1 // a comment is no blank line
		}
	}
	if len(p) == 0 || !f.inValue {
		return
	}
	if f.space && p[0] == ' ' {
		p = p[1:]
	}
	f.space = false
	if len(p) > 0 {
		f.data(m, p)
	}
}

func (f *sseFramer) data(m *Meter, p []byte) {
	if f.size < len(f.head) {
		copy(f.head[f.size:], p)
	}
	f.size = min(f.size+len(p), len(f.head)+1)
	m.outer.write(m, p)
}

func (f *sseFramer) endLine(m *Meter) {
	if f.n == 0 && f.size > 0 {
		f.endEvent(m)
	}
	f.n, f.inValue, f.skip, f.space = 0, false, false, false
}

func (f *sseFramer) endEvent(m *Meter) {
	if f.size == len(done) && string(f.head[:len(done)]) == done {
		m.terminal = true
		m.outer.restart()
		m.doc.reset()
	} else {
		m.outer.endDocument(m)
	}
	f.size = 0
}

const (
	preludeSize     = 12      // total length, headers' length, checksum
	maxFrameHeaders = 1 << 10 // bytes of headers that are looked at
	maxFrame        = 1 << 24 // AWS's own bound on a message
)

// frameFramer takes AWS event-stream frames apart and checks their checksums.
type frameFramer struct {
	prelude [preludeSize]byte
	headers [maxFrameHeaders]byte
	tail    [4]byte
	at      uint32 // bytes of the frame read
	total   uint32
	hsize   uint32
	crc     uint32
	lost    bool // after a bad prelude nothing can be found any more
}

// inside reports that a frame is begun and unfinished.
func (f *frameFramer) inside() bool { return f.at > 0 }

func (f *frameFramer) write(m *Meter, p []byte) {
	for len(p) > 0 && !f.lost {
		n := f.read(m, p)
		p = p[n:]
	}
}

// read takes the next bytes of one part of the frame and returns how many.
func (f *frameFramer) read(m *Meter, p []byte) int {
	var n int
	switch {
	case f.at < preludeSize:
		n = copy(f.prelude[f.at:], p)
		f.sum(p[:n])
		if f.at == preludeSize {
			f.begin(m)
		}
	case f.at < preludeSize+f.hsize:
		n = min(len(p), int(preludeSize+f.hsize-f.at))
		if from := f.at - preludeSize; from < maxFrameHeaders {
			copy(f.headers[from:], p[:n])
		}
		f.sum(p[:n])
	case f.at < f.total-4:
		n = min(len(p), int(f.total-4-f.at))
		m.outer.write(m, p[:n])
		f.sum(p[:n])
	default:
		n = copy(f.tail[f.at-(f.total-4):], p)
		f.at += uint32(n)
		if f.at == f.total {
			f.end(m)
		}
	}
	return n
}

func (f *frameFramer) sum(p []byte) {
	f.at += uint32(len(p))
	f.crc = crc32.Update(f.crc, crc32.IEEETable, p)
}

// begin checks the prelude.
func (f *frameFramer) begin(m *Meter) {
	f.total = binary.BigEndian.Uint32(f.prelude[0:])
	f.hsize = binary.BigEndian.Uint32(f.prelude[4:])
	ok := crc32.ChecksumIEEE(f.prelude[:8]) == binary.BigEndian.Uint32(f.prelude[8:])
	if !ok || f.total > maxFrame || f.total < preludeSize+4 || f.hsize > f.total-preludeSize-4 {
		f.lost = true
		m.malformed = true
	}
}

// end takes over the frame's document if its checksum is right.
func (f *frameFramer) end(m *Meter) {
	good := f.crc == binary.BigEndian.Uint32(f.tail[:])
	empty := f.total == preludeSize+4+f.hsize
	if !empty {
		m.outer.close(m)
	}
	if !m.outer.idle() || !good {
		m.malformed = true
		m.doc.reset()
	} else {
		f.event(m)
		m.commit()
	}
	m.outer.restart()
	m.inner.restart()
	f.at, f.crc = 0, 0
}

// event reads the frame's kind from its headers.
func (f *frameFramer) event(m *Meter) {
	h := f.headers[:min(f.hsize, maxFrameHeaders)]
	for len(h) > 0 {
		n := int(h[0])
		if len(h) < n+4 || h[n+1] != 7 {
			return // all of Bedrock's are strings, type 7
		}
		key, size := string(h[1:n+1]), int(binary.BigEndian.Uint16(h[n+2:]))
		h = h[n+4:]
		if len(h) < size {
			return
		}
		value := h[:size]
		h = h[size:]
		if name(string(value)) == "" {
			continue
		}
		switch key {
		case ":event-type":
			if m.doc.names[nameEvent].n == 0 { // a native stream's own is within
				m.doc.names[nameEvent].set(value)
			}
		case ":exception-type", ":error-code":
			m.doc.names[nameError].set(value)
		}
	}
}

// base64Decoder decodes the documents within documents.
type base64Decoder struct {
	bits uint32
	n    uint8
	pad  bool
}

func (b *base64Decoder) write(m *Meter, p []byte) {
	var out [96]byte
	n := 0
	for _, c := range p {
		v := base64Value(c)
		switch {
		case c == '=':
			b.pad = true
			continue
		case v < 0 || b.pad:
			m.malformed = true
			continue
		}
		b.bits = b.bits<<6 | uint32(v)
		b.n++
		if b.n < 4 {
			continue
		}
		out[n], out[n+1], out[n+2] = byte(b.bits>>16), byte(b.bits>>8), byte(b.bits)
		n += 3
		b.bits, b.n = 0, 0
		if n == len(out) {
			m.inner.write(m, out[:n])
			n = 0
		}
	}
	m.inner.write(m, out[:n])
}

// close ends the encoded document.
func (b *base64Decoder) close(m *Meter) {
	switch b.n {
	case 2:
		m.inner.write(m, []byte{byte(b.bits >> 4)})
	case 3:
		m.inner.write(m, []byte{byte(b.bits >> 10), byte(b.bits >> 2)})
	case 1:
		m.malformed = true
	}
	*b = base64Decoder{}
	if !m.inner.idle() {
		m.malformed = true
	}
	m.inner.restart()
}

func base64Value(c byte) int {
	switch {
	case c >= 'A' && c <= 'Z':
		return int(c - 'A')
	case c >= 'a' && c <= 'z':
		return int(c-'a') + 26
	case c >= '0' && c <= '9':
		return int(c-'0') + 52
	case c == '+':
		return 62
	case c == '/':
		return 63
	}
	return -1
}
