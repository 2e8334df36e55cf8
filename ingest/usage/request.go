package usage

// Request is what ReadRequest reads of a request's body.
type Request struct {
	// Model is the requested model; "" where the body names none.
	Model string
	// PromptTokens estimates the prompt from the size of its text: one token
	// per four ASCII characters and one per other character. Images, audio and
	// files are not counted: their size in bytes says nothing of their tokens.
	PromptTokens int64
}

// ask is the table of requests, of all dialects at once.
var ask = compile(table{
	names: map[int][]string{nameModel: {"model"}},
	text: []string{
		"messages", "system", "input", "instructions", "prompt", "contents", "systemInstruction", "system_instruction", "tools", "functions",
		"toolConfig.tools", "texts", "message", "chat_history", "preamble", "inputText", "content", "requests", "query", "documents",
		"instances.*.content",
	},
})

// A RequestReader measures a request's body as it passes, chunk by chunk, in
// memory of fixed size. It keeps no text.
type RequestReader struct{ m Meter }

// NewRequestReader makes a reader for one JSON body.
func NewRequestReader() *RequestReader {
	r := new(RequestReader)
	r.m.x.Dialect = Compatible
	r.m.g = ask
	r.m.outer.reset(ask)
	return r
}

// Write reads the next bytes of the body; its error is always nil.
func (r *RequestReader) Write(p []byte) (int, error) { return r.m.Write(p) }

// Close says what was read; a body that was cut off or is no JSON gives what
// was seen until then.
func (r *RequestReader) Close() Request {
	r.m.outer.close(&r.m)
	r.m.seen.merge(&r.m.doc, latest)
	return Request{
		Model:        r.m.seen.names[nameModel].String(),
		PromptTokens: r.m.answer.tokens(),
	}
}

// ReadRequest measures a whole body.
func ReadRequest(body []byte) Request {
	r := NewRequestReader()
	_, _ = r.Write(body)
	return r.Close()
}
