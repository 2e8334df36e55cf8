package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/oracle"
)

// fakeLedger is a server that keeps the rules of the real one: an id counts
// once, with its first body, and what the edge must refuse is refused.
type fakeLedger struct {
	t       *testing.T
	refuse  map[string]string // encoded event → "field rule"
	tamper  func(call int, w http.ResponseWriter, events [][]byte) (handled bool)
	encoded string // content encoding that is expected

	mu         sync.Mutex
	calls      int
	bodies     map[string]string // tenant/id → first body
	stored     int64
	duplicates int64
	conflicts  int64
	requests   map[string]int // how often each request body came
	tenants    map[string]bool
}

func newFakeLedger(t *testing.T, o Options) *fakeLedger {
	f := &fakeLedger{t: t, refuse: map[string]string{}, bodies: map[string]string{}, requests: map[string]int{}, tenants: map[string]bool{}}
	all, _ := collect(t, o)
	for _, s := range all {
		if s.out.Kind == oracle.Refused {
			f.refuse[string(s.encoded)] = s.out.Rule
		}
	}
	return f
}

func (f *fakeLedger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/v1/tenants:batchCreate" {
		var req struct {
			IDs []string `json:"tenant_ids"`
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.IDs) > 1000 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, id := range req.IDs {
			f.tenants[id] = true
		}
		fmt.Fprint(w, `{"created":[]}`)
		return
	}
	if r.Header.Get("Content-Encoding") != f.encoded {
		f.t.Errorf("content encoding %q, want %q", r.Header.Get("Content-Encoding"), f.encoded)
	}
	body, err := io.ReadAll(decoded(f.t, r))
	if err != nil {
		return // the client gave up
	}
	events := splitEvents(f.t, r.Header.Get("Content-Type"), body)
	f.mu.Lock()
	f.calls++
	call := f.calls
	f.requests[string(body)]++
	f.mu.Unlock()
	if f.tamper != nil && f.tamper(call, w, events) {
		return
	}
	f.answer(w, http.StatusAccepted, events, len(events))
}

// answer stores the first n events and answers for all; those after n are
// unavailable.
func (f *fakeLedger) answer(w http.ResponseWriter, code int, events [][]byte, n int) {
	f.mu.Lock()
	accepted := 0
	var refusals []string
	for i, e := range events {
		rule := f.refuse[string(e)]
		switch {
		case i >= n:
			rule = "event unavailable"
		case rule == "":
			f.store(e)
			accepted++
			continue
		}
		field, name, _ := strings.Cut(rule, " ")
		refusals = append(refusals, fmt.Sprintf(`{"index":"%d","event_id":"","field":%q,"rule":%q,"message":""}`, i, field, name))
	}
	f.mu.Unlock()
	if accepted == 0 && code == http.StatusAccepted {
		code = http.StatusBadRequest
	}
	w.Header().Set("Retry-After", "0")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"accepted":"%d","refused":"%d","refusals":[%s]}`, accepted, len(refusals), strings.Join(refusals, ","))
}

func (f *fakeLedger) store(e []byte) {
	key := identity(f.t, e)
	tenantName, _, _ := strings.Cut(key, "/")
	if !f.tenants[tenantName] {
		f.t.Errorf("event of tenant %q, which was not created", tenantName)
	}
	switch first, seen := f.bodies[key]; {
	case !seen:
		f.bodies[key] = string(e)
		f.stored++
	case first == string(e):
		f.duplicates++
	default:
		f.conflicts++
	}
}

func identity(t *testing.T, e []byte) string {
	if e[0] == '{' {
		var m struct {
			ID     string `json:"event_id"`
			Tenant string `json:"tenant_id"`
		}
		if err := json.Unmarshal(e, &m); err != nil {
			t.Error(err)
		}
		return m.Tenant + "/" + m.ID
	}
	ev := new(tallystickv1.UsageEvent)
	if err := proto.Unmarshal(e, ev); err != nil {
		t.Error(err)
	}
	return ev.TenantId + "/" + ev.EventId
}

func decoded(t *testing.T, r *http.Request) io.Reader {
	switch r.Header.Get("Content-Encoding") {
	case "gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
		}
		return z
	case "zstd":
		z, err := zstd.NewReader(r.Body)
		if err != nil {
			t.Error(err)
		}
		return z
	}
	return r.Body
}

func splitEvents(t *testing.T, contentType string, body []byte) (events [][]byte) {
	switch contentType {
	case "application/json":
		var m struct {
			Events []json.RawMessage `json:"events"`
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Errorf("%v in a body of %d bytes", err, len(body))
		}
		for _, e := range m.Events {
			events = append(events, e)
		}
	case "application/x-ndjson":
		for _, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
			events = append(events, []byte(line))
		}
	default:
		for len(body) > 0 {
			num, typ, n := protowire.ConsumeTag(body)
			if num != 1 || typ != protowire.BytesType {
				t.Errorf("field %d of type %d in a batch", num, typ)
				return events
			}
			v, m := protowire.ConsumeBytes(body[n:])
			if m < 0 {
				t.Error("broken batch")
				return events
			}
			events = append(events, v)
			body = body[n+m:]
		}
	}
	return events
}

// serve starts the fake and completes the options.
func serve(t *testing.T, f *fakeLedger, o *Options) {
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	o.URL, o.Token = srv.URL, "secret"
}

// check holds a complete result against what the fake ledger has.
func check(t *testing.T, f *fakeLedger, r *Result) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &r.Expectation
	extra := r.Retransmitted.Accepted + r.Retransmitted.Duplicates
	if !r.Complete || r.InDoubt != 0 || r.Surprises != 0 {
		t.Errorf("complete %v, in doubt %d, surprises %d %v", r.Complete, r.InDoubt, r.Surprises, r.FirstSurprises)
	}
	if f.stored != e.Accepted {
		t.Errorf("%d entries, expected %d", f.stored, e.Accepted)
	}
	if f.duplicates < e.Duplicates || f.duplicates > e.Duplicates+extra {
		t.Errorf("%d duplicates, expected %d to %d", f.duplicates, e.Duplicates, e.Duplicates+extra)
	}
	if f.conflicts < e.Conflicts || f.conflicts > e.Conflicts+r.Retransmitted.Conflicts {
		t.Errorf("%d conflicts, expected %d to %d", f.conflicts, e.Conflicts, e.Conflicts+r.Retransmitted.Conflicts)
	}
	if r.Acked != r.Sent {
		t.Errorf("%d sent, %d acknowledged", r.Sent, r.Acked)
	}
}

func TestRunInEveryFormat(t *testing.T) {
	for _, c := range []struct {
		format   Format
		compress string
	}{{Protobuf, ""}, {Protobuf, "zstd"}, {JSON, ""}, {JSON, "gzip"}, {NDJSON, ""}, {NDJSON, "zstd"}} {
		t.Run(string(c.format)+c.compress, func(t *testing.T) {
			o := faulty(3000)
			o.Format, o.Compress = c.format, c.compress
			f := newFakeLedger(t, o)
			f.encoded = c.compress
			_, want := collect(t, o)
			serve(t, f, &o)
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			check(t, f, r)
			if !sameExpectation(t, want, &r.Expectation) {
				t.Error("the expectation depends on the sending")
			}
			if r.Retries != 0 || f.duplicates != want.Duplicates || f.conflicts != want.Conflicts {
				t.Errorf("%d retries, %d duplicates, %d conflicts", r.Retries, f.duplicates, f.conflicts)
			}
		})
	}
}

// A server that fails in every way that leaves the outcome open: the same bytes
// come again, and nothing is lost or counted twice.
func TestRunSurvivesFailures(t *testing.T) {
	o := faulty(4000)
	o.Connections, o.Timeout = 3, 300*time.Millisecond
	f := newFakeLedger(t, o)
	f.tamper = func(call int, w http.ResponseWriter, events [][]byte) bool {
		switch call % 9 {
		case 1:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
		case 3: // the connection breaks before anything was stored
			panic(http.ErrAbortHandler)
		case 4: // … and after it was stored, in the middle of the answer
			f.answer(discard{w.Header()}, http.StatusAccepted, events, len(events))
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"accepted":"`)
			panic(http.ErrAbortHandler)
		case 5: // half of it is durable
			f.answer(w, http.StatusServiceUnavailable, events, len(events)/2)
		case 6: // stored, and the acknowledgement comes too late
			if call > 20 {
				return false
			}
			f.answer(discard{w.Header()}, http.StatusAccepted, events, len(events))
			time.Sleep(400 * time.Millisecond)
		default:
			return false
		}
		return true
	}
	serve(t, f, &o)
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, r)
	if r.Retries == 0 || r.Retransmitted.Accepted == 0 {
		t.Errorf("nothing was sent again: %+v", r.Retransmitted)
	}
	_, want := collect(t, faulty(4000))
	if !sameExpectation(t, want, &r.Expectation) {
		t.Error("failures changed the expectation")
	}
}

// discard is a ResponseWriter that nobody reads.
type discard struct{ h http.Header }

func (d discard) Header() http.Header       { return d.h }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// A request without an answer is sent again as it was, byte for byte.
func TestRetryIsTheSameBytes(t *testing.T) {
	o := faulty(300)
	o.Connections = 1
	f := newFakeLedger(t, o)
	f.tamper = func(call int, w http.ResponseWriter, _ [][]byte) bool {
		if call%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	serve(t, f, &o)
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for body, n := range f.requests {
		if n != 2 {
			t.Errorf("a body of %d bytes came %d times, want twice", len(body), n)
		}
	}
}

// The server is away at first and comes later: tenants and events wait.
func TestRunWaitsForTheServer(t *testing.T) {
	o := faulty(200)
	f := newFakeLedger(t, o)
	srv := httptest.NewUnstartedServer(f)
	addr := srv.Listener.Addr().String()
	_ = srv.Listener.Close()
	o.URL, o.Token = "http://"+addr, "secret"
	var second *httptest.Server
	tries := &countingTransport{after: 3, then: func() {
		second = httptest.NewUnstartedServer(f)
		_ = second.Listener.Close()
		second.Listener = listenOn(t, addr)
		second.Start()
	}}
	o.Transport = tries
	r, err := Run(t.Context(), o)
	if second != nil {
		defer second.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, r)
}

func TestFinalErrors(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"unauthorised":       {401, "", ErrAuth},
		"forbidden":          {403, `{"title":"Forbidden"}`, ErrAuth},
		"too large":          {413, `{"title":"Too large"}`, ErrRefused},
		"malformed":          {400, `{"title":"Bad Request","type":"urn:x"}`, ErrRefused},
		"not found":          {404, "", ErrRefused},
		"not implemented":    {501, "", ErrRefused},
		"redirect":           {302, "", ErrRefused},
		"unaccounted events": {202, `{"accepted":"1","refusals":[]}`, ErrRefused},
		"no JSON":            {202, `hello`, ErrRefused},
		"indices not sorted": {202, `{"accepted":"8","refusals":[{"index":"3"},{"index":"3"}]}`, ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			r, err := Run(t.Context(), Options{Events: 10, URL: srv.URL, SkipTenants: true, Base: testBase})
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if r.Complete || r.InDoubt != 10 || r.Expectation.Accepted != 0 {
				t.Errorf("complete %v, in doubt %d, accepted %d", r.Complete, r.InDoubt, r.Expectation.Accepted)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }))
	defer srv.Close()
	_, err := Run(t.Context(), Options{Events: 10, URL: srv.URL, SkipTenants: true, Deadline: 50 * time.Millisecond})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

// A stop while the server is away ends a load that has sent nothing.
func TestStopBeforeTheBeginning(t *testing.T) {
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	if _, err := Run(t.Context(), Options{Events: 10, URL: srv.URL, Stop: stop}); !errors.Is(err, ErrStopped) {
		t.Errorf("%v, want ErrStopped", err)
	}
}

// What the server says otherwise than expected is reported, and its word counts.
func TestSurprises(t *testing.T) {
	o := Options{Events: 10, Base: testBase, SkipTenants: true}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, `{"accepted":"9","refusals":[{"index":"4","event_id":"x","field":"model","rule":"required"}]}`)
	}))
	defer srv.Close()
	o.URL = srv.URL
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Surprises != 1 || r.FirstSurprises[0] != (Surprise{"x", "accepted", "model required"}) || r.Expectation.Accepted != 9 || r.Expectation.RefusedByRule["model required"] != 1 {
		t.Errorf("%d surprises %v, %d accepted", r.Surprises, r.FirstSurprises, r.Expectation.Accepted)
	}
}

// Stop ends in order, the file can be continued, and both together are the
// whole load.
func TestStopAndResume(t *testing.T) {
	o := faulty(3000)
	f := newFakeLedger(t, o)
	serve(t, f, &o)
	stop := make(chan struct{})
	var once sync.Once
	o.Stop = stop
	o.OnProgress = func(_, acked int64) {
		if acked > 1000 {
			once.Do(func() { close(stop) })
		}
	}
	first, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, first)
	if first.Next < 900 || first.Next >= 3000 {
		t.Fatalf("stopped at %d", first.Next)
	}
	path := filepath.Join(t.TempDir(), "expect.json")
	if err := first.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	state, err := ReadState(path)
	if err != nil {
		t.Fatal(err)
	}
	o.Stop, o.OnProgress, o.Resume, o.Base = nil, nil, state, time.Time{}
	second, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, second)
	_, want := collect(t, faulty(3000))
	if !sameExpectation(t, want, &second.Expectation) {
		t.Error("the two halves are not the whole")
	}
	o.Seed++
	if _, err := Run(t.Context(), o); !errors.Is(err, ErrOptions) {
		t.Errorf("resumed with another seed: %v", err)
	}
}

func TestCancelReportsDoubt(t *testing.T) {
	o := faulty(3000)
	f := newFakeLedger(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	f.tamper = func(call int, w http.ResponseWriter, _ [][]byte) bool {
		if call == 10 {
			cancel()
		}
		return call >= 10 // no answer that settles anything
	}
	serve(t, f, &o)
	r, err := Run(ctx, o)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if r.Complete || r.InDoubt == 0 || f.stored > r.Expectation.Accepted+r.InDoubt {
		t.Errorf("complete %v, in doubt %d, %d stored, %d accepted", r.Complete, r.InDoubt, f.stored, r.Expectation.Accepted)
	}
	bad := filepath.Join(t.TempDir(), "x")
	if err := r.WriteFile(bad); err != nil {
		t.Fatal(err)
	}
	state, err := ReadState(bad)
	if err != nil {
		t.Fatal(err)
	}
	o.Resume = state
	if _, err := Run(t.Context(), o); !errors.Is(err, ErrOptions) {
		t.Errorf("resumed a load in doubt: %v", err)
	}
}

// A load sends no batch that was not let go.
func TestHold(t *testing.T) {
	o := faulty(3000)
	f := newFakeLedger(t, o)
	var released, came atomic.Int64
	f.tamper = func(int, http.ResponseWriter, [][]byte) bool {
		if n := came.Add(1); n > released.Load() {
			t.Errorf("request %d came when %d batches were let go", n, released.Load())
		}
		return false
	}
	serve(t, f, &o)
	o.Hold = func(context.Context) { released.Add(1) }
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, res)
	if came.Load() < 10 {
		t.Errorf("%d requests only", came.Load())
	}
}

// A paced load keeps its schedule, and a live one never sends the future.
func TestLiveKeepsItsRate(t *testing.T) {
	o := Options{Events: 200, Live: true, Rate: 400, Seed: 1, Tenants: 3, Connections: 2}
	var late []string
	f := &fakeLedger{t: t, refuse: map[string]string{}, bodies: map[string]string{}, requests: map[string]int{}, tenants: map[string]bool{}}
	f.tamper = func(_ int, _ http.ResponseWriter, events [][]byte) bool {
		now := time.Now()
		for _, e := range events {
			ev := new(tallystickv1.UsageEvent)
			if proto.Unmarshal(e, ev) != nil || ev.OccurredAt.AsTime().After(now) {
				f.mu.Lock()
				late = append(late, ev.EventId)
				f.mu.Unlock()
			}
		}
		return false
	}
	serve(t, f, &o)
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, r)
	if len(late) > 0 {
		t.Errorf("%d events lie in the future", len(late))
	}
	if r.Duration < 490*time.Millisecond || r.Requests < 4 || r.Lag.N != r.Requests {
		t.Errorf("200 events at 400/s took %s in %d requests, %d lags", r.Duration, r.Requests, r.Lag.N)
	}
}

// The speed scales the source's own times.
func TestSpeed(t *testing.T) {
	o := Options{Events: 50, Base: testBase, History: 50 * time.Minute, Speed: 6000, Seed: 2, SkipTenants: false}
	f := newFakeLedger(t, o)
	serve(t, f, &o)
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, r)
	if r.Duration < 350*time.Millisecond || r.Duration > 5*time.Second {
		t.Errorf("50 minutes at 6000 × took %s", r.Duration)
	}
}

func TestWireInt(t *testing.T) {
	var a answer
	if err := json.Unmarshal([]byte(`{"accepted":3,"refusals":[{"index":"7"},{"index":8}]}`), &a); err != nil {
		t.Fatal(err)
	}
	if a.Accepted != 3 || a.Refusals[0].Index != 7 || a.Refusals[1].Index != 8 {
		t.Errorf("%+v", a)
	}
	if err := json.Unmarshal([]byte(`{"accepted":"x"}`), &a); !errors.Is(err, strconv.ErrSyntax) {
		t.Error(err)
	}
}
