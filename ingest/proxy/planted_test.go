package proxy_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/proxy"
	"github.com/tallystick/tallystick/internal/kafka"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv/testlog"
)

// planted is how many payloads pass.
const planted = 1500

// fragment is the secret of one payload: words, so that every form of it is found.
func fragment(k int) string { return fmt.Sprintf("quicksilver-%04d harbour marzipan", k) }

// forms are the ways in which a fragment may stand somewhere.
func forms(k int) [][]byte {
	f := fragment(k)
	escaped := ""
	for _, c := range f {
		escaped += fmt.Sprintf(`\u%04x`, c)
	}
	return [][]byte{
		[]byte(f), []byte(escaped), []byte(base64.StdEncoding.EncodeToString([]byte(f))[:28]), []byte(hex.EncodeToString([]byte(f))),
		[]byte(f[:16]), []byte("harbour marzipan"), []byte("harbour%20marzipan"),
	}
}

// Fragments of prompts and answers, however they are written, in bodies, errors,
// broken streams and headers, are in no event and no message, also when the sink
// fails and calls are refused.
func TestPlantedFragments(t *testing.T) {
	var logged testlog.Buffer
	w := newWorld(t, plantingProvider, func(p *proxy.Parts, o *proxy.Options) {
		o.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
		p.Switch = &policy{}
		p.Capture, p.Digester = always{}, digester{}
	})
	for k := range planted {
		if k%10 == 9 {
			w.sink.fail(kafka.ErrFull)
		}
		f, err := json.Marshal(fragment(k))
		if err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf(`{"model":"gpt-4o","stream":true,"metadata":{"note":%s},"messages":[{"role":"user","content":%s}]}`, f, f)
		if k%7 == 6 {
			body = body[:len(body)-9] // no JSON
		}
		req := w.request("POST", fmt.Sprintf("/openai/v1/chat/completions?form=%d&k=%d", k%6, k), body)
		req.Header.Set("X-Custom-Note", fragment(k))
		req.Header.Set("Helicone-Property-Prompt", fragment(k))
		if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body) // broken ones are part of it
			resp.Body.Close()
		}
		w.sink.fail(nil)
	}
	var kept []byte
	events := w.sink.take()
	for i := range events {
		kept = fmt.Appendf(kept, "%+v\n", events[i])
	}
	if len(events) < planted*9/10 {
		t.Fatalf("%d events of %d calls", len(events), planted)
	}
	leaks := 0
	for k := range planted {
		for _, form := range forms(k) {
			for where, store := range map[string][]byte{"event": kept, "log": logged.Bytes()} {
				if at := bytes.Index(store, form); at >= 0 {
					leaks++
					t.Errorf("%q is in an %s: …%s…", form, where, store[max(0, at-80):min(len(store), at+80)])
				}
			}
		}
		if leaks > 5 {
			break
		}
	}
	t.Logf("edge: leaks=%d", leaks)
}

// plantingProvider answers with the fragment in one of several ways.
func plantingProvider(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	var k int
	_, _ = fmt.Sscan(r.URL.Query().Get("k"), &k)
	f := fragment(k)
	quoted, _ := json.Marshal(f)
	flush := http.NewResponseController(rw).Flush
	switch r.URL.Query().Get("form") {
	case "0":
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(rw, `{"id":%s,"model":%s,"choices":[{"message":{"content":%s},"finish_reason":%s}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`, quoted, quoted, quoted, quoted)
	case "1": // split over chunks
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range len(f) {
			fmt.Fprintf(rw, "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":%q}}]}\n\n", f[i:i+1])
			if i%8 == 0 {
				_ = flush()
			}
		}
		fmt.Fprint(rw, "data: [DONE]\n\n")
	case "2": // escaped, and cut in the middle
		rw.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(rw, "data: {\"choices\":[{\"delta\":{\"content\":\"%s\"}}]}\n\ndata: {\"cho", forms(k)[1])
		_ = flush()
		panic(http.ErrAbortHandler)
	case "3": // an error that repeats the prompt
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("X-Request-Id", f)
		rw.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(rw, `{"error":{"type":%s,"code":%s,"message":%s}}`, quoted, quoted, quoted)
	case "4": // base64 in a binary stream that is none
		rw.Header().Set("Content-Type", "application/vnd.amazon.eventstream")
		fmt.Fprint(rw, strings.Repeat(base64.StdEncoding.EncodeToString([]byte(f)), 3))
	default: // plain text where JSON is said
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprint(rw, f)
	}
}

// always digests every prompt.
type always struct{}

func (always) Digests(tenant.ID) bool { return true }

// digester is a keyed hash.
type digester struct{}

func (digester) Digest(id tenant.ID, text []byte) (sum [32]byte, err error) {
	h := hmac.New(sha256.New, []byte(id))
	h.Write(text)
	h.Sum(sum[:0])
	return sum, nil
}
