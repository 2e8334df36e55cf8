package bpe

import "math"

const (
	// scanLimit is the size in bytes from which on a piece is merged with a heap:
	// pieces of prose are shorter, and scanning them costs less.
	scanLimit = 64
	// none is the rank of what is no token.
	none = math.MaxUint32
)

// merger merges the bytes of pieces into tokens: again and again the pair whose
// token has the lowest rank, of several the leftmost. Its memory is used again
// from piece to piece.
type merger struct {
	ranks map[string]uint32
	parts []part
	heap  []candidate
}

// part is a token to be, in a list of those that are left. rank is that of the token
// which it and the next one make.
type part struct {
	prev, next int32 // where those begin; next of the last one is the piece's end
	rank       uint32
}

// candidate is a pair that can be merged, as long as the part at has that rank.
type candidate struct {
	rank uint32
	at   int32
}

func (c candidate) before(d candidate) bool {
	return c.rank < d.rank || c.rank == d.rank && c.at < d.at
}

// piece gives the tokens of one piece of text.
func (m *merger) piece(s string, yield func(rank uint32)) {
	if rank, ok := m.ranks[s]; ok {
		yield(rank)
		return
	}
	m.begin(s)
	if len(s) < scanLimit {
		m.scan(s)
	} else {
		m.drain(s)
	}
	for i := int32(0); i < int32(len(s)); i = m.parts[i].next {
		yield(m.ranks[s[i:m.parts[i].next]]) // every single byte is a token
	}
}

// begin makes a part of each byte.
func (m *merger) begin(s string) {
	m.parts = m.parts[:0]
	for i := range int32(len(s)) {
		m.parts = append(m.parts, part{prev: i - 1, next: i + 1})
	}
	for i := range m.parts {
		m.parts[i].rank = m.rank(s, int32(i))
	}
}

// rank is that of the token which the part at i and the next one make.
func (m *merger) rank(s string, i int32) uint32 {
	next := m.parts[i].next
	if next >= int32(len(s)) {
		return none
	}
	if rank, ok := m.ranks[s[i:m.parts[next].next]]; ok {
		return rank
	}
	return none
}

// join merges the part at i with the next one.
func (m *merger) join(s string, i int32) {
	gone := m.parts[i].next
	m.parts[gone].rank = none
	m.parts[i].next = m.parts[gone].next
	if next := m.parts[i].next; next < int32(len(s)) {
		m.parts[next].prev = i
	}
	m.parts[i].rank = m.rank(s, i)
	if prev := m.parts[i].prev; prev >= 0 {
		m.parts[prev].rank = m.rank(s, prev)
	}
}

// scan merges a short piece.
func (m *merger) scan(s string) {
	for {
		best := candidate{rank: none}
		for i := int32(0); i < int32(len(s)); i = m.parts[i].next {
			if m.parts[i].rank < best.rank {
				best = candidate{m.parts[i].rank, i}
			}
		}
		if best.rank == none {
			return
		}
		m.join(s, best.at)
	}
}

// drain merges a long piece. A candidate whose part has changed since is passed over:
// each merge adds at most two, so there are at most three for a byte.
func (m *merger) drain(s string) {
	m.heap = m.heap[:0]
	for i := range m.parts {
		m.push(int32(i))
	}
	for len(m.heap) > 0 {
		c := m.pop()
		if m.parts[c.at].rank != c.rank {
			continue
		}
		m.join(s, c.at)
		m.push(c.at)
		if prev := m.parts[c.at].prev; prev >= 0 {
			m.push(prev)
		}
	}
}

func (m *merger) push(at int32) {
	c := candidate{m.parts[at].rank, at}
	if c.rank == none {
		return
	}
	m.heap = append(m.heap, c)
	i := len(m.heap) - 1
	for i > 0 && c.before(m.heap[(i-1)/2]) {
		m.heap[i] = m.heap[(i-1)/2]
		i = (i - 1) / 2
	}
	m.heap[i] = c
}

func (m *merger) pop() candidate {
	top, last := m.heap[0], m.heap[len(m.heap)-1]
	m.heap = m.heap[:len(m.heap)-1]
	n, i := len(m.heap), 0
	for 2*i+1 < n {
		child := 2*i + 1
		if child+1 < n && m.heap[child+1].before(m.heap[child]) {
			child++
		}
		if !m.heap[child].before(last) {
			break
		}
		m.heap[i] = m.heap[child]
		i = child
	}
	if n > 0 {
		m.heap[i] = last
	}
	return top
}
