package usage

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/tokens"
)

// A batch's lines in the forms of OpenAI and its followers, as they document them.
const (
	chatLine  = `{"id":"batch_req_1","custom_id":"request-1","response":{"status_code":200,"request_id":"req_9","body":{"id":"chatcmpl-1","object":"chat.completion","created":1724858089,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"2 + 2 equals 4."},"finish_reason":"stop"}],"usage":{"prompt_tokens":24,"completion_tokens":8,"total_tokens":32,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":1},"completion_tokens_details":{"reasoning_tokens":3}},"service_tier":"default"}},"error":null}`
	respLine  = `{"id":"batch_req_2","custom_id":"request 2 of Jane","response":{"status_code":200,"request_id":"req_8","body":{"id":"resp_1","object":"response","created_at":1741476542,"status":"completed","error":null,"model":"gpt-4.1","output":[{"type":"message","content":[{"type":"output_text","text":"hi"}]}],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":6},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":7},"total_tokens":123}}},"error":null}`
	embedLine = `{"custom_id":"e","response":{"status_code":200,"request_id":"r","body":{"object":"list","data":[{"object":"embedding","embedding":[0.1,-0.2]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}},"error":null}`
	badLine   = `{"id":"batch_req_3","custom_id":"c","response":{"status_code":400,"request_id":"q","body":{"error":{"message":"no such model","type":"invalid_request_error","code":"model_not_found"}}},"error":null}`
	lateLine  = `{"id":"batch_req_4","custom_id":"d","response":null,"error":{"code":"batch_expired","message":"This request could not be executed before the completion window expired."}}`
	askLine   = `{"custom_id":"request-1","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o-mini","messages":[{"role":"user","content":"2+2?"}],"usage":{"prompt_tokens":9}}}`

	goodResult    = `{"custom_id":"first","result":{"type":"succeeded","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":11,"cache_creation_input_tokens":5,"cache_read_input_tokens":7,"cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":3},"output_tokens":36,"service_tier":"batch"}}}}`
	erroredResult = `{"custom_id":"second","result":{"type":"errored","error":{"type":"error","error":{"type":"invalid_request","message":"a b"}}}}`
	expiredResult = `{"custom_id":"third","result":{"type":"expired"}}`
)

func lines(d Dialect, whole bool, pieces ...[]byte) (all []Line) {
	r := NewBatchReader(d, func(l *Line) { all = append(all, *l) })
	for _, p := range pieces {
		_, _ = r.Write(p)
	}
	r.Close(whole)
	return all
}

// Each form of a line: what it used, who it is, whether it failed.
func TestBatchLines(t *testing.T) {
	for _, c := range []struct {
		name, line string
		d          Dialect
		known      bool
		failed     bool
		key        string // "" is a digest
		status     int
		model      string
		errorType  string
		reasons    Reasons
		want       tokens.Vector
	}{
		{"chat", chatLine, OpenAIBatch, true, false, "batch_req_1\nrequest-1", 200, "gpt-4o-mini-2024-07-18", "", 0, tokens.Vector{tokens.Input: 19, tokens.CacheRead: 4, tokens.AudioInput: 1, tokens.Output: 5, tokens.Reasoning: 3}},
		{"responses, and a custom_id that is no name", respLine, OpenAIBatch, true, false, "", 200, "gpt-4.1", "", 0, tokens.Vector{tokens.Input: 30, tokens.CacheRead: 6, tokens.Output: 80, tokens.Reasoning: 7}},
		{"embeddings, and a line without an id", embedLine, OpenAIBatch, true, false, "\ne", 200, "text-embedding-3-small", "", 0, tokens.Vector{tokens.Input: 8}},
		{"refused", badLine, OpenAIBatch, true, true, "batch_req_3\nc", 400, "", "model_not_found", set(Refused), tokens.Vector{}},
		{"expired", lateLine, OpenAIBatch, true, true, "batch_req_4\nd", 0, "", "batch_expired", set(Refused), tokens.Vector{}},
		{"an error without a code", `{"id":"batch_req_5","custom_id":"x","response":null,"error":{"message":"a b"}}`, OpenAIBatch, true, false, "batch_req_5\nx", 0, "", "", set(NoUsage), tokens.Vector{}},
		{"no usage", `{"id":"batch_req_6","custom_id":"x","response":{"status_code":200,"body":{"model":"m","choices":[{"message":{"content":"12345678"}}]}}}`, OpenAIBatch, true, false, "batch_req_6\nx", 200, "m", "", set(NoUsage, Estimate), tokens.Vector{tokens.Output: 2}},
		{"a request", askLine, OpenAIBatch, false, false, "", 0, "", "", set(NoUsage), tokens.Vector{}},
		{"training data", `{"messages":[{"role":"user","content":"x"}]}`, OpenAIBatch, false, false, "", 0, "", "", set(NoUsage), tokens.Vector{}},
		{"cut off", chatLine[:strings.Index(chatLine, `,"finish_reason"`)], OpenAIBatch, true, false, "batch_req_1\nrequest-1", 200, "gpt-4o-mini-2024-07-18", "", set(CutOff, NoUsage, Estimate), tokens.Vector{tokens.Output: 4}},
		{"two in one line", embedLine + embedLine, OpenAIBatch, false, true, "", 400, "text-embedding-3-small", "", set(Malformed), tokens.Vector{tokens.Input: 16}},
		{"succeeded", goodResult, AnthropicBatch, true, false, "\nfirst", 200, "claude-sonnet-4-5", "", 0, tokens.Vector{tokens.Input: 11, tokens.CacheRead: 7, tokens.CacheWrite5m: 2, tokens.CacheWrite1h: 3, tokens.Output: 36}},
		{"errored", erroredResult, AnthropicBatch, true, true, "\nsecond", 0, "", "invalid_request", set(Refused), tokens.Vector{}},
		{"expired result", expiredResult, AnthropicBatch, true, true, "\nthird", 0, "", "", set(Refused), tokens.Vector{}},
		{"no result", `{"custom_id":"x","model":"m"}`, AnthropicBatch, false, false, "", 0, "", "", set(NoUsage), tokens.Vector{}},
	} {
		got := lines(c.d, true, []byte(c.line))
		if len(got) != 1 {
			t.Fatalf("%s: %d lines", c.name, len(got))
		}
		l := got[0]
		if c.key == "" && strings.HasPrefix(l.Key, "sha256:") && len(l.Key) == 71 {
			l.Key = ""
		}
		if l.Known != c.known || l.Failed() != c.failed || l.Key != c.key || l.Status != c.status || l.Model != c.model || l.ErrorType != c.errorType || l.Reasons != c.reasons || l.Tokens != c.want || l.Tier != "batch" {
			t.Errorf("%s: %+v failed %v (%s)", c.name, l, l.Failed(), l.Reasons)
		}
	}
}

// Lines are split by newlines and nothing else, the last one needs none where the
// bytes came to their end, and what does not begin as an object has no lines.
func TestBatchReaderSplits(t *testing.T) {
	whole := chatLine + "\r\n\n  \n" + respLine + "\n" + "no json\n" + embedLine
	if got := lines(OpenAIBatch, true, []byte(whole)); len(got) != 4 || got[2].Known || !got[2].Reasons.Has(Malformed) || got[3].Key != "\ne" {
		t.Errorf("%+v", got)
	}
	if got := lines(OpenAIBatch, false, []byte(whole)); len(got) != 3 {
		t.Errorf("cut off: %d lines, want 3", len(got))
	}
	for _, other := range []string{"", "\n", "\x89PNG\r\n\x1a\n{}\n", "[\n" + chatLine + "\n]", "step,loss\n1,2\n"} {
		if got := lines(OpenAIBatch, true, []byte(other)); len(got) != 0 {
			t.Errorf("%q: %d lines", other, len(got))
		}
	}
	long := strings.Replace(chatLine, "2 + 2 equals 4.", strings.Repeat("all work ", 1<<20), 1)
	if got := lines(OpenAIBatch, true, []byte(long+"\n"+embedLine)); len(got) != 2 || got[0].Tokens != lines(OpenAIBatch, true, []byte(chatLine))[0].Tokens {
		t.Errorf("a line of %d bytes: %+v", len(long), got)
	}
}

// Where the bytes are cut into pieces never matters.
func TestBatchLinesInPieces(t *testing.T) {
	all := []string{chatLine, respLine, embedLine, badLine, lateLine, askLine, goodResult, erroredResult, expiredResult, "", "{", `{"custom_id":"`}
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SampledFrom([]Dialect{OpenAIBatch, AnthropicBatch}).Draw(t, "dialect")
		body := []byte(strings.Join(rapid.SliceOfN(rapid.SampledFrom(all), 1, 6).Draw(t, "lines"), "\n"))
		var pieces [][]byte
		for rest := body; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		if got, want := lines(d, true, pieces...), lines(d, true, body); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%+v, in one piece %+v", got, want)
		}
	})
}

// No text of a line is in what is returned or held.
func TestBatchKeepsNoText(t *testing.T) {
	const text = "Zanzibar Quokka"
	for d, line := range map[Dialect]string{OpenAIBatch: chatLine, AnthropicBatch: goodResult} {
		planted := strings.NewReplacer(`2 + 2 equals 4.`, text, `Hello`, text, `request-1`, text, `"usage":`, `"`+text+`":"`+text+`","usage":`, `"error":null`, `"error":{"message":"`+text+`","code":"`+text+`"}`).Replace(line)
		var held string
		r := NewBatchReader(d, func(l *Line) { held += fmt.Sprintf("%+v", *l) })
		for _, b := range []byte(planted + "\n") {
			_, _ = r.Write([]byte{b})
		}
		r.Close(true)
		held += fmt.Sprintf("%+v %s", r.line, r.m.outer.buf)
		for i := range r.m.seen.names {
			held += string(r.m.seen.names[i].b[:]) + string(r.m.doc.names[i].b[:])
		}
		if !strings.Contains(planted, text) || strings.Contains(held, text[:8]) || held == "" {
			t.Errorf("%s: %s", d, held)
		}
	}
}

func TestDetectBatches(t *testing.T) {
	openai := func(id string) Call { return Call{Dialect: OpenAIBatch, Repeated: true, Batch: id} }
	for _, c := range []struct {
		method, host, path string
		want               Call
	}{
		{"GET", "api.openai.com", "/v1/files/file-1/content", openai("file-1")},
		{"GET", "api.openai.com", "/v1/files/%66ile-1/content/?x=1", openai("file-1")},
		{"GET", "api.openai.com", "/v1/files/file-1/%63onten%74", openai("file-1")},
		{"POST", "api.openai.com", "/v1/chat/completion%73", Call{Dialect: OpenAIChat}},
		{"GET", "api.groq.com", "/openai/v1/files/file_2/content", openai("file_2")},
		{"GET", "x.openai.azure.com", "/openai/files/file-3/content?api-version=1", openai("file-3")},
		{"GET", "api.mistral.ai", "/v1/files/b0c7/content", openai("b0c7")},
		{"GET", "localhost", "/files/f/content", openai("f")},
		{"GET", "api.openai.com", "/v1/files/file-1", Call{}},
		{"GET", "api.openai.com", "/v1/files//content", Call{}},
		{"POST", "api.openai.com", "/v1/files/file-1/content", Call{Unlisted: PaidForAModel}},
		{"HEAD", "api.openai.com", "/v1/files/file-1/content", Call{}},
		{"GET", "api.openai.com", "/v1/vector_stores/vs_1/files/file-1/content", Call{}},
		{"GET", "api.openai.com", "/v1/containers/cntr_1/files/cfile_1/content", Call{}},
		{"GET", "api.openai.com", "/v1/videos/video_1/content", Call{}},
		{"GET", "api.anthropic.com", "/v1/files/file_1/content", Call{}},
		{"GET", "api.anthropic.com", "/v1/messages/batches/msgbatch_1/results", Call{Dialect: AnthropicBatch, Repeated: true, Batch: "msgbatch_1"}},
		{"GET", "api.anthropic.com", "/v1/messages/batches/msgbatch_1", Call{}},
	} {
		if got := Detect(c.method, c.host, c.path); got != c.want {
			t.Errorf("%s %s%s: %+v, want %+v", c.method, c.host, c.path, got, c.want)
		}
	}
}

// Whatever the bytes are: one line for each that is not blank, the same however they
// come, no count negative, and nothing of a key but names and digests.
func FuzzBatchLines(f *testing.F) {
	for _, s := range []string{chatLine, respLine, embedLine, badLine, lateLine, askLine, goodResult, erroredResult, expiredResult} {
		f.Add([]byte(s + "\n" + s[:len(s)/2] + "\n" + s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		blank := 0
		rows := bytes.Split(body, []byte("\n"))
		for _, row := range rows {
			if len(bytes.Trim(row, " \t\r")) == 0 {
				blank++
			}
		}
		for _, d := range []Dialect{OpenAIBatch, AnthropicBatch} {
			got := lines(d, true, body)
			if len(got) != 0 && len(got) != len(rows)-blank {
				t.Fatalf("%s: %d lines of %d", d, len(got), len(rows)-blank)
			}
			pieces := make([][]byte, len(body))
			for i := range body {
				pieces[i] = body[i : i+1]
			}
			if again := lines(d, true, pieces...); fmt.Sprint(again) != fmt.Sprint(got) {
				t.Fatalf("%s: %+v byte by byte, %+v in one piece", d, again, got)
			}
			for i := range got {
				for c, n := range got[i].Tokens {
					if n < 0 {
						t.Fatalf("%s: %d %s tokens", d, n, tokens.Class(c))
					}
				}
				if got[i].Key == "" || len(got[i].Key) > 2*maxName+1 {
					t.Fatalf("%s: key %q", d, got[i].Key)
				}
			}
		}
	})
}
