package usage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strings"
)

// Line is what one line of a batch's results says of one request.
type Line struct {
	// Result is what the request used. Its Status is 0 where the line states none; its ID
	// is the provider's id of the line (OpenAI) or of the message (Anthropic).
	Result
	// Known reports that it is a line of results at all. Of another only Key is set,
	// and Reasons has Malformed where it is no JSON.
	Known bool
	// Key tells the line from all others of its batch, in every reading: it is made of
	// the provider's id of the line and of the client's name for it or, where the client's
	// name is none that is kept, of a digest of the line.
	Key string
	// Outcome is Anthropic's word for what became of the request; "" is another's line.
	Outcome string
	// Object is the provider's word for the kind of response.
	Object string
}

// Failed reports a request of which the provider says that it was not served.
func (l *Line) Failed() bool {
	return l.Status >= 400 || l.Outcome != "" && l.Outcome != succeeded || l.Status == 0 && l.ErrorType != ""
}

// Anthropic's outcomes.
const succeeded = "succeeded"

// BatchReader reads the results of a batch as they pass, in pieces of any size: JSON
// lines, one for each request. Its memory is of fixed size, however long the lines are,
// and it keeps no text. Of bytes that do not begin as an object it reads nothing.
type BatchReader struct {
	x     Exchange
	each  func(*Line)
	m     Meter
	sum   hash.Hash // of the line
	begun bool      // a line
	any   bool      // some line has begun
	other bool      // these are no lines of objects
	line  Line
}

// NewBatchReader gives each line to a function, which keeps the line no longer than
// its call. The dialect is OpenAIBatch or AnthropicBatch.
func NewBatchReader(d Dialect, each func(*Line)) *BatchReader {
	return &BatchReader{x: Exchange{Dialect: d}, each: each, sum: sha256.New()}
}

// Write reads the next bytes; its error is always nil.
func (r *BatchReader) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !r.other {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			r.part(p)
			break
		}
		r.part(p[:end])
		r.end()
		p = p[end+1:]
	}
	return n, nil
}

// Close ends the reading. whole says that the bytes came to their end: then the last
// line may lack its newline. Else it was cut, and another reading will have it.
func (r *BatchReader) Close(whole bool) {
	if whole && !r.other {
		r.end()
	}
	r.begun = false
}

func (r *BatchReader) part(p []byte) {
	if !r.begun {
		if p = bytes.TrimLeft(p, " \t\r"); len(p) == 0 {
			return
		}
		if r.other = !r.any && p[0] != '{'; r.other {
			return
		}
		r.begun, r.any = true, true
		r.sum.Reset()
		r.m.Reset(r.x)
	}
	_, _ = r.sum.Write(p) // a hash takes everything
	_, _ = r.m.Write(p)
}

func (r *BatchReader) end() {
	if !r.begun {
		return
	}
	r.begun = false
	r.read()
	r.each(&r.line)
}

// read makes the line of what the meter has seen.
func (r *BatchReader) read() {
	l, seen := &r.line, &r.m.seen
	*l = Line{Result: r.m.Close()}
	name := func(i int) string { return seen.names[i].String() }
	stated := seen.has&usageCounts != 0
	l.Finish, l.Object = "", name(nameObject)
	l.Status = int(min(seen.v[StatusCode], 999))
	line, custom, odd := name(nameID), name(nameCustom), seen.odd&(1<<nameCustom) != 0
	if r.x.Dialect == AnthropicBatch {
		l.Outcome, line = name(nameOutcome), ""
		if l.Known = l.Outcome != ""; l.Outcome == succeeded {
			l.Status = 200
		}
	} else {
		l.RequestID = name(nameAnswered)
		l.Known = stated || l.Status > 0 || l.ErrorType != "" || strings.HasPrefix(line, "batch_req")
	}
	if l.Known = l.Known && (custom != "" || odd) && r.m.docs < 2; r.m.docs > 1 {
		l.Reasons.add(Malformed)
	}
	l.Key = line + "\n" + custom
	if odd || custom == "" && line == "" || !l.Known {
		l.Key = "sha256:" + hex.EncodeToString(r.sum.Sum(nil))
	}
	if l.Failed() && !stated {
		l.Tokens, l.Reasons = Result{}.Tokens, l.Reasons&(1<<Malformed)|1<<Refused
	}
	l.Flags = l.Reasons.flags()
}
