package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// batchedCalls is how many lines the batch of TestBatchResults has.
const batchedCalls = 700

// TestBatchResults reads a batch's results through the proxy of a whole program: broken
// off in the middle, whole, again, and with another token. The ledger then has each call
// once, at the price of batches, and nothing in conflict.
func TestBatchResults(t *testing.T) {
	created := time.Now().Add(-time.Hour).Unix()
	var file strings.Builder
	for k := range batchedCalls {
		fmt.Fprintf(&file, `{"id":"batch_req_%[1]d","custom_id":"row-%[1]d","response":{"status_code":200,"request_id":"req_%[1]d","body":{"id":"chatcmpl-%[1]d","object":"chat.completion","created":%[2]d,`+
			`"model":"gpt-4o-2024-08-06","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1000,"completion_tokens":100,"total_tokens":1100}}},"error":null}`+"\n", k, created)
	}
	const late = `{"id":"batch_req_late","custom_id":"late","response":null,"error":{"code":"batch_expired","message":"too late"}}` + "\n"
	file.WriteString(late)
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/files/file-1/content":
			_, _ = io.WriteString(w, file.String())
		case "/v1/files/file-2/content":
			_, _ = io.WriteString(w, late)
		default:
			_, _ = fmt.Fprintf(w, `{"object":"file","purpose":"batch_output","created_at":%d}`, created+60)
		}
	}))
	defer provider.Close()
	w := newProvidersWorld(t)
	w.must("/v1/tenants:batchCreate", `{"tenant_ids":["acme"]}`, false)
	var callers []string
	for _, name := range []string{"one", "two"} {
		made := w.must("/v1/tokens", fmt.Sprintf(`{"tenant_id":"acme","name":%q,"scopes":["ingest"]}`, name), true)
		secret, _ := made["secret"].(string)
		callers = append(callers, secret)
	}
	w.must("/v1/providers/keys", fmt.Sprintf(`{"tenant_id":"acme","provider":"openai","base_url":%q,"value":"sk-none"}`, provider.URL), false)

	read := func(caller, id string, part int64) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.app.metering.addr+"/openai/v1/files/"+id+"/content", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+caller)
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(io.LimitReader(resp.Body, part))
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(file.String(), string(got)) || len(got) == 0 {
			t.Fatalf("%d: %d bytes, %v", resp.StatusCode, len(got), err)
		}
	}
	read(callers[0], "file-1", 100_000)
	for _, caller := range []string{callers[0], callers[0], callers[1]} {
		read(caller, "file-1", 1<<30)
	}
	// When the entry of what comes behind them is there, so is what became of theirs.
	read(callers[1], "file-2", 1<<30)
	var usage, failed, other int
	await(t, "the entries of the batch", time.Minute, func() bool {
		usage, failed, other = 0, 0, 0
		_, page := w.ask(w.admin, "GET", "/v1/ledger/entries?tenant_id=acme&page_size=1000", "", false)
		entries, _ := page["entries"].([]any)
		for _, e := range entries {
			switch entry, _ := e.(map[string]any); {
			case entry["kind"] == "usage" && entry["status"] == "ok" && entry["cost_usd"] == "0.001750000000":
				usage++
			case entry["kind"] == "usage" && entry["status"] == "error":
				failed++
			case entry["kind"] != "control" && entry["kind"] != "counters":
				other++
				t.Logf("%v", entry)
			}
		}
		return failed == 2
	})
	if usage != batchedCalls || other != 0 {
		t.Errorf("%d calls and %d other entries, want %d and none", usage, other, batchedCalls)
	}
}
