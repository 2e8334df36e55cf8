package bedrock

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd frame may ask for, in bytes.
const maxWindow = 8 << 20

// source notes the stream's own errors, so that a cut connection is not taken
// for a damaged object.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// plain undoes gzip or zstd, by the object's first bytes and not by its name.
// Errors of reading are ErrDamaged, or the stream's own. The caller closes it.
func plain(r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	b := bufio.NewReaderSize(src, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	p := &plainReader{src: src, r: b, close: func() {}}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, p.judge(err)
		}
		p.r = z
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, p.judge(err)
		}
		p.r, p.close = z, z.Close
	}
	return p, nil
}

type plainReader struct {
	src   *source
	r     io.Reader
	close func()
}

// Read implements io.Reader.
func (p *plainReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = p.judge(err)
	}
	return n, err
}

// Close implements io.Closer.
func (p *plainReader) Close() error { p.close(); return nil }

// judge tells a stream that broke off from an object that is damaged.
func (p *plainReader) judge(err error) error {
	if p.src.err != nil {
		return p.src.err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
