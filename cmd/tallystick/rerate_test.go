package main

import (
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/load"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// rerateEvents is how many events the test corrects; TALLYSTICK_RERATE_EVENTS
// asks for more (1,000,000 is measured before a release).
const rerateEvents = 20_000

// flatPico is what every token costs under the second price book, in 1e-12 USD.
const flatPico = 3_000_000

// flatPrices writes a price list in LiteLLM's form in which every token of every
// model, in every tier, costs the same, as if it had been known since 2020.
func flatPrices(t *testing.T, path string) {
	t.Helper()
	rates := map[string]any{"mode": "chat"}
	for _, field := range []string{
		"input_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost", "cache_creation_input_token_cost_above_1hr",
		"output_cost_per_token", "output_cost_per_reasoning_token",
	} {
		rates[field], rates[field+"_batches"] = json.Number("0.000003"), json.Number("0.000003")
	}
	list := map[string]any{}
	for name, provider := range map[string]string{
		"gpt-4o": "openai", "gpt-4o-mini": "openai", "gpt-5": "openai", "o4-mini": "openai", "azure/gpt-4": "azure", "claude-sonnet-4-5": "anthropic",
		"claude-haiku-4-5": "anthropic", "gemini/gemini-2.5-pro": "gemini", "deepseek/deepseek-reasoner": "deepseek",
		"deepseek/deepseek-chat": "deepseek", "moonshot/kimi-k2-0905-preview": "moonshot", "gpt-internal-finetune-7": "openai",
	} {
		own := map[string]any{"litellm_provider": provider}
		for k, v := range rates {
			own[k] = v
		}
		list[name] = own
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	since := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, since, since); err != nil {
		t.Fatal(err)
	}
}

// A job is killed, with the whole node, while it works, again and again, and
// corrects each entry once all the same: prices changed, a price came at last,
// and a model that still has none stays unpriced. Reports net all of it.
func TestRerateSurvivesKill(t *testing.T) {
	events := int64(rerateEvents)
	if s := os.Getenv("TALLYSTICK_RERATE_EVENTS"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		events = n
	}
	srv := startFaultServer(t, nil)
	c := client.New(srv.url(), srv.token)
	t.Cleanup(c.Close)
	api := &ledgerAPI{c}
	const acme = "rerate-0001"
	began := time.Now()
	_, err := load.Run(t.Context(), load.Options{
		Events: events, Seed: 5, Base: time.Now(), Tenants: 1, TenantPrefix: "rerate", URL: srv.url(), Token: srv.token, Connections: 4, Batch: 500,
		Timeout: 10 * time.Second, Deadline: time.Minute, Faults: load.Faults{Unpriced: 0.02},
	})
	if err != nil {
		t.Fatal(err)
	}
	drained := func() bool {
		p, err := c.Pipeline(t.Context())
		return err == nil && p.LedgerLag+p.PublishLag+p.AnalyticsLag == 0
	}
	await(t, "the load is ledgered", 5*time.Minute, drained)
	t.Logf("%d events in %.1f s", events, time.Since(began).Seconds())

	flatPrices(t, filepath.Join(srv.dir, "prices.json"))
	srv.env = append(srv.env, "TALLYSTICK_PRICES_FILE="+filepath.Join(srv.dir, "prices.json"))
	if _, err := srv.stop(smokeStopTime); err != nil {
		t.Fatal(err)
	}
	srv.mustStart(t)
	await(t, "the price book is in force", time.Minute, drained)

	start := func(dryRun bool) *pb.RerateJob {
		t.Helper()
		var res pb.StartRerateResponse
		err := api.call(t.Context(), "/v1/prices:rerate", &pb.StartRerateRequest{
			TenantId: acme, From: timestamppb.New(time.Unix(0, 0)), To: timestamppb.New(time.Now().Add(time.Hour)), DryRun: dryRun,
		}, &res)
		if err != nil || !res.Started {
			t.Fatalf("started %v: %v", res.Started, err)
		}
		return res.Job
	}
	dry, err := follow(t.Context(), api, start(true), os.Stderr)
	if err != nil || dry.State != "done" || dry.LookedAt != events || dry.Changed == 0 {
		t.Fatalf("dry run %v, %v", dry, err)
	}
	began = time.Now()
	job := start(false)
	for _, share := range []int64{0, 30, 60} { // percent of the chain at which the node is killed
		await(t, "the job goes on", 5*time.Minute, func() bool {
			j, err := rerateJob(t.Context(), api, acme, job.JobId)
			return err == nil && (j.State != "running" || j.CursorSeq*100 >= share*max(1, j.LastSeq))
		})
		if _, err := srv.kill(); err != nil {
			t.Fatal(err)
		}
		srv.mustStart(t)
	}
	// Followed by asking, which a report of 1,000,000 entries may keep waiting.
	if job, err = follow(t.Context(), api, job, os.Stderr); err != nil || job.State != "done" {
		t.Fatalf("%v, %v", job, err)
	}
	await(t, "the corrections are in the reports", 5*time.Minute, drained)
	t.Logf("re-rated in %.1f s, with three kills: %d of %d, %s USD", time.Since(began).Seconds(), job.Changed, job.LookedAt, job.DifferenceUsd)
	if job.LookedAt != dry.LookedAt || job.Changed != dry.Changed || job.DifferenceUsd != dry.DifferenceUsd {
		t.Errorf("the job says %v, the dry run said %v", job, dry)
	}
	if events <= 10*rerateEvents { // to read 2,000,000 entries page by page is another measurement
		checkRerated(t, c, acme, job)
	}
	if v, err := c.Verify(t.Context(), acme); err != nil || v.Verdict != "intact" {
		t.Errorf("the ledger is %+v, %v", v, err)
	}
	if again, err := follow(t.Context(), api, start(false), os.Stderr); err != nil || again.Changed != 0 {
		t.Errorf("a second job finds %v, %v", again, err)
	}
}

// checkRerated reads every entry: each usage entry has one correction at most
// and comes to the flat price, and the report says the same sums.
func checkRerated(t *testing.T, c *client.Client, tenant string, job *pb.RerateJob) {
	t.Helper()
	corrected := map[client.Int]bool{}
	var cost, difference big.Int
	var corrections, unpriced, usage int64
	want := func(e *client.Entry) *big.Int {
		var n int64
		for _, count := range e.Tokens {
			n += int64(count)
		}
		return new(big.Int).Mul(big.NewInt(n), big.NewInt(flatPico))
	}
	owed := map[client.Int]string{} // flat price of the usage entries that have another price
	err := c.Entries(t.Context(), tenant, func(e *client.Entry) error {
		switch e.Kind {
		case "usage":
			usage++
			flat := usdText(want(e))
			switch {
			case e.Provider == "inhouse": // in no list
				if !usedNothing(e) {
					unpriced++
				}
			case e.CostUSD == nil || *e.CostUSD != flat:
				owed[e.Seq] = flat
			}
			if e.CostUSD != nil {
				amount, err := parseUSD(*e.CostUSD)
				if err != nil {
					return err
				}
				cost.Add(&cost, amount)
			}
		case "correction":
			corrections++
			if corrected[e.Correction.Seq] {
				t.Errorf("entry %d is corrected twice", e.Correction.Seq)
			}
			corrected[e.Correction.Seq] = true
			if e.Correction.NetCostUSD == nil || *e.Correction.NetCostUSD != owed[e.Correction.Seq] || e.Correction.Reason != "rerate" {
				t.Errorf("correction %d: %+v, want %s", e.Seq, e.Correction, owed[e.Correction.Seq])
			}
			delete(owed, e.Correction.Seq)
			amount, err := parseUSD(*e.CostUSD)
			if err != nil {
				return err
			}
			difference.Add(&difference, amount)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(owed) > 0 || corrections != job.Changed || usdText(&difference) != job.DifferenceUsd {
		t.Errorf("%d entries were not corrected, %d were, by %s; the job says %v", len(owed), corrections, usdText(&difference), job)
	}
	r, err := c.Summary(t.Context(), client.Query{TenantID: tenant, Window: client.Window{Name: "all"}})
	if err != nil {
		t.Fatal(err)
	}
	total := usdText(cost.Add(&cost, &difference))
	if r.Totals.CostUSD != total || int64(r.Totals.Corrections) != corrections || int64(r.Totals.Unpriced) != unpriced || int64(r.Totals.Requests) != usage {
		t.Errorf("the report says %+v; the ledger %s, %d corrections, %d unpriced of %d", r.Totals, total, corrections, unpriced, usage)
	}
}

func TestParseMoment(t *testing.T) {
	for _, tc := range []struct {
		text string
		end  bool
		want string
	}{
		{"2026-10-01", false, "2026-10-01T00:00:00Z"},
		{"2026-10-31", true, "2026-11-01T00:00:00Z"},
		{"2026-10-31T12:00:00+02:00", true, "2026-10-31T10:00:00Z"},
		{"yesterday", false, ""},
		{"", true, ""},
	} {
		got, err := parseMoment(tc.text, tc.end)
		if tc.want == "" && err == nil || tc.want != "" && (err != nil || got.Format(time.RFC3339) != tc.want) {
			t.Errorf("parseMoment(%q, %v) = %v, %v; want %s", tc.text, tc.end, got, err, tc.want)
		}
	}
}
