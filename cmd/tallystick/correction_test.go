package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/client"
)

// A producer corrects an event through the ingest API: what names no event, or
// itself, is told apart, and the report has the new counts where the old ones
// were.
func TestProducerCorrects(t *testing.T) {
	srv := startFaultServer(t, nil)
	c := client.New(srv.url(), srv.token)
	t.Cleanup(c.Close)
	const acme = "corrected"
	srv.post(t, "/v1/tenants:batchCreate", map[string]any{"tenant_ids": []string{acme}}, http.StatusOK)
	at := time.Now().Add(-time.Hour).Format(time.RFC3339Nano)
	event := func(id string, input, output int64, more map[string]any) map[string]any {
		e := map[string]any{
			"event_id": id, "tenant_id": acme, "occurred_at": at, "provider": "openai",
			"model": "gpt-4o", "tokens": map[string]int64{"input": input, "output": output}, "team": "search", "producer_id": "p",
		}
		for k, v := range more {
			e[k] = v
		}
		return e
	}
	first := event("call-1", 1000, 500, map[string]any{"estimated": true})
	fix := event("fix-1", 900, 700, map[string]any{"corrects": "call-1", "correction_reason": "invoice", "team": "not the original's"})
	// In one request, and so in one batch of the ledger as a rule; then alone.
	srv.post(t, "/v1/events:batch", []any{first, fix}, http.StatusAccepted)
	answer := srv.post(t, "/v1/events:batch", []any{
		event("fix-2", 800, 0, map[string]any{"corrects": "call-1"}),
		event("fix-2", 800, 0, map[string]any{"corrects": "call-1"}), // twice
		event("fix-3", 1, 1, map[string]any{"corrects": "fix-3"}),    // itself
		event("fix-4", 1, 1, map[string]any{"correction_reason": "why not"}),
		event("fix-5", 1, 1, map[string]any{"corrects": "nobody"}),
		event("fix-6", 1, 1, map[string]any{"corrects": "fix-1"}), // a correction
		event("fix-7", 1, 1, map[string]any{"corrects": "call-1", "model": "gpt-4o-mini"}),
	}, 0)
	for _, want := range []string{`"corrects"`, `"original"`, `"required"`} {
		if !bytes.Contains(answer, []byte(want)) {
			t.Errorf("the answer lacks %s: %s", want, answer)
		}
	}
	await(t, "all is in the reports", time.Minute, func() bool {
		p, err := c.Pipeline(t.Context())
		return err == nil && p.LedgerLag+p.PublishLag+p.AnalyticsLag == 0 && p.Rejected >= 3
	})
	t.Setenv("TALLYSTICK_TOKEN", srv.token)
	var told []string
	err := c.Entries(t.Context(), acme, func(e *client.Entry) error {
		if e.Kind == "usage" || e.Kind == "correction" {
			mustPrices(t, "ledger ", "explain", fmt.Sprint(e.Seq), "--tenant", acme, "--url", srv.url())
		}
		switch e.Kind {
		case "usage":
			told = append(told, fmt.Sprint(e.EventID, " ", *e.CostUSD))
		case "correction":
			told = append(told, fmt.Sprint(e.EventID, " of ", e.Correction.EventID, " ", e.Correction.Reason, " ", *e.CostUSD, " to ", *e.Correction.NetCostUSD,
				" ", e.Correction.TokenDeltas))
		case "rejected":
			told = append(told, "rejected "+e.RejectReason)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"call-1 0.007500000000", // 1,000 × 2.5e-6 + 500 × 1e-5
		"fix-1 of call-1 invoice 0.001750000000 to 0.009250000000 map[input:-100 output:200]",
		"fix-2 of call-1  -0.007250000000 to 0.002000000000 map[input:-100 output:-700]",
		"rejected invalid", "rejected invalid", "rejected invalid",
	}
	if fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("the ledger tells\n%q, want\n%q", told, want)
	}
	r, err := c.Groups(t.Context(), client.Query{TenantID: acme, Window: client.Window{Name: "all"}, GroupBy: []string{"team"}})
	if err != nil || len(r.Groups) != 1 || r.Groups[0].Group[0] != "search" {
		t.Fatalf("%+v, %v", r, err)
	}
	sums := r.Groups[0].Totals
	if sums.CostUSD != "0.002000000000" || sums.Requests != 1 || sums.Corrections != 2 || sums.Tokens["input"] != 800 || sums.Tokens["output"] != 0 || sums.Estimated != 0 {
		t.Errorf("the report says %+v", sums)
	}
	if v, err := c.Verify(t.Context(), acme); err != nil || v.Verdict != "intact" {
		t.Errorf("the ledger is %+v, %v", v, err)
	}
}

// post sends JSON to the server and returns the answer. status 0 takes any.
func (f *faultServer) post(t *testing.T, path string, body any, status int) []byte {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url()+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	if status != 0 && res.StatusCode != status {
		t.Fatalf("%s answers %d: %s", path, res.StatusCode, answer.Bytes())
	}
	return answer.Bytes()
}
