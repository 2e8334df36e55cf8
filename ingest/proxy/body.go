package proxy

import (
	"errors"
	"io"
	"sync"
)

var errTooLarge = errors.New("proxy: body is too large")

// buffer holds a request's body in memory that is used again.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// free gives the memory back.
func (b *buffer) free() {
	if cap(b.b) > maxPooledBody {
		b.b = nil
	}
	buffers.Put(b)
}

// fill reads src to its end. length is what it says of itself, or -1.
func (b *buffer) fill(src io.Reader, length, limit int64) error {
	if int64(cap(b.b)) < length {
		b.b = make([]byte, 0, length)
	}
	for {
		if len(b.b) == cap(b.b) && length >= 0 {
			return atEnd(src)
		}
		if len(b.b) == cap(b.b) {
			b.b = append(b.b, 0)[:len(b.b)]
		}
		n, err := src.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		switch {
		case int64(len(b.b)) > limit:
			return errTooLarge
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// atEnd wants src to end here: until its end was seen a server's connection is not
// kept.
func atEnd(src io.Reader) error {
	var one [1]byte
	for {
		n, err := src.Read(one[:])
		switch {
		case n > 0:
			return errTooLarge
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// sent is a request's body while a RoundTripper has it, which may read and close it
// from another goroutine, and after the response has begun. Once it is closed its
// memory is another request's, and whoever still reads finds the end: no byte of one
// call can get into another.
type sent struct {
	mu  sync.Mutex // protects what follows
	buf *buffer
	at  int
}

// Read implements io.Reader.
func (s *sent) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf == nil || s.at == len(s.buf.b) {
		return 0, io.EOF
	}
	n := copy(p, s.buf.b[s.at:])
	s.at += n
	return n, nil
}

// Close implements io.Closer, and may be called more than once.
func (s *sent) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf != nil {
		s.buf.free()
		s.buf = nil
	}
	return nil
}
