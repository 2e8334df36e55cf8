package usage

// Dialect is the form in which a provider states usage.
type Dialect uint8

// The dialects. None is an endpoint that uses no tokens.
const (
	None Dialect = iota
	OpenAIChat
	OpenAIResponses
	OpenAIEmbeddings
	OpenAIAudio
	OpenAIImages
	// OpenAIBatch is a batch's output file: one exchange a line, summed.
	OpenAIBatch
	Anthropic
	Gemini
	BedrockConverse
	BedrockInvoke
	Mistral
	Cohere
	DeepSeek
	XAI
	Groq
	OpenRouter
	// Compatible is any other server of OpenAI's chat form.
	Compatible
	// AnthropicBatch is a message batch's results: one message a line, summed.
	AnthropicBatch
	// VertexPredict is Vertex AI's older form, of which only embeddings of text state
	// tokens.
	VertexPredict

	// NumDialects is how many there are.
	NumDialects
)

var dialectNames = [NumDialects]string{
	"none", "openai_chat", "openai_responses", "openai_embeddings", "openai_audio", "openai_images", "openai_batch",
	"anthropic", "gemini", "bedrock_converse", "bedrock_invoke", "mistral", "cohere", "deepseek", "xai", "groq",
	"openrouter", "compatible", "anthropic_batch", "vertex_predict",
}

// String is the dialect's name in reports.
func (d Dialect) String() string {
	if d < NumDialects {
		return dialectNames[d]
	}
	return "unknown"
}

// table is a dialect as data: where its documents state what. Paths are dotted,
// "*" is every element of a list.
type table struct {
	shape      shape
	merging    merging
	roots      []string // prefixes of all paths; nil is only ""
	documents  string   // the path of documents within the document, "" is none
	counts     map[Count][]string
	names      map[int][]string
	lists      map[string]int
	text       []string
	terminal   []string
	finishEnds bool
	usageEnds  bool
}

// list is a list of counts by kind: Gemini's modalities, Bedrock's lifetimes.
type list struct {
	kind, count string // keys of an element
	kinds       []kind
}

type kind struct {
	name string
	to   Count
}

const (
	promptKinds = iota
	toolKinds
	embeddedKinds
	completionKinds
	cachedKinds
	lifetimes
)

var lists = [...]list{
	promptKinds:     {"modality", "tokenCount", []kind{{"AUDIO", PromptAudio}, {"IMAGE", PromptImage}, {"DOCUMENT", PromptImage}, {"VIDEO", PromptVideo}, {"TEXT", PromptText}}},
	toolKinds:       {"modality", "tokenCount", []kind{{"AUDIO", PromptAudio}, {"IMAGE", PromptImage}, {"DOCUMENT", PromptImage}, {"VIDEO", PromptVideo}, {"TEXT", PromptText}, {"TEXT", ToolText}}},
	embeddedKinds:   {"modality", "tokenCount", []kind{{"AUDIO", PromptAudio}, {"IMAGE", PromptImage}, {"DOCUMENT", PromptImage}, {"VIDEO", PromptVideo}}},
	completionKinds: {"modality", "tokenCount", []kind{{"AUDIO", CompletionAudio}, {"IMAGE", CompletionImage}, {"TEXT", CompletionText}}},
	cachedKinds:     {"modality", "tokenCount", []kind{{"AUDIO", CachedAudio}, {"IMAGE", CachedImage}, {"DOCUMENT", CachedImage}, {"VIDEO", CachedVideo}, {"TEXT", CachedText}}},
	lifetimes:       {"ttl", "inputTokens", []kind{{"1h", CacheWrite1h}}},
}

var errorNames = []string{"error.type", "error.code", "error.status", "__type"}

// chat is OpenAI's chat form with the further names its followers have.
var chat = table{
	counts: map[Count][]string{
		Prompt:          {"usage.prompt_tokens"},
		Completion:      {"usage.completion_tokens"},
		Total:           {"usage.total_tokens"},
		Cached:          {"usage.prompt_tokens_details.cached_tokens", "usage.prompt_cache_hit_tokens", "x_groq.usage.prompt_tokens_details.cached_tokens"},
		CacheWrite:      {"usage.prompt_tokens_details.cache_write_tokens"},
		RawCached:       {"usage.num_cached_tokens", "usage.cached_tokens"}, // no lower price is known for these
		PromptAudio:     {"usage.prompt_tokens_details.audio_tokens"},
		PromptImage:     {"usage.prompt_tokens_details.image_tokens"},
		PromptVideo:     {"usage.prompt_tokens_details.video_tokens"},
		Thinking:        {"usage.completion_tokens_details.reasoning_tokens", "usage.reasoning_tokens"},
		CompletionAudio: {"usage.completion_tokens_details.audio_tokens"},
		CompletionImage: {"usage.completion_tokens_details.image_tokens"},
		Searches:        {"usage.num_search_queries", "usage.server_tool_use.web_search_requests"},
	},
	names: map[int][]string{
		nameModel: {"model"}, nameID: {"id"}, nameTier: {"service_tier"},
		nameFinish: {"choices.*.finish_reason"}, nameError: errorNames,
	},
	text:      []string{"choices.*.delta", "choices.*.message", "choices.*.text"},
	terminal:  []string{done},
	usageEnds: true,
}

// groq states usage under a name of its own in streams.
var groq = chat.with(map[Count][]string{
	Prompt: {"x_groq.usage.prompt_tokens"}, Completion: {"x_groq.usage.completion_tokens"}, Total: {"x_groq.usage.total_tokens"},
	Thinking: {"x_groq.usage.completion_tokens_details.reasoning_tokens"},
})

// mistral streams end as OpenAI's; its cached tokens have three names.
var mistral = chat.with(map[Count][]string{Cached: {"usage.prompt_token_details.cached_tokens"}})

// responses is OpenAI's newer form; embeddings, audio and images share it.
var responses = table{
	shape: subsets,
	roots: []string{"", "response."},
	counts: map[Count][]string{
		Prompt:          {"usage.input_tokens", "usage.prompt_tokens"},
		Completion:      {"usage.output_tokens", "usage.completion_tokens"},
		Total:           {"usage.total_tokens"},
		Cached:          {"usage.input_tokens_details.cached_tokens", "usage.input_token_details.cached_tokens", "usage.prompt_tokens_details.cached_tokens"},
		CacheWrite:      {"usage.input_tokens_details.cache_write_tokens"},
		PromptAudio:     {"usage.input_tokens_details.audio_tokens", "usage.input_token_details.audio_tokens"},
		PromptImage:     {"usage.input_tokens_details.image_tokens", "usage.input_token_details.image_tokens"},
		Thinking:        {"usage.output_tokens_details.reasoning_tokens"},
		CompletionAudio: {"usage.output_tokens_details.audio_tokens", "usage.output_token_details.audio_tokens"},
		CompletionImage: {"usage.output_tokens_details.image_tokens", "usage.output_token_details.image_tokens"},
		Seconds:         {"usage.seconds"},
		Created:         {"created_at"},
		Background:      {"background"},
	},
	names: map[int][]string{
		nameModel: {"model"}, nameID: {"id"}, nameTier: {"service_tier"}, nameFinish: {"status"},
		nameError: errorNames, nameEvent: {"type"},
	},
	text: []string{"output", "delta"},
	terminal: []string{
		"response.completed", "response.incomplete", "response.failed", "response.cancelled", "transcript.text.done", "speech.audio.done",
		"image_generation.completed", "image_edit.completed", done,
	},
}

// transcripts are responses whose text stands at the top.
var transcripts = responses.reading("text")

// batch is a line of OpenAI's form, whose body is of any endpoint.
var batch = chat.with(responses.counts).with(mistral.counts).reading("output").below("response.body.", map[Count][]string{
	StatusCode: {"response.status_code"}, Created: {"response.body.created", "response.body.created_at"},
}, map[int][]string{
	nameID: {"id"}, nameCustom: {"custom_id"}, nameAnswered: {"response.request_id"}, nameObject: {"response.body.object"},
	nameModel: {"response.body.model"}, nameError: {"error.code", "response.body.error.type", "response.body.error.code"},
})

// anthropic's last event repeats all counts, its first has those of the prompt.
var anthropic = table{
	shape: apart,
	roots: []string{"", "message."},
	counts: map[Count][]string{
		Prompt:       {"usage.input_tokens"},
		Completion:   {"usage.output_tokens"},
		Cached:       {"usage.cache_read_input_tokens"},
		CacheWrite:   {"usage.cache_creation_input_tokens"},
		CacheWrite5m: {"usage.cache_creation.ephemeral_5m_input_tokens"},
		CacheWrite1h: {"usage.cache_creation.ephemeral_1h_input_tokens"},
		Thinking:     {"usage.output_tokens_details.thinking_tokens"},
		Searches:     {"usage.server_tool_use.web_search_requests"},
	},
	names: map[int][]string{
		nameModel: {"model"}, nameID: {"id"}, nameTier: {"usage.service_tier"},
		nameFinish: {"stop_reason", "delta.stop_reason"}, nameError: errorNames, nameEvent: {"type"},
	},
	text:     []string{"content", "delta"},
	terminal: []string{"message_stop"},
}

// messages is a line of Anthropic's form.
var messages = anthropic.below("result.message.", nil, map[int][]string{
	nameID: {"result.message.id"}, nameCustom: {"custom_id"}, nameOutcome: {"result.type"}, nameObject: {"result.message.type"},
	nameModel: {"result.message.model"}, nameError: {"result.error.type", "result.error.error.type"},
})

// gemini's answer is one document, a stream of them, or a list of them.
var gemini = table{
	shape:     thoughtsApart,
	merging:   snapshots,
	roots:     []string{"", "*."},
	documents: anyElement,
	counts: map[Count][]string{
		Prompt:     {"usageMetadata.promptTokenCount"},
		Completion: {"usageMetadata.candidatesTokenCount", "usageMetadata.responseTokenCount"},
		Thinking:   {"usageMetadata.thoughtsTokenCount"},
		ToolPrompt: {"usageMetadata.toolUsePromptTokenCount"},
		Cached:     {"usageMetadata.cachedContentTokenCount"},
		Total:      {"usageMetadata.totalTokenCount"},
	},
	names: map[int][]string{
		nameModel: {"modelVersion"}, nameID: {"responseId"}, nameTier: {"usageMetadata.serviceTier", "usageMetadata.trafficType"},
		nameFinish: {"candidates.*.finishReason", "promptFeedback.blockReason"}, nameError: {"error.status"},
	},
	lists: map[string]int{
		"usageMetadata.promptTokensDetails": promptKinds, "usageMetadata.promptTokenDetails": embeddedKinds,
		"usageMetadata.toolUsePromptTokensDetails": toolKinds,
		"usageMetadata.candidatesTokensDetails":    completionKinds, "usageMetadata.responseTokensDetails": completionKinds,
		"usageMetadata.cacheTokensDetails": cachedKinds,
	},
	text:       []string{"candidates.*.content"},
	terminal:   []string{done},
	finishEnds: true,
}

// predictions state tokens for each text that was embedded (Google, "Text embeddings
// API": statistics.token_count of each prediction); other predictions state none.
var predictions = table{
	merging:   sums,
	documents: "predictions.*",
	counts: map[Count][]string{
		Prompt: {"predictions.*.embeddings.statistics.token_count", "predictions.*.embeddings.statistics.tokenCount"},
	},
	names: map[int][]string{nameError: {"error.status"}},
}

// converse names each cache count twice; both names are one count.
var converse = table{
	shape: apart,
	counts: map[Count][]string{
		Prompt:     {"usage.inputTokens"},
		Completion: {"usage.outputTokens"},
		Total:      {"usage.totalTokens"},
		Cached:     {"usage.cacheReadInputTokens", "usage.cacheReadInputTokenCount"},
		CacheWrite: {"usage.cacheWriteInputTokens", "usage.cacheWriteInputTokenCount"},
	},
	names: map[int][]string{
		nameFinish: {"stopReason"}, nameError: errorNames, nameTier: {"serviceTier.type"},
	},
	lists:    map[string]int{"usage.cacheDetails": lifetimes},
	text:     []string{"output", "delta"},
	terminal: []string{"messageStop", "metadata"},
}

// invoke is Bedrock's native form: each model family's own, and the metrics
// that Bedrock adds to the last chunk of a stream.
var invoke = anthropic.with(map[Count][]string{
	Prompt:     {"usage.inputTokens", "usage.prompt_tokens", "inputTextTokenCount", "prompt_token_count", metrics + "inputTokenCount"},
	Completion: {"usage.outputTokens", "usage.completion_tokens", "generation_token_count", "results.*.tokenCount", metrics + "outputTokenCount"},
	Total:      {"usage.totalTokens", "usage.total_tokens"},
	Cached:     {"usage.cacheReadInputTokenCount", "usage.cacheReadInputTokens", metrics + "cacheReadInputTokenCount"},
	CacheWrite: {"usage.cacheWriteInputTokenCount", "usage.cacheWriteInputTokens", metrics + "cacheWriteInputTokenCount"},
})

const metrics = "amazon-bedrock-invocationMetrics."

// cohere bills fewer tokens than it processes, and states both.
var cohere = table{
	shape: billed,
	roots: []string{"", "response.", "delta."},
	counts: map[Count][]string{
		Prompt:        {"usage.billed_units.input_tokens", "meta.billed_units.input_tokens"},
		Completion:    {"usage.billed_units.output_tokens", "meta.billed_units.output_tokens"},
		PromptImage:   {"meta.billed_units.image_tokens"},
		RawPrompt:     {"usage.tokens.input_tokens", "meta.tokens.input_tokens"},
		RawCompletion: {"usage.tokens.output_tokens", "meta.tokens.output_tokens"},
		RawCached:     {"usage.cached_tokens", "meta.cached_tokens"},
		Units:         {"usage.billed_units.search_units", "meta.billed_units.search_units"},
	},
	names: map[int][]string{
		nameID: {"id", "generation_id"}, nameFinish: {"finish_reason", "delta.finish_reason"},
		nameError: errorNames, nameEvent: {"type", "event_type"}, nameModel: {"model"},
	},
	text:     []string{"message", "delta", "text"},
	terminal: []string{"message-end", "stream-end"},
}

// done is the kind of the last event of OpenAI's streams, which is no JSON.
const done = "[DONE]"

// with is the table with further paths of counts.
func (t table) with(more map[Count][]string) table {
	counts := make(map[Count][]string, len(t.counts)+len(more))
	for c, paths := range t.counts {
		counts[c] = paths
	}
	for c, paths := range more {
		counts[c] = append(append([]string(nil), counts[c]...), paths...)
	}
	t.counts = counts
	return t
}

// reading is the table with another path of answer text.
func (t table) reading(path string) table {
	t.text = append(append([]string(nil), t.text...), path)
	return t
}

// below is the table of a batch's lines, whose responses stand under prefix: its counts
// and text there, and with them the counts and names that are given by their whole paths.
func (t table) below(prefix string, more map[Count][]string, names map[int][]string) table {
	out := table{shape: t.shape, merging: sums, counts: map[Count][]string{}, names: names}
	for c, paths := range t.counts {
		if c == Background || c == Created {
			continue
		}
		for _, p := range paths {
			out.counts[c] = append(out.counts[c], prefix+p)
		}
	}
	for _, p := range t.text {
		out.text = append(out.text, prefix+p)
	}
	return out.with(more)
}

// grammars are the compiled tables; read only.
var grammars = [NumDialects]*grammar{
	None:             compile(table{}),
	OpenAIChat:       compile(chat),
	OpenAIResponses:  compile(responses),
	OpenAIEmbeddings: compile(chat),
	OpenAIAudio:      compile(transcripts),
	OpenAIImages:     compile(responses),
	OpenAIBatch:      compile(batch),
	Anthropic:        compile(anthropic),
	Gemini:           compile(gemini),
	BedrockConverse:  compile(converse),
	BedrockInvoke:    compile(invoke),
	Mistral:          compile(mistral),
	Cohere:           compile(cohere),
	DeepSeek:         compile(chat),
	XAI:              compile(chat),
	Groq:             compile(groq),
	OpenRouter:       compile(chat),
	Compatible:       compile(chat),
	AnthropicBatch:   compile(messages),
	VertexPredict:    compile(predictions),
}

// chunkGrammar is of the outer documents of Bedrock's native streams.
var chunkGrammar = chunks()

func chunks() *grammar {
	g := compile(table{})
	g.at("bytes").base64 = true
	return g
}
