package keyring

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	logMagic    = "TSKEYS2\n"
	logMagicOld = "TSKEYS1\n"

	recordMark    = "\nEND"
	recordPrefix  = 4                   // length
	recordTrailer = 4 + len(recordMark) // CRC and mark
	bodyVersion   = 2
	bodyOld       = 1

	// maxItems and maxWrappedBytes bound a record, and so what a reader must
	// hold to check one.
	maxItems        = 1024
	maxWrappedBytes = 2 << 10
	maxBodyBytes    = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Forms of items. The numbers are written to disk.
const (
	itemKey       = 1
	itemEpoch     = 2
	itemDestroyed = 3
)

// item is one thing that a key file says.
type item struct {
	form   byte
	code   byte   // a kind, or of an epoch its series
	number uint32 // a version, or an epoch
	at     int64  // unix seconds, 0 when unknown
	tenant tenant.ID

	by      string // of a key
	wrapped []byte
	state   State // of an epoch
}

// appendRecords appends records that say items, in order.
func appendRecords(dst []byte, items []item) []byte {
	for group := range slices.Chunk(items, maxItems) {
		start := len(dst)
		dst = append(dst, 0, 0, 0, 0, bodyVersion)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(group)))
		for i := range group {
			dst = appendItem(dst, &group[i])
		}
		binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-recordPrefix))
		dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
		dst = append(dst, recordMark...)
	}
	return dst
}

func appendItem(dst []byte, it *item) []byte {
	dst = append(dst, it.form, it.code)
	dst = binary.BigEndian.AppendUint32(dst, it.number)
	dst = binary.BigEndian.AppendUint64(dst, uint64(it.at))
	dst = append(dst, byte(len(it.tenant)))
	dst = append(dst, it.tenant...)
	var rest []byte
	switch it.form {
	case itemKey:
		rest = append([]byte{byte(len(it.by))}, it.by...)
		rest = append(rest, it.wrapped...)
	case itemEpoch:
		rest = []byte{byte(it.state)}
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(rest)))
	return append(dst, rest...)
}

// parseRecords reads the complete records of data, which begins at offset base
// of the file, and says how many bytes they take. What follows them is an
// unfinished record, or else the error is ErrCorrupt.
func parseRecords(data []byte, base int64) (items []item, used int, err error) {
	for used < len(data) {
		rest := data[used:]
		body, size, ok := cutRecord(rest)
		if !ok {
			if unfinished(rest) {
				return items, used, nil
			}
			return nil, 0, fmt.Errorf("%w: bad record at offset %d", ErrCorrupt, base+int64(used))
		}
		if items, err = parseBody(items, body); err != nil {
			return nil, 0, fmt.Errorf("record at offset %d: %w", base+int64(used), err)
		}
		used += size
	}
	return items, used, nil
}

// cutRecord takes one whole record from the front of data.
func cutRecord(data []byte) (body []byte, size int, ok bool) {
	if len(data) < recordPrefix+recordTrailer {
		return nil, 0, false
	}
	n := int(binary.BigEndian.Uint32(data))
	if n > maxBodyBytes || len(data) < recordPrefix+n+recordTrailer {
		return nil, 0, false
	}
	end := recordPrefix + n
	sum := binary.BigEndian.Uint32(data[end:])
	mark := string(data[end+4 : end+recordTrailer])
	if mark != recordMark || sum != crc32.Checksum(data[:end], castagnoli) {
		return nil, 0, false
	}
	return data[recordPrefix:end], end + recordTrailer, true
}

// unfinished tells a record that was never completely written, which a crash
// explains, from one that was and has changed, which nothing does. A crash
// leaves a file that is too short for its last record, or the right length
// with zeros where the end was not written; a complete record ends with its
// mark. A damaged length field makes a complete record look unfinished, so the
// file must not end with a mark either, and no whole record may follow.
func unfinished(rest []byte) bool {
	if isZero(rest) || len(rest) < recordPrefix {
		return true
	}
	n := int(binary.BigEndian.Uint32(rest))
	if n > maxBodyBytes || bytes.HasSuffix(rest, []byte(recordMark)) {
		return false
	}
	size := recordPrefix + n + recordTrailer
	if len(rest) >= size {
		complete := bytes.HasSuffix(rest[:size], []byte(recordMark))
		if complete || !isZero(rest[len(rest)-len(recordMark):]) {
			return false
		}
	}
	return !holdsRecord(rest[1:])
}

// holdsRecord reports whether a whole record begins anywhere in data.
func holdsRecord(data []byte) bool {
	for i := range data {
		if _, _, ok := cutRecord(data[i:]); ok {
			return true
		}
	}
	return false
}

// parseBody appends a record's items. The bytes have a good checksum, so a
// misfit is damage done by a program, or a file of a newer version.
func parseBody(items []item, body []byte) ([]item, error) {
	if len(body) < 5 || body[0] != bodyVersion && body[0] != bodyOld {
		return nil, fmt.Errorf("%w: unknown record version", ErrCorrupt)
	}
	cut := cutItem
	if body[0] == bodyOld {
		cut = cutOldKey
	}
	count := binary.BigEndian.Uint32(body[1:])
	body = body[5:]
	for range count {
		it, rest, ok := cut(body)
		if !ok {
			return nil, fmt.Errorf("%w: record ends within an item, or one is of an unknown form", ErrCorrupt)
		}
		body = rest
		items = append(items, it)
	}
	if len(body) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last item", ErrCorrupt, len(body))
	}
	return items, nil
}

// cutItem takes one item from the front of b.
func cutItem(b []byte) (it item, rest []byte, ok bool) {
	const fixed = 1 + 1 + 4 + 8 + 1
	if len(b) < fixed {
		return it, nil, false
	}
	it.form, it.code = b[0], b[1]
	it.number, it.at = binary.BigEndian.Uint32(b[2:]), int64(binary.BigEndian.Uint64(b[6:]))
	n := int(b[fixed-1])
	b = b[fixed:]
	if len(b) < n+2 {
		return it, nil, false
	}
	it.tenant = tenant.ID(b[:n])
	m := int(binary.BigEndian.Uint16(b[n:]))
	if b = b[n+2:]; len(b) < m {
		return it, nil, false
	}
	value, rest := b[:m], b[m:]
	switch it.form {
	case itemKey:
		if m == 0 || m < 1+int(value[0]) {
			return it, nil, false
		}
		it.by, it.wrapped = string(value[1:1+value[0]]), bytes.Clone(value[1+value[0]:])
		ok = it.validKey()
	case itemEpoch:
		ok = m == 1 && it.validEpoch(State(value[0]))
	case itemDestroyed:
		ok = m == 0 && kind(it.code) == kindSealing && it.number == 1 && validID(it.tenant)
	}
	return it, rest, ok
}

func (it *item) validKey() bool {
	k := kind(it.code)
	named := validID(it.tenant)
	if k == kindContext {
		named = it.tenant == ""
	}
	return k >= kindIntegrity && k <= kindContext && it.number == 1 && named
}

func (it *item) validEpoch(s State) bool {
	it.state = s
	return Series(it.code).valid() && it.number > 0 && (s == Next || s == Active) && validID(it.tenant)
}

// cutOldKey takes one key of a body of version 1 from the front of b.
func cutOldKey(b []byte) (it item, rest []byte, ok bool) {
	const fixed = 1 + 4 + 1
	if len(b) < fixed {
		return it, nil, false
	}
	it.form, it.code, it.number = itemKey, b[0], binary.BigEndian.Uint32(b[1:])
	n := int(b[5])
	b = b[fixed:]
	if len(b) < n+2 {
		return it, nil, false
	}
	it.tenant = tenant.ID(b[:n])
	m := int(binary.BigEndian.Uint16(b[n:]))
	if b = b[n+2:]; len(b) < m {
		return it, nil, false
	}
	it.wrapped = bytes.Clone(b[:m])
	return it, b[m:], it.validKey()
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
