package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/usage"
	"github.com/tallystick/tallystick/internal/tokens"
)

// The requests of a batch are answered hours later, in a file of one line for each that
// is read with GET. Each line makes one event of the tier batch. As with background
// responses (stored.go) every reading makes the same events: their ids come of tenant,
// provider, batch or file, and line, and their other fields of the line and of what the
// provider says of the batch, but for whom the calls are for, which the reading says.
// So a reading that breaks off is made whole by the next one.
//
// Ranges are not asked of the provider: a line that two ranges share would be in no
// reading. A client that asks for one gets the whole, as RFC 9110 (14.2) lets a server do.
//
// A batch whose results nobody reads through the proxy is not metered. Budgets are not
// settled by readings: a file may be read any number of times.

const (
	// resultsAtOnce is how many events go to the sink together.
	resultsAtOnce = 256
	// maxBatches bounds the batches of which is remembered what their provider says.
	maxBatches = 1024
	// factsTime and maxFacts bound the question for it.
	factsTime = 10 * time.Second
	maxFacts  = 64 << 10
	// maxLate is how old an event may be that an edge takes, with a margin.
	maxLate = 390 * 24 * time.Hour
	// unreadable is the error type of a line of results that cannot be read.
	unreadable = "unreadable_line"
)

// results meters the results of a batch while they pass. It is an io.Writer for the
// bytes; of a compressed response the decoder's goroutine writes.
type results struct {
	x        *exchange
	lines    *usage.BatchReader
	template event.Event
	zero     tokens.Vector
	found    bool // a line of results: other files may have lines too
	facts    batchFacts
	pending  []event.Event
	failed   atomic.Bool // some events are not kept, and may not be missed
	err      error
}

// meterResults makes the results' meter of a response whose headers have come.
func (x *exchange) meterResults(resp *http.Response) {
	r := &results{x: x, found: x.to.call.Dialect == usage.AnthropicBatch}
	r.lines = usage.NewBatchReader(x.to.call.Dialect, r.line)
	ev := &r.template
	x.fill(ev)
	ev.ProducerID, ev.ProducerEpoch = "", 0 // of none of the readings
	ev.LatencyMicros, ev.TTFTMicros, ev.RequestedModel, ev.ServiceTier = 0, 0, "", "batch"
	x.results = r
	x.priced = x.p.parts.Pricer != nil
	encoding := resp.Header.Get("Content-Encoding")
	x.decode = newDecoder(encoding, r)
}

// Write reads the next bytes; its error is always nil.
func (r *results) Write(p []byte) (int, error) {
	if r.failed.Load() || r.facts.upload {
		return len(p), nil
	}
	return r.lines.Write(p)
}

// lost reports that the response has to be cut: its client must read it again, when
// its events can be kept.
func (r *results) lost() bool { return r != nil && r.failed.Load() }

// settle keeps what is left. readErr is how the reading of the response ended.
func (r *results) settle(readErr error) error {
	r.x.kept = true
	if !r.failed.Load() && !r.facts.upload {
		r.lines.Close(readErr == nil || errors.Is(readErr, io.EOF))
		r.flush()
	}
	return r.err
}

// line makes the event of a line.
func (r *results) line(l *usage.Line) {
	if !r.found && !l.Known || r.failed.Load() || r.facts.upload {
		return
	}
	r.found = true
	if r.facts == (batchFacts{}) {
		if r.facts = r.x.factsOfBatch(); r.facts.upload {
			return
		}
	}
	r.pending = append(r.pending, r.template)
	r.event(&r.pending[len(r.pending)-1], l)
	if len(r.pending) == resultsAtOnce {
		r.flush()
	}
}

// event fills in what the line says.
func (r *results) event(ev *event.Event, l *usage.Line) {
	x := r.x
	ev.ID = event.DerivedID(ev.Tenant, ev.Provider+"/batch", x.to.call.Batch+"\n"+l.Key, 0, "", &r.zero, 0)
	ev.OccurredAt = r.facts.over
	if at, ok := x.plausible(time.Unix(l.Reported[usage.Created], 0)); ok {
		ev.OccurredAt = at
	}
	ev.Model, ev.Operation = clip(first(l.Model, "unknown")), operationOf(l.Object)
	ev.HTTPStatus, ev.Tokens, ev.ProviderRequestID = int64(l.Status), l.Tokens, clip(first(l.RequestID, l.ID))
	ev.Estimated, ev.ErrorType = l.Flags&usage.Estimated != 0, clipTo(l.ErrorType, 64)
	switch {
	case !l.Known:
		ev.Status, ev.ErrorType, ev.Tokens = event.StatusError, unreadable, r.zero
	case l.Failed():
		ev.Status, ev.ErrorType = event.StatusError, clipTo(first(l.ErrorType, l.Outcome), 64)
	case l.Flags&usage.Truncated != 0:
		ev.Status = event.StatusTruncated
	case l.Reasons.Has(usage.StreamError):
		ev.Status = event.StatusError
	}
	if why := l.Reasons &^ (1 << usage.Refused); why != 0 {
		ev.Tags = setTag(append([]event.Tag(nil), ev.Tags...), usageTag, why.String())
	}
	if x.wants && x.priced {
		cost, ok := x.p.parts.Pricer.Price(ev.Provider, ev.Model, ev.Region, ev.ServiceTier, time.Unix(0, ev.OccurredAt), &ev.Tokens)
		x.cost, x.priced = x.cost+cost, ok || ev.Tokens.Total() == 0
	}
}

// operationOf names what a line's request did.
func operationOf(object string) string {
	switch object {
	case "list":
		return "embeddings"
	case "text_completion":
		return "completions"
	default:
		return "chat"
	}
}

// flush gives the events to the sink. Those that it does not take are not tried again:
// the response is cut, and the next reading makes them. With FailOpen it goes on, and
// they wait as others do.
func (r *results) flush() {
	if len(r.pending) == 0 {
		return
	}
	x := r.x
	x.p.done.Add(int64(len(r.pending)))
	if err := x.p.submit(x.ctx, x.who, r.pending); err != nil {
		if x.p.opts.FailOpen {
			for i := range r.pending {
				x.p.gaps.add(x.who, &r.pending[i], true)
			}
		} else {
			r.err = fmt.Errorf("%w: %w", errKept, err)
			r.failed.Store(true)
		}
	}
	clear(r.pending)
	r.pending = r.pending[:0]
}

// plausible is a time that an edge takes.
func (x *exchange) plausible(at time.Time) (nanos int64, ok bool) {
	if at.Before(x.started.Add(-maxLate)) || at.After(x.started.Add(time.Minute)) {
		return 0, false
	}
	return at.UnixNano(), true
}

// batchFacts are what a provider says of a batch, or of the file of its results.
type batchFacts struct {
	over   int64 // unix nanoseconds
	upload bool  // the file is no output: somebody has put it there
}

// batches remembers them, for readings that follow each other.
type batches struct {
	mu    sync.Mutex // protects known
	known map[batchKey]batchFacts
}

type batchKey struct{ tenant, provider, batch string }

// factsOfBatch asks the provider once: a line may have no time of its own, and the
// time of reading is another in each. Where it does not say, the first reading's time
// stands while this process remembers it.
func (x *exchange) factsOfBatch() batchFacts {
	b, key := &x.p.batches, batchKey{string(x.call.Tenant), x.call.Provider, x.to.call.Batch}
	b.mu.Lock()
	facts, ok := b.known[key]
	b.mu.Unlock()
	if ok {
		return facts
	}
	facts, err := x.askFacts()
	if err != nil {
		x.p.quiet.Do(func() {
			x.p.opts.Logger.WarnContext(x.ctx, "proxy: a provider does not tell of a batch that is read", "tenant", x.call.Tenant, "provider", x.call.Provider, "err", err)
		})
		facts = batchFacts{over: x.started.UnixNano()}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.known) >= maxBatches {
		for old := range b.known { // any
			delete(b.known, old)
			break
		}
	}
	if b.known == nil {
		b.known = map[batchKey]batchFacts{}
	}
	b.known[key] = facts
	return facts
}

// errFacts is an answer that does not say when the batch was over.
var errFacts = errors.New("proxy: the provider's answer has no time")

// askFacts reads the batch, or the file, itself: the results' path without its end.
func (x *exchange) askFacts() (facts batchFacts, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), factsTime)
	defer cancel()
	key, err := x.p.parts.Keys.ProviderKey(ctx, x.call.Tenant, x.call.Provider)
	if err != nil {
		return facts, err
	}
	at := x.to
	at.path = path.Dir(strings.TrimSuffix(at.path, "/"))
	to, req, err := x.requestOf(&at, &key)
	if err != nil {
		return facts, err
	}
	delete(req.Header, "If-None-Match")
	delete(req.Header, "If-Modified-Since")
	resp, err := to.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return facts, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxFacts))
	if err != nil {
		return facts, err
	}
	var said struct {
		Purpose    string
		SampleType string  `json:"sample_type"` // Mistral
		CreatedAt  instant `json:"created_at"`
		EndedAt    instant `json:"ended_at"` // Anthropic
	}
	if resp.StatusCode != http.StatusOK || json.Unmarshal(b, &said) != nil {
		return facts, errFacts
	}
	over := time.Time(said.EndedAt)
	if over.IsZero() {
		over = time.Time(said.CreatedAt)
	}
	nanos, ok := x.plausible(over)
	if facts = (batchFacts{nanos, uploads[said.Purpose] && said.SampleType != "batch_result"}); !ok && !facts.upload {
		return facts, errFacts
	}
	return facts, nil
}

// uploads are purposes of files that clients put there. Mistral gives a batch's output
// the purpose of its input, and tells them apart by the type of sample.
var uploads = map[string]bool{"batch": true, "fine-tune": true, "assistants": true, "vision": true, "user_data": true, "evals": true}

// instant is a time in unix seconds, or as text (RFC 3339).
type instant time.Time

// UnmarshalJSON implements json.Unmarshaler; what is neither is no time.
func (t *instant) UnmarshalJSON(b []byte) error {
	var text time.Time
	whole, _, _ := strings.Cut(string(b), ".")
	if seconds, err := strconv.ParseInt(whole, 10, 40); err == nil {
		*t = instant(time.Unix(seconds, 0))
	} else if json.Unmarshal(b, &text) == nil {
		*t = instant(text)
	}
	return nil
}

// dropRanges lets a request ask for the whole.
func dropRanges(h http.Header) {
	delete(h, "Range")
	delete(h, "If-Range")
}
