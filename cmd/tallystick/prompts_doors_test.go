package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/callback"
)

// doorBatch is how many payloads one request to a front door holds.
const doorBatch = 50

// deliver posts a body to a front door; every answer is held against the seed.
func (w *promptsWorld) deliver(path, media, body string) (status int) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.url()+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	req.Header.Set("Content-Type", media)
	req.Header.Set(ingest.TenantHeader, plantedTenant)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	w.clean(string(answer))
	if res.StatusCode >= http.StatusInternalServerError {
		w.t.Fatalf("%s: %d %s", path, res.StatusCode, answer)
	}
	return res.StatusCode
}

// batches calls body for each payload and send for each batch of them.
func (w *promptsWorld) batches(from, n int, body func(k int) string, send func(b int, bodies []string)) {
	for b := range n / doorBatch {
		var bodies []string
		for i := range doorBatch {
			bodies = append(bodies, body(from+b*doorBatch+i))
			w.sent.Add(1)
		}
		send(b, bodies)
	}
}

// shaped is a fragment in one of the shapes that text travels in, as a JSON string.
func shaped(k int) string {
	text := fragment(k)
	switch k % 3 {
	case 1:
		text = base64.StdEncoding.EncodeToString([]byte(text))
	case 2:
		text = `{"messages":[{"content":` + quoted(text) + `}]}`
	}
	return quoted(text)
}

// otlpAttribute is an attribute in OTLP's JSON.
func otlpAttribute(key, value string) string {
	return fmt.Sprintf(`{"key":%q,"value":{%s}}`, key, value)
}

// traces sends spans of calls with prompts where instrumentations put them.
func (w *promptsWorld) traces(from, n int) {
	w.batches(from, n, func(k int) string {
		text := `"stringValue":` + shaped(k)
		attributes := []string{
			otlpAttribute("gen_ai.operation.name", `"stringValue":"chat"`), otlpAttribute("gen_ai.provider.name", `"stringValue":"openai"`),
			otlpAttribute("gen_ai.response.model", `"stringValue":"gpt-4o-mini"`), otlpAttribute("gen_ai.usage.input_tokens", `"intValue":"9"`),
			otlpAttribute("gen_ai.usage.output_tokens", `"intValue":"4"`), otlpAttribute("gen_ai.prompt", text), otlpAttribute("gen_ai.completion.0.content", text),
			otlpAttribute("gen_ai.input.messages", `"arrayValue":{"values":[{`+text+`}]}`), otlpAttribute("input.value", text), otlpAttribute("exception.message", text),
			otlpAttribute("metadata", `"stringValue":`+quoted(`{"prompt":`+shaped(k)+`}`)), `{"key":` + shaped(k) + `,"value":{` + text + `}}`,
		}
		now := time.Now().UnixNano()
		return fmt.Sprintf(`{"traceId":"%032x","spanId":"%016x","name":%s,"traceState":%s,"startTimeUnixNano":"%d","endTimeUnixNano":"%d","status":{"code":2,"message":%s},`+
			`"attributes":[%s],"events":[{"name":%s,"attributes":[%s]}]}`,
			k+1, k+1, shaped(k), shaped(k), now-1e9, now, shaped(k), strings.Join(attributes, ","), shaped(k), otlpAttribute("gen_ai.event.content", text))
	}, func(_ int, spans []string) {
		body := `{"resourceSpans":[{"resource":{"attributes":[` + otlpAttribute("service.name", `"stringValue":"app"`) + `,` + otlpAttribute("prompt", `"stringValue":`+shaped(from)) +
			`]},"scopeSpans":[{"scope":{"name":` + shaped(from) + `},"spans":[` + strings.Join(spans, ",") + `]}]}]}`
		if code := w.deliver("/v1/traces", "application/json", body); code != http.StatusOK {
			w.t.Fatalf("traces: %d", code)
		}
		if code := w.deliver("/v1/traces", "application/json", body[:len(body)-9]+seed); code != http.StatusBadRequest {
			w.t.Fatalf("traces that are cut off: %d", code)
		}
	})
}

// litellm sends the payloads of LiteLLM's callback, which hold all there is.
func (w *promptsWorld) litellm(from, n int) {
	w.batches(from, n, func(k int) string {
		text, now := shaped(k), float64(time.Now().UnixMilli())/1000
		return fmt.Sprintf(`{"id":"chatcmpl-%d","litellm_call_id":"call-%d","call_type":"acompletion","status":"success","custom_llm_provider":"openai","model":"gpt-4o-mini",`+
			`"startTime":%f,"endTime":%f,"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"messages":[{"role":"user","content":%s}],"response":{"choices":[{"message":{"content":%s}}]},`+
			`"error_str":%s,"error_information":{"error_message":%s,"traceback":%s},"model_parameters":{"x":%s},"hidden_params":{"headers":{"x":%s}},"request_tags":["plain"],`+
			`"metadata":{"spend_logs_metadata":{"prompt":%s},"requester_metadata":{"messages":%s},"prompt_management_metadata":{"x":%s}}}`,
			k, k, now-1, now, text, text, text, text, text, text, text, text, text, text)
	}, func(_ int, payloads []string) {
		if code := w.deliver(callback.LiteLLMPath, "application/json", "["+strings.Join(payloads, ",")+"]"); code >= 300 {
			w.t.Fatalf("litellm: %d", code)
		}
		w.deliver(callback.LiteLLMPath, "application/json", `[{"id":`+shaped(from)+`,"messages":`+seed)
	})
}

// cloudEvents sends envelopes with fragments around our events, and in every
// second batch within them.
func (w *promptsWorld) cloudEvents(from, n int) {
	w.batches(from, n, func(k int) string {
		within := ""
		if (k-from)/doorBatch%2 == 1 {
			within = `,"prompt":` + shaped(k)
		}
		at := time.Now().UTC().Format(time.RFC3339)
		return fmt.Sprintf(`{"specversion":"1.0","id":"%d","source":"/planted","type":"com.tallystick.usage.v1","time":%q,"subject":%s,"prompt":%s,`+
			`"data":{"tenant_id":%q,"provider":"openai","model":"gpt-5","tokens":{"input":5}%s}}`, k, at, shaped(k), shaped(k), plantedTenant, within)
	}, func(b int, events []string) {
		code := w.deliver(callback.CloudEventsPath, "application/cloudevents-batch+json", "["+strings.Join(events, ",")+"]")
		if refused := b%2 == 1; refused != (code >= 300) {
			w.t.Fatalf("cloud events, batch %d: %d", b, code)
		}
	})
}
