package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/internal/oracle"
)

// Backoff of requests that are sent again.
const (
	firstBackoff = 20 * time.Millisecond
	// maxBackoff and maxRetryAfter are short: a load is to notice quickly that
	// the server is back.
	maxBackoff    = time.Second
	maxRetryAfter = 5 * time.Second
	// maxSurprises is how many surprises are kept with their details.
	maxSurprises = 20
	// tenantChunk is how many tenants are created by one request.
	tenantChunk = 500
)

var contentTypes = map[Format]string{
	Protobuf: "application/x-protobuf", JSON: "application/json", NDJSON: "application/x-ndjson",
}

// sender sends batches over several connections and keeps the books.
type sender struct {
	o      *Options
	plan   *plan
	client *http.Client
	free   chan *batch

	sent, acked, requests, retries atomic.Int64

	mu            sync.Mutex
	lag, latency  histogram
	retransmitted Retransmitted
	surprises     []Surprise
	surprised     int64
	inDoubt       int64
	clean         bool
}

func newSender(o *Options, p *plan) *sender {
	rt := o.Transport
	if rt == nil {
		rt = &http.Transport{
			MaxIdleConns: o.Connections, MaxIdleConnsPerHost: o.Connections, MaxConnsPerHost: o.Connections,
			DisableCompression: true, WriteBufferSize: 64 << 10, IdleConnTimeout: time.Minute,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		}
	}
	return &sender{o: o, plan: p, client: &http.Client{Transport: rt, CheckRedirect: noRedirect}, free: make(chan *batch, 2*o.Connections+2)}
}

// noRedirect: a redirect would carry the token elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// run sends everything the generator gives. It returns nil when all of it is
// acknowledged.
func (s *sender) run(ctx context.Context, g *generator) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if g.pace != nil {
		g.pace.ctx = ctx
	}
	work := make(chan *batch)
	var inFlight, workers sync.WaitGroup
	for range s.o.Connections {
		workers.Go(func() {
			if err := s.work(ctx, g, work, &inFlight); err != nil {
				cancel(err)
			}
		})
	}
	err := s.feed(ctx, g, work, &inFlight)
	close(work)
	workers.Wait()
	if err == nil && ctx.Err() == nil {
		s.clean = true
		return nil
	}
	return errors.Join(err, context.Cause(ctx))
}

// feed fills batches and hands them to the workers until nothing is left.
func (s *sender) feed(ctx context.Context, g *generator, work chan<- *batch, inFlight *sync.WaitGroup) error {
	for {
		if s.o.Hold != nil {
			s.o.Hold(ctx)
		}
		select {
		case <-s.o.Stop:
			g.stop()
		default:
		}
		b := s.batch()
		err := g.fill(b)
		if err != nil && !errors.Is(err, errEnd) {
			return err
		}
		if len(b.items) > 0 {
			inFlight.Add(1)
			select {
			case work <- b:
			case <-ctx.Done():
				inFlight.Done()
				s.abandon(b)
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errEnd) {
			inFlight.Wait() // twins become ready by acknowledgements
			if !g.pending() || ctx.Err() != nil {
				return nil
			}
		}
	}
}

func (s *sender) batch() *batch {
	select {
	case b := <-s.free:
		b.reset()
		return b
	default:
		b := newBatch(s.o)
		b.reset()
		return b
	}
}

// abandon counts a batch that was not or may not have been answered.
func (s *sender) abandon(b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range b.items {
		if !b.items[i].settled {
			s.inDoubt++
		}
	}
}

func (s *sender) work(ctx context.Context, g *generator, work <-chan *batch, inFlight *sync.WaitGroup) error {
	comp, err := newCompressor(s.o.Compress)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	var first error
	for b := range work {
		if first == nil {
			first = s.deliver(ctx, b, comp)
		}
		if first != nil {
			s.abandon(b)
			inFlight.Done()
			continue
		}
		g.acknowledged(b)
		inFlight.Done()
		b.bodies.Wait()
		select {
		case s.free <- b:
		default:
		}
	}
	return first
}

// deliver sends the batch until every event of it is settled.
func (s *sender) deliver(ctx context.Context, b *batch, comp *compressor) error {
	if b.due > 0 {
		lag := time.Duration(time.Now().UnixNano() - b.due)
		s.mu.Lock()
		s.lag.add(lag)
		s.mu.Unlock()
	}
	body, err := comp.compress(b.payload())
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	s.sent.Add(int64(len(b.items)))
	var positions []int // nil: all events
	var failingSince time.Time
	for attempt := 0; ; attempt++ {
		if attempt > 0 {
			s.retransmit(b)
		}
		ans, v, wait, cause, err := s.attempt(ctx, b, body, positions)
		if err != nil {
			return err
		}
		switch v {
		case settled:
			s.settle(b, &ans, positions)
			return nil
		case partly:
			s.settle(b, &ans, positions)
			rest, left := b.rest()
			if len(left) == 0 {
				return nil
			}
			b.bodies.Wait() // the compressor's buffer is used again
			positions = left
			if body, err = comp.compress(rest); err != nil {
				return fmt.Errorf("load: %w", err)
			}
		}
		if failingSince.IsZero() {
			failingSince = time.Now()
		}
		if err := s.pause(ctx, attempt, wait, failingSince, cause); err != nil {
			return err
		}
	}
}

// attempt sends one request.
func (s *sender) attempt(ctx context.Context, b *batch, body []byte, positions []int) (answer, verdict, time.Duration, error, error) {
	n := len(b.items)
	if positions != nil {
		n = len(positions)
	}
	s.requests.Add(1)
	start := time.Now()
	resp, done, err := s.post(ctx, "/v1/events:batch", contentTypes[s.o.Format], s.o.Compress, body, &b.bodies)
	if err != nil {
		if ctx.Err() != nil {
			return answer{}, again, 0, nil, context.Cause(ctx)
		}
		return answer{}, again, 0, fmt.Errorf("%w: %w", errRetry, err), nil
	}
	defer done()
	ans, v, wait, cause, err := readAnswer(resp, n)
	if v == settled && err == nil {
		took := time.Since(start)
		s.mu.Lock()
		s.latency.add(took)
		s.mu.Unlock()
	}
	return ans, v, wait, cause, err
}

// post sends a body. done closes the answer and must be called when err is nil.
func (s *sender) post(ctx context.Context, path, contentType, encoding string, body []byte, bodies *sync.WaitGroup) (resp *http.Response, done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.o.URL+path, nil)
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("load: %w", err)
	}
	bodies.Add(1)
	req.Body = &trackedBody{Reader: bytes.NewReader(body), closed: sync.OnceFunc(bodies.Done)}
	req.ContentLength = int64(len(body))
	req.Header.Set("Content-Type", contentType)
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	if s.o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.o.Token)
	}
	resp, err = s.client.Do(req)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return resp, func() {
		// What is left is read so that the connection can be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, maxAnswerBytes)
		_ = resp.Body.Close()
		cancel()
	}, nil
}

// trackedBody says when the transport will not read a body any more: an answer
// may come before that, and the memory must not be reused until then.
type trackedBody struct {
	*bytes.Reader
	closed func()
}

func (b *trackedBody) Close() error { b.closed(); return nil }

// pause waits before the next attempt.
func (s *sender) pause(ctx context.Context, attempt int, wait time.Duration, since time.Time, cause error) error {
	if s.o.Deadline > 0 && time.Since(since) > s.o.Deadline {
		return fmt.Errorf("%w for %s: %w", ErrUnavailable, s.o.Deadline, cause)
	}
	if attempt == 0 {
		s.o.Log.DebugContext(ctx, "load: request failed, trying again", "err", cause)
	}
	if wait == 0 {
		wait = min(firstBackoff<<min(attempt, 10), maxBackoff)
		wait = wait/2 + rand.N(wait) // 0.5 to 1.5 times
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retransmit counts the events that are about to be sent once more.
func (s *sender) retransmit(b *batch) {
	s.retries.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range b.items {
		if b.items[i].settled {
			continue
		}
		switch b.items[i].outcome.Kind {
		case oracle.Accepted:
			s.retransmitted.Accepted++
		case oracle.Duplicate:
			s.retransmitted.Duplicates++
		case oracle.Conflict:
			s.retransmitted.Conflicts++
		case oracle.Refused:
			s.retransmitted.Refused++
		}
	}
}

// settle books the answer: positions name the events that were asked about,
// nil for all.
func (s *sender) settle(b *batch, a *answer, positions []int) {
	n := len(b.items)
	if positions != nil {
		n = len(positions)
	}
	done := int64(0)
	s.mu.Lock()
	refusals := a.Refusals
	for i := range n {
		it := &b.items[i]
		if positions != nil {
			it = &b.items[positions[i]]
		}
		var r *refusal
		if len(refusals) > 0 && int(refusals[0].Index) == i {
			r, refusals = &refusals[0], refusals[1:]
			if r.Rule == ruleUnavailable {
				continue
			}
		}
		it.settled = true
		done++
		s.book(it, r)
	}
	s.mu.Unlock()
	acked := s.acked.Add(done)
	if s.o.OnProgress != nil {
		s.o.OnProgress(s.sent.Load(), acked)
	}
}

// book counts one event; r is nil when it was accepted. What the server says
// wins over what was expected, and a difference is a surprise.
func (s *sender) book(it *item, r *refusal) {
	got := "accepted"
	if r != nil {
		got = r.Field + " " + r.Rule
	}
	want := "accepted"
	if it.outcome.Kind == oracle.Refused {
		want = it.outcome.Rule
	}
	if got == want {
		s.plan.tally.Add(&it.outcome)
		return
	}
	s.surprised++
	if len(s.surprises) < maxSurprises {
		sp := Surprise{Expected: want, Got: got}
		if r != nil {
			sp.EventID = r.EventID
		}
		s.surprises = append(s.surprises, sp)
	}
	if r != nil {
		it.outcome.Kind, it.outcome.Rule = oracle.Refused, got
		s.plan.tally.Add(&it.outcome)
	}
}

// createTenants makes the tenants of the load, trying for as long as it takes.
func (s *sender) createTenants(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // nothing was sent yet: a stop need not wait for the server
		select {
		case <-s.o.Stop:
			cancel(ErrStopped)
		case <-ctx.Done():
		}
	}()
	ids := s.plan.assign.tenants
	for len(ids) > 0 {
		n := min(len(ids), tenantChunk)
		body, err := json.Marshal(map[string][]string{"tenant_ids": ids[:n]})
		if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		if err := s.createSome(ctx, body); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

func (s *sender) createSome(ctx context.Context, body []byte) error {
	since := time.Now()
	var bodies sync.WaitGroup
	for attempt := 0; ; attempt++ {
		resp, done, err := s.post(ctx, "/v1/tenants:batchCreate", "application/json", "", body, &bodies)
		if ctx.Err() != nil {
			if err == nil {
				done()
			}
			return context.Cause(ctx)
		}
		wait := time.Duration(0)
		if err == nil {
			code := resp.StatusCode
			wait = retryAfter(resp)
			done()
			switch {
			case code == http.StatusOK:
				return nil
			case code == http.StatusUnauthorized || code == http.StatusForbidden:
				return fmt.Errorf("%w to create tenants: status %d", ErrAuth, code)
			case !retryable(code):
				return fmt.Errorf("%w: creating tenants: status %d", ErrRefused, code)
			}
			err = fmt.Errorf("%w: status %d", errRetry, code)
		}
		if err := s.pause(ctx, attempt, wait, since, err); err != nil {
			return err
		}
	}
}
