package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Content encodings that a body may have.
const (
	encodingIdentity = ""
	encodingGzip     = "gzip"
	encodingZstd     = "zstd"
)

// maxZstdWindow bounds the memory that a zstd frame may ask for.
const maxZstdWindow = 8 << 20

// body is a request's body in memory, read and decompressed with reused buffers.
type body struct {
	buf   bytes.Buffer
	limit io.LimitedReader
	gz    *gzip.Reader
	zs    *zstd.Decoder
}

// read takes all of src, decompressing it as it comes, so that never more than
// max bytes of it are held, at most MaxDoorBytes. The bytes live until the next read.
// Errors: errTooLarge, errEncoding, or what src says.
func (b *body) read(src io.Reader, encoding string, sizeHint, max int64) ([]byte, error) {
	b.buf.Reset()
	if sizeHint > 0 && sizeHint <= max {
		b.buf.Grow(int(sizeHint) + bytes.MinRead)
	}
	sent := &countingReader{r: src, max: max}
	plain, err := b.decoder(sent, encoding)
	if err == nil {
		b.limit = io.LimitedReader{R: plain, N: max + 1}
		_, err = b.buf.ReadFrom(&b.limit)
	}
	b.limit.R = nil
	switch {
	case sent.err != nil:
		return nil, sent.err
	case sent.n > max || int64(b.buf.Len()) > max || errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, errTooLarge
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errEncoding, err)
	}
	return b.buf.Bytes(), nil
}

func (b *body) decoder(src io.Reader, encoding string) (io.Reader, error) {
	switch encoding {
	case encodingIdentity:
		return src, nil
	case encodingGzip:
		if b.gz == nil {
			b.gz = new(gzip.Reader)
		}
		return b.gz, b.gz.Reset(src)
	default:
		if b.zs == nil {
			zs, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(MaxDoorBytes+1))
			if err != nil {
				return nil, err
			}
			b.zs = zs
		}
		return b.zs, b.zs.Reset(src)
	}
}

// release drops what the body refers to. A buffer of ordinary size is kept.
func (b *body) release() {
	if b.zs != nil {
		b.zs.Reset(nil) //nolint:errcheck // nil only drops the reader
	}
	if b.buf.Cap() > 2*MaxBodyBytes {
		b.buf = bytes.Buffer{}
	}
}

// countingReader bounds what is read of a body as sent, and keeps the
// transport's own error apart from those of a decoder above it.
type countingReader struct {
	r      io.Reader
	n, max int64
	err    error
}

func (c *countingReader) Read(p []byte) (int, error) {
	if c.n > c.max {
		return 0, errTooLarge
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
