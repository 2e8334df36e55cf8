// Package usage reads what a provider says a call used out of the bytes of its
// response: tokens by class, model, ids, service tier and how the call ended.
//
// It is pure: bytes in, values out. A Meter is fed the response chunk by chunk,
// at any chunk boundaries, while a proxy forwards it, or the stored response of
// a log; it understands a JSON body, JSON lines, server-sent events and AWS
// event-stream frames in the dialects of the providers' tables (dialects.go).
//
// Promises:
//   - The same bytes give the same Result however they are cut.
//   - Classes are disjoint: a cached token is never also an uncached one, a
//     reasoning token never also an output one, and where the provider states a
//     total the classes add up to it or the Result says Ambiguous.
//   - Memory is bounded and of fixed size, whatever is fed: no text of a prompt
//     or an answer is kept, returned or put in an error. What is kept of strings
//     are names (model, id, tier, finish, error type) of at most 128 bytes from
//     an alphabet without spaces.
//   - Nothing is guessed in silence: what was estimated, missing, cut off or
//     contradictory is flagged, with its reasons.
//
// It never fails, never prices, never stores and never undoes Content-Encoding:
// the caller decodes gzip first.
package usage

import (
	"strings"

	"github.com/tallystick/tallystick/internal/tokens"
)

// Exchange is what the caller knows of a call before its response arrives.
type Exchange struct {
	Dialect Dialect
	Framing Framing
	// Status is the HTTP status; from 400 on the call used nothing. 0 is 200.
	Status int
	// Model is the requested model (body or path); the response's own wins.
	Model string
	// PromptTokens is the estimate of ReadRequest, used only when the provider
	// states no usage. 0 is unknown.
	PromptTokens int64
	// Request is the request's body, to be counted by the model's own tokenizer
	// where the provider states no usage; nil leaves PromptTokens. It is read by
	// Close at the latest and not kept.
	Request []byte
	// Repeated is set for a response that is read again (GET of a stored one, or its
	// cancelling): its usage was counted by the call that made it, unless it was made
	// in the background.
	Repeated bool
	// Header reads a response header; nil is none. Bedrock states token counts
	// there, and providers their request ids.
	Header func(name string) string
}

// Result is what one exchange used.
type Result struct {
	// Tokens is the usage in disjoint classes.
	Tokens tokens.Vector
	// Reported holds the provider's own figures, overlapping as it states them.
	// An absent figure is 0.
	Reported [NumCounts]int64
	// Model, ID, Tier, Finish and ErrorType are the response's; "" is none.
	Model, ID, Tier, Finish, ErrorType string
	// RequestID is the provider's id of the HTTP request, from its header.
	RequestID string
	Status    int
	Flags     Flags
	Reasons   Reasons
}

// Meter reads one response. It is not safe for concurrent use; Reset makes it
// ready for the next response without allocating.
type Meter struct {
	x     Exchange
	g     *grammar
	doc   doc // of the JSON document being read
	seen  doc // of all documents read
	outer scanner
	inner scanner // documents in base64 within the outer ones
	b64   base64Decoder
	sse   sseFramer
	frame frameFramer

	docs      int64
	answer    textSize
	gather    gatherer
	terminal  bool // the provider said that the response is over
	failed    bool // the provider said so within the response
	malformed bool
}

// New makes a meter for one exchange.
func New(x Exchange) *Meter {
	m := new(Meter)
	m.Reset(x)
	return m
}

// Reset forgets all that was read and begins another exchange.
func (m *Meter) Reset(x Exchange) {
	*m = Meter{x: x, g: grammars[x.Dialect]}
	m.outer.reset(m.g)
	m.inner.reset(m.g)
	m.gather = gatherer{on: gathers(x.Dialect, x.Model), joins: x.Framing == SSE, talk: true}
	if x.Framing == EventStream && x.Dialect == BedrockInvoke {
		m.outer.reset(chunkGrammar)
	}
}

// Write reads the next bytes of the response. It keeps nothing of p, and its
// error is always nil.
func (m *Meter) Write(p []byte) (int, error) {
	if m.x.Dialect == None {
		return len(p), nil
	}
	switch m.x.Framing {
	case SSE:
		m.sse.write(m, p)
	case EventStream:
		m.frame.write(m, p)
	case JSON:
		m.outer.write(m, p)
	}
	return len(p), nil
}

// document is called by a scanner at the end of a JSON document.
func (m *Meter) document() {
	if m.x.Framing == EventStream {
		return // the frame's checksum is still to come
	}
	m.commit()
}

// commit takes over what the document said, and forgets the document.
func (m *Meter) commit() {
	d := &m.doc
	m.docs++
	m.seen.merge(d, m.g.merging)
	m.end(d)
	d.reset()
}

// end notes whether the document says that the response is over.
func (m *Meter) end(d *doc) {
	kind := d.names[nameEvent].String()
	if d.names[nameError].n > 0 || kind == "error" {
		m.failed = true
	}
	for _, t := range m.g.terminal {
		if kind == t {
			m.terminal = true
		}
	}
	if m.g.finishEnds && d.names[nameFinish].n > 0 {
		m.terminal = true
	}
}

// Close ends the exchange and says what it used. Call it once, at the end of
// the response or where it was cut off; the meter itself sees which.
func (m *Meter) Close() Result {
	m.outer.close(m)
	if m.doc.any() && !(m.x.Framing == EventStream) {
		m.seen.merge(&m.doc, m.g.merging)
		m.doc.reset()
	}
	m.outer.buf, m.inner.buf, m.sse.head = [maxName]byte{}, [maxName]byte{}, [8]byte{}
	r := Result{Status: m.x.Status, RequestID: m.requestID()}
	if r.Status == 0 {
		r.Status = 200
	}
	m.names(&r)
	switch {
	case m.x.Dialect == None:
		r.Reasons.add(NotMetered)
	case r.Status >= 400:
		r.Reasons.add(Refused)
	default:
		m.measure(&r)
	}
	r.Flags = r.Reasons.flags()
	m.gather.forget()
	m.gather, m.x.Request = gatherer{}, nil
	return r
}

func (m *Meter) names(r *Result) {
	r.Model = m.seen.names[nameModel].String()
	if r.Model == "" {
		r.Model = name(m.x.Model)
	}
	r.ID = m.seen.names[nameID].String()
	r.Tier = m.seen.names[nameTier].String()
	if m.x.Dialect == OpenAIBatch || m.x.Dialect == AnthropicBatch {
		r.Tier = "batch"
	}
	r.Finish = m.seen.names[nameFinish].String()
	r.ErrorType = errorName(m.seen.names[nameError].String())
}

// requestIDHeaders are where providers put the id of the HTTP request.
var requestIDHeaders = [...]string{"x-request-id", "request-id", awsRequestID, "apim-request-id", "x-goog-request-id"}

// awsRequestID is the one that Bedrock's invocation logs name; of Bedrock it comes
// before an id of something on the way.
const awsRequestID = "x-amzn-requestid"

func (m *Meter) requestID() string {
	if m.x.Header == nil {
		return ""
	}
	if id := name(m.x.Header(awsRequestID)); id != "" && (m.x.Dialect == BedrockConverse || m.x.Dialect == BedrockInvoke) {
		return id
	}
	for _, h := range requestIDHeaders {
		if v := name(m.x.Header(h)); v != "" {
			return v
		}
	}
	return ""
}

// measure fills in the tokens of a call that was served.
func (m *Meter) measure(r *Result) {
	m.headers()
	r.Reported = m.seen.v
	stated := m.seen.has&usageCounts != 0
	cut := m.cut()
	if m.malformed || (cut && m.x.Framing == JSON && m.outer.bad()) {
		r.Reasons.add(Malformed)
	}
	if m.failed {
		r.Reasons.add(StreamError)
	}
	if cut {
		r.Reasons.add(CutOff)
	}
	if m.seen.clash {
		r.Reasons.add(StatedTwice)
	}
	if m.seen.fell {
		r.Reasons.add(CountsFell)
	}
	if m.seen.badNumber {
		r.Reasons.add(BadNumber)
	}
	if stated {
		normalise(m.g.shape, &m.seen, r)
	} else if m.seen.has&(1<<Seconds|1<<Units) != 0 {
		r.Reasons.add(OtherUnit)
	} else if r.Finish == "queued" || r.Finish == "in_progress" && !cut || cut && m.background() {
		r.Reasons.add(Pending)
	} else {
		r.Reasons.add(NoUsage)
	}
	if !stated || cut {
		m.estimate(r, stated)
	}
	if m.x.Repeated && !m.background() {
		r.Reasons.add(Repeat)
	}
}

func (m *Meter) background() bool { return m.seen.v[Background] > 0 }

// Background reports a response that the provider makes whether its client waits or
// not: it may be read any number of times, and states its usage each time once it is
// over. Who counts it makes one thing of all readings.
func (r *Result) Background() bool { return r.Reported[Background] > 0 }

// Due reports a background response that is over and says what it used. What it used
// is the same in every reading of it.
func (r *Result) Due() bool {
	return r.Background() && r.ID != "" && r.Tokens.Total() > 0 && !r.Reasons.Has(Pending) && !r.Reasons.Has(CutOff)
}

// headers reads the counts that stand beside the body.
func (m *Meter) headers() {
	if m.x.Header == nil || m.x.Dialect != BedrockInvoke {
		return
	}
	for _, h := range [...]struct {
		name string
		to   Count
	}{{"x-amzn-bedrock-input-token-count", Prompt}, {"x-amzn-bedrock-output-token-count", Completion}, {"x-amzn-bedrock-cache-read-input-token-count", Cached}, {"x-amzn-bedrock-cache-write-input-token-count", CacheWrite}} {
		if n, ok := digits(m.x.Header(h.name)); ok && m.seen.has&(1<<h.to) == 0 {
			m.seen.set(h.to, n)
		}
	}
}

// cut reports that the response ended before the provider said it would.
func (m *Meter) cut() bool {
	if m.failed {
		return false
	}
	switch m.x.Framing {
	case SSE:
		return !m.terminal && len(m.g.terminal) > 0 && !(m.g.usageEnds && m.seen.has&usageCounts != 0 && m.seen.names[nameFinish].n > 0)
	case EventStream:
		return !m.terminal || m.frame.inside()
	case JSON:
		return m.docs == 0 || !m.outer.idle()
	default:
		return false
	}
}

// estimate fills in what the provider did not state. Of a stream that was cut
// off the counts so far are kept where they are larger.
func (m *Meter) estimate(r *Result, stated bool) {
	answer := m.answer.tokens()
	if !stated {
		if answer == 0 && (m.x.PromptTokens == 0 || m.failed) || r.Reasons&(1<<OtherUnit|1<<Pending) != 0 || m.x.Repeated && !m.background() {
			return
		}
		if m.background() { // every reading must say the same, and only one knows the prompt
			m.x.PromptTokens, m.x.Request = 0, nil
		}
		r.Tokens[tokens.Input] = m.x.PromptTokens
		r.Tokens[tokens.Output] = answer
		if !m.count(r) {
			r.Reasons.add(Estimate)
		}
		return
	}
	var said int64
	for c := tokens.Class(0); c < tokens.NumClasses; c++ {
		if !c.IsPrompt() {
			said += r.Tokens[c]
		}
	}
	if answer > said {
		r.Tokens[tokens.Output] += answer - said
		r.Reasons.add(Estimate)
	}
}

// count replaces estimates by what the model's own tokenizer makes of the text. It
// reports true where that is all: a whole answer of plain talk, of a model that does
// not think in tokens which nobody sees, to a prompt under a published rule.
func (m *Meter) count(r *Result) (whole bool) {
	if !m.gather.on && m.x.Dialect != OpenAIEmbeddings {
		return false
	}
	v := vocabularyOf(r.Model)
	if v == nil {
		v = vocabularyOf(m.x.Model)
	}
	if v == nil {
		return false
	}
	output, counted := m.gather.count(v)
	if counted {
		r.Tokens[tokens.Output] = output
	}
	input, exact, understood := v.prompt(m.x.Request)
	if understood {
		r.Tokens[tokens.Input] = input
	}
	if counted || understood {
		r.Reasons.add(Counted)
	}
	return counted && exact && m.gather.talk && !v.hidden && m.x.Dialect != OpenAIResponses && !r.Reasons.Has(CutOff) && !m.failed && !m.malformed
}

// name keeps s if it can be a name: at most 128 bytes of its alphabet.
func name(s string) string {
	if len(s) > maxName || strings.IndexFunc(s, func(r rune) bool { return r > 127 || !nameByte(byte(r)) }) >= 0 {
		return ""
	}
	return s
}

// digits reads a decimal count.
func digits(s string) (n int64, ok bool) {
	if s == "" || len(s) > 12 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
