package ingest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/kafka"
)

// post sends n good events to the edge's handler, without a network.
func post(e *ingest.Edge, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, ingest.EventsPath, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer admin")
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, r)
	return w
}

func goodJSON(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,{"event_id":"e%d","tenant_id":"acme","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"}`, i)
	}
	return "[" + strings.TrimPrefix(b.String(), ",") + "]"
}

// A Kafka that never answers: the request waits for the deadline, not longer,
// and the memory that Kafka may still read is not used again.
func TestKafkaNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held [][]byte
		log := &fakeLog{answer: func(ctx context.Context, recs []kafka.Record, res []kafka.Result) error {
			for i := range recs {
				held = append(held, recs[i].Value)
			}
			<-ctx.Done()
			return failAll(res, fmt.Errorf("%w: %w", kafka.ErrUnacked, context.Cause(ctx)))
		}}
		e := newEdge(t, log)
		start := time.Now()
		w := post(e, goodJSON(3))
		if waited := time.Since(start); w.Code != http.StatusServiceUnavailable || waited != ingest.DefaultDeadline {
			t.Fatalf("%d after %v", w.Code, waited)
		}
		before := make([][]byte, len(held))
		for i, v := range held {
			before[i] = bytes.Clone(v)
		}
		log.become(nil)
		for range 20 {
			if w := post(e, goodJSON(50)); w.Code != http.StatusAccepted {
				t.Fatalf("after Kafka is back: %d %s", w.Code, w.Body)
			}
		}
		for i := range before {
			if !bytes.Equal(held[i], before[i]) {
				t.Fatal("memory of an unacknowledged record was used again")
			}
		}
	})
}

// A slow Kafka: an answer within the deadline is a 202, and requests over the
// limit are told to come again at once instead of waiting.
func TestKafkaSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{answer: func(context.Context, []kafka.Record, []kafka.Result) error {
			time.Sleep(3 * time.Second)
			return nil
		}}
		e := newEdge(t, log, func(o *ingest.Options) { o.MaxInFlight = 2 })
		codes := make(chan int, 2)
		for range 2 {
			go func() { codes <- post(e, goodJSON(1)).Code }()
		}
		synctest.Wait()
		start := time.Now()
		w := post(e, goodJSON(1))
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || time.Since(start) != 0 {
			t.Errorf("a third request: %d after %v", w.Code, time.Since(start))
		}
		for range 2 {
			if code := <-codes; code != http.StatusAccepted {
				t.Errorf("a request that waited: %d", code)
			}
		}
		if w := post(e, goodJSON(1)); w.Code != http.StatusAccepted {
			t.Errorf("after they are done: %d", w.Code)
		}
	})
}

// The client's leaving does not change what is counted: Kafka has the event.
func TestClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{answer: func(ctx context.Context, _ []kafka.Record, res []kafka.Result) error {
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return failAll(res, kafka.ErrUnacked)
			}
		}}
		e := newEdge(t, log)
		ctx, cancel := context.WithCancel(context.Background())
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, ingest.EventsPath, strings.NewReader(goodJSON(1)))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer admin")
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.Handler().ServeHTTP(httptest.NewRecorder(), r)
		}()
		synctest.Wait()
		cancel()
		<-done
		if s := e.Stats(); s.Accepted != 1 || s.Unavailable != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// readBegins is a body that says when it is first read from.
type readBegins struct {
	io.ReadCloser
	once  sync.Once
	begun chan<- struct{}
}

func (b *readBegins) Read(p []byte) (int, error) {
	b.once.Do(func() { b.begun <- struct{}{} })
	return b.ReadCloser.Read(p)
}

// Bodies of unknown length reserve the most they can hold, so memory is bounded
// whatever clients do.
func TestBodiesAreBounded(t *testing.T) {
	e := newEdge(t, &fakeLog{}, func(o *ingest.Options) { o.MaxInFlightBytes = 2 * ingest.MaxBodyBytes })
	begun := make(chan struct{}, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &readBegins{ReadCloser: r.Body, begun: begun}
		e.Handler().ServeHTTP(w, r)
	}))
	defer server.Close()
	answered := make(chan int, 2)
	var writers []*io.PipeWriter
	for range 2 {
		pr, pw := io.Pipe()
		defer pw.Close() // before server.Close, which waits for the requests
		writers = append(writers, pw)
		r, err := http.NewRequest(http.MethodPost, server.URL, pr)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer admin")
		go func() {
			res, err := server.Client().Do(r)
			if err != nil {
				answered <- 0
				return
			}
			res.Body.Close()
			answered <- res.StatusCode
		}()
		// A body is read from when it has its room.
		select {
		case <-begun:
		case code := <-answered:
			t.Fatalf("a body that never ended was answered with %d", code)
		}
	}
	if w := post(e, goodJSON(1)); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("a third body: %d %v, want 503 and Retry-After", w.Code, w.Header())
	}
	for _, pw := range writers {
		pw.Close()
	}
	for range writers {
		if code := <-answered; code != http.StatusBadRequest {
			t.Errorf("a body that ended too early: %d", code)
		}
	}
	if w := post(e, goodJSON(1)); w.Code != http.StatusAccepted {
		t.Errorf("when there is room again: %d", w.Code)
	}
}

// A client that stops in the middle of a body does not keep its room for ever.
func TestBodyTimeout(t *testing.T) {
	e := newEdge(t, &fakeLog{}, func(o *ingest.Options) { o.BodyTimeout = 50 * time.Millisecond })
	server := httptest.NewServer(e.Handler())
	defer server.Close()
	pr, pw := io.Pipe()
	defer pw.Close()
	r, err := http.NewRequest(http.MethodPost, server.URL, pr)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer admin")
	go pw.Write([]byte("["))
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %d", res.StatusCode)
	}
}

// Counters are cumulative: one that could not be sent is sent with the next,
// nothing is sent when nothing changed, and the last are sent at the end.
func TestCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{}
		e := newEdge(t, log)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		step := func(what string, want ...string) {
			t.Helper()
			time.Sleep(ingest.DefaultCountersInterval + time.Second)
			synctest.Wait()
			if got := strings.Join(counted(t, log.take()), "\n"); got != strings.Join(want, "\n") {
				t.Errorf("%s: counters\n%s", what, got)
			}
		}
		step("nothing happened")
		post(e, goodJSON(2))
		step("two accepted", `counted tenant=acme producer="" accepted=2 refused=0 []`)
		step("nothing more")
		log.become(kafkaAnswers["away"])
		post(e, goodJSON(3))
		step("Kafka is away")
		log.become(nil)
		step("Kafka is back", `counted tenant=acme producer="" accepted=2 refused=3 [{unavailable 3}]`)
		post(e, `{"event_id":"e","producer_id":"p\u0000","tenant_id":"acme"}`)
		post(e, `{"event_id":"e","producer_id":"p1","tenant_id":"acme"}`)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		want := `counted tenant=acme producer="" accepted=2 refused=4 [{required.occurred_at 1} {unavailable 3}]` + "\n" +
			`counted tenant=acme producer="p1" accepted=0 refused=1 [{required.occurred_at 1}]`
		if got := strings.Join(counted(t, log.take()), "\n"); got != want {
			t.Errorf("at the end: counters\n%s", got)
		}
	})
}

func counted(t *testing.T, recs []kafka.Record) (lines []string) {
	for _, line := range describe(t, recs) {
		if strings.HasPrefix(line, "counted") {
			lines = append(lines, line)
		}
	}
	return lines
}

// Clients make up producers without end; the counters stay bounded and no
// event is missing from their sum.
func TestCountersAreBounded(t *testing.T) {
	log := &fakeLog{}
	e := newEdge(t, log, func(o *ingest.Options) { o.MaxProducers = 5 })
	const n = 100
	for i := range n {
		post(e, fmt.Sprintf(`{"event_id":"e","producer_id":"p%d","tenant_id":"acme","occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"}`, i))
	}
	e.FlushCounters(context.Background())
	lines := counted(t, log.take())
	if len(lines) != 6 {
		t.Errorf("%d counters", len(lines))
	}
	if want := fmt.Sprintf(`producer="~other" accepted=%d`, n-5); !strings.Contains(strings.Join(lines, "\n"), want) {
		t.Errorf("no %s in\n%s", want, strings.Join(lines, "\n"))
	}
}

// Equal content under one id has one MAC whatever form it arrived in, and
// another tenant's key gives another.
func TestContentMACDependsOnContentOnly(t *testing.T) {
	log := &fakeLog{}
	e := newEdge(t, log)
	macs := func(body string) [32]byte {
		t.Helper()
		if w := post(e, body); w.Code != http.StatusAccepted {
			t.Fatal(w.Body)
		}
		rec, err := event.SplitRecord(log.take()[0].Value)
		if err != nil {
			t.Fatal(err)
		}
		var ev event.Event
		if err := ev.DecodeProto(rec.Body, event.Log); err != nil {
			t.Fatal(err)
		}
		return ev.ContentMAC
	}
	const rest = `"occurred_at":"2026-11-22T11:00:00Z","provider":"openai","model":"gpt-5"`
	first := macs(`{"event_id":"e","tenant_id":"acme","user":"jane","tags":{"a":"1","b":"2"},` + rest + `}`)
	for _, same := range []string{
		`{"tags":{"b":"2","a":"1"},"user":"j\u0061ne","status":"ok","service_tier":"standard","event_id":"e","tenant_id":"acme",` + rest + `}`,
		`{"event_id":"e","tenant_id":"acme","user":"jane","tags":{"a":"1","b":"2"},"tokens":{"input":0},"team":null,` +
			`"occurred_at":"2026-11-22T12:00:00.000+01:00","provider":"openai","model":"gpt-5"}`,
	} {
		if macs(same) != first {
			t.Errorf("another MAC for the same content: %s", same)
		}
	}
	for _, other := range []string{
		`{"event_id":"e","tenant_id":"acme","user":"joan","tags":{"a":"1","b":"2"},` + rest + `}`,
		`{"event_id":"e","tenant_id":"umbrella","user":"jane","tags":{"a":"1","b":"2"},` + rest + `}`,
	} {
		if macs(other) == first {
			t.Errorf("the same MAC for other content: %s", other)
		}
	}
}

func TestOptionsNameEveryWrongField(t *testing.T) {
	err := ingest.Options{Partitions: -1, Deadline: -1, MaxInFlight: -1, MaxInFlightBytes: 1, EdgeID: strings.Repeat("x", 200)}.Validate()
	for _, field := range []string{"topic", "partitions", "deadline", "max_in_flight:", "max_in_flight_bytes", "edge_id"} {
		if err == nil || !strings.Contains(err.Error(), "ingest."+field) {
			t.Errorf("%s is not named in %v", field, err)
		}
	}
	if _, err := ingest.New(&fakeLog{}, fakeKeys{}, fakeAuth{}, ingest.Options{}); err == nil {
		t.Error("an edge without a topic was made")
	}
	if err := (ingest.Options{Topic: "events", EdgeID: "e", Logger: slog.Default()}).Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
}
