package load

import "math"

// mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// golden is splitmix64's increment.
const golden = 0x9e3779b97f4a7c15

// Streams keep draws for different purposes apart.
const (
	streamID = iota + 1
	streamTenant
	streamFault
	streamPoison
	streamCall
	streamClient
	streamSlot
	streamConflict
)

// dice draws numbers that depend only on (seed, stream, position).
type dice struct{ state uint64 }

func newDice(seed uint64, stream uint64, position int64) dice {
	return dice{mix(mix(seed+golden*stream) + golden*uint64(position))}
}

func (d *dice) next() uint64 {
	d.state += golden
	return mix(d.state)
}

// unit is uniform in [0, 1).
func (d *dice) unit() float64 { return float64(d.next()>>11) / (1 << 53) }

// below is uniform in [0, n), n > 0. The bias is below 2^-32 for any n used.
func (d *dice) below(n int64) int64 { return int64(d.next() % uint64(n)) }

// chance is true with probability p.
func (d *dice) chance(p float64) bool { return p > 0 && d.unit() < p }

// normal is standard normal (Box–Muller, one of the pair).
func (d *dice) normal() float64 {
	u := 1 - d.unit()
	return math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*d.unit())
}

// lognormal has the given median; sigma is the deviation of its logarithm.
func (d *dice) lognormal(median, sigma float64) int64 {
	return int64(median*math.Exp(sigma*d.normal()) + 0.5)
}

// alias draws positions in proportion to weights in constant time (Walker's
// alias method in Vose's form).
type alias struct {
	prob  []float64
	other []int32
}

func newAlias(weights []float64) alias {
	n := len(weights)
	a := alias{make([]float64, n), make([]int32, n)}
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	var small, large []int32
	for i, w := range weights {
		a.prob[i] = w / sum * float64(n)
		if a.prob[i] < 1 {
			small = append(small, int32(i))
		} else {
			large = append(large, int32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a.other[s] = l
		if a.prob[l] -= 1 - a.prob[s]; a.prob[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) {
		a.prob[i] = 1
	}
	return a
}

func (a *alias) pick(d *dice) int32 {
	i := d.below(int64(len(a.prob)))
	if d.unit() < a.prob[i] {
		return int32(i)
	}
	return a.other[i]
}

// zipf weights: rank r has weight 1/r^s.
func zipf(n int, s float64) []float64 {
	w := make([]float64, n)
	for i := range w {
		w[i] = math.Pow(float64(i+1), -s)
	}
	return w
}
