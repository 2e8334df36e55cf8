package evidence

import (
	"archive/zip"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"time"
)

// zipWriter writes the members of a package one after the other, as they are:
// hashes do not compress, and a reader can check them in place.
type zipWriter struct {
	z     *zip.Writer
	at    time.Time
	files []File

	// The member that is being written.
	name   string
	out    io.Writer
	digest hash.Hash
	bytes  int64
}

func newZip(w io.Writer, at time.Time) *zipWriter {
	return &zipWriter{z: zip.NewWriter(w), at: at}
}

// begin begins a member and returns what to write it to.
func (z *zipWriter) begin(name string) (io.Writer, error) {
	h := &zip.FileHeader{Name: name, Method: zip.Store, Modified: z.at.UTC()}
	h.SetMode(0o644)
	w, err := z.z.CreateHeader(h)
	if err != nil {
		return nil, fmt.Errorf("evidence: %s: %w", name, err)
	}
	z.name, z.out, z.digest, z.bytes = name, w, sha256.New(), 0
	return z, nil
}

// Write writes to the member that was begun.
func (z *zipWriter) Write(b []byte) (int, error) {
	n, err := z.out.Write(b)
	z.digest.Write(b[:n])
	z.bytes += int64(n)
	return n, err
}

// end ends the member and keeps its digest.
func (z *zipWriter) end() error {
	z.files = append(z.files, File{z.name, z.bytes, hex.EncodeToString(z.digest.Sum(nil))})
	return z.z.Flush()
}

func (z *zipWriter) add(name string, content []byte) error {
	if _, err := z.begin(name); err != nil {
		return err
	}
	if _, err := z.Write(content); err != nil {
		return err
	}
	return z.end()
}

func (z *zipWriter) addJSON(name string, v any) error {
	w, err := z.begin(name)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(w)
	enc := json.NewEncoder(buffered)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return z.end()
}

func (z *zipWriter) close() error { return z.z.Close() }
