package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What the command prints and how it ends; what it finds is TestTamper's.
func TestLedgerCompare(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		status       int
		args         []string
		code         int
		says         string
	}{
		{"all agree", `{"differences":[]}`, 200, nil, exitOK, "1 ledgers agree"},
		{"rewritten", `{"differences":[{"detector":"published","seq":"17","message":"the stored entry is not the one that was published"}]}`, 200, nil,
			exitIntegrity, "published     17"},
		{"as JSON", `{"differences":[{"detector":"reports","seq":"0","message":"hour"}]}`, 200, []string{"-o", "json"}, exitIntegrity, `"detector": "reports"`},
		{"store away", `{"title":"unavailable","status":503,"detail":"reports lag"}`, 503, nil, exitUnavailable, ""},
		{"no such form", `{}`, 200, []string{"-o", "yaml"}, exitUsage, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v1/ledger:compare" || r.Method != http.MethodPost {
					t.Errorf("%s %s", r.Method, r.URL.Path)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.answer))
			}))
			defer srv.Close()
			t.Setenv("TALLYSTICK_TOKEN", "sesame")
			var out, errs bytes.Buffer
			root := newRootCommand()
			root.SetOut(&out)
			root.SetErr(&errs)
			root.SetArgs(append([]string{"ledger", "compare", "--tenant", "acme", "--url", srv.URL}, c.args...))
			err := root.ExecuteContext(t.Context())
			got := exitOK
			if err != nil {
				got = exitCode(err)
			}
			if got != c.code {
				t.Errorf("exit code %d, want %d: %v", got, c.code, err)
			}
			if !strings.Contains(out.String(), c.says) {
				t.Errorf("printed %q, want %q", out.String(), c.says)
			}
		})
	}
}
