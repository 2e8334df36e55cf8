package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
)

// Errors of Submit.
var (
	// ErrNotAllowed: the principal lacks the scope ingest. Nothing was sent.
	ErrNotAllowed = errScope
	// ErrUnavailable: some events are not known to be durable; they are refused
	// with RuleUnavailable and may be sent again as they are, with their ids. It
	// wraps the cause, which may be kafka.ErrFull.
	ErrUnavailable = errors.New("ingest: not every event is durable")
)

// Outcome says what became of submitted events: each is accepted or refused.
type Outcome struct {
	// Accepted is how many are durable.
	Accepted int
	// Refusals are the others, in ascending order of their index.
	Refusals []Refusal
}

// Submit takes events that another front door has decoded. They take the same way
// as those of POST /v1/events:batch: validation, stamps, pseudonyms, sealing, the
// log, counters. An event that names no tenant is the principal's only one's.
// Fields that only the edge sets are not looked at, and the events are not changed.
//
// There may be any number of events; they are sent in frames of MaxEvents. What was
// accepted is durable, also when there is an error: ErrNotAllowed or ErrUnavailable.
// Submit waits for a place, and then for the log, at most Options.Deadline each, and
// goes on when ctx ends: a caller that has left has used its tokens all the same.
func (e *Edge) Submit(ctx context.Context, who authn.Principal, events []event.Event) (Outcome, error) {
	return e.SubmitDecoded(ctx, who, events, nil)
}

// SubmitDecoded is Submit for a front door that could not decode some of the events:
// faults, unless nil, has a *event.FieldError for each of those in its place, and
// they are refused and counted like what the edge itself refuses.
func (e *Edge) SubmitDecoded(ctx context.Context, who authn.Principal, events []event.Event, faults []error) (Outcome, error) {
	c := caller{principal: who, peer: authn.PeerOf(ctx)}
	if id, ok := who.Single(); ok {
		c.tenant = string(id)
	}
	if !who.Can(authn.Ingest) {
		e.denied(c, errScope)
		e.refuseRequest(c, reasonForbidden)
		return Outcome{}, ErrNotAllowed
	}
	var out Outcome
	var failed error
	for first := 0; first < len(events); first += MaxEvents {
		end := min(first+MaxEvents, len(events))
		src := givenSource{rest: events[first:end]}
		if faults != nil {
			src.faults = faults[first:end]
		}
		o := e.submitFrame(ctx, c, src)
		out.Accepted += o.accepted
		for _, r := range o.refusals {
			r.Index += first
			out.Refusals = append(out.Refusals, r)
		}
		if o.unavailable != nil && failed == nil {
			e.logUnavailable(ctx, o)
			failed = fmt.Errorf("%w: %w", ErrUnavailable, o.unavailable)
		}
	}
	return out, failed
}

// submitFrame sends 1 to MaxEvents events.
func (e *Edge) submitFrame(ctx context.Context, c caller, src givenSource) outcome {
	f := e.begin(c)
	defer e.end(f)
	f.given = src
	// read fails for what is wrong with a body, and here is none.
	if err := f.read(&f.given); err != nil {
		return outcome{unavailable: err}
	}
	if err := e.waitForPlace(ctx); err != nil {
		f.abandon(err)
		return f.send(ctx)
	}
	defer e.gate.leave()
	return f.send(ctx)
}

func (e *Edge) waitForPlace(ctx context.Context) error {
	if e.gate.enter() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.opts.Deadline)
	defer cancel()
	return e.gate.wait(ctx)
}

// abandon refuses as unavailable what would have been sent.
func (f *frame) abandon(err error) {
	f.missing = err
	for i := range f.pending {
		p := &f.pending[i]
		f.refusals = append(f.refusals, unavailableRefusal(p.index, p.id))
		f.refused = append(f.refused, refusedEvent{p.tenant.id, p.producer, RuleUnavailable})
	}
	f.pending = f.pending[:0]
	slices.SortFunc(f.refusals, func(a, b Refusal) int { return cmp.Compare(a.Index, b.Index) })
}

// givenSource walks events that are decoded already.
type givenSource struct {
	rest   []event.Event
	faults []error // of rest, or nil
}

func (s *givenSource) next(e *event.Event) (ok bool, refusal, err error) {
	if len(s.rest) == 0 {
		return false, nil, nil
	}
	given := &s.rest[0]
	s.rest = s.rest[1:]
	tags := append(e.Tags[:0], given.Tags...)
	*e = *given
	e.Tags = tags
	e.ReceivedAt, e.MappingVersion, e.UserPseudonym, e.SealedTags = 0, 0, "", nil
	e.HasContentMAC = false
	if s.faults != nil {
		refusal, s.faults = s.faults[0], s.faults[1:]
	}
	if refusal == nil {
		refusal = sortTags(e.Tags)
	}
	return true, refusal, nil
}

// sortTags brings tags into the order of the log. The error is a *event.FieldError.
func sortTags(tags []event.Tag) error {
	byKey := func(a, b event.Tag) int { return cmp.Compare(a.Key, b.Key) }
	if !slices.IsSortedFunc(tags, byKey) {
		slices.SortStableFunc(tags, byKey)
	}
	for i := 1; i < len(tags); i++ {
		if tags[i].Key == tags[i-1].Key {
			return &event.FieldError{Field: "tags", Rule: event.RuleDuplicate, Detail: "a key is given twice"}
		}
	}
	return nil
}
