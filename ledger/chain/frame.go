package chain

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A Frame is the value of a record in the topic `entries`: consecutive entries
// of one tenant, as they were committed. The ledger numbers its commits per
// partition (Batch = 1, 2, 3 …) and the entries within a commit (Index = 0, 1,
// 2 …); a frame says where in that order it stands, so that a reader drops
// what it has seen, and sees what it has missed, by comparing two numbers.
type Frame struct {
	Tenant    string
	Partition int32
	Batch     int64 // number of the commit in its partition, from 1
	Index     int32 // of the frame's first entry within the commit
	Total     int32 // entries in the commit
	FirstSeq  int64 // sequence number of the first entry
	Entries   []Sealed
}

// Sealed is an entry as it is stored: canonical bytes, chain hash and MAC.
type Sealed struct {
	Canonical []byte
	Chain     Hash
	MAC       Hash
	Epoch     uint32
}

// frameVersion is the first byte of a frame.
const frameVersion = 1

// ErrFrame says that bytes are not a frame.
var ErrFrame = errors.New("not a frame of entries")

// FrameWriter builds one frame.
type FrameWriter struct {
	b       []byte
	countAt int
	n       uint32
}

// Begin starts a frame that is appended to b; f.Entries is not used.
func (w *FrameWriter) Begin(b []byte, f *Frame) {
	b = append(b, frameVersion, byte(len(f.Tenant)))
	b = append(b, f.Tenant...)
	b = binary.BigEndian.AppendUint32(b, uint32(f.Partition))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Batch))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Index))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Total))
	b = binary.BigEndian.AppendUint64(b, uint64(f.FirstSeq))
	w.countAt, w.n = len(b), 0
	w.b = append(b, 0, 0, 0, 0)
}

// Add appends the next entry of the tenant.
func (w *FrameWriter) Add(s *Sealed) {
	b := binary.AppendUvarint(w.b, uint64(len(s.Canonical)))
	b = append(b, s.Canonical...)
	b = append(b, s.Chain[:]...)
	b = append(b, s.MAC[:]...)
	w.b = binary.BigEndian.AppendUint32(b, s.Epoch)
	w.n++
}

// Size is the length of what has been written, including what stood before Begin.
func (w *FrameWriter) Size() int { return len(w.b) }

// Finish ends the frame and returns the whole buffer.
func (w *FrameWriter) Finish() []byte {
	binary.BigEndian.PutUint32(w.b[w.countAt:], w.n)
	return w.b
}

// Decode reads a frame. Strings and slices of f alias b; f's slices are reused.
func (f *Frame) Decode(b []byte) error {
	if len(b) < 2 || b[0] != frameVersion {
		return fmt.Errorf("%w: version", ErrFrame)
	}
	n := int(b[1])
	const fixed = 4 + 8 + 4 + 4 + 8 + 4
	if len(b) < 2+n+fixed {
		return fmt.Errorf("%w: truncated header", ErrFrame)
	}
	f.Tenant = alias(b[2 : 2+n])
	h := b[2+n:]
	f.Partition = int32(binary.BigEndian.Uint32(h))
	f.Batch = int64(binary.BigEndian.Uint64(h[4:]))
	f.Index = int32(binary.BigEndian.Uint32(h[12:]))
	f.Total = int32(binary.BigEndian.Uint32(h[16:]))
	f.FirstSeq = int64(binary.BigEndian.Uint64(h[20:]))
	count := binary.BigEndian.Uint32(h[28:])
	f.Entries = f.Entries[:0]
	d := decoder{b: h[fixed:]}
	for range count {
		var s Sealed
		s.Canonical = d.bytes()
		if d.bad || len(d.b) < 2*HashSize+4 {
			return fmt.Errorf("%w: truncated entry", ErrFrame)
		}
		s.Chain = Hash(d.b[:HashSize])
		s.MAC = Hash(d.b[HashSize : 2*HashSize])
		s.Epoch = binary.BigEndian.Uint32(d.b[2*HashSize:])
		d.b = d.b[2*HashSize+4:]
		f.Entries = append(f.Entries, s)
	}
	if len(d.b) > 0 || count == 0 || f.Partition < 0 || f.Batch < 1 || f.FirstSeq < 1 ||
		f.Index < 0 || int64(f.Index)+int64(count) > int64(f.Total) {
		return fmt.Errorf("%w: header does not fit the entries", ErrFrame)
	}
	return nil
}
