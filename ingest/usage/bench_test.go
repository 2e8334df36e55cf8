package usage

import (
	"bytes"
	"testing"
)

// BenchmarkResponse is a recorded chat body of typical size, read whole.
func BenchmarkResponse(b *testing.B) {
	var body []byte
	var x Exchange
	for _, e := range exchanges(b) {
		if e.x.Dialect == OpenAIChat && e.x.Framing == JSON && e.x.Status == 200 && len(e.body) > 1000 {
			body, x = e.body, e.x
			break
		}
	}
	x.Header = nil
	m := New(x)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		m.Reset(x)
		_, _ = m.Write(body)
		if r := m.Close(); r.Tokens.Total() == 0 {
			b.Fatal("no tokens")
		}
	}
}

// BenchmarkSSEChunk is one event of a stream, a write each.
func BenchmarkSSEChunk(b *testing.B) {
	m := New(Exchange{Dialect: OpenAIChat, Framing: SSE})
	event := []byte(chatHead)
	if !bytes.HasSuffix(event, []byte("\n\n")) {
		b.Fatal("not an event")
	}
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = m.Write(event)
	}
}
