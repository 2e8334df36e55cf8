package callback

import (
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/attribution"
	"github.com/tallystick/tallystick/ingest/event"
)

// UsageType is the type of the CloudEvents that are usage events; their data has
// the members of an event of POST /v1/events:batch.
const UsageType = "com.tallystick.usage.v1"

// Media types of CloudEvents' JSON format 1.0.
const (
	typeStructured = "application/cloudevents+json"
	typeBatch      = "application/cloudevents-batch+json"
	typeJSON       = "application/json"
	typeNDJSON     = "application/x-ndjson"
)

// CloudEvents serves CloudEventsPath. An event that has no event_id gets one made of
// its source and id, which CloudEvents says are unique together; without occurred_at
// it has the time of its envelope.
func CloudEvents(edge Edge) http.Handler {
	return &door{edge: edge, name: "cloudevents", decode: decodeCloudEvents, form: ingest.Form{
		Accepts: func(media string) bool { return media == typeStructured || media == typeBatch || media == typeJSON },
		Use:     typeStructured + ", " + typeBatch + " or the binary mode with " + typeJSON, MaxBytes: ingest.MaxBodyBytes,
	}}
}

// envelope is the context of a CloudEvent. Extensions are passed over.
type envelope struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Type        string          `json:"type"`
	Time        string          `json:"time"`
	ContentType string          `json:"datacontenttype"`
	Data        json.RawMessage `json:"data"`
}

func decodeCloudEvents(rcv ingest.Received) (d decoded, err error) {
	if rcv.Media == typeJSON {
		env, err := binaryMode(rcv)
		if err != nil {
			return d, err
		}
		d.add(env.event(rcv))
		return d, nil
	}
	err = documents(rcv.Body, func(doc json.RawMessage) {
		var env envelope
		if json.Unmarshal(doc, &env) != nil {
			d.add(event.Event{}, fault("event", event.RuleMalformed, "no CloudEvent"))
			return
		}
		d.add(env.event(rcv))
	})
	if err == nil && rcv.Media == typeStructured && len(d.events) != 1 {
		err = ingest.Malformed("a structured body holds one CloudEvent")
	}
	return d, err
}

// binaryMode reads the envelope out of the headers.
func binaryMode(rcv ingest.Received) (env envelope, err error) {
	for name, to := range map[string]*string{
		"Ce-Specversion": &env.SpecVersion, "Ce-Id": &env.ID, "Ce-Source": &env.Source, "Ce-Type": &env.Type, "Ce-Time": &env.Time,
	} {
		// Values are percent-encoded where they are not plain ASCII (HTTP binding, 3.1.3.2).
		if *to, err = url.PathUnescape(rcv.Header.Get(name)); err != nil {
			return env, ingest.Malformed("the header " + name + " is not percent-encoded")
		}
	}
	if env.SpecVersion == "" {
		return env, ingest.Malformed("the header Ce-Specversion is missing: no CloudEvent in binary mode")
	}
	env.Data = rcv.Body
	return env, nil
}

// event is the usage event that a CloudEvent carries.
func (env *envelope) event(rcv ingest.Received) (e event.Event, err error) {
	if err := env.check(); err != nil {
		return e, err
	}
	mode := event.Strict
	if rcv.Header.Get(ingest.UnknownFieldsHeader) == "drop" {
		mode = event.Lenient
	}
	if err := e.DecodeJSON(env.Data, mode); err != nil {
		return e, err
	}
	if e.Tenant == "" {
		e.Tenant = rcv.Tenant
	}
	if e.ID == "" {
		e.ID = event.DerivedID(e.Tenant, "cloudevents/"+env.Source, env.ID, 0, "", &e.Tokens, 0)
	}
	if e.OccurredAt == 0 && env.Time != "" {
		t, err := time.Parse(time.RFC3339Nano, env.Time)
		if err != nil {
			return e, fault("time", event.RuleType, "a time of RFC 3339")
		}
		e.OccurredAt = t.UnixNano()
	}
	whose, _ := attribution.FromHeaders(rcv.Header)
	whose.Apply(&e)
	return e, nil
}

func (env *envelope) check() error {
	for _, x := range []struct{ field, value string }{{"id", env.ID}, {"source", env.Source}} {
		switch {
		case x.value == "":
			return fault(x.field, event.RuleRequired, "")
		case !event.ValidText(x.value, event.MaxValueBytes):
			return fault(x.field, event.RuleMaxBytes, "at most 256 bytes of text")
		}
	}
	switch {
	case env.SpecVersion != "1.0":
		return fault("specversion", event.RuleOneOf, "1.0")
	case env.Type != UsageType:
		return fault("type", event.RuleOneOf, UsageType)
	case len(env.Data) == 0:
		return fault("data", event.RuleRequired, "a usage event in JSON")
	}
	return nil
}
