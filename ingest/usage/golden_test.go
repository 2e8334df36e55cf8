package usage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/internal/tokens"
)

// The denominators of the golden tests, from the pack's manifest.
const (
	manifestGolden   = 789
	manifestExamples = 41
)

// recorded is an exchange of the pack as a proxy would see it.
type recorded struct {
	n       int
	host    string
	path    string
	x       Exchange
	body    []byte
	request []byte
}

func exchanges(t testing.TB) []recorded {
	t.Helper()
	var all []recorded
	for _, e := range testenv.Exchanges(t) {
		r := recorded{n: e.N, host: e.Host, path: e.Path, body: e.Body, request: e.Request}
		framing := map[string]Framing{"json": JSON, "sse": SSE, "base64_eventstream": EventStream, "text": Opaque}
		f, ok := framing[e.Encoding]
		if !ok {
			t.Fatalf("exchange %d: encoding %q", e.N, e.Encoding)
		}
		call := Detect(e.Method, e.Host, e.Path)
		r.x = Exchange{
			Dialect: call.Dialect, Framing: f, Status: e.Status, Model: call.Model, Repeated: call.Repeated,
			Header: func(k string) string { return e.Headers[k] },
		}
		q := ReadRequest(e.Request)
		r.x.PromptTokens = q.PromptTokens
		if q.Model != "" {
			r.x.Model = q.Model
		}
		all = append(all, r)
	}
	return all
}

func read(x Exchange, body []byte) Result {
	m := New(x)
	_, _ = m.Write(body)
	return m.Close()
}

// testExchanges reads every recorded exchange. Where the provider states a
// total the classes add up to it; what does not is flagged, and listed here.
func testExchanges(t *testing.T) (good, ambiguous int) {
	metered := 0
	tally := map[string]int{}
	for _, e := range exchanges(t) {
		r := read(e.x, e.body)
		if checkExchange(t, e, r) {
			good++
		}
		where := fmt.Sprintf("exchange %d %s%s", e.n, e.host, e.path)
		if r.Flags&Ambiguous != 0 {
			ambiguous++
			t.Logf("ambiguous: %s: %s %v of %v", where, r.Reasons, r.Tokens, r.Reported)
		}
		for reason := range numReasons {
			if r.Reasons.Has(reason) {
				tally[reason.String()]++
			}
		}
		if e.x.Dialect != None && e.x.Status < 400 {
			metered++
		}
	}
	t.Logf("exchanges=%d metered=%d ambiguous=%d %v", testenv.RecordedExchanges, metered, ambiguous, tally)
	return good, ambiguous
}

// checkExchange holds a result against what the exchange itself states.
func checkExchange(t *testing.T, e recorded, r Result) bool {
	t.Helper()
	ok := true
	fail := func(format string, args ...any) {
		ok = false
		t.Errorf("exchange %d %s%s: "+format, append([]any{e.n, e.host, e.path}, args...)...)
	}
	for c, n := range r.Tokens {
		if n < 0 {
			fail("%d %s tokens", n, tokens.Class(c))
		}
	}
	if total := r.Reported[Total]; total > 0 && !r.Reasons.Has(TotalDiffers) && r.Tokens.Total() != total {
		fail("classes add up to %d, stated %d", r.Tokens.Total(), total)
	}
	if e.x.Status >= 400 && (r.Tokens.Total() != 0 || r.Status != e.x.Status) {
		fail("status %d used %v", r.Status, r.Tokens)
	}
	if e.x.Dialect == None {
		if r.Tokens.Total() != 0 {
			fail("unmetered and used %v", r.Tokens)
		}
		if bytes.Contains(e.body, []byte(`"total_tokens"`)) || bytes.Contains(e.body, []byte(`"candidatesTokenCount"`)) {
			fail("has usage and is not metered")
		}
		return ok
	}
	if e.x.Status >= 400 {
		return ok
	}
	if r.Model == "" {
		fail("no model")
	}
	if r.Flags&Truncated != 0 {
		fail("truncated: %s", r.Reasons)
	}
	if want, found := statedUsage(e); found && r.Flags&Ambiguous == 0 && want != [2]int64{r.Tokens.Prompt(), r.Tokens.Total() - r.Tokens.Prompt()} {
		fail("%v, the body states %v", r.Tokens, want)
	}
	return ok
}

// statedUsage reads prompt and completion of a body with encoding/json, for
// the forms that state them in whole: a second reader beside the tables.
func statedUsage(e recorded) (want [2]int64, ok bool) {
	var b struct {
		Usage struct {
			Prompt  *int64 `json:"prompt_tokens"`
			Answer  int64  `json:"completion_tokens"`
			Input   *int64 `json:"input_tokens"`
			Output  int64  `json:"output_tokens"`
			Read    int64  `json:"cache_read_input_tokens"`
			Write   int64  `json:"cache_creation_input_tokens"`
			BInput  *int64 `json:"inputTokens"`
			BOutput int64  `json:"outputTokens"`
			BRead   int64  `json:"cacheReadInputTokens"`
			BWrite  int64  `json:"cacheWriteInputTokens"`
		}
		UsageMetadata struct {
			Prompt                                   *int64 `json:"promptTokenCount"`
			ToolUsePromptTokenCount                  int64
			CandidatesTokenCount, ThoughtsTokenCount int64
		}
	}
	if e.x.Framing != JSON || json.Unmarshal(e.body, &b) != nil {
		return want, false
	}
	u, g := b.Usage, b.UsageMetadata
	switch {
	case u.Prompt != nil:
		return [2]int64{*u.Prompt, u.Answer}, true
	case u.Input != nil:
		return [2]int64{*u.Input + u.Read + u.Write, u.Output}, true
	case u.BInput != nil:
		return [2]int64{*u.BInput + u.BRead + u.BWrite, u.BOutput}, true
	case g.Prompt != nil:
		return [2]int64{*g.Prompt + g.ToolUsePromptTokenCount, g.CandidatesTokenCount + g.ThoughtsTokenCount}, true
	}
	return want, false
}

// TestCorpus reads every exchange, body and example of the pack. Its last line
// is the report: exchanges read as expected, of all, and how many are ambiguous.
func TestCorpus(t *testing.T) {
	const all = testenv.RecordedExchanges + manifestGolden + manifestExamples
	good, ambiguous := 0, 0
	for _, part := range []struct {
		name string
		test func(*testing.T) (int, int)
	}{{"exchanges", testExchanges}, {"golden", testGolden}, {"examples", testExamples}} {
		t.Run(part.name, func(t *testing.T) {
			g, a := part.test(t)
			good += g
			ambiguous += a
		})
	}
	t.Logf("edge: exchanges=%d/%d ambiguous=%d", good, all, ambiguous)
	if ambiguous*100 > all {
		t.Errorf("%d of %d are ambiguous", ambiguous, all)
	}
	if good != all && !t.Failed() && !t.Skipped() {
		testenv.Data(t, "responses/openai_spec_examples.jsonl") // skips loudly where the pack is absent
		t.Errorf("%d of %d", good, all)
	}
}

// What the documentation leaves out of its examples it marks by dots, and the
// comma before the end of a list then stays: no real response has either.
var (
	elided = regexp.MustCompile(`(?m)^[ \t]*\.{3,}[^\n]*\n`)
	comma  = regexp.MustCompile(`,(\s*\])`)
)

// testExamples reads the documented responses of OpenAI's specification.
func testExamples(t *testing.T) (good, ambiguous int) {
	all := testenv.Lines(t, "responses/openai_spec_examples.jsonl")
	if len(all) != manifestExamples {
		t.Fatalf("%d examples, the manifest has %d", len(all), manifestExamples)
	}
	for n, line := range all {
		var e struct{ Method, Path, Title, Response string }
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		x := Exchange{Dialect: Detect(e.Method, "api.openai.com", "/v1"+e.Path).Dialect}
		if strings.HasPrefix(e.Response, "event:") || strings.HasPrefix(e.Response, "data:") {
			x.Framing = SSE
		}
		body := comma.ReplaceAll(elided.ReplaceAll([]byte(e.Response), nil), []byte("$1"))
		r := read(x, body)
		if r.Flags&Ambiguous != 0 {
			ambiguous++
			t.Logf("ambiguous: example %d %s: %s", n, e.Title, r.Reasons)
		}
		stated := strings.Contains(e.Response, `"total_tokens"`) && e.Method == "POST"
		seconds := strings.Contains(e.Response, `"type": "duration"`)
		switch {
		case stated && (r.Tokens.Total() == 0 || r.Tokens.Total() != r.Reported[Total] || r.Flags != 0):
			t.Errorf("example %d %s %s: %v %s", n, e.Path, e.Title, r.Tokens, r.Reasons)
		case !stated && r.Tokens.Total() != 0 && r.Flags&Estimated == 0:
			t.Errorf("example %d %s %s: used %v", n, e.Path, e.Title, r.Tokens)
		case seconds && r.Reported[Seconds] == 0 && r.Flags&Ambiguous == 0:
			t.Errorf("example %d %s %s: no seconds", n, e.Path, e.Title)
		default:
			good++
		}
	}
	return good, ambiguous
}

// extractor is the golden file's name for the rules of a body's own dialect:
// which it is shows from the body's fields, not from what our code reads.
func extractor(usage map[string]json.RawMessage, gemini, meta bool) (name string, dialects []Dialect) {
	has := func(k string) bool { _, ok := usage[k]; return ok }
	switch {
	case gemini:
		return "google/default", []Dialect{Gemini}
	case has("inputTokens"):
		return "aws/default", []Dialect{BedrockConverse, BedrockInvoke}
	case has("billed_units") && meta:
		return "cohere/embeddings", []Dialect{Cohere}
	case has("billed_units"):
		return "cohere/default", []Dialect{Cohere}
	case has("completion_tokens"):
		return "openai/chat", []Dialect{OpenAIChat, Compatible, DeepSeek, Groq, Mistral, OpenRouter, XAI}
	case has("prompt_tokens"):
		return "openai/embeddings", []Dialect{OpenAIEmbeddings, Compatible}
	case has("cache_creation") || has("cache_read_input_tokens"):
		return "anthropic/default", []Dialect{Anthropic, BedrockInvoke}
	default:
		return "openai/responses", []Dialect{OpenAIResponses}
	}
}

// providers are the golden file's names of dialects whose form others share.
var providers = map[Dialect]string{
	DeepSeek: "deepseek/chat", Groq: "groq/default", Mistral: "mistral/default", OpenRouter: "openrouter/chat",
}

// extraction is a result in the golden file's terms, zeros left out.
func extraction(r Result) map[string]int64 {
	all := map[string]int64{
		"input_tokens":            r.Tokens.Prompt(),
		"output_tokens":           r.Tokens.Total() - r.Tokens.Prompt(),
		"cache_read_tokens":       r.Tokens[tokens.CacheRead],
		"cache_write_tokens":      r.Tokens[tokens.CacheWrite5m] + r.Tokens[tokens.CacheWrite1h],
		"output_reasoning_tokens": r.Tokens[tokens.Reasoning],
		"output_image_tokens":     r.Tokens[tokens.ImageOutput],
		"cache_write_5m_tokens":   r.Reported[CacheWrite5m],
		"input_text_tokens":       r.Reported[PromptText],
		"input_image_tokens":      r.Reported[PromptImage],
		"input_audio_tokens":      r.Reported[PromptAudio],
		"input_video_tokens":      r.Reported[PromptVideo],
		"input_tool_tokens":       r.Reported[ToolPrompt],
		"input_text_tool_tokens":  r.Reported[ToolText],
		"output_text_tokens":      r.Reported[CompletionText],
		"cache_text_read_tokens":  r.Reported[CachedText],
		"cache_image_read_tokens": r.Reported[CachedImage],
		"cache_audio_read_tokens": r.Reported[CachedAudio],
		"cache_video_read_tokens": r.Reported[CachedVideo],
		"web_searches":            r.Reported[Searches],
	}
	for k, n := range all {
		if n == 0 {
			delete(all, k)
		}
	}
	return all
}

type goldenBody struct {
	Body      json.RawMessage
	Extracted []struct {
		Extractors []struct {
			Provider string `json:"provider_id"`
			Flavor   string `json:"api_flavor"`
		}
		Usage map[string]int64
	}
}

// expected is what the golden file says that the named extractor finds.
func (g *goldenBody) expected(name string) (map[string]int64, bool) {
	for _, e := range g.Extracted {
		for _, x := range e.Extractors {
			if x.Provider+"/"+x.Flavor == name {
				for k, n := range e.Usage {
					if n == 0 {
						delete(e.Usage, k)
					}
				}
				return e.Usage, true
			}
		}
	}
	return nil, false
}

// testGolden compares every body of the golden file with its expected
// extraction, figure by figure, in every dialect that the form serves.
func testGolden(t *testing.T) (good, ambiguous int) {
	all := testenv.Lines(t, "responses/genai_prices_usage_golden.jsonl.zst")
	if len(all) != manifestGolden {
		t.Fatalf("%d bodies, the manifest has %d", len(all), manifestGolden)
	}
	for n, line := range all {
		var g goldenBody
		var body struct {
			File                 string
			Usage, UsageMetadata map[string]json.RawMessage
			Meta                 map[string]json.RawMessage
		}
		if err := json.Unmarshal(line, &g); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(g.Body, &body); err != nil {
			t.Fatal(err)
		}
		usage := body.Usage
		if usage == nil {
			usage = body.Meta
		}
		own, dialects := extractor(usage, body.UsageMetadata != nil, body.Meta != nil)
		want, ok := g.expected(own)
		if !ok {
			t.Errorf("body %d: the file has no expectation of %s", n, own)
			continue
		}
		same := true
		for _, d := range dialects {
			r := read(Exchange{Dialect: d}, g.Body)
			want := want
			if its, ok := g.expected(providers[d]); ok && strings.Contains(body.File, d.String()) {
				want = its
			}
			if got := extraction(r); fmt.Sprint(got) != fmt.Sprint(want) {
				same = false
				t.Errorf("body %d as %s: %v, expected %v", n, d, got, want)
			}
			if d == dialects[0] && r.Flags&Ambiguous != 0 {
				ambiguous++
				t.Logf("ambiguous: body %d: %s", n, r.Reasons)
			}
		}
		if same {
			good++
		}
	}
	t.Logf("golden=%d/%d ambiguous=%d", good, manifestGolden, ambiguous)
	return good, ambiguous
}
