package ledger

import "sync"

const (
	// chunkBytes is the unit of the writer's reused memory.
	chunkBytes = 256 << 10
	// maxFreeChunks bounds what is kept of it, over all partitions: 48 MiB.
	maxFreeChunks = 192
)

// chunkPool keeps chunks for all partitions of a Writer. Growing one buffer per
// partition instead would copy it at each doubling, and a partition that was
// busy once would hold on to megabytes.
type chunkPool struct {
	mu   sync.Mutex // protects free
	free [][]byte
}

// A nil pool keeps nothing.
func (p *chunkPool) get() []byte {
	if p == nil {
		return make([]byte, 0, chunkBytes)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return make([]byte, 0, chunkBytes)
	}
	c := p.free[n-1]
	p.free = p.free[:n-1]
	return c[:0]
}

func (p *chunkPool) put(chunks [][]byte) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, chunks[:min(len(chunks), maxFreeChunks-len(p.free))]...)
}

// arena is memory that is filled piece by piece and given back at once.
type arena struct {
	pool *chunkPool
	cur  []byte
	full [][]byte
}

// open returns an empty slice with room for about hint bytes, to be appended to
// and then closed. What needs more room moves to memory of its own by itself.
func (a *arena) open(hint int) []byte {
	if cap(a.cur)-len(a.cur) < hint {
		if cap(a.cur) > 0 {
			a.full = append(a.full, a.cur)
		}
		a.cur = a.pool.get()
	}
	return a.cur[len(a.cur):]
}

// close keeps what was appended to the slice of the last open.
func (a *arena) close(b []byte) []byte {
	if cap(b) == cap(a.cur)-len(a.cur) {
		a.cur = a.cur[:len(a.cur)+len(b)]
	}
	return b[:len(b):len(b)]
}

// reset gives all memory back. Nobody may refer to it any more.
func (a *arena) reset() {
	if cap(a.cur) > 0 {
		a.full = append(a.full, a.cur)
	}
	a.pool.put(a.full)
	clear(a.full)
	a.cur, a.full = nil, a.full[:0]
}
