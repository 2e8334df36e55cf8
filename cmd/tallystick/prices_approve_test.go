package main

import (
	"bytes"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/load"
	"github.com/tallystick/tallystick/internal/money"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// flatAt is what a usage entry costs when every token costs so many 1e-12 USD;
// ok is false for a model that is in no list.
func flatAt(e *client.Entry, pico int64) (cost *big.Int, ok bool) {
	var n int64
	for _, count := range e.Tokens {
		n += int64(count)
	}
	return new(big.Int).Mul(big.NewInt(n), big.NewInt(pico)), e.Kind == "usage" && e.Provider != "inhouse"
}

// A list becomes a candidate, somebody sees what it would have cost and approves
// it, and from then on it prices, also after a kill; nothing else does.
func TestPricesAreApproved(t *testing.T) {
	srv := startFaultServer(t, nil)
	c := client.New(srv.url(), srv.token)
	t.Cleanup(c.Close)
	t.Setenv("TALLYSTICK_URL", srv.url())
	t.Setenv("TALLYSTICK_TOKEN", srv.token)
	const acme = "prices-0001"
	send := func(seed uint64, n int64) {
		t.Helper()
		_, err := load.Run(t.Context(), load.Options{
			Events: n, Seed: seed, Base: time.Now(), History: 24 * time.Hour, Tenants: 1, TenantPrefix: "prices", URL: srv.url(), Token: srv.token, Connections: 2, Batch: 250,
			Timeout: 10 * time.Second, Deadline: time.Minute, Faults: load.Faults{Unpriced: 0.02},
		})
		if err != nil {
			t.Fatal(err)
		}
		await(t, "the load is ledgered", time.Minute, func() bool {
			p, err := c.Pipeline(t.Context())
			return err == nil && p.LedgerLag == 0
		})
	}
	run := func(want int, args ...string) string {
		t.Helper()
		out, err := pricesCommand(t, args...)
		if code := exitCodeOf(err); code != want {
			t.Fatalf("prices %q: exit code %d, want %d: %v\n%s", args, code, want, err, out)
		}
		return out
	}
	since := time.Now().Add(-48 * time.Hour).Format(time.RFC3339) // before any usage of the load
	propose := func(path string) (id string) {
		t.Helper()
		var res pb.ProposePricesResponse
		if err := protojson.Unmarshal([]byte(run(exitOK, "propose", path, "--valid-from", since, "--note", "all at one price", "--json")), &res); err != nil {
			t.Fatal(err)
		}
		return res.Candidate.CandidateId
	}
	send(1, 2_000)

	list := filepath.Join(srv.dir, "list.json")
	flatPrices(t, list)
	id := propose(list)
	if out := run(exitOK, "candidates", id); !strings.Contains(out, "changed    openai/gpt-4o ") || !strings.Contains(out, "proposed") {
		t.Errorf("what it changes: %s", out)
	}

	// What the usage would have cost, by another sum of it.
	var before, after big.Int
	usage := int64(0)
	err := c.Entries(t.Context(), acme, func(e *client.Entry) error {
		if e.Kind != "usage" {
			return nil
		}
		usage++
		own := picoOf(t, e.CostUSD)
		before.Add(&before, own)
		if flat, ok := flatAt(e, flatPico); ok {
			own = flat
		}
		after.Add(&after, own)
		return nil
	})
	if err != nil || usage != 2_000 {
		t.Fatalf("%d usage entries, %v", usage, err)
	}
	var job pb.RerateJob
	text := run(exitOK, "simulate", "--candidate", id, "--tenant", acme, "--from", "2020-01-01", "--to", "2100-01-01", "-o", "json")
	if err := protojson.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	would := new(big.Int).Add(sumOf(t, job.CostBeforeUsd), sumOf(t, job.DifferenceUsd))
	if job.LookedAt != usage || job.Changed == 0 || sumOf(t, job.CostBeforeUsd).Cmp(&before) != 0 || would.Cmp(&after) != 0 {
		t.Errorf("%v: it would cost %s, want %s; it costs %s", &job, would, &after, &before)
	}
	if out := run(exitOK, "simulate", "--candidate", id, "--tenant", acme); !strings.Contains(out, "would be") {
		t.Errorf("last month: %s", out)
	}
	run(exitUsage, "approve", id)
	if out := run(exitOK, "approve", id, "--yes", "--reason", "as agreed"); !strings.Contains(out, "published") {
		t.Errorf("approved: %s", out)
	}
	run(exitConflict, "approve", id, "--yes")
	run(exitConflict, "reject", id)
	if out := run(exitOK, "show", "gpt-4o-mini"); !strings.Contains(out, "book litellm-2020-01-01, ") || !strings.Contains(out, "input 3, ") {
		t.Errorf("in force: %s", out)
	}
	send(2, 500)
	priced, newest := int64(0), client.Int(0)
	err = c.Entries(t.Context(), acme, func(e *client.Entry) error {
		flat, ok := flatAt(e, flatPico)
		switch e.Kind {
		case "usage":
			usage--
		case "correction":
			t.Errorf("entry %d: a simulation has corrected something", e.Seq)
		}
		if usage < 0 && ok { // those of the second load
			newest = e.Seq
			if priced++; e.CostUSD == nil || picoOf(t, e.CostUSD).Cmp(flat) != 0 {
				t.Errorf("entry %d costs %s, want %s", e.Seq, picoOf(t, e.CostUSD), flat)
			}
		}
		return nil
	})
	if err != nil || priced < 400 {
		t.Errorf("%d entries by the new book, %v", priced, err)
	}

	if out := run(exitOK, "explain", fmt.Sprint(newest), "--tenant", acme); !strings.Contains(out, "litellm-2020-01-01") {
		t.Errorf("explained: %s", out)
	}

	// Two candidates of one book: the second is stale when the first is in force.
	dearer, dearest := filepath.Join(srv.dir, "dearer.json"), filepath.Join(srv.dir, "dearest.json")
	first, second := propose(replaced(t, list, dearer, "0.000003", "0.000004")), propose(replaced(t, list, dearest, "0.000003", "0.000005"))
	third := propose(dearest)
	run(exitOK, "reject", third, "--reason", "twice the same")
	run(exitOK, "approve", first, "--yes")
	run(exitConflict, "approve", second, "--yes")
	run(exitNotFound, "approve", "00000000-0000-4000-8000-000000000000", "--yes")
	run(exitUsage, "propose", srv.dir+"/nowhere.json")

	// Prices of GPUs on top of the book in force change nothing else.
	gpus, withGPUs := filepath.Join(srv.dir, "gpus.csv"), filepath.Join(srv.dir, "gpus.jsonl")
	hours := "cloud,region,instance_type,gpu_name,gpu_count,price_kind,usd_per_hour,currency,generated_at\naws,us-east-1,p5.48xlarge,H100,8,spot,20,USD,2026-08-01\n"
	if err := os.WriteFile(gpus, []byte(hours), 0o600); err != nil {
		t.Fatal(err)
	}
	run(exitOK, "gpus", gpus, "--book", "in-force", "-o", withGPUs)
	out := run(exitOK, "propose", withGPUs)
	if !strings.Contains(out, "0 added, 0 removed, 0 changed;") || !strings.Contains(out, "added   aws/p5.48xlarge  us-east-1  spot      8        -              20") {
		t.Errorf("prices of GPUs are proposed: %s", out)
	}

	// The configuration's book does not come back with a restart.
	if _, err := srv.kill(); err != nil {
		t.Fatal(err)
	}
	srv.mustStart(t)
	t.Setenv("TALLYSTICK_URL", srv.url())
	var history pb.ListPriceBooksResponse
	if err := protojson.Unmarshal([]byte(run(exitOK, "history", "--json")), &history); err != nil {
		t.Fatal(err)
	}
	if b := history.Books; len(b) != 3 || b[0].CandidateId != first || b[1].CandidateId != id || b[2].CandidateId != "" || b[0].ApprovedBy == "" {
		t.Errorf("history: %v", b)
	}
	if out := run(exitOK, "candidates", "--state", "rejected"); !strings.Contains(out, third) || strings.Contains(out, first) {
		t.Errorf("rejected: %s", out)
	}
	var trail bytes.Buffer
	root := newRootCommand()
	root.SetArgs([]string{"audit", "tail", "--installation", "--json", "--limit", "100"})
	root.SetOut(&trail)
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for action, want := range map[string]int{"prices.propose": 5, "prices.approve": 2, "prices.reject": 1, "prices.publish": 2} {
		if n := strings.Count(trail.String(), `"`+action+`"`); n != want {
			t.Errorf("%d rows of %s in the audit log, want %d", n, action, want)
		}
	}
}

// replaced writes a copy of a list with other text in it, of another day.
func replaced(t *testing.T, from, to, old, text string) string {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, bytes.ReplaceAll(b, []byte(old), []byte(text)), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func sumOf(t *testing.T, text string) *big.Int {
	t.Helper()
	s, err := money.ParseSum(text)
	if err != nil {
		t.Fatal(err)
	}
	return s.Big()
}

// picoOf is a cost in 1e-12 USD, 0 for none.
func picoOf(t *testing.T, usd *string) *big.Int {
	t.Helper()
	if usd == nil {
		return new(big.Int)
	}
	return sumOf(t, *usd)
}
