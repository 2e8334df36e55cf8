package usage

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/tokens"
)

// frame is an AWS event-stream frame.
func frame(event, payload string) string {
	header := func(k, v string) string {
		return string([]byte{byte(len(k))}) + k + "\x07" + string(binary.BigEndian.AppendUint16(nil, uint16(len(v)))) + v
	}
	h := header(":event-type", event) + header(":content-type", "application/json") + header(":message-type", "event")
	b := binary.BigEndian.AppendUint32(nil, uint32(16+len(h)+len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, h...), payload...)
	return string(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

func chunk(inner string) string {
	return frame("chunk", `{"bytes":"`+base64.StdEncoding.EncodeToString([]byte(inner))+`","p":"abc"}`)
}

// sample is a response with what it must give.
type sample struct {
	name    string
	x       Exchange
	body    string
	want    map[tokens.Class]int64
	reasons Reasons
	finish  string
	model   string
}

func set(r ...Reason) (s Reasons) {
	for _, x := range r {
		s.add(x)
	}
	return s
}

const (
	chatUsage = `"usage":{"prompt_tokens":100,"completion_tokens":30,"total_tokens":130,"prompt_tokens_details":{"cached_tokens":40,"audio_tokens":10},"completion_tokens_details":{"reasoning_tokens":20}}`
	chatHead  = `data: {"id":"c1","model":"gpt-x","choices":[{"index":0,"delta":{"role":"assistant","content":"Hello you, and so on: twenty"},"finish_reason":null}]}` + "\n\n"
	chatStop  = `data: {"id":"c1","model":"gpt-x","choices":[{"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	claude    = `{"type":"message_start","message":{"id":"m1","model":"claude-x","usage":{"input_tokens":10,"cache_read_input_tokens":5,"cache_creation_input_tokens":7,"cache_creation":{"ephemeral_5m_input_tokens":3,"ephemeral_1h_input_tokens":4},"output_tokens":1}}}`
	claudeMid = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"0123456789012345678901234567890123456789"}}`
	claudeEnd = `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":50,"output_tokens_details":{"thinking_tokens":20}}}`
)

var claudeTokens = map[tokens.Class]int64{tokens.Input: 10, tokens.CacheRead: 5, tokens.CacheWrite5m: 3, tokens.CacheWrite1h: 4, tokens.Output: 30, tokens.Reasoning: 20}

// sse is a stream of events.
func sse(docs ...string) (s string) {
	for _, d := range docs {
		s += "event: x\r\ndata: " + d + "\r\n\r\n"
	}
	return s
}

func samples() []sample {
	chatTokens := map[tokens.Class]int64{tokens.Input: 50, tokens.CacheRead: 40, tokens.AudioInput: 10, tokens.Output: 10, tokens.Reasoning: 20}
	return []sample{
		{"chat body", Exchange{Dialect: OpenAIChat}, `{"id":"c","model":"gpt-x","choices":[{"finish_reason":"stop"}],` + chatUsage + `}`, chatTokens, 0, "stop", "gpt-x"},
		{"chat stream", Exchange{Dialect: OpenAIChat, Framing: SSE}, ": hello\n\n" + chatHead + chatStop + `data: {"choices":[],` + chatUsage + "}\n\ndata: [DONE]\n\n", chatTokens, 0, "stop", "gpt-x"},
		{"chat stream without usage", Exchange{Dialect: OpenAIChat, Framing: SSE, PromptTokens: 9}, chatHead + chatStop + "data: [DONE]\n\n", map[tokens.Class]int64{tokens.Input: 9, tokens.Output: 7}, set(NoUsage, Estimate), "stop", "gpt-x"},
		{"chat stream cut off", Exchange{Dialect: Compatible, Framing: SSE, PromptTokens: 9}, chatHead + `data: {"id":"c1","mo`, map[tokens.Class]int64{tokens.Input: 9, tokens.Output: 7}, set(NoUsage, Estimate, CutOff), "", "gpt-x"},
		{"groq's own usage", Exchange{Dialect: Groq, Framing: SSE}, chatHead + `data: {"x_groq":{"id":"r","usage":{"prompt_tokens":4,"completion_tokens":5,"total_tokens":9}},"choices":[{"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n", map[tokens.Class]int64{tokens.Input: 4, tokens.Output: 5}, 0, "stop", "gpt-x"},
		{"xai reasoning beside", Exchange{Dialect: XAI}, `{"model":"grok","usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":20,"completion_tokens_details":{"reasoning_tokens":7}}}`, map[tokens.Class]int64{tokens.Input: 10, tokens.Output: 3, tokens.Reasoning: 7}, 0, "", "grok"},
		{"deepseek hit and miss", Exchange{Dialect: DeepSeek}, `{"model":"d","usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":2}}`, map[tokens.Class]int64{tokens.Input: 2, tokens.CacheRead: 8, tokens.Output: 3}, 0, "", "d"},
		{"anthropic stream", Exchange{Dialect: Anthropic, Framing: SSE}, sse(claude, claudeMid, claudeEnd, `{"type":"message_stop"}`), claudeTokens, 0, "end_turn", "claude-x"},
		{"anthropic stream cut off", Exchange{Dialect: Anthropic, Framing: SSE}, sse(claude, claudeMid), map[tokens.Class]int64{tokens.Input: 10, tokens.CacheRead: 5, tokens.CacheWrite5m: 3, tokens.CacheWrite1h: 4, tokens.Output: 10}, set(CutOff, Estimate), "", "claude-x"},
		{"anthropic error in a stream", Exchange{Dialect: Anthropic, Framing: SSE}, sse(claude, `{"type":"error","error":{"type":"overloaded_error","message":"x y"}}`), map[tokens.Class]int64{tokens.Input: 10, tokens.CacheRead: 5, tokens.CacheWrite5m: 3, tokens.CacheWrite1h: 4, tokens.Output: 1}, set(StreamError), "", "claude-x"},
		{"bedrock native stream", Exchange{Dialect: BedrockInvoke, Framing: EventStream}, chunk(claude) + chunk(claudeMid) + chunk(claudeEnd) + chunk(`{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":10,"outputTokenCount":50,"cacheReadInputTokenCount":5,"cacheWriteInputTokenCount":7}}`), claudeTokens, 0, "end_turn", "claude-x"},
		{"converse names cache counts twice", Exchange{Dialect: BedrockConverse, Framing: EventStream, Model: "m"}, frame("messageStop", `{"stopReason":"end_turn"}`) + frame("metadata", `{"usage":{"inputTokens":3,"outputTokens":4,"totalTokens":16,"cacheReadInputTokens":4,"cacheReadInputTokenCount":4,"cacheWriteInputTokens":5,"cacheWriteInputTokenCount":5}}`), map[tokens.Class]int64{tokens.Input: 3, tokens.CacheRead: 4, tokens.CacheWrite5m: 5, tokens.Output: 4}, 0, "end_turn", "m"},
		{"converse names differ", Exchange{Dialect: BedrockConverse}, `{"usage":{"inputTokens":3,"outputTokens":4,"cacheReadInputTokens":4,"cacheReadInputTokenCount":6}}`, map[tokens.Class]int64{tokens.Input: 3, tokens.CacheRead: 6, tokens.Output: 4}, set(StatedTwice), "", ""},
		{"converse damaged frame", Exchange{Dialect: BedrockConverse, Framing: EventStream}, frame("messageStop", `{"stopReason":"end_turn"}`) + strings.Replace(frame("metadata", `{"usage":{"inputTokens":3,"outputTokens":4}}`), ":3", ":9", 1), nil, set(Malformed, NoUsage), "end_turn", ""},
		{"gemini list of documents", Exchange{Dialect: Gemini}, `[{"usageMetadata":{"promptTokenCount":5,"totalTokenCount":5}},` + "\n" + `{"candidates":[{"finishReason":"STOP"}],"modelVersion":"g","usageMetadata":{"promptTokenCount":5,"cachedContentTokenCount":2,"toolUsePromptTokenCount":3,"candidatesTokenCount":4,"thoughtsTokenCount":6,"totalTokenCount":18}}]`, map[tokens.Class]int64{tokens.Input: 6, tokens.CacheRead: 2, tokens.Output: 4, tokens.Reasoning: 6}, 0, "STOP", "g"},
		{"cohere billed", Exchange{Dialect: Cohere, Framing: SSE}, sse(`{"type":"message-start","id":"i"}`, `{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":2,"output_tokens":3},"tokens":{"input_tokens":20,"output_tokens":3}}}}`), map[tokens.Class]int64{tokens.Input: 2, tokens.Output: 3}, 0, "COMPLETE", ""},
		{"images", Exchange{Dialect: OpenAIImages}, `{"created":1,"usage":{"input_tokens":50,"output_tokens":40,"total_tokens":90,"input_tokens_details":{"text_tokens":10,"image_tokens":40},"output_tokens_details":{"image_tokens":40,"text_tokens":0}}}`, map[tokens.Class]int64{tokens.Input: 10, tokens.ImageInput: 40, tokens.ImageOutput: 40}, 0, "", ""},
		{"batch", Exchange{Dialect: OpenAIBatch}, strings.Repeat(`{"custom_id":"a","response":{"status_code":200,"body":{"model":"gpt-x",`+chatUsage+"}}}\n", 3), map[tokens.Class]int64{tokens.Input: 150, tokens.CacheRead: 120, tokens.AudioInput: 30, tokens.Output: 30, tokens.Reasoning: 60}, 0, "", "gpt-x"},
		{"error", Exchange{Dialect: OpenAIChat, Status: 429, Model: "m"}, `{"error":{"type":"tokens","code":"rate_limit_exceeded"},` + chatUsage + `}`, nil, set(Refused), "", "m"},
		{"counts that are none", Exchange{Dialect: OpenAIChat}, `{"usage":{"prompt_tokens":-4,"completion_tokens":1e3,"total_tokens":99999999999999999999}}`, nil, set(BadNumber), "", ""},
		{"more cached than prompt", Exchange{Dialect: OpenAIChat}, `{"usage":{"prompt_tokens":4,"completion_tokens":1,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}}`, map[tokens.Class]int64{tokens.CacheRead: 4, tokens.Output: 1}, set(PartsExceed), "", ""},
		{"body cut off", Exchange{Dialect: OpenAIChat, PromptTokens: 3}, `{"model":"gpt-x","choices":[{"message":{"content":"12345678`, map[tokens.Class]int64{tokens.Input: 3, tokens.Output: 2}, set(NoUsage, CutOff, Estimate), "", "gpt-x"},
		{"vertex embeddings", Exchange{Dialect: VertexPredict, Model: "text-embedding-005"}, `{"predictions":[{"embeddings":{"statistics":{"truncated":false,"token_count":6},"values":[0.1,-2e-3]}},{"embeddings":{"values":[1],"statistics":{"token_count":6,"truncated":true}}},{"embeddings":{"statistics":{"tokenCount":3}}}],"metadata":{"billableCharacterCount":40}}`, map[tokens.Class]int64{tokens.Input: 15}, 0, "", "text-embedding-005"},
		{"vertex embeddings cut off", Exchange{Dialect: VertexPredict, Model: "e", PromptTokens: 40}, `{"predictions":[{"embeddings":{"statistics":{"token_count":6}}},{"embed`, map[tokens.Class]int64{tokens.Input: 6}, set(CutOff), "", "e"},
		{"vertex images", Exchange{Dialect: VertexPredict, Model: "imagen-4"}, `{"predictions":[{"mimeType":"image/png","bytesBase64Encoded":"AAAA"}]}`, nil, set(NoUsage), "", "imagen-4"},
		{"speech", Exchange{Dialect: OpenAIAudio, Framing: Opaque, Model: "tts", PromptTokens: 6}, "\xff\xfb\x00{", map[tokens.Class]int64{tokens.Input: 6}, set(NoUsage, Estimate), "", "tts"},
		{"unmetered", Exchange{}, `{"usage":{"total_tokens":4}}`, nil, set(NotMetered), "", ""},
	}
}

func TestSamples(t *testing.T) {
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			r := read(s.x, []byte(s.body))
			var want tokens.Vector
			for c, n := range s.want {
				want[c] = n
			}
			if r.Tokens != want || r.Reasons != s.reasons || r.Finish != s.finish || r.Model != s.model {
				t.Errorf("%v (%s) finish %q model %q, want %v (%s) %q %q", r.Tokens, r.Reasons, r.Finish, r.Model, want, s.reasons, s.finish, s.model)
			}
		})
	}
}

// cutAt reads a body in pieces that next gives the sizes of.
func cutAt(x Exchange, body []byte, next func(left int) int) Result {
	m := New(x)
	for len(body) > 0 {
		n := min(max(next(len(body)), 1), len(body))
		_, _ = m.Write(body[:n])
		body = body[n:]
	}
	return m.Close()
}

// TestAnySplit is that the chunk boundaries never matter: every sample and
// every recorded stream byte by byte, and samples cut at random.
func TestAnySplit(t *testing.T) {
	all := samples()
	for _, s := range all {
		if got, want := cutAt(s.x, []byte(s.body), func(int) int { return 1 }), read(s.x, []byte(s.body)); got != want {
			t.Errorf("%s: %+v, in one piece %+v", s.name, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(all).Draw(t, "sample")
		body := []byte(s.body)[:rapid.IntRange(0, len(s.body)).Draw(t, "until")]
		got := cutAt(s.x, body, func(left int) int { return rapid.IntRange(1, left).Draw(t, "n") })
		if want := read(s.x, body); got != want {
			t.Fatalf("%s: %+v, in one piece %+v", s.name, got, want)
		}
	})
	for _, e := range exchanges(t) {
		if e.x.Framing == JSON && e.n%20 != 0 {
			continue
		}
		for _, size := range []int{1, 7, 1000} {
			if got, want := cutAt(e.x, e.body, func(int) int { return size }), read(e.x, e.body); got != want {
				t.Errorf("exchange %d in pieces of %d: %+v, want %+v", e.n, size, got, want)
			}
		}
	}
}

// TestNoTextSurvives plants a text in prompts and answers of every dialect, in
// whole, in pieces, escaped and as a key, and looks for it in all that is
// returned and in all that the meter still holds.
func TestNoTextSurvives(t *testing.T) {
	const text = "Zanzibar-Quokka"
	plant := func(s string) string {
		escaped := `\u005a` + text[1:]
		value := `"` + text + ` said \"` + escaped + `\" to ` + text + `"`
		return strings.NewReplacer(
			`"choices":[{`, `"choices":[{"message":{"content":`+value+`,"`+text+`":1},`,
			`"delta":{`, `"delta":{"text":`+value+`,"content":{"`+text+`":`+value+`},`,
			`"candidates":[{`, `"candidates":[{"content":{"parts":[{"text":`+value+`,"functionCall":{"args":{"`+text+`":`+value+`}}}]},`,
			`"error":{`, `"error":{"message":`+value+`,`,
			`"id":"`, `"`+text+`":`+value+`,"id":"`,
		).Replace(s)
	}
	planted := 0
	for _, s := range samples() {
		if s.x.Framing == EventStream {
			continue // below
		}
		body := plant(s.body)
		if body != s.body {
			planted++
		}
		checkGone(t, s.name, s.x, body, text)
	}
	if planted < 10 {
		t.Errorf("planted in only %d samples", planted)
	}
	checkGone(t, "converse", Exchange{Dialect: BedrockConverse, Framing: EventStream}, frame("contentBlockDelta", `{"delta":{"text":"`+text+`"}}`), text)
	checkGone(t, "invoke", Exchange{Dialect: BedrockInvoke, Framing: EventStream}, chunk(plant(claudeMid)), text)
	r := NewRequestReader()
	body := `{"model":"m","messages":[{"role":"user","content":"` + text + `"}],"` + text + `":{"a b ` + text + `":1}}`
	for _, b := range []byte(body) {
		_, _ = r.Write([]byte{b})
	}
	if q := r.Close(); strings.Contains(fmt.Sprintf("%+v", q), text) || q.Model != "m" || q.PromptTokens == 0 {
		t.Errorf("request: %+v", q)
	}
}

func checkGone(t *testing.T, what string, x Exchange, body, text string) {
	t.Helper()
	for _, size := range []int{1, 5, len(body)} {
		m := New(x)
		for rest := body; rest != ""; {
			n := min(size, len(rest))
			if _, err := m.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		r := m.Close()
		if m.gather.text != nil {
			t.Errorf("%s: the gathered text is still held", what)
		}
		held := fmt.Sprintf("%+v %s", r, m.outer.buf) + string(m.inner.buf[:]) + string(m.frame.headers[:]) + string(m.sse.head[:])
		for i := range m.seen.names {
			held += string(m.seen.names[i].b[:]) + string(m.doc.names[i].b[:])
		}
		if strings.Contains(held, text) || strings.Contains(held, text[:8]) {
			t.Errorf("%s in pieces of %d: the text is still held", what, size)
		}
	}
}

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		method, host, path string
		want               Call
	}{
		{"POST", "api.openai.com", "/v1/chat/completions", Call{Dialect: OpenAIChat}},
		{"POST", "localhost:11434", "/v1/chat/completions", Call{Dialect: Compatible}},
		{"post", "api.groq.com", "/openai/v1/chat/completions?x=1", Call{Dialect: Groq}},
		{"POST", "x.openai.azure.com", "/openai/deployments/gpt-4o/chat/completions", Call{Dialect: OpenAIChat, Model: "gpt-4o"}},
		{"GET", "api.openai.com", "/v1/responses/resp_1", Call{Dialect: OpenAIResponses, Repeated: true}},
		{"GET", "api.openai.com", "/v1/responses/resp_1/input_items", Call{}},
		{"POST", "api.openai.com", "/v1/responses/resp_1/cancel", Call{Dialect: OpenAIResponses, Repeated: true}},
		{"POST", "api.openai.com", "/v1/batches/batch_1/cancel", Call{}},
		{"GET", "api.openai.com", "/v1/chat/completions", Call{}},
		{"POST", "api.anthropic.com", "/v1/messages/count_tokens", Call{}},
		{"POST", "api.cohere.com", "/v1/tokenize", Call{}},
		{"POST", "api.cohere.com", "/v2/rerank", Call{Dialect: Cohere}},
		{"POST", "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/us-central1/publishers/google/models/text-embedding-005:predict", Call{Dialect: VertexPredict, Model: "text-embedding-005"}},
		{"POST", "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/us-central1/publishers/google/models/veo-3:predictLongRunning", Call{Model: "veo-3", Unlisted: Paid}},
		{"POST", "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/us-central1/publishers/google/models/veo-3:fetchPredictOperation", Call{Model: "veo-3"}},
		{"POST", "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/us-central1/endpoints/7:explain", Call{Unlisted: Paid}},
		{"POST", "generativelanguage.googleapis.com", "/v1beta/models/gemini-x:batchGenerateContent", Call{Model: "gemini-x", Unlisted: Paid}},
		{"POST", "generativelanguage.googleapis.com", "/v1beta/models/gemini-x:countTokens", Call{Model: "gemini-x"}},
		{"POST", "api.mistral.ai", "/v1/conversations", Call{Unlisted: Paid}},
		{"POST", "api.mistral.ai", "/v1/conversations/conv_1/restart", Call{Unlisted: Paid}},
		{"GET", "api.mistral.ai", "/v1/conversations/conv_1", Call{}},
		{"POST", "api.openai.com", "/v1/conversations", Call{Unlisted: PaidForAModel}},
		{"POST", "api.mistral.ai", "/v1/ocr", Call{Unlisted: PaidForAModel}},
		{"POST", "api.mistral.ai", "/v1/moderations", Call{Unlisted: PaidForAModel}},
		{"POST", "api.openai.com", "/v1/moderations", Call{}},
		{"POST", "api.openai.com", "/v1/assistants/asst_1", Call{}},
		{"POST", "api.openai.com", "/v1/threads/thread_1/runs", Call{Unlisted: Paid}},
		{"POST", "api.openai.com", "/v1/videos", Call{Unlisted: Paid}},
		{"POST", "x.openai.azure.com", "/openai/deployments/gpt-4o/extensions/search", Call{Model: "gpt-4o", Unlisted: Paid}},
		{"POST", "bedrock-runtime.us-east-1.amazonaws.com", "/model/anthropic.claude%3A0/count-tokens", Call{Model: "anthropic.claude:0"}},
		{"POST", "bedrock-runtime.us-east-1.amazonaws.com", "/guardrail/g1/version/1/apply", Call{Unlisted: Paid}},
		{"POST", "bedrock-runtime.us-east-1.amazonaws.com", "/async-invoke", Call{Unlisted: Paid}},
		{"POST", "bedrock-runtime.us-east-1.amazonaws.com", "/model/us.anthropic.claude%3A0/invoke-with-response-stream", Call{Dialect: BedrockInvoke, Model: "us.anthropic.claude:0"}},
		{"POST", "generativelanguage.googleapis.com", "/v1beta/models/gemini-x:streamGenerateContent?alt=sse", Call{Dialect: Gemini, Model: "gemini-x"}},
	} {
		if got := Detect(c.method, c.host, c.path); got != c.want {
			t.Errorf("%s %s%s: %+v, want %+v", c.method, c.host, c.path, got, c.want)
		}
	}
	for ct, want := range map[string]Framing{"": JSON, "application/json; charset=utf-8": JSON, "text/event-stream;x": SSE, "application/vnd.amazon.eventstream": EventStream, "audio/mpeg": Opaque, "application/x-ndjson": JSON} {
		if got := FramingOf(ct); got != want {
			t.Errorf("%q: %d, want %d", ct, got, want)
		}
	}
}
