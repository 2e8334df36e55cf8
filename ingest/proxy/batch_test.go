package proxy_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv/testlog"
	"github.com/tallystick/tallystick/internal/tokens"
)

// otherToken is another token of the same tenant.
const otherToken = "tly_another_token_of_no_worth"

// chatLine is the k-th line of a batch of chats; embedLine has no time of its own.
func chatLine(k int, text string) string {
	return fmt.Sprintf(`{"id":"batch_req_%d","custom_id":"request-%d","response":{"status_code":200,"request_id":"req_%d","body":{"id":"chatcmpl-%d","object":"chat.completion","created":1795000000,"model":"gpt-4o-2024-08-06","choices":[{"message":{"role":"assistant","content":%q},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":5,"total_tokens":%d}}},"error":null}`, k, k, k, k, text, k+1, k+6) + "\n"
}

const (
	embedLine  = `{"custom_id":"e","response":{"status_code":200,"request_id":"req_e","body":{"object":"list","data":[{"embedding":[0.5]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}},"error":null}` + "\n"
	failedLine = `{"id":"batch_req_f","custom_id":"f","response":null,"error":{"code":"batch_expired","message":"too late, says the harbour"}}` + "\n"
	askLine    = `{"custom_id":"request-1","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o","messages":[]}}` + "\n"
	messages   = `{"custom_id":"first","result":{"type":"succeeded","message":{"id":"msg_1","type":"message","model":"claude-sonnet-4-5","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":11,"cache_read_input_tokens":7,"output_tokens":36,"service_tier":"batch"}}}}` + "\n" +
		`{"custom_id":"second","result":{"type":"errored","error":{"type":"error","error":{"type":"invalid_request_error","message":"a b"}}}}` + "\n" +
		`{"custom_id":"third","result":{"type":"expired"}}` + "\n" + `{"custom_id":"fourth","result":{"type":"canceled"}}`
)

// shelf is a provider that has files, and says of each what it is.
type shelf struct {
	files   map[string]string // by path
	about   map[string]string
	asked   atomic.Int64
	cut     atomic.Bool // break off in the middle
	gzipped bool
	plain   bool // with a length
	seen    http.Header
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if doc, ok := s.about[r.URL.Path]; ok {
		s.asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer "+providerKey && r.Header.Get("X-Api-Key") != providerKey {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = io.WriteString(w, doc)
		return
	}
	body, ok := s.files[r.URL.Path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":{"type":"invalid_request_error"}}`)
		return
	}
	s.seen = r.Header
	if s.gzipped {
		w.Header().Set("Content-Encoding", "gzip")
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, body)
		_ = z.Close()
		body = b.String()
	}
	if s.cut.Load() {
		_, _ = io.WriteString(w, body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if s.plain {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	for len(body) > 0 {
		n := min(len(body), 777)
		_, _ = io.WriteString(w, body[:n])
		if body = body[n:]; !s.plain {
			_ = http.NewResponseController(w).Flush()
		}
	}
}

const (
	outputPath  = "/v1/files/file-out/content"
	resultsPath = "/v1/messages/batches/msgbatch_1/results"
)

func newShelf() *shelf {
	var chats strings.Builder
	for k := range 600 {
		chats.WriteString(chatLine(k, "all is well"))
	}
	return &shelf{
		files: map[string]string{
			outputPath: chats.String() + embedLine + failedLine, resultsPath: messages,
			"/v1/files/file-in/content": askLine + askLine, "/v1/files/file-again/content": chats.String(),
			"/v1/files/file-png/content": "\x89PNG\r\n\x1a\n" + chatLine(1, "x"), "/v1/files/file-train/content": `{"messages":[{"role":"user","content":"x"}]}` + "\n",
			"/v1/files/file-list/content": "[" + chatLine(1, "x") + "]", "/v1/files/file-empty/content": "",
		},
		about: map[string]string{
			"/v1/files/file-out":              `{"id":"file-out","object":"file","purpose":"batch_output","created_at":1795000900,"bytes":1}`,
			"/v1/files/file-again":            `{"id":"file-again","object":"file","purpose":"user_data","created_at":1795000900,"bytes":1}`,
			"/v1/messages/batches/msgbatch_1": `{"id":"msgbatch_1","type":"message_batch","processing_status":"ended","created_at":"2026-11-20T10:00:00Z","ended_at":"2026-11-20T11:00:00.5Z"}`,
		},
	}
}

// newBatchWorld is a world with two tokens, in November of 2026.
func newBatchWorld(t *testing.T, s *shelf, change func(*proxy.Parts, *proxy.Options)) *world {
	t.Helper()
	return newWorld(t, s.ServeHTTP, func(p *proxy.Parts, o *proxy.Options) {
		p.Auth = twoTokens{p.Auth, authn.NewStatic(otherToken, authn.Principal{Subject: "tok_2", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest})}
		o.Now = func() time.Time { return time.Unix(1795300000, 0) }
		if change != nil {
			change(p, o)
		}
	})
}

// twoTokens knows two.
type twoTokens [2]authn.Authenticator

func (a twoTokens) Authenticate(ctx context.Context, token string) (authn.Principal, error) {
	who, err := a[0].Authenticate(ctx, token)
	if err != nil {
		return a[1].Authenticate(ctx, token)
	}
	return who, nil
}

// read reads a file through the proxy, and wants its bytes as they are.
func (w *world) read(t *testing.T, path, want string, headers ...string) []event.Event {
	t.Helper()
	req := w.request("GET", path, "")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp := w.do(req)
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(got) != want {
		t.Fatalf("%s: status %d, %d bytes of %d, %v", path, resp.StatusCode, len(got), len(want), err)
	}
	if id := resp.Header.Get(proxy.EventIDHeader); id != "" {
		t.Errorf("%s: event id %s of a reading", path, id)
	}
	return w.sink.take()
}

// A batch's output makes one event for each line, of the tier batch and with the line's
// own time, model and ids; a failed line makes that of a failed call.
func TestBatchOutput(t *testing.T) {
	s := newShelf()
	w := newBatchWorld(t, s, nil)
	got := w.read(t, "/openai"+outputPath, s.files[outputPath], "X-Tallystick-Team", "search")
	if len(got) != 602 {
		t.Fatalf("%d events, want 602", len(got))
	}
	ids := map[string]bool{}
	for i := range got {
		ids[got[i].ID] = true
	}
	if len(ids) != 602 {
		t.Errorf("%d ids", len(ids))
	}
	want := event.Event{
		ID: got[3].ID, Tenant: "acme", OccurredAt: 1795000000e9, Provider: "openai", Model: "gpt-4o-2024-08-06", Operation: "chat",
		ServiceTier: "batch", HTTPStatus: 200, Tokens: tokens.Vector{tokens.Input: 4, tokens.Output: 5}, ProviderRequestID: "req_3", Team: "search",
	}
	if !reflect.DeepEqual(got[3], want) {
		t.Errorf("%+v\nwant %+v", got[3], want)
	}
	if e := got[600]; e.OccurredAt != 1795000900e9 || e.Model != "text-embedding-3-small" || e.Operation != "embeddings" || e.Tokens != (tokens.Vector{tokens.Input: 8}) {
		t.Errorf("embedding %+v", e)
	}
	if e := got[601]; e.Status != event.StatusError || e.ErrorType != "batch_expired" || e.Tokens.Total() != 0 || e.OccurredAt != 1795000900e9 || e.Model != "unknown" || len(e.Tags) != 0 {
		t.Errorf("failed %+v", e)
	}
	s.files["/v1/files/file-two/content"] = chatLine(3, "")
	if two := w.read(t, "/v1/files/file-two/content", chatLine(3, "")); len(two) != 1 || ids[two[0].ID] {
		t.Errorf("the same line of another batch: %+v", two)
	}
	if stats := w.proxy.Stats(); stats.Calls != 603 || stats.InFlight != 0 {
		t.Errorf("%+v", stats)
	}
}

func TestMessageBatch(t *testing.T) {
	s := newShelf()
	w := newBatchWorld(t, s, nil)
	got := w.read(t, "/anthropic"+resultsPath, messages)
	if len(got) != 4 {
		t.Fatalf("%d events, want 4", len(got))
	}
	ended := time.Date(2026, 11, 20, 11, 0, 0, 5e8, time.UTC).UnixNano()
	for i, want := range []event.Event{
		{Model: "claude-sonnet-4-5", HTTPStatus: 200, Tokens: tokens.Vector{tokens.Input: 11, tokens.CacheRead: 7, tokens.Output: 36}, ProviderRequestID: "msg_1"},
		{Model: "unknown", Status: event.StatusError, ErrorType: "invalid_request_error"},
		{Model: "unknown", Status: event.StatusError, ErrorType: "expired"},
		{Model: "unknown", Status: event.StatusError, ErrorType: "canceled"},
	} {
		want.ID, want.Tenant, want.OccurredAt, want.Provider, want.Operation, want.ServiceTier = got[i].ID, "acme", ended, "anthropic", "chat", "batch"
		if !reflect.DeepEqual(got[i], want) {
			t.Errorf("%+v\nwant %+v", got[i], want)
		}
	}
}

// Whoever reads, however often and in whichever way, also compressed, with a range and
// after the proxy began anew: the events are the same, and the provider is asked about
// the batch once in each proxy.
func TestReadingsAreTheSame(t *testing.T) {
	for _, path := range []string{outputPath, resultsPath} {
		t.Run(path, func(t *testing.T) {
			s := newShelf()
			w := newBatchWorld(t, s, nil)
			first := w.read(t, path, s.files[path])
			same := func(what string, got []event.Event) {
				t.Helper()
				if !reflect.DeepEqual(got, first) {
					t.Errorf("%s: %d events are not the same %d", what, len(got), len(first))
				}
			}
			prefix := "/openai"
			if path == resultsPath {
				prefix = "/anthropic"
			}
			same("again", w.read(t, path, s.files[path]))
			same("by the provider's name", w.read(t, prefix+path+"?x=1", s.files[path]))
			same("by another key", w.read(t, path, s.files[path], "Authorization", "Bearer "+otherToken))
			same("with a range", w.read(t, path, s.files[path], "Range", "bytes=100-", "If-Range", `"x"`))
			if s.seen.Get("Range") != "" || s.seen.Get("If-Range") != "" {
				t.Errorf("the provider was asked for a range: %v", s.seen)
			}
			s.plain = true
			same("with a length", w.read(t, path, s.files[path]))
			if n := s.asked.Load(); n != 1 {
				t.Errorf("the provider was asked %d times", n)
			}
			s.gzipped = true
			req := w.request("GET", path, "")
			req.Header.Set("Accept-Encoding", "gzip")
			if _, err := io.Copy(io.Discard, w.do(req).Body); err != nil {
				t.Fatal(err)
			}
			same("compressed", w.sink.take())
			s.gzipped = false
			same("by another proxy, a year later", newBatchWorld(t, s, func(_ *proxy.Parts, o *proxy.Options) {
				o.Now = func() time.Time { return time.Unix(1795300000, 0).AddDate(1, 0, 0) }
				o.ProducerID = "proxy-other"
			}).read(t, path, s.files[path]))
		})
	}
}

// A reading that breaks off makes the events of the lines that came whole, and the next
// one those and the rest.
func TestReadingBreaksOff(t *testing.T) {
	s := newShelf()
	w := newBatchWorld(t, s, nil)
	s.cut.Store(true)
	resp := w.do(w.request("GET", outputPath, ""))
	part, err := io.ReadAll(resp.Body)
	if err == nil || !strings.HasPrefix(s.files[outputPath], string(part)) {
		t.Fatalf("%d bytes, %v", len(part), err)
	}
	begun := w.sink.take()
	if n := strings.Count(s.files[outputPath][:len(s.files[outputPath])/2], "\n"); len(begun) != n {
		t.Errorf("%d events of %d whole lines", len(begun), n)
	}
	s.cut.Store(false)
	if all := w.read(t, outputPath, s.files[outputPath]); len(all) != 602 || !reflect.DeepEqual(all[:len(begun)], begun) {
		t.Errorf("%d events", len(all))
	}
	// And by the client.
	ctx, cancel := context.WithCancel(t.Context())
	resp = w.do(w.request("GET", outputPath, "").WithContext(ctx))
	if _, err := io.ReadFull(resp.Body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	for deadline := time.Now().Add(10 * time.Second); w.proxy.Stats().InFlight > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the call goes on without its client")
		}
	}
	got, all := w.sink.take(), w.read(t, outputPath, s.files[outputPath])
	if len(got) == 0 || !reflect.DeepEqual(all[:len(got)], got) {
		t.Errorf("%d events before the client left", len(got))
	}
}

// A file that is no batch's output makes no event: requests, images, training data, and
// an output that somebody has put there again.
func TestOtherFiles(t *testing.T) {
	s := newShelf()
	w := newBatchWorld(t, s, nil)
	for _, name := range []string{"in", "png", "train", "list", "empty", "again"} {
		path := "/v1/files/file-" + name + "/content"
		if got := w.read(t, path, s.files[path]); len(got) != 0 {
			t.Errorf("%s: %d events", name, len(got))
		}
	}
	if n := s.asked.Load(); n != 1 { // of the last alone
		t.Errorf("the provider was asked %d times", n)
	}
	resp := w.do(w.request("GET", "/v1/files/file-gone/content", ""))
	if got := w.sink.take(); resp.StatusCode != http.StatusNotFound || len(got) != 0 {
		t.Errorf("status %d, %d events", resp.StatusCode, len(got))
	}
}

// Where the provider does not tell of the batch, the time of the first reading stands
// for lines that have none; lines that cannot be read are events too.
func TestBatchWithoutFacts(t *testing.T) {
	s := newShelf()
	s.about = map[string]string{}
	odd := chatLine(1, "x") + "{no json}\n" + `{"custom_id":"x"}` + "\n" + strings.Replace(embedLine, `"e"`, `"the name of a person"`, 1)
	s.files[outputPath] = odd
	now := time.Unix(1795300000, 0)
	w := newBatchWorld(t, s, func(_ *proxy.Parts, o *proxy.Options) { o.Now = func() time.Time { return now } })
	first := w.read(t, outputPath, odd)
	now = now.Add(time.Hour)
	if got := w.read(t, outputPath, odd); !reflect.DeepEqual(got, first) {
		t.Errorf("%+v\nfirst %+v", got, first)
	}
	if len(first) != 4 || first[0].OccurredAt != 1795000000e9 || first[3].OccurredAt != 1795300000e9 || first[3].Tokens.Total() != 8 {
		t.Fatalf("%+v", first)
	}
	for i, tag := range []string{"cut_off,malformed", "no_usage"} {
		e := first[1+i]
		if e.Status != event.StatusError || e.ErrorType != "unreadable_line" || e.Tokens.Total() != 0 || len(e.Tags) != 1 || !strings.Contains(e.Tags[0].Value, strings.SplitN(tag, ",", 2)[0]) {
			t.Errorf("%+v", e)
		}
	}
}

// Events go to the sink many at a time, before the end of the file does. Where they
// cannot be kept the file is cut, nothing waits, and the next reading makes them all.
func TestResultsFailClosed(t *testing.T) {
	s := newShelf()
	var counted counting
	full := &roomOf{}
	w := newBatchWorld(t, s, func(p *proxy.Parts, _ *proxy.Options) { counted.Sink, p.Sink, p.Room = p.Sink, &counted, full })
	w.read(t, outputPath, s.files[outputPath])
	if n := counted.calls.Load(); n != 3 { // 256, 256, 90
		t.Errorf("%d submits", n)
	}
	counted.left.Store(1)
	resp := w.do(w.request("GET", outputPath, ""))
	if got, err := io.ReadAll(resp.Body); err == nil || bytes.Count(got, []byte("\n")) >= 512 {
		t.Errorf("%d bytes came of a file whose usage cannot be kept: %v", len(got), err)
	}
	if got, stats := w.sink.take(), w.proxy.Stats(); len(got) != 256 || stats.Gap != 0 {
		t.Errorf("%d events, %+v", len(got), stats)
	}
	counted.left.Store(0)
	if got := w.read(t, outputPath, s.files[outputPath]); len(got) != 602 {
		t.Errorf("%d events", len(got))
	}
	full.full.Store(true)
	for _, path := range []string{outputPath, resultsPath} {
		if resp := w.do(w.request("GET", path, "")); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s with a full spool: status %d", path, resp.StatusCode)
		}
	}
}

// With FailOpen the file is not cut, and what was not kept is kept when it can be, or
// by the next reading.
func TestResultsFailOpen(t *testing.T) {
	s := newShelf()
	w := newBatchWorld(t, s, func(_ *proxy.Parts, o *proxy.Options) { o.FailOpen = true })
	w.sink.fail(kafka.ErrFull)
	for range 8 {
		w.read(t, outputPath, s.files[outputPath])
	}
	if n := w.proxy.Stats().Gap; n != 8*602 {
		t.Errorf("%d wait", n)
	}
	w.sink.fail(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.proxy.Run(ctx); err != nil {
		t.Fatal(err)
	}
	got, ids, lost := w.sink.take(), map[string]bool{}, ""
	for i := range got {
		if e := &got[i]; e.ErrorType == "spool_lost" { // says how many lines only the next reading has
			lost = fmt.Sprint(e.Tags[0], e.Tokens.Total())
			continue
		}
		ids[got[i].ID] = true
	}
	if len(got) != 4097 || len(ids) != 602 || lost != "{gap_calls 720} 0" {
		t.Errorf("%d events of %d ids, and %s", len(got), len(ids), lost)
	}
}

// The cost of a file is that of its lines, for who wants to know.
func TestCostOfResults(t *testing.T) {
	s := newShelf()
	s.plain = true
	w := newBatchWorld(t, s, nil)
	req := w.request("GET", resultsPath, "")
	req.Header.Set(proxy.ReturnHeader, "cost")
	if got := w.do(req).Header.Get(proxy.CostHeader); got != "0.000054000000" {
		t.Errorf("cost %s", got)
	}
	var b budgets
	w = newBatchWorld(t, s, func(p *proxy.Parts, _ *proxy.Options) { p.Budgets = &b })
	if w.read(t, outputPath, s.files[outputPath]); b.open != 0 || b.settled != 0 {
		t.Errorf("%+v", b)
	}
}

// Each chunk has passed before the next is sent, and a file of many megabytes, a line
// of it longer than memory should be, takes a bounded part of memory.
func TestLargeResults(t *testing.T) {
	const size, longest = 96 << 20, 48 << 20
	line := chatLine(7, strings.Repeat("all work and no play ", 400))
	var sent int
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/content") {
			_, _ = io.WriteString(rw, `{"purpose":"batch_output","created_at":1795000900}`)
			return
		}
		head, tail, _ := strings.Cut(chatLine(8, "MIDDLE"), "MIDDLE")
		_, _ = io.WriteString(rw, head)
		for range longest / 1024 {
			_, _ = io.WriteString(rw, strings.Repeat("x", 1024))
		}
		_, _ = io.WriteString(rw, tail)
		for n := 0; n < size-longest; n += len(line) {
			_, _ = io.WriteString(rw, line)
			sent++
		}
	}, func(p *proxy.Parts, o *proxy.Options) {
		p.Sink = &counting{}
		o.Now = func() time.Time { return time.Unix(1795300000, 0) }
	})
	resp := w.do(w.request("GET", outputPath, ""))
	var most uint64
	buf := make([]byte, 256<<10)
	var read int64
	for n := 0; ; n++ {
		m, err := resp.Body.Read(buf)
		if read += int64(m); errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n%500 == 0 {
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			most = max(most, mem.HeapInuse)
		}
	}
	if calls := w.proxy.Stats().Calls; read < size-1<<20 || calls != int64(sent)+1 {
		t.Errorf("%d bytes, %d events of %d lines", read, calls, sent+1)
	}
	t.Logf("%d MB, %d MB of heap at most", read>>20, most>>20)
	if most > 32<<20 {
		t.Errorf("%d MB of heap", most>>20)
	}
}

// Fragments of prompts and answers in lines, names of lines and errors are in no event
// and no message, also when the sink fails.
func TestPlantedInResults(t *testing.T) {
	var logged testlog.Buffer
	s := newShelf()
	w := newBatchWorld(t, s, func(_ *proxy.Parts, o *proxy.Options) {
		o.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	var kept []byte
	for k := range 200 {
		f := fragment(k)
		var escaped strings.Builder
		for _, c := range f {
			fmt.Fprintf(&escaped, `\u%04x`, c)
		}
		chat := strings.NewReplacer(`"request-`, `"`+f, `"choices":`, `"`+f+`":"`+escaped.String()+`","choices":`, "gpt-4o-2024-08-06", f).Replace(chatLine(k, f))
		s.files[outputPath] = chatLine(k, f) + chat + strings.Replace(failedLine, "batch_expired", f, 1) + chat[:len(chat)/2] + "\n" + f + "\n"
		s.files[resultsPath] = strings.NewReplacer("Hello", f, "first", f, "a b", f, "invalid_request_error", f, `"expired"`, `"`+escaped.String()+`"`).Replace(messages)
		delete(s.about, "/v1/files/file-out")
		for _, path := range []string{outputPath, resultsPath} {
			if k%10 == 9 {
				w.sink.fail(kafka.ErrFull)
			}
			if resp, err := http.DefaultTransport.RoundTrip(w.request("GET", path, "")); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			w.sink.fail(nil)
		}
		for _, e := range w.sink.take() {
			kept = fmt.Appendf(kept, "%+v\n", e)
		}
	}
	if bytes.Count(kept, []byte("\n")) < 200*7*9/10 {
		t.Fatalf("%d events", bytes.Count(kept, []byte("\n")))
	}
	for k := range 200 {
		for _, form := range forms(k) {
			if bytes.Contains(kept, form) || bytes.Contains(logged.Bytes(), form) {
				t.Fatalf("%q is in an event or the log", form)
			}
		}
	}
}

// counting counts what a sink is given, and takes nothing after some calls.
type counting struct {
	proxy.Sink
	calls, left atomic.Int64 // left: of 1 more call, then none; 0 is no bound
}

func (c *counting) Submit(ctx context.Context, who authn.Principal, events []event.Event) (ingest.Outcome, error) {
	c.calls.Add(1)
	if left := c.left.Load(); left < 0 {
		return ingest.Outcome{}, errors.Join(ingest.ErrUnavailable, kafka.ErrFull)
	} else if left == 1 {
		c.left.Store(-1)
	}
	if c.Sink == nil {
		return ingest.Outcome{Accepted: len(events)}, nil
	}
	return c.Sink.Submit(ctx, who, events)
}

// roomOf says whether there is room.
type roomOf struct{ full atomic.Bool }

func (r *roomOf) Full() bool { return r.full.Load() }

// TestResultsAreNear: what a provider says of batches names their results below the
// client's base URL, and the results are read there; all else is as it was said.
func TestResultsAreNear(t *testing.T) {
	const (
		about = `{"id":"msgbatch_1","type":"message_batch","results_url":%s"https://api.anthropic.com%s/v1/messages/batches/msgbatch_1/results","ended_at":null,"url":"https://api.anthropic.com/v1/messages/batches/msgbatch_1"}`
		near  = `{"id":"msgbatch_1","type":"message_batch","results_url":%s"/v1/messages/batches/msgbatch_1/results","ended_at":null,"url":"https://api.anthropic.com/v1/messages/batches/msgbatch_1"}`
		one   = "/v1/messages/batches/msgbatch_1"
	)
	long := `{"results_url":"https://api.anthropic.com` + one + `/results","x":"` + strings.Repeat("x", 5<<20) + `"}`
	for _, c := range []struct {
		name, method, path, said, want string
		flush                          bool
	}{
		{"one", "GET", one, fmt.Sprintf(about, "", ""), fmt.Sprintf(near, ""), false},
		{"chunked", "GET", one, fmt.Sprintf(about, " ", ""), fmt.Sprintf(near, " "), true},
		{"made", "POST", "/v1/messages/batches", fmt.Sprintf(about, "", ""), fmt.Sprintf(near, ""), false},
		{"cancelled", "POST", one + "/cancel", fmt.Sprintf(about, "", ""), fmt.Sprintf(near, ""), false},
		{"below a gateway", "GET", one, fmt.Sprintf(about, "", "/eu/claude"), fmt.Sprintf(near, ""), false},
		{"a list", "GET", "/v1/messages/batches?limit=2", `{"data":[` + fmt.Sprintf(about, "", "") + "," + fmt.Sprintf(about, "", "") + `]}`, `{"data":[` + fmt.Sprintf(near, "") + "," + fmt.Sprintf(near, "") + `]}`, false},
		{"not ended", "GET", one, `{"results_url":null}`, `{"results_url":null}`, false},
		{"longer than is held", "GET", one, long, long, false},
		{"the results", "GET", one + "/results", fmt.Sprintf(about, "", ""), fmt.Sprintf(about, "", ""), false},
		{"of something else", "GET", "/v1/models", fmt.Sprintf(about, "", ""), fmt.Sprintf(about, "", ""), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(w http.ResponseWriter, r *http.Request) {
				tells := strings.HasPrefix(r.URL.Path, "/v1/messages/batches") && !strings.HasSuffix(r.URL.Path, "/results")
				asked, _, _ := strings.Cut(c.path, "?") // by the client; of results the proxy asks for the batch too
				if got := r.Header.Get("Accept-Encoding"); r.URL.Path == asked && tells != (got == "identity") {
					t.Errorf("the provider is asked for %q", got)
				}
				if c.flush {
					_, _ = io.WriteString(w, c.said[:70])
					_ = http.NewResponseController(w).Flush()
					_, _ = io.WriteString(w, c.said[70:])
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(c.said)))
				_, _ = io.WriteString(w, c.said)
			}, nil)
			req := w.request(c.method, "/anthropic"+c.path, "")
			req.Header.Set("Accept-Encoding", "gzip")
			resp := w.do(req)
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || string(b) != c.want {
				t.Errorf("status %d, %d bytes %.200s, %v", resp.StatusCode, len(b), b, err)
			}
		})
	}
}

// TestResultsBrokenOff: an answer about a batch that breaks off is not made whole.
func TestResultsBrokenOff(t *testing.T) {
	w := newWorld(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"id":"msgbatch_1",`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
	resp := w.do(w.request("GET", "/anthropic/v1/messages/batches/msgbatch_1", ""))
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("it came as a whole answer: %q", b)
	}
}
