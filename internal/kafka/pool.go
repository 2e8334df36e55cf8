package kafka

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// fetchPool lets one reader reuse its decompression buffers and record slices.
// Without it a reader at full speed makes garbage as fast as the broker sends.
type fetchPool struct {
	mu      sync.Mutex // protects both lists: the client decodes in its own goroutines
	buffers [][]byte
	records [][]kgo.Record
}

// maxPooled slices of each kind are kept: one fetch being read, one buffered.
const maxPooled = 16

// GetDecompressBytes implements kgo.PoolDecompressBytes. A grown buffer comes
// back through PutDecompressBytes, so the guess matters only at the start.
func (p *fetchPool) GetDecompressBytes(compressed []byte, _ kgo.CompressionCodecType) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.buffers); n > 0 {
		b := p.buffers[n-1]
		p.buffers = p.buffers[:n-1]
		return b
	}
	return make([]byte, 0, 4*len(compressed))
}

// PutDecompressBytes implements kgo.PoolDecompressBytes.
func (p *fetchPool) PutDecompressBytes(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.buffers) < maxPooled {
		p.buffers = append(p.buffers, b)
	}
}

// GetRecords implements kgo.PoolRecords.
func (p *fetchPool) GetRecords(n int) []kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.records) - 1; last >= 0 {
		s := p.records[last]
		p.records = p.records[:last]
		if cap(s) >= n {
			return s
		}
	}
	return make([]kgo.Record, 0, n)
}

// PutRecords implements kgo.PoolRecords.
func (p *fetchPool) PutRecords(s []kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.records) < maxPooled {
		p.records = append(p.records, s[:0])
	}
}
