package bedrock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"
)

// proxied are calls that the proxy has entries of, by tenant and request id.
type proxied struct {
	calls map[tenant.ID]map[string]int64
	err   error
	asked [][]string
	span  []time.Duration
	asOf  []time.Time
}

func (p *proxied) Calls(_ context.Context, id tenant.ID, requests []string, first, last, asOf time.Time) (map[string]int64, error) {
	p.asked, p.span, p.asOf = append(p.asked, requests), append(p.span, last.Sub(first)), append(p.asOf, asOf)
	return p.calls[id], p.err
}

// Records of calls that the proxy has entries of make no events, and are counted;
// others do, also those that another tenant's proxy knows by the same id.
func TestMeteredRecordsAreLeftOut(t *testing.T) {
	w := newWorld(t)
	asked := &proxied{calls: map[tenant.ID]map[string]int64{"acme": {"a-0": 14, "a-599": 15, "elsewhere": 1}, "umbrella": {"a-1": 14}}}
	w.asked = asked
	w.connect(t)
	nameless := line(func(r map[string]any) { delete(r, "requestId") })
	w.write(t, "a.jsonl", append(records("a", 600), nameless...))
	if err := once(t, w.poller()); err != nil {
		t.Fatal(err)
	}
	if s := w.state(t).State; s.Records != 601 || s.Accepted != 599 || s.Metered != 2 || s.Objects != 1 {
		t.Errorf("state %+v", s)
	}
	for i := range w.log.events {
		if id := w.log.events[i].ProviderRequestID; id == "a-0" || id == "a-599" {
			t.Errorf("%s has an event", id)
		}
	}
	if len(w.log.ids()) != 599 || len(asked.asked) != 2 || len(asked.asked[0]) != 500 || len(asked.asked[1]) != 100 || asked.span[0] != 0 {
		t.Errorf("%d events, %d questions over %v", len(w.log.ids()), len(asked.asked), asked.span)
	}
	if asked.asOf[0] != asked.asOf[1] || asked.asOf[0].IsZero() {
		t.Errorf("an object was asked for as of %v", asked.asOf) // it would wait for its own events
	}
	if !strings.Contains(w.said.String(), "other tokens") {
		t.Error("nothing is said of the record with other tokens")
	}
}

// While it cannot be known which calls the proxy has entries of, nothing is submitted
// and the cursor stands; afterwards each record is read once.
func TestCursorStandsWhileNobodyKnows(t *testing.T) {
	w := newWorld(t)
	asked := &proxied{err: errors.New("away"), calls: map[tenant.ID]map[string]int64{"acme": {"a-1": 14}}}
	w.asked = asked
	w.connect(t)
	w.write(t, "a.jsonl", records("a", 3))
	p := w.poller()
	pass := func() error {
		job, err := NewJob(t.Context(), w.ring, w.store, "acme", authn.Principal{Subject: "c", Tenants: []tenant.ID{"acme"}, Scopes: authn.Ingest})
		if err != nil {
			t.Fatal(err)
		}
		job.Calls, job.Pauses = w.asked, []time.Duration{time.Millisecond}
		l, ok, err := p.Store.Lease(t.Context(), "acme", p.owner, p.lease)
		if err != nil || !ok {
			t.Fatalf("no lease: %v", err)
		}
		src, err := p.Open(t.Context(), &l.Bedrock)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		err = src.Objects(t.Context(), cursors{w.store, &l}, func(o Object) error { return p.object(t.Context(), &l, src, &job, o) })
		if err := w.store.Finish(t.Context(), &l, fmt.Sprint(err), 0); err != nil {
			t.Fatal(err)
		}
		return err
	}
	if err := pass(); !errors.Is(err, ErrUnasked) {
		t.Fatalf("%v, want %v", err, ErrUnasked)
	}
	if s := w.state(t).State; s.Objects != 0 || s.Failures != 1 || len(w.log.events) != 0 || len(asked.asked) != 2 {
		t.Errorf("state %+v, %d events, asked %d times", s, len(w.log.events), len(asked.asked))
	}
	asked.err = nil
	if err := pass(); err != nil {
		t.Fatal(err)
	}
	if s := w.state(t).State; s.Objects != 1 || s.Records != 3 || s.Accepted != 2 || s.Metered != 1 || len(w.log.ids()) != 2 {
		t.Errorf("state %+v, %d events", s, len(w.log.ids()))
	}
}

// The answer to an upload counts what was left out, and says when it cannot be known.
func TestUploadOfMeteredCalls(t *testing.T) {
	w := newWorld(t)
	asked := &proxied{calls: map[tenant.ID]map[string]int64{"acme": {"a-0": 14, "a-1": 13}}}
	server := httptest.NewServer(NewUploader(authn.NewStatic("token", admin), w.edge, w.ring, w.store, asked, nil))
	defer server.Close()
	post := func() (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+UploadPath, bytes.NewReader(records("a", 3)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer token")
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(res.Body); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b.Bytes()
	}
	var r Report
	code, answer := post()
	if err := json.Unmarshal(answer, &r); err != nil {
		t.Fatal(err)
	}
	if code != http.StatusOK || r.Records != 3 || r.Accepted != 1 || r.Metered != 2 || r.Differing != 1 || r.Statuses["ok"] != 1 || r.Tokens["input"]+r.Tokens["output"] != 14 {
		t.Errorf("%d %+v", code, r)
	}
	asked.err = errors.New("away")
	if code, answer := post(); code != http.StatusServiceUnavailable || !strings.Contains(string(answer), "metering proxy") || len(w.log.ids()) != 1 {
		t.Errorf("%d %s, %d events", code, answer, len(w.log.ids()))
	}
}
