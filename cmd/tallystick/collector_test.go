package main

import "testing"

// A heap that is small may grow to the floor, and one that is not is collected as usual.
func TestAllowedGarbage(t *testing.T) {
	for alive, want := range map[uint64]int{0: 400, 4 << 20: 400, 12 << 20: 400, 13 << 20: 200, 21 << 20: 200, 22 << 20: 100, 1 << 30: 100} {
		if got := allowedGarbage(alive); got != want {
			t.Errorf("%d bytes alive may grow by %d %%, want %d", alive, got, want)
		}
		if got := alive * uint64(100+want) / 100; want > usualGarbage && got > heapFloor {
			t.Errorf("%d bytes alive grow to %d", alive, got)
		}
	}
}
