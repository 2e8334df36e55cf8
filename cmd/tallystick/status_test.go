package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tallystick/tallystick/internal/client"
)

const testPipeline = `{"ledger_lag":"12","publish_lag":"0","analytics_lag":"3400","entries":"1234567","accepted":"7","refused":"0",
"duplicates":"480","rejected":"2","unpriced":"31","cost_usd":"4411.908234298000","ingest_rate":50.04,"ledger_rate":49.96,"analytics_rate":0,"partitions":[],"halted":%s}`

// statusServer answers as a running server; halted is a JSON list.
func statusServer(t *testing.T, halted string) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" && r.Header.Get("Authorization") != "Bearer tsk_0123456789abcdefghijk" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"title":"Unauthorized","detail":"a bearer token is needed"}`)
			return
		}
		switch r.URL.Path {
		case "/readyz":
			_, _ = io.WriteString(w, `{"status":"ready","dependencies":[{"name":"postgres","state":"ok"},{"name":"kafka","state":"ok"}]}`)
		case "/v1/pipeline":
			_, _ = io.WriteString(w, strings.Replace(testPipeline, "%s", halted, 1))
		case "/v1/tenants":
			_, _ = io.WriteString(w, `{"tenants":[{"tenant_id":"new"},{"tenant_id":"small"},{"tenant_id":"large"}],"next_page_token":""}`)
		case "/v1/ledger/head":
			heads := map[string]string{"small": "7", "large": "54321"}
			tenant := r.URL.Query().Get("tenant_id")
			if heads[tenant] == "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = io.WriteString(w, `{"tenant_id":"`+tenant+`","seq":"`+heads[tenant]+`","chain_hash":"0123456789abcdef0123"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func runStatusCommand(ctx context.Context, args ...string) (stdout string, err error) {
	cmd := newStatusCommand()
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	err = cmd.ExecuteContext(ctx)
	return out.String(), err
}

func tokenDir(t *testing.T, token string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, adminTokenFile), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStatusOnce(t *testing.T) {
	t.Setenv("TALLYSTICK_TOKEN", "")
	srv, dir := statusServer(t, `["partition 3: disk"]`), tokenDir(t, "tsk_0123456789abcdefghijk")
	out, err := runStatusCommand(t.Context(), "--url", srv.URL, "--data-dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	const want = `
  events/s     ingest 50.0   ledger 50.0   ClickHouse 0.0
  lag          ledger 12   publish 0   ClickHouse 3,400
  entries      1,234,567   (480 duplicates, 2 rejected, 31 unpriced)
  ledger head  large  entry 54,321  0123456789abcdef
  cost so far  4,411.908234298000 USD
  engines      postgres ok   kafka ok
  halted       partition 3: disk
`
	if out != want {
		t.Errorf("printed\n%s\nwant\n%s", out, want)
	}
	out, err = runStatusCommand(t.Context(), "--url", srv.URL, "--data-dir", dir, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var st status
	if err := json.Unmarshal([]byte(out), &st); err != nil || !st.Ready || st.Pipeline.Entries != 1234567 || st.Head.Seq != 54321 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestStatusExitCodes(t *testing.T) {
	srv, good, bad := statusServer(t, "[]"), tokenDir(t, "tsk_0123456789abcdefghijk"), tokenDir(t, "tsk_abcdefghijk0123456789")
	for name, c := range map[string]struct {
		args []string
		want int
	}{
		"ok":           {[]string{"--url", srv.URL, "--data-dir", good}, exitOK},
		"token file":   {[]string{"--url", srv.URL, "--data-dir", bad, "--token-file", filepath.Join(good, adminTokenFile)}, exitOK},
		"wrong token":  {[]string{"--url", srv.URL, "--data-dir", bad}, exitAuth},
		"no token":     {[]string{"--url", srv.URL, "--data-dir", t.TempDir()}, exitAuth},
		"server away":  {[]string{"--url", "http://127.0.0.1:1", "--data-dir", good}, exitUnavailable},
		"no such form": {[]string{"--url", srv.URL, "--data-dir", good, "-o", "xml"}, exitUsage},
		"no such path": {[]string{"--url", srv.URL + "/elsewhere", "--data-dir", good}, exitNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TALLYSTICK_TOKEN", "")
			_, err := runStatusCommand(t.Context(), c.args...)
			code := exitOK
			if err != nil {
				code = exitCode(err)
			}
			if code != c.want {
				t.Errorf("exit code %d (%v), want %d", code, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "tsk_") {
				t.Errorf("the error shows a token: %v", err)
			}
		})
	}
}

func TestStatusLine(t *testing.T) {
	source := &statusSource{api: client.New(statusServer(t, "[]").URL, "tsk_0123456789abcdefghijk")}
	st, err := source.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const want = "status: ingest_per_s=50.0 ledger_per_s=50.0 clickhouse_per_s=0.0 ledger_lag=12 publish_lag=0 clickhouse_lag=3400 entries=1234567 cost_usd=4411.908234298000 head=large/54321/0123456789abcdef engines=ok"
	if got := st.line(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	st.Engines[1].State = "unavailable"
	if got := st.line(); !strings.Contains(got, " engines=kafka_unavailable") {
		t.Errorf("%s", got)
	}
}

// A block is drawn over the one before, without colours where NO_COLOR is set,
// and no line is wider than the terminal.
func TestScreen(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	var out bytes.Buffer
	s := newScreen(&out)
	for _, lines := range [][]string{{"a", "b", "c"}, {"d"}} {
		if err := s.draw(lines); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	const want = "\x1b[?25la\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J\x1b[?25l\x1b[3A\rd\x1b[K\n\x1b[J\x1b[?25h"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	st := &status{Pipeline: &client.Pipeline{CostUSD: "1.000000000000", Halted: []string{strings.Repeat("ä", 100)}}}
	for _, l := range st.lines(s.colour, 40) {
		if strings.Contains(l, "\x1b") || utf8.RuneCountInString(l) > 40 {
			t.Errorf("%q", l)
		}
	}
}

func TestGroup(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", -12: "-12"} {
		if got := group(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	for text, want := range map[string]string{"1234.500000000000": "1,234.500000000000", "7": "7", "x": "x"} {
		if got := groupDecimal(text); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
}
