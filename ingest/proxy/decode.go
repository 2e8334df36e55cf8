package proxy

import (
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// decoder undoes the content encoding of the copy that is metered. Requests ask for
// none, so this is for providers that compress all the same.
type decoder struct {
	in   *io.PipeWriter
	done chan struct{}
}

// newDecoder feeds the meter from compressed bytes; nil where there is nothing to
// undo. Of an encoding that it does not know the meter reads nothing, and the usage
// is estimated.
func newDecoder(encoding string, meter io.Writer) *decoder {
	if encoding == "" || encoding == "identity" {
		return nil
	}
	r, w := io.Pipe()
	d := &decoder{in: w, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		if plain, err := decompress(encoding, r); err == nil {
			// What was read until an error stays metered; that it was cut shows.
			_, _ = io.Copy(meter, plain)
			plain.Close()
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	return d
}

func decompress(encoding string, r io.Reader) (io.ReadCloser, error) {
	switch encoding {
	case "gzip", "x-gzip":
		return gzip.NewReader(r)
	case "deflate":
		return zlib.NewReader(r)
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, errEncoding
}

// write passes on compressed bytes.
func (d *decoder) write(b []byte) {
	_, _ = d.in.Write(b) // the reader reads to the end
}

// close waits until the meter has everything.
func (d *decoder) close() {
	_ = d.in.Close()
	<-d.done
}
