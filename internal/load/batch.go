package load

import (
	"encoding/binary"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/internal/oracle"
)

// item is one event of a batch.
type item struct {
	start, end int // its encoding in the buffer, framing included
	body       int // where its own encoding begins
	outcome    oracle.Outcome
	settled    bool // answered for good
}

// held is an event that waits for its moment.
type held struct {
	encoded []byte
	outcome oracle.Outcome
	twin    *held // to be sent once this one is acknowledged
}

// batch is the body of one request. Its memory is reused.
type batch struct {
	format   Format
	capacity int
	buf      []byte
	scratch  []byte
	items    []item
	twins    []*held
	// bodies counts the request bodies that a transport may still read.
	bodies sync.WaitGroup
	due    int64 // of a paced load: when it was to be sent, unix nanoseconds; 0 without
}

func newBatch(o *Options) *batch { return &batch{format: o.Format, capacity: o.Batch} }

// jsonOpen begins a JSON body.
const jsonOpen = `{"events":[`

func (b *batch) reset() {
	b.buf, b.items, b.due = b.buf[:0], b.items[:0], 0
	clear(b.twins)
	b.twins = b.twins[:0]
	if b.format == JSON {
		b.buf = append(b.buf, jsonOpen...)
	}
}

func (b *batch) full() bool { return len(b.items) >= b.capacity }

// event is the encoding of an event without its frame.
func (b *batch) event(i int) []byte { return b.buf[b.items[i].body:b.items[i].end] }

// add appends an encoded event.
func (b *batch) add(encoded []byte, out *oracle.Outcome, twin *held) {
	start := len(b.buf)
	switch b.format {
	case Protobuf:
		b.buf = append(b.buf, 1<<3|2)
		b.buf = binary.AppendUvarint(b.buf, uint64(len(encoded)))
	case JSON:
		if len(b.items) > 0 {
			b.buf = append(b.buf, ',')
		}
	}
	body := len(b.buf)
	b.buf = append(b.buf, encoded...)
	end := len(b.buf)
	if b.format == NDJSON {
		b.buf = append(b.buf, '\n')
	}
	b.items = append(b.items, item{start: start, end: end, body: body, outcome: *out})
	if twin != nil {
		b.twins = append(b.twins, twin)
	}
}

// payload is the request's body: the whole buffer, closed.
func (b *batch) payload() []byte {
	if b.format == JSON {
		b.buf = append(b.buf, "]}"...)
	}
	return b.buf
}

// rest is a body of the events that have no final answer yet, and their
// positions. It shares no memory with the batch.
func (b *batch) rest() (body []byte, positions []int) {
	if b.format == JSON {
		body = append(body, jsonOpen...)
	}
	for i := range b.items {
		it := &b.items[i]
		if it.settled {
			continue
		}
		if b.format == JSON && len(positions) > 0 {
			body = append(body, ',')
		}
		from := it.start
		if b.format == JSON {
			from = it.body
		}
		body = append(body, b.buf[from:it.end]...)
		if b.format == NDJSON {
			body = append(body, '\n')
		}
		positions = append(positions, i)
	}
	if b.format == JSON {
		body = append(body, "]}"...)
	}
	return body, positions
}

// compressor compresses bodies with reused memory. The zero value and "" leave
// them as they are.
type compressor struct {
	encoding string
	zs       *zstd.Encoder
	gz       *gzip.Writer
	out      sliceWriter
}

type sliceWriter struct{ b []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

func newCompressor(encoding string) (*compressor, error) {
	c := &compressor{encoding: encoding}
	var err error
	switch encoding {
	case "zstd":
		c.zs, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	case "gzip":
		c.gz, err = gzip.NewWriterLevel(nil, gzip.BestSpeed)
	}
	return c, err
}

// compress returns the body in the encoding; it lives until the next call.
func (c *compressor) compress(body []byte) ([]byte, error) {
	switch c.encoding {
	case "zstd":
		c.out.b = c.zs.EncodeAll(body, c.out.b[:0])
	case "gzip":
		c.out.b = c.out.b[:0]
		c.gz.Reset(&c.out)
		if _, err := c.gz.Write(body); err != nil {
			return nil, err
		}
		if err := c.gz.Close(); err != nil {
			return nil, err
		}
	default:
		return body, nil
	}
	return c.out.b, nil
}
