package clients

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// batches is a provider with one finished batch of each form.
type batches struct {
	answers map[string]string // by path

	mu    sync.Mutex // protects wrong
	wrong []string
}

// Of the batches: lines in each, and what each of the served ones used.
const (
	batchLines      = 25
	batchPrompt     = 11
	batchCompletion = 5
)

func newBatches() *batches {
	made := time.Now().Add(-time.Hour).UTC()
	var file, results strings.Builder
	for k := range batchLines - 1 {
		fmt.Fprintf(&file, `{"id":"batch_req_%d","custom_id":"r%d","response":{"status_code":200,"request_id":"req_%d","body":{"id":"chatcmpl-%d","object":"chat.completion","created":%d,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"Good."},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}},"error":null}`+"\n",
			k, k, k, k, made.Unix(), batchPrompt, batchCompletion, batchPrompt+batchCompletion)
		fmt.Fprintf(&results, `{"custom_id":"r%d","result":{"type":"succeeded","message":{"id":"msg_%d","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[{"type":"text","text":"Good."}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":%d,"output_tokens":%d,"service_tier":"batch"}}}}`+"\n",
			k, k, batchPrompt, batchCompletion)
	}
	file.WriteString(`{"id":"batch_req_last","custom_id":"last","response":null,"error":{"code":"batch_expired","message":"too late"}}` + "\n")
	results.WriteString(`{"custom_id":"last","result":{"type":"expired"}}` + "\n")
	return &batches{answers: map[string]string{
		"/v1/files/file-out":         fmt.Sprintf(`{"id":"file-out","object":"file","purpose":"batch_output","filename":"out.jsonl","bytes":%d,"created_at":%d,"status":"processed"}`, file.Len(), made.Unix()),
		"/v1/files/file-out/content": file.String(),
		"/v1/messages/batches/msgbatch_1": fmt.Sprintf(`{"id":"msgbatch_1","type":"message_batch","processing_status":"ended","created_at":%q,"ended_at":%q,"results_url":"https://api.anthropic.com/v1/messages/batches/msgbatch_1/results"}`,
			made.Format(time.RFC3339), made.Format(time.RFC3339)),
		"/v1/messages/batches/msgbatch_1/results": results.String(),
	}}
}

// ServeHTTP implements http.Handler.
func (b *batches) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, ok := b.answers[r.URL.Path]
	if r.Header.Get("Authorization") != "Bearer "+openAIKey && r.Header.Get("X-Api-Key") != anthropicKey || !ok {
		b.mu.Lock()
		b.wrong = append(b.wrong, r.Method+" "+r.URL.Path)
		b.mu.Unlock()
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/content") || strings.HasSuffix(r.URL.Path, "/results") {
		w.Header().Set("Content-Type", "application/x-jsonl")
	}
	_, _ = io.WriteString(w, answer)
}

// TestClientsBatches has each SDK read the results of a finished batch, in two
// languages, the second time as if the first had not been: each line is in the ledger
// once, and no SDK goes past the proxy to the address that Anthropic names.
func TestClientsBatches(t *testing.T) {
	if !wanted() {
		return
	}
	provider := newBatches()
	server := httptest.NewServer(provider)
	t.Cleanup(server.Close)
	s := startStack(t)
	s.prepare(t, server.URL)
	for _, c := range []sdk{
		{"py-openai", "python", "openai", s.proxy + "/openai/v1"},
		{"py-anthropic", "python", "anthropic", s.proxy + "/anthropic"},
		{"js-openai", "node", "openai", s.proxy + "/v1"},
		{"js-anthropic", "node", "anthropic", s.proxy + "/anthropic"},
		{"js-anthropic native", "node", "anthropic", s.proxy},
	} {
		id := map[string]string{"openai": "file-out", "anthropic": "msgbatch_1"}[c.provider]
		j := &job{ID: c.name, Method: "batch_results", Request: json.RawMessage(fmt.Sprintf(`{"id":%q}`, id)), Headers: map[string]string{"X-Tallystick-Team": "sdk"}}
		r := c.run(t, s, []*job{j})[0]
		want := used{Prompt: (batchLines - 1) * batchPrompt, Completion: (batchLines - 1) * batchCompletion}
		if !r.OK || r.Events != batchLines || r.Usage == nil || *r.Usage != want {
			t.Errorf("%s read %+v, used %+v", c.name, r, r.Usage)
		}
	}
	list := s.awaitEntries(t, 2*batchLines)
	got := map[string]used{}
	for i := range list {
		e := &list[i]
		u := got[e.Provider]
		got[e.Provider] = used{Prompt: u.Prompt + e.count("input"), Completion: u.Completion + e.count("output")}
	}
	for _, name := range []string{"openai", "anthropic"} {
		if want := (used{Prompt: (batchLines - 1) * batchPrompt, Completion: (batchLines - 1) * batchCompletion}); got[name] != want {
			t.Errorf("the ledger has %+v of %s, want %+v", got[name], name, want)
		}
	}
	if len(list) != 2*batchLines || len(provider.wrong) > 0 {
		t.Errorf("%d entries of %d lines; the provider complains of %q", len(list), 2*batchLines, provider.wrong)
	}
	fmt.Printf("clients: batch_lines=%d entries=%d provider_complaints=%d\n", 2*batchLines, len(list), len(provider.wrong))
}
