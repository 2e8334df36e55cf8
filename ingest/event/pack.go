package event

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
)

const (
	// maxPlainContent is the longest content of a control record that stands in
	// it as it is: a broker takes records of 1 MiB by default.
	maxPlainContent = 1_000_000
	// MaxControlContent bounds the content of a control record. One that unpacks
	// to more is malformed.
	MaxControlContent = 16 << 20
)

var errContent = errors.New("event: not the packed content of a control record")

// compress packs a content. Its bytes are of no consequence: hashes and entries
// are of what decompress makes of them.
func compress(content []byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // the level is a good one, and memory does not fail to write
	}
	return b.Bytes()
}

// decompress gives one member of gzip, whole and with nothing behind it.
func decompress(packed []byte) ([]byte, error) {
	in := bytes.NewReader(packed)
	r, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	content, err := io.ReadAll(io.LimitReader(r, MaxControlContent+1))
	if err != nil {
		return nil, err
	}
	if len(content) > MaxControlContent || in.Len() > 0 {
		return nil, errContent
	}
	return content, nil
}
