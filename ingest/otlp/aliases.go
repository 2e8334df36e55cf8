package otlp

import (
	"slices"
	"strings"
)

// field is one fact that a span, a log record or a data point states about a call.
type field uint8

// Facts in words.
const (
	provider field = iota
	model
	requestedModel
	operation
	responseID
	serviceTier
	region
	errorType
	eventID
	providerCost
	serverAddress // where the call went, by its host
	baseURL       // or by its base URL
	proxyEvent    // the id of the metering proxy's event of the call
	numTexts
)

// Facts in numbers.
const (
	inputTokens field = iota + numTexts
	outputTokens
	totalTokens
	cacheRead
	cacheWrite
	cacheWrite1h
	reasoning
	audioInput
	audioOutput
	imageInput
	imageOutput
	toolInput // prompt tokens of tool results that input does not contain
	httpStatus
	streaming
	ttftSeconds
	ttftMillis
	durationMillis
	serverPort
	sequence // the producer's own number of the record
	numFields
)

// Facts of attribution, and what bills.
const (
	billBy       field = iota + numFields // what of its telemetry the source wants to be billed by
	metadataJSON                          // a JSON object of attribution
	providerPath                          // a provider and what of it, "openai.chat"
	tagSession
	tagConversation
	tagWorkflow
)

// tagNames are the tags that attributes become.
var tagNames = map[field]string{tagSession: "session_id", tagConversation: "conversation_id", tagWorkflow: "workflow"}

// alias is one name of a fact.
type alias struct {
	key string
	to  field
}

// aliasTable lists the names that facts have had, those that win first. Where two
// names of one fact are given, the one that stands earlier here counts.
//
// Sources: OpenTelemetry semantic conventions for generative AI 1.27 to 1.38
// (docs/gen-ai); OpenLLMetry's semantic_conventions_ai; OpenInference's semantic
// conventions; Vercel AI SDK's telemetry page; Pydantic AI/Logfire's usage details.
var aliasTable = []alias{
	// Our own.
	{"tallystick.event_id", eventID},
	{"tallystick.bill", billBy},
	// The header of the metering proxy's answers, captured by an instrumentation of HTTP.
	{"http.response.header.x-tallystick-event-id", proxyEvent},
	{"http.response.header.x_tallystick_event_id", proxyEvent},

	// OpenTelemetry, the newest generation first.
	{"gen_ai.provider.name", provider},
	{"gen_ai.system", provider},
	{"gen_ai.response.model", model},
	{"gen_ai.request.model", requestedModel},
	{"gen_ai.operation.name", operation},
	{"gen_ai.response.id", responseID},
	{"gen_ai.usage.input_tokens", inputTokens},
	{"gen_ai.usage.output_tokens", outputTokens},
	{"gen_ai.usage.cache_read.input_tokens", cacheRead},
	{"gen_ai.usage.cache_creation.input_tokens", cacheWrite},
	{"gen_ai.usage.cache_write.input_tokens", cacheWrite},
	{"gen_ai.usage.reasoning.output_tokens", reasoning},
	{"gen_ai.usage.audio.input_tokens", audioInput},
	{"gen_ai.usage.audio.output_tokens", audioOutput},
	{"gen_ai.usage.image.input_tokens", imageInput},
	{"gen_ai.usage.image.output_tokens", imageOutput},
	{"gen_ai.usage.prompt_tokens", inputTokens},
	{"gen_ai.usage.completion_tokens", outputTokens},
	{"gen_ai.usage.total_tokens", totalTokens},
	{"gen_ai.usage.cost", providerCost},
	{"openai.response.service_tier", serviceTier},
	{"gen_ai.openai.response.service_tier", serviceTier},
	{"gen_ai.response.service_tier", serviceTier},
	{"gen_ai.request.stream", streaming},
	{"gen_ai.response.time_to_first_chunk", ttftSeconds},
	{"gen_ai.server.time_to_first_token", ttftSeconds},
	{"gen_ai.conversation.id", tagConversation},
	{"session.id", tagSession},
	{"error.type", errorType},
	{"http.response.status_code", httpStatus},
	{"aws.region", region},
	{"cloud.region", region}, // of a call's own attributes only: see aliasOfResource
	{"server.address", serverAddress},
	{"server.port", serverPort},
	{"net.peer.name", serverAddress},
	{"net.peer.port", serverPort},

	// OpenLLMetry (traceloop), and OpenTelemetry's contributions that follow it.
	{"gen_ai.usage.cache_read_input_tokens", cacheRead},
	{"gen_ai.usage.cache_creation_input_tokens", cacheWrite},
	{"gen_ai.usage.reasoning_tokens", reasoning},
	{"llm.usage.prompt_tokens", inputTokens},
	{"llm.usage.completion_tokens", outputTokens},
	{"llm.usage.total_tokens", totalTokens},
	{"llm.usage.reasoning_tokens", reasoning},
	{"llm.usage.cache_read_input_tokens", cacheRead},
	{"llm.usage.cache_creation_input_tokens", cacheWrite},
	{"llm.vendor", provider},
	{"llm.request.model", requestedModel},
	{"llm.response.model", model},
	{"llm.request.type", operation},
	{"traceloop.span.kind", operation},
	{"llm.is_streaming", streaming},
	{"gen_ai.is_streaming", streaming},
	{"llm.response.id", responseID},
	{"gen_ai.openai.api_base", baseURL},
	{"traceloop.workflow.name", tagWorkflow},

	// Pydantic AI and Logfire: a provider's own details beside OpenTelemetry's names.
	{"gen_ai.usage.details.cache_read_tokens", cacheRead},
	{"gen_ai.usage.details.cached_tokens", cacheRead},
	{"gen_ai.usage.details.cache_read_input_tokens", cacheRead},
	{"gen_ai.usage.details.cache_write_tokens", cacheWrite},
	{"gen_ai.usage.details.cache_creation_input_tokens", cacheWrite},
	{"gen_ai.usage.details.reasoning_tokens", reasoning},
	{"gen_ai.usage.details.thoughts_tokens", reasoning},
	{"gen_ai.usage.details.input_audio_tokens", audioInput},
	{"gen_ai.usage.details.output_audio_tokens", audioOutput},
	{"operation.cost", providerCost},

	// OpenInference. Its llm.provider is the host, llm.system the family.
	{"llm.provider", provider},
	{"llm.system", provider},
	{"llm.model_name", model},
	{"embedding.model_name", model},
	{"reranker.model_name", model},
	{"openinference.span.kind", operation},
	{"llm.token_count.prompt", inputTokens},
	{"llm.token_count.completion", outputTokens},
	{"llm.token_count.total", totalTokens},
	{"llm.token_count.prompt_details.cache_read", cacheRead},
	{"llm.token_count.prompt_details.cache_write", cacheWrite},
	{"llm.token_count.prompt_details.audio", audioInput},
	{"llm.token_count.completion_details.reasoning", reasoning},
	{"llm.token_count.completion_details.audio", audioOutput},
	{"llm.cost.total", providerCost},
	{"metadata", metadataJSON},

	// Vercel AI SDK.
	{"ai.model.provider", providerPath},
	{"ai.response.model", model},
	{"ai.model.id", requestedModel},
	{"ai.operationId", operation},
	{"ai.response.id", responseID},
	{"ai.usage.inputTokens", inputTokens},
	{"ai.usage.promptTokens", inputTokens},
	{"ai.usage.outputTokens", outputTokens},
	{"ai.usage.completionTokens", outputTokens},
	{"ai.usage.tokens", inputTokens},
	{"ai.usage.totalTokens", totalTokens},
	{"ai.usage.cachedInputTokens", cacheRead},
	{"ai.usage.reasoningTokens", reasoning},
	{"ai.response.msToFirstChunk", ttftMillis},
}

// aliasOf finds a name; its place in the table is its rank.
var aliasOf = ranks(aliasTable)

// aliasOfResource finds the names that a resource may state. Where a call went is none
// of them: a resource's region is where the program runs, and prices differ by the
// region of the model.
var aliasOfResource = without(aliasOf, region, serverAddress, serverPort, baseURL, proxyEvent)

// without is find without the names of some facts.
func without(find map[string]int, of ...field) map[string]int {
	m := make(map[string]int, len(find))
	for key, i := range find {
		if !slices.Contains(of, aliasTable[i].to) {
			m[key] = i
		}
	}
	return m
}

func ranks(table []alias) map[string]int {
	m := make(map[string]int, len(table))
	for i, a := range table {
		m[a.key] = i
	}
	return m
}

// operations says of the names of operations whether one is a call of a model. What
// is none may repeat the usage of the calls in it and is never counted.
var operations = map[string]bool{
	"chat": true, "text_completion": true, "completion": true, "generate_content": true, "embeddings": true, "embedding": true,
	"rerank": true, "reranker": true, "llm": true, "response": true, "responses": true, "image_generation": true,
	"transcription": true, "translation": true, "speech": true,
	"ai.generatetext.dogenerate": true, "ai.streamtext.dostream": true, "ai.generateobject.dogenerate": true,
	"ai.streamobject.dostream": true, "ai.embed.doembed": true, "ai.embedmany.doembed": true,

	"invoke_agent": false, "create_agent": false, "execute_tool": false, "invoke_workflow": false, "plan": false,
	"agent": false, "chain": false, "tool": false, "retriever": false, "retrieval": false, "guardrail": false, "evaluator": false, "prompt": false,
	"workflow": false, "task": false,
	"ai.generatetext": false, "ai.streamtext": false, "ai.generateobject": false, "ai.streamobject": false,
	"ai.embed": false, "ai.embedmany": false, "ai.toolcall": false,
}

// tiers translates providers' service tiers; what is not here is standard.
var tiers = map[string]string{
	"batch": "batch", "flex": "flex", "priority": "priority",
}

// tool is a coding tool that reports itself. It sees what a provider answered, not
// what the provider bills, so its usage is an estimate.
type tool struct {
	name     string
	provider string
	// services are beginnings of service.name and of the scope's name.
	services []string
	// record is the event.name of the log records that are one call each. Only they
	// are counted: the tool's spans and metrics say the same again.
	record string
	fields []alias
	// apart: cached tokens are not in input, nor reasoning in output.
	cacheApart, reasoningApart bool
}

// tools is the table of coding tools. Sources: Claude Code's monitoring page, Codex'
// docs/config.md (otel), Gemini CLI's docs/cli/telemetry.md, as of 2026-11.
var tools = []tool{
	{
		name: "claude_code", provider: "anthropic", services: []string{"claude-code", "com.anthropic.claude_code"}, record: "api_request",
		fields: []alias{
			{"model", model}, {"input_tokens", inputTokens}, {"output_tokens", outputTokens}, {"cache_read_tokens", cacheRead},
			{"cache_creation_tokens", cacheWrite}, {"cost_usd", providerCost}, {"duration_ms", durationMillis}, {"request_id", responseID},
			{"event.sequence", sequence}, {"session.id", tagSession},
		},
		cacheApart: true,
	},
	{
		name: "codex", provider: "openai", services: []string{"codex_cli", "codex-cli", "codex_exec", "codex_vscode", "codex_sdk", "codex-app-server"}, record: "codex.sse_event",
		fields: []alias{
			{"model", model}, {"input_token_count", inputTokens}, {"output_token_count", outputTokens}, {"cached_token_count", cacheRead},
			{"reasoning_token_count", reasoning}, {"duration_ms", durationMillis}, {"conversation.id", tagConversation},
		},
	},
	{
		name: "gemini_cli", provider: "gemini", services: []string{"gemini-cli"}, record: "gemini_cli.api_response",
		fields: []alias{
			{"model", model}, {"input_token_count", inputTokens}, {"output_token_count", outputTokens}, {"cached_content_token_count", cacheRead},
			{"thoughts_token_count", reasoning}, {"tool_token_count", toolInput}, {"total_token_count", totalTokens},
			{"duration_ms", durationMillis}, {"status_code", httpStatus}, {"prompt_id", responseID}, {"session.id", tagSession},
		},
		reasoningApart: true,
	},
}

// toolOf finds the tool that a service or scope is, nil for none.
func toolOf(names ...string) *tool {
	for i := range tools {
		for _, prefix := range tools[i].services {
			for _, name := range names {
				if strings.HasPrefix(strings.ToLower(name), prefix) {
					return &tools[i]
				}
			}
		}
	}
	return nil
}

// usageMetric is a metric whose points are tokens of one class each, or a cost.
type usageMetric struct {
	kind  string // the attribute that names the class
	kinds map[string]field
	// provider is that of a tool's own metric, "" where an attribute says it.
	provider string
	// cost: the points are US dollars, as the tool counts them, and of no class.
	cost bool
}

// usageMetrics are the metrics that can be billed by, for a source that asks for it.
var usageMetrics = map[string]usageMetric{
	"gen_ai.client.token.usage": {kind: "gen_ai.token.type", kinds: map[string]field{"input": inputTokens, "output": outputTokens, "completion": outputTokens}},
	"claude_code.token.usage": {kind: "type", provider: "anthropic", kinds: map[string]field{
		"input": inputTokens, "output": outputTokens, "cacheRead": cacheRead, "cacheCreation": cacheWrite,
	}},
	"claude_code.cost.usage": {provider: "anthropic", cost: true},
	"gemini_cli.token.usage": {kind: "type", provider: "gemini", kinds: map[string]field{
		"input": inputTokens, "output": outputTokens, "thought": reasoning, "tool": toolInput, // "cache" is part of "input"
	}},
}
