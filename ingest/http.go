package ingest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"
)

// EventsPath is where Handler is to be served, for the method POST.
const EventsPath = "/v1/events:batch"

// Headers of a request.
const (
	// TenantHeader names the tenant of events that name none.
	TenantHeader = "X-Tallystick-Tenant"
	// UnknownFieldsHeader is "refuse" or "drop" and says what to do with fields
	// that are not in the schema; the default is the edge's.
	UnknownFieldsHeader = "X-Tallystick-Unknown-Fields"
)

// Media types of a body.
const (
	typeJSON   = "application/json"
	typeNDJSON = "application/x-ndjson"
	typeProto  = "application/x-protobuf"
)

// retrySoon and retryLater are what Retry-After asks for when the edge is full
// and when Kafka cannot be reached.
const (
	retrySoon  = time.Second
	retryLater = 5 * time.Second
)

// Handler serves POST /v1/events:batch. It answers
//
//   - 202 when every event that was not refused is durable, with the refusals;
//   - 400 when all were refused or the body is malformed, 401, 403, 405, 413,
//     415 as usual, 408 when the body took too long to arrive;
//   - 503 with Retry-After when an event could not be made durable. The events
//     that are durable all the same are counted in "accepted"; sending all of
//     them again is harmless.
//
// Everything but 202 is an application/problem+json.
func (e *Edge) Handler() http.Handler { return http.HandlerFunc(e.serveEvents) }

func (e *Edge) serveEvents(w http.ResponseWriter, r *http.Request) {
	c, done, p := e.receive(w, r)
	if p != nil {
		if done == nil {
			e.refuseRequest(c, p.reason())
		}
		p.write(w, requestID(r))
		return
	}
	writeResults(w, done)
}

// receive does everything but writing the answer. A problem with results is
// about events that were counted one by one.
func (e *Edge) receive(w http.ResponseWriter, r *http.Request) (caller, *results, *problem) {
	c, p := e.identify(r)
	if p != nil {
		return c, nil, p
	}
	media, encoding, p := bodyForm(r.Header)
	if p != nil {
		return c, nil, p
	}
	size := reservation(r.ContentLength, encoding, MaxBodyBytes)
	if size < 0 {
		return c, nil, tooLarge(MaxBodyBytes)
	}
	if !e.gate.reserve(size) {
		return c, nil, busy()
	}
	defer e.gate.release(size)
	b := e.bodies.Get().(*body)
	defer func() { b.release(); e.bodies.Put(b) }()
	raw, p := e.readBody(w, r, b, encoding, MaxBodyBytes)
	if p != nil {
		return c, nil, p
	}
	if len(raw) == 0 {
		return c, nil, bodyProblem(errNoEvents)
	}
	if !e.gate.enter() {
		return c, nil, busy()
	}
	defer e.gate.leave()
	return e.work(r.Context(), c, newSource(raw, media, c.lenient))
}

// work runs the events of a body through a frame.
func (e *Edge) work(ctx context.Context, c caller, src source) (caller, *results, *problem) {
	f := e.begin(c)
	defer e.end(f)
	if err := f.read(src); err != nil {
		return c, nil, bodyProblem(err)
	}
	o := f.send(ctx)
	res := newResults(o)
	switch {
	case o.unavailable != nil:
		e.logUnavailable(ctx, o)
		p := notDurable(o.full)
		p.results = res
		return c, res, p
	case o.accepted == 0:
		p := newProblem(http.StatusBadRequest, reasonAllRefused, "every event was refused")
		p.results = res
		return c, res, p
	}
	return c, res, nil
}

func (e *Edge) logUnavailable(ctx context.Context, o outcome) {
	e.quiet.Do(func() {
		e.logger.WarnContext(ctx, "ingest: events could not be made durable", "events", len(o.refusals), "err", o.unavailable)
	})
}

// identify authenticates the caller and reads the headers that concern events.
func (e *Edge) identify(r *http.Request) (c caller, p *problem) {
	c, err := e.caller(r.Context(), r.Header.Get("Authorization"), r.Header.Values(TenantHeader), r.Header.Values(UnknownFieldsHeader))
	if r.Method != http.MethodPost {
		return c, newProblem(http.StatusMethodNotAllowed, reasonMethod, "use POST")
	}
	return c, e.callerProblem(r.Context(), err)
}

// callerProblem translates what caller returns.
func (e *Edge) callerProblem(ctx context.Context, err error) (p *problem) {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, authn.ErrUnauthenticated):
		p = newProblem(http.StatusUnauthorized, reasonUnauthenticated, "send a valid token as Authorization: Bearer")
		p.challenge = true
	case errors.Is(err, errForbidden):
		p = newProblem(http.StatusForbidden, reasonForbidden, "the credential may not write for the tenant in "+TenantHeader)
	case errors.Is(err, errScope):
		p = newProblem(http.StatusForbidden, reasonForbidden, "the credential may not send events: it lacks the scope ingest")
	case errors.Is(err, errHeader):
		p = newProblem(http.StatusBadRequest, reasonHeader, err.Error())
	default:
		e.quiet.Do(func() { e.logger.WarnContext(ctx, "ingest: cannot authenticate", "err", err) })
		p = newProblem(http.StatusServiceUnavailable, reasonUnavailable, "the credential cannot be verified now")
		p.retryAfter = retryLater
	}
	return p
}

var (
	errForbidden = errors.New("ingest: the credential may not write for this tenant")
	errScope     = errors.New("ingest: the credential lacks the scope ingest")
	errHeader    = errors.New("ingest: bad header")
)

// caller is who calls, from the values of the three headers (or of the gRPC
// metadata of the same names). Until the credential is verified nothing else
// is looked at.
func (e *Edge) caller(ctx context.Context, authorization string, tenants, unknown []string) (c caller, err error) {
	token := authn.BearerToken(authorization)
	if c.principal, err = e.auth.Authenticate(ctx, token); err != nil {
		return caller{}, err
	}
	c.peer = authn.PeerOf(ctx)
	if id, ok := c.principal.Single(); ok {
		c.tenant = string(id)
	}
	if !c.principal.Can(authn.Ingest) {
		e.denied(c, errScope)
		return c, errScope
	}
	c.lenient = e.opts.Lenient
	switch {
	case len(unknown) == 0:
	case len(unknown) == 1 && unknown[0] == "drop":
		c.lenient = true
	case len(unknown) == 1 && unknown[0] == "refuse":
		c.lenient = false
	default:
		return c, headerError(UnknownFieldsHeader + " must be refuse or drop")
	}
	switch {
	case len(tenants) == 0:
	case len(tenants) > 1 || !tenant.ValidID(tenants[0]):
		return c, headerError(TenantHeader + " must be one tenant id")
	case !c.principal.May(tenant.ID(tenants[0])):
		e.denied(c, errForbidden)
		return c, errForbidden
	default:
		c.tenant = tenants[0]
	}
	return c, nil
}

// denied tells that a caller may not do what it tried.
func (e *Edge) denied(c caller, reason error) {
	if e.opts.Denied != nil {
		e.opts.Denied(c.principal, c.peer, reason.Error())
	}
}

// headerError says what is wrong with a header, without its value.
type headerError string

func (h headerError) Error() string        { return string(h) }
func (h headerError) Is(target error) bool { return target == errHeader }

// bodyForm reads the headers that say how the body is written.
func bodyForm(h http.Header) (media, encoding string, p *problem) {
	media = h.Get("Content-Type")
	switch media {
	case typeJSON, typeNDJSON, typeProto: // the common case, without parsing
	default:
		parsed, params, err := mime.ParseMediaType(media)
		charset := params["charset"]
		known := parsed == typeJSON || parsed == typeNDJSON || parsed == typeProto
		if err != nil || !known || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return "", "", newProblem(http.StatusUnsupportedMediaType, reasonMediaType,
				"use "+typeJSON+", "+typeNDJSON+" or "+typeProto)
		}
		media = parsed
	}
	encoding, p = contentEncoding(h)
	return media, encoding, p
}

func contentEncoding(h http.Header) (encoding string, p *problem) {
	switch encoding = strings.ToLower(strings.Join(h.Values("Content-Encoding"), ",")); encoding {
	case "identity":
		return encodingIdentity, nil
	case encodingIdentity, encodingGzip, encodingZstd:
		return encoding, nil
	default:
		return "", newProblem(http.StatusUnsupportedMediaType, reasonEncoding, "use gzip, zstd or no content encoding")
	}
}

// reservation is how many bytes to reserve for a body: the most it can hold
// where its length does not say. It is negative when the length is too great.
func reservation(contentLength int64, encoding string, max int64) int64 {
	switch {
	case contentLength > max:
		return -1
	case contentLength < 0 || encoding != encodingIdentity:
		return max
	default:
		return contentLength
	}
}

// readBody reads the body within its time and size.
func (e *Edge) readBody(w http.ResponseWriter, r *http.Request, b *body, encoding string, max int64) ([]byte, *problem) {
	// A ResponseWriter without deadlines is a test's; the server's own hold then.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(e.opts.BodyTimeout))
	raw, err := b.read(r.Body, encoding, r.ContentLength, max)
	switch {
	case err == nil:
		_ = control.SetReadDeadline(time.Time{})
		return raw, nil
	case errors.Is(err, errTooLarge):
		return nil, tooLarge(max)
	case errors.Is(err, errEncoding):
		return nil, newProblem(http.StatusBadRequest, reasonMalformed, "the body is not "+encoding+", or is cut short")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, newProblem(http.StatusRequestTimeout, reasonBodyTimeout, "the body took too long to arrive")
	default:
		return nil, newProblem(http.StatusBadRequest, reasonMalformed, "the body is cut short")
	}
}

func tooLarge(max int64) *problem {
	return newProblem(http.StatusRequestEntityTooLarge, reasonTooLarge,
		fmt.Sprintf("a body is at most %d MiB, as sent and decompressed", max>>20))
}

func busy() *problem {
	p := newProblem(http.StatusServiceUnavailable, reasonBusy, "too many requests in flight")
	p.retryAfter = retrySoon
	return p
}

// bodyProblem translates what is wrong with a body as a whole.
func bodyProblem(err error) *problem {
	var fe *event.FieldError
	switch {
	case errors.Is(err, errTooManyEvents):
		return newProblem(http.StatusRequestEntityTooLarge, reasonTooMany, "a request holds at most 1000 events")
	case errors.Is(err, errNoEvents):
		return newProblem(http.StatusBadRequest, reasonNoEvents, "the request holds no event")
	case errors.As(err, &fe):
		p := newProblem(http.StatusBadRequest, reasonMalformed, fe.Error())
		p.Field, p.Rule = fe.Field, fe.Rule
		return p
	default:
		return newProblem(http.StatusBadRequest, reasonMalformed, "the body cannot be read")
	}
}

func newSource(raw []byte, media string, lenient bool) source {
	mode := event.Strict
	if lenient {
		mode = event.Lenient
	}
	switch media {
	case typeProto:
		return &protoSource{rest: raw, mode: mode}
	case typeNDJSON:
		return &ndjsonSource{rest: raw, mode: mode}
	default:
		return &jsonSource{batch: event.NewJSONBatch(raw), mode: mode}
	}
}

func writeResults(w http.ResponseWriter, res *results) {
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(http.StatusAccepted)
	writeJSON(w, res)
}

// requestID is the client's, when it is a plain word and looks like no credential
// of ours, else a random one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	plain := len(id) > 0 && len(id) <= 64 && !strings.Contains(id, authn.TokenPrefix)
	for i := 0; i < len(id) && plain; i++ {
		c := id[i]
		plain = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	if plain {
		return id
	}
	var b [8]byte
	rand.Read(b[:]) // crypto/rand.Read never returns an error
	return hex.EncodeToString(b[:])
}
