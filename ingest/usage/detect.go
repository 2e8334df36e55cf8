package usage

import (
	"net/url"
	"strconv"
	"strings"
)

// Call is what Detect reads from a request's line.
type Call struct {
	Dialect Dialect
	// Model is the model in the path; "" where it stands in the body.
	Model string
	// Repeated is set for reading a stored response again.
	Repeated bool
	// Batch is the batch whose results are read, or the file, which may be another
	// kind of file; "" is neither.
	Batch string
	// Unlisted is what is known of a call without a dialect.
	Unlisted Unlisted
}

// Unlisted says whether a call costs that no table knows the usage of.
type Unlisted uint8

// What it says.
const (
	// Free is a call that uses nothing, or that is counted elsewhere.
	Free Unlisted = iota
	// PaidForAModel is a call that costs if its body names a model.
	PaidForAModel
	// Paid is a call that costs by what its path says.
	Paid
)

// hosts are providers whose chat form is a dialect of its own.
var hosts = []struct {
	suffix string
	chat   Dialect
}{
	{"api.openai.com", OpenAIChat}, {".openai.azure.com", OpenAIChat}, {"api.mistral.ai", Mistral}, {"api.deepseek.com", DeepSeek},
	{"api.x.ai", XAI}, {"api.groq.com", Groq}, {"openrouter.ai", OpenRouter},
	{"api.cohere.com", Cohere}, {"api.cohere.ai", Cohere},
}

// endings are the endpoints whose answers state tokens, by the end of their path.
// Those that are not here use none (files, counts, listings, sessions), or unlisted
// says what is known of them.
var endings = []struct {
	suffix  string
	dialect Dialect
}{
	{"/chat/completions", Compatible}, {"/completions", Compatible}, {"/responses", OpenAIResponses}, {"/responses/compact", OpenAIResponses},
	{"/embeddings", OpenAIEmbeddings}, {"/audio/transcriptions", OpenAIAudio}, {"/audio/translations", OpenAIAudio}, {"/audio/speech", OpenAIAudio},
	{"/images/generations", OpenAIImages}, {"/images/edits", OpenAIImages}, {"/images/variations", OpenAIImages},
	{"/messages", Anthropic}, {":rawPredict", Anthropic}, {":streamRawPredict", Anthropic},
	{":generateContent", Gemini}, {":streamGenerateContent", Gemini}, {":embedContent", Gemini}, {":batchEmbedContents", Gemini}, {":predict", VertexPredict},
	{"/converse", BedrockConverse}, {"/converse-stream", BedrockConverse}, {"/invoke", BedrockInvoke}, {"/invoke-with-response-stream", BedrockInvoke},
}

// cohereEndings are Cohere's own endpoints.
var cohereEndings = []string{"/chat", "/embed", "/rerank", "/generate", "/classify", "/summarize"}

// free are the ends of paths of requests that cost nothing by themselves though they
// name a model: counts, keys of sessions, assistants, and batches, whose results are
// counted when they are read.
var free = []string{
	"/count_tokens", "/count-tokens", ":countTokens", ":computeTokens", "/input_tokens", "/tokenize", "/detokenize",
	"/client_secrets", "/realtime/sessions", "/assistants", "/agents", "/batches", "/batch/jobs", ":fetchPredictOperation", ":cancel",
}

// paid are parts of paths of requests that cost and need not name a model.
var paid = []string{"/runs/", "/videos/", "/realtime/calls/", "/async-invoke/", "/guardrail/", "/submit_tool_outputs/"}

// unlisted says whether a request costs that has no dialect.
func unlisted(host, path, model string) Unlisted {
	for _, f := range free {
		if strings.HasSuffix(path, f) {
			return Free
		}
	}
	verb := strings.Contains(path[strings.LastIndexByte(path, '/')+1:], ":")
	switch {
	case model != "" || verb || ofHost(host, "mistral.ai") && strings.Contains(path+"/", "/conversations/"):
		return Paid
	case lastPart(upTo(path)) == "assistants" || strings.HasSuffix(path, "/moderations") && !ofHost(host, "mistral.ai"):
		return Free
	}
	for _, p := range paid {
		if strings.Contains(path+"/", p) {
			return Paid
		}
	}
	return PaidForAModel
}

// Detect says in which dialect the answer to a request will be. Host may have a
// port; path is the escaped path, a query is ignored.
func Detect(method, host, path string) Call {
	path, _, _ = strings.Cut(path, "?")
	path, _, _ = strings.Cut(path, "#")
	path = strings.TrimSuffix(plainPath(path), "/")
	host, _, _ = strings.Cut(strings.ToLower(host), ":")
	c := Call{Dialect: endpoint(host, path), Model: pathModel(path)}
	if !strings.EqualFold(method, "POST") {
		c = reading(method, host, path)
	} else if rest, ok := strings.CutSuffix(path, "/cancel"); ok {
		c = reading("GET", "", rest) // answers with the response as it is then
	} else if c.Dialect == None {
		c.Unlisted = unlisted(host, path, c.Model)
	}
	return c
}

// plainPath undoes escapes of characters that need none (RFC 3986, 6.2.2.2): servers
// take both spellings for one path, so no spelling is an endpoint that is not metered.
func plainPath(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			if c, err := strconv.ParseUint(path[i+1:i+3], 16, 8); err == nil && unreserved(byte(c)) {
				out = append(out, byte(c))
				i += 2
				continue
			}
		}
		out = append(out, path[i])
	}
	return string(out)
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// reading is a request that makes nothing: of these only a stored response and the
// results of a batch have usage. The response was counted when it was made, unless
// that was in the background.
func reading(method, host, path string) Call {
	if !strings.EqualFold(method, "GET") {
		return Call{}
	}
	if rest, ok := strings.CutSuffix(path, "/results"); ok && lastPart(rest) != "" && strings.HasSuffix(upTo(rest), "/messages/batches") {
		return Call{Dialect: AnthropicBatch, Repeated: true, Batch: lastPart(rest)}
	}
	if rest, ok := strings.CutSuffix(path, "/content"); ok && lastPart(rest) != "" && ofAccount(upTo(rest)) && !ofHost(host, "anthropic.com") {
		return Call{Dialect: OpenAIBatch, Repeated: true, Batch: lastPart(rest)}
	}
	if strings.HasSuffix(upTo(path), "/responses") && lastPart(path) != "" {
		return Call{Dialect: OpenAIResponses, Repeated: true}
	}
	return Call{}
}

// ofAccount reports the path of an account's files, and not of those of a vector store
// or a container.
func ofAccount(path string) bool {
	rest, ok := strings.CutSuffix(path, "/files")
	parent := lastPart(rest)
	return ok && (parent == "" || parent == "openai" || len(parent) > 1 && parent[0] == 'v' && parent[1] >= '0' && parent[1] <= '9')
}

// upTo and lastPart are a path before its last slash, and behind it without escapes, so
// that one thing has one name.
func upTo(path string) string { return path[:max(strings.LastIndexByte(path, '/'), 0)] }

func lastPart(path string) string {
	part := path[strings.LastIndexByte(path, '/')+1:]
	if plain, err := url.PathUnescape(part); err == nil {
		return plain
	}
	return part
}

func ofHost(host, name string) bool { return host == name || strings.HasSuffix(host, "."+name) }

func endpoint(host, path string) Dialect {
	own := None
	for _, h := range hosts {
		if host == strings.TrimPrefix(h.suffix, ".") || strings.HasSuffix(host, h.suffix) {
			own = h.chat
		}
	}
	if own == Cohere {
		for _, e := range cohereEndings {
			if strings.HasSuffix(path, e) {
				return Cohere
			}
		}
	}
	for _, e := range endings {
		if !strings.HasSuffix(path, e.suffix) {
			continue
		}
		if e.dialect == Compatible && own != None && own != Cohere {
			return own
		}
		return e.dialect
	}
	return None
}

// pathModel is the model that Gemini's, Vertex's, Azure's and Bedrock's paths
// name; of an escaped name only colons and slashes are undone.
func pathModel(path string) string {
	for _, before := range []string{"/models/", "/model/", "/deployments/"} {
		_, rest, ok := strings.Cut(path, before)
		if !ok {
			continue
		}
		rest, _, _ = strings.Cut(rest, "/")
		if before == "/models/" {
			rest, _, _ = strings.Cut(rest, ":")
		}
		return name(unescaper.Replace(rest))
	}
	return ""
}

var unescaper = strings.NewReplacer("%3A", ":", "%3a", ":", "%2F", "/", "%2f", "/")
