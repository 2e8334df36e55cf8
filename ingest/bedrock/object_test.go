package bedrock

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func TestPlain(t *testing.T) {
	text := bytes.Repeat([]byte("a log file "), 20_000)
	var zipped bytes.Buffer
	g := gzip.NewWriter(&zipped)
	for _, half := range [][]byte{text[:100_000], text[100_000:]} { // two members, as concatenated files have
		_, _ = g.Write(half)
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		g.Reset(&zipped)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := z.EncodeAll(text, nil)
	broke := errors.New("the connection broke")
	for _, c := range []struct {
		name string
		src  io.Reader
		want error
	}{
		{"as it is", bytes.NewReader(text), nil},
		{"gzip", iotest.OneByteReader(bytes.NewReader(zipped.Bytes())), nil},
		{"zstd", bytes.NewReader(frame), nil},
		{"empty", bytes.NewReader(nil), nil},
		{"cut gzip", bytes.NewReader(zipped.Bytes()[:200]), ErrDamaged},
		{"cut header", bytes.NewReader(zipped.Bytes()[:5]), ErrDamaged},
		{"cut zstd", bytes.NewReader(frame[:len(frame)-9]), ErrDamaged},
		{"a broken connection", io.MultiReader(bytes.NewReader(zipped.Bytes()[:200]), iotest.ErrReader(broke)), broke},
		{"one that broke at once", iotest.ErrReader(broke), broke},
		{"one that was cut", io.MultiReader(bytes.NewReader(text), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
	} {
		var got []byte
		r, err := plain(c.src)
		if err == nil {
			got, err = io.ReadAll(r)
			_ = r.Close()
		}
		if !errors.Is(err, c.want) || c.want != ErrDamaged && errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if c.want == nil && c.name != "empty" && !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes, want %d", c.name, len(got), len(text))
		}
	}
}
