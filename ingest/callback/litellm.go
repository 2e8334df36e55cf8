package callback

import (
	"cmp"
	"encoding/json"
	"math"
	"net/http"
	"strings"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// LiteLLM serves LiteLLMPath: the StandardLoggingPayload of LiteLLM's callbacks
// generic_api and, by the same name, of its older webhook.
func LiteLLM(edge Edge) http.Handler {
	return &door{edge: edge, name: "litellm", decode: decodeLiteLLM, form: ingest.Form{
		Accepts: func(media string) bool { return media == typeJSON || media == typeNDJSON },
		Use:     typeJSON + " or " + typeNDJSON, MaxBytes: ingest.MaxDoorBytes,
	}}
}

// payload is what is read of a StandardLoggingPayload. Its messages, response,
// error_str and model_parameters are not members: the decoder skips them. Source: litellm/types/utils.py of LiteLLM 1.106.
type payload struct {
	ID                  text            `json:"id"`
	CallID              text            `json:"litellm_call_id"`
	TraceID             text            `json:"trace_id"`
	CallType            text            `json:"call_type"`
	Status              text            `json:"status"`
	Provider            text            `json:"custom_llm_provider"`
	Model               text            `json:"model"`
	ModelGroup          text            `json:"model_group"`
	Stream              flag            `json:"stream"`
	CacheHit            flag            `json:"cache_hit"`
	PromptTokens        count           `json:"prompt_tokens"`
	CompletionTokens    count           `json:"completion_tokens"`
	ResponseCost        text            `json:"response_cost"`
	StartTime           seconds         `json:"startTime"` // unix seconds
	EndTime             seconds         `json:"endTime"`
	CompletionStartTime seconds         `json:"completionStartTime"`
	EndUser             text            `json:"end_user"`
	RequestTags         []text          `json:"request_tags"`
	Cost                part[breakdown] `json:"cost_breakdown"`
	Error               struct {
		Class text `json:"error_class"`
		Code  text `json:"error_code"`
	} `json:"error_information"`
	Metadata metadata     `json:"metadata"`
	Hidden   part[hidden] `json:"hidden_params"`
}

// hidden is what is read of hidden_params: the header by which the metering proxy names
// the event of the call. LiteLLM puts a prefix before a provider's headers, but not
// before those of an answer that is an error.
type hidden struct {
	Headers part[struct {
		Event   text `json:"llm_provider-x-tallystick-event-id"`
		OfError text `json:"x-tallystick-event-id"`
	}] `json:"additional_headers"`
}

// metered says whether the call went through the metering proxy, which has its event.
// An answer of LiteLLM's own cache has the headers of the call that filled it.
func (p *payload) metered() bool {
	h := &p.Hidden.of.Headers.of
	return !bool(p.CacheHit) && (h.Event != "" || h.OfError != "")
}

// breakdown is what is read of how LiteLLM came to the cost.
type breakdown struct {
	ServiceTier text `json:"service_tier"` // the tier that was served, else the one that was asked for
}

// written are tokens written to a cache, by how long they are kept there.
type written struct {
	FiveMinutes count `json:"ephemeral_5m_input_tokens"`
	OneHour     count `json:"ephemeral_1h_input_tokens"`
}

// metadata is what is read of a payload's metadata.
type metadata struct {
	KeyAlias  text    `json:"user_api_key_alias"`
	TeamID    text    `json:"user_api_key_team_id"`
	TeamAlias text    `json:"user_api_key_team_alias"`
	UserID    text    `json:"user_api_key_user_id"`
	EndUserID text    `json:"user_api_key_end_user_id"`
	Spend     members `json:"spend_logs_metadata"`
	Requester members `json:"requester_metadata"`
	Usage     struct {
		Prompt struct {
			Cached   count         `json:"cached_tokens"`
			Creation count         `json:"cache_creation_tokens"`
			Written  part[written] `json:"cache_creation_token_details"`
			Audio    count         `json:"audio_tokens"`
			Image    count         `json:"image_tokens"`
		} `json:"prompt_tokens_details"`
		Completion struct {
			Reasoning count `json:"reasoning_tokens"`
			Audio     count `json:"audio_tokens"`
			Image     count `json:"image_tokens"`
		} `json:"completion_tokens_details"`
		CacheRead     count `json:"cache_read_input_tokens"`
		CacheCreation count `json:"cache_creation_input_tokens"`
		ServiceTier   text  `json:"service_tier"` // the provider's word
	} `json:"usage_object"`
}

func decodeLiteLLM(rcv ingest.Received) (d decoded, err error) {
	err = documents(rcv.Body, func(doc json.RawMessage) {
		var p payload
		if json.Unmarshal(doc, &p) != nil {
			d.add(event.Event{}, fault("event", event.RuleMalformed, "no StandardLoggingPayload"))
			return
		}
		if p.metered() {
			d.elsewhere++
			return
		}
		d.add(p.event(rcv), nil)
	})
	return d, err
}

// operations are what LiteLLM's call types are called elsewhere.
var operations = map[string]string{
	"completion": "chat", "text_completion": "text_completion", "anthropic_messages": "chat", "generate_content": "chat",
	"embedding": "embeddings", "responses": "responses", "image_generation": "image_generation", "transcription": "transcription",
	"speech": "speech", "rerank": "rerank",
}

// tiers are the service tiers that have prices of their own; what is not here is
// standard, as LiteLLM's "default" is.
var tiers = map[string]string{"batch": "batch", "flex": "flex", "priority": "priority"}

// tier is the service tier of the call.
func (p *payload) tier() string {
	return cmp.Or(tiers[strings.ToLower(string(p.Cost.of.ServiceTier))], tiers[strings.ToLower(string(p.Metadata.Usage.ServiceTier))])
}

func (p *payload) event(rcv ingest.Received) event.Event {
	e := event.Event{
		Tenant: rcv.Tenant, OccurredAt: nanos(p.StartTime), Provider: strings.ToLower(string(p.Provider)), Model: string(p.Model), RequestedModel: string(p.ModelGroup),
		Operation: operations[strings.TrimPrefix(string(p.CallType), "a")], Streamed: bool(p.Stream), ProviderRequestID: string(p.ID),
		ServiceTier: p.tier(), ProviderCost: ingest.USD(string(p.ResponseCost)),
		LatencyMicros: micros(p.StartTime, p.EndTime),
	}
	if e.Operation == "" { // "anthropic_messages" begins with an a of its own
		e.Operation = operations[string(p.CallType)]
	}
	if bool(p.Stream) {
		e.TTFTMicros = micros(p.StartTime, p.CompletionStartTime)
	}
	var whose attribution.Attribution
	clear := true
	switch {
	case p.Status == "failure":
		e.Status, e.ErrorType, e.HTTPStatus = event.StatusError, name(string(p.Error.Class)), httpStatus(string(p.Error.Code))
	case bool(p.CacheHit): // LiteLLM answered itself; the provider was not called
		whose.SetTag("cache_hit", "true")
	default:
		e.Tokens, clear = p.vector()
	}
	if !clear {
		whose.SetTag("usage", "ambiguous")
	}
	e.ID = event.DerivedID(rcv.Tenant, "litellm", string(p.CallID+"/"+p.ID), e.OccurredAt, string(p.Model), &e.Tokens, int64(len(e.Status)))
	p.attribute(&whose)
	whose.Apply(&e)
	whose, _ = attribution.FromHeaders(rcv.Header)
	whose.Apply(&e)
	return e
}

// vector makes disjoint classes. LiteLLM brings every provider's counts into OpenAI's
// form, where parts are in the whole; clear is false when they are not.
func (p *payload) vector() (v tokens.Vector, clear bool) {
	u := &p.Metadata.Usage
	v[tokens.CacheRead] = int64(max(u.Prompt.Cached, u.CacheRead))
	v[tokens.CacheWrite5m], v[tokens.CacheWrite1h] = p.writes()
	v[tokens.AudioInput], v[tokens.ImageInput] = int64(u.Prompt.Audio), int64(u.Prompt.Image)
	v[tokens.Reasoning], v[tokens.AudioOutput], v[tokens.ImageOutput] = int64(u.Completion.Reasoning), int64(u.Completion.Audio), int64(u.Completion.Image)
	for _, n := range v {
		if n > event.MaxTokens { // refused by validation
			return v, false
		}
	}
	clear = true
	if v[tokens.Input] = int64(p.PromptTokens) - v.Prompt(); v[tokens.Input] < 0 {
		v[tokens.Input], clear = 0, false
	}
	if v[tokens.Output] = int64(p.CompletionTokens) - v[tokens.Reasoning] - v[tokens.AudioOutput] - v[tokens.ImageOutput]; v[tokens.Output] < 0 {
		v[tokens.Output], clear = 0, false
	}
	return v, clear
}

// writes are the tokens written to a cache for five minutes and for an hour. What the
// details do not explain of the sum is of the short time.
func (p *payload) writes() (fiveMinutes, oneHour int64) {
	u := &p.Metadata.Usage
	w := &u.Prompt.Written.of
	sum := int64(max(u.Prompt.Creation, u.CacheCreation))
	return max(sum-int64(w.OneHour), int64(w.FiveMinutes)), int64(w.OneHour)
}

// attribute takes whom the call is for: what the caller said, then the key's owner.
func (p *payload) attribute(a *attribution.Attribution) {
	a.Members(p.Metadata.Spend)
	a.Members(p.Metadata.Requester)
	a.Set(attribution.Team, string(p.Metadata.TeamAlias))
	a.Set(attribution.Team, string(p.Metadata.TeamID))
	a.Set(attribution.User, string(p.Metadata.UserID))
	a.Set(attribution.EndCustomer, string(p.EndUser))
	a.Set(attribution.EndCustomer, string(p.Metadata.EndUserID))
	a.SetTag("key_alias", string(p.Metadata.KeyAlias))
	a.SetTag("trace_id", string(p.TraceID))
	for _, tag := range p.RequestTags {
		a.Words(string(tag))
	}
}

// nanos is a time in unix seconds to the microsecond, which is all that a double
// holds; 0 for what is no time.
func nanos(t seconds) int64 {
	if !(t > 0 && t < 1e10) {
		return 0
	}
	return int64(math.Round(float64(t)*1e6)) * 1000
}

func micros(from, to seconds) int64 {
	if d := nanos(to) - nanos(from); nanos(from) > 0 && d > 0 {
		return min(d/1000, event.MaxMicros)
	}
	return 0
}

// name is a word that can be the name of an error, "error" for a text.
func name(s string) string {
	if s == "" || len(s) > 64 || strings.ContainsAny(s, " \t\r\n") {
		return "error"
	}
	return s
}

// httpStatus reads a code of three digits.
func httpStatus(code string) (n int64) {
	if len(code) != 3 {
		return 0
	}
	for _, c := range []byte(code) {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
