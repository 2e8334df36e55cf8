package main

import (
	"bytes"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/load"
)

func smokeLoad() load.Options {
	return load.Options{
		Events: 4000, Seed: 3, Base: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Tenants: 3, HotShare: smokeHotShare, History: 24 * time.Hour,
		Faults: load.Faults{Duplicates: 0.05, Late: 0.02, Reorder: 0.10, Poison: 0.01, Conflicts: 0.01, Unpriced: 0.02},
	}
}

// compared runs the comparison against the fake and returns what it found.
func compared(t *testing.T, f *fakeAPI, change func(*load.Result)) (*smoke, string) {
	t.Helper()
	var log bytes.Buffer
	s := &smoke{f: &smokeFlags{}, log: &log, begin: time.Now(), want: f.want}
	s.verified, s.ledgers = map[string]*client.Verification{}, map[string]*smokeLedger{}
	s.api = client.New(f.serve(t).URL, "")
	t.Cleanup(s.api.Close)
	s.res = &load.Result{State: load.State{Expectation: f.want.Expectation}, Acked: f.want.sent}
	if change != nil {
		change(s.res)
	}
	for _, err := range []error{
		s.verifyLedgers(t.Context()), s.checkReports(t.Context()), s.readLedgers(t.Context()), s.checkLedgers(t.Context()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return s, log.String()
}

func TestSmokeAgrees(t *testing.T) {
	w, err := expectSmoke(smokeLoad())
	if err != nil {
		t.Fatal(err)
	}
	if w.Conflicts == 0 || w.Unpriced == 0 || w.Duplicates == 0 || w.Refused == 0 {
		t.Fatalf("the load lacks a kind: %+v", w.Totals)
	}
	s, log := compared(t, newFakeAPI(t, w), nil)
	if s.faults != 0 || s.broken || s.verdict != "ok" {
		t.Errorf("verdict %s, %d faults:\n%s", s.verdict, s.faults, log)
	}
	line := s.lastLine(nil)
	if usd := w.USD.String(); !strings.Contains(line, " ledger_usd="+usd+" clickhouse_usd="+usd+" oracle_usd="+usd+" verify=ok ") {
		t.Errorf("last line %q", line)
	}
}

// Whatever is wrong in a ledger or a report is found, and its tenant named.
func TestSmokeFindsWhatIsWrong(t *testing.T) {
	const hot = "northwind-bank"
	var last int // a priced usage entry of the hot tenant
	for name, c := range map[string]struct {
		spoil  func(f *fakeAPI)
		answer func(*load.Result)
		want   string
	}{
		"an entry is missing": {spoil: func(f *fakeAPI) { f.entries[hot] = slices.Delete(f.entries[hot], last, last+1) }, want: "is missing"},
		"an event twice":      {spoil: func(f *fakeAPI) { f.add(hot, f.entries[hot][last]) }, want: "is there twice"},
		"a gap":               {spoil: func(f *fakeAPI) { f.entries[hot][last].Seq++ }, want: "follows entry"},
		"1e-12 USD too much": {spoil: func(f *fakeAPI) {
			p, _ := parseUSD(*f.entries[hot][last].CostUSD)
			text := usdText(p.Add(p, big.NewInt(1)))
			f.entries[hot][last].CostUSD = &text
		}, want: "cost"},
		"no price":      {spoil: func(f *fakeAPI) { f.entries[hot][last].CostUSD = nil }, want: "priced=false"},
		"another event": {spoil: func(f *fakeAPI) { f.entries[hot][last].EventID = "nobody's" }, want: "which nobody sent"},
		"another hour": {spoil: func(f *fakeAPI) {
			at := f.entries[hot][last].OccurredAt.Add(time.Hour)
			f.entries[hot][last].OccurredAt = &at
		}, want: "hour="},
		"a token more":     {spoil: func(f *fakeAPI) { f.entries[hot][last].Tokens["output"]++ }, want: "tokens"},
		"a kind we forgot": {spoil: func(f *fakeAPI) { f.add(hot, client.Entry{Kind: "declared_loss"}) }, want: `of kind "declared_loss"`},
		"a rejection of a good event": {spoil: func(f *fakeAPI) {
			f.add(hot, client.Entry{Kind: "rejected", EventID: f.entries[hot][last].EventID, RejectReason: "invalid"})
		}, want: "which was not sent so"},
		"a conflict is missing": {spoil: func(f *fakeAPI) {
			f.entries[hot] = slices.DeleteFunc(f.entries[hot], func(e client.Entry) bool { return e.Kind == "rejected" })
		}, want: "was not rejected"},
		"a tenant is missing":  {spoil: func(f *fakeAPI) { delete(f.verify, hot) }, want: "is not listed"},
		"a broken chain":       {spoil: func(f *fakeAPI) { f.verify[hot] = client.Verification{Verdict: "broken", FirstBadSeq: 5} }, want: "broken at entry 5"},
		"half a verification":  {spoil: func(f *fakeAPI) { v := f.verify[hot]; v.Entries, v.ToSeq = 9, 9; f.verify[hot] = v }, want: "were verified"},
		"another chain":        {spoil: func(f *fakeAPI) { f.head(hot).ChainHash = "forged" }, want: "verified was"},
		"an unknown verdict":   {spoil: func(f *fakeAPI) { f.verify[hot] = client.Verification{Verdict: "unknown"} }, want: "verdict"},
		"ClickHouse's money":   {spoil: func(f *fakeAPI) { s := f.summary[hot]; s.Totals.CostUSD = "1.5"; f.summary[hot] = s }, want: "ClickHouse: cost: 1.500000000000"},
		"ClickHouse's count":   {spoil: func(f *fakeAPI) { s := f.summary[hot]; s.Totals.Requests++; f.summary[hot] = s }, want: "ClickHouse: requests"},
		"ClickHouse is behind": {spoil: func(f *fakeAPI) { s := f.summary[hot]; s.Coverage.ToSeq--; f.summary[hot] = s }, want: "covers entries"},
		"ClickHouse's hour":    {spoil: func(f *fakeAPI) { f.hours[hot].Series[0].Requests[30]++ }, want: "ClickHouse: requests of 20"},
		"ClickHouse's team": {spoil: func(f *fakeAPI) {
			g := f.groups[hot]["team"]
			g.Groups = g.Groups[1:]
			f.groups[hot]["team"] = g
		}, want: "of team"},
		"an unexpected answer": {answer: func(r *load.Result) { r.Surprises = 1 }, want: "answers other than expected"},
		"a lost poison":        {answer: func(r *load.Result) { r.Expectation.Refused-- }, want: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := expectSmoke(smokeLoad())
			if err != nil {
				t.Fatal(err)
			}
			f := newFakeAPI(t, w)
			last = slices.IndexFunc(f.entries[hot], func(e client.Entry) bool { return e.CostUSD != nil && *e.CostUSD != usdText(new(big.Int)) })
			if c.spoil != nil {
				c.spoil(f)
			}
			s, log := compared(t, f, c.answer)
			if s.faults == 0 || !strings.Contains(log, c.want) {
				t.Errorf("%d faults, %q is not among them:\n%s", s.faults, c.want, log)
			}
			if s.broken != (name == "a broken chain") {
				t.Errorf("broken is %t", s.broken)
			}
			if line := s.lastLine(errors.New("x")); !strings.HasPrefix(line, "smoke: FAILED seed=") {
				t.Errorf("last line %q", line)
			}
		})
	}
}

// The kills fall into their spans, by seed, and only while requests are under way.
func TestSmokeMoments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &smoke{f: &smokeFlags{seed: rapid.Uint64().Draw(t, "seed")}, want: &smokeWant{sent: 100_000}}
		m, again := s.moments(), s.moments()
		if !slices.Equal(m.at, again.at) {
			t.Fatalf("%v, then %v", m.at, again.at)
		}
		for i, at := range m.at {
			if share := float64(at) / 100_000; share < smokeSpans[i][0]-0.001 || share > smokeSpans[i][1] {
				t.Fatalf("kill %d at %v", i, share)
			}
		}
		first := m.at[0]
		m.progress(first-1, first-1)
		m.progress(first, first) // nothing under way
		if len(m.due) != 0 {
			t.Fatal("too early")
		}
		m.progress(first+700, first)
		m.progress(first+700, first+1)
		if len(m.due) != 1 || <-m.due != 700 {
			t.Fatal("not due, or twice")
		}
		m.close()
		m.progress(100_001, 100_000)
		if _, open := <-m.due; open {
			t.Fatal("due after the end")
		}
	})
}

func TestUSD(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pico := big.NewInt(rapid.Int64().Draw(t, "pico"))
		pico.Mul(pico, big.NewInt(rapid.Int64().Draw(t, "factor")))
		back, err := parseUSD(usdText(pico))
		if err != nil || back.Cmp(pico) != 0 {
			t.Fatalf("%s became %s: %v", pico, back, err)
		}
	})
	for text, want := range map[string]int64{"0": 0, "1.5": 15e11, "-0.000000000001": -1, "7.": 7e12} {
		if got, err := parseUSD(text); err != nil || got.Int64() != want {
			t.Errorf("%q is %v, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-", ".", "1e3", "1.0000000000001", "1,5", "--1", "+1", " 1", "0x1", "1.2.3"} {
		if got, err := parseUSD(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// The server under test gets none of the caller's settings but the engines'
// folder, and brokers that are meant for tests.
func TestSmokeEnvironment(t *testing.T) {
	s := &smokeServer{dir: "/tmp/smoke-1"}
	env := s.environment([]string{"PATH=/bin", "TALLYSTICK_POSTGRES_DSN=production", "TALLYSTICK_KAFKA_BROKERS=production", "TALLYSTICK_ENGINES_DIR=/e"})
	if want := append([]string{"PATH=/bin", "TALLYSTICK_ENGINES_DIR=/e"}, config.FreePorts()...); !slices.Equal(env, want) {
		t.Errorf("%q, want %q", env, want)
	}
	env = s.environment([]string{
		"TALLYSTICK_TEST_KAFKA_BROKERS=a:1,b:2,c:3", "TALLYSTICK_TEST_KAFKA_SASL_USER=u",
		"TALLYSTICK_TEST_KAFKA_SASL_PASSWORD=p", "TALLYSTICK_TEST_KAFKA_SASL_MECHANISM=SCRAM-SHA-256",
	})
	env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasSuffix(kv, "LISTEN=127.0.0.1:0") })
	slices.Sort(env)
	if want := []string{
		"TALLYSTICK_KAFKA_BROKERS=a:1,b:2,c:3", "TALLYSTICK_KAFKA_REPLICATION=3", "TALLYSTICK_KAFKA_SASL_MECHANISM=SCRAM-SHA-256",
		"TALLYSTICK_KAFKA_SASL_PASSWORD=p", "TALLYSTICK_KAFKA_SASL_USERNAME=u", "TALLYSTICK_KAFKA_TOPIC_PREFIX=smoke-1-",
	}; !slices.Equal(env, want) {
		t.Errorf("%q, want %q", env, want)
	}
}
