package clients

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
)

// Headers by which a call says what it wants of the provider. The proxy knows
// nothing of them.
const (
	replayHeader = "X-Replay"      // the number of the exchange
	callHeader   = "X-Replay-Call" // the call's name
	failHeader   = "X-Replay-Fail" // how many attempts fail first
	holdHeader   = "X-Replay-Hold" // after how many events of a stream to wait until the client leaves
	cutHeader    = "X-Replay-Cut"  // after how many events to break the connection off
)

// Provider keys of the test. No client has them, and the proxy no other.
const (
	openAIKey    = "sk-proj-TheOpenAIKeyOfTheTest000000001111"
	anthropicKey = "sk-ant-TheAnthropicKeyOfTheTest0000002222"
)

// replay is a provider that answers with recorded exchanges.
type replay struct {
	exchanges map[int]*exchange

	mu       sync.Mutex // protects what follows
	attempts map[string]int
	left     map[string]bool // the calls whose client left while they were held
	wrong    []string
}

func newReplay(t *testing.T, all []*exchange) (*replay, *httptest.Server) {
	t.Helper()
	r := &replay{exchanges: map[int]*exchange{}, attempts: map[string]int{}, left: map[string]bool{}}
	for _, e := range all {
		r.exchanges[e.N] = e
	}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return r, s
}

func (r *replay) complain(call, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, call+": "+what)
}

// ServeHTTP implements http.Handler.
func (r *replay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	call := req.Header.Get(callHeader)
	n, err := strconv.Atoi(req.Header.Get(replayHeader))
	e := r.exchanges[n]
	if err != nil || e == nil {
		r.complain(call, "no such exchange")
		http.Error(w, "no such exchange", http.StatusTeapot)
		return
	}
	r.mu.Lock()
	r.attempts[call]++
	attempt := r.attempts[call]
	r.mu.Unlock()
	r.check(call, e, req)
	if fail, _ := strconv.Atoi(req.Header.Get(failHeader)); attempt <= fail {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After-Ms", "5")
		w.WriteHeader([]int{http.StatusInternalServerError, http.StatusTooManyRequests}[attempt%2])
		_, _ = io.WriteString(w, `{"type":"error","error":{"type":"overloaded_error","message":"try again"}}`)
		return
	}
	for name, value := range e.Headers {
		if name != "content-length" && name != "transfer-encoding" && name != "content-encoding" {
			w.Header().Set(name, value)
		}
	}
	if e.Stream {
		r.stream(w, req, call, e)
		return
	}
	body := e.Body
	if n%5 == 0 { // some servers compress whatever they were asked for
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(body)
		_ = z.Close()
		body = b.Bytes()
		w.Header().Set("Content-Encoding", "gzip")
	}
	w.WriteHeader(e.Status)
	_, _ = w.Write(body)
}

// stream sends event by event.
func (r *replay) stream(w http.ResponseWriter, req *http.Request, call string, e *exchange) {
	hold, holds := number(req.Header, holdHeader)
	cut, cuts := number(req.Header, cutHeader)
	w.WriteHeader(e.Status)
	control := http.NewResponseController(w)
	sent := 0
	for event := range bytes.SplitAfterSeq(e.Body, []byte("\n\n")) {
		if cuts && sent == cut {
			panic(http.ErrAbortHandler)
		}
		if holds && sent == hold {
			r.await(req, call)
			return
		}
		_, _ = w.Write(event)
		_ = control.Flush()
		sent++
	}
}

// await waits until the proxy hangs up.
func (r *replay) await(req *http.Request, call string) {
	select {
	case <-req.Context().Done():
		r.mu.Lock()
		r.left[call] = true
		r.mu.Unlock()
	case <-time.After(20 * time.Second):
		r.complain(call, "the client left and the provider was not told")
	}
}

func number(h http.Header, name string) (n int, ok bool) {
	n, err := strconv.Atoi(h.Get(name))
	return n, err == nil
}

// check looks at what arrived: the provider's own key and none of ours, nothing of
// the attribution, and the request as it was recorded.
func (r *replay) check(call string, e *exchange, req *http.Request) {
	want := map[string]string{"openai": "Bearer " + openAIKey, "anthropic": anthropicKey}[e.provider()]
	got := req.Header.Get("Authorization")
	if e.provider() == "anthropic" {
		if got != "" {
			r.complain(call, "Authorization arrived at Anthropic")
		}
		got = req.Header.Get("X-Api-Key")
	}
	if got != want {
		r.complain(call, "the wrong key arrived")
	}
	for name, values := range req.Header {
		if strings.HasPrefix(name, "X-Tallystick") || strings.Contains(strings.Join(values, " "), authn.TokenPrefix) {
			r.complain(call, "the header "+name+" arrived")
		}
	}
	path, _, _ := strings.Cut(e.Path, "?")
	if req.URL.Path != path {
		r.complain(call, "it went to "+req.URL.Path)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.complain(call, "its body is cut")
		return
	}
	var asked, sent map[string]any
	if json.Unmarshal(e.Request, &asked) != nil || json.Unmarshal(body, &sent) != nil {
		r.complain(call, "its body is no JSON")
		return
	}
	// The SDKs ask for base64 where nothing is said, and say the default of stream.
	for _, name := range []string{"encoding_format", "stream"} {
		delete(asked, name)
		delete(sent, name)
	}
	if !reflect.DeepEqual(asked, sent) {
		r.complain(call, "its body is not the one that was recorded")
	}
}
