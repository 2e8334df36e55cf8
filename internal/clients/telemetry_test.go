package clients

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// talker is a provider whose every answer uses other numbers of tokens, and repeats
// what it was asked.
type talker struct {
	mu    sync.Mutex // protects what follows
	calls int
	used  map[used]int // how often an answer used so many tokens
	fails int
}

// ServeHTTP implements http.Handler.
func (p *talker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Model    string
		Stream   bool
		Messages []struct{ Content string }
	}
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, "no JSON", http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	p.calls++
	n := p.calls
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if asked.Model == "fails" {
		p.count(&p.fails)
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"error":{"message":"planted-error","type":"requests","code":"rate_limit_exceeded"}}`)
		return
	}
	u := used{Prompt: int64(100 + n), Completion: int64(10 + n)}
	details := fmt.Sprintf(`"prompt_tokens_details":{"cached_tokens":%d},"completion_tokens_details":{"reasoning_tokens":%d}`, n, n%7)
	if strings.HasSuffix(r.URL.Path, "/embeddings") {
		u.Completion = 0
		p.note(u)
		fmt.Fprintf(w, `{"object":"list","model":"text-embedding-3-small","data":[{"object":"embedding","index":0,"embedding":"AACAPw=="}],"usage":{"prompt_tokens":%d,"total_tokens":%d}}`, u.Prompt, u.Prompt)
		return
	}
	p.note(u)
	usage := fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,%s}`, u.Prompt, u.Completion, u.Prompt+u.Completion, details)
	const head = `{"id":"chatcmpl-same","created":1,"model":"gpt-4o-mini-2024-07-18","object":"chat.completion`
	if asked.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: %s.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"planted-answer\"},\"finish_reason\":null}]}\n\n", head)
		fmt.Fprintf(w, "data: %s.chunk\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n", head)
		fmt.Fprintf(w, "data: %s.chunk\",\"choices\":[],\"usage\":%s}\n\ndata: [DONE]\n\n", head, usage)
		return
	}
	fmt.Fprintf(w, `%s","choices":[{"index":0,"message":{"role":"assistant","content":"planted-answer"},"finish_reason":"stop"}],"usage":%s}`, head, usage)
}

func (p *talker) count(n *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n++
}

func (p *talker) note(u used) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[u]++
}

// The OpenAI SDK under OpenTelemetry's instrumentation, and LiteLLM's proxy with its
// generic callback, report to us, some of their calls through the metering proxy. The
// ledger has each call once, with the tokens that the provider stated, and no text that
// was planted in a prompt, an answer or an error.
func TestClientsTelemetry(t *testing.T) {
	if !wanted() {
		t.Log("make test/clients runs it")
		return
	}
	otlpGRPC, otlpHTTP := freeAddr(t), freeAddr(t)
	s := startStack(t, "--otlp-grpc-listen", otlpGRPC, "--otlp-http-listen", otlpHTTP)
	provider := &talker{used: map[used]int{}}
	server := httptest.NewServer(provider)
	defer server.Close()

	const calls = 24
	otel := filepath.Join(os.Getenv("TALLYSTICK_CLIENTS"), "otel", "emit.py")
	runPython(t, s, "otel", nil, otel, server.URL, "http://"+otlpHTTP, "http", fmt.Sprint(calls))
	runPython(t, s, "otel", []string{"SEMCONV=gen_ai_latest_experimental"}, otel, server.URL, "http://"+otlpGRPC, "grpc", fmt.Sprint(calls))
	lite, key := startLiteLLM(t, s, server.URL)
	for i := range calls {
		callLiteLLM(t, lite, key, "", i)
	}

	s.must(t, http.MethodPost, "/v1/providers/keys", map[string]any{"tenant_id": tenantID, "provider": "openai", "base_url": server.URL, "value": "sk-test"}, nil)
	runPython(t, s, "otel", []string{"PROVIDER_KEY=" + s.token}, otel, s.proxy+"/openai", "http://"+otlpHTTP, "http", fmt.Sprint(calls))
	for i := range calls {
		callLiteLLM(t, lite, key, "metered-", i)
	}
	entries := s.awaitEntries(t, 5*calls)
	checkTelemetry(t, provider, entries, 5*calls)
	leaks := planted(t, s)
	fmt.Printf("clients: telemetry_calls=%d entries=%d otlp=%d litellm=%d also_proxied=%d leaks=%d\n", provider.calls, len(entries), 3*calls, 2*calls, 2*calls, leaks)
}

// checkTelemetry holds the ledger against what the provider answered.
func checkTelemetry(t *testing.T, provider *talker, entries []entry, want int) {
	t.Helper()
	if provider.calls != want || len(entries) != want {
		t.Errorf("the provider had %d calls and the ledger has %d entries, %d expected", provider.calls, len(entries), want)
	}
	left, failed := provider.used, provider.fails
	for i := range entries {
		e := &entries[i]
		if e.Provider != "openai" || e.Attribution["team"] != "telemetry" {
			t.Errorf("of whom is %+v", e)
		}
		if e.Status == "error" {
			failed--
			continue
		}
		u := used{
			Prompt:     e.count("input") + e.count("cache_read"),
			Completion: e.count("output") + e.count("reasoning"),
		}
		if left[u]--; left[u] < 0 {
			t.Errorf("the provider did not answer with %+v: %+v", u, e)
		}
	}
	if failed != 0 {
		t.Errorf("%d failed calls too few in the ledger", failed)
	}
	for u, n := range left {
		if n != 0 {
			t.Errorf("an answer with %+v is in the ledger %d times too few", u, n)
		}
	}
}

func runPython(t *testing.T, s *stack, venv string, env []string, args ...string) {
	t.Helper()
	python := filepath.Join(os.Getenv("TALLYSTICK_CLIENTS"), "venv", venv, "bin", "python")
	cmd := exec.CommandContext(t.Context(), python, args...) //nolint:gosec // of this repository
	cmd.Env = append(os.Environ(), append(env, "TALLYSTICK_TOKEN="+s.token, "NO_PROXY=127.0.0.1")...)
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("Failed to export")) {
		t.Fatalf("%s: %v: %s", args[0], err, out[max(0, len(out)-2000):])
	}
}

// startLiteLLM starts LiteLLM's proxy and returns its URL and the key that it wants.
func startLiteLLM(t *testing.T, s *stack, provider string) (url, key string) {
	t.Helper()
	here := os.Getenv("TALLYSTICK_CLIENTS")
	addr := freeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	log, err := os.Create(filepath.Join(t.TempDir(), "litellm.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(here, "venv", "litellm", "bin", "litellm"), //nolint:gosec // of this repository
		"--config", filepath.Join(here, "litellm", "config.yaml"), "--host", "127.0.0.1", "--port", port)
	key = "sk-" + rand.Text() + rand.Text()
	cmd.Env = append(os.Environ(), "LITELLM_MASTER_KEY="+key, "PROVIDER_URL="+provider+"/v1", "PROXY_URL="+s.proxy+"/openai/v1", "PROXY_KEY="+s.token, "NO_PROXY=127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_TELEMETRY=False",
		"GENERIC_LOGGER_ENDPOINT="+s.url+"/v1/callbacks/litellm", "GENERIC_LOGGER_HEADERS=Authorization=Bearer "+s.token)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children of its own
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("LiteLLM's last words:\n%s", text[max(0, len(text)-3000):])
		}
	})
	url = "http://" + addr
	await(t, "LiteLLM", func() bool {
		resp, err := http.Get(url + "/health/liveliness")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return url, key
}

// callLiteLLM makes the i-th call through LiteLLM; way is "" or "metered-".
func callLiteLLM(t *testing.T, url, key, way string, i int) {
	t.Helper()
	model, fails := strings.TrimSuffix(cmp.Or(way, "fast"), "-"), i%4 == 3
	if fails {
		model = way + "fails"
	}
	body, err := json.Marshal(map[string]any{
		"model": model, "stream": i%4 == 1, "messages": []map[string]string{{"role": "user", "content": fmt.Sprint("planted-prompt-", i)}},
		"metadata": map[string]any{"spend_logs_metadata": map[string]string{"team": "telemetry"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(resp.Body); err != nil || (resp.StatusCode == http.StatusOK) == fails {
		t.Fatalf("call %d: %d %s %v", i, resp.StatusCode, answer.Bytes(), err)
	}
}

// planted counts the files of the stack in which something planted stands.
func planted(t *testing.T, s *stack) (leaks int) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // the engines delete files while we look
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		files++
		for _, text := range []string{"planted-prompt", "planted-answer", "planted-error"} {
			if bytes.Contains(content, []byte(text)) {
				leaks++
				t.Errorf("%q stands in %s", text, path)
			}
		}
		return nil
	})
	if err != nil || files < 20 {
		t.Errorf("looked at %d files: %v", files, err)
	}
	return leaks
}
