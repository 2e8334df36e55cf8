// Package testlog is where programs under test log to while the test reads it.
package testlog

import (
	"bytes"
	"sync"
)

// Buffer keeps all that is written. The zero value is empty; it is safe for concurrent
// use.
type Buffer struct {
	mu sync.Mutex // protects what follows
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// Bytes returns a copy of what was written so far.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

// String returns what was written so far.
func (b *Buffer) String() string { return string(b.Bytes()) }
