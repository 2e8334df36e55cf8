// Package callback holds the front doors for what others' programs post by HTTP:
// CloudEvents 1.0 (binary, structured, batch) whose data is a usage event of ours,
// and the payloads of LiteLLM's generic callback (an array, lines, or one).
//
// It promises that an event which cannot be read is answered with the field and the
// rule that it broke and stops no other, that the same payload always gives the same
// event id, and that messages, responses and errors' texts of a payload are skipped,
// never decoded. What it makes goes through the edge like any other event. A call that
// went through the metering proxy as well is not billed again: it is counted, and that is
// all.
package callback

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
)

// Where the handlers are to be served, for the method POST.
const (
	CloudEventsPath = "/v1/cloudevents"
	LiteLLMPath     = "/v1/callbacks/litellm"
)

// Edge is where events go. *ingest.Edge is one.
type Edge interface {
	Receive(w http.ResponseWriter, r *http.Request, form ingest.Form, use func(ingest.Received) error) error
	SubmitDecoded(ctx context.Context, who authn.Principal, events []event.Event, faults []error) (ingest.Outcome, error)
	RefuseTelemetry(rcv ingest.Received, producer, rule string, n int)
}

// decoded are the events of a body, each with what is wrong with it.
type decoded struct {
	events []event.Event
	faults []error
	// elsewhere is how many more there are whose calls have their event by another way.
	elsewhere int
}

func (d *decoded) add(e event.Event, fault error) {
	d.events, d.faults = append(d.events, e), append(d.faults, fault)
}

// door is a format.
type door struct {
	edge   Edge
	name   string // of the door as a producer, in the counters
	form   ingest.Form
	decode func(rcv ingest.Received) (decoded, error)
}

// ServeHTTP answers like POST /v1/events:batch.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var out ingest.Outcome
	err := d.edge.Receive(w, r, d.form, func(rcv ingest.Received) error {
		got, err := d.decode(rcv)
		if err != nil {
			return err
		}
		out, err = d.edge.SubmitDecoded(r.Context(), rcv.Principal, got.events, got.faults)
		if err == nil && got.elsewhere > 0 {
			d.edge.RefuseTelemetry(rcv, d.name, ingest.RuleBilledElsewhere, got.elsewhere)
		}
		return err
	})
	ingest.WriteOutcome(w, r, out, err)
}

// errTooMany is the error of a body with too many events.
var errTooMany = ingest.Malformed("a request holds at most 1000 events")

// documents calls each for every member of a JSON array, or for every JSON document
// of a body, which are lines of NDJSON or one. The documents alias the decoder's
// memory until each returns.
func documents(body []byte, each func(json.RawMessage)) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	array := false
	if trimmed := bytes.TrimLeft(body, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '[' {
		array = true
		if _, err := dec.Token(); err != nil {
			return errNoJSON
		}
	}
	n := 0
	for ; !array || dec.More(); n++ {
		var doc json.RawMessage
		err := dec.Decode(&doc)
		switch {
		case errors.Is(err, io.EOF) && !array:
			return someOf(n)
		case err != nil:
			return errNoJSON
		case n == ingest.MaxEvents:
			return errTooMany
		}
		each(doc)
	}
	if _, err := dec.Token(); err != nil { // the end of the array
		return errNoJSON
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errNoJSON
	}
	return nil
}

var errNoJSON = ingest.Malformed("the body is no JSON of the expected kind, or is cut short")

// someOf is the error of a body without events. An empty array is no error: senders
// that flush on a timer send it.
func someOf(n int) error {
	if n == 0 {
		return ingest.Malformed("the body holds no event")
	}
	return nil
}

func fault(field, rule, detail string) error {
	return &event.FieldError{Field: field, Rule: rule, Detail: detail}
}
