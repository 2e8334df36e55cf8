package usage

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/tallystick/tallystick/ingest/usage/bpe"
)

// vocabulary is how a family of models makes tokens of text.
type vocabulary struct {
	prefix   string // of the models' names: the whole name, or before a dash, or to a dot
	encoding *bpe.Encoding
	// hidden is a family whose calls also use tokens that no text shows: of
	// reasoning, searches, sound.
	hidden bool
}

// vocabularies are the models whose encoding is published: tiktoken/model.py of
// OpenAI's tiktoken 0.14. gpt-oss has o200k_harmony, which is o200k_base with other
// special tokens. Claude, Gemini and the others publish none.
var vocabularies = []vocabulary{
	{"gpt-4o-search", bpe.O200kBase, true}, {"gpt-4o-mini-search", bpe.O200kBase, true}, {"gpt-4o-audio", bpe.O200kBase, true}, {"gpt-4o-mini-audio", bpe.O200kBase, true},
	{"gpt-4o", bpe.O200kBase, false}, {"chatgpt-4o", bpe.O200kBase, false}, {"gpt-4.1", bpe.O200kBase, false}, {"gpt-4.5", bpe.O200kBase, false},
	{"gpt-5", bpe.O200kBase, true}, {"gpt-5.", bpe.O200kBase, true}, {"gpt-oss", bpe.O200kBase, true},
	{"o1", bpe.O200kBase, true}, {"o3", bpe.O200kBase, true}, {"o4-mini", bpe.O200kBase, true},
	{"gpt-4", bpe.Cl100kBase, false}, {"gpt-3.5-turbo", bpe.Cl100kBase, false}, {"gpt-35-turbo", bpe.Cl100kBase, false},
	{"davinci-002", bpe.Cl100kBase, false}, {"babbage-002", bpe.Cl100kBase, false},
	{"text-embedding-3-small", bpe.Cl100kBase, false}, {"text-embedding-3-large", bpe.Cl100kBase, false}, {"text-embedding-ada-002", bpe.Cl100kBase, false},
}

// vocabularyOf is the model's; nil where none is published. A fine-tuned model has
// that of its base, and OpenRouter's names have the maker before them.
func vocabularyOf(model string) *vocabulary {
	model = strings.TrimPrefix(model, "openai/")
	if base, tuned := strings.CutPrefix(model, "ft:"); tuned {
		model, _, _ = strings.Cut(base, ":")
	}
	for i := range vocabularies {
		v := &vocabularies[i]
		if rest, ok := strings.CutPrefix(model, v.prefix); ok && (rest == "" || rest[0] == '-' || strings.HasSuffix(v.prefix, ".")) {
			return v
		}
	}
	return nil
}

// Countable reports whether the tokens of a call can be counted out of its text where
// the provider states none: then its Exchange may have the Request.
func Countable(d Dialect, model string) bool {
	switch d {
	case OpenAIChat, OpenAIResponses, OpenAIEmbeddings, Compatible, OpenRouter:
		return vocabularyOf(model) != nil
	}
	return false
}

// gathers reports whether the answer's text is kept until its end: the response may
// name a model with a vocabulary where the request names Azure's deployment.
func gathers(d Dialect, model string) bool {
	switch d {
	case OpenAIChat, OpenAIResponses:
		return true
	case Compatible, OpenRouter:
		return vocabularyOf(model) != nil
	}
	return false
}

// MaxText bounds the text of an answer that is kept until its end, and a request
// that is counted, in bytes. Of what is longer the size is estimated.
const MaxText = 256 << 10

// count is the tokens of text; false where the build's vocabulary is damaged, which
// a test would have found.
func (v *vocabulary) count(text string) (int64, bool) {
	n, err := v.encoding.Count(text)
	return int64(n), err == nil
}

// The chat format as OpenAI's cookbook publishes it ("How to count tokens with
// tiktoken", num_tokens_from_messages): each message costs 3 tokens beside those of
// its role and text, a name 1 more, and the answer begins with 3.
const (
	perMessage = 3
	perName    = 1
	perAnswer  = 3
)

// asked is a request as far as its text can be counted.
type asked struct {
	Messages     []said          `json:"messages"`
	Prompt       json.RawMessage `json:"prompt"`
	Input        json.RawMessage `json:"input"`
	Instructions string          `json:"instructions"`
	// Choices of one answer come interleaved, so their texts cannot be told apart.
	N int64 `json:"n"`
	// What follows adds tokens by rules that are not published.
	Tools          json.RawMessage `json:"tools"`
	Functions      json.RawMessage `json:"functions"`
	ResponseFormat json.RawMessage `json:"response_format"`
	Text           json.RawMessage `json:"text"`
}

// said is a message of a request.
type said struct {
	Role      string          `json:"role"`
	Name      string          `json:"name"`
	Content   json.RawMessage `json:"content"`
	ToolCalls json.RawMessage `json:"tool_calls"`
}

// prompt counts a request. exact says that all of it was text under a published
// rule; ok is false for a request that is not understood.
func (v *vocabulary) prompt(body []byte) (n int64, exact, ok bool) {
	var a asked
	if len(body) == 0 || len(body) > MaxText || json.Unmarshal(body, &a) != nil {
		return 0, false, false
	}
	c := promptCount{v: v, exact: true}
	if a.Messages != nil {
		c.messages(a.Messages)
	} else if a.Instructions != "" || isMessages(a.Input) {
		var items []said
		if json.Unmarshal(a.Input, &items) != nil {
			items = []said{{Role: "user", Content: a.Input}}
		}
		if a.Instructions != "" {
			c.messages([]said{{Role: "system"}})
			c.n -= perAnswer
			c.text(a.Instructions)
		}
		c.messages(items)
		c.exact = false // the newer interface's format is not published
	} else {
		c.content(a.Prompt)
		c.content(a.Input)
	}
	for _, more := range []json.RawMessage{a.Tools, a.Functions, a.ResponseFormat, a.Text} {
		c.estimate(more)
	}
	return c.n, c.exact && a.N <= 1, !c.failed
}

// isMessages tells a list of messages from one of texts.
func isMessages(raw json.RawMessage) bool {
	rest, list := bytes.CutPrefix(bytes.TrimSpace(raw), []byte{'['})
	return list && bytes.HasPrefix(bytes.TrimSpace(rest), []byte{'{'})
}

// promptCount adds a prompt up.
type promptCount struct {
	v             *vocabulary
	n             int64
	exact, failed bool
}

func (c *promptCount) text(s string) {
	n, ok := c.v.count(s)
	c.n += n
	c.failed = c.failed || !ok
}

func (c *promptCount) messages(list []said) {
	for i := range list {
		m := &list[i]
		c.n += perMessage
		c.text(m.Role)
		c.content(m.Content)
		if m.Name != "" {
			c.n += perName
			c.text(m.Name)
		}
		c.estimate(m.ToolCalls)
	}
	c.n += perAnswer
}

// content counts a text, texts, or a list of parts of which some may be text.
func (c *promptCount) content(raw json.RawMessage) {
	if len(raw) == 0 || string(raw) == "null" {
		return
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		c.text(s)
		return
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		c.exact = false
		return
	}
	for _, item := range list {
		var part struct {
			Text *string `json:"text"`
		}
		switch {
		case json.Unmarshal(item, &s) == nil:
			c.text(s)
		case json.Unmarshal(item, &part) == nil && part.Text != nil:
			c.text(*part.Text)
		default:
			c.exact = false // an image, a sound, a file
		}
	}
}

// estimate adds the size of what no published rule counts.
func (c *promptCount) estimate(raw json.RawMessage) {
	if len(raw) == 0 || string(raw) == "null" {
		return
	}
	c.n += ReadRequest(append(append([]byte(`{"tools":`), raw...), '}')).PromptTokens
	c.exact = false
}

// gatherer keeps the answer's text, as it stands in JSON, until it is known whether
// the provider states usage. Texts are parted by NUL, which JSON's strings cannot
// hold.
type gatherer struct {
	on     bool
	joins  bool // strings of one key continue each other (deltas)
	more   bool // there was more text than is kept
	talk   bool // all of it stood under a key of plain talk
	key    uint32
	filled bool
	deltas bool // there were texts under "delta", which a stream's end repeats whole
	skip   bool // the text at hand is such a repetition
	text   []byte
	pooled *[]byte // where text began
}

// part stands between texts.
const part = 0

// texts are buffers for answers of usual size. Larger ones are not kept: a stream
// may be idle for hours with what it has.
var texts = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

const maxPooledText = 2 << 10

// begin is called where a text begins, with the hash of its key.
func (g *gatherer) begin(key uint32) {
	if !g.on {
		return
	}
	g.skip = g.joins && g.deltas && key != keyDelta
	g.deltas = g.deltas || key == keyDelta
	if g.skip {
		return
	}
	if g.filled && (!g.joins || key != g.key) {
		g.keep([]byte{part})
	}
	g.talk = g.talk && (key == keyContent || key == keyText || key == keyDelta)
	g.key, g.filled = key, true
}

func (g *gatherer) keep(p []byte) {
	switch {
	case !g.on || g.more || g.skip:
	case len(g.text)+len(p) > MaxText:
		g.more = true
		g.forget()
	default:
		if g.pooled == nil {
			g.pooled = texts.Get().(*[]byte)
			g.text = *g.pooled
		}
		g.text = append(g.text, p...)
	}
}

// forget gives the text up.
func (g *gatherer) forget() {
	clear(g.text)
	if g.pooled != nil && cap(g.text) <= maxPooledText {
		*g.pooled = g.text[:0]
		texts.Put(g.pooled)
	}
	g.text, g.pooled = nil, nil
}

// keyHash tells keys apart (FNV-1a).
func keyHash(key []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range key {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

var keyContent, keyText, keyDelta = keyHash([]byte("content")), keyHash([]byte("text")), keyHash([]byte("delta"))

// count is the tokens of what was gathered; false where it was too much.
func (g *gatherer) count(v *vocabulary) (n int64, ok bool) {
	if !g.on || g.more {
		return 0, false
	}
	for text := range bytes.SplitSeq(g.text, []byte{part}) {
		c, ok := v.count(unescape(text))
		if !ok {
			return 0, false
		}
		n += c
	}
	return n, true
}

// unescape is the text of JSON's string, which may be cut within an escape.
func unescape(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw) {
		return string(raw)
	}
	quoted := append(append([]byte{'"'}, raw...), '"')
	var s string
	for range 12 { // a pair of surrogates is as long
		if json.Unmarshal(quoted, &s) == nil {
			return s
		}
		if len(quoted) <= 2 {
			break
		}
		quoted = append(quoted[:len(quoted)-2], '"')
	}
	return strings.ToValidUTF8(string(raw), "\uFFFD")
}
