package usage

import (
	"testing"

	"github.com/tallystick/tallystick/internal/tokens"
)

const (
	backHead  = `{"id":"resp_1","object":"response","created_at":1770757617,"background":true,"model":"gpt-4o-2024-08-06",`
	backUsage = `"usage":{"input_tokens":15,"input_tokens_details":{"cached_tokens":0},"output_tokens":9,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":24}}`
	backDone  = backHead + `"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"2 + 2 equals 4."}]}],` + backUsage
)

// A background response is pending until it is over, and then due with the same usage
// in every way of reading it; a response that was made while its client waited is not.
func TestBackground(t *testing.T) {
	post, get := Exchange{Dialect: OpenAIResponses, PromptTokens: 7}, Exchange{Dialect: OpenAIResponses, Repeated: true}
	stream := func(x Exchange) Exchange { x.Framing = SSE; return x }
	queued := backHead + `"status":"queued","output":[],"usage":null}`
	created := `{"type":"response.created","response":` + queued + `}`
	delta := `{"type":"response.output_text.delta","delta":"2 + 2"}`
	cancelled := backHead + `"status":"cancelled","output":[],"usage":null}`
	partial := backHead + `"status":"cancelled","output":[{"type":"message","content":[{"type":"output_text","text":"hello world"}]}],"usage":null}`
	for _, c := range []struct {
		name    string
		x       Exchange
		body    string
		due     bool
		input   int64
		output  int64
		reasons Reasons
	}{
		{"queued", post, queued, false, 0, 0, set(Pending)},
		{"asked too early", get, queued, false, 0, 0, set(Pending)},
		{"over", get, backDone, true, 15, 9, 0},
		{"over, in the making stream", stream(post), sse(created, delta, `{"type":"response.completed","response":`+backDone+`}`), true, 15, 9, 0},
		{"over, in a later stream", stream(get), sse(created, delta, `{"type":"response.completed","response":`+backDone+`}`), true, 15, 9, 0},
		{"the making stream breaks", stream(post), sse(created, delta), false, 0, 0, set(Pending, CutOff)},
		{"cancelled at once", get, cancelled, false, 0, 0, set(NoUsage)},
		{"cancelled midway", get, partial, true, 0, 2, set(NoUsage, Counted, Estimate)},
		{"not in the background", get, `{"id":"r","background":false,"model":"m","status":"completed",` + backUsage, false, 15, 9, set(Repeat)},
	} {
		r := read(c.x, []byte(c.body))
		if r.Due() != c.due || r.Tokens[tokens.Input] != c.input || r.Tokens[tokens.Output] != c.output || r.Reasons != c.reasons {
			t.Errorf("%s: due %v, %v (%s), want %v, %d and %d (%s)", c.name, r.Due(), r.Tokens, r.Reasons, c.due, c.input, c.output, c.reasons)
		}
		if c.due && (r.ID != "resp_1" || r.Reported[Created] != 1770757617) {
			t.Errorf("%s: %q of %d", c.name, r.ID, r.Reported[Created])
		}
	}
}

// The recorded background exchanges state each response's usage once or more, always
// the same, and never where it was only queued.
func TestRecordedBackground(t *testing.T) {
	used, pending := map[string]tokens.Vector{}, 0
	for _, e := range exchanges(t) {
		r := read(e.x, e.body)
		if !r.Background() {
			continue
		}
		if before, again := used[r.ID]; r.Due() && again && before != r.Tokens {
			t.Errorf("exchange %d: %v, before %v", e.n, r.Tokens, before)
		}
		switch {
		case r.Due():
			used[r.ID] = r.Tokens
		case r.Reasons.Has(Pending) && r.Tokens.Total() == 0:
			pending++
		default:
			t.Errorf("exchange %d: neither due nor pending: %v (%s)", e.n, r.Tokens, r.Reasons)
		}
	}
	t.Logf("background responses with usage: %d, readings without: %d", len(used), pending)
	if len(used) < 5 || pending < 5 {
		t.Errorf("%d with usage, %d without", len(used), pending)
	}
}
