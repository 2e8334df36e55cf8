package spool

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The layout of a segment, as docs/spool-format.md describes it.
const (
	segmentHeaderBytes = 64
	frameHeaderBytes   = 32
	frameTrailerBytes  = 4
	sealBytes          = 16
	recordOverhead     = 4 // the length before each record

	frameOverhead = frameHeaderBytes + sealBytes + frameTrailerBytes

	formatVersion = 1
	flagSealed    = 1

	segmentMagic = "tlyspool"
	frameMagic   = 0x4d524654 // "TFRM"

	segmentPrefix, segmentSuffix = "segment-", ".spool"

	// maxFrameBytes is more than any frame that is written: one call's records
	// beside a group's.
	maxFrameBytes = MaxSegmentBytes + 2*maxGroupBytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment is one file of frames.
type segment struct {
	f      *os.File
	first  uint64 // sequence number of its first record
	last   uint64 // of its newest; first-1 while it has none
	size   int64  // bytes that are durable
	epoch  uint64
	seed   uint32      // of its frames' checksums: bytes of another file are no frame here
	aead   cipher.AEAD // nil when plain
	active bool        // the writer adds to it
}

func (g *segment) name() string { return segmentName(g.first) }

func segmentName(first uint64) string {
	return fmt.Sprintf("%s%020d%s", segmentPrefix, first, segmentSuffix)
}

// segmentNames lists the segments of a folder in the order of their records.
func segmentNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	var names []string
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), segmentPrefix)
		number, end := strings.CutSuffix(number, segmentSuffix)
		if n, err := strconv.ParseUint(number, 10, 64); ok && end && err == nil && e.Name() == segmentName(n) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names) // the numbers are padded
	return names, nil
}

// createSegment makes the file that begins with record first. It is durable
// with its name when this returns.
func createSegment(dir string, root *os.File, first, epoch uint64, key *[KeyBytes]byte, nowMs int64, d disk) (*segment, error) {
	var head [segmentHeaderBytes]byte
	copy(head[:], segmentMagic)
	binary.LittleEndian.PutUint16(head[8:], formatVersion)
	if key != nil {
		binary.LittleEndian.PutUint16(head[10:], flagSealed)
	}
	binary.LittleEndian.PutUint64(head[16:], first)
	binary.LittleEndian.PutUint64(head[24:], epoch)
	if _, err := rand.Read(head[32:48]); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint64(head[48:], uint64(nowMs))
	binary.LittleEndian.PutUint32(head[60:], crc32.Checksum(head[:60], castagnoli))
	seg := &segment{
		first: first, last: first - 1, size: segmentHeaderBytes, epoch: epoch, active: true,
		seed: crc32.Checksum(head[32:48], castagnoli),
	}
	var err error
	if seg.aead, err = segmentAEAD(key, head[32:48]); err != nil {
		return nil, err
	}
	// A file of this name can only be one that never held a durable record.
	seg.f, err = os.OpenFile(filepath.Join(dir, seg.name()), os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.WriteAt(seg.f, head[:], 0), d.Sync(seg.f), d.Sync(root)); err != nil {
		return nil, errors.Join(err, seg.f.Close(), os.Remove(filepath.Join(dir, seg.name())))
	}
	return seg, nil
}

// segmentAEAD is the cipher of one segment: its key is never another's, because
// its salt is not.
func segmentAEAD(key *[KeyBytes]byte, salt []byte) (cipher.AEAD, error) {
	if key == nil {
		return nil, nil
	}
	k, err := hkdf.Key(sha256.New, key[:], salt, "tallystick/spool segment 1", KeyBytes)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// appendRecord adds one record to a frame's plain content.
func appendRecord(buf, record []byte) []byte {
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(record)))
	return append(buf, record...)
}

// frame completes buf, whose first frameHeaderBytes are free and the rest plain
// content, to what is written at the end of the segment.
func (g *segment) frame(buf []byte, first uint64, count int, ms int64) []byte {
	stored := len(buf) - frameHeaderBytes
	if g.aead != nil {
		stored += sealBytes
	}
	h := buf[:frameHeaderBytes]
	binary.LittleEndian.PutUint32(h[0:], frameMagic)
	binary.LittleEndian.PutUint32(h[4:], uint32(stored))
	binary.LittleEndian.PutUint64(h[8:], first)
	binary.LittleEndian.PutUint64(h[16:], uint64(ms))
	binary.LittleEndian.PutUint32(h[24:], uint32(count))
	binary.LittleEndian.PutUint32(h[28:], crc32.Update(g.seed, castagnoli, h[:28]))
	if g.aead != nil {
		buf = g.aead.Seal(buf[:frameHeaderBytes], nonce(first), buf[frameHeaderBytes:], h)
	}
	return binary.LittleEndian.AppendUint32(buf, crc32.Update(g.seed, castagnoli, buf))
}

// nonce of a frame: within a segment no two frames begin with the same record,
// and after a failed write a new segment is begun.
func nonce(first uint64) []byte {
	var n [12]byte
	binary.BigEndian.PutUint64(n[4:], first)
	return n[:]
}

// frameHead is a frame's header.
type frameHead struct {
	first  uint64
	ms     int64
	count  int
	stored int // bytes of content on disk
}

func (h frameHead) size() int64  { return int64(frameHeaderBytes + h.stored + frameTrailerBytes) }
func (h frameHead) last() uint64 { return h.first + uint64(h.count) - 1 }

// errFrame: the bytes are no whole frame.
var errFrame = errors.New("not a whole frame")

// parseHead reads a frame's header; every field is in its range.
func (g *segment) parseHead(b []byte) (frameHead, error) {
	if len(b) < frameHeaderBytes || binary.LittleEndian.Uint32(b) != frameMagic ||
		binary.LittleEndian.Uint32(b[28:]) != crc32.Update(g.seed, castagnoli, b[:28]) {
		return frameHead{}, errFrame
	}
	h := frameHead{
		first: binary.LittleEndian.Uint64(b[8:]), ms: int64(binary.LittleEndian.Uint64(b[16:])),
		count: int(binary.LittleEndian.Uint32(b[24:])), stored: int(binary.LittleEndian.Uint32(b[4:])),
	}
	if h.count == 0 || h.stored > maxFrameBytes || h.count*recordOverhead > h.stored || h.first == 0 || h.first+uint64(h.count) < h.first {
		return frameHead{}, errFrame
	}
	return h, nil
}

// content checks the frame in b, opens it in place and returns the plain
// records' bytes.
func (g *segment) content(h frameHead, b []byte) ([]byte, error) {
	if int64(len(b)) < h.size() {
		return nil, errFrame
	}
	body := b[:frameHeaderBytes+h.stored]
	if binary.LittleEndian.Uint32(b[len(body):]) != crc32.Update(g.seed, castagnoli, body) {
		return nil, errFrame
	}
	plain := body[frameHeaderBytes:]
	if g.aead != nil {
		var err error
		if plain, err = g.aead.Open(plain[:0], nonce(h.first), plain, body[:frameHeaderBytes]); err != nil {
			return nil, ErrKey // the checksum is right, so it is not a torn write
		}
	}
	return plain, nil
}

// splitRecords appends the records of a frame's content to dst.
func splitRecords(dst [][]byte, plain []byte, count int) ([][]byte, error) {
	for range count {
		if len(plain) < recordOverhead {
			return nil, errFrame
		}
		n := binary.LittleEndian.Uint32(plain)
		plain = plain[recordOverhead:]
		if uint64(n) > uint64(len(plain)) {
			return nil, errFrame
		}
		dst, plain = append(dst, plain[:n:n]), plain[n:]
	}
	if len(plain) > 0 {
		return nil, errFrame
	}
	return dst, nil
}

// found is what openSegment saw in a file.
type found struct {
	marks []mark
	torn  int64 // bytes after the last whole frame
}

// openSegment reads and checks a whole file. It returns no segment for a newest
// file that a crash left without a header.
func openSegment(path string, key *[KeyBytes]byte, newest, late bool) (*segment, found, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, found{}, fmt.Errorf("spool: %w", err)
	}
	seg, seen, err := scanSegment(f, key, newest, late)
	if seg == nil || err != nil {
		f.Close()
		return nil, found{}, err
	}
	if seg.name() != filepath.Base(path) {
		f.Close()
		return nil, found{}, fmt.Errorf("%w: %s begins with record %d", ErrCorrupt, filepath.Base(path), seg.first)
	}
	seg.f = f
	return seg, seen, nil
}

// scanSegment checks header and frames of r. Only the newest segment may end
// with something that is no frame, and only where no whole frame comes after
// it: one write is in flight at a time, so what follows a torn write was never
// durable, and a whole frame behind damage says that it is no torn write. late says
// that several may have been: a power cut leaves any of them.
func scanSegment(r io.ReadSeeker, key *[KeyBytes]byte, newest, late bool) (*segment, found, error) {
	name := "segment"
	if f, ok := r.(*os.File); ok {
		name = filepath.Base(f.Name())
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, found{}, fmt.Errorf("spool: read %s: %w", name, err)
	}
	seg, err := parseSegmentHeader(b, key)
	switch {
	case errors.Is(err, ErrKey):
		return nil, found{}, fmt.Errorf("%w: %s", err, name)
	case err != nil && newest && len(b) <= segmentHeaderBytes:
		return nil, found{}, nil // the header is durable before any frame is written
	case err != nil:
		return nil, found{}, fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	var seen found
	var records [][]byte
	for seg.size < int64(len(b)) {
		h, plain, err := seg.at(b)
		if err == nil {
			if records, err = splitRecords(records[:0], plain, h.count); err != nil {
				return nil, found{}, fmt.Errorf("%w: %s at byte %d: %w", ErrCorrupt, name, seg.size, err)
			}
			seen.marks = append(seen.marks, mark{h.first, h.ms})
			seg.last, seg.size = h.last(), seg.size+h.size()
			continue
		}
		if errors.Is(err, ErrKey) {
			return nil, found{}, fmt.Errorf("%w: %s", err, name)
		}
		if !newest || !late && seg.holdsFrame(b, seg.size+1) {
			return nil, found{}, fmt.Errorf("%w: %s at byte %d: %w", ErrCorrupt, name, seg.size, err)
		}
		seen.torn = int64(len(b)) - seg.size
		break
	}
	return seg, seen, nil
}

// at reads the frame that must come next.
func (g *segment) at(b []byte) (frameHead, []byte, error) {
	h, err := g.parseHead(b[g.size:])
	if err != nil {
		return h, nil, err
	}
	if h.first != g.last+1 {
		return h, nil, errFrame
	}
	plain, err := g.content(h, b[g.size:])
	return h, plain, err
}

// holdsFrame reports whether a whole frame begins anywhere at or after from.
func (g *segment) holdsFrame(b []byte, from int64) bool {
	for ; from+frameHeaderBytes <= int64(len(b)); from++ {
		h, err := g.parseHead(b[from:])
		if err != nil || from+h.size() > int64(len(b)) {
			continue
		}
		body := b[from : from+h.size()-frameTrailerBytes]
		if binary.LittleEndian.Uint32(b[from+int64(len(body)):]) == crc32.Update(g.seed, castagnoli, body) {
			return true
		}
	}
	return false
}

func parseSegmentHeader(b []byte, key *[KeyBytes]byte) (*segment, error) {
	if len(b) < segmentHeaderBytes || string(b[:8]) != segmentMagic ||
		binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return nil, errors.New("no segment header")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != formatVersion {
		return nil, fmt.Errorf("format version %d is not known", v)
	}
	if sealed := binary.LittleEndian.Uint16(b[10:]) == flagSealed; sealed != (key != nil) {
		return nil, ErrKey
	}
	first := binary.LittleEndian.Uint64(b[16:])
	if first == 0 {
		return nil, errors.New("records are numbered from 1")
	}
	aead, err := segmentAEAD(key, b[32:48])
	if err != nil {
		return nil, err
	}
	return &segment{
		first: first, last: first - 1, size: segmentHeaderBytes, aead: aead,
		epoch: binary.LittleEndian.Uint64(b[24:]), seed: crc32.Checksum(b[32:48], castagnoli),
	}, nil
}
