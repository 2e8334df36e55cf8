package bedrock

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/usage"
)

// maxMetadata bounds the pairs of requestMetadata; AWS allows 16, and an event has
// tags of ours beside them.
const maxMetadata = event.MaxTags - 4

// Decoder reads log records from a stream: JSON objects one after another, in
// lines or not, or in a list. It is not safe for concurrent use.
type Decoder struct {
	scan     *scanner
	prompt   hash.Hash
	response hash.Hash
	request  *usage.RequestReader
	converse *usage.Meter
	invoke   *usage.Meter
	bodies   int // answers seen of the record at hand
	lines    int64
}

// NewDecoder makes a decoder that hashes bodies under key.
func NewDecoder(src io.Reader, key [32]byte) *Decoder {
	return &Decoder{
		scan: newScanner(src), prompt: hmac.New(sha256.New, key[:]), response: hmac.New(sha256.New, key[:]),
		converse: usage.New(usage.Exchange{}), invoke: usage.New(usage.Exchange{}),
	}
}

// Records is how many records were begun, malformed ones too.
func (d *Decoder) Records() int64 { return d.lines }

// Next reads the next record into rec. Errors: io.EOF at the end, ErrMalformed
// after which it may be called again, and those of the stream.
func (d *Decoder) Next(rec *Record) error {
	s := d.scan
	for c := s.peek(); c == ',' || c == '[' || c == ']'; c = s.peek() {
		s.take() // between records
	}
	if s.err != nil {
		return s.err
	}
	d.lines++
	rec.reset()
	d.begin()
	known := 0
	if s.peek() != '{' {
		s.fail()
	}
	s.object(func(key string) {
		if d.member(rec, key) {
			known++
		}
	})
	if s.err != nil && !errors.Is(s.err, errSyntax) && !errors.Is(s.err, io.EOF) {
		return s.err
	}
	if s.err != nil || known < 2 {
		s.resume()
		return ErrMalformed
	}
	d.finish(rec)
	return nil
}

// begin makes the hashes and meters ready for a record.
func (d *Decoder) begin() {
	d.prompt.Reset()
	d.response.Reset()
	d.prompt.Write([]byte("bedrock/prompt\x00"))
	d.response.Write([]byte("bedrock/response\x00"))
	d.request = usage.NewRequestReader()
	d.converse.Reset(usage.Exchange{Dialect: usage.BedrockConverse, Framing: usage.JSON})
	d.invoke.Reset(usage.Exchange{Dialect: usage.BedrockInvoke, Framing: usage.JSON})
	d.bodies = 0
}

// member reads one member of a record, and reports whether it is one of those
// that records have.
func (d *Decoder) member(rec *Record, key string) bool {
	s := d.scan
	switch key {
	case "timestamp":
		rec.Time = parseTime(s.string())
	case "accountId":
		rec.Account = token(s.string())
	case "region":
		rec.Region = token(s.string())
	case "requestId":
		rec.RequestID = token(s.string())
	case "operation":
		rec.Operation = token(s.string())
	case "modelId":
		rec.Model = name(s.string())
	case "errorCode":
		if code := s.string(); code != "" {
			rec.ErrorCode = cmp.Or(token(code), "unknown")
		}
	case "identity":
		s.object(func(key string) {
			if key == "arn" {
				rec.Identity = name(s.string())
			} else {
				s.value()
			}
		})
	case "requestMetadata":
		d.metadata(rec)
	case "input":
		s.object(func(key string) { d.input(rec, key) })
	case "output":
		s.object(func(key string) { d.output(rec, key) })
	default:
		s.value()
		return false
	}
	return true
}

func (d *Decoder) metadata(rec *Record) {
	s := d.scan
	s.object(func(key string) {
		value := s.string()
		if label(key) && label(value) && len(rec.Metadata) < maxMetadata {
			rec.Metadata = append(rec.Metadata, Pair{key, value})
		}
	})
}

func (d *Decoder) input(rec *Record, key string) {
	s := d.scan
	switch key {
	case "inputBodyJson":
		s.begin(io.MultiWriter(d.prompt, d.request))
		s.value()
		s.end()
		rec.Prompt[0] = 1 // there is one; finish puts its hash here
	case "inputBodyS3Path":
		rec.InputRef = reference(s.string())
	case "inputTokenCount":
		d.count(rec, &rec.Input, statedInput)
	case "cacheReadInputTokenCount":
		d.count(rec, &rec.CacheRead, statedCacheRead)
	case "cacheWriteInputTokenCount":
		d.count(rec, &rec.CacheWrite, statedCacheWrite)
	default:
		s.value()
	}
}

func (d *Decoder) output(rec *Record, key string) {
	s := d.scan
	switch key {
	case "outputBodyJson":
		d.answer(rec)
		rec.Response[0] = 1
	case "outputBodyS3Path":
		rec.OutputRef = reference(s.string())
	case "outputTokenCount":
		d.count(rec, &rec.Output, statedOutput)
	default:
		s.value()
	}
}

func (d *Decoder) count(rec *Record, to *int64, bit stated) {
	if n, ok := d.scan.integer(); ok {
		*to, rec.Stated = n, rec.Stated|bit
	}
}

// answer reads the body of an answer. That of a stream is the list of its
// events, which are documents of their own for the meter.
func (d *Decoder) answer(rec *Record) {
	s := d.scan
	d.bodies++
	if s.peek() != '[' {
		d.document(rec)
		return
	}
	s.list(func() { d.document(rec) })
}

// document reads one document of an answer. Which dialect it is in is not known
// before the record's end: both meters read it, and those that the other one's
// names mean nothing to stay empty.
func (d *Decoder) document(rec *Record) {
	s := d.scan
	tee := d.meters(rec.Operation)
	s.begin(tee)
	s.object(func(key string) {
		switch key {
		case "metrics":
			s.object(func(key string) { d.metric(rec, key) })
		case "amazon-bedrock-invocationMetrics":
			s.object(func(key string) { d.metric(rec, key) })
		case "metadata": // the last event of a converse stream
			s.object(func(key string) {
				if key == "metrics" {
					s.object(func(key string) { d.metric(rec, key) })
				} else {
					s.value()
				}
			})
		case "amazon-bedrock-guardrailAction":
			rec.Blocked = s.string() == "INTERVENED" || rec.Blocked
		case "stopReason":
			rec.Blocked = s.string() == "guardrail_intervened" || rec.Blocked
		default:
			s.value()
		}
	})
	s.end()
}

// meters is what reads an answer, as far as the operation is known already.
func (d *Decoder) meters(operation string) io.Writer {
	switch {
	case operation == "":
		return io.MultiWriter(d.response, d.converse, d.invoke)
	case isConverse(operation):
		return io.MultiWriter(d.response, d.converse)
	default:
		return io.MultiWriter(d.response, d.invoke)
	}
}

// metric reads a member of the service's own measurements, in milliseconds.
func (d *Decoder) metric(rec *Record, key string) {
	const maxMillis = 1_000_000_000
	to := &rec.LatencyMicros
	switch key {
	case "latencyMs", "invocationLatency":
	case "firstByteLatency":
		to = &rec.TTFTMicros
	default:
		d.scan.value()
		return
	}
	if n, ok := d.scan.integer(); ok && n <= maxMillis {
		*to = n * 1000
	}
}

// finish puts hashes and usage into the record.
func (d *Decoder) finish(rec *Record) {
	if rec.Prompt[0] != 0 {
		d.prompt.Sum(rec.Prompt[:0])
	}
	if rec.Response[0] != 0 {
		d.response.Sum(rec.Response[:0])
	}
	rec.PromptTokens = d.request.Close().PromptTokens
	rec.Usage = usage.Result{}
	if d.bodies > 0 {
		rec.Usage = d.meter(rec.Operation).Close()
	}
	rec.total = rec.Usage.Reported[usage.Total]
}

// meter is the one of the operation's dialect.
func (d *Decoder) meter(operation string) *usage.Meter {
	if isConverse(operation) {
		return d.converse
	}
	return d.invoke
}

// Follow reads an answer that was too large for its record, for its usage alone:
// neither its digest nor anything that the event's id is made of changes. What
// is no JSON changes nothing. The error is the stream's.
func (d *Decoder) Follow(rec *Record, src io.Reader) error {
	within, response := d.scan, d.response
	defer func() { d.scan, d.response = within, response }()
	d.scan, d.response = newScanner(src), sha256.New() // of a digest that nobody asks for
	d.begin()
	d.answer(rec)
	if err := d.scan.err; err != nil {
		if errors.Is(err, errSyntax) || errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	rec.Usage = d.meter(rec.Operation).Close()
	return nil
}

// wantsAnswer reports that only the answer that lies elsewhere says what the call
// used: the record states no counts, or cache writes without their lifetime.
func (r *Record) wantsAnswer() bool {
	if r.OutputRef == "" || r.ErrorCode != "" || r.Response != ([32]byte{}) {
		return false
	}
	return r.Stated&(statedInput|statedOutput) == 0 || r.CacheWrite > 0
}

func isConverse(operation string) bool { return strings.HasPrefix(operation, "Converse") }

// parseTime reads the two forms of time that log records come in.
func parseTime(s string) int64 {
	for _, form := range [...]string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(form, s); err == nil && t.Year() >= 1970 && t.Year() < 2262 {
			return t.UnixNano()
		}
	}
	return 0
}

// name is s where it can be a name or an ARN, else "": nothing with a space
// in it, so that no text takes the place of one.
func name(s string) string {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return ""
		}
	}
	return s
}

// token is s where it can be an id or a word of AWS's: at most 64 letters, digits,
// dashes, dots, colons and underscores.
func token(s string) string {
	if len(s) > 64 || strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == ':' || c == '_')
	}) {
		return ""
	}
	return s
}

// maxLabel bounds a key and a value of requestMetadata.
const maxLabel = 128

// label reports whether s may be kept as a key or value of requestMetadata: of
// the characters that AWS allows there, at most maxLabel bytes and four words,
// which is a name and no sentence.
func label(s string) bool {
	if s == "" || len(s) > maxLabel || strings.Count(s, " ") > 3 || strings.TrimSpace(s) != s {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" :_@$#=/+,-.", r))
	}) < 0
}

// reference is an address of an object in S3, else "".
func reference(s string) string {
	if rest, ok := strings.CutPrefix(s, "s3://"); ok && strings.IndexByte(rest, '/') > 0 {
		return s
	}
	return ""
}
