package testenv

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// maxLine bounds one line of the pack's JSON lines.
const maxLine = 64 << 20

// Lines reads a file of lines of the data pack, which may be compressed.
func Lines(t testing.TB, name string) (all [][]byte) {
	t.Helper()
	f, err := os.Open(Data(t, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".zst") {
		d, err := zstd.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		r = d
	}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		all = append(all, bytes.Clone(s.Bytes()))
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	return all
}

// RecordedExchanges is how many recorded calls the manifest of the pack counts.
const RecordedExchanges = 1964

// Exchange is one recorded call of a provider.
type Exchange struct {
	N                  int // which, from 0
	Host, Method, Path string
	Status             int
	Stream             bool
	Encoding           string            // json, sse, base64_eventstream or text
	Headers            map[string]string `json:"response_headers"`
	Request            json.RawMessage
	Body               []byte `json:"-"` // of the response, as it went over the wire
}

// ContentType is what the response's encoding is called by HTTP.
func (e *Exchange) ContentType() string {
	return map[string]string{
		"json": "application/json", "sse": "text/event-stream", "base64_eventstream": "application/vnd.amazon.eventstream", "text": "text/plain",
	}[e.Encoding]
}

// Exchanges reads all recorded calls of the data pack.
func Exchanges(t testing.TB) []Exchange {
	t.Helper()
	lines := Lines(t, "responses/provider_exchanges_pydantic_ai.jsonl.zst")
	all := make([]Exchange, len(lines))
	for n, line := range lines {
		e := &all[n]
		response := struct {
			*Exchange
			Response json.RawMessage
		}{Exchange: e}
		if err := json.Unmarshal(line, &response); err != nil {
			t.Fatalf("exchange %d: %v", n, err)
		}
		body, err := wireBody(e.Encoding, response.Response)
		if err != nil {
			t.Fatalf("exchange %d: %v", n, err)
		}
		e.N, e.Method, e.Body = n, strings.ToUpper(e.Method), body
	}
	if len(all) != RecordedExchanges {
		t.Fatalf("%d exchanges, the manifest has %d", len(all), RecordedExchanges)
	}
	return all
}

// wireBody is a response as it went over the wire; what is no JSON is in a string.
func wireBody(encoding string, response json.RawMessage) ([]byte, error) {
	if encoding == "json" {
		return response, nil
	}
	var text string
	if err := json.Unmarshal(response, &text); err != nil {
		return nil, err
	}
	if encoding == "base64_eventstream" {
		return base64.StdEncoding.DecodeString(text)
	}
	return []byte(text), nil
}
