package otlp

import (
	"net/http"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
)

// fuzz decodes hostile bytes as each signal. What comes out must be either refused
// by validation or be stored as it is: never a panic, never a negative count.
func fuzz(f *testing.F, json bool) {
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		s := &signals[int(kind)%len(signals)]
		b, err := s.decode(body, json, &batch{tenant: "acme", gateways: &known, peer: "127.0.0.1"}, http.Header{})
		if err != nil {
			return
		}
		for i := range b.events {
			e := &b.events[i]
			for c, n := range e.Tokens {
				if n < 0 {
					t.Fatalf("class %d has %d tokens", c, n)
				}
			}
			if len(e.Tags) > event.MaxTags || e.ID == "" {
				t.Fatalf("%d tags, id %q", len(e.Tags), e.ID)
			}
			_ = e.Validate(false)
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add(uint8(0), []byte(`{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"x"}}]},"scopeSpans":[{"spans":[{"traceId":"0af7651916cd43dd8448eb211c80319c","spanId":"b7ad6b7169203331","startTimeUnixNano":"1","attributes":[{"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}},{"key":"gen_ai.response.model","value":{"stringValue":"m"}}]}]}]}]}`))
	f.Add(uint8(1), []byte(`{"resourceMetrics":[{"resource":{"attributes":[{"key":"tallystick.bill","value":{"stringValue":"metrics"}}]},"scopeMetrics":[{"metrics":[{"name":"claude_code.token.usage","sum":{"aggregationTemporality":1,"dataPoints":[{"asDouble":1e300,"attributes":[{"key":"type","value":{"stringValue":"input"}}]}]}}]}]}]}`))
	f.Add(uint8(2), []byte(`{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"gemini-cli"}}]},"scopeLogs":[{"logRecords":[{"eventName":"gemini_cli.api_response","attributes":[{"key":"input_token_count","value":{"doubleValue":"NaN"}},{"key":"total_token_count","value":{"stringValue":"-5"}}]}]}]}]}`))
	fuzz(f, true)
}

func FuzzProtobuf(f *testing.F) {
	f.Add(uint8(0), []byte("\x0a\x02\x12\x00"))
	fuzz(f, false)
}
