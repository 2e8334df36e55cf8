package ingest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// problem is an RFC 9457 answer to a request that was refused as a whole.
type problem struct {
	// Type is "urn:tallystick:error:" and a reason of the list below.
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	RequestID string `json:"request_id"`

	// Field and Rule are set when one part of the request broke a rule.
	Field string `json:"field,omitempty"`
	Rule  string `json:"rule,omitempty"`

	// The per-event results, when the events were read.
	*results

	retryAfter time.Duration
	challenge  bool
}

// problemTypePrefix begins the type of every problem.
const problemTypePrefix = "urn:tallystick:error:"

// The reasons of problems, which are also reasons of the producer counters.
const (
	reasonUnauthenticated = "unauthenticated"
	reasonForbidden       = "forbidden"
	reasonMethod          = "method_not_allowed"
	reasonMediaType       = "unsupported_media_type"
	reasonEncoding        = "unsupported_content_encoding"
	reasonHeader          = "bad_header"
	reasonTooLarge        = "body_too_large"
	reasonTooMany         = "too_many_events"
	reasonNoEvents        = "no_events"
	reasonMalformed       = "malformed_body"
	reasonBodyTimeout     = "body_timeout"
	reasonAllRefused      = "all_events_refused"
	reasonUnavailable     = "unavailable"
	reasonBusy            = "busy"
	reasonTooManyRefusals = "too_many_refusals"
)

func newProblem(status int, reason, detail string) *problem {
	return &problem{Type: problemTypePrefix + reason, Title: http.StatusText(status), Status: status, Detail: detail}
}

// reason is the problem's type without its prefix.
func (p *problem) reason() string { return p.Type[len(problemTypePrefix):] }

// write sends the problem.
func (p *problem) write(w http.ResponseWriter, requestID string) {
	p.RequestID = requestID
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Request-Id", requestID)
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
	if p.Status == http.StatusMethodNotAllowed {
		h.Set("Allow", http.MethodPost)
	}
	if p.challenge {
		h.Set("WWW-Authenticate", `Bearer realm="tallystick"`)
	}
	w.WriteHeader(p.Status)
	writeJSON(w, p)
}

// writeJSON sends a body. A client that has gone meanwhile is not our error: it
// does not learn what became of its events, sends them again, and that is
// harmless.
func writeJSON(w http.ResponseWriter, v any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}

// results is the JSON form of tallystick.v1.SendEventsResponse: 64-bit
// integers are strings.
type results struct {
	Accepted int64         `json:"accepted,string"`
	Refused  int64         `json:"refused,string"`
	Refusals []jsonRefusal `json:"refusals"`
}

type jsonRefusal struct {
	Index   int64  `json:"index,string"`
	EventID string `json:"event_id"`
	Field   string `json:"field"`
	Rule    string `json:"rule"`
	Message string `json:"message"`
}

func newResults(o outcome) *results {
	r := &results{Accepted: int64(o.accepted), Refused: int64(len(o.refusals)), Refusals: make([]jsonRefusal, 0, len(o.refusals))}
	for _, x := range o.refusals {
		r.Refusals = append(r.Refusals, jsonRefusal{int64(x.Index), x.EventID, x.Field, x.Rule, x.Message})
	}
	return r
}
