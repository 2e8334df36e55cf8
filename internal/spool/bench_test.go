package spool

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/tallystick/tallystick/internal/kafka"
)

// BenchmarkAppend is one record of 400 bytes a call, fsync'd, by so many
// goroutines at once.
func BenchmarkAppend(b *testing.B) {
	for _, who := range []struct {
		name string
		key  *[KeyBytes]byte
	}{{"plain", nil}, {"sealed", key}} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", who.name, n), func(b *testing.B) {
				s := open(b, b.TempDir(), Options{MaxBytes: 8 << 30, Key: who.key})
				record := [][]byte{make([]byte, 400)}
				b.SetBytes(400)
				appendFrom(b, n, func() error {
					_, err := s.Append(context.Background(), record)
					return err
				})
			})
		}
	}
}

// BenchmarkLogProduce is what the proxy pays for each call that it meters.
func BenchmarkLogProduce(b *testing.B) {
	s := open(b, b.TempDir(), Options{MaxBytes: 8 << 30, Key: key})
	l := NewLog(s, &broker{}, LogOptions{})
	b.SetBytes(400)
	appendFrom(b, 64, func() error {
		return l.ProduceBatch(context.Background(), []kafka.Record{{Topic: "events", Key: make([]byte, 16), Value: make([]byte, 380)}}, nil)
	})
}

// appendFrom calls f b.N times from n goroutines.
func appendFrom(b *testing.B, n int, f func() error) {
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error)
	for range n {
		go func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range n {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
