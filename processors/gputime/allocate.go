package gputime

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/ingest/event"
)

// piece is a stretch of a window that one observation speaks for.
type piece struct {
	from, to int64
	o        *observation
}

// coverage is what the observations of one part speak for inside the window, in
// order of time and without overlaps: where two overlap, the earlier end has it.
func (w *window) coverage(list []observation, length, maxGap int64) (covered []piece) {
	before := int64(-1) // end of the last that does not say since when
	for i := range list {
		o := &list[i]
		from := max(o.start, o.end-maxGap)
		if o.start == o.end {
			last := before
			if before = o.end; last < 0 || o.end-last > maxGap {
				continue
			}
			from = last
		}
		from, to := max(from, w.start), min(o.end, w.start+length)
		if from >= to {
			continue
		}
		// What is before the end of the observation before is free only in holes.
		at := len(covered)
		for at > 0 && covered[at-1].to > from {
			at--
		}
		later := slices.Clone(covered[at:])
		covered = covered[:at]
		for _, p := range later {
			if p.from > from {
				covered = append(covered, piece{from, min(p.from, to), o})
			}
			covered = append(covered, p)
			from = max(from, p.to)
		}
		if from < to {
			covered = append(covered, piece{from, to, o})
		}
	}
	return covered
}

// allocate splits the observed time of the window. The values add up to it.
func (w *window) allocate(length, maxGap int64) map[item]int64 {
	names := slices.Sorted(maps.Keys(w.parts))
	tracks := make([][]piece, len(names))
	var edges []int64
	for i, name := range names {
		tracks[i] = w.coverage(w.parts[name], length, maxGap)
		for _, p := range tracks[i] {
			edges = append(edges, p.from, p.to)
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	parts := make(map[item]int64)
	at := make([]int, len(tracks))
	for e := 1; e < len(edges); e++ {
		var ours, theirs seen // of agents, and of collectors
		for i := range tracks {
			for at[i] < len(tracks[i]) && tracks[i][at[i]].to <= edges[e-1] {
				at[i]++
			}
			if at[i] == len(tracks[i]) || tracks[i][at[i]].from >= edges[e] {
				continue
			}
			if part, found := strings.CutPrefix(names[i], relayed); found {
				theirs.add(part, tracks[i][at[i]].o)
			} else {
				ours.add(part, tracks[i][at[i]].o)
			}
		}
		if ours.none() {
			ours = theirs
		}
		split(parts, ours.whole, ours.instances, edges[e]-edges[e-1])
	}
	return parts
}

// seen are the observations that speak for a stretch of time.
type seen struct {
	whole     *observation
	instances []*observation
}

func (s *seen) add(part string, o *observation) {
	if part == "" {
		s.whole = o
	} else {
		s.instances = append(s.instances, o)
	}
}

func (s *seen) none() bool { return s.whole == nil && len(s.instances) == 0 }

// split accounts for a stretch of time that these observations speak for.
func split(parts map[item]int64, whole *observation, instances []*observation, micros int64) {
	switch {
	case len(instances) > 0:
		splitInstances(parts, instances, micros)
	case whole == nil:
	case whole.facts.migEnabled: // and no instance was seen
		parts[nobody(whole, event.GPUUnallocated)] += micros
	default:
		whole.share(parts, micros)
	}
}

// splitInstances gives each MIG instance the time of its compute slices; an instance
// that does not say how many it has gets an equal part of what the others leave.
// Slices that no instance has are nobody's.
func splitInstances(parts map[item]int64, instances []*observation, micros int64) {
	var sum, of, open int64
	for _, o := range instances {
		n, whole, ok := migSlices(o.facts.profile, o.facts.device.Model)
		if of = max(of, whole); ok {
			sum += n
		} else {
			open++
		}
	}
	unit, left := max(1, open), max(0, of-sum)
	of = max(of, sum) * unit // they may say more than there can be
	var reached, given int64
	for _, o := range instances {
		if n, _, ok := migSlices(o.facts.profile, o.facts.device.Model); ok {
			reached += n * unit
		} else {
			reached += left
		}
		upTo := part(micros, reached, of)
		o.share(parts, upTo-given)
		given = upTo
	}
	if given < micros {
		rest := nobody(instances[0], event.GPUUnallocated)
		rest.profile = ""
		parts[rest] += micros - given
	}
}

// nobody is the item of time that no owner has.
func nobody(o *observation, state string) item {
	return item{device: o.facts.device, profile: o.facts.profile, state: state}
}

// share accounts for a stretch of time of one part of a device: by the shares that
// its owners have, each used, idle or unknown.
func (o *observation) share(parts map[item]int64, micros int64) {
	if micros == 0 {
		return
	}
	owners := o.facts.owners
	if len(owners) == 0 {
		// Nobody is named. What ran all the same was somebody's.
		if o.used == Unknown {
			parts[nobody(o, event.GPUUnknown)] += micros
			return
		}
		used := part(micros, o.used, million)
		o.put(parts, Owner{}, event.GPUUsed, used)
		o.put(parts, Owner{}, event.GPUUnallocated, micros-used)
		return
	}
	weights, of := weightsOf(o.facts.shares)
	var reached, given int64
	for i, owner := range owners {
		reached += weights[i]
		upTo := part(micros, reached, of)
		o.spend(parts, i, owner, upTo-given)
		given = upTo
	}
	o.put(parts, Owner{}, event.GPUUnallocated, micros-given)
}

// spend accounts for the time of the owner with the number.
func (o *observation) spend(parts map[item]int64, i int, owner Owner, micros int64) {
	used := o.used
	// What is measured by process counts when it is for all: a mixture would take
	// the same kernels into account twice.
	if o.claimed != nil && !slices.Contains(o.claimed, Unknown) {
		used = min(o.claimed[i], million)
		if len(o.claimed) > 1 {
			// It is of the whole stretch; the owner has a share of it.
			weights, of := weightsOf(o.facts.shares)
			used = min(million, part(used, of, max(1, weights[i])))
		}
	}
	if used == Unknown {
		o.put(parts, owner, event.GPUUnknown, micros)
		return
	}
	run := part(micros, used, million)
	o.put(parts, owner, event.GPUUsed, run)
	o.put(parts, owner, event.GPUIdle, micros-run)
}

func (o *observation) put(parts map[item]int64, owner Owner, state string, micros int64) {
	if micros > 0 {
		parts[item{owner: owner, device: o.facts.device, profile: o.facts.profile, state: state}] += micros
	}
}

// weightsOf are the shares of owners and of which whole. Who states none has an
// equal part of what the others leave; who states more than there is, less.
func weightsOf(shares []int64) (weights []int64, of int64) {
	var stated, open int64
	for _, s := range shares {
		if s == Unknown {
			open++
		} else {
			stated += s
		}
	}
	left := max(0, million-stated)
	weights = make([]int64, len(shares))
	// In units of which each of the open ones gets a whole number.
	unit := max(1, open)
	for i, s := range shares {
		weights[i] = s * unit
		if s == Unknown {
			weights[i] = left
		}
	}
	return weights, max(million, stated) * unit
}

// part is micros × n / of, rounded down, for 0 ≤ n and micros and 0 < of; what does
// not fit is the greatest number.
func part(micros, n, of int64) int64 {
	hi, lo := bits.Mul64(uint64(micros), uint64(n))
	if hi >= uint64(of) {
		return 1<<63 - 1
	}
	q, _ := bits.Div64(hi, lo, uint64(of))
	return int64(min(q, 1<<63-1))
}

// sortedItems are the items in their order.
func sortedItems(parts map[item]int64) []item {
	return slices.SortedFunc(maps.Keys(parts), item.compare)
}

// mergeClaims brings claims of equal owners together: their shares and uses add up.
func mergeClaims(claims []Claim) []Claim {
	if len(claims) < 2 {
		return claims
	}
	slices.SortStableFunc(claims, func(a, b Claim) int {
		return cmp.Or(a.Owner.compare(b.Owner), cmp.Compare(a.Share, b.Share), cmp.Compare(a.Used, b.Used))
	})
	var out []Claim
	for _, c := range claims {
		if n := len(out); n == 0 || out[n-1].Owner != c.Owner {
			out = append(out, c)
			continue
		}
		last := &out[len(out)-1]
		last.Share, last.Used = addKnown(last.Share, c.Share), addAll(last.Used, c.Used)
	}
	return out
}

// addKnown adds shares: one that is not stated adds nothing to one that is.
func addKnown(a, b int64) int64 {
	switch {
	case a == Unknown:
		return b
	case b == Unknown:
		return a
	}
	return min(a+b, million)
}

// addAll adds uses: with one that is unknown, the sum is.
func addAll(a, b int64) int64 {
	if a == Unknown || b == Unknown {
		return Unknown
	}
	return min(a+b, million)
}

// union puts together what two pieces of one look say, in whatever order they come
// and how often: what only one of them knows counts, and of two words the lesser.
func union(a, b *facts) *Sample {
	s := &Sample{Profile: either(a.profile, b.profile, unnamed), MIGEnabled: a.migEnabled || b.migEnabled}
	ta, tb := a.device.texts(), b.device.texts()
	for i := range ta {
		ta[i] = either(ta[i], tb[i], "")
	}
	s.Device = deviceOf(ta)
	shares := map[Owner]int64{}
	for _, f := range []*facts{a, b} {
		for i, o := range f.owners {
			if share, known := shares[o]; known {
				shares[o] = lesser(share, f.shares[i])
			} else {
				shares[o] = f.shares[i]
			}
		}
	}
	for _, o := range slices.SortedFunc(maps.Keys(shares), Owner.compare) {
		s.Claims = append(s.Claims, Claim{Owner: o, Share: shares[o], Used: Unknown})
	}
	return s
}

// either is the lesser of two words, one that says nothing last.
func either(a, b, nothing string) string {
	for _, empty := range []string{"", nothing} {
		switch {
		case a == empty:
			return b
		case b == empty:
			return a
		}
	}
	return min(a, b)
}

// lesser is the lesser of what is known. Of how much of a device ran, what was
// measured more finely is less.
func lesser(a, b int64) int64 {
	if a == Unknown || b == Unknown {
		return max(a, b)
	}
	return min(a, b)
}
