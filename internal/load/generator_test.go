package load

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	tallystickv1 "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

var testBase = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

// faulty is a load with every fault.
func faulty(events int64) Options {
	return Options{
		Events: events, Base: testBase, Seed: 7, Tenants: 20, History: 48 * time.Hour, Batch: 100,
		Faults: Faults{Duplicates: 0.05, Late: 0.02, Reorder: 0.1, Poison: 0.02, Conflicts: 0.01, Unpriced: 0.03},
	}
}

type sentEvent struct {
	encoded []byte
	out     oracle.Outcome
}

func collect(t *testing.T, o Options) ([]sentEvent, *oracle.Expectation) {
	t.Helper()
	var all []sentEvent
	e, err := Events(o, func(b []byte, out *oracle.Outcome) error {
		all = append(all, sentEvent{slices.Clone(b), *out})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, e
}

func digest(all []sentEvent) [32]byte {
	h := sha256.New()
	for _, e := range all {
		h.Write(e.encoded)
		h.Write([]byte{'\n'})
	}
	return [32]byte(h.Sum(nil))
}

func TestSameSeedSameBytes(t *testing.T) {
	for _, f := range []Format{Protobuf, JSON, NDJSON} {
		o := faulty(3000)
		o.Format = f
		a, _ := collect(t, o)
		b, _ := collect(t, o)
		o.Seed++
		c, _ := collect(t, o)
		if digest(a) != digest(b) {
			t.Errorf("%s: two runs of one seed differ", f)
		}
		if digest(a) == digest(c) {
			t.Errorf("%s: another seed gives the same events", f)
		}
	}
}

// However a load is cut into chunks, the same events are sent and the
// expectation is the same.
func TestChunksAddUp(t *testing.T) {
	whole, want := collect(t, faulty(2000))
	sortEvents(whole)
	for _, limit := range []int64{1, 333, 1999} {
		var parts []sentEvent
		var state *State
		for position := int64(0); position < 2000; {
			o := faulty(2000)
			o.Limit, o.Resume = min(limit*7, 700), state
			o.URL = "http://unused.invalid"
			if err := o.prepare(); err != nil {
				t.Fatal(err)
			}
			part, e := collect(t, o)
			parts = append(parts, part...)
			position = min(position+o.Limit, 2000)
			state = &State{Plan: o.fingerprint(), Base: o.Base, Next: position, Complete: true, Expectation: *e}
		}
		sortEvents(parts)
		if digest(parts) != digest(whole) {
			t.Errorf("chunks of %d send other events", limit)
		}
		if !sameExpectation(t, want, &state.Expectation) {
			t.Errorf("chunks of %d expect something else", limit)
		}
	}
}

func sortEvents(all []sentEvent) {
	slices.SortFunc(all, func(a, b sentEvent) int { return bytes.Compare(a.encoded, b.encoded) })
}

func sameExpectation(t *testing.T, a, b *oracle.Expectation) bool {
	t.Helper()
	var x, y bytes.Buffer
	if a.Write(&x) != nil || b.Write(&y) != nil {
		t.Fatal("cannot write an expectation")
	}
	return x.String() == y.String()
}

// Every share lies within four standard deviations of what was asked for.
func TestFaultShares(t *testing.T) {
	const n = 40_000
	_, e := collect(t, faulty(n))
	if e.Accepted != n {
		t.Errorf("%d accepted, want every call once: %d", e.Accepted, n)
	}
	for name, c := range map[string]struct {
		got   int64
		share float64
	}{
		"duplicates": {e.Duplicates, 0.05}, "late": {e.Late, 0.02}, "reordered": {e.Reordered, 0.1},
		"poison": {e.Refused, 0.02}, "conflicts": {e.Conflicts, 0.01}, "unpriced": {e.Unpriced, 0.03},
	} {
		tolerance := 4 * math.Sqrt(n*c.share*(1-c.share))
		if math.Abs(float64(c.got)-n*c.share) > tolerance {
			t.Errorf("%s: %d, want %.0f ± %.0f", name, c.got, n*c.share, tolerance)
		}
	}
	if got, want := len(e.RefusedByRule), 18; got != want {
		t.Errorf("%d rules of refusal were used, want %d: %v", got, want, e.RefusedByRule)
	}
}

// What is sent must be what the protobuf schema says, unless it is poison: the
// generated type reads every accepted event, and ids, kinds and money agree.
func TestEventsAreWhatTheOutcomeSays(t *testing.T) {
	o := faulty(20_000)
	all, _ := collect(t, o)
	prices := oracle.Published()
	bodies := map[string]string{}
	firstAt := map[string]int{}
	seqs := map[string]map[int64]bool{}
	for i, s := range all {
		if s.out.Kind == oracle.Refused {
			continue
		}
		ev := new(tallystickv1.UsageEvent)
		if err := proto.Unmarshal(s.encoded, ev); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if len(ev.ProtoReflect().GetUnknown()) > 0 {
			t.Fatalf("event %d has unknown fields", i)
		}
		checkID(t, ev)
		key := ev.TenantId + "/" + ev.EventId
		body, seen := bodies[key]
		switch s.out.Kind {
		case oracle.Accepted:
			if seen && body != string(s.encoded) {
				t.Fatalf("event %d: its id was used with another body before", i)
			}
			producer := ev.TenantId + "/" + ev.ProducerId
			if seqs[producer] == nil {
				seqs[producer] = map[int64]bool{}
			}
			if seqs[producer][ev.ProducerSeq] {
				t.Fatalf("event %d: %s uses number %d twice", i, producer, ev.ProducerSeq)
			}
			seqs[producer][ev.ProducerSeq] = true
			checkMoney(t, prices, ev, &s.out)
		case oracle.Duplicate:
			if seen && body != string(s.encoded) {
				t.Fatalf("event %d: a duplicate with another body", i)
			}
		case oracle.Conflict:
			if !seen || body == string(s.encoded) {
				t.Fatalf("event %d: a conflict needs an earlier, other body", i)
			}
			continue
		}
		bodies[key] = string(s.encoded)
		if _, ok := firstAt[key]; !ok {
			firstAt[key] = i
		}
		if !tenant.ValidID(ev.TenantId) || ev.OccurredAt.AsTime().After(testBase) || ev.OccurredAt.AsTime().Before(testBase.Add(-100*time.Hour)) {
			t.Fatalf("event %d: tenant %q at %s", i, ev.TenantId, ev.OccurredAt.AsTime())
		}
	}
}

func checkID(t *testing.T, ev *tallystickv1.UsageEvent) {
	t.Helper()
	id := ev.EventId
	if len(id) != 36 || id[14] != '7' || !slices.Contains([]byte("89ab"), id[19]) {
		t.Fatalf("%q is no UUIDv7", id)
	}
	var ms int64
	for _, c := range []byte(id[:8] + id[9:13]) {
		ms = ms<<4 | int64(bytes.IndexByte([]byte("0123456789abcdef"), c))
	}
	if ms != ev.OccurredAt.AsTime().UnixMilli() {
		t.Fatalf("the id's time is %d, the event's %d", ms, ev.OccurredAt.AsTime().UnixMilli())
	}
}

func checkMoney(t *testing.T, prices *oracle.Table, ev *tallystickv1.UsageEvent, out *oracle.Outcome) {
	t.Helper()
	k := ev.GetTokens()
	v := tokens.Vector{k.GetInput(), k.GetCacheRead(), k.GetCacheWrite_5M(), k.GetCacheWrite_1H(), k.GetOutput(), k.GetReasoning()}
	cost, priced := prices.Lookup(ev.Provider, ev.Model, ev.ServiceTier).Cost(&v, ev.ContextTokens)
	if v != out.Tokens || cost != out.CostPico || priced != out.Priced || ev.OccurredAt.AsTime().Unix()/3600 != out.Hour {
		t.Fatalf("the event says %v, %d, %v; the outcome %v, %d, %v", v, cost, priced, out.Tokens, out.CostPico, out.Priced)
	}
}

// The JSON forms carry the same events as protobuf.
func TestJSONEqualsProtobuf(t *testing.T) {
	o := faulty(3000)
	o.Faults.Poison = 0
	protos, _ := collect(t, o)
	o.Format = NDJSON
	texts, _ := collect(t, o)
	if len(protos) != len(texts) {
		t.Fatalf("%d against %d events", len(protos), len(texts))
	}
	for i := range protos {
		ev := new(tallystickv1.UsageEvent)
		if err := proto.Unmarshal(protos[i].encoded, ev); err != nil {
			t.Fatal(err)
		}
		var m struct {
			ID       string           `json:"event_id"`
			Tenant   string           `json:"tenant_id"`
			At       time.Time        `json:"occurred_at"`
			Seq      int64            `json:"producer_seq"`
			Provider string           `json:"provider"`
			Model    string           `json:"model"`
			Tier     string           `json:"service_tier"`
			Status   string           `json:"status"`
			Team     string           `json:"team"`
			User     string           `json:"user"`
			Latency  int64            `json:"latency_us"`
			Tokens   map[string]int64 `json:"tokens"`
			Tags     map[string]string
		}
		if err := json.Unmarshal(texts[i].encoded, &m); err != nil {
			t.Fatalf("%v in %s", err, texts[i].encoded)
		}
		if m.ID != ev.EventId || m.Tenant != ev.TenantId || !m.At.Equal(ev.OccurredAt.AsTime()) || m.Seq != ev.ProducerSeq ||
			m.Provider != ev.Provider || m.Model != ev.Model || m.Tier != ev.ServiceTier || m.Status != ev.Status || m.Team != ev.Team ||
			m.User != ev.User || m.Latency != ev.LatencyUs || m.Tokens["input"] != ev.GetTokens().GetInput() ||
			m.Tokens["reasoning"] != ev.GetTokens().GetReasoning() || m.Tags["api_key"] != ev.Tags["api_key"] || m.Tags["source"] != "synthetic" {
			t.Fatalf("%s\n%v", texts[i].encoded, ev)
		}
	}
}

func TestHotShareAndZipf(t *testing.T) {
	const n = 30_000
	o := Options{Events: n, Base: testBase, Tenants: 10, HotShare: 0.5, TenantPrefix: "acme"}
	o.Trace = dataFile(t, deepseekTrace)
	_, e := collect(t, o)
	if got := e.Tenants["acme-0001"].Accepted; math.Abs(float64(got)-n/2) > 400 {
		t.Errorf("the hot tenant has %d of %d", got, n)
	}
	o.HotShare, o.Zipf = 0, 1
	_, e = collect(t, o)
	harmonic := 0.0
	for i := 1.0; i <= 10; i++ {
		harmonic += 1 / i
	}
	for rank, id := range TenantIDs("acme", 10) {
		want := n / harmonic / float64(rank+1)
		if got := float64(e.Tenants[id].Accepted); math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("rank %d has %.0f events, want about %.0f", rank+1, got, want)
		}
	}
	o.Zipf = 0
	all, _ := collect(t, o)
	clients := map[string]string{}
	for _, s := range all {
		ev := new(tallystickv1.UsageEvent)
		if err := proto.Unmarshal(s.encoded, ev); err != nil {
			t.Fatal(err)
		}
		key := ev.Tags["api_key"]
		if was, ok := clients[key]; ok && was != ev.TenantId {
			t.Fatalf("%s belongs to %s and %s", key, was, ev.TenantId)
		}
		clients[key] = ev.TenantId
	}
	if len(clients) < 20 {
		t.Errorf("only %d clients", len(clients))
	}
}

// The synthetic load has a season: nights and weekends are quieter; and every
// status, token class and tier that it promises.
func TestSyntheticIsRealistic(t *testing.T) {
	o := Options{Events: 60_000, Base: testBase, Seed: 3, History: 14 * 24 * time.Hour, Tenants: 50}
	all, e := collect(t, o)
	byHour, byDay := map[int]int{}, map[time.Weekday]int{}
	byStatus := map[string]int{}
	tiers, long := map[string]int{}, 0
	for _, s := range all {
		ev := new(tallystickv1.UsageEvent)
		if err := proto.Unmarshal(s.encoded, ev); err != nil {
			t.Fatal(err)
		}
		at := ev.OccurredAt.AsTime()
		byHour[at.Hour()]++
		byDay[at.Weekday()]++
		byStatus[ev.Status]++
		tiers[ev.ServiceTier]++
		if s.out.Tokens.Prompt() > 200_000 {
			long++
		}
	}
	if byHour[14] < 2*byHour[3] {
		t.Errorf("%d calls at 14 h, %d at 3 h", byHour[14], byHour[3])
	}
	if byDay[time.Tuesday] < 2*byDay[time.Sunday] {
		t.Errorf("%d calls on Tuesdays, %d on Sundays", byDay[time.Tuesday], byDay[time.Sunday])
	}
	if share := float64(byStatus["ok"]) / 60_000; math.Abs(share-0.97) > 0.005 {
		t.Errorf("%.3f of the calls are ok, want 0.97", share)
	}
	for _, s := range []string{"error", "truncated", "cancelled", "blocked", "killed"} {
		if byStatus[s] == 0 {
			t.Errorf("no call is %s", s)
		}
	}
	if tiers["batch"] == 0 || long == 0 || e.Unpriced != 0 || len(e.Models) != 11 {
		t.Errorf("%d batch calls, %d long ones, %d unpriced, %d models", tiers["batch"], long, e.Unpriced, len(e.Models))
	}
	for _, c := range []tokens.Class{tokens.Input, tokens.CacheRead, tokens.CacheWrite5m, tokens.CacheWrite1h, tokens.Output, tokens.Reasoning} {
		if e.Tokens[c] == 0 {
			t.Errorf("no %s tokens", c)
		}
	}
	first := e.Tenants[tenantID("", 0)].Accepted
	if first < 5*e.Tenants[tenantID("", 30)].Accepted {
		t.Errorf("the tenants are not skewed: %d", first)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := func() Options { return Options{URL: "http://127.0.0.1:1"} }
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"no url":           func(o *Options) { o.URL = "" },
		"url scheme":       func(o *Options) { o.URL = "ftp://x" },
		"batch":            func(o *Options) { o.Batch = 1001 },
		"connections":      func(o *Options) { o.Connections = -1 },
		"tenants":          func(o *Options) { o.Tenants = -1 },
		"prefix":           func(o *Options) { o.TenantPrefix = "Not A Slug" },
		"share":            func(o *Options) { o.Faults.Duplicates = 1.1 },
		"nan":              func(o *Options) { o.Faults.Late = math.NaN() },
		"speed and rate":   func(o *Options) { o.Speed, o.Rate = 1, 1 },
		"live with trace":  func(o *Options) { o.Live, o.Rate, o.Trace = true, 1, "x" },
		"live, no rate":    func(o *Options) { o.Live = true },
		"start in future":  func(o *Options) { o.FromStart = true },
		"format":           func(o *Options) { o.Format = "xml" },
		"compression":      func(o *Options) { o.Compress = "br" },
		"token":            func(o *Options) { o.Token = "a\nb" },
		"resume of other":  func(o *Options) { o.Resume = &State{Complete: true, Plan: "other"} },
		"resume in doubt":  func(o *Options) { o.Resume = &State{} },
		"negative events":  func(o *Options) { o.Events = -1 },
		"hot share":        func(o *Options) { o.HotShare = 2 },
		"late by a minute": func(o *Options) { o.Faults.LateMax = time.Minute },
	} {
		o := good()
		change(&o)
		if err := o.Validate(); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHistogramQuantiles(t *testing.T) {
	var h histogram
	for i := 1; i <= 10_000; i++ {
		h.add(time.Duration(i) * time.Millisecond)
	}
	s := h.summary()
	for name, c := range map[string][2]time.Duration{"p50": {s.P50, 5 * time.Second}, "p90": {s.P90, 9 * time.Second}, "p99": {s.P99, 9900 * time.Millisecond}, "max": {s.Max, 10 * time.Second}} {
		if got, want := c[0], c[1]; got < want*99/100 || got > want*107/100 {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for us := uint64(0); us < 5000; us++ {
		if i := bucketOf(us); bucketTop(i) < time.Duration(us)*time.Microsecond || (i > 0 && bucketTop(i-1) >= time.Duration(us)*time.Microsecond) {
			t.Fatalf("%d µs is in bucket %d, up to %s", us, i, bucketTop(i))
		}
	}
}

func BenchmarkEvents(b *testing.B) {
	for _, f := range []Format{Protobuf, JSON} {
		b.Run(string(f), func(b *testing.B) {
			o := Options{Events: int64(b.N) + 1, Trace: dataFile(b, deepseekTrace), Format: f}
			o.Events = min(o.Events, 1_383_669)
			b.ReportAllocs()
			b.ResetTimer()
			n := 0
			for n < b.N {
				if _, err := Events(o, func([]byte, *oracle.Outcome) error { n++; return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
