package ingest

import (
	"context"
	"encoding/base64"
	"errors"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/shopspring/decimal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
)

// MaxDoorBytes bounds a body at any front door, as sent and again decompressed. It
// is more than MaxBodyBytes because others' formats carry what we drop.
const MaxDoorBytes = 8 << 20

// Form says what bodies a front door reads.
type Form struct {
	// Accepts reports whether it reads a media type, which is in lower case and
	// without parameters. Use names the ones that it does, for the answer to others.
	Accepts func(media string) bool
	Use     string
	// MaxBytes bounds a body; at most MaxDoorBytes.
	MaxBytes int64
}

// Received is a request of a caller that may send events.
type Received struct {
	Principal authn.Principal
	// Tenant is that of events which name none; "" when there is no default.
	Tenant string
	// Header is the request's; with gRPC the metadata of the same names.
	Header http.Header
	// Media is the media type of Body in lower case, "" with gRPC.
	Media string
	// Body is decompressed. It lives until the function that was given it returns.
	Body []byte
}

// RequestError is why a request was refused as a whole.
type RequestError struct{ problem *problem }

// Error is what the caller is told.
func (e *RequestError) Error() string { return e.problem.Detail }

// Status is the HTTP status.
func (e *RequestError) Status() int { return e.problem.Status }

// RetryAfter is when to come again, 0 for never as it is.
func (e *RequestError) RetryAfter() time.Duration { return e.problem.retryAfter }

// Write answers with an application/problem+json.
func (e *RequestError) Write(w http.ResponseWriter, r *http.Request) {
	e.problem.write(w, requestID(r))
}

// GRPC is the error as a gRPC status.
func (e *RequestError) GRPC() error { return statusError(e.problem) }

// WriteOutcome answers with the results of events as POST /v1/events:batch does:
// with 202, 400 when all were refused, 503 when some are not known to be durable.
func WriteOutcome(w http.ResponseWriter, r *http.Request, out Outcome, err error) {
	res := newResults(outcome{accepted: out.Accepted, refusals: out.Refusals})
	switch {
	case err != nil:
		p := AsRequestError(err).problem
		if errors.Is(err, ErrUnavailable) {
			p.results = res
		}
		p.write(w, requestID(r))
	case out.Accepted == 0 && len(out.Refusals) > 0:
		p := newProblem(http.StatusBadRequest, reasonAllRefused, "every event was refused")
		p.results = res
		p.write(w, requestID(r))
	default:
		writeResults(w, res)
	}
}

// USD is a stated cost as decimal digits with at most the 12 places that money
// has; "" for what is no amount from 0 to a million.
func USD(text string) string {
	if len(text) > 64 {
		return ""
	}
	d, err := decimal.NewFromString(text)
	if err != nil || d.Exponent() > 6 || d.IsNegative() || d.Cmp(decimal.New(1, 6)) > 0 {
		return ""
	}
	return d.Round(12).String()
}

// Malformed is the error of a body that is not in its format. The detail must
// not repeat any of it.
func Malformed(detail string) error {
	return &RequestError{newProblem(http.StatusBadRequest, reasonMalformed, detail)}
}

// AsRequestError translates what Receive, ReceiveGRPC, Submit or the front door
// itself gave as an error; the latter's is a malformed body.
func AsRequestError(err error) *RequestError {
	var known *RequestError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, ErrUnavailable):
		return &RequestError{notDurable(errors.Is(err, kafka.ErrFull))}
	case errors.Is(err, ErrNotAllowed):
		return &RequestError{newProblem(http.StatusForbidden, reasonForbidden, "the credential may not send events: it lacks the scope ingest")}
	default:
		return &RequestError{bodyProblem(err)}
	}
}

// Receive admits the caller of another front door and reads the body for it, with
// the limits of the edge, then calls use. The credential is a token, as a bearer or
// as the password of Basic authentication, whose user may name the tenant. What is
// refused here is counted. The error is AsRequestError's or what use returned.
func (e *Edge) Receive(w http.ResponseWriter, r *http.Request, form Form, use func(Received) error) error {
	c, p := e.identifyDoor(r)
	if p == nil {
		var err error
		if p, err = e.receiveBody(w, r, c, form, use); p == nil {
			return err
		}
	}
	e.refuseRequest(c, p.reason())
	return &RequestError{p}
}

func (e *Edge) identifyDoor(r *http.Request) (caller, *problem) {
	c, p := e.doorCaller(r.Context(), r.Header)
	if p == nil && r.Method != http.MethodPost {
		p = newProblem(http.StatusMethodNotAllowed, reasonMethod, "use POST")
	}
	return c, p
}

// doorCaller is caller for headers that may hold Basic authentication.
func (e *Edge) doorCaller(ctx context.Context, h http.Header) (caller, *problem) {
	authorization, user := bearerOfBasic(h.Get("Authorization"))
	c, err := e.caller(ctx, authorization, h.Values(TenantHeader), nil)
	if err == nil && c.tenant == "" && tenant.ValidID(user) && c.principal.May(tenant.ID(user)) {
		c.tenant = user
	}
	return c, e.callerProblem(ctx, err)
}

// bearerOfBasic turns Basic credentials into a bearer token: the password, or the
// user where there is none (RFC 7617). Other values stay as they are.
func bearerOfBasic(authorization string) (bearer, user string) {
	scheme, encoded, ok := strings.Cut(authorization, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return authorization, ""
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return "", ""
	}
	user, token, _ := strings.Cut(string(plain), ":")
	if token == "" {
		return "Bearer " + user, ""
	}
	return "Bearer " + token, user
}

func (e *Edge) receiveBody(w http.ResponseWriter, r *http.Request, c caller, form Form, use func(Received) error) (*problem, error) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !form.Accepts(media) {
		return newProblem(http.StatusUnsupportedMediaType, reasonMediaType, "use "+form.Use), nil
	}
	encoding, p := contentEncoding(r.Header)
	if p != nil {
		return p, nil
	}
	size := reservation(r.ContentLength, encoding, form.MaxBytes)
	if size < 0 {
		return tooLarge(form.MaxBytes), nil
	}
	if !e.gate.reserve(size) {
		return busy(), nil
	}
	defer e.gate.release(size)
	b := e.bodies.Get().(*body)
	defer func() { b.release(); e.bodies.Put(b) }()
	raw, p := e.readBody(w, r, b, encoding, form.MaxBytes)
	if p != nil {
		return p, nil
	}
	return nil, use(Received{c.principal, c.tenant, r.Header, media, raw})
}

// ReceiveGRPC is Receive for a unary method of a server that was made with
// DoorServerOptions. decode is what the server gave to the method's handler.
func (e *Edge) ReceiveGRPC(ctx context.Context, decode func(any) error, use func(Received) error) error {
	header := http.Header{}
	md, _ := metadata.FromIncomingContext(ctx)
	for name, values := range md {
		header[http.CanonicalHeaderKey(name)] = values
	}
	c, p := e.doorCaller(ctx, header)
	if p != nil {
		e.refuseRequest(c, p.reason())
		return &RequestError{p}
	}
	req := new(rawRequest)
	if err := decode(req); err != nil {
		return err
	}
	defer req.free()
	size := int64(len(req.bytes()))
	if !e.gate.reserve(size) {
		e.refuseRequest(c, reasonBusy)
		return &RequestError{busy()}
	}
	defer e.gate.release(size)
	return use(Received{c.principal, c.tenant, header, "", req.bytes()})
}

// DoorServerOptions are the options of a gRPC server for ReceiveGRPC.
func DoorServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
		grpc.MaxRecvMsgSize(MaxDoorBytes),
		grpc.MaxConcurrentStreams(maxDoorStreams),
	}
}

// maxDoorStreams bounds, per connection, the messages that are in memory.
const maxDoorStreams = 16
