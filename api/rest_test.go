package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the answers into testdata")

// shownHeaders are the headers of an answer that the test files show.
var shownHeaders = []string{"Content-Type", "Allow", "Retry-After", "WWW-Authenticate", "X-Tallystick-Coverage"}

// TestREST runs the requests of testdata/*.txt. A case is a request line, its
// headers, an empty line with a body after it where there is one, "----", and
// the answer; cases end with "====".
func TestREST(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			h := testServer(t, nil).HTTPHandler()
			var out strings.Builder
			for c := range strings.SplitSeq(strings.TrimSuffix(string(text), "====\n"), "====\n") {
				request, want, _ := strings.Cut(c, "----\n")
				got := serve(t, h, request)
				if got != want && !*rewrite {
					t.Errorf("%s\ngot:\n%s\nwant:\n%s", request, got, want)
				}
				fmt.Fprintf(&out, "%s----\n%s====\n", request, got)
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// serve runs one request and writes its answer down.
func serve(t *testing.T, h http.Handler, text string) string {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimSpace(head), "\n")
	for len(lines) > 1 && strings.HasPrefix(lines[0], "#") {
		lines = lines[1:]
	}
	method, target, ok := strings.Cut(lines[0], " ")
	if !ok {
		t.Fatalf("no request line in %q", text)
	}
	r := httptest.NewRequest(method, target, strings.NewReader(strings.ReplaceAll(body, "LONG", strings.Repeat("x", 2000))))
	r.Header.Set("X-Request-Id", "test-request")
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ": ")
		if name == "token" {
			name, value = "Authorization", "Bearer "+value
		}
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var b strings.Builder
	fmt.Fprintln(&b, w.Code)
	for _, name := range shownHeaders {
		if v := w.Header().Get(name); v != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, v)
		}
	}
	fmt.Fprintf(&b, "\n%s", pretty(w.Body.Bytes()))
	if !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	if w.Header().Get("X-Request-Id") != "test-request" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v", lines[0], w.Header())
	}
	return b.String()
}

// pretty indents JSON, so that a diff shows fields.
func pretty(b []byte) string {
	var out bytes.Buffer
	if json.Indent(&out, b, "", "  ") != nil {
		return strings.ReplaceAll(string(b), "\r\n", "\n")
	}
	return out.String()
}
