package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/kafka"
)

// plantedPayloads is how many payloads with a fragment of a prompt are sent.
const plantedPayloads = 12_000

// seed is a word in every fragment. It is made of letters that no compression
// shortens and nothing else contains; control is such a word in what may be kept.
const (
	seed    = "qZ7vKx9WbTn3pLdR"
	control = "cY4hMs8GfUj6eXaQ"
)

// fragment is the n-th piece of a prompt.
func fragment(n int) string {
	return fmt.Sprintf("the patient %s%d asks about \"results\" and\ttherapy", seed, n)
}

// forms are the shapes that a word could have in a store: as it is, in the pieces
// that chunks split it into, escaped, in hexadecimal digits and in base64 at each
// alignment.
func forms(word string) (list [][]byte) {
	escaped := ""
	for _, c := range word {
		escaped += fmt.Sprintf(`\u%04x`, c)
	}
	list = append(list, []byte(word), []byte(word[:7]), []byte(word[7:]), []byte(escaped), []byte(strings.ToLower(word)), []byte(hex.EncodeToString([]byte(word))), []byte(strings.ToUpper(hex.EncodeToString([]byte(word)))))
	for shift := range 3 {
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			// Of the characters at both ends a part belongs to the neighbours.
			b := enc.EncodeToString([]byte(strings.Repeat("-", shift) + word))
			list = append(list, []byte(strings.TrimRight(b, "=")[(shift*8+5)/6:len(strings.TrimRight(b, "="))-1]))
		}
	}
	return list
}

// promptsWorld is a server with every front door, and the provider behind its proxy.
type promptsWorld struct {
	*plantedWorld
	proxy              string
	provider           *httptest.Server
	logs               string   // the operator's directory of Bedrock logs
	files              sync.Map // the provider's files of batches, by their path
	grpc, otlp, agents string   // addresses of the ports of gRPC
	sent               atomic.Int64
	doors              map[string]int
}

// TestPlantedPromptsStandNowhere sends twelve thousand payloads with fragments of
// prompts, whole, escaped, in base64, split over chunks, in headers, metadata,
// traces and errors, through every front door of a whole server, and searches
// every file and every record that it leaves behind, and what it said.
func TestPlantedPromptsStandNowhere(t *testing.T) {
	addrs, err := freeAddrs(4)
	if err != nil {
		t.Fatal(err)
	}
	w := &promptsWorld{plantedWorld: &plantedWorld{t: t}, proxy: "http://" + addrs[0], logs: engineTempDir(t), doors: map[string]int{}, grpc: addrs[1], otlp: addrs[2], agents: addrs[3]}
	w.provider = httptest.NewServer(http.HandlerFunc(w.provide))
	t.Cleanup(w.provider.Close)
	w.faultServer = startFaultServer(t, func(s *smokeServer) {
		s.args = append(s.args, "--proxy-listen", addrs[0], "--providers-private-networks", "--proxy-digests",
			"--bedrock-directory", w.logs, "--bedrock-interval-seconds", "1", "--log-level", "debug",
			"--grpc-listen", addrs[1], "--otlp-grpc-listen", addrs[2], "--otlp-http-listen", "", "--agents-listen", addrs[3])
	})
	w.api = &ledgerAPI{client.New(w.url(), w.token)}
	t.Cleanup(w.api.Close)
	t.Setenv("TALLYSTICK_URL", w.url())
	t.Setenv("TALLYSTICK_TOKEN", w.token)
	w.post("/v1/tenants:batchCreate", `{"tenant_ids":["`+plantedTenant+`"]}`, http.StatusOK)
	w.post("/v1/providers/keys", fmt.Sprintf(`{"tenant_id":%q,"provider":"openai","base_url":%q,"value":"sk-a-provider-key-of-a-test"}`, plantedTenant, w.provider.URL), http.StatusOK)
	w.post("/v1/providers/capture", fmt.Sprintf(`{"tenant_id":%q,"prompt_digests":true}`, plantedTenant), http.StatusOK)

	doors := []struct {
		name string
		n    int
		send func(from, n int)
	}{
		{"native", 2000, w.native}, {"bedrock upload", 2000, w.upload}, {"bedrock directory", 2000, w.directory}, {"proxy", 2000, w.calls},
		{"otlp", 1200, w.traces}, {"litellm", 600, w.litellm}, {"cloud events", 200, w.cloudEvents},
		{"otlp logs", 400, w.logRecords}, {"otlp by gRPC", 500, w.binary}, {"gRPC", 400, w.messages}, {"batch results", 600, w.batchResults}, {"agent", 100, w.samples},
	}
	from := 0
	for _, d := range doors {
		d.send(from, d.n)
		from += d.n
		w.doors[d.name] = d.n
	}
	if from != plantedPayloads || w.sent.Load() != plantedPayloads {
		t.Fatalf("%d payloads were planned and %d sent, want %d", from, w.sent.Load(), plantedPayloads)
	}
	// What may be kept was: all but half of the native ones, by both ways, and of the cloud events. An agent's are no calls.
	w.drain(int64(plantedPayloads - 2000/2 - 200/2 - 400/2 - 100))
	leaks := w.search()
	t.Logf("searched after %v", w.doors)
	fmt.Printf("edge: leaks=%d payloads=%d\n", leaks, from)
}

// native sends events as a careless producer would: every second batch holds a
// field that is not ours, or a known one with too much in it.
func (w *promptsWorld) native(from, n int) {
	const batch = 50
	for b := range n / batch {
		var events []string
		for i := range batch {
			k := from + b*batch + i
			q, err := json.Marshal(fragment(k))
			if err != nil {
				w.t.Fatal(err)
			}
			more := ""
			if b%2 == 1 {
				more = []string{
					`,"prompt":` + string(q), `,"messages":[{"content":` + string(q) + `}]`,
					`,"error_type":` + string(q) + `,"error_type":1`, `,"tags":{"x":` + strings.Replace(string(q), `"`, `"`+strings.Repeat("long ", 60), 1) + `}`,
					`,"status":` + string(q), `,"tokens":{` + string(q) + `:1}`, `,"latency_us":` + string(q), `,"team":"` + strings.Repeat(seed, 20) + `"`,
				}[i%8]
			}
			events = append(events, fmt.Sprintf(`{"event_id":"native-%d","tenant_id":%q,"occurred_at":%q,"provider":"openai","model":"gpt-5","tokens":{"input":5},"feature":%q%s}`,
				k, plantedTenant, time.Now().UTC().Format(time.RFC3339), fmt.Sprint(control, "native", k%64), more))
			w.sent.Add(1)
		}
		want := http.StatusAccepted
		if b%2 == 1 {
			want = http.StatusBadRequest
		}
		body := "[" + strings.Join(events, ",") + "]"
		w.clean(w.post("/v1/events:batch", body, want))
		if b%8 == 1 {
			w.clean(w.post("/v1/events:batch", body[:len(body)-40]+seed, http.StatusBadRequest)) // cut off
			w.clean(w.post("/v1/events:batch?"+url.Values{"q": {seed}}.Encode(), seed, http.StatusBadRequest))
		}
	}
}

// clean holds an answer of ours against the seed.
func (w *promptsWorld) clean(answer string) {
	w.t.Helper()
	if strings.Contains(answer, seed) {
		w.t.Errorf("an answer repeats a fragment: %.300s", answer)
	}
}

// records are lines of invocation logs with fragments in all their members.
func (w *promptsWorld) records(door string, from, n int) []byte {
	var b bytes.Buffer
	at := time.Now().UTC().Format(time.RFC3339)
	for k := from; k < from+n; k++ {
		w.sent.Add(1)
		text := fragment(k)
		q, err := json.Marshal(text)
		if err != nil {
			w.t.Fatal(err)
		}
		f := string(q)
		switch k % 4 {
		case 1:
			f = `"` + base64.StdEncoding.EncodeToString([]byte(text)) + `"`
		case 2:
			f = `"`
			for _, c := range text {
				f += fmt.Sprintf(`\u%04x`, c)
			}
			f += `"`
		}
		answer := `{"output":{"message":{"content":[{"text":` + f + `}]}},"usage":{"inputTokens":7,"outputTokens":3,"totalTokens":10},"stopReason":` + f + `}`
		operation := "Converse"
		if k%3 == 1 { // a stream, its text split over events
			operation = "InvokeModelWithResponseStream"
			answer = `[{"type":"content_block_delta","delta":{"text":"` + seed[:7] + `"}},{"type":"content_block_delta","delta":{"text":"` + seed[7:] + `"}},` +
				`{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":7,"outputTokenCount":3},"x":` + f + `}]`
		}
		more := ""
		if k%5 == 1 {
			more = `,"errorCode":"ValidationException","errorMessage":` + f
		}
		fmt.Fprintf(&b, `{"timestamp":%q,"requestId":"%s-%d","operation":%q,"modelId":"amazon.nova-lite-v1:0","accountId":"111122223333","unknown":%s,`+
			`"identity":{"arn":"arn:aws:sts::111122223333:assumed-role/app/s","note":%s},"requestMetadata":{"feature":%q,"prompt":%s,"note":%s,%s:"x"},`+
			`"input":{"inputBodyJson":{"messages":[{"content":%s}]},"inputContentType":%s},"output":{"outputBodyJson":%s}%s}`+"\n",
			at, strings.ReplaceAll(door, " ", "-"), k, operation, f, f, fmt.Sprint(control, door, k%64), quoted(text), quoted(text), quoted(text), f, f, answer, more)
		if k%50 == 1 {
			b.WriteString(`{"timestamp":` + f + `,"input":` + "\n" + seed + "\n")
		}
	}
	return b.Bytes()
}

func quoted(s string) string {
	b, _ := json.Marshal(s) // of a string
	return string(b)
}

// upload sends invocation logs as files.
func (w *promptsWorld) upload(from, n int) {
	for part := range 5 {
		body := w.records("upload", from+part*n/5, n/5)
		h := http.Header{ingest.TenantHeader: {plantedTenant}, bedrock.ObjectHeader: {fmt.Sprint("part", part)}}
		var r bedrock.Report
		if err := w.api.Upload(w.t.Context(), bedrock.UploadPath, h, bytes.NewReader(body), int64(len(body)), &r); err != nil {
			w.t.Fatal(err)
		}
		if r.Accepted != int64(n/5) || r.Malformed == 0 {
			w.t.Fatalf("uploaded: %+v", r)
		}
	}
}

// directory leaves invocation logs where a connection reads them.
func (w *promptsWorld) directory(from, n int) {
	if err := os.MkdirAll(filepath.Join(w.logs, "acme"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.logs, "acme", "a.jsonl"), w.records("folder", from, n), 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.cli(exitOK, "bedrock", "connect", "logs", "--tenant", plantedTenant, "--source", "directory", "--prefix", "acme")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out := w.cli(exitOK, "bedrock", "list", "--tenant", plantedTenant, "--json")
		w.clean(out)
		if strings.Contains(out, fmt.Sprintf(`"accepted":"%d"`, n)) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the directory was not read: %s", out)
		}
	}
}

// calls sends calls through the proxy: whole, streamed and failing, with fragments
// in bodies, headers and answers.
func (w *promptsWorld) calls(from, n int) {
	var senders sync.WaitGroup
	next := atomic.Int64{}
	for range 8 {
		senders.Go(func() {
			for k := int(next.Add(1)) - 1; k < n && !w.t.Failed(); k = int(next.Add(1)) - 1 {
				w.call(from + k)
			}
		})
	}
	senders.Wait()
}

func (w *promptsWorld) call(k int) {
	w.sent.Add(1)
	text := fragment(k)
	body := fmt.Sprintf(`{"model":"gpt-4o-mini","stream":%t,"user":%s,"messages":[{"role":"user","content":%s}],"metadata":{"prompt":%s}}`,
		k%4 == 1, quoted(text), quoted(text), quoted(text))
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.proxy+"/openai/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		w.t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Tallystick-Tenant", plantedTenant)
	req.Header.Set("X-Tallystick-Feature", fmt.Sprint(control, "proxy", k%64))
	req.Header.Set("X-Test-Case", fmt.Sprint(k%4))
	req.Header.Set("X-Prompt", url.QueryEscape(text))
	req.Header.Set("Cookie", "last="+seed)
	req.Header.Set("Helicone-Property-Prompt", url.QueryEscape(text))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if k%4 == 3 {
		return // the provider broke off
	}
	if err != nil || !bytes.Contains(answer, []byte(seed[:7])) {
		w.t.Errorf("call %d: %d %.200s %v", k, res.StatusCode, answer, err)
	}
}

// provide is a provider that says prompts back: in an answer, in a stream whose
// chunks split them, in an error, and in a stream that breaks off.
func (w *promptsWorld) provide(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if w.provideFile(rw, r) {
		return
	}
	text := quoted(fragment(0))
	rw.Header().Set("X-Echo", seed)
	switch r.Header.Get("X-Test-Case") {
	case "1", "3":
		rw.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(rw)
		for _, piece := range []string{seed[:7], seed[7:]} {
			fmt.Fprintf(rw, "data: {\"id\":\"c\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"delta\":{\"content\":%q}}]}\n\n", piece)
			_ = flush.Flush()
		}
		if r.Header.Get("X-Test-Case") == "3" {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(rw, "data: {\"id\":\"c\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"total_tokens\":13}}\n\ndata: [DONE]\n\n")
	case "2":
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(rw, `{"error":{"message":%s,"type":%s,"code":%s}}`, text, text, text)
	default:
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(rw, `{"id":"c","model":"gpt-4o-mini","choices":[{"message":{"content":%s},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}`, text)
	}
}

// search stops the server and looks for the seed in everything that it left. It
// returns in how many places it stands.
func (w *promptsWorld) search() (leaks int) {
	w.t.Helper()
	if _, err := w.stop(time.Minute); err != nil {
		w.t.Fatal(err)
	}
	bad, good := forms(seed), forms(control)[:1]
	places := map[string]bool{} // where what may be kept was found
	look := func(place, where string, b []byte) {
		if slices.ContainsFunc(bad, func(f []byte) bool { return bytes.Contains(b, f) }) {
			leaks++
			i := slices.IndexFunc(bad, func(f []byte) bool { return bytes.Contains(b, f) })
			at := bytes.Index(b, bad[i])
			w.t.Errorf("%s: %s holds a fragment: %q", place, where, b[max(0, at-80):min(len(b), at+80)])
		}
		if bytes.Contains(b, good[0]) {
			places[place] = true
		}
	}
	files := 0
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		place := d.Name()
		if rel, err := filepath.Rel(w.dataDir(), path); err == nil && !strings.HasPrefix(rel, "..") {
			place, _, _ = strings.Cut(rel, string(filepath.Separator))
		}
		look(place, path, b)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	records := w.searchTopics(look)
	// The search means something where it finds what may be kept.
	for _, place := range []string{"postgres", "clickhouse", "topic events", "topic entries", "topic telemetry"} {
		if !places[place] {
			w.t.Errorf("%s does not hold what it may hold: the search means nothing", place)
		}
	}
	w.t.Logf("searched %d files and %d records: %d leaks", files, records, leaks)
	return leaks
}

// searchTopics looks at every record of every topic, decompressed.
func (w *promptsWorld) searchTopics(look func(place, where string, b []byte)) (records int) {
	w.t.Helper()
	eachRecord(w.t, w.dataDir(), func(name string, p int, r *kafka.Record) {
		records++
		look(name, fmt.Sprintf("record %d of partition %d", r.Offset, p), slices.Concat(r.Key, []byte{0}, r.Value))
	})
	return records
}
