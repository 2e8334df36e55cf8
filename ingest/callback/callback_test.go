package callback_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/callback"
	"github.com/tallystick/tallystick/ingest/doortest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tokens"
)

func now() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

type answer struct {
	Accepted string `json:"accepted"`
	Refused  string `json:"refused"`
	Refusals []struct{ Index, Field, Rule string }
}

func (a answer) String() string {
	s := "accepted " + a.Accepted + " refused " + a.Refused
	for _, r := range a.Refusals {
		s += fmt.Sprintf(" [%s %s %s]", r.Index, r.Field, r.Rule)
	}
	return s
}

// post sends a body to a door and returns status, answer and events.
func post(t *testing.T, log *doortest.Log, door func(callback.Edge) http.Handler, body string, header ...string) (int, answer, []event.Event) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer good")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	door(doortest.NewEdge(t, log, now)).ServeHTTP(w, r)
	if strings.Contains(w.Body.String(), "planted") {
		t.Errorf("the answer repeats the body: %s", w.Body)
	}
	var a answer
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	recs := log.Take()
	for _, rec := range recs {
		if bytes.Contains(rec, []byte("planted")) {
			t.Errorf("text came through: %q", rec)
		}
	}
	return w.Code, a, doortest.Events(t, recs)
}

const usage = `{"occurred_at":"2026-11-22T11:59:00Z","provider":"openai","model":"gpt-5","tokens":{"input":"7"},"team":"core"}`

func TestCloudEvents(t *testing.T) {
	event := func(id, typ, data string) string {
		return `{"specversion":"1.0","id":"` + id + `","source":"/svc/a","type":"` + typ + `","time":"2026-11-22T11:58:00Z","traceparent":"x","data":` + data + `}`
	}
	good := event("1", callback.UsageType, usage)
	own := event("2", callback.UsageType, `{"event_id":"mine","occurred_at":"2026-11-22T11:59:00Z","provider":"openai","model":"gpt-5"}`)
	untimed := event("3", callback.UsageType, `{"provider":"openai","model":"gpt-5"}`)
	for _, tc := range []struct {
		name   string
		media  string
		body   string
		header []string
		code   int
		want   string
	}{
		{"structured", "application/cloudevents+json; charset=utf-8", good, nil, 202, "accepted 1 refused 0"},
		{"batch", "application/cloudevents-batch+json", "[" + good + "," + own + "," + untimed + "]", nil, 202, "accepted 3 refused 0"},
		{"empty batch", "application/cloudevents-batch+json", "[]", nil, 202, "accepted 0 refused 0"},
		{"binary", "application/json", usage, []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "%2Fsvc/a", "Ce-Type", callback.UsageType}, 202, "accepted 1 refused 0"},
		{"binary without envelope", "application/json", usage, nil, 400, "accepted  refused "},
		{
			"some bad", "application/cloudevents-batch+json",
			"[" + event("4", "other", usage) + "," + good + "," + event("", callback.UsageType, usage) + "," + event("5", callback.UsageType, `{"nope":1}`) + `,{"specversion":"0.3","id":"1","source":"s"},7]`,
			nil, 202, "accepted 1 refused 5 [0 type one_of] [2 id required] [3 nope unknown] [4 specversion one_of] [5 event malformed]",
		},
		{"unknown fields dropped", "application/cloudevents+json", event("6", callback.UsageType, strings.Replace(usage, "{", `{"planted":"x",`, 1)), []string{"X-Tallystick-Unknown-Fields", "drop"}, 202, "accepted 1 refused 0"},
		{"two in a structured body", "application/cloudevents+json", "[" + good + "," + own + "]", nil, 400, "accepted  refused "},
		{"no JSON", "application/cloudevents-batch+json", `[{"planted`, nil, 400, "accepted  refused "},
		{"more behind", "application/cloudevents-batch+json", `[` + good + `] planted`, nil, 400, "accepted  refused "},
		{"other media", "text/plain", good, nil, 415, "accepted  refused "},
		{"too many", "application/cloudevents-batch+json", "[" + strings.Repeat(good+",", ingest.MaxEvents) + good + "]", nil, 400, "accepted  refused "},
		{"no credential", "application/cloudevents+json", good, []string{"Authorization", "Bearer bad"}, 401, "accepted  refused "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, a, events := post(t, &doortest.Log{}, callback.CloudEvents, tc.body, append([]string{"Content-Type", tc.media}, tc.header...)...)
			if code != tc.code || a.String() != tc.want {
				t.Fatalf("%d %s, want %d %s", code, a, tc.code, tc.want)
			}
			for _, e := range events {
				if e.Model != "gpt-5" || e.ID == "" || e.Tenant != "acme" {
					t.Errorf("event %+v", e)
				}
			}
		})
	}
}

// An event's id does not depend on the mode or on what it came with.
func TestCloudEventsIDs(t *testing.T) {
	log := &doortest.Log{}
	envelope := `{"specversion":"1.0","id":"1","source":"/svc/a","type":"` + callback.UsageType + `","data":` + usage + `}`
	var ids []string
	for _, tc := range [][]string{
		{envelope, "Content-Type", "application/cloudevents+json"},
		{"[" + envelope + "]", "Content-Type", "application/cloudevents-batch+json"},
		{usage, "Content-Type", "application/json", "Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/svc/a", "Ce-Type", callback.UsageType},
	} {
		_, _, events := post(t, log, callback.CloudEvents, tc[0], tc[1:]...)
		ids = append(ids, events[0].ID)
	}
	if ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("ids %q", ids)
	}
	_, _, events := post(t, log, callback.CloudEvents, strings.Replace(envelope, "/svc/a", "/svc/b", 1), "Content-Type", "application/cloudevents+json")
	if events[0].ID == ids[0] {
		t.Error("another source, the same id")
	}
}

// litellmPayload is a StandardLoggingPayload as LiteLLM 1.106 posts it, cut down.
const litellmPayload = `{"id":"chatcmpl-9","litellm_call_id":"c-1","trace_id":"t-1","call_type":"acompletion","stream":true,"response_cost":1.25e-05,
"status":"success","custom_llm_provider":"openai","total_tokens":130,"prompt_tokens":100,"completion_tokens":30,
"startTime":1795348740.25,"endTime":1795348742.5,"completionStartTime":1795348740.5,"response_time":2.25,
"model":"gpt-4o-mini","model_group":"fast","api_base":"https://api.openai.com","cache_hit":null,"request_tags":["gold","job:7"],"end_user":"umbrella",
"metadata":{"user_api_key_hash":"planted","user_api_key_alias":"ci","user_api_key_team_id":"t-7","user_api_key_team_alias":"core","user_api_key_user_id":"jo",
 "spend_logs_metadata":{"feature":"search","prompt":"planted"},"requester_metadata":{"ticket":"ENG-1","deep":{"a":"planted"}},
 "usage_object":{"prompt_tokens_details":{"cached_tokens":60,"audio_tokens":null},"completion_tokens_details":{"reasoning_tokens":20}}},
"messages":[{"role":"user","content":"planted"}],"response":{"choices":[{"message":{"content":"planted"}}]},"error_str":"planted","error_information":{"error_code":"","error_class":""},
"model_parameters":{"planted":1},"hidden_params":{"planted":1}}`

func TestLiteLLM(t *testing.T) {
	log := &doortest.Log{}
	lines := strings.ReplaceAll(litellmPayload, "\n", " ")
	failed := strings.NewReplacer(`"success"`, `"failure"`, `"error_code":""`, `"error_code":"429"`, `"error_class":""`, `"error_class":"RateLimitError"`, "c-1", "c-2").Replace(lines)
	hit := strings.NewReplacer(`"cache_hit":null`, `"cache_hit":true`, "c-1", "c-3").Replace(lines)
	apart := strings.NewReplacer(`"cached_tokens":60`, `"cached_tokens":600`, "c-1", "c-4").Replace(lines)
	forms := map[string]struct{ media, body string }{
		"array": {"application/json", "[" + lines + "," + failed + "," + hit + "," + apart + "]"},
		"lines": {"application/x-ndjson", lines + "\n" + failed + "\n" + hit + "\n" + apart + "\n"},
		"one":   {"application/json", lines},
	}
	var first *event.Event
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			code, a, events := post(t, log, callback.LiteLLM, form.body, "Content-Type", form.media)
			if code != 202 || len(events) == 0 || a.Refused != "0" {
				t.Fatalf("%d %s", code, a)
			}
			e := events[0]
			if first == nil {
				first = &e
			} else if e.ID != first.ID || e.ContentMAC != first.ContentMAC {
				t.Errorf("the forms differ: %+v and %+v", e, *first)
			}
			if want := (tokens.Vector{tokens.Input: 40, tokens.CacheRead: 60, tokens.Output: 10, tokens.Reasoning: 20}); e.Tokens != want {
				t.Errorf("tokens %v, want %v", e.Tokens, want)
			}
			got := fmt.Sprint(e.Provider, e.Model, e.RequestedModel, e.Operation, e.ProviderCost, e.Team, e.Feature, e.EndCustomer, e.Tags, e.LatencyMicros, e.TTFTMicros, e.Streamed, e.OccurredAt)
			if want := "openaigpt-4o-minifastchat0.000012500000coresearchumbrella[{gold true} {job 7} {key_alias ci} {ticket ENG-1} {trace_id t-1}]2250000 250000 true 1795348740250000000"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if len(events) == 1 {
				return
			}
			if e := events[1]; e.Status != event.StatusError || e.ErrorType != "RateLimitError" || e.HTTPStatus != 429 || e.Tokens.Total() != 0 {
				t.Errorf("a failure is %+v", e)
			}
			if e := events[2]; e.Tokens.Total() != 0 || !hasTag(&e, "cache_hit", "true") {
				t.Errorf("an answer of LiteLLM's own cache is %+v", e)
			}
			if e := events[3]; e.Tokens[tokens.Input] != 0 || !hasTag(&e, "usage", "ambiguous") {
				t.Errorf("parts greater than the whole are %+v", e)
			}
		})
	}
}

// The parts of payloads that LiteLLM 1.106.2 makes of an answer of Anthropic with writes
// to the cache for both times, of a call of the tier flex, and of one of Anthropic's batches.
func TestLiteLLMWritesAndTiers(t *testing.T) {
	const head = `{"id":"msg_1","litellm_call_id":"c-1","call_type":"acompletion","status":"success","startTime":1795348740.25,"endTime":1795348742.5,`
	const anthropic = head + `"custom_llm_provider":"anthropic","model":"claude-sonnet-4-5","prompt_tokens":180,"completion_tokens":5,`
	const details = `"prompt_tokens_details":{"audio_tokens":null,"cache_write_tokens":70,"cached_tokens":100,"text_tokens":10,"cache_creation_tokens":70,"cache_creation_token_details":`
	both := tokens.Vector{tokens.Input: 10, tokens.CacheRead: 100, tokens.CacheWrite5m: 30, tokens.CacheWrite1h: 40, tokens.Output: 5}
	short := tokens.Vector{tokens.Input: 10, tokens.CacheRead: 100, tokens.CacheWrite5m: 70, tokens.Output: 5}
	for _, tc := range []struct {
		name, payload string
		want          tokens.Vector
		tier          string
	}{
		{
			"both times", anthropic + `"cost_breakdown":{"service_tier":null,"cache_creation_cost":0.0003525},"metadata":{"usage_object":{` + details +
				`{"ephemeral_5m_input_tokens":30,"ephemeral_1h_input_tokens":40}},"cache_creation_input_tokens":70,"cache_read_input_tokens":100,"service_tier":"standard"}}}`, both, "standard",
		},
		{
			"one hour alone is stated", anthropic + `"metadata":{"usage_object":{` + details +
				`{"ephemeral_5m_input_tokens":null,"ephemeral_1h_input_tokens":40}},"cache_creation_input_tokens":70}}}`, both, "standard",
		},
		{"no details", anthropic + `"cost_breakdown":null,"metadata":{"usage_object":{` + details + `null},"cache_creation_input_tokens":70}}}`, short, "standard"},
		{"details that are none", anthropic + `"cost_breakdown":[],"metadata":{"usage_object":{` + details + `"planted"},"cache_creation_input_tokens":70}}}`, short, "standard"},
		{
			"flex", head + `"custom_llm_provider":"openai","model":"gpt-5","prompt_tokens":12,"completion_tokens":3,"cost_breakdown":{"input_cost":7.5e-06,"service_tier":"flex"},` +
				`"metadata":{"usage_object":{"prompt_tokens_details":null,"service_tier":"default"}}}`, tokens.Vector{tokens.Input: 12, tokens.Output: 3}, "flex",
		},
		{
			"batch, by the provider's word", anthropic + `"cost_breakdown":{"service_tier":"standard"},"metadata":{"usage_object":{` + details +
				`{"ephemeral_5m_input_tokens":30,"ephemeral_1h_input_tokens":40}},"service_tier":"batch"}}}`, both, "batch",
		},
		{"a tier without a price", head + `"custom_llm_provider":"openai","model":"gpt-5","prompt_tokens":12,"completion_tokens":3,"cost_breakdown":{"service_tier":"scale"}}`, tokens.Vector{tokens.Input: 12, tokens.Output: 3}, "standard"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, a, events := post(t, &doortest.Log{}, callback.LiteLLM, tc.payload, "Content-Type", "application/json")
			if code != 202 || len(events) != 1 {
				t.Fatalf("%d %s", code, a)
			}
			if e := events[0]; e.Tokens != tc.want || e.ServiceTier != tc.tier || hasTag(&e, "usage", "ambiguous") {
				t.Errorf("tokens %v of tier %q, want %v of %q", e.Tokens, e.ServiceTier, tc.want, tc.tier)
			}
		})
	}
}

// A call that went through the metering proxy has its event: LiteLLM has the proxy's
// header among those of the answer, without a prefix where it is an error.
func TestLiteLLMThroughTheProxy(t *testing.T) {
	const header = `x-tallystick-event-id":"0199a3c4-7b1e-7c55-8d0e-5f0c2a9b1e77"`
	lines := strings.ReplaceAll(litellmPayload, "\n", " ")
	with := func(hidden, id string) string {
		return strings.NewReplacer(`"hidden_params":{"planted":1}`, `"hidden_params":`+hidden, "c-1", id).Replace(lines)
	}
	through := with(`{"additional_headers":{"llm_provider-server":"planted","llm_provider-`+header+`}}`, "c-2")
	failed := strings.Replace(with(`{"additional_headers":{"`+header+`}}`, "c-3"), `"success"`, `"failure"`, 1)
	cached := strings.Replace(with(`{"additional_headers":{"llm_provider-`+header+`}}`, "c-4"), `"cache_hit":null`, `"cache_hit":true`, 1)
	direct := with(`{"additional_headers":null}`, "c-5")
	odd := with(`"planted"`, "c-6")

	log := &doortest.Log{}
	edge := &doortest.Counting{Edge: doortest.NewEdge(t, log, now)}
	send := func(body string) []event.Event {
		t.Helper()
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		callback.LiteLLM(edge).ServeHTTP(w, r)
		if w.Code != http.StatusAccepted || strings.Contains(w.Body.String(), "planted") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		return doortest.Events(t, log.Take())
	}
	events := send("[" + strings.Join([]string{through, lines, failed, cached, direct, odd}, ",") + "]")
	if len(events) != 4 || !hasTag(&events[1], "cache_hit", "true") {
		t.Errorf("%d events: %+v", len(events), events)
	}
	if want := "litellm billed_elsewhere 2"; edge.Said != want {
		t.Errorf("counted %q, want %q", edge.Said, want)
	}
	if events := send(through); len(events) != 0 {
		t.Errorf("alone it made %+v", events)
	}
	log.Err, edge.Said = kafka.ErrFull, ""
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("["+through+","+direct+"]"))
	r.Header.Set("Authorization", "Bearer good")
	r.Header.Set("Content-Type", "application/json")
	if callback.LiteLLM(edge).ServeHTTP(httptest.NewRecorder(), r); edge.Said != "" {
		t.Errorf("what will be sent again counted %q", edge.Said)
	}
}

func hasTag(e *event.Event, key, value string) bool {
	for _, tag := range e.Tags {
		if tag.Key == key {
			return tag.Value == value
		}
	}
	return false
}

func TestLiteLLMRefuses(t *testing.T) {
	log := &doortest.Log{}
	lines := strings.ReplaceAll(litellmPayload, "\n", " ")
	code, a, _ := post(t, log, callback.LiteLLM, "["+lines+`,{"planted":1},7]`, "Content-Type", "application/json")
	if want := "accepted 1 refused 2 [1 occurred_at required] [2 event malformed]"; code != 202 || a.String() != want {
		t.Errorf("%d %s", code, a)
	}
	if code, _, _ := post(t, log, callback.LiteLLM, "", "Content-Type", "application/json"); code != 400 {
		t.Errorf("an empty body: %d", code)
	}
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	fmt.Fprint(w, strings.Repeat(" ", ingest.MaxDoorBytes+1))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := post(t, log, callback.LiteLLM, bomb.String(), "Content-Type", "application/json", "Content-Encoding", "gzip"); code != 413 {
		t.Errorf("a bomb: %d", code)
	}
	log.Err = kafka.ErrFull
	if code, a, _ := post(t, log, callback.LiteLLM, lines, "Content-Type", "application/json"); code != 503 || a.Refused != "1" {
		t.Errorf("a full log: %d %s", code, a)
	}
}

// Hostile bodies are answered, whatever they are, and what is accepted is valid.
func FuzzBodies(f *testing.F) {
	f.Add(true, []byte("["+litellmPayload+"]"))
	f.Add(true, []byte(`{"startTime":"1e400","prompt_tokens":-1,"metadata":[],"request_tags":[null],"model":null}`))
	f.Add(false, []byte(`[{"specversion":"1.0","id":"1","source":"s","type":"`+callback.UsageType+`","data":`+usage+`}]`))
	log := &doortest.Log{}
	edge := doortest.NewEdge(f, log, now)
	f.Fuzz(func(t *testing.T, litellm bool, body []byte) {
		h, media := callback.CloudEvents(edge), "application/cloudevents-batch+json"
		if litellm {
			h, media = callback.LiteLLM(edge), "application/json"
		}
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("Content-Type", media)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		events := doortest.Events(t, log.Take())
		for i := range events {
			if err := events[i].Validate(true); err != nil {
				t.Fatal(err)
			}
		}
		if w.Code == 202 == (len(events) == 0) && !bytes.Contains(w.Body.Bytes(), []byte(`"accepted":"0"`)) {
			t.Fatalf("%d and %d events: %s", w.Code, len(events), w.Body)
		}
	})
}
