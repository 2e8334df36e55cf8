package usage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/tokens"
)

// withoutUsage is a recorded chat answer without what the provider stated.
func withoutUsage(body []byte) []byte {
	var out []byte
	for {
		at := bytes.Index(body, []byte(`"usage":`))
		if at < 0 {
			return append(out, body...)
		}
		at += len(`"usage":`)
		out = append(append(out, body[:at]...), "null"...)
		d := json.NewDecoder(bytes.NewReader(body[at:]))
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return nil
		}
		body = body[at+int(d.InputOffset()):]
	}
}

// Every recorded chat exchange of a model whose encoding is published, with text in
// its answer, no tools and no hidden tokens, is counted as the provider counted it
// when its usage is taken away: the prompt exactly, and the answer exactly or one less
// (some answers of early 2025 count the token that ended them). The same streams cut
// off are marked as estimates and never count more.
func TestCountsAgreeWithProvider(t *testing.T) {
	compared, exact, kinds := 0, 0, map[string]int{}
	for _, e := range exchanges(t) {
		stated := read(e.x, e.body)
		e.x.Request = e.request
		bare := withoutUsage(e.body)
		got := read(e.x, bare)
		v := vocabularyOf(stated.Model)
		if v == nil || v.hidden || e.x.Status >= 400 || stated.Reported[Total] == 0 || stated.Finish != "stop" ||
			e.x.Dialect != OpenAIChat && e.x.Dialect != Compatible && e.x.Dialect != OpenRouter ||
			!plainRequest(e.request) || bytes.Contains(e.body, []byte(`"tool_calls":[`)) {
			continue
		}
		compared++
		kinds[fmt.Sprintf("%s framing %d", stated.Model, e.x.Framing)]++
		in, out := got.Tokens[tokens.Input]-stated.Reported[Prompt], got.Tokens[tokens.Output]-stated.Reported[Completion]
		if in == 0 && out == 0 {
			exact++
		}
		if in != 0 || out != 0 && out != -1 || got.Reasons != 1<<NoUsage|1<<Counted || got.Flags&Estimated != 0 {
			t.Errorf("exchange %d (%s): input off by %d, output by %d, %s", e.n, stated.Model, in, out, got.Reasons)
		}
		cut := read(e.x, bare[:len(bare)*2/3])
		if cut.Flags&(Estimated|Truncated) != Estimated|Truncated || cut.Tokens[tokens.Output] > stated.Reported[Completion] || cut.Tokens[tokens.Input] != stated.Reported[Prompt] {
			t.Errorf("exchange %d cut off: %v %s", e.n, cut.Tokens, cut.Reasons)
		}
	}
	t.Logf("recorded chats counted without their usage: %d, prompt exact %d, answer exact %d, answer one less %d %v", compared, compared, exact, compared-exact, kinds)
	if compared < 49 || exact < compared*9/10 {
		t.Errorf("%d compared, %d exact", compared, exact)
	}
}

// plainRequest reports a whole request of text without tools and forms of answers.
func plainRequest(body []byte) bool {
	for _, word := range []string{`"_truncated"`, `"tools"`, `"tool_calls"`, `"functions"`, `"response_format"`, `"image_url"`, `"input_audio"`, `"file"`, `"web_search_options"`} {
		if bytes.Contains(body, []byte(word)) {
			return false
		}
	}
	return true
}

// The cookbook's own example of a conversation: 129 tokens for gpt-4 and
// gpt-3.5-turbo, 124 for gpt-4o, as it prints them beside the API's count.
func TestCookbookExample(t *testing.T) {
	const body = `{"model":"m","messages":[
		{"role":"system","content":"You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
		{"role":"system","name":"example_user","content":"New synergies will help drive top-line growth."},
		{"role":"system","name":"example_assistant","content":"Things working well together will increase revenue."},
		{"role":"system","name":"example_user","content":"Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
		{"role":"system","name":"example_assistant","content":"Let's talk later when we're less busy about how to do better."},
		{"role":"user","content":"This late pivot means we don't have time to boil the ocean for the client deliverable."}]}`
	for model, want := range map[string]int64{"gpt-4": 129, "gpt-3.5-turbo": 129, "gpt-4o": 124, "gpt-4o-mini": 124} {
		if got, exact, ok := vocabularyOf(model).prompt([]byte(body)); got != want || !exact || !ok {
			t.Errorf("%s: %d tokens, exact %v, %v; want %d", model, got, exact, ok, want)
		}
	}
}

func TestVocabularyOf(t *testing.T) {
	for model, want := range map[string]string{
		"gpt-4o-2024-08-06": "o200k_base", "openai/gpt-4.1-mini": "o200k_base", "ft:gpt-3.5-turbo-0125:acme:x:1": "cl100k_base", "gpt-5.6-sol": "o200k_base",
		"gpt-4-turbo": "cl100k_base", "gpt-4": "cl100k_base", "gpt-35-turbo": "cl100k_base", "o3-mini": "o200k_base", "chatgpt-4o-latest": "o200k_base",
		"gpt-4.7": "", "gpt-40": "", "claude-sonnet-4": "", "gemini-2.5-pro": "", "mistral-large": "", "": "",
	} {
		got := ""
		if v := vocabularyOf(model); v != nil {
			got = v.encoding.String()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", model, got, want)
		}
	}
}

func TestCountedSamples(t *testing.T) {
	chat := func(model, text string) string {
		b, _ := json.Marshal(text)
		return fmt.Sprintf(`data: {"model":%q,"choices":[{"index":0,"delta":{"role":"assistant","content":%s}}]}`+"\n\n", model, b)
	}
	ask := []byte(`{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}`)
	tools := []byte(`{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}],"tools":[{"type":"function","function":{"name":"x","description":"abcd"}}]}`)
	end := `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
	for _, s := range []struct {
		name          string
		x             Exchange
		body          string
		input, output int64
		reasons       Reasons
	}{
		{"deltas are one text", Exchange{Dialect: OpenAIChat, Framing: SSE, Request: ask}, chat("gpt-4o", "antidisest") + chat("gpt-4o", "ablishmentarianism") + end, 8, 6, set(NoUsage, Counted)},
		{"escapes", Exchange{Dialect: OpenAIChat, Framing: SSE, Request: ask}, strings.ReplaceAll(chat("gpt-4o", "2 + 2 = 4"), "+", `\u002b`) + end, 8, 7, set(NoUsage, Counted)},
		{"cut in an escape", Exchange{Dialect: OpenAIChat, Framing: SSE, Request: ask}, `data: {"model":"gpt-4o","choices":[{"delta":{"content":"hello world\ud83d`, 8, 3, set(NoUsage, Counted, Estimate, CutOff)},
		{"a deployment's name", Exchange{Dialect: OpenAIChat, Framing: SSE, Model: "ours", Request: ask}, chat("gpt-4o-2024-08-06", "hello world") + end, 8, 2, set(NoUsage, Counted)},
		{"reasoning is hidden", Exchange{Dialect: OpenAIChat, Framing: SSE, Model: "o3", Request: ask}, chat("o3", "hello world") + end, 8, 2, set(NoUsage, Counted, Estimate)},
		{"tools have no published rule", Exchange{Dialect: OpenAIChat, Framing: SSE, Request: tools}, chat("gpt-4o", "hello world") + end, 9, 2, set(NoUsage, Counted, Estimate)},
		{"no vocabulary", Exchange{Dialect: OpenAIChat, Framing: SSE, PromptTokens: 5, Request: ask}, chat("claude-x", "hello world") + end, 5, 3, set(NoUsage, Estimate)},
		{"another dialect", Exchange{Dialect: Mistral, Framing: SSE, Model: "m", PromptTokens: 5, Request: ask}, chat("mistral-large", "hello world") + end, 5, 3, set(NoUsage, Estimate)},
		{"no request", Exchange{Dialect: OpenAIChat, Framing: SSE, PromptTokens: 5}, chat("gpt-4o", "hello world") + end, 5, 2, set(NoUsage, Counted, Estimate)},
		{"too much text", Exchange{Dialect: OpenAIChat, Framing: SSE, Request: ask}, chat("gpt-4o", strings.Repeat("a ", MaxText/2+1)) + end, 8, MaxText/4 + 1, set(NoUsage, Counted, Estimate)},
		{"completions", Exchange{Dialect: OpenAIChat, Framing: SSE, Request: []byte(`{"prompt":["hello world","hello"]}`)}, `data: {"model":"gpt-3.5-turbo-instruct","choices":[{"text":"hello wor"}]}` + "\n\n" + `data: {"choices":[{"text":"ld","finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n", 3, 2, set(NoUsage, Counted)},
		{"responses", Exchange{Dialect: OpenAIResponses, Framing: SSE, Request: []byte(`{"input":"hello","instructions":"hello world"}`)}, sse(`{"type":"response.created","response":{"model":"gpt-4o","output":[]}}`, `{"type":"response.output_text.delta","delta":"hello wor"}`, `{"type":"response.output_text.delta","delta":"ld"}`, `{"type":"response.completed","response":{"model":"gpt-4o","status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"hello world"}]}]}}`), 14, 2, set(NoUsage, Counted, Estimate)},
	} {
		r := read(s.x, []byte(s.body))
		if r.Tokens[tokens.Input] != s.input || r.Tokens[tokens.Output] != s.output || r.Reasons != s.reasons {
			t.Errorf("%s: %v (%s), want %d in, %d out (%s)", s.name, r.Tokens, r.Reasons, s.input, s.output, s.reasons)
		}
		if again := cutAt(s.x, []byte(s.body), func(int) int { return 1 }); again != r {
			t.Errorf("%s: byte by byte %v, in one piece %v", s.name, again, r)
		}
	}
}

// A hostile answer and a hostile request at their bounds are counted in bounded time.
func TestCountIsBounded(t *testing.T) {
	const limit = 10 * time.Second
	for _, s := range []string{"a", " \\n", "\\t\\t\\t\\t \\n", "_"} {
		text := strings.Repeat(s, (MaxText-200)/len(s))
		x := Exchange{Dialect: OpenAIChat, Framing: SSE, Request: []byte(`{"messages":[{"role":"user","content":"` + text + `"}]}`)}
		start := time.Now()
		r := read(x, []byte(`data: {"model":"gpt-4o","choices":[{"delta":{"content":"`+text+`"}}]}`+"\n\n"))
		if took := time.Since(start); took > limit || !r.Reasons.Has(Counted) || r.Tokens[tokens.Input] == 0 {
			t.Errorf("%q: %v (%s) in %v", s, r.Tokens, r.Reasons, took)
		}
	}
}

// FuzzRequest counts hostile requests: nothing panics, no count is negative, and
// what is not understood is not counted.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"}]}]}`, `{"prompt":["a",[1,2]]}`, `{"input":[{"role":"user","content":"x"}],"instructions":"y","tools":[{}]}`, `{"messages":null}`, `[]`, ``} {
		f.Add([]byte(s))
	}
	v := vocabularyOf("gpt-4o")
	f.Fuzz(func(t *testing.T, body []byte) {
		n, exact, ok := v.prompt(body)
		if n < 0 || exact && !ok || !json.Valid(body) && ok {
			t.Fatalf("%d %v %v", n, exact, ok)
		}
	})
}
