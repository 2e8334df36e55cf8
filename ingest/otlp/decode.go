package otlp

import (
	"encoding/base64"
	"encoding/hex"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	coltracepb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"

	"github.com/tallystick/tallystick/ingest"
)

// unmarshal reads a body. Its errors say nothing of what is in it.
func unmarshal(body []byte, json bool, m proto.Message) error {
	if !json {
		if err := proto.Unmarshal(body, m); err != nil {
			return ingest.Malformed("the body is no protobuf message of its kind")
		}
		return nil
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, m); err != nil {
		return ingest.Malformed("the body is no JSON message of its kind")
	}
	if t, ok := m.(*coltracepb.ExportTraceServiceRequest); ok {
		for _, rs := range t.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					s.TraceId = hexID(s.GetTraceId(), 16)
					s.SpanId = hexID(s.GetSpanId(), 8)
					s.ParentSpanId = hexID(s.GetParentSpanId(), 8)
				}
			}
		}
	}
	return nil
}

// hexID undoes what protojson made of an id. OTLP's JSON writes ids in hexadecimal
// digits where protobuf's has base64; the digits are letters of base64 too, and what
// they decode to encodes to the same digits again. An id in base64 is left as it is,
// and what is neither is none.
func hexID(id []byte, size int) []byte {
	if len(id) == size {
		return id
	}
	decoded, err := hex.DecodeString(strings.ToLower(base64.StdEncoding.EncodeToString(id)))
	if err != nil || len(decoded) != size {
		return nil
	}
	return decoded
}
