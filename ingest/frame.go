package ingest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Refusal says why one event was not accepted.
type Refusal struct {
	// Index is the event's position in the request.
	Index int
	// EventID is empty when it could not be read or is itself not valid.
	EventID string
	// Field and Rule are those of event.FieldError, or "event" and
	// RuleUnavailable.
	Field   string
	Rule    string
	Message string
}

// outcome is what became of the events of a frame.
type outcome struct {
	accepted int
	refusals []Refusal
	// unavailable is why some of them are not known to be durable; they are
	// among the refusals. full says that it would have been worse to try.
	unavailable error
	full        bool
}

// source gives the events of a body, one after the other.
type source interface {
	// next decodes the next event into e; its strings may alias the body. ok is
	// false at the end. refusal is what is wrong with this event, err with the
	// body: nothing can follow it.
	next(e *event.Event) (ok bool, refusal, err error)
}

// frame is the work on the events of one request. It is used by one goroutine
// at a time and reused: apart from refusals it allocates nothing per event.
type frame struct {
	edge *Edge
	from caller
	now  int64 // unix nanoseconds: received_at of all its events

	event    event.Event
	producer []byte // the event's producer fields
	person   event.Span
	hash     *macHash
	name     []byte // the person's, for hashing
	user     [32]byte
	subject  []byte // the person, sealed; empty when the event has none
	hidden   []event.Tag
	pairs    []byte       // the event's confidential tags, before they are sealed
	sealed   []byte       // and after
	last     *tenantState // of the event before
	told     bool         // that an event is of a tenant that the caller may not write for

	arena   []byte // the records, one after the other
	pending []pendingEvent
	records []kafka.Record
	results []kafka.Result

	given    givenSource // of Submit
	refusals []Refusal
	refused  []refusedEvent // beside refusals, for the counters
	missing  error          // errNoUsableKey, when a tenant's key could not be had
	total    int
}

// refusedEvent is what the counters need of a refusal.
type refusedEvent struct {
	whose    tenant.ID
	producer string // aliases the body
	reason   string
}

// pendingEvent is an event that is to be sent.
type pendingEvent struct {
	index    int
	end      int // of its record in the arena
	tenant   *tenantState
	id       string // aliases the body
	producer string // aliases the body
}

func newFrame(e *Edge) *frame { return &frame{edge: e, hash: newMACHash()} }

// maxPooledArena keeps one huge frame from pinning its memory for ever.
const maxPooledArena = 8 << 20

// begin takes a frame out of the pool.
func (e *Edge) begin(c caller) *frame {
	f := e.frames.Get().(*frame)
	f.from, f.now = c, e.opts.Now().UnixNano()
	return f
}

// end puts the frame back. Nothing of it may be used any more.
func (e *Edge) end(f *frame) {
	if cap(f.arena) > maxPooledArena {
		f.arena = nil
	}
	f.event.Reset()
	clear(f.event.Tags[:cap(f.event.Tags)])
	clear(f.hidden)
	clear(f.name)
	clear(f.pairs)
	clear(f.pending)
	clear(f.refused)
	clear(f.records)
	clear(f.results)
	f.from, f.last, f.told, f.refusals, f.missing, f.total = caller{}, nil, false, nil, nil, 0
	f.given = givenSource{}
	f.arena, f.pending, f.records, f.results = f.arena[:0], f.pending[:0], f.records[:0], f.results[:0]
	f.refused = f.refused[:0]
	e.frames.Put(f)
}

// read takes all events of the source. An error is the body's: nothing of it
// may be sent then.
func (f *frame) read(src source) error {
	for {
		ok, refusal, err := src.next(&f.event)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if f.total == MaxEvents {
			return errTooManyEvents
		}
		if refusal == nil {
			refusal = f.take(&f.event)
		}
		if refusal != nil {
			f.refuse(&f.event, refusal)
		}
		f.total++
	}
	if f.total == 0 {
		return errNoEvents
	}
	return nil
}

// take puts the event's record into the arena. The error is a
// *event.FieldError or wraps errNoUsableKey.
func (f *frame) take(ev *event.Event) error {
	if ev.Tenant == "" {
		ev.Tenant = f.from.tenant
	}
	if err := ev.Validate(false); err != nil {
		return err
	}
	t, err := f.tenant(ev.Tenant)
	if err != nil {
		return err
	}
	if err := f.checkClock(ev.OccurredAt); err != nil {
		return err
	}
	if err := ev.Normalize(); err != nil {
		return err
	}
	if err := f.stamp(ev, t); err != nil {
		return err
	}
	start := len(f.arena)
	f.arena = event.AppendUsageRecordOf(f.arena, ev, f.producer, f.person, f.subject)
	if len(f.arena)-start > event.MaxEncodedSize {
		f.arena = f.arena[:start]
		return &event.FieldError{Field: "event", Rule: event.RuleMaxBytes, Detail: fmt.Sprintf("at most %d bytes encoded", event.MaxEncodedSize)}
	}
	f.pending = append(f.pending, pendingEvent{f.total, len(f.arena), t, ev.ID, ev.ProducerID})
	return nil
}

// tenant finds the event's tenant and holds it against the caller's. Unknown
// and foreign tenants get one answer: who may not write for a tenant does not
// learn whether it exists.
func (f *frame) tenant(id string) (*tenantState, error) {
	if f.last != nil && string(f.last.id) == id {
		return f.last, nil
	}
	if f.from.principal.May(tenant.ID(id)) {
		t, err := f.edge.tenants.get(id)
		if err == nil && f.edge.sealEpoch(t, f.now) == 0 {
			err = errUnknownTenant // what is sealed for it is destroyed: it sends nothing any more
		}
		if err == nil {
			f.last = t
			return t, nil
		}
		if !errors.Is(err, errUnknownTenant) {
			return nil, err
		}
	} else if !f.told { // once for all of the frame's events
		f.told = true
		f.edge.denied(f.from, errForbidden)
	}
	return nil, &event.FieldError{Field: "tenant_id", Rule: event.RuleTenant, Detail: "no tenant that the caller may write for"}
}

func (f *frame) checkClock(occurredAt int64) error {
	o := &f.edge.opts
	switch {
	case occurredAt > f.now+int64(o.MaxFuture):
		return &event.FieldError{Field: "occurred_at", Rule: event.RuleFuture, Detail: "more than " + o.MaxFuture.String() + " ahead"}
	case occurredAt < f.now-int64(o.MaxAge):
		return &event.FieldError{Field: "occurred_at", Rule: event.RuleTooOld, Detail: "more than " + o.MaxAge.String() + " ago"}
	}
	return nil
}

// stamp sets the edge's fields: the content MAC over what the producer said,
// the person's pseudonym and the time of receipt. What is confidential is sealed
// after the MAC, which must be the same when the event comes again, and so do
// mapping rules.
func (f *frame) stamp(ev *event.Event, t *tenantState) (err error) {
	f.producer, f.person = ev.AppendProducerMarked(f.producer[:0])
	if ev.ContentMAC, err = f.hash.mac(t.dedupe, f.producer); err != nil {
		return err
	}
	ev.HasContentMAC = true
	ev.ReceivedAt = f.now
	if err := f.mapEvent(ev, t); err != nil {
		return err
	}
	f.subject = f.subject[:0]
	if ev.User != "" {
		if err := f.hidePerson(ev, t); err != nil {
			return err
		}
	}
	if len(ev.Tags) > 0 {
		return f.hideTags(ev, t)
	}
	return nil
}

// refuse notes what is wrong with the event, in the order of the request.
func (f *frame) refuse(ev *event.Event, err error) {
	id, producer := validText(ev.ID), validText(ev.ProducerID)
	var fe *event.FieldError
	if !errors.As(err, &fe) {
		f.missing = err
		f.refusals = append(f.refusals, unavailableRefusal(f.total, id))
		f.refused = append(f.refused, refusedEvent{f.edge.countsFor(f.from), producer, RuleUnavailable})
		return
	}
	f.refusals = append(f.refusals, Refusal{Index: f.total, EventID: strings.Clone(id), Field: fe.Field, Rule: fe.Rule, Message: fe.Error()})
	f.refused = append(f.refused, refusedEvent{f.whose(ev), producer, reasonOf(fe)})
}

// whose is the tenant that the event's refusal is counted for.
func (f *frame) whose(ev *event.Event) tenant.ID {
	if t, err := f.tenant(ev.Tenant); err == nil {
		return t.id
	}
	return f.edge.countsFor(f.from)
}

func unavailableRefusal(index int, id string) Refusal {
	return Refusal{
		Index: index, EventID: strings.Clone(id), Field: "event", Rule: RuleUnavailable,
		Message: "not known to be durable; send it again",
	}
}

// reasonOf is the counters' reason for a refusal. Only names of the table
// appear in it, so that a client cannot make reasons up.
func reasonOf(fe *event.FieldError) string {
	if fe.Rule == event.RuleUnknown || fe.Rule == event.RuleMalformed {
		return fe.Rule
	}
	return fe.Rule + "." + fe.Field
}

// send makes the accepted events durable, or says which are not. It waits for
// Kafka even when the client has gone: the counts must be right.
func (f *frame) send(ctx context.Context) outcome {
	o := outcome{unavailable: f.missing}
	if len(f.pending) > 0 {
		f.produce(ctx, &o)
	}
	o.refusals = f.refusals
	unavailable := int64(len(f.pending) - o.accepted)
	for _, x := range f.refused {
		f.edge.counts.refuse(x.whose, x.producer, x.reason, 1)
		if x.reason == RuleUnavailable {
			unavailable++
		}
	}
	f.edge.accepted.Add(int64(o.accepted))
	f.edge.unavailable.Add(unavailable)
	f.edge.refused.Add(int64(len(o.refusals)) - unavailable)
	return o
}

func (f *frame) produce(ctx context.Context, o *outcome) {
	start := 0
	for i := range f.pending {
		p := &f.pending[i]
		f.records = append(f.records, kafka.Record{
			Topic: f.edge.opts.Topic, Partition: p.tenant.partition, TimestampMs: f.now / 1e6,
			Key: p.tenant.key, Value: f.arena[start:p.end:p.end],
		})
		f.results = append(f.results, kafka.Result{})
		start = p.end
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.edge.opts.Deadline)
	defer cancel()
	if err := produce(ctx, f.edge.log, f.records, f.results); err != nil {
		f.notAll(err, o)
	}
	o.accepted = f.edge.counts.settle(f.pending, f.results)
}

// produce calls the log and makes sure that an error is some record's: a log
// that fails without saying which record must not look like success.
func produce(ctx context.Context, log Log, recs []kafka.Record, results []kafka.Result) error {
	err := log.ProduceBatch(ctx, recs, results)
	if err == nil {
		return nil
	}
	for i := range results {
		if results[i].Err != nil {
			return err
		}
	}
	for i := range results {
		results[i].Err = err
	}
	return err
}

// notAll adds the events that are not durable to the refusals, in order.
func (f *frame) notAll(err error, o *outcome) {
	o.full = errors.Is(err, kafka.ErrFull)
	own := f.refusals
	f.refusals = make([]Refusal, 0, len(own)+len(f.pending))
	for i := range f.pending {
		p, res := &f.pending[i], &f.results[i]
		if res.Err == nil {
			continue
		}
		for len(own) > 0 && own[0].Index < p.index {
			f.refusals, own = append(f.refusals, own[0]), own[1:]
		}
		f.refusals = append(f.refusals, unavailableRefusal(p.index, p.id))
		o.unavailable = err
		if errors.Is(res.Err, kafka.ErrUnacked) {
			f.arena = nil // the log may still read it
		}
	}
	f.refusals = append(f.refusals, own...)
}

// validText is s when it may be repeated, else "".
func validText(s string) string {
	if !event.ValidText(s, event.MaxIDBytes) {
		return ""
	}
	return s
}
