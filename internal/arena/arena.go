// Package arena is memory that is filled piece by piece and given back at once,
// for batches on the hot path.
//
// Pieces lie in chunks of one size, which a Pool keeps for all its users. A
// buffer per user that grows by doubling would copy every byte at each step,
// and a user that was busy once would hold on to megabytes. It never looks at
// what is in a piece, and a piece never moves.
package arena

import "sync"

// ChunkBytes is the size of a chunk.
const ChunkBytes = 256 << 10

// Pool keeps chunks for their next use. It is safe for concurrent use; a nil
// Pool keeps nothing.
type Pool struct {
	max int

	mu   sync.Mutex // protects free
	free [][]byte
}

// NewPool makes a pool that keeps at most maxBytes; what comes back beyond is
// left to the collector.
func NewPool(maxBytes int) *Pool { return &Pool{max: maxBytes / ChunkBytes} }

func (p *Pool) get() []byte {
	if p == nil {
		return make([]byte, 0, ChunkBytes)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return make([]byte, 0, ChunkBytes)
	}
	c := p.free[n-1]
	p.free[n-1] = nil
	p.free = p.free[:n-1]
	return c[:0]
}

func (p *Pool) put(chunks [][]byte) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, chunks[:min(len(chunks), p.max-len(p.free))]...)
}

// Arena is the memory of one batch. It is for one goroutine at a time. The zero
// value has no pool.
type Arena struct {
	pool *Pool
	cur  []byte
	full [][]byte
}

// New makes an empty arena.
func New(p *Pool) Arena { return Arena{pool: p} }

// Open returns an empty slice with room for about hint bytes, to be appended to
// and then closed. What needs more room moves to memory of its own by itself.
func (a *Arena) Open(hint int) []byte {
	if cap(a.cur)-len(a.cur) < hint {
		if cap(a.cur) > 0 {
			a.full = append(a.full, a.cur)
		}
		a.cur = a.pool.get()
	}
	return a.cur[len(a.cur):]
}

// Close keeps what was appended to the slice of the last Open and returns it,
// valid until Reset.
func (a *Arena) Close(b []byte) []byte {
	if cap(b) == cap(a.cur)-len(a.cur) {
		a.cur = a.cur[:len(a.cur)+len(b)]
	}
	return b[:len(b):len(b)]
}

// Copy keeps a copy of b and returns it, valid until Reset.
func (a *Arena) Copy(b []byte) []byte { return a.Close(append(a.Open(len(b)), b...)) }

// Reset gives all memory back. Nobody may refer to it any more.
func (a *Arena) Reset() {
	if cap(a.cur) > 0 {
		a.full = append(a.full, a.cur)
	}
	a.pool.put(a.full)
	clear(a.full)
	a.cur, a.full = nil, a.full[:0]
}
