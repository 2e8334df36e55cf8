package proxy_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/ingest/usage"
	"github.com/tallystick/tallystick/internal/testenv"
)

// recordedExchanges is how many the data pack has.
const recordedExchanges = 1964

// recorded is one of them, as it went over the wire.
type recorded struct {
	host, method, path, contentType string
	status                          int
	header                          map[string]string
	request, body                   []byte
}

func readRecorded(t *testing.T) (all []recorded) {
	t.Helper()
	f, err := os.Open(testenv.Data(t, "responses/provider_exchanges_pydantic_ai.jsonl.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	lines := bufio.NewScanner(d)
	lines.Buffer(nil, 64<<20)
	types := map[string]string{"json": "application/json", "sse": "text/event-stream", "base64_eventstream": "application/vnd.amazon.eventstream", "text": "text/plain"}
	for lines.Scan() {
		var e struct {
			Host, Method, Path, Encoding string
			Status                       int
			Headers                      map[string]string `json:"response_headers"`
			Request, Response            json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		r := recorded{e.Host, strings.ToUpper(e.Method), e.Path, types[e.Encoding], e.Status, e.Headers, bytes.Clone(e.Request), bytes.Clone(e.Response)}
		if e.Encoding != "json" {
			var s string
			if err := json.Unmarshal(e.Response, &s); err != nil {
				t.Fatal(err)
			}
			if r.body = []byte(s); e.Encoding == "base64_eventstream" {
				if r.body, err = base64.StdEncoding.DecodeString(s); err != nil {
					t.Fatal(err)
				}
			}
		}
		all = append(all, r)
	}
	if lines.Err() != nil || len(all) != recordedExchanges {
		t.Fatalf("%d exchanges, want %d: %v", len(all), recordedExchanges, lines.Err())
	}
	return all
}

// Every recorded exchange passes byte for byte, in chunks of odd sizes where it is a
// stream, and makes the one event that its bytes alone would make, or none where
// nothing was used.
func TestRecordedExchanges(t *testing.T) {
	all := readRecorded(t)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.Header.Get("X-Exchange"))
		if err != nil {
			t.Error(err)
			return
		}
		e := &all[n]
		if got, _ := io.ReadAll(r.Body); r.Method == http.MethodPost && !bytes.Equal(got, e.request) {
			t.Errorf("exchange %d: the provider got another body", n)
		}
		for k, v := range e.header {
			rw.Header().Set(k, v)
		}
		rw.Header().Del("Content-Encoding")
		rw.Header().Set("Content-Type", e.contentType)
		rw.WriteHeader(e.status)
		for b := e.body; len(b) > 0; {
			size := min(len(b), 1+(n*7+len(b))%601)
			if _, err := rw.Write(b[:size]); err != nil {
				return
			}
			if b = b[size:]; e.contentType != "application/json" {
				http.NewResponseController(rw).Flush()
			}
		}
	}, func(p *proxy.Parts, o *proxy.Options) {
		hosts := map[string]bool{}
		base := o.Providers[0].Base
		for i := range all {
			if hosts[all[i].host] {
				continue
			}
			hosts[all[i].host] = true
			var err error
			if o.Providers, err = proxy.ParseProvider(fmt.Sprintf("%s=%s like=%s", hostName(all[i].host), base, all[i].host), o.Providers); err != nil {
				t.Fatal(err)
			}
		}
	})
	for n := range all {
		e := &all[n]
		req := w.request(e.method, "/"+hostName(e.host)+e.path, "")
		if e.method == http.MethodPost {
			req = w.request(e.method, "/"+hostName(e.host)+e.path, string(e.request))
		}
		req.Header.Set("X-Exchange", strconv.Itoa(n))
		resp := w.do(req)
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != e.status || !bytes.Equal(got, e.body) {
			t.Fatalf("exchange %d %s%s: status %d, %d bytes of %d, %v", n, e.host, e.path, resp.StatusCode, len(got), len(e.body), err)
		}
		checkRecorded(t, n, e, w.sink.take())
	}
}

// checkRecorded holds the events of an exchange against what its bytes say.
func checkRecorded(t *testing.T, n int, e *recorded, got []event.Event) {
	t.Helper()
	call := usage.Detect(e.method, e.host, e.path)
	if call.Dialect == usage.None || call.Repeated {
		if len(got) != 0 {
			t.Errorf("exchange %d: %d events of a call that uses nothing", n, len(got))
		}
		return
	}
	ask := usage.ReadRequest(e.request)
	if ask.Model == "" {
		ask.Model = call.Model
	}
	m := usage.New(usage.Exchange{
		Dialect: call.Dialect, Framing: usage.FramingOf(e.contentType), Status: e.status, Model: ask.Model, PromptTokens: ask.PromptTokens,
		Header: func(k string) string { return headerOf(e.header).Get(k) },
	})
	_, _ = m.Write(e.body)
	want := m.Close()
	if len(got) != 1 {
		t.Fatalf("exchange %d: %d events, want one", n, len(got))
	}
	ev := &got[0]
	if ev.Tokens != want.Tokens || want.Model != "" && ev.Model != want.Model || ev.HTTPStatus != int64(e.status) ||
		(ev.Status == event.StatusTruncated) != (want.Flags&usage.Truncated != 0 && e.status < 400) {
		t.Errorf("exchange %d %s%s: event %+v, want %+v", n, e.host, e.path, ev, want)
	}
}

func headerOf(m map[string]string) http.Header {
	h := http.Header{}
	for k, v := range m {
		h.Set(k, v)
	}
	return h
}

// hostName is a provider's name made of its host.
func hostName(host string) string {
	return strings.Trim(strings.NewReplacer(".", "-", ":", "-").Replace(strings.ToLower(host)), "-")
}
