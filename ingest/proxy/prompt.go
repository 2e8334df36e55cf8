package proxy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tenant"
)

var errEncoding = errors.New("proxy: unknown content encoding")

// Digester makes keyed digests. Its method may be called by many goroutines.
type Digester interface {
	// Digest is HMAC-SHA-256 of text under a key of the tenant; it keeps nothing.
	Digest(id tenant.ID, text []byte) ([32]byte, error)
}

// promptFields are the request's fields that are its prompt, in every dialect.
var promptFields = map[string]bool{
	"messages": true, "system": true, "input": true, "instructions": true, "prompt": true, "contents": true,
	"systemInstruction": true, "system_instruction": true, "tools": true, "functions": true, "toolConfig": true,
	"texts": true, "message": true, "chat_history": true, "preamble": true, "inputText": true, "query": true, "documents": true, "instances": true,
}

// prefixes are the lengths whose digests find prompts that begin alike.
var prefixes = [...]struct {
	tag   string
	bytes int
}{{"prompt_digest_1k", 1 << 10}, {"prompt_digest_2k", 2 << 10}, {"prompt_digest_4k", 4 << 10}}

// appendDigests adds the digests of the prompt as tags: 16 bytes each, in
// hexadecimal digits. A body that is no JSON object has none.
func appendDigests(tags []event.Tag, d Digester, id tenant.ID, body []byte) []event.Tag {
	text := normalPrompt(body)
	if len(text) == 0 {
		return tags
	}
	add := func(tag string, part []byte) {
		if sum, err := d.Digest(id, part); err == nil {
			tags = setTag(tags, tag, hex.EncodeToString(sum[:16]))
		}
	}
	add("prompt_digest", text)
	for _, p := range prefixes {
		if len(text) >= p.bytes {
			add(p.tag, text[:p.bytes])
		}
	}
	return tags
}

// normalPrompt is the prompt in one form whatever the client's encoder: the fields
// of the prompt in the order of the body, without white space between tokens, and
// with text unescaped. nil is none.
func normalPrompt(body []byte) []byte {
	var out bytes.Buffer
	if walk(body, func(key string, value json.RawMessage) {
		if !promptFields[key] {
			return
		}
		out.WriteString(key)
		out.WriteByte(0)
		normalise(&out, value)
		out.WriteByte(0)
	}) != nil {
		return nil
	}
	return out.Bytes()
}

// normalise writes a value's tokens.
func normalise(out *bytes.Buffer, value json.RawMessage) {
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber()
	for {
		t, err := d.Token()
		if err != nil {
			return // the value is whole JSON: this is its end
		}
		switch t := t.(type) {
		case json.Delim:
			out.WriteByte(byte(t))
		case string:
			out.WriteByte('"')
			out.WriteString(t)
			out.WriteByte(0)
		case json.Number:
			out.WriteString(string(t))
			out.WriteByte(0)
		case bool:
			if t {
				out.WriteByte('t')
			} else {
				out.WriteByte('f')
			}
		default:
			out.WriteByte('n')
		}
	}
}

// walk gives the fields of a JSON object in their order.
func walk(body []byte, field func(key string, value json.RawMessage)) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return io.ErrUnexpectedEOF
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		field(key, value)
	}
	return nil
}

// answerLimit is how many tokens the request lets the answer have, 0 where it does
// not say, and the service tier that it asks for, "" where that is the standard one.
func answerLimit(body []byte) (limit int64, tier string) {
	var ask struct {
		MaxTokens           int64 `json:"max_tokens"`
		MaxCompletionTokens int64 `json:"max_completion_tokens"`
		MaxOutputTokens     int64 `json:"max_output_tokens"`
		GenerationConfig    struct {
			MaxOutputTokens int64 `json:"maxOutputTokens"`
		} `json:"generationConfig"`
		InferenceConfig struct {
			MaxTokens int64 `json:"maxTokens"`
		} `json:"inferenceConfig"`
		ServiceTier any `json:"service_tier"` // a text where it is one that we know
	}
	if json.Unmarshal(body, &ask) != nil {
		return 0, "" // the provider will say what is wrong with it
	}
	asked, _ := ask.ServiceTier.(string)
	if tier, _ = serviceTier(asked); tier == "batch" {
		tier = "" // none that is answered at once is billed so, whatever it asks for
	}
	return max(ask.MaxTokens, ask.MaxCompletionTokens, ask.MaxOutputTokens, ask.GenerationConfig.MaxOutputTokens, ask.InferenceConfig.MaxTokens, 0), tier
}
