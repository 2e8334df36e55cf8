package isolation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/config"
)

// program is the whole of Tallystick, running in a process of its own with
// embedded engines, and two tenants that have data.
type program struct {
	url, grpc string
	root      string            // the administrator's token
	tokens    map[string]string // of each tenant, with every scope
	log       string            // path of what it wrote
}

// mark is a text that stands in the data of one tenant and nowhere else. No
// payload has it.
func mark(tenant string) string { return "qzx7" + strings.ToUpper(tenant) + "k3v9" }

// startProgram starts the binary that `make isolation` built.
func startProgram(t *testing.T) *program {
	t.Helper()
	binary := os.Getenv("TALLYSTICK_ISOLATION_BINARY")
	if binary == "" {
		t.Fatal("TALLYSTICK_ISOLATION_BINARY does not name the built program; run `make isolation`")
	}
	dir := t.TempDir()
	// The embedded Postgres runs as another user when we are root.
	for d := dir; d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	httpPort, grpcPort := freePort(t), freePort(t)
	settings := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(settings, []byte("target: all\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &program{url: fmt.Sprintf("http://127.0.0.1:%d", httpPort), grpc: fmt.Sprintf("127.0.0.1:%d", grpcPort), tokens: map[string]string{}, log: filepath.Join(dir, "log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "up", "--config", settings, "--data-dir", filepath.Join(dir, "data"), "--kafka-partitions", "2", "--checkpoints-interval-seconds", "1",
		"--http-listen", strings.TrimPrefix(p.url, "http://"), "--grpc-listen", p.grpc)
	cmd.Env = append(os.Environ(), config.FreePorts()...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // else it has ended already
		killer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		killer.Stop()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("the program's last words:\n%s", text[max(0, len(text)-3000):])
		}
	})
	p.await(t, "the program", func() bool {
		status, _, err := p.do(t.Context(), http.MethodGet, "/readyz", "", nil)
		return err == nil && status == http.StatusOK
	})
	token, err := os.ReadFile(filepath.Join(dir, "data", "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	p.root = strings.TrimSpace(string(token))
	return p
}

// await asks again until it is so.
func (p *program) await(t *testing.T, what string, so func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var httpClient = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}

// do makes one request with a bearer token.
func (p *program) do(ctx context.Context, method, path, token string, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// must makes a request that has to work and decodes its answer.
func (p *program) must(t *testing.T, method, path, token string, body any, answer any) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodGet {
		raw = nil
	}
	status, text, err := p.do(t.Context(), method, path, token, raw)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s: %d %s %v", method, path, status, text, err)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

const plantedEvents = 12

// plant makes the two tenants, with everything that a tenant can have and the
// tenant's mark in all of it.
func (p *program) plant(t *testing.T) {
	t.Helper()
	p.must(t, http.MethodPost, "/v1/tenants:batchCreate", p.root, map[string]any{"tenant_ids": []string{intruder, victim}}, nil)
	for _, id := range []string{intruder, victim} {
		var made struct{ Secret string }
		p.must(t, http.MethodPost, "/v1/tokens", p.root, map[string]any{"tenant_id": id, "name": mark(id),
			"scopes": []string{"read", "ingest", "export", "audit", "admin", "decrypt"}}, &made)
		p.tokens[id] = made.Secret
		token, m := made.Secret, mark(id)
		p.must(t, http.MethodPost, "/v1/confidential-tags", token, map[string]any{"tenant_id": id, "tag_keys": []string{"sealed-" + strings.ToLower(m)}}, nil)
		p.must(t, http.MethodPost, "/v1/secrets", token, map[string]any{"tenant_id": id, "kind": "provider_key", "name": m, "value": "sk-" + m + "-value"}, nil)
		p.must(t, http.MethodPost, "/v1/providers/keys", token, map[string]any{"tenant_id": id, "provider": strings.ToLower(m), "base_url": "https://" + strings.ToLower(m) + ".com", "value": "sk-" + m + "-provider-key"}, nil)
		p.must(t, http.MethodPost, "/v1/providers/switches", token, map[string]any{"tenant_id": id, "scope": "team", "subject": m, "reason": m}, nil)
		p.must(t, http.MethodPost, "/v1/providers/limits", token, map[string]any{"tenant_id": id, "key_id": "tok_" + m, "tokens_per_minute": 1}, nil)
		p.must(t, http.MethodPost, "/v1/providers/caps", token, map[string]any{"tenant_id": id, "scope": "team", "subject": m, "usd_per_month": "1"}, nil)
		var events []map[string]any
		for i := range plantedEvents {
			events = append(events, map[string]any{"event_id": fmt.Sprintf("%s-%d", m, i), "occurred_at": time.Now().UTC().Format(time.RFC3339),
				"provider": "openai", "model": "gpt-4o", "team": m, "service": m, "feature": m, "agent": m, "user": m + "@example.com", "end_customer": m,
				"environment": m, "region": m, "operation": strings.ToLower(m), "producer_id": m, "producer_epoch": 1, "producer_seq": i + 1,
				"tags": map[string]string{"k": m, "sealed-" + strings.ToLower(m): m}, "tokens": map[string]int{"input": 1000, "output": 100}})
		}
		p.must(t, http.MethodPost, "/v1/events:batch", token, map[string]any{"events": events}, nil)
	}
	for _, id := range []string{intruder, victim} {
		p.await(t, "the reports of "+id, func() bool { return p.requests(t, id) == fmt.Sprint(plantedEvents) })
		p.await(t, "a checkpoint of "+id, func() bool {
			status, answer, err := p.do(t.Context(), http.MethodGet, "/v1/ledger/checkpoint", p.tokens[id], nil)
			var c struct{ Size string }
			return err == nil && status == http.StatusOK && json.Unmarshal(answer, &c) == nil && len(c.Size) > 1 // of entries 1 to 10 at least
		})
	}
}

// requests is how many events a tenant's report counts.
func (p *program) requests(t *testing.T, id string) string {
	t.Helper()
	var summary struct{ Totals struct{ Requests string } }
	p.must(t, http.MethodPost, "/v1/reports/summary:query", p.tokens[id], map[string]any{"tenant_id": id, "window": map[string]string{"name": "all"}}, &summary)
	return summary.Totals.Requests
}
