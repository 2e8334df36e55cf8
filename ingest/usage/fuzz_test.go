package usage

import (
	"testing"

	"github.com/tallystick/tallystick/internal/tokens"
)

// fuzz feeds hostile bytes in one piece and byte by byte: nothing panics, the
// two agree, no count is negative, and an unflagged total adds up.
func fuzz(f *testing.F, framing Framing, dialects ...Dialect) {
	for _, s := range samples() {
		if s.x.Framing == framing {
			f.Add([]byte(s.body))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, d := range dialects {
			x := Exchange{Dialect: d, Framing: framing}
			r := read(x, body)
			if again := cutAt(x, body, func(int) int { return 1 }); again != r {
				t.Fatalf("%s: %+v byte by byte, %+v in one piece", d, again, r)
			}
			for c, n := range r.Tokens {
				if n < 0 {
					t.Fatalf("%s: %d %s tokens", d, n, tokens.Class(c))
				}
			}
			if r.Flags == 0 && r.Reported[Total] > 0 && r.Tokens.Total() != r.Reported[Total] {
				t.Fatalf("%s: %v of %v", d, r.Tokens, r.Reported)
			}
		}
	})
}

func FuzzJSON(f *testing.F) { fuzz(f, JSON, OpenAIChat, OpenAIBatch, Gemini, Anthropic) }

func FuzzSSE(f *testing.F) { fuzz(f, SSE, OpenAIChat, OpenAIResponses, Anthropic, Gemini, Cohere) }

func FuzzEventStream(f *testing.F) { fuzz(f, EventStream, BedrockConverse, BedrockInvoke) }
