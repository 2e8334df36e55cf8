package otlp

import (
	"encoding/base64"
	"strconv"
	"strings"
	"testing"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"google.golang.org/protobuf/proto"
)

// contentNames are the attributes in which instrumentations of every generation put
// prompts, answers, arguments and messages of errors.
var contentNames = []string{
	"gen_ai.prompt", "gen_ai.completion", "gen_ai.prompt.0.content", "gen_ai.completion.0.content", "gen_ai.input.messages", "gen_ai.output.messages",
	"gen_ai.system_instructions", "gen_ai.tool.definitions", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result", "gen_ai.content.prompt",
	"llm.prompts", "llm.completions", "llm.input_messages.0.message.content", "llm.output_messages.0.message.content", "llm.invocation_parameters",
	"llm.prompt_template.template", "llm.prompt_template.variables", "llm.tools.0.tool.json_schema", "input.value", "output.value",
	"embedding.embeddings.0.embedding.text", "retrieval.documents.0.document.content", "reranker.query", "tool.parameters",
	"traceloop.entity.input", "traceloop.entity.output", "traceloop.association.properties.prompt",
	"ai.prompt", "ai.prompt.messages", "ai.response.text", "ai.response.toolCalls", "ai.toolCall.args", "ai.value", "ai.values",
	"all_messages_events", "events", "prompt", "request_data", "response_data", "exception.message", "exception.stacktrace",
	"tallystick.tag.prompt", "logfire.msg", "body",
}

type planted struct {
	name string
	path string
	m    proto.Message
}

// plantedRequests has the secret in every place where text can stand: whole, in
// base64, in capitals, escaped in JSON.
func plantedRequests(t *testing.T, secret string) (all []planted) {
	t.Helper()
	forms := []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), strings.ToUpper(secret), `{"messages":[{"content":"` + secret + `"}]}`}
	for _, text := range forms {
		q := strconv.Quote(text)
		for _, name := range contentNames {
			all = append(all,
				planted{"span attribute " + name, "/v1/traces", &parseCase(t, callWith("  "+name+"="+q+"\n")).traces},
				planted{"resource attribute " + name, "/v1/traces", &parseCase(t, "resource\n  "+name+"="+q+"\n"+callWith("")).traces},
				planted{"record attribute " + name, "/v1/logs", &parseCase(t, recordWith("  "+name+"="+q+"\n")).logs},
				planted{"point attribute " + name, "/v1/metrics", &parseCase(t, "resource\n  tallystick.bill=\"metrics\"\nsum claude_code.token.usage 5\n  type=\"input\"\n  model=\"m\"\n  "+name+"="+q+"\n").metrics},
			)
		}
		k := parseCase(t, callWith("  error.type="+strconv.Quote("failed: "+text)+"\n  metadata="+strconv.Quote(`{"prompt":"`+secret+`","deep":{"a":"`+secret+`"}}`)+"\n"))
		value := anyValue(t, q)
		s := k.traces.ResourceSpans[0].ScopeSpans[0].Spans[0]
		s.Name, s.TraceState = text, "a="+text
		s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: text}
		s.Events = []*tracepb.Span_Event{{Name: text, Attributes: []*commonpb.KeyValue{{Key: "gen_ai.prompt", Value: value}}}}
		s.Links = []*tracepb.Span_Link{{TraceState: text, Attributes: []*commonpb.KeyValue{{Key: "x", Value: value}}}}
		s.Attributes = append(s.Attributes, &commonpb.KeyValue{Key: "user.id", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{value}}}}},
			&commonpb.KeyValue{Key: text, Value: value})
		k.traces.ResourceSpans[0].ScopeSpans[0].Scope.Name = text
		all = append(all, planted{"around a span", "/v1/traces", &k.traces})
		k = parseCase(t, recordWith(""))
		r := k.logs.ResourceLogs[0].ScopeLogs[0].LogRecords[0]
		r.Body, r.SeverityText = value, text
		all = append(all, planted{"around a record", "/v1/logs", &k.logs})
	}
	return all
}

func callWith(attrs string) string {
	return "span 1\n  gen_ai.operation.name=\"chat\"\n  gen_ai.provider.name=\"openai\"\n  gen_ai.response.model=\"gpt-5\"\n  gen_ai.usage.input_tokens=10\n" + attrs
}

func recordWith(attrs string) string {
	return "resource\n  service.name=\"claude-code\"\nlog api_request\n  model=\"m\"\n  input_tokens=4\n" + attrs
}
