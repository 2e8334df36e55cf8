package http1

import (
	"errors"
	"io"
)

// ErrHeaders are headers that are longer than they may be.
var ErrHeaders = errors.New("http1: the headers are too large")

// Limited reads from a connection, and while headers are read no more than they may be.
type Limited struct {
	From io.Reader
	// Left is how many bytes may yet be read, until ErrHeaders; negative is no bound.
	Left int64
}

// Read implements io.Reader.
func (l *Limited) Read(p []byte) (int, error) {
	if l.Left == 0 {
		return 0, ErrHeaders
	}
	if l.Left > 0 && int64(len(p)) > l.Left {
		p = p[:l.Left]
	}
	n, err := l.From.Read(p)
	if l.Left > 0 {
		l.Left -= int64(n)
	}
	return n, err
}
