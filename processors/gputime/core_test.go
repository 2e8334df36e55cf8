package gputime

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/gpu"
)

const second = int64(million)

// base is a whole hour.
const base = 1_760_000_400 * int64(million)

var testOptions = Options{Window: time.Minute, Lateness: 30 * time.Second, MaxGap: 20 * time.Second, Horizon: 10 * time.Minute}

// world runs a Core over a store in memory.
type world struct {
	t      testing.TB
	opts   Options
	core   *Core
	store  map[Place]Stored
	events []event.Event
	counts Counts
}

func newWorld(t testing.TB, opts Options) *world {
	return &world{t: t, opts: opts, core: NewCore(opts, 0, 0), store: map[Place]Stored{}}
}

func (w *world) apply(b *Batch) {
	w.t.Helper()
	needs := map[Place]struct{}{}
	w.core.Needs(b, needs)
	for p := range needs {
		if s, ok := w.store[p]; ok {
			w.learn(&s)
		}
	}
	w.core.Apply(b)
}

func (w *world) learn(s *Stored) {
	w.t.Helper()
	if err := w.core.Learn(s); err != nil {
		w.t.Fatal(err)
	}
}

// commit stores what happened.
func (w *world) commit() {
	ch := w.core.Take()
	w.events = append(w.events, ch.Events...)
	for _, s := range ch.Windows {
		w.store[s.Place] = s
	}
	for p, s := range w.store {
		if s.End < ch.Forget && s.DirtySince == 0 {
			delete(w.store, p)
		}
	}
	for _, n := range ch.Counts {
		w.counts.add(&n)
	}
}

// die throws away all but what is stored.
func (w *world) die() {
	w.core = NewCore(w.opts, w.core.Clock(), w.core.Oldest())
	for _, s := range w.store {
		if s.DirtySince != 0 {
			w.learn(&s)
		}
	}
}

// flush lets time pass until nothing waits.
func (w *world) flush() {
	for until, ok := w.core.Waiting(); ok; until, ok = w.core.Waiting() {
		w.core.Apply(&Batch{ReceivedAt: until})
	}
	w.commit()
}

// net is what the events of a tenant come to by GPU, window, owner and state, and
// checks that each correction follows on what it corrects.
func net(t testing.TB, events []event.Event) map[string]int64 {
	t.Helper()
	originals, out, seen := map[string]string{}, map[string]int64{}, map[string]bool{}
	for i := range events {
		e := &events[i]
		if seen[e.ID] {
			t.Fatalf("two events %s", e.ID)
		}
		seen[e.ID] = true
		e.ServiceTier, e.Status = "standard", "ok"
		if err := e.Validate(false); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
		name := fmt.Sprintf("%d %v %s %s %s %s %s %s %s", e.OccurredAt/1e9, e.Tags, e.Provider, e.Model, e.PurchaseOption, e.GPUState, e.Team, e.Service, e.Environment)
		switch {
		case e.Corrects == "":
			originals[e.ID] = name
		case originals[e.Corrects] != name:
			t.Fatalf("%q corrects %q", name, originals[e.Corrects])
		}
		out[name] = e.GPUMicros
		if e.GPUMicros == 0 {
			delete(out, name)
		}
	}
	return out
}

func total(parts map[string]int64) (sum int64) {
	for _, n := range parts {
		sum += n
	}
	return sum
}

func owner(team, pod string) Owner { return Owner{Namespace: "ml", Pod: pod, Team: team} }

func factsFrom(s *Sample) *facts {
	f, err := factsOf(string(appendFacts(nil, s)))
	if err != nil {
		panic(err)
	}
	return f
}

// drawBatches draws some minutes of some devices: with MIG, time slicing, gaps,
// overlaps, point samples, duplicates.
func drawBatches(t *rapid.T) []Batch {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	var samples []Sample
	for g := range 1 + rng.IntN(3) {
		mig, clock := rng.IntN(3) == 0, base+rng.Int64N(30)*second
		collectors := rng.IntN(3) // how many tell of the device beside the agent
		for range 5 + rng.IntN(40) {
			step := (1 + rng.Int64N(9)) * second
			if rng.IntN(8) == 0 {
				step = rng.Int64N(200) * second
			}
			start := clock
			clock += step
			if rng.IntN(6) == 0 {
				start -= rng.Int64N(10) * second // overlaps
			}
			if rng.IntN(5) == 0 {
				start = clock // since when is not said
			}
			s := Sample{
				GPU: fmt.Sprintf("GPU-%d", g), Start: min(start, clock), End: clock, MIGEnabled: mig, Used: rng.Int64N(million+2) - 1,
				Device: Device{Host: "h", Model: "H100", Cloud: "aws", Region: "us-east-1", Instance: "p5.48xlarge", Purchase: "spot"},
			}
			s.Used = max(s.Used, Unknown)
			var claims []Claim
			for range rng.IntN(4) {
				c := Claim{Owner: owner(fmt.Sprint("t", rng.IntN(3)), fmt.Sprint("p", rng.IntN(2))), Share: Unknown, Used: Unknown}
				if rng.IntN(2) == 0 {
					c.Share = 1 + rng.Int64N(million)
				}
				if rng.IntN(2) == 0 {
					c.Used = rng.Int64N(million + 1)
				}
				claims = append(claims, c)
			}
			s.Claims = mergeClaims(claims)
			samples = append(samples, s)
			if mig {
				for i, profile := range []string{"1g.10gb", "3g.40gb", "4g.40gb"}[:rng.IntN(4)] {
					m := s
					m.MIG, m.Profile, m.MIGEnabled = fmt.Sprint("MIG-", i), profile, false
					samples = append(samples, m)
				}
			}
			for range collectors {
				samples = append(samples, drawRelayed(rng, s)...)
			}
		}
	}
	slices.SortFunc(samples, func(a, b Sample) int { return int(a.End/second - b.End/second) })
	var batches []Batch
	for len(samples) > 0 {
		n := min(len(samples), 1+rng.IntN(6))
		b := Batch{Tenant: "acme", Agent: "a", Samples: samples[:n]}
		b.ReceivedAt = b.Samples[n-1].End + rng.Int64N(3)*second
		samples = samples[n:]
		batches = append(batches, b)
		if rng.IntN(10) == 0 {
			batches = append(batches, batches[rng.IntN(len(batches))]) // again
		}
	}
	return batches
}

// drawRelayed is a collector's look at the device of a sample, in pieces.
func drawRelayed(rng *rand.Rand, s Sample) (pieces []Sample) {
	s.Relayed, s.End = true, s.End+rng.Int64N(3)*second
	s.Start = s.End
	for range 1 + rng.IntN(2) {
		m := s
		m.Used = max(Unknown, rng.Int64N(million+2)-1)
		m.Claims = nil
		for i := range rng.IntN(3) {
			m.Claims = append(m.Claims, Claim{Owner: owner(fmt.Sprint("t", i), ""), Share: Unknown, Used: Unknown})
		}
		if m.Device.Host = "h"; rng.IntN(2) == 0 {
			m.Device = Device{Host: "h2"}
		}
		if s.MIGEnabled && rng.IntN(2) == 0 {
			m.MIG, m.Profile, m.MIGEnabled = "MIG-GPU/1", []string{"1g.10gb", unnamed}[rng.IntN(2)], true
		}
		pieces = append(pieces, m)
	}
	return pieces
}

// observed is in how many seconds any sample of a device says something, computed
// second by second. All times of drawBatches are whole seconds.
func observed(batches []Batch, maxGap int64) int64 {
	type key struct{ gpu, mig string }
	ends := map[key][]int64{}
	for i := range batches {
		for _, s := range batches[i].Samples {
			ends[key{s.GPU, s.part()}] = append(ends[key{s.GPU, s.part()}], s.End)
		}
	}
	// Which of two samples of one end counts is the code's choice: take it over.
	chosen := map[key]map[int64]*observation{}
	for i := range batches {
		for j := range batches[i].Samples {
			s := &batches[i].Samples[j]
			k := key{s.GPU, s.part()}
			w := newWindow(place{})
			w.add(s, factsFrom(s))
			o := &w.parts[s.part()][0]
			if chosen[k] == nil {
				chosen[k] = map[int64]*observation{}
			}
			if was := chosen[k][s.End]; was == nil || string(o.encode(nil)) < string(was.encode(nil)) {
				chosen[k][s.End] = o
			}
		}
	}
	seconds := map[string]map[int64]bool{}
	for k, list := range chosen {
		if seconds[k.gpu] == nil {
			seconds[k.gpu] = map[int64]bool{}
		}
		sorted := slices.Sorted(maps.Keys(list))
		point := int64(0)
		for _, end := range sorted {
			o := list[end]
			from := max(o.start, end-maxGap)
			if o.start == end {
				if from = point; end-point > maxGap {
					from = end
				}
				point = end
			}
			for ; from < end; from += second {
				seconds[k.gpu][from] = true
			}
		}
	}
	n := int64(0)
	for _, of := range seconds {
		n += int64(len(of))
	}
	return n * second
}

// The parts of all windows add up to the time in which devices were observed.
func TestPartsAddUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		batches := drawBatches(rt)
		w := newWorld(t, testOptions)
		for i := range batches {
			w.apply(&batches[i])
		}
		w.flush()
		if w.counts.Late > 0 {
			return // what is beyond the horizon is counted, and not in the sum
		}
		got, want := total(net(t, w.events)), observed(batches, testOptions.MaxGap.Microseconds())
		if got != want {
			rt.Fatalf("%d µs accounted, %d observed", got, want)
		}
		var sent int64
		for i := range batches {
			sent += int64(len(batches[i].Samples))
		}
		if n := w.counts; n.Accounted+n.Duplicate+n.Late+n.Future+n.Malformed != sent {
			rt.Fatalf("%+v of %d", n, sent)
		}
	})
}

// Whatever is committed together, and whenever the process dies after a commit, the
// events are the same, in the same order.
func TestReplayMakesTheSameEvents(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		batches := drawBatches(rt)
		straight := newWorld(t, testOptions)
		for i := range batches {
			straight.apply(&batches[i])
		}
		straight.flush()
		broken := newWorld(t, testOptions)
		for i := range batches {
			broken.apply(&batches[i])
			switch rapid.IntRange(0, 4).Draw(rt, "after") {
			case 0:
				broken.commit()
			case 1:
				broken.commit()
				broken.die()
			}
		}
		broken.commit()
		broken.die()
		broken.flush()
		if !reflect.DeepEqual(straight.events, broken.events) {
			rt.Fatalf("%d events, and %d with commits between", len(straight.events), len(broken.events))
		}
		if straight.counts != broken.counts {
			rt.Fatalf("%+v, and %+v with commits between", straight.counts, broken.counts)
		}
	})
}

// In which order batches come, and how late within the horizon, changes how many
// revisions there are, and nothing of what they come to.
func TestOrderChangesNoSum(t *testing.T) {
	opts := testOptions
	opts.Horizon = 24 * time.Hour
	rapid.Check(t, func(rt *rapid.T) {
		batches := drawBatches(rt)
		straight := newWorld(t, opts)
		for i := range batches {
			straight.apply(&batches[i])
		}
		straight.flush()
		shuffled := newWorld(t, opts)
		last := int64(0)
		for i := range batches {
			last = max(last, batches[i].ReceivedAt)
		}
		for n, i := range rapid.Permutation(indices(len(batches))).Draw(rt, "order") {
			b := batches[i]
			b.ReceivedAt = last + int64(n)*rapid.Int64Range(0, 60).Draw(rt, "wait")*second
			shuffled.apply(&b)
		}
		shuffled.flush()
		if a, b := net(t, straight.events), net(t, shuffled.events); !reflect.DeepEqual(a, b) {
			for k := range a {
				if a[k] != b[k] {
					rt.Errorf("%s: %d in order, %d shuffled", k, a[k], b[k])
				}
			}
			rt.Fatalf("%d items in order, %d shuffled", len(a), len(b))
		}
	})
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// samplesOf are samples of ten seconds each from a time on.
func samplesOf(gpu string, from, n int64, change func(i int64, s *Sample)) []Sample {
	var out []Sample
	for i := range n {
		s := Sample{GPU: gpu, Start: from + i*10*second, End: from + (i+1)*10*second, Used: Unknown, Device: Device{Cloud: "aws", Instance: "p5"}}
		if change != nil {
			change(i, &s)
		}
		out = append(out, s)
	}
	return out
}

// states runs samples that came in time and gives the seconds per state and team.
func states(t *testing.T, samples []Sample) map[string]int64 {
	t.Helper()
	w := newWorld(t, testOptions)
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: samples[len(samples)-1].End, Samples: samples})
	w.flush()
	net(t, w.events)
	out := map[string]int64{}
	for i := range w.events {
		e := &w.events[i]
		mig := ""
		for _, tag := range e.Tags {
			if tag.Key == "mig" {
				mig = " " + tag.Value
			}
		}
		out[e.GPUState+" "+e.Team+mig] += e.GPUMicros
	}
	return out
}

func TestAllocation(t *testing.T) {
	solo := func(team string, used int64) []Claim {
		return []Claim{{Owner: owner(team, ""), Share: Unknown, Used: used}}
	}
	for _, tc := range []struct {
		name    string
		samples []Sample
		want    map[string]int64
	}{
		{"one owner, a quarter used", samplesOf("g", base, 6, func(_ int64, s *Sample) { s.Used, s.Claims = 250_000, solo("a", Unknown) }),
			map[string]int64{"used a": 15 * second, "idle a": 45 * second}},
		{"nobody measured: unknown, and not idle", samplesOf("g", base, 6, func(_ int64, s *Sample) { s.Claims = solo("a", Unknown) }),
			map[string]int64{"unknown a": 60 * second}},
		{"measured for half of the time", samplesOf("g", base, 6, func(i int64, s *Sample) {
			s.Claims = solo("a", Unknown)
			if i < 3 {
				s.Used = 0
			}
		}), map[string]int64{"idle a": 30 * second, "unknown a": 30 * second}},
		{"nobody has it", samplesOf("g", base, 6, func(_ int64, s *Sample) { s.Used = 0 }), map[string]int64{"unallocated ": 60 * second}},
		{"nobody has it and something ran", samplesOf("g", base, 6, func(_ int64, s *Sample) { s.Used = 500_000 }),
			map[string]int64{"used ": 30 * second, "unallocated ": 30 * second}},
		{"nobody is named and nothing measured", samplesOf("g", base, 6, nil), map[string]int64{"unknown ": 60 * second}},
		{"its own process counts before the device", samplesOf("g", base, 6, func(_ int64, s *Sample) { s.Used, s.Claims = million, solo("a", 500_000) }),
			map[string]int64{"used a": 30 * second, "idle a": 30 * second}},
		{"two of four slices", samplesOf("g", base, 6, func(_ int64, s *Sample) {
			s.Used = million
			s.Claims = []Claim{{owner("a", ""), 250_000, Unknown}, {owner("b", ""), 250_000, Unknown}}
		}), map[string]int64{"used a": 15 * second, "used b": 15 * second, "unallocated ": 30 * second}},
		{"two without shares, measured by process", samplesOf("g", base, 6, func(_ int64, s *Sample) {
			s.Claims = []Claim{{owner("a", ""), Unknown, 500_000}, {owner("b", ""), Unknown, 100_000}}
		}), map[string]int64{"used a": 30 * second, "used b": 6 * second, "idle b": 24 * second}},
		{"three thirds, to the microsecond", samplesOf("g", base, 6, func(_ int64, s *Sample) {
			s.Claims = []Claim{{owner("a", ""), Unknown, Unknown}, {owner("b", ""), Unknown, Unknown}, {owner("c", ""), Unknown, Unknown}}
		}), map[string]int64{"unknown a": 6 * 3_333_333, "unknown b": 6 * 3_333_333, "unknown c": 6 * 3_333_334}},
		{"a gap is not bridged", append(samplesOf("g", base, 1, func(_ int64, s *Sample) { s.Used = 0 }), samplesOf("g", base+50*second, 1, func(_ int64, s *Sample) { s.Used, s.Start = 0, s.End })...),
			map[string]int64{"unallocated ": 10 * second}},
		{"a sample stands for no more than the bound", samplesOf("g", base, 1, func(_ int64, s *Sample) { s.Used, s.Start, s.End = 0, base-40*second, base+10*second }),
			map[string]int64{"unallocated ": 20 * second}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := states(t, tc.samples); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %v\nwant %v", got, tc.want)
			}
		})
	}
}

// A device of seven compute slices, of which instances of four are there: the
// instances by their slices, and the rest is nobody's.
func TestMIG(t *testing.T) {
	var samples []Sample
	for _, profile := range []string{"1g.10gb", "3g.40gb"} {
		samples = append(samples, samplesOf("g", base, 7, func(_ int64, s *Sample) {
			s.MIG, s.Profile, s.Claims = "MIG-"+profile, profile, []Claim{{Owner: owner(profile[:1], ""), Share: Unknown, Used: Unknown}}
		})...)
	}
	samples = append(samples, samplesOf("g", base, 7, func(_ int64, s *Sample) { s.MIGEnabled, s.Used = true, million })...)
	want := map[string]int64{"unknown 1 1g.10gb": 10 * second, "unknown 3 3g.40gb": 30 * second, "unallocated ": 30 * second}
	got := states(t, samples)
	for k, v := range want {
		if d := got[k] - v; d < -10 || d > 10 { // a microsecond for each stretch
			t.Errorf("%s: %d, want %d", k, got[k], v)
		}
	}
	if total(got) != 70*second {
		t.Errorf("%v is not a device's 70 seconds", got)
	}
	for _, tc := range []struct {
		profile, model string
		n, of          int64
		ok             bool
	}{
		{"7g.80gb", "H100", 7, 7, true}, {"1c.3g.40gb", "H100", 1, 7, true}, {"1g.10gb+me", "H100", 1, 7, true}, {"2g.12gb", "NVIDIA A30", 2, 4, true},
		{"", "H100", 0, 7, false}, {"9g.1gb", "H100", 9, 7, false}, {"half", "H100", 0, 7, false},
	} {
		if n, of, ok := migSlices(tc.profile, tc.model); ok != tc.ok || ok && (n != tc.n || of != tc.of) {
			t.Errorf("%s on %s: %d of %d, %v", tc.profile, tc.model, n, of, ok)
		}
	}
}

// A sample that comes after the window's events makes revision 1 of those that it
// changes, and no second body under an id.
func TestLateSamplesCorrect(t *testing.T) {
	w := newWorld(t, testOptions)
	all := samplesOf("g", base, 6, func(i int64, s *Sample) {
		s.Used, s.Claims = 0, []Claim{{Owner: owner("a", "p"), Share: Unknown, Used: Unknown}}
		if i == 3 {
			s.Used, s.Claims = million, []Claim{{Owner: owner("b", "q"), Share: Unknown, Used: Unknown}}
		}
	})
	late := all[3]
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 60*second, Samples: slices.Delete(slices.Clone(all), 3, 4)})
	w.flush()
	if len(w.events) != 1 || w.events[0].GPUMicros != 50*second || w.events[0].Corrects != "" {
		t.Fatalf("%+v", w.events)
	}
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 200*second, Samples: []Sample{late}})
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 201*second, Samples: all})
	w.flush()
	if len(w.events) != 2 || w.events[1].Team != "b" || w.events[1].GPUState != event.GPUUsed || w.events[1].Corrects != "" {
		t.Fatalf("what is new is no correction: %+v", w.events[1:])
	}
	// A sample that cuts a's into two: less for a.
	cut := Sample{GPU: "g", Start: base, End: base + 5*second, Used: 0, Device: all[0].Device}
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 300*second, Samples: []Sample{cut}})
	w.flush()
	var correction *event.Event
	for i := range w.events[2:] {
		if e := &w.events[2+i]; e.Corrects != "" {
			correction = e
		}
	}
	if correction == nil || correction.Corrects != w.events[0].ID || correction.GPUMicros != 45*second || correction.CorrectionReason == "" || correction.ID == w.events[0].ID {
		t.Fatalf("%+v", w.events[2:])
	}
	if w.counts.Duplicate != 6 {
		t.Errorf("%+v", w.counts)
	}
}

// Samples beyond the horizon and ahead of their receipt are counted, and in no sum.
func TestRefusedSamplesAreCounted(t *testing.T) {
	w := newWorld(t, testOptions)
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base, Samples: samplesOf("g", base+gpu.MaxAhead.Microseconds(), 2, nil), Malformed: 3})
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base, Samples: samplesOf("g", base-11*60*second, 2, nil)})
	w.flush()
	if len(w.events) != 0 || w.counts != (Counts{Future: 2, Late: 2, Malformed: 3}) {
		t.Errorf("%d events, %+v", len(w.events), w.counts)
	}
}

// A longer horizon counts for what comes from then on. A window that the shorter one
// has forgotten takes no sample again: its events would have ids that there are.
func TestLongerHorizonOpensNoForgottenWindow(t *testing.T) {
	w := newWorld(t, testOptions)
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 60*second, Samples: samplesOf("g", base, 3, nil)})
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 3600*second})
	w.flush()
	if len(w.store) != 0 || len(w.events) == 0 {
		t.Fatalf("%d windows are kept, %d events", len(w.store), len(w.events))
	}
	before := len(w.events)
	w.opts.Horizon = 48 * time.Hour
	w.die()
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 3601*second, Samples: samplesOf("g", base+30*second, 3, nil)})
	w.flush()
	if len(w.events) != before || w.counts != (Counts{Accounted: 3, Late: 3}) {
		t.Errorf("%d events more, %+v", len(w.events)-before, w.counts)
	}
	// What comes in the days after is late by the new one.
	w.apply(&Batch{Tenant: "acme", Agent: "a", ReceivedAt: base + 40*3600*second, Samples: samplesOf("g", base+3600*second, 3, nil)})
	w.flush()
	if len(w.events) == before || w.counts != (Counts{Accounted: 6, Late: 3}) {
		t.Errorf("%d events more, %+v", len(w.events)-before, w.counts)
	}
}

func FuzzDecodeWindow(f *testing.F) {
	w := newWindow(place{"acme", "g", base})
	for _, s := range samplesOf("g", base, 3, func(_ int64, s *Sample) { s.Claims = []Claim{{Owner: owner("a", "p"), Share: 5, Used: 7}} }) {
		w.add(&s, factsFrom(&s))
	}
	f.Add(w.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWindow(place{"acme", "g", base})
		if w.decode(b, factsOf) == nil {
			again := newWindow(w.place)
			if err := again.decode(w.encode(), factsOf); err != nil {
				t.Fatalf("what was decoded does not encode: %v", err)
			}
		}
	})
}
