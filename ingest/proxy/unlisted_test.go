package proxy_test

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ingest/proxy"
)

// A paid call that no table knows is an event without tokens that says so, and it is
// stopped by what stops others; a free one is none.
func TestPaidCallsThatNoTableKnows(t *testing.T) {
	const answer = `{"outputs":[],"usage":{"total_tokens":9}}`
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/missing") {
			rw.WriteHeader(http.StatusNotFound)
		}
		io.WriteString(rw, answer)
	}, func(p *proxy.Parts, o *proxy.Options) {
		base := o.Providers[0].Base
		var err error
		if o.Providers, err = proxy.ParseProvider("conversing="+base+" like=api.mistral.ai", o.Providers); err != nil {
			t.Fatal(err)
		}
		p.Switch = killsModel("stopped-model")
	})
	notMetered := event.Tag{Key: "usage", Value: "not_metered"}
	for _, c := range []struct {
		path, body, model string
		code              int
		status            string // "" is no event
	}{
		{"/conversing/v1/conversations", `{"inputs":"hello there","agent_id":"a"}`, "unknown", 200, event.StatusOK},
		{"/conversing/v1/conversations", `{"inputs":"hello there","model":"mistral-large"}`, "mistral-large", 200, event.StatusOK},
		{"/conversing/v1/ocr", `{"model":"mistral-ocr"}`, "mistral-ocr", 200, event.StatusOK},
		{"/conversing/v1/ocr", `{"model":"stopped-model"}`, "stopped-model", 451, event.StatusKilled},
		{"/conversing/v1/missing", `{"model":"mistral-ocr"}`, "mistral-ocr", 404, event.StatusError},
		{"/gemini/v1beta/models/veo-3:predictLongRunning", `{"instances":[{"prompt":"a cat"}]}`, "veo-3", 200, event.StatusOK},
		{"/gemini/v1beta/models/gemini-2.5-flash:countTokens", `{"contents":[]}`, "", 200, ""},
		{"/openai/v1/conversations", `{"items":[]}`, "", 200, ""},
		{"/openai/v1/files", "--x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x--", "", 200, ""},
		{"/openai/v1/moderations", `{"model":"omni-moderation","input":"x"}`, "", 200, ""},
	} {
		req := w.request("POST", c.path, c.body)
		req.Header.Set(proxy.ReturnHeader, "cost")
		resp := w.do(req)
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != c.code || c.code != 451 && string(got) != answer {
			t.Errorf("%s: status %d %q %v", c.path, resp.StatusCode, got, err)
		}
		events := w.sink.take()
		if c.status == "" {
			if len(events) != 0 {
				t.Errorf("%s: %+v", c.path, events)
			}
			continue
		}
		if len(events) != 1 || events[0].Model != c.model || cmp.Or(events[0].Status, event.StatusOK) != c.status || events[0].Tokens.Total() != 0 || events[0].Operation != "other" ||
			c.code != 451 && !slices.Contains(events[0].Tags, notMetered) {
			t.Errorf("%s: %+v", c.path, events)
		}
		if cost := resp.Header.Get(proxy.CostHeader); c.code != 451 && cost != "unknown" {
			t.Errorf("%s: cost %q", c.path, cost)
		}
	}
}

// Embeddings of Vertex's older form are metered by what each prediction states.
func TestVertexPredictions(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		io.WriteString(rw, `{"predictions":[{"embeddings":{"statistics":{"token_count":6},"values":[0.1]}},{"embeddings":{"statistics":{"token_count":5},"values":[0.1]}}]}`)
	}, nil)
	resp := w.do(w.request("POST", "/gemini/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict", `{"instances":[{"content":"one"},{"content":"two"}]}`))
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	ev := w.sink.wait(t)
	if ev.Tokens.Prompt() != 11 || ev.Tokens.Total() != 11 || ev.Model != "text-embedding-005" || ev.Operation != "embeddings" || ev.Estimated || len(ev.Tags) != 0 {
		t.Errorf("%+v", ev)
	}
}

// killsModel stops the calls of one model.
type killsModel string

// Killed implements proxy.Switch.
func (k killsModel) Killed(_ context.Context, c *proxy.Call) (policy, reason string, killed bool, err error) {
	return "test", "of a test", c.Model == string(k), nil
}
