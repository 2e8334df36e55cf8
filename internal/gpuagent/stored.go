package gpuagent

import (
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/spool"
)

// storedVersion begins every frame in the spool.
const storedVersion = 1

// errStored: the record is no frame of an agent.
var errStored = errors.New("not an agent's frame")

// storedFrame is a frame as it lies in the spool: the version, how many samples
// were made before it, how many it has, and a SampleFrame without its numbers,
// which are the spool's.
func storedFrame(before int64, samples int, frame []byte) []byte {
	b := append(make([]byte, 0, len(frame)+21), storedVersion)
	b = binary.AppendUvarint(b, uint64(before))
	b = binary.AppendUvarint(b, uint64(samples))
	return append(b, frame...)
}

func parseStored(b []byte) (before, samples int64, frame []byte, err error) {
	if len(b) == 0 || b[0] != storedVersion {
		return 0, 0, nil, errStored
	}
	b = b[1:]
	var v [2]uint64
	for i := range v {
		value, n := binary.Uvarint(b)
		if n <= 0 || value >= 1<<62 {
			return 0, 0, nil, errStored
		}
		v[i], b = value, b[n:]
	}
	return int64(v[0]), int64(v[1]), b, nil
}

// counts are the counters that live with the acknowledgements: the spool's note.
type counts struct {
	ackedFrames    int64 // not in the note: the spool knows it
	ackedSamples   int64
	refusedFrames  int64
	refusedSamples int64
	lostFull       int64
	lostCollector  int64
	reconnects     int64
}

func (c *counts) fields() []*int64 {
	return []*int64{&c.ackedSamples, &c.refusedFrames, &c.refusedSamples, &c.lostFull, &c.lostCollector, &c.reconnects}
}

func (c *counts) note() (n [spool.NoteBytes]byte) {
	for i, v := range c.fields() {
		binary.LittleEndian.PutUint64(n[i*8:], uint64(*v))
	}
	return n
}

func parseCounts(n [spool.NoteBytes]byte) (c counts) {
	for i, v := range c.fields() {
		*v = int64(binary.LittleEndian.Uint64(n[i*8:]))
	}
	return c
}

func stamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }
