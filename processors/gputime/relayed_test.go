package gputime

import (
	"maps"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// pointsOf are a collector's looks at a device, ten seconds apart.
func pointsOf(gpu string, from, n int64, change func(i int64, s *Sample)) []Sample {
	out := samplesOf(gpu, from, n, nil)
	for i := range out {
		out[i].Relayed, out[i].Start = true, out[i].End
		if change != nil {
			change(int64(i), &out[i])
		}
	}
	return out
}

// together runs samples of several sources in time.
func together(t *testing.T, lists ...[]Sample) map[string]int64 {
	t.Helper()
	var all []Sample
	last := int64(0)
	for _, list := range lists {
		all = append(all, list...)
		last = max(last, list[len(list)-1].End)
	}
	all = append(all, Sample{GPU: "clock", Start: last, End: last, Used: 0}) // stands for no time
	return states(t, all)
}

// An agent goes before collectors, of which one more makes no more time; where the
// agent is silent, collectors speak.
func TestAgentGoesBeforeCollector(t *testing.T) {
	whose := func(team string) func(int64, *Sample) {
		return func(_ int64, s *Sample) {
			s.Used, s.Claims = million, []Claim{{Owner: owner(team, ""), Share: Unknown, Used: Unknown}}
		}
	}
	agent := samplesOf("g", base, 6, whose("agent"))
	agent[2], agent[3] = agent[1], agent[1] // says nothing for twenty seconds
	collector := pointsOf("g", base-13*second, 9, whose("collector"))
	another := pointsOf("g", base-8*second, 8, whose("collector"))
	for name, tc := range map[string]struct {
		lists [][]Sample
		want  map[string]int64
	}{
		"agent alone":    {[][]Sample{agent}, map[string]int64{"used agent": 40 * second}},
		"one collector":  {[][]Sample{collector}, map[string]int64{"used collector": 80 * second}},
		"two collectors": {[][]Sample{collector, another}, map[string]int64{"used collector": 80 * second}},
		"all":            {[][]Sample{agent, collector, another}, map[string]int64{"used agent": 40 * second, "used collector": 40 * second}},
	} {
		if got := together(t, tc.lists...); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// A MIG instance has another name with an agent than with an exporter; its time is
// accounted once all the same.
func TestAgentGoesBeforeCollectorUnderMIG(t *testing.T) {
	instance := func(name string) func(int64, *Sample) {
		return func(_ int64, s *Sample) { s.MIG, s.Profile, s.Used = name, "3g.40gb", million }
	}
	got := together(t, samplesOf("g", base, 6, instance("MIG-7e1f")), pointsOf("g", base-10*second, 7, instance("MIG-g/2")))
	total := int64(0)
	for _, micros := range got {
		total += micros
	}
	if total != 60*second {
		t.Errorf("%v", got)
	}
}

// An exporter that is scraped in pieces, or sent again, says the same as one that is
// not: utilisation that one piece lacks is not unknown, and each pod is an owner.
func TestPiecesOfALook(t *testing.T) {
	claims := func(pods ...string) (c []Claim) {
		for _, pod := range pods {
			c = append(c, Claim{Owner: Owner{Pod: pod}, Share: Unknown, Used: Unknown})
		}
		return c
	}
	whole := pointsOf("g", base-10*second, 7, func(_ int64, s *Sample) { s.Used, s.Claims = 500_000, claims("a", "b") })
	first := pointsOf("g", base-10*second, 7, func(_ int64, s *Sample) { s.Used, s.Claims, s.Device = 500_000, claims("b"), Device{Cloud: "aws"} })
	second := pointsOf("g", base-10*second, 7, func(_ int64, s *Sample) { s.Claims = claims("a") })
	want := together(t, whole)
	if len(want) != 2 {
		t.Fatalf("%v", want)
	}
	for _, lists := range [][][]Sample{{first, second}, {second, first}, {first, second, first}, {whole, second, whole}} {
		if got := together(t, lists...); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// Putting pieces together does not depend on their order or number.
func TestUnionIsASemilattice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(name string) *facts {
			word := rapid.SampledFrom([]string{"", unnamed, "x", "y"})
			s := &Sample{Profile: word.Draw(rt, name), MIGEnabled: rapid.Bool().Draw(rt, name), Device: Device{Host: word.Draw(rt, name), Cloud: word.Draw(rt, name)}}
			owners := map[Owner]int64{}
			for range rapid.IntRange(0, 3).Draw(rt, name) {
				owners[Owner{Pod: word.Draw(rt, name)}] = rapid.Int64Range(-1, 2).Draw(rt, name)
			}
			for o := range maps.Keys(owners) {
				s.Claims = append(s.Claims, Claim{Owner: o, Share: owners[o], Used: Unknown})
			}
			return factsFrom(union(factsFrom(s), factsFrom(s))) // in its own order
		}
		of := func(a, b *facts) *facts { return factsFrom(union(a, b)) }
		a, b, c := draw("a"), draw("b"), draw("c")
		if of(a, a).text != a.text || of(a, b).text != of(b, a).text || of(of(a, b), c).text != of(a, of(b, c)).text {
			rt.Fatalf("%+v %+v %+v", a, b, c)
		}
		if x, y := rapid.Int64Range(-1, 3).Draw(rt, "x"), rapid.Int64Range(-1, 3).Draw(rt, "y"); lesser(x, y) != lesser(y, x) || lesser(x, x) != x {
			rt.Fatal(x, y)
		}
	})
}

// A window that a collector told of is not for a program that takes its parts for
// instances; one without keeps its bytes.
func TestRelayedStateHasItsVersion(t *testing.T) {
	for _, tc := range []struct {
		sample Sample
		want   byte
	}{{samplesOf("g", base, 1, nil)[0], 1}, {pointsOf("g", base, 1, nil)[0], 2}} {
		w := newWindow(place{gpu: "g", start: base})
		w.add(&tc.sample, factsFrom(&tc.sample))
		stored := w.encode()
		again := newWindow(w.place)
		if err := again.decode(stored, func(s string) (*facts, error) { return factsOf(s) }); err != nil || stored[0] != tc.want || string(again.encode()) != string(stored) {
			t.Errorf("version %d, %v", stored[0], err)
		}
	}
}
