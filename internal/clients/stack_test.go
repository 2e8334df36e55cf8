package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// wanted reports that `make test/clients` runs the suite. Plain `go test` runs what
// needs no SDK.
func wanted() bool { return os.Getenv("TALLYSTICK_CLIENTS") != "" }

// tenantID is whose calls they are.
const tenantID = "clients"

// stack is the whole program in a process of its own with embedded engines, a
// tenant, and a token of it.
type stack struct {
	url, proxy, grpc string
	root             string // the administrator's token
	token            string // the tenant's, with the scopes ingest and read
	tokenID          string
	log              string // path of what it wrote
	dir              string
}

// startStack starts bin/tallystick, which make has built. Further arguments are
// flags of `tallystick up`.
func startStack(t *testing.T, flags ...string) *stack {
	t.Helper()
	dir := t.TempDir()
	// The embedded Postgres runs as another user when we are root.
	for d := dir; d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	settings := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(settings, []byte("target: all\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &stack{
		url: "http://" + freeAddr(t), proxy: "http://" + freeAddr(t), grpc: freeAddr(t), log: filepath.Join(dir, "log"), dir: dir,
	}
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{
		"up", "--config", settings, "--data-dir", filepath.Join(dir, "data"), "--kafka-partitions", "2",
		"--http-listen", strings.TrimPrefix(s.url, "http://"), "--grpc-listen", s.grpc,
		"--proxy-listen", strings.TrimPrefix(s.proxy, "http://"), "--providers-private-networks",
	}, flags...)
	cmd := exec.Command(filepath.Join("..", "..", "bin", "tallystick"), args...) //nolint:gosec // the program under test
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // else it has ended already
		killer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		<-ended
		killer.Stop()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(s.log)
			t.Logf("the program's last words:\n%s", text[max(0, len(text)-3000):])
		}
	})
	await(t, "the program", func() bool {
		select {
		case <-ended:
			t.Fatal("the program ended")
		default:
		}
		status, _, err := s.do(t.Context(), http.MethodGet, "/readyz", "", nil)
		return err == nil && status == http.StatusOK
	})
	token, err := os.ReadFile(filepath.Join(dir, "data", "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	s.root = strings.TrimSpace(string(token))
	s.must(t, http.MethodPost, "/v1/tenants:batchCreate", map[string]any{"tenant_ids": []string{tenantID}}, nil)
	s.token, s.tokenID = s.newToken(t, "clients")
	return s
}

// newToken makes a token of the tenant that may send and read.
func (s *stack) newToken(t *testing.T, name string) (secret, id string) {
	t.Helper()
	var made struct {
		Secret string
		Token  struct {
			ID string `json:"token_id"`
		}
	}
	s.must(t, http.MethodPost, "/v1/tokens", map[string]any{"tenant_id": tenantID, "name": name, "scopes": []string{"ingest", "read"}}, &made)
	return made.Secret, made.Token.ID
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// await asks again until it is so.
func await(t *testing.T, what string, so func() bool) {
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

// do makes one request to the API with a bearer token.
func (s *stack) do(ctx context.Context, method, path, token string, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// must makes a request of the administrator that has to work, and decodes its answer.
func (s *stack) must(t *testing.T, method, path string, body, answer any) {
	t.Helper()
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	status, text, err := s.do(t.Context(), method, path, s.root, raw)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s: %d %s %v", method, path, status, text, err)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// entry is what the ledger has of a call.
type entry struct {
	Seq         string            `json:"seq"`
	Kind        string            `json:"kind"`
	EventID     string            `json:"event_id"`
	Provider    string            `json:"provider"`
	Model       string            `json:"model"`
	Status      string            `json:"status"`
	CostUSD     *string           `json:"cost_usd"`
	Tokens      map[string]string `json:"tokens"`
	Attribution map[string]string `json:"attribution"`
}

// count is the entry's tokens of a class.
func (e *entry) count(class string) int64 {
	n, _ := strconv.ParseInt(e.Tokens[class], 10, 64) // a class that is left out is 0
	return n
}

// entries are the tenant's entries of usage.
func (s *stack) entries(t *testing.T) (list []entry) {
	t.Helper()
	for token := ""; ; {
		var page struct {
			Entries []entry `json:"entries"`
			Next    string  `json:"next_page_token"`
		}
		q := url.Values{"tenant_id": {tenantID}, "page_size": {"1000"}, "page_token": {token}}
		s.must(t, http.MethodGet, "/v1/ledger/entries?"+q.Encode(), nil, &page)
		for i := range page.Entries {
			if page.Entries[i].Kind == "usage" {
				list = append(list, page.Entries[i])
			}
		}
		if token = page.Next; token == "" {
			return list
		}
	}
}

// awaitEntries waits until the ledger has that many entries of usage or gets no more,
// and a little for more that should not be there.
func (s *stack) awaitEntries(t *testing.T, n int) (list []entry) {
	t.Helper()
	changed := time.Now()
	await(t, fmt.Sprintf("%d entries", n), func() bool {
		before := len(list)
		if list = s.entries(t); len(list) > before {
			changed = time.Now()
		}
		return len(list) >= n || time.Since(changed) > quietTime
	})
	time.Sleep(time.Second) // what would come twice comes now
	return s.entries(t)
}

// quietTime is after how long without a new entry none comes any more.
const quietTime = 20 * time.Second
