package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/ingest/usage"
	"github.com/tallystick/tallystick/internal/testenv"
)

// Every recorded exchange passes byte for byte, in chunks of odd sizes where it is a
// stream, and makes the one event that its bytes alone would make, or none where
// nothing was used.
func TestRecordedExchanges(t *testing.T) {
	all := testenv.Exchanges(t)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.Header.Get("X-Exchange"))
		if err != nil {
			t.Error(err)
			return
		}
		e := &all[n]
		if got, _ := io.ReadAll(r.Body); r.Method == http.MethodPost && !bytes.Equal(got, e.Request) {
			t.Errorf("exchange %d: the provider got another body", n)
		}
		for k, v := range e.Headers {
			rw.Header().Set(k, v)
		}
		rw.Header().Del("Content-Encoding")
		rw.Header().Set("Content-Type", e.ContentType())
		rw.WriteHeader(e.Status)
		for b := e.Body; len(b) > 0; {
			size := min(len(b), 1+(n*7+len(b))%601)
			if _, err := rw.Write(b[:size]); err != nil {
				return
			}
			if b = b[size:]; e.ContentType() != "application/json" {
				http.NewResponseController(rw).Flush()
			}
		}
	}, func(p *proxy.Parts, o *proxy.Options) {
		hosts := map[string]bool{}
		base := o.Providers[0].Base
		for i := range all {
			if hosts[all[i].Host] {
				continue
			}
			hosts[all[i].Host] = true
			var err error
			if o.Providers, err = proxy.ParseProvider(fmt.Sprintf("%s=%s like=%s", hostName(all[i].Host), base, all[i].Host), o.Providers); err != nil {
				t.Fatal(err)
			}
		}
	})
	for n := range all {
		e := &all[n]
		req := w.request(e.Method, "/"+hostName(e.Host)+e.Path, "")
		if e.Method == http.MethodPost {
			req = w.request(e.Method, "/"+hostName(e.Host)+e.Path, string(e.Request))
		}
		req.Header.Set("X-Exchange", strconv.Itoa(n))
		resp := w.do(req)
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != e.Status || !bytes.Equal(got, e.Body) {
			t.Fatalf("exchange %d %s%s: status %d, %d bytes of %d, %v", n, e.Host, e.Path, resp.StatusCode, len(got), len(e.Body), err)
		}
		checkRecorded(t, n, e, w.sink.take())
	}
}

// costsUnlisted are the recorded calls that cost and that no table knows: an index that is
// made of a file, a cache that is kept, a call by voice.
var costsUnlisted = regexp.MustCompile(`:uploadToFileSearchStore|/cachedContents$|/realtime/calls`)

// checkRecorded holds the events of an exchange against what its bytes say.
func checkRecorded(t *testing.T, n int, e *testenv.Exchange, got []event.Event) {
	t.Helper()
	call := usage.Detect(e.Method, e.Host, e.Path)
	if call.Dialect == usage.None || call.Repeated && e.Status >= 400 {
		if len(got) == 1 && costsUnlisted.MatchString(e.Path) && slices.Contains(got[0].Tags, event.Tag{Key: "usage", Value: "not_metered"}) && got[0].Tokens.Total() == 0 {
			return
		}
		if len(got) != 0 || costsUnlisted.MatchString(e.Path) && e.Method == http.MethodPost {
			t.Errorf("exchange %d: %d events of a call that uses nothing", n, len(got))
		}
		return
	}
	ask := usage.ReadRequest(e.Request)
	if ask.Model == "" {
		ask.Model = call.Model
	}
	held := e.Request
	if !usage.Countable(call.Dialect, ask.Model) {
		held = nil
	}
	m := usage.New(usage.Exchange{
		Dialect: call.Dialect, Framing: usage.FramingOf(e.ContentType()), Status: e.Status, Model: ask.Model, PromptTokens: ask.PromptTokens,
		Request: held, Repeated: call.Repeated,
		Header: func(k string) string { return headerOf(e.Headers).Get(k) },
	})
	_, _ = m.Write(e.Body)
	want := m.Close()
	if !want.Due() && (want.Background() || call.Repeated) {
		if len(got) != 0 {
			t.Errorf("exchange %d: %d events of a response that is counted by another reading", n, len(got))
		}
		return
	}
	if len(got) != 1 {
		t.Fatalf("exchange %d: %d events, want one", n, len(got))
	}
	ev := &got[0]
	if ev.Tokens != want.Tokens || want.Model != "" && ev.Model != want.Model || ev.HTTPStatus != int64(e.Status) ||
		(ev.Status == event.StatusTruncated) != (want.Flags&usage.Truncated != 0 && e.Status < 400) {
		t.Errorf("exchange %d %s%s: event %+v, want %+v", n, e.Host, e.Path, ev, want)
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
