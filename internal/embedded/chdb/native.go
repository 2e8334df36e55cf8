package chdb

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// maxFrameBytes is the most that one compressed frame carries, as in
// ClickHouse's own server.
const maxFrameBytes = 1 << 20

// nativeContext is what column codecs must know about the server. Without a
// time zone the DateTime codec dereferences nil.
var nativeContext = column.ServerContext{Timezone: time.UTC}

// recode turns Native blocks of revision 0, which is all the engine writes, into
// blocks of the revision that the client announced; clickhouse-go always
// announces one and cannot read revision 0. Bytes are returned in out's buffer.
func recode(blocks []byte, revision uint64, out *chproto.Buffer) error {
	if revision == 0 {
		out.Buf = append(out.Buf, blocks...)
		return nil
	}
	// The codec returns the same io.EOF between blocks and inside one. With an
	// empty block (no columns, no rows) at the end, any io.EOF is a fault.
	reader := chproto.NewReader(io.MultiReader(bytes.NewReader(blocks), strings.NewReader("\x00\x00")))
	for {
		block := proto.Block{ServerContext: &nativeContext}
		if err := block.Decode(reader, 0); err != nil {
			return fmt.Errorf("chdb: decode a block of the engine: %w", err)
		}
		if len(block.Columns) == 0 {
			return nil
		}
		if err := block.Encode(out, revision); err != nil {
			return fmt.Errorf("chdb: encode a block for the client: %w", err)
		}
	}
}

// frames cuts data into ClickHouse's compressed frames. A nil writer leaves data
// as it is.
func frames(w *compress.Writer, data []byte, send func([]byte) error) error {
	if w == nil {
		return send(data)
	}
	for len(data) > 0 {
		n := min(len(data), maxFrameBytes)
		if err := w.Compress(data[:n]); err != nil {
			return fmt.Errorf("chdb: compress a block: %w", err)
		}
		if err := send(w.Data); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// midStreamTag marks the error that follows a result already begun.
const midStreamTag = "tallystickchdb00"

// maxMidStreamText keeps the whole frame within one read buffer of the client.
const maxMidStreamText = 3 << 10

// midStreamError is how ClickHouse's server reports a failure after it has sent
// its status: a framed exception that no block decoder can take for data. In a
// compressed stream it travels in a frame stored without compression.
func midStreamError(text string, compressed bool) []byte {
	if len(text) > maxMidStreamText {
		text = text[:maxMidStreamText]
	}
	frame := fmt.Appendf(nil, "\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n", midStreamTag, text, len(text)+1, midStreamTag)
	if !compressed {
		return frame
	}
	w := compress.NewWriter(compress.LevelZero, compress.None)
	if err := w.Compress(frame); err != nil {
		return frame
	}
	return w.Data
}
