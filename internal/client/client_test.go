package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const testToken = "tsk_secret"

// server answers every request by answer, which sees the body.
func server(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, body string)) *Client {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if got := r.Header.Get("Authorization"); got != "Bearer "+testToken {
			t.Errorf("authorization %q", got)
		}
		answer(w, r, string(body))
	}))
	t.Cleanup(srv.Close)
	c := New(srv.URL+"/", testToken)
	t.Cleanup(c.Close)
	return c
}

func TestEntriesPages(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request, _ string) {
		q := r.URL.Query()
		if r.URL.Path != "/v1/ledger/entries" || q.Get("tenant_id") != "a&b" || q.Get("page_size") != "1000" {
			t.Errorf("asked for %s", r.URL)
		}
		next := map[string]string{"": "p2", "p2": "p3", "p3": ""}[q.Get("page_token")]
		n := map[string]int{"": 1, "p2": 3, "p3": 5}[q.Get("page_token")]
		_, _ = fmt.Fprintf(w, `{"entries":[{"seq":"%d","kind":"usage","cost_usd":"0.5","tokens":{"input":"7"},"occurred_at":"2026-01-01T00:00:00.5Z"},{"seq":"%d","cost_usd":null,"occurred_at":null}],"next_page_token":"%s"}`, n, n+1, next)
	})
	var seqs []string
	err := c.Entries(t.Context(), "a&b", func(e *Entry) error {
		cost := "null"
		if e.CostUSD != nil {
			cost = *e.CostUSD
		}
		seqs = append(seqs, fmt.Sprintf("%d:%s:%d:%t", e.Seq, cost, e.Tokens["input"], e.OccurredAt != nil))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = "1:0.5:7:true 2:null:0:false 3:0.5:7:true 4:null:0:false 5:0.5:7:true 6:null:0:false"
	if got := strings.Join(seqs, " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	enough := errors.New("enough")
	if err := c.Entries(t.Context(), "a&b", func(*Entry) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

func TestTenantsPages(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request, _ string) {
		if r.URL.Query().Get("page_token") == "" {
			_, _ = io.WriteString(w, `{"tenants":[{"tenant_id":"a","created_at":null,"partition":3}],"next_page_token":"x"}`)
			return
		}
		_, _ = io.WriteString(w, `{"tenants":[{"tenant_id":"b","partition":0}],"next_page_token":""}`)
	})
	got, err := c.Tenants(t.Context())
	if err != nil || len(got) != 2 || got[0] != (Tenant{"a", 3}) || got[1] != (Tenant{"b", 0}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestReportsAreAskedFor(t *testing.T) {
	var path, asked string
	c := server(t, func(w http.ResponseWriter, r *http.Request, body string) {
		path, asked = r.URL.Path, body
		_, _ = io.WriteString(w, `{"totals":{"cost_usd":"1.000000000000","requests":"2"},"buckets":["2026-01-01T00:00:00Z"],"series":[{"cost_usd":["1"],"requests":["2"]}],"groups":[{"group":["x",""]}],"coverage":{"to_seq":"9","exact":true}}`)
	})
	q := Query{TenantID: "a", Window: Window{Name: "all"}, GroupBy: []string{"team"}, Top: 50}
	const body = `{"tenant_id":"a","window":{"name":"all"},"group_by":["team"],"top":50}`
	s, err := c.Summary(t.Context(), q)
	if err != nil || path != "/v1/reports/summary:query" || asked != body || s.Totals.Requests != 2 || s.Coverage.ToSeq != 9 {
		t.Errorf("%s %s: %+v, %v", path, asked, s, err)
	}
	ts, err := c.TimeSeries(t.Context(), q)
	if err != nil || path != "/v1/reports/timeseries:query" || len(ts.Buckets) != 1 || ts.Series[0].Requests[0] != 2 {
		t.Errorf("%s: %+v, %v", path, ts, err)
	}
	g, err := c.Groups(t.Context(), q)
	if err != nil || path != "/v1/reports/groups:query" || g.Groups[0].Group[0] != "x" {
		t.Errorf("%s: %+v, %v", path, g, err)
	}
	if _, err := c.Verify(t.Context(), "a"); err != nil || path != "/v1/ledger:verify" || asked != `{"tenant_id":"a"}` {
		t.Errorf("%s %s: %v", path, asked, err)
	}
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		code int
		body string
		want string
	}{
		"problem":   {404, `{"type":"urn:tallystick:error:not_found","title":"Not Found","detail":"no such tenant","request_id":"R1"}`, "the server answered 404 Not Found: no such tenant (request R1)"},
		"no body":   {502, "", "the server answered 502 Bad Gateway"},
		"no JSON":   {500, "<html>", "the server answered 500 Internal Server Error"},
		"redirect":  {302, "", "the server answered 302 Found"},
		"half JSON": {200, `{"entries":`, "client: the answer of /v1/pipeline cannot be read: unexpected EOF"},
		"no number": {200, `{"entries":"1x"}`, `client: the answer of /v1/pipeline cannot be read: client: "\"1x\"" is no integer`},
	} {
		t.Run(name, func(t *testing.T) {
			api := server(t, func(w http.ResponseWriter, _ *http.Request, _ string) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.body)
			})
			_, err := api.Pipeline(t.Context())
			if err == nil || err.Error() != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
			if want := c.code; c.code != 200 && StatusOf(err) != want {
				t.Errorf("status %d, want %d", StatusOf(err), want)
			}
		})
	}
}

// An error names the server and never the token.
func TestUnreachable(t *testing.T) {
	c := New("http://127.0.0.1:1", testToken)
	_, err := c.Pipeline(t.Context())
	var away *UnreachableError
	if !errors.As(err, &away) || strings.Contains(err.Error(), testToken) || !strings.HasPrefix(err.Error(), "no answer from http://127.0.0.1:1: ") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Pipeline(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if IsNotReady(err) || StatusOf(err) != 0 {
		t.Error("no answer is taken for one")
	}
}

func TestReady(t *testing.T) {
	code := http.StatusOK
	c := server(t, func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `{"status":"ready","dependencies":[{"name":"kafka","state":"ok"}]}`)
	})
	r, err := c.Ready(t.Context())
	if err != nil || len(r.Dependencies) != 1 || r.Dependencies[0].State != "ok" {
		t.Errorf("%+v, %v", r, err)
	}
	code = http.StatusServiceUnavailable
	if r, err := c.Ready(t.Context()); !IsNotReady(err) || len(r.Dependencies) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	code = http.StatusNotFound
	if _, err := c.Ready(t.Context()); StatusOf(err) != code || IsNotReady(err) {
		t.Errorf("%v", err)
	}
}

func TestInt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := Int(rapid.Int64().Draw(t, "v"))
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(b), fmt.Sprint(int64(v))} {
			var back Int
			if err := json.Unmarshal([]byte(text), &back); err != nil || back != v {
				t.Fatalf("%s became %d: %v", text, back, err)
			}
		}
	})
	for _, text := range []string{`""`, `"1.5"`, `1e3`, `true`, `"9223372036854775808"`} {
		var v Int
		if json.Unmarshal([]byte(text), &v) == nil {
			t.Errorf("%s became %d", text, v)
		}
	}
}
