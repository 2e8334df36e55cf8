package usage

import "strings"

// Call is what Detect reads from a request's line.
type Call struct {
	Dialect Dialect
	// Model is the model in the path; "" where it stands in the body.
	Model string
	// Repeated is set for reading a stored response again.
	Repeated bool
}

// hosts are providers whose chat form is a dialect of its own.
var hosts = []struct {
	suffix string
	chat   Dialect
}{
	{"api.openai.com", OpenAIChat}, {".openai.azure.com", OpenAIChat}, {"api.mistral.ai", Mistral}, {"api.deepseek.com", DeepSeek},
	{"api.x.ai", XAI}, {"api.groq.com", Groq}, {"openrouter.ai", OpenRouter},
	{"api.cohere.com", Cohere}, {"api.cohere.ai", Cohere},
}

// endings are the endpoints that use tokens, by the end of their path. Those
// that are not here use none: files, counts, listings, sessions.
var endings = []struct {
	suffix  string
	dialect Dialect
}{
	{"/chat/completions", Compatible}, {"/completions", Compatible}, {"/responses", OpenAIResponses}, {"/responses/compact", OpenAIResponses},
	{"/embeddings", OpenAIEmbeddings}, {"/audio/transcriptions", OpenAIAudio}, {"/audio/translations", OpenAIAudio}, {"/audio/speech", OpenAIAudio},
	{"/images/generations", OpenAIImages}, {"/images/edits", OpenAIImages}, {"/images/variations", OpenAIImages},
	{"/messages", Anthropic}, {":rawPredict", Anthropic}, {":streamRawPredict", Anthropic},
	{":generateContent", Gemini}, {":streamGenerateContent", Gemini}, {":embedContent", Gemini}, {":batchEmbedContents", Gemini},
	{"/converse", BedrockConverse}, {"/converse-stream", BedrockConverse}, {"/invoke", BedrockInvoke}, {"/invoke-with-response-stream", BedrockInvoke},
}

// cohereEndings are Cohere's own endpoints.
var cohereEndings = []string{"/chat", "/embed", "/rerank", "/generate", "/classify", "/summarize"}

// Detect says in which dialect the answer to a request will be. Host may have a
// port; path is the escaped path, a query is ignored.
func Detect(method, host, path string) Call {
	path, _, _ = strings.Cut(path, "?")
	path, _, _ = strings.Cut(path, "#")
	path = strings.TrimSuffix(path, "/")
	host, _, _ = strings.Cut(strings.ToLower(host), ":")
	c := Call{Dialect: endpoint(host, path), Model: pathModel(path)}
	if !strings.EqualFold(method, "POST") {
		c = reading(method, path)
	} else if rest, ok := strings.CutSuffix(path, "/cancel"); ok {
		c = reading("GET", rest) // answers with the response as it is then
	}
	return c
}

// reading is a request that makes nothing: of these only a stored response has
// usage, which was counted when it was made.
func reading(method, path string) Call {
	i := strings.LastIndex(path, "/responses/")
	if strings.EqualFold(method, "GET") && i >= 0 && !strings.Contains(path[i+len("/responses/"):], "/") {
		return Call{Dialect: OpenAIResponses, Repeated: true}
	}
	return Call{}
}

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
