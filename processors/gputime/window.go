package gputime

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
)

// facts are what a sample says beside numbers: most samples of a window share them.
type facts struct {
	profile    string
	device     Device
	migEnabled bool
	owners     []Owner
	shares     []int64 // of owners
	text       string  // all of them, encoded
}

// observation is a sample of one part of a device.
type observation struct {
	start, end int64
	used       int64
	claimed    []int64 // Claim.Used of the facts' owners; nil when none is known
	facts      *facts
}

// relayed begins the names of parts that a collector told of and no agent: no text
// of a sample has it. They are apart because an agent's samples go before them.
const relayed = "\x00"

// part names the part of a device that a sample is of.
func (s *Sample) part() string {
	if s.Relayed {
		return relayed + s.MIG
	}
	return s.MIG
}

// window is what is known of one window of one device: the observations that
// touch it, by part ("" is the whole device), and what was emitted of it.
type window struct {
	place
	parts   map[string][]observation // in ascending order of end, ends unique
	emitted map[item]emission
	// dirtySince is the log's clock when the first sample came that no revision has
	// seen; 0 when there is none.
	dirtySince int64

	changed bool // since it was stored last
	counted int  // of observations
}

// emission is what the newest event of an item says.
type emission struct {
	micros   int64
	revision uint64
}

func newWindow(p place) *window {
	return &window{place: p, parts: make(map[string][]observation), emitted: make(map[item]emission)}
}

// maxObservations bounds the samples of one window of one device, against an agent
// that sends one a millisecond.
const maxObservations = 20_000

// outcome of adding a sample.
type outcome uint8

const (
	added     outcome = iota
	duplicate         // it, or another one of the same end, is there
	replaced          // and is the lesser one: which of two stays must not depend on their order
	full
)

// add takes a sample into the window.
func (w *window) add(s *Sample, f *facts) outcome {
	o := observation{start: s.Start, end: s.End, used: s.Used, facts: f}
	for i := range s.Claims {
		if s.Claims[i].Used != Unknown && o.claimed == nil {
			o.claimed = make([]int64, len(s.Claims))
			for j := range o.claimed {
				o.claimed[j] = s.Claims[j].Used
			}
		}
	}
	list := w.parts[s.part()]
	at, found := at(list, s.End)
	if found {
		if bytes.Compare(o.encode(nil), list[at].encode(nil)) >= 0 {
			return duplicate
		}
		list[at] = o
		return replaced
	}
	if w.counted >= maxObservations {
		return full
	}
	w.parts[s.part()] = slices.Insert(list, at, o)
	w.counted++
	return added
}

// at is the place of the observation with the end, or where it would be.
func at(list []observation, end int64) (int, bool) {
	return slices.BinarySearchFunc(list, end, func(o observation, end int64) int { return int(min(1, max(-1, o.end-end))) })
}

// same is the observation with the sample's part and end, nil when there is none.
func (w *window) same(s *Sample) *observation {
	list := w.parts[s.part()]
	if i, found := at(list, s.End); found {
		return &list[i]
	}
	return nil
}

// digest names the observations that the window's events are computed from.
func (w *window) digest() string {
	h := sha256.New()
	for _, part := range slices.Sorted(maps.Keys(w.parts)) {
		h.Write(appendText(nil, part))
		for i := range w.parts[part] {
			h.Write(w.parts[part][i].encode(nil))
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// The stored form of a window. A change is a new version beside the old decoder.
// Version 2 has the layout of version 1, and parts that a collector told of; who
// knows only version 1 would take them for instances, and so must not read it.
const (
	stateVersion        = 1
	stateVersionRelayed = 2
)

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendFacts encodes the facts of a sample.
func appendFacts(b []byte, s *Sample) []byte {
	b = appendText(b, s.Profile)
	for _, t := range s.Device.texts() {
		b = appendText(b, t)
	}
	flag := byte(0)
	if s.MIGEnabled {
		flag = 1
	}
	b = binary.AppendUvarint(append(b, flag), uint64(len(s.Claims)))
	for i := range s.Claims {
		for _, t := range s.Claims[i].Owner.texts() {
			b = appendText(b, t)
		}
		b = binary.AppendVarint(b, s.Claims[i].Share)
	}
	return b
}

// numbers are all of an observation but its facts.
func (o *observation) numbers(b []byte, before int64) []byte {
	b = binary.AppendVarint(b, o.end-before)
	b = binary.AppendVarint(b, o.end-o.start)
	b = binary.AppendVarint(b, o.used)
	b = binary.AppendUvarint(b, uint64(len(o.claimed)))
	for _, v := range o.claimed {
		b = binary.AppendVarint(b, v)
	}
	return b
}

func (o *observation) encode(b []byte) []byte { return append(o.numbers(b, 0), o.facts.text...) }

func (i *item) encode(b []byte) []byte {
	owner, device := i.owner.texts(), i.device.texts()
	for _, s := range append(append(owner[:], device[:]...), i.profile, i.state) {
		b = appendText(b, s)
	}
	return b
}

// encode is the window as it is stored.
func (w *window) encode() []byte {
	b := []byte{stateVersion}
	numbers := map[*facts]uint64{}
	var list []byte
	parts := slices.Sorted(maps.Keys(w.parts))
	if len(parts) > 0 && strings.HasPrefix(parts[0], relayed) {
		b[0] = stateVersionRelayed
	}
	body := make([]byte, 0, 64+12*w.counted)
	body = binary.AppendUvarint(body, uint64(len(parts)))
	for _, part := range parts {
		body = appendText(body, part)
		body = binary.AppendUvarint(body, uint64(len(w.parts[part])))
		before := w.start
		for i := range w.parts[part] {
			o := &w.parts[part][i]
			n, ok := numbers[o.facts]
			if !ok {
				n = uint64(len(numbers))
				numbers[o.facts] = n
				list = appendText(list, o.facts.text)
			}
			body = binary.AppendUvarint(o.numbers(body, before), n)
			before = o.end
		}
	}
	b = binary.AppendUvarint(b, uint64(len(numbers)))
	b = append(append(b, list...), body...)
	items := slices.SortedFunc(maps.Keys(w.emitted), item.compare)
	b = binary.AppendUvarint(b, uint64(len(items)))
	for i := range items {
		m := w.emitted[items[i]]
		b = items[i].encode(b)
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(m.micros)), m.revision)
	}
	return b
}

// reader walks stored bytes. What is malformed sets bad and ends the walk.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// count is a number of things of at least one byte each.
func (r *reader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) texts() (t [6]string) {
	for i := range t {
		t[i] = r.text()
	}
	return t
}

func ownerOf(t [6]string) Owner   { return Owner{t[0], t[1], t[2], t[3], t[4], t[5]} }
func deviceOf(t [6]string) Device { return Device{t[0], t[1], t[2], t[3], t[4], t[5]} }

// factsOf reads what appendFacts wrote. The error is ErrState.
func factsOf(text string) (*facts, error) {
	r := reader{b: []byte(text)}
	f := &facts{profile: r.text(), device: deviceOf(r.texts()), text: text}
	f.migEnabled = r.uvarint() == 1
	for range r.count() {
		f.owners = append(f.owners, ownerOf(r.texts()))
		f.shares = append(f.shares, r.varint())
	}
	if r.bad || len(r.b) > 0 {
		return nil, ErrState
	}
	return f, nil
}

// decode reads what encode wrote into an empty window; intern gives the facts of a
// text. The error is ErrState.
func (w *window) decode(b []byte, intern func(string) (*facts, error)) (err error) {
	r := reader{b: b}
	if len(b) == 0 || b[0] != stateVersion && b[0] != stateVersionRelayed {
		return ErrState
	}
	r.b = b[1:]
	known := make([]*facts, r.count())
	for i := range known {
		if known[i], err = intern(r.text()); err != nil {
			return err
		}
	}
	for range r.count() {
		part, before := r.text(), w.start
		for range r.count() {
			o := observation{end: before + r.varint()}
			o.start, o.used = o.end-r.varint(), r.varint()
			for range r.count() {
				o.claimed = append(o.claimed, r.varint())
			}
			n := r.uvarint()
			if n >= uint64(len(known)) || len(o.claimed) > 0 && len(o.claimed) != len(known[n].owners) {
				return ErrState
			}
			o.facts, before = known[n], o.end
			w.parts[part] = append(w.parts[part], o)
			w.counted++
		}
	}
	for range r.count() {
		i := item{owner: ownerOf(r.texts()), device: deviceOf(r.texts()), profile: r.text(), state: r.text()}
		w.emitted[i] = emission{int64(r.uvarint()), r.uvarint()}
	}
	if r.bad || len(r.b) > 0 {
		return ErrState
	}
	return nil
}

// slices of a profile such as "3g.40gb", and of which whole: compute slices decide
// the share. ok is false for a profile of another form.
func migSlices(profile, model string) (n, of int64, ok bool) {
	of = 7
	if strings.Contains(model, "A30") {
		of = 4
	}
	rest := profile
	if i := strings.Index(rest, "c."); i > 0 && i <= 2 { // a compute instance in it: "1c.3g.40gb"
		g := digits(rest[:i])
		return g, of, g > 0 && g <= of
	}
	i := strings.Index(rest, "g.")
	if i < 1 || i > 2 {
		return 0, of, false
	}
	g := digits(rest[:i])
	return g, of, g > 0 && g <= of
}

func digits(s string) (n int64) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n
}
