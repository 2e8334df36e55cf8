package clients

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/internal/testenv"
)

// exchange is one recorded call.
type exchange struct {
	testenv.Exchange
	method string // the SDK's, "" is none
}

// methods are the SDKs' methods by path.
var methods = map[string]string{
	"api.openai.com/v1/chat/completions":       "chat",
	"api.openai.com/v1/responses":              "responses",
	"api.openai.com/v1/embeddings":             "embeddings",
	"api.anthropic.com/v1/messages":            "messages",
	"api.anthropic.com/v1/messages?beta=true":  "beta_messages",
	"api.anthropic.com/v1/messages?beta=false": "messages",
}

// provider is whose SDK it is.
func (e *exchange) provider() string {
	if e.Host == "api.anthropic.com" {
		return "anthropic"
	}
	return "openai"
}

// recorded reads the exchanges that the SDKs can make.
func recorded(t *testing.T) []*exchange {
	t.Helper()
	var all []*exchange
	for _, r := range testenv.Exchanges(t) {
		e := &exchange{Exchange: r}
		var request struct {
			Truncated  bool `json:"_truncated"`
			Background bool
		}
		if e.method = methods[e.Host+e.Path]; e.method == "" || e.Method != "POST" {
			continue
		}
		if json.Unmarshal(e.Request, &request) != nil || request.Truncated {
			continue // its request was not recorded as a whole
		}
		if request.Background {
			continue // one response however often it is told: ingest/proxy/stored_test.go
		}
		all = append(all, e)
	}
	if len(all) < 700 {
		t.Fatalf("only %d exchanges", len(all))
	}
	return all
}

// used is what a call used, as its provider states it.
type used struct {
	Prompt     int64 `json:"prompt"`     // with what was read from and written to a cache
	Completion int64 `json:"completion"` // with reasoning
}

// statement is a provider's usage in either dialect.
type statement struct {
	PromptTokens     *int64 `json:"prompt_tokens"`
	CompletionTokens int64  `json:"completion_tokens"`
	InputTokens      *int64 `json:"input_tokens"`
	OutputTokens     *int64 `json:"output_tokens"`
	CacheRead        *int64 `json:"cache_read_input_tokens"`
	CacheWrite       *int64 `json:"cache_creation_input_tokens"`
}

// merge takes over what a later statement of the same call says.
func (s *statement) merge(t *statement) {
	if t == nil {
		return
	}
	for _, p := range [...]struct{ to, from **int64 }{
		{&s.PromptTokens, &t.PromptTokens}, {&s.InputTokens, &t.InputTokens}, {&s.OutputTokens, &t.OutputTokens},
		{&s.CacheRead, &t.CacheRead}, {&s.CacheWrite, &t.CacheWrite},
	} {
		if *p.from != nil {
			*p.to = *p.from
		}
	}
	if t.CompletionTokens > 0 {
		s.CompletionTokens = t.CompletionTokens
	}
}

// stated reads what the provider said of an exchange, by code that shares nothing
// with the proxy's; ok is false where it said nothing.
func (e *exchange) stated() (u used, ok bool) {
	type document struct {
		Usage    *statement
		Message  *struct{ Usage *statement }
		Response *struct{ Usage *statement }
	}
	var s statement
	read := func(text string) {
		var d document
		if json.Unmarshal([]byte(text), &d) != nil {
			return // [DONE]
		}
		s.merge(d.Usage)
		if d.Message != nil {
			s.merge(d.Message.Usage)
		}
		if d.Response != nil {
			s.merge(d.Response.Usage)
		}
	}
	if e.Stream {
		for line := range strings.Lines(string(e.Body)) {
			if data, found := strings.CutPrefix(line, "data:"); found {
				read(data)
			}
		}
	} else {
		read(string(e.Body))
	}
	value := func(p *int64) int64 {
		if p == nil {
			return 0
		}
		return *p
	}
	switch {
	case s.PromptTokens != nil:
		return used{*s.PromptTokens, s.CompletionTokens}, true
	case s.InputTokens != nil:
		return used{*s.InputTokens + value(s.CacheRead) + value(s.CacheWrite), value(s.OutputTokens)}, true
	}
	return used{}, false
}

func (e *exchange) String() string { return fmt.Sprintf("exchange %d %s%s", e.N, e.Host, e.Path) }
