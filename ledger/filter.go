package ledger

import (
	"hash/maphash"
	"math/bits"
	"unsafe"

	"github.com/tallystick/tallystick/ingest/event"
)

// filter says of an event key that it is definitely new, or that it may be
// known. It is a blocked Bloom filter of 16 bits and 6 probes a key, all
// within one cache line, in layers that double: about 0.3 % of new keys are
// taken for known, which costs one look-up each. The hash is keyed anew in
// every process, so nobody can choose ids that collide.
//
// It is for one goroutine; keys are never removed.
type filter struct {
	seed   maphash.Seed
	layers []filterLayer
	n      int // keys in the last layer
}

type filterLayer struct {
	blocks [][8]uint64
	limit  int // keys before the next layer starts
}

const (
	filterFirstKeys  = 1 << 14
	filterBitsPerKey = 16
	filterMaxKeys    = 1 << 22 // of one layer
)

func newFilter() *filter { return &filter{seed: maphash.MakeSeed()} }

func (f *filter) hash(tenant uint32, k *event.Key) uint64 {
	var b [20]byte
	copy(b[:], k[:])
	*(*uint32)(unsafe.Pointer(&b[16])) = tenant
	return maphash.Bytes(f.seed, b[:])
}

// add remembers a key of the tenant with the given number.
func (f *filter) add(tenant uint32, k *event.Key) {
	if len(f.layers) == 0 || f.n == f.layers[len(f.layers)-1].limit {
		f.grow()
	}
	h := f.hash(tenant, k)
	block := f.layers[len(f.layers)-1].block(h)
	for p := range filterProbes(h) {
		block[p>>6] |= 1 << (p & 63)
	}
	f.n++
}

// maybe reports whether the key may have been added.
func (f *filter) maybe(tenant uint32, k *event.Key) bool {
	h := f.hash(tenant, k)
	for i := range f.layers {
		if f.layers[i].has(h) {
			return true
		}
	}
	return false
}

func (l *filterLayer) has(h uint64) bool {
	block := l.block(h)
	for p := range filterProbes(h) {
		if block[p>>6]&(1<<(p&63)) == 0 {
			return false
		}
	}
	return true
}

func (l *filterLayer) block(h uint64) *[8]uint64 {
	hi, _ := bits.Mul64(h, uint64(len(l.blocks)))
	return &l.blocks[hi]
}

// filterProbes yields six 9-bit positions out of the hash. The block is chosen
// by the high bits; a multiplication spreads the rest.
func filterProbes(h uint64) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		x := h * 0x9e3779b97f4a7c15
		for range 6 {
			if !yield(x & 511) {
				return
			}
			x >>= 9
		}
	}
}

func (f *filter) grow() {
	limit := filterFirstKeys
	if n := len(f.layers); n > 0 {
		limit = min(2*f.layers[n-1].limit, filterMaxKeys)
	}
	f.layers = append(f.layers, filterLayer{blocks: make([][8]uint64, limit*filterBitsPerKey/512), limit: limit})
	f.n = 0
}
