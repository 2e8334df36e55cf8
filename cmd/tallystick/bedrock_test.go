package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/bedrock"
)

// Files of a folder are sent one by one under their names in it; hidden ones and
// large bodies are not. The summary adds them up.
func TestBedrockImportSendsEachFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "AWSLogs")
	for name, text := range map[string]string{
		"1/a.json": "first", "1/b c.json.gz": "second", ".hidden": "no", "1/data/x_output.json": "no", ".git/c": "no",
	} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var sent []string
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		sent = append(sent, strings.Join([]string{r.URL.Path, r.Header.Get("Authorization"), r.Header.Get(ingest.TenantHeader), r.Header.Get(bedrock.ObjectHeader), string(b)}, " "))
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(bedrock.Report{
			Records: 2, Accepted: 1, Malformed: 1, Damaged: true, Refused: map[string]int64{"too_old.occurred_at": 1},
			Statuses: map[string]int64{"ok": 2}, Tokens: map[string]int64{"input": 10},
		})
	}))
	defer server.Close()
	t.Setenv("TALLYSTICK_URL", server.URL)
	t.Setenv("TALLYSTICK_TOKEN", "secret")
	run := func(args ...string) (string, int) {
		var out strings.Builder
		root := newRootCommand()
		root.SetArgs(append([]string{"bedrock", "import", "--tenant", "acme"}, args...))
		root.SetOut(&out)
		root.SetErr(io.Discard)
		if err := root.ExecuteContext(t.Context()); err != nil {
			return out.String(), exitCode(err)
		}
		return out.String(), exitOK
	}
	out, code := run(dir)
	want := []string{
		"/v1/bedrock/logs Bearer secret acme AWSLogs%2F1%2Fa.json first", "/v1/bedrock/logs Bearer secret acme AWSLogs%2F1%2Fb%20c.json.gz second",
	}
	if code != exitOK || !slices.Equal(sent, want) {
		t.Errorf("exit code %d, sent %q, want %q", code, sent, want)
	}
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	summary := []string{
		"files 2", "files cut off or damaged 2", "records 4", "ok 4", "accepted 2 durable; those that the ledger has already are dropped there",
		"refused, too_old.occurred_at 2", "no records 2 lines that are no log record", "tokens, input 20",
	}
	if !slices.Equal(lines, summary) {
		t.Errorf("printed %q\nwant    %q", lines, summary)
	}
	if out, code := run("--json", filepath.Join(dir, "1", "a.json")); code != exitOK || !strings.Contains(out, `"accepted":1`) {
		t.Errorf("as JSON: %d %s", code, out)
	}
	if _, code := run(filepath.Join(dir, "nothing")); code != exitUsage {
		t.Errorf("no file: exit code %d", code)
	}
	status = http.StatusServiceUnavailable
	if _, code := run(dir); code != exitUnavailable {
		t.Errorf("server away: exit code %d", code)
	}
}

// Every bedrock command has a help text, and none takes a secret.
func TestBedrockCommands(t *testing.T) {
	var names []string
	for _, c := range newBedrockCommand().Commands() {
		if c.Short == "" {
			t.Errorf("%s has no help", c.Name())
		}
		names = append(names, c.Name())
	}
	if want := []string{"connect", "import", "list", "metadata", "pause", "remove", "resume"}; !slices.Equal(names, want) {
		t.Errorf("commands %q, want %q", names, want)
	}
}
