package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/usage"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/http1"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// Sizes of the buffers that responses pass through: small for streams, of which
// many are open and idle, large for bodies.
const (
	small = iota
	large

	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
	// maxPooledBody keeps one huge request from pinning its memory for ever.
	maxPooledBody = 128 << 10
)

// exchange is one call in hand. It is used by one goroutine and reused.
type exchange struct {
	p       *Proxy
	w       http.ResponseWriter
	own     *http1.Response // w, where the stream may be parked; nil is by another server
	r       *http.Request   // nil once the stream is parked
	ctx     context.Context // of the call's event: it is kept whoever has gone
	wants   bool            // the client asks for the cost
	started time.Time

	to      target
	metered bool
	id      string // of the event
	who     authn.Principal
	call    Call // as the caller says; the sink runs the tenant's rules over its event
	judged  Call // as those who may stop it see it
	user    string
	tags    []event.Tag
	dropped []string // request headers that end here
	query   string
	key     ProviderKey
	held    Reservation

	body     *buffer
	reserved int64  // bytes of body
	prompt   []byte // the body again, to be counted where no usage is stated
	queues   bool   // a background response is asked for
	tier     string // the service tier that is asked for, where budgets want to know

	upstream context.Context // of the provider's part
	cancel   context.CancelCauseFunc
	leave    func() bool // unties upstream from r's context; nil where it is that
	watch    *time.Timer
	resp     *http.Response
	mayPark  bool
	trailers bool
	parked   bool // once

	meter   usage.Meter
	results *results // of a batch, instead of meter; nil is none
	decode  *decoder // of a compressed response; nil is none
	stream  bool
	kept    bool
	ttft    time.Duration
	cost    money.Pico
	priced  bool
	events  [1]event.Event
}

func newExchange(p *Proxy) *exchange { return &exchange{p: p} }

// release ends what is left of the call and forgets it.
func (x *exchange) release() {
	x.free()
	x.dropPrompt()
	if x.cancel != nil {
		x.watch.Stop()
		if x.leave != nil {
			x.leave()
		}
		if x.resp != nil {
			x.resp.Body.Close()
		}
		x.cancel(nil)
	}
	x.p.calls.Add(-1)
	if x.parked {
		x.p.parked.Add(-1)
	}
	*x = exchange{p: x.p, tags: clearTags(x.tags)}
}

func clearTags(tags []event.Tag) []event.Tag {
	clear(tags[:cap(tags)])
	return tags[:0]
}

// free gives up the request's body where it is still ours.
func (x *exchange) free() {
	if x.body != nil {
		x.body.free()
		x.body = nil
	}
	if x.reserved > 0 {
		x.p.bytes.Add(-x.reserved)
		x.reserved = 0
	}
	x.key = ProviderKey{}
}

// errCut says that the connection is to be cut: the client must not take what it has
// for the whole response.
var errCut = errors.New("proxy: the response is cut")

// serve does the whole call. errParked says that x is not the caller's any more; any
// other error is that of errCut.
func (x *exchange) serve(w http.ResponseWriter, r *http.Request) error {
	x.w, x.r, x.ctx, x.started = w, r, context.WithoutCancel(r.Context()), x.p.opts.Now()
	x.own, _ = w.(*http1.Response)
	x.wants = r.Header[ReturnHeader] != nil
	n := x.p.calls.Add(1)
	no := x.prepare(n)
	if no == nil {
		no = x.admit()
	}
	if no != nil {
		return x.refuse(no)
	}
	return x.forward()
}

// prepare finds out who calls what.
func (x *exchange) prepare(inHand int64) *refusal {
	var ok bool
	if x.to, ok = x.p.routes.find(x.r); !ok {
		return &refusal{code: http.StatusNotFound, kind: "unknown_route",
			text: "no provider has this path; use /PROVIDER/… with the provider's own path behind it"}
	}
	if no := x.identify(); no != nil {
		return no
	}
	x.metered = x.to.call.Dialect != usage.None && !x.to.call.Repeated || x.to.call.Unlisted == usage.Paid
	x.id = newID(x.started)
	x.w.Header()[EventIDHeader] = []string{x.id}
	x.call = Call{
		Tenant: x.call.Tenant, Credential: x.who.Subject, Provider: x.to.up.Name, Model: x.to.call.Model,
		Operation: operation(x.to.call, x.to.path), At: x.started,
	}
	x.attribute()
	if inHand > x.p.opts.MaxCalls {
		return &refusal{code: http.StatusServiceUnavailable, kind: "too_many_calls", text: "too many calls in hand", wait: time.Second}
	}
	if x.r.Header.Get("Upgrade") != "" {
		return &refusal{code: http.StatusNotImplemented, kind: "no_upgrade", text: "connections that change their protocol are not metered, so they are not forwarded"}
	}
	if x.duplex() {
		return &refusal{code: http.StatusNotImplemented, kind: "no_duplex", text: "streams in both directions are signed message by message, so they cannot be forwarded"}
	}
	return nil
}

// identify authenticates the caller by our token, wherever its SDK puts a key.
func (x *exchange) identify() *refusal {
	token, query := credential(x.r)
	x.query = query
	ctx := authn.WithPeer(x.r.Context(), authn.HTTPPeer(x.r, ""))
	who, err := x.p.parts.Auth.Authenticate(ctx, token)
	switch {
	case errors.Is(err, authn.ErrUnauthenticated):
		return &refusal{code: http.StatusUnauthorized, kind: "unauthenticated", text: whoSigned(x.r)}
	case err != nil:
		return unknown("the token cannot be verified now", err)
	case !who.Can(authn.Ingest):
		return &refusal{code: http.StatusForbidden, kind: "forbidden", text: "the token lacks the scope ingest"}
	}
	id, ok := who.Single()
	if named := x.r.Header.Get(TenantHeader); named != "" {
		id, ok = tenant.ID(named), tenant.ValidID(named) && who.May(tenant.ID(named))
	}
	if !ok {
		return &refusal{code: http.StatusForbidden, kind: "forbidden", text: "the token is of no one tenant; name one that it is for in " + TenantHeader}
	}
	x.who, x.call.Tenant = who, id
	return nil
}

// keyWords are query parameters in which a key may stand.
const keyParam = "key"

// credential takes our token out of a request, and gives the query without it.
func credential(r *http.Request) (token, query string) {
	query = r.URL.RawQuery
	if token = authn.BearerToken(r.Header.Get("Authorization")); token != "" {
		return token, query
	}
	for _, h := range authHeaders[1:] {
		if v := r.Header[h]; len(v) > 0 && v[0] != "" {
			return v[0], query
		}
	}
	if !strings.Contains(query, keyParam+"=") {
		return "", query
	}
	values := r.URL.Query()
	token = values.Get(keyParam)
	values.Del(keyParam)
	return token, values.Encode()
}

// admit reads the request and asks everybody who may stop it. What it has taken is
// given back by release or by settle.
func (x *exchange) admit() *refusal {
	if no := x.readBody(); no != nil {
		return no
	}
	if x.metered || x.to.call.Unlisted == usage.PaidForAModel {
		x.readAsk()
	}
	ctx, p := x.r.Context(), &x.p.parts
	if err := x.judge(); err != nil {
		return unknown("whom the call is for cannot be told now", err)
	}
	if p.Switch != nil {
		policy, reason, killed, err := p.Switch.Killed(ctx, &x.judged)
		switch {
		case err != nil:
			return unknown("whether calls are stopped cannot be told now", err)
		case killed:
			return &refusal{code: http.StatusUnavailableForLegalReasons, kind: "killed", status: event.StatusKilled,
				text: "calls like this are stopped: " + reason, policy: policy, reason: reason}
		}
	}
	if p.Limits != nil {
		wait, policy, err := p.Limits.Take(ctx, &x.judged)
		if err != nil {
			return unknown("the credential's limits cannot be told now", err)
		}
		if wait > 0 {
			return &refusal{code: http.StatusTooManyRequests, kind: "rate_limit", status: event.StatusBlocked,
				text: "the credential's rate limit is reached", policy: policy, reason: "rate limit", wait: wait}
		}
	}
	if p.Room != nil && (x.metered || x.to.call.Batch != "") && !x.p.opts.FailOpen && p.Room.Full() {
		return &refusal{code: http.StatusServiceUnavailable, kind: "spool_full", text: "usage cannot be kept now, so calls are not forwarded", wait: spoolWait}
	}
	var err error
	if x.key, err = p.Keys.ProviderKey(ctx, x.call.Tenant, x.call.Provider); errors.Is(err, ErrNoProviderKey) {
		return &refusal{code: http.StatusBadGateway, kind: "no_provider_key", text: "no key for " + x.call.Provider + " is set"}
	} else if err != nil {
		return unknown("the provider's key cannot be read now", err)
	}
	return x.reserve(ctx)
}

// spoolWait is when a client comes again that found the spool full.
const spoolWait = 5 * time.Second

// defaultAnswer is how many tokens an answer is taken to have whose request names
// no limit.
const defaultAnswer = 4096

// reserve sets the call's estimate aside.
func (x *exchange) reserve(ctx context.Context) *refusal {
	if x.p.parts.Budgets == nil || !x.metered {
		return nil
	}
	var estimate money.Pico
	if x.p.parts.Pricer != nil {
		var v tokens.Vector
		v[tokens.Input], v[tokens.Output] = x.call.PromptTokens, x.call.MaxTokens
		if x.call.MaxTokens == 0 {
			v[tokens.Output] = defaultAnswer
		}
		estimate = x.estimate(&v)
	}
	held, err := x.p.parts.Budgets.Reserve(ctx, &x.judged, estimate)
	switch {
	case errors.Is(err, ErrOverBudget):
		return &refusal{code: http.StatusTooManyRequests, kind: "budget", status: event.StatusBlocked,
			text: "the call would exceed a budget", policy: "budget", reason: "over budget", wait: time.Minute, lasting: true}
	case err != nil:
		return unknown("budgets cannot be read now", err)
	}
	x.held = held
	return nil
}

// estimate is what the tokens would cost in the tier that the request asks for, or, where
// that has no price, in the standard one; 0 without a price.
func (x *exchange) estimate(v *tokens.Vector) money.Pico {
	price := func(tier string) (money.Pico, bool) {
		return x.p.parts.Pricer.Price(x.call.Provider, x.call.Model, x.region(), tier, x.started, v)
	}
	cost, ok := price(x.tier)
	if !ok && x.tier != "" {
		cost, _ = price("")
	}
	return cost
}

// readBody takes the whole request, within its bounds.
func (x *exchange) readBody() *refusal {
	p, r := x.p, x.r
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	want := r.ContentLength
	if want > p.opts.MaxBodyBytes {
		return tooLarge(p.opts.MaxBodyBytes)
	}
	if want < 0 {
		want = p.opts.MaxBodyBytes
	}
	x.reserved = want
	if p.bytes.Add(want) > p.opts.MaxBodiesBytes {
		return &refusal{code: http.StatusServiceUnavailable, kind: "too_many_bytes", text: "too many requests in hand", wait: time.Second}
	}
	x.body = buffers.Get().(*buffer)
	x.body.b = x.body.b[:0]
	// A ResponseWriter without deadlines is a test's; the server's own hold then.
	control := http.NewResponseController(x.w)
	_ = control.SetReadDeadline(time.Now().Add(p.opts.BodyTimeout))
	err := x.body.fill(r.Body, r.ContentLength, p.opts.MaxBodyBytes)
	_ = control.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTooLarge):
		return tooLarge(p.opts.MaxBodyBytes)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &refusal{code: http.StatusRequestTimeout, kind: "body_timeout", text: "the request took too long to arrive"}
	default:
		return &refusal{code: http.StatusBadRequest, kind: "body_cut", text: "the request's body is cut short"}
	}
}

func tooLarge(limit int64) *refusal {
	return &refusal{code: http.StatusRequestEntityTooLarge, kind: "body_too_large", text: fmt.Sprintf("a request's body is at most %d bytes", limit)}
}

// readAsk reads the model and the prompt's size, and its digests where they are
// wanted. A call of which it is not known whether it costs does where it names a model.
func (x *exchange) readAsk() {
	var b []byte
	if x.body != nil {
		b = x.body.b
	}
	reader := x.p.asks.Get().(*usage.RequestReader)
	reader.Reset()
	_, _ = reader.Write(b)
	ask := reader.Close()
	x.p.asks.Put(reader)
	if x.metered = x.metered || ask.Model != ""; !x.metered {
		return
	}
	x.call.PromptTokens = ask.PromptTokens
	if ask.Model != "" {
		x.call.Model = ask.Model
	}
	x.holdPrompt(b)
	x.queues = x.to.call.Dialect == usage.OpenAIResponses && asksBackground(b)
	if x.p.parts.Budgets != nil {
		x.call.MaxTokens, x.tier = answerLimit(b)
	}
	if c := x.p.parts.Capture; c != nil && c.Digests(x.call.Tenant) {
		x.tags = appendDigests(x.tags, x.p.parts.Digester, x.call.Tenant, b)
	}
}
