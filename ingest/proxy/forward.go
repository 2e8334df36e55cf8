package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/usage"
)

// Why the upstream's part of a call is ended by us.
var (
	errSilent = errors.New("proxy: the provider is silent for too long")
	errClient = errors.New("proxy: the client has gone")
	errKept   = errors.New("proxy: the usage could not be kept")
)

// maxReturn bounds a response that is held back as a whole because its client asked
// for the cost in the headers.
const maxReturn = 4 << 20

// forward sends the call upstream and the answer back.
func (x *exchange) forward() error {
	if x.own != nil {
		x.upstream, x.cancel = x.r.Context(), x.own.Cancel()
	} else {
		x.upstream, x.cancel = context.WithCancelCause(x.ctx)
		cancel := x.cancel
		x.leave = context.AfterFunc(x.r.Context(), func() { cancel(errClient) })
	}
	cancel := x.cancel
	x.watch = time.AfterFunc(x.p.opts.AnswerTimeout, func() { cancel(errSilent) })
	to, req, err := x.request()
	if err == nil {
		x.resp, err = to.RoundTrip(req.WithContext(x.upstream)) //nolint:bodyclose // release closes it
	}
	x.free()
	if err != nil {
		return x.refuse(x.noAnswer(err))
	}
	x.watch.Reset(x.p.opts.SilenceTimeout)
	return x.answer()
}

// errForeign: a tenant has set a base, and nothing is there to judge it.
var errForeign = errors.New("proxy: bases of tenants are not served")

// request is what goes upstream, and by whom. The body is handed over with it.
func (x *exchange) request() (http.RoundTripper, *http.Request, error) {
	to, req, err := x.requestOf(&x.to, &x.key)
	if err == nil && x.tellsBatches() {
		req.Header.Set("Accept-Encoding", "identity")
	}
	if err == nil {
		err = x.sign(req)
	}
	if err == nil && x.body != nil && len(x.body.b) > 0 {
		req.ContentLength, req.Body = int64(len(x.body.b)), &sent{buf: x.body}
		x.body = nil
	}
	return to, req, err
}

// requestOf is a request without a body, with the client's headers and a key.
func (x *exchange) requestOf(at *target, key *ProviderKey) (http.RoundTripper, *http.Request, error) {
	to, base := x.p.parts.Upstream, &at.up.base
	if key.Base != "" {
		var err error
		if base, err = url.Parse(key.Base); err != nil || x.p.parts.Foreign == nil {
			return nil, nil, errForeign
		}
		to = x.p.parts.Foreign
	}
	u := at.url(*base, x.query)
	req := &http.Request{
		Method: x.r.Method, URL: u, Host: u.Host, Header: upstreamHeaders(x.r.Header, x.dropped),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	authorize(req.Header, at.up, key.Secret)
	if at.call.Batch != "" {
		dropRanges(req.Header)
	}
	return to, req, nil
}

// noAnswer says what became of a call that the provider did not answer.
func (x *exchange) noAnswer(err error) *refusal {
	if no := unsigned(err, x.to.up.Name); no != nil {
		return no
	}
	var op *net.OpError
	no := &refusal{code: http.StatusBadGateway, kind: "upstream", text: "the provider cannot be reached", cause: err}
	switch {
	case errors.Is(context.Cause(x.upstream), errSilent):
		no = &refusal{code: http.StatusGatewayTimeout, kind: "upstream_timeout", text: "the provider did not answer in time", sent: true}
	case x.upstream.Err() != nil:
		no = &refusal{code: statusClientGone, kind: "client_gone", text: "the client has gone", status: "cancelled", sent: true}
	case errors.Is(err, errForeign), errors.As(err, &op) && op.Op == "dial":
	default:
		no.sent, no.text = true, "the connection to the provider broke"
	}
	return no
}

// statusClientGone is what an event says of a call whose client left before the
// answer; no client sees it.
const statusClientGone = 499

// answer passes the response on and meters it.
func (x *exchange) answer() error {
	resp := x.resp
	if x.tellsBatches() {
		nearResults(resp)
	}
	contentType := resp.Header.Get("Content-Type")
	framing := usage.FramingOf(contentType)
	x.stream = x.to.call.Batch == "" && (framing == usage.SSE || framing == usage.EventStream)
	x.metered = x.metered || x.repeats() && resp.StatusCode < http.StatusBadRequest
	switch {
	case !x.metered:
	case x.to.call.Batch != "":
		x.meterResults(resp)
	default:
		if framing == usage.JSON && x.to.call.Dialect == usage.OpenAIAudio && contentType == "" {
			framing = usage.Opaque
		}
		x.meter.Reset(usage.Exchange{
			Dialect: x.to.call.Dialect, Framing: framing, Status: resp.StatusCode, Model: x.call.Model,
			PromptTokens: x.call.PromptTokens, Request: x.prompt, Repeated: x.repeats(), Header: resp.Header.Get,
		})
		x.decode = newDecoder(resp.Header.Get("Content-Encoding"), &x.meter)
	}
	h := x.w.Header()
	downstreamHeaders(h, resp.Header)
	if x.repeats() || x.queues {
		h.Del(EventIDHeader)
	}
	wants := x.metered && x.wants
	length := resp.ContentLength
	if wants && length >= 0 && length <= maxReturn {
		return x.answerWhole()
	}
	x.trailers = wants && length < 0
	if x.trailers {
		h["Trailer"] = []string{CostHeader + ", " + RemainingHeader}
	}
	x.w.WriteHeader(resp.StatusCode)
	hold := x.results == nil && framing == usage.JSON && strings.HasPrefix(contentType, "application/json") && !strings.HasSuffix(x.to.path, ":streamGenerateContent")
	x.mayPark = x.parkable(length)
	err := x.copy(length, hold)
	switch {
	case errors.Is(err, errParked):
	case x.trailers && x.kept:
		x.report(h)
	}
	return err
}

// copy passes the body on, chunk by chunk. hold says that bytes may be kept back
// once the document they end is whole. An error means that the client must not take
// the response for whole; of errParked it means that x is not the caller's any more.
func (x *exchange) copy(length int64, hold bool) error {
	p, resp := x.p, x.resp
	size := large
	if x.stream {
		size = small
	}
	var pooled *[]byte
	defer func() { p.giveBuffer(size, pooled) }()
	full := 0
	flush := x.flusher(length, resp)
	body, ours := resp.Body.(*answerBody)
	for {
		if ours && full == 0 && x.stream && !body.begun() {
			p.giveBuffer(size, pooled) // a stream that waits holds none
			pooled = nil
			if x.mayPark && body.silent(&p.waits) && x.park() {
				return errParked
			}
			body.await()
		}
		if pooled == nil {
			pooled = p.buffers[size].Get().(*[]byte)
		}
		buf := *pooled
		n, err := resp.Body.Read(buf[full:])
		if n > 0 {
			if x.ttft == 0 {
				x.ttft = time.Since(x.started)
			}
			x.watch.Reset(p.opts.SilenceTimeout)
			x.measure(buf[full : full+n])
			full += n
			length -= int64(n)
		}
		end := err != nil || length == 0
		over := x.metered && (end || x.decode == nil && x.meter.Final() || x.results.lost())
		if over && !end && hold && full < len(buf) {
			continue // what is left is the end of the body
		}
		if over && !x.kept {
			if lost := x.settle(resp, err); lost != nil && !x.p.opts.FailOpen {
				return lost
			}
		}
		if full > 0 {
			if _, failed := x.w.Write(buf[:full]); failed != nil {
				return x.left(resp)
			}
			full = 0
			if flush != nil && !end && flush.Flush() != nil {
				return x.left(resp)
			}
		}
		if errors.Is(err, io.EOF) || err == nil && end {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// giveBuffer gives a buffer back; nil is none.
func (p *Proxy) giveBuffer(size int, b *[]byte) {
	if b != nil {
		p.buffers[size].Put(b)
	}
}

// flusher is what sends each chunk at once; nil where there is nothing to gain.
func (x *exchange) flusher(length int64, resp *http.Response) *http.ResponseController {
	if length >= 0 && !x.stream {
		return nil
	}
	c := http.NewResponseController(x.w)
	if b, ok := resp.Body.(*answerBody); x.stream && !(ok && b.begun()) {
		_ = c.Flush() // the client sees the headers; that it cannot be flushed shows at the first chunk
	}
	return c
}

// left is the end of a call whose client has gone.
func (x *exchange) left(resp *http.Response) error {
	if x.metered && !x.kept {
		if err := x.settle(resp, errClient); err != nil {
			return err
		}
	}
	return errClient
}

// measure reads a chunk of the response.
func (x *exchange) measure(b []byte) {
	switch {
	case !x.metered:
	case x.decode != nil:
		x.decode.write(b)
	case x.results != nil:
		_, _ = x.results.Write(b)
	default:
		_, _ = x.meter.Write(b)
	}
}

// answerWhole holds the response back until its cost is known.
func (x *exchange) answerWhole() error {
	resp := x.resp
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReturn))
	x.watch.Stop()
	x.ttft = time.Since(x.started)
	x.measure(b)
	if err == nil {
		err = io.EOF
	}
	if lost := x.settle(resp, err); lost != nil && !x.p.opts.FailOpen {
		return errCut
	}
	h := x.w.Header()
	x.report(h)
	x.w.WriteHeader(resp.StatusCode)
	_, _ = x.w.Write(b) // a client that has gone is told nothing more
	if !errors.Is(err, io.EOF) {
		return errCut
	}
	return nil
}

// report puts what the client asked for into headers or trailers.
func (x *exchange) report(h http.Header) {
	cost := "unknown"
	if x.priced {
		cost = x.cost.String()
	}
	h[CostHeader] = []string{cost}
	if x.held != nil {
		if left, ok := x.held.Remaining(); ok {
			h[RemainingHeader] = []string{left.String()}
		}
	}
}
